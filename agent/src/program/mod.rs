//! Which program this process is, and the start of another one in its place.
//!
//! The packaged `muster-agent` is the launcher: before anything else it looks whether another program is to run, and becomes that one
//! (`exec`, so that the service manager sees one process with one notify socket and one watchdog). It knows nothing of settings that only the
//! new one has, takes just the data folder from the configuration, and runs itself wherever anything is in doubt.
//! What is to run is decided by [`muster_agent_core::program`]; how it came there is [`crate::updater`]'s matter.

mod handover;
mod store;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use muster_agent_core::program::{self, Record};
use muster_agent_core::slots::Slot;
use muster_shared::messages::{InstalledBundle, ProgramKey};

pub(crate) use self::handover::Handover;
use self::handover::LAUNCHER;
pub(crate) use self::store::ProgramStore;
use crate::attributes::AGENT_VERSION;
use crate::causes::with_source;
use crate::config::Config;
use crate::files;

/// Tells a program that was started in place of the packaged one in which slot it is.
const SLOT: &str = "MUSTER_AGENT_PROGRAM_SLOT";
/// Tells it of which version the package is.
const PACKAGE: &str = "MUSTER_AGENT_PACKAGE_VERSION";
/// More than any configuration has.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// Which program this process is.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    /// Where it is; none for what the package installed.
    pub(crate) slot: Option<Slot>,
    /// The version of the packaged program.
    pub(crate) package: semver::Version,
    /// Where the packaged program is; none where that was not said.
    pub(crate) launcher: Option<PathBuf>,
    /// What the controller knows it as. The updater says so, and whoever counts something reads it.
    pub(crate) known_as: KnownAs,
}

/// What the controller knows the program that runs as. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownAs(Arc<Mutex<Option<ProgramKey>>>);

impl KnownAs {
    /// Takes down what the report says; none for what the package installed.
    pub(crate) fn set(&self, running: Option<&InstalledBundle>) {
        let key = running.map(|bundle| ProgramKey { manifest: bundle.manifest, generation: bundle.generation });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = key;
    }

    /// What was said last.
    pub(crate) fn get(&self) -> Option<ProgramKey> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// What the package installed.
    pub(crate) fn packaged() -> Self {
        let package = AGENT_VERSION.parse().unwrap_or_else(|_| semver::Version::new(0, 0, 0));
        // Where it is now: another package that is installed meanwhile takes that place.
        let launcher = std::env::current_exe().ok();
        Self { slot: None, package, launcher, known_as: KnownAs::default() }
    }

    /// As whoever started this process in place of the packaged program says.
    fn of_environment() -> Option<Self> {
        let (slot, package) = (std::env::var(SLOT).ok()?, std::env::var(PACKAGE).ok()?);
        let slot = Slot::ALL.into_iter().find(|known| known.as_str() == slot)?;
        let launcher = std::env::var_os(LAUNCHER).map(PathBuf::from);
        Some(Self { slot: Some(slot), package: package.parse().ok()?, launcher, known_as: KnownAs::default() })
    }
}

/// Becomes the program that is to run with the configuration `config`, and returns only where that is this one.
pub(crate) fn launch(config: Option<&Path>) -> Running {
    if let Some(running) = Running::of_environment() {
        return running;
    }
    let own = Running::packaged();
    let Some(data_dir) = data_dir(config) else { return own };
    let store = ProgramStore::new(&data_dir);
    let record = match store.load() {
        Ok(Some(record)) => record,
        Ok(None) => return own,
        Err(why) => {
            complain(&format!("{why}: the packaged program runs"));
            return own;
        }
    };
    // Another agent on this folder may be changing it, and this one will not run beside it. Held until this process ends or becomes another.
    let Ok(lock) = files::lock(&data_dir) else { return own };
    become_it(&store, record, &own);
    drop(lock);
    own
}

/// Returns where the packaged program is to run.
fn become_it(store: &ProgramStore, mut record: Record, own: &Running) {
    let program::Launch { mut run, record: next, otherwise } = program::launch(record.clone(), &own.package);
    if let Some(next) = next {
        match store.save(&next) {
            Ok(()) => {
                record = next;
                passing!(ProgramStartSpent);
            }
            Err(error) => {
                complain(&format!("{}: no program is tried until it can be written", with_source(&error)));
                run = otherwise;
            }
        }
    }
    // Two at most: what is on trial, and what is committed.
    for _ in Slot::ALL {
        let Some(slot) = run else { return };
        let why = start(store, &record, slot, own);
        complain(&format!("the program in slot {} cannot be started: {why}", slot.as_str()));
        let (next, instead) = program::could_not_start(record.clone(), slot, &why);
        if let Some(next) = next {
            if let Err(error) = store.save(&next) {
                complain(&with_source(&error));
            }
            record = next;
        }
        run = instead;
    }
}

/// Becomes the program in `slot`; returns why that cannot be.
fn start(store: &ProgramStore, record: &Record, slot: Slot, own: &Running) -> String {
    let Some(content) = record.slots.get(&slot) else { return "the slot is empty".to_owned() };
    let path = store.program(slot);
    match store.digest(slot) {
        Ok(Some(digest)) if digest == content.sha256 => {}
        Ok(Some(_)) => return format!("{} is damaged", path.display()),
        Ok(None) => return format!("{} is not there", path.display()),
        Err(error) => return with_source(&error),
    }
    passing!(ProgramLaunching);
    let mut command = Command::new(&path);
    command.args(std::env::args_os().skip(1)).env(SLOT, slot.as_str()).env(PACKAGE, own.package.to_string());
    if let Some(launcher) = &own.launcher {
        command.env(LAUNCHER, launcher);
    }
    command.exec().to_string()
}

/// The data folder that the file `config` names, whatever else it says; none where it cannot be told.
fn data_dir(config: Option<&Path>) -> Option<PathBuf> {
    let Some(path) = config else { return Some(Config::default().data_dir) };
    let bytes = files::read_bounded(path, MAX_CONFIG_BYTES).ok()??;
    let table: toml::Table = std::str::from_utf8(&bytes).ok()?.parse().ok()?;
    match table.get("data-dir") {
        Some(named) => named.as_str().map(PathBuf::from),
        None => Some(Config::default().data_dir),
    }
}

#[expect(clippy::print_stderr, reason = "there is no log yet, and the service manager keeps what is said here")]
fn complain(text: &str) {
    eprintln!("muster-agent: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_a_later_program_do_not_hide_the_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            data_dir(Some(&path))
        };
        assert_eq!(read("data-dir = \"/x\"\nlater = 1\n[serve]\nlater = []\n"), Some(PathBuf::from("/x")));
        assert_eq!(read("later = 1\n"), Some(Config::default().data_dir));
        for doubtful in ["data-dir = 1\n", "data-dir = \"/x", "\u{0}"] {
            assert_eq!(read(doubtful), None, "{doubtful:?}");
        }
        assert_eq!(data_dir(Some(&folder.path().join("missing"))), None);
        assert_eq!(data_dir(None), Some(Config::default().data_dir));
    }
}
