//! Where the programs under test are.

use std::path::PathBuf;

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
