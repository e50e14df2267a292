//! For tests: a file system that is really full.
//!
//! Mounting one needs a mount namespace, which only a process with a single thread can enter; so the test runs itself once more
//! in a process of its own, inside `unshare`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set in the inner process: where the small file system is.
const DIR: &str = "MUSTER_TEST_TINY_DISK";

/// A small file system that a test may fill.
pub(crate) struct TinyDisk {
    dir: PathBuf,
}

impl TinyDisk {
    /// Runs `test` on an empty tmpfs of `mebibytes`. `name` is the test's own path, as the test binary lists it. Where the
    /// system does not let this user mount anything, the test says so and passes without having shown anything.
    pub(crate) fn run(name: &str, mebibytes: u32, test: impl FnOnce(&TinyDisk)) {
        if let Some(dir) = std::env::var_os(DIR) {
            return test(&TinyDisk { dir: dir.into() });
        }
        let folder = tempfile::tempdir().unwrap();
        if !Command::new("unshare").args(["-Urm", "true"]).output().is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED {name}: this system does not allow `unshare -Urm`");
            return;
        }
        let script = "mount -t tmpfs -o size=$1m tiny \"$2\" && exec \"$3\" --exact \"$4\" --nocapture";
        let output = Command::new("unshare")
            .args(["-Urm", "sh", "-c", script, "sh", &mebibytes.to_string()])
            .arg(folder.path())
            .arg(std::env::current_exe().unwrap())
            .arg(name)
            .env(DIR, folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    /// Takes all the room there is, to the last byte.
    pub(crate) fn fill(&self) {
        let mut ballast = File::options().create(true).append(true).open(self.ballast()).unwrap();
        while ballast.write_all(&[7; 4_096]).is_ok() {}
        assert_eq!(crate::resources::disk_free_bytes(&self.dir), 0);
    }

    /// Gives the room back.
    pub(crate) fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}
