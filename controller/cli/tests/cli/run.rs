//! Running the binary in a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Where the fixtures of the repository are.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The result as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts the exit code and that standard error says all of `parts`.
    #[track_caller]
    pub(crate) fn assert(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {}", self.stderr);
        }
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A folder to work in, and a home in it.
pub(crate) struct Desk {
    folder: TempDir,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The binary with `arguments`, split at spaces; nothing of the caller's environment reaches it.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command
            .args(arguments.split_whitespace())
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .env("SOURCE_DATE_EPOCH", "1800000000");
        command
    }

    /// Runs the binary to its end.
    pub(crate) fn run(&self, arguments: &str) -> Ended {
        self.command(arguments).output().unwrap().into()
    }

    /// Runs the binary, which must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, arguments: &str) -> Ended {
        let ended = self.run(arguments);
        assert_eq!(ended.code, 0, "{arguments}: {ended:?}");
        ended
    }

    /// Copies the files of the digits model with `version` here and gives the description's name.
    pub(crate) fn digits(&self, version: &str) -> String {
        let from = fixtures().join("digits");
        for name in [format!("digits-{version}.onnx"), format!("golden-{version}.json"), "reference.csv".into()] {
            fs::copy(from.join(&name), self.path(&name)).unwrap();
        }
        let name = format!("bundle-{version}.toml");
        fs::copy(from.join(&name), self.path(&name)).unwrap();
        name
    }

    /// Keys `root.key`, `release.key` and `director.key`, and `root.json` that names them.
    pub(crate) fn trust(&self) {
        for name in ["root.key", "release.key", "director.key"] {
            self.ok(&format!("key generate --out {name}"));
        }
        self.ok("root init --root-key root.key --release-key release.key.pub --director-key director.key.pub --expires-days 30");
    }

    /// The signed bundle of the digits model 1.0.0 in `bundle`, with the keys of [`Self::trust`].
    pub(crate) fn signed_bundle(&self) {
        self.trust();
        let description = self.digits("1.0.0");
        self.ok(&format!("bundle build {description} --out bundle"));
        self.ok("bundle sign bundle --key release.key");
    }
}

/// Whether all of `programs` are installed. Where one is not, the test says so and passes without having shown anything: the tests
/// need Rust and a C compiler alone, and `.ci/run` installs the rest.
pub(crate) fn installed(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = programs.iter().find(|program| !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if let Some(missing) = missing {
        eprintln!("SKIPPED: {missing} is not installed");
    }
    missing.is_none()
}
