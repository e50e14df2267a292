//! Where the programs under test are.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

/// Paths of the three programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `muster-controller`.
    pub controller: PathBuf,
    /// `muster-agent`.
    pub agent: PathBuf,
    /// `muster`.
    pub muster: PathBuf,
}

impl Binaries {
    /// Builds all programs with what the whole workspace asks of their libraries, so that tests have built most of it already.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn build_with_workspace() -> anyhow::Result<()> {
        Self::cargo_build(["--workspace", "--bins"])
    }

    /// Builds `packages` together, in the profile this program was built in. Without cargo around it, as when it was started by itself,
    /// it takes what is there.
    ///
    /// # Errors
    /// When they do not build.
    pub fn build(packages: &[&str]) -> anyhow::Result<()> {
        Self::cargo_build(packages.iter().flat_map(|package| ["--package", package]))
    }

    /// These programs with the agent that can be made to die at named steps, built first; the agent itself is left as it is.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn with_crashing_agent(self) -> anyhow::Result<Self> {
        // The whole workspace, as its members decide together how libraries are built.
        Self::cargo_build([
            "--workspace",
            "--bin",
            "muster-agent-crashing",
            "--features",
            "muster-agent/crash-points",
        ])?;
        let agent = self.agent.with_file_name("muster-agent-crashing");
        ensure!(agent.is_file(), "{} is not there, and no cargo to build it", agent.display());
        Ok(Self { agent, ..self })
    }

    /// Runs a test of the controller that is left out where it is not asked for, in the profile this program was built in, and gives what it prints.
    ///
    /// # Errors
    /// When it does not build or pass; without cargo around this program.
    pub fn controllers_own_test(name: &str) -> anyhow::Result<String> {
        let mut command = Self::cargo("test").context("only cargo can build it: start this with cargo run")?;
        command.args(["--workspace", "--bin", "muster-controller", "--", "--ignored", "--exact", "--nocapture", name]);
        let output = command.stderr(Stdio::inherit()).output().context("cargo cannot be started")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && said.contains("1 passed"), "{name} did not pass: {said}");
        Ok(said)
    }

    fn cargo_build<'a>(what: impl IntoIterator<Item = &'a str>) -> anyhow::Result<()> {
        let Some(mut command) = Self::cargo("build") else {
            return Ok(());
        };
        let status = command.args(what).status().context("cargo cannot be started")?;
        ensure!(status.success(), "the programs could not be built");
        Ok(())
    }

    /// Cargo, as far as it is around, to do this in the profile this program was built in.
    fn cargo(verb: &str) -> Option<Command> {
        let mut command = Command::new(std::env::var_os("CARGO")?);
        command.arg(verb).current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        // What cargo tells a program it runs would make build scripts that ask for it run again, and all that rests on them.
        for (name, _) in std::env::vars_os() {
            let told = name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_"));
            if told {
                command.env_remove(name);
            }
        }
        Some(command)
    }

    /// The programs built beside the running one, as a workspace build leaves them.
    ///
    /// # Errors
    /// When one of them has not been built.
    pub fn beside_this_one() -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("the path of the running program is unknown")?;
        let mut folder = own.parent().context("the running program has no folder")?.to_path_buf();
        if folder.ends_with("deps") {
            folder.pop();
        }
        let binaries = Self {
            controller: folder.join("muster-controller"),
            agent: folder.join("muster-agent"),
            muster: folder.join("muster"),
        };
        for path in [&binaries.controller, &binaries.agent, &binaries.muster] {
            ensure!(
                path.is_file(),
                "{} is not there: build everything first, with `cargo test --workspace` or `cargo build --workspace`",
                path.display()
            );
        }
        Ok(binaries)
    }
}
