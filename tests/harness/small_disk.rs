//! A disk of a few mebibytes that a test may fill, or make read-only.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, ensure};

/// A tmpfs, mounted in a namespace of its own and reached through the process that keeps it.
#[derive(Debug)]
pub struct SmallDisk {
    keeper: Child,
    said: BufReader<ChildStdout>,
    dir: PathBuf,
}

impl SmallDisk {
    /// Mounts it over `dir`; `None` where the system does not let this user mount anything.
    ///
    /// # Errors
    /// When there is no `unshare`.
    pub fn mount(dir: &Path, mebibytes: u32) -> anyhow::Result<Option<Self>> {
        fs::create_dir_all(dir)?;
        // Each line asks for other options.
        let script = "mount -t tmpfs -o size=$1m small \"$2\" && echo mounted && \
                      while read -r options; do mount -o \"remount,$options\" \"$2\" && echo remounted || echo refused; done";
        let mut keeper = Command::new("unshare")
            .args(["-Urm", "sh", "-c", script, "sh", &mebibytes.to_string()])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare (util-linux) is needed for a disk that can be filled")?;
        let said = BufReader::new(keeper.stdout.take().context("its output is piped")?);
        let inside = format!("/proc/{}/root{}", keeper.id(), dir.canonicalize()?.display());
        let mut disk = Self { keeper, said, dir: inside.into() };
        if disk.answer()? != "mounted" {
            return Ok(None);
        }
        Ok(Some(disk))
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    /// Takes all the room there is.
    ///
    /// # Errors
    /// When something else than missing room ends it.
    pub fn fill(&self) -> anyhow::Result<()> {
        let mut ballast = File::options().create(true).append(true).open(self.ballast())?;
        let error = loop {
            if let Err(error) = ballast.write_all(&[7; 4_096]) {
                break error;
            }
        };
        ensure!(error.kind() == std::io::ErrorKind::StorageFull, "{error}");
        Ok(())
    }

    /// Gives it back.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn empty(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }

    /// Lets nobody write to it any more, or again. Nothing on it may be open for writing.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_read_only(&mut self, read_only: bool) -> anyhow::Result<()> {
        let options = if read_only { "ro" } else { "rw" };
        writeln!(self.keeper.stdin.as_ref().context("its input is piped")?, "{options}")?;
        let answer = self.answer()?;
        ensure!(answer == "remounted", "the disk cannot be made {options}: {answer}");
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The mount goes with its last process. It may have ended already.
        drop(self.keeper.kill());
        drop(self.keeper.wait());
    }
}
