//! The program's track on disk: `program/record.json`, and in `program/a` and `program/b` a manifest and the file it describes. What keeps old
//! assignments and releases out is kept a second time in `trust/program-barrier.json`, as for models, so that a damaged record opens no door.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use muster_agent_core::program::Record;
use muster_agent_core::record::Barrier;
use muster_agent_core::slots::Slot;
use muster_shared::bundle::{Manifest, PROGRAM_PATH};
use muster_shared::ids::{Digest, Hasher};
use muster_shared::limits::MAX_DOCUMENT_BYTES;
use muster_shared::trust::{DocumentKind, Envelope};

use crate::files::{self, FileError};
use crate::sealed;

/// Two bitmaps of the largest bundles, in hexadecimal, and the rest.
const MAX_RECORD_BYTES: u64 = 1024 * 1024;
const MAX_BARRIER_BYTES: u64 = 4_096;
const MAX_MANIFEST_BYTES: u64 = MAX_DOCUMENT_BYTES as u64 * 2;
/// Bytes of a program that are read at once.
const READ_BYTES: usize = 64 * 1024;
/// The agent's own user alone may read and start it.
const EXECUTABLE: u32 = 0o700;

/// Where programs and their record are.
#[derive(Debug, Clone)]
pub(crate) struct ProgramStore {
    dir: PathBuf,
    barrier: PathBuf,
}

impl ProgramStore {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("program"), barrier: data_dir.join("trust/program-barrier.json") }
    }

    fn record(&self) -> PathBuf {
        self.dir.join("record.json")
    }

    /// The folder of everything.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The program's file in `slot`.
    pub(crate) fn program(&self, slot: Slot) -> PathBuf {
        self.dir.join(slot.as_str()).join("files").join(PROGRAM_PATH)
    }

    fn manifest_path(&self, slot: Slot) -> PathBuf {
        self.dir.join(slot.as_str()).join("manifest.json")
    }

    /// What was kept a second time; none where that is missing or damaged.
    fn barrier(&self) -> Option<Barrier> {
        let bytes = files::read_start(&self.barrier, MAX_BARRIER_BYTES).ok()??;
        serde_json::from_slice(sealed::open(&bytes)?).ok()
    }

    /// The record; one that is torn is as it was before its last change, and none lets in what was kept out before. None where there is none.
    ///
    /// # Errors
    /// Why it cannot be used, in words.
    pub(crate) fn load(&self) -> Result<Option<Record>, String> {
        let barrier = self.barrier();
        Ok(self.stored()?.map(|record| match barrier {
            Some(barrier) => record.held_to(barrier),
            None => record,
        }))
    }

    /// The record to go on with for a package of this version, and what people have to learn about that.
    pub(crate) fn recover(&self, package: &semver::Version) -> (Record, Option<String>) {
        let (stored, barrier) = (self.stored(), self.barrier());
        let lost = || match barrier {
            Some(barrier) => Record::recovered(package.clone(), barrier),
            None => Record::new(package.clone()),
        };
        let (record, alarm) = match stored {
            Ok(None) if barrier.is_none() && !self.barrier.exists() => return (lost(), None),
            Ok(Some(record)) => {
                let held = barrier.map_or_else(|| record.clone(), |barrier| record.clone().held_to(barrier));
                if held == record {
                    return (record, None);
                }
                (held, "is older than what was accepted since, as where it was torn or a copy was put back".to_owned())
            }
            Ok(None) => (lost(), "is missing; the packaged program runs".to_owned()),
            Err(why) => return (lost(), Some(format!("{why}; the packaged program runs{}", kept_out(barrier)))),
        };
        let path = self.record();
        let alarm = format!("the record of agent programs {} {alarm}{}", path.display(), kept_out(barrier));
        // So that it is found once; where it cannot be written, every start says it.
        let _ = self.save(&record);
        (record, Some(alarm))
    }

    fn stored(&self) -> Result<Option<Record>, String> {
        let path = self.record();
        let why = match read(&path) {
            Ok(record) => return Ok(record),
            Err(why) => why,
        };
        match read(&files::one_before(&path)) {
            Ok(Some(record)) => Ok(Some(record)),
            Ok(None) | Err(_) => Err(format!("the record of agent programs {} is damaged: {why}", path.display())),
        }
    }

    /// Makes `record` durable.
    ///
    /// # Errors
    /// [`FileError`]; what was there stays.
    pub(crate) fn save(&self, record: &Record) -> Result<(), FileError> {
        let path = self.record();
        let json = record.to_json().map_err(|error| FileError::io("write", &path)(error.into()))?;
        files::make_folder(&self.dir)?;
        files::write_durably_keeping_one(&path, &sealed::seal(&json))?;
        passing!(ProgramRecordStored);
        let stored = self.barrier();
        // What was stored may be stricter: the record was written before it, and may have been put back since.
        let barrier = stored.map_or_else(|| record.barrier(), |stored| stored.strictest(record.barrier()));
        if stored != Some(barrier) {
            if let Some(trust) = self.barrier.parent() {
                files::make_folder(trust)?;
            }
            let bytes =
                serde_json::to_vec(&barrier).map_err(|error| FileError::io("write", &self.barrier)(error.into()))?;
            files::write_durably(&self.barrier, &sealed::seal(&bytes))?;
            passing!(ProgramBarrierStored);
        }
        Ok(())
    }

    /// Makes the signed manifest of what `slot` is to hold durable.
    ///
    /// # Errors
    /// [`FileError`].
    pub(crate) fn store_manifest(&self, slot: Slot, envelope: &Envelope) -> Result<(), FileError> {
        files::make_folder(&self.dir.join(slot.as_str()))?;
        files::write_durably(&self.manifest_path(slot), &serde_json::to_vec(envelope).unwrap_or_default())
    }

    /// The manifest of `slot`: the one with this digest or none. Signatures are the caller's matter.
    ///
    /// # Errors
    /// [`FileError`].
    pub(crate) fn manifest(&self, slot: Slot, digest: &Digest) -> Result<Option<(Envelope, Manifest)>, FileError> {
        let Some(bytes) = files::read_start(&self.manifest_path(slot), MAX_MANIFEST_BYTES)? else { return Ok(None) };
        let parsed = serde_json::from_slice::<Envelope>(&bytes).ok().and_then(|envelope| {
            let payload = envelope.payload_bytes().ok().filter(|payload| Digest::of(payload) == *digest)?;
            let manifest: Manifest = serde_json::from_slice(&payload).ok()?;
            let right_kind = envelope.payload_type == DocumentKind::Manifest.payload_type();
            (right_kind && manifest.program.is_some() && manifest.validate().is_ok()).then_some((envelope, manifest))
        });
        Ok(parsed)
    }

    /// The digest of the program's file in `slot`; none where it is not there.
    ///
    /// # Errors
    /// [`FileError`].
    pub(crate) fn digest(&self, slot: Slot) -> Result<Option<Digest>, FileError> {
        let path = self.program(slot);
        let Some(mut file) = files::open_for_reading(&path)? else { return Ok(None) };
        let (mut hash, mut buffer) = (Hasher::default(), vec![0; READ_BYTES]);
        loop {
            match file.read(&mut buffer).map_err(FileError::io("read", &path))? {
                0 => return Ok(Some(hash.finish())),
                read => hash.update(&buffer[..read]),
            }
        }
    }

    /// Lets the program's file in `slot` be started, durably.
    ///
    /// # Errors
    /// [`FileError`].
    pub(crate) fn make_executable(&self, slot: Slot) -> Result<(), FileError> {
        let path = self.program(slot);
        let Some(file) = files::open_for_reading(&path)? else { return Ok(()) };
        file.set_permissions(std::fs::Permissions::from_mode(EXECUTABLE))
            .and_then(|()| file.sync_all())
            .map_err(FileError::io("make executable", &path))
    }

    /// Removes what `slot` holds.
    ///
    /// # Errors
    /// [`FileError`].
    pub(crate) fn clear(&self, slot: Slot) -> Result<(), FileError> {
        files::remove(&self.dir.join(slot.as_str()))
    }
}

fn kept_out(barrier: Option<Barrier>) -> &'static str {
    match barrier {
        Some(_) => ", and nothing older than before will be run",
        None => {
            ", and what kept older assignments and releases out is lost as well: hold what this device is assigned next against what it ran"
        }
    }
}

fn read(path: &Path) -> Result<Option<Record>, String> {
    let Some(bytes) = files::read_bounded(path, MAX_RECORD_BYTES).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let json = sealed::open(&bytes).ok_or("it is not what was written")?;
    Record::from_json(json).map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(generation: u64) -> Record {
        Record { generation, ..Record::new(semver::Version::new(0, 1, 0)) }
    }

    #[test]
    fn a_torn_record_costs_its_last_change_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let store = ProgramStore::new(folder.path());
        assert_eq!(store.load(), Ok(None));
        store.save(&record(1)).unwrap();
        store.save(&record(2)).unwrap();
        assert_eq!(store.load(), Ok(Some(record(2))));
        std::fs::write(store.record(), b"{}").unwrap();
        assert_eq!(store.load(), Ok(Some(record(1))));
        std::fs::write(files::one_before(&store.record()), b"{}").unwrap();
        assert!(store.load().unwrap_err().contains("is not what was written"));
    }

    fn stored(generation: u64, security_floor: u64) -> Record {
        Record { director_epoch: 1, security_floor, ..record(generation) }
    }

    #[test]
    fn a_lost_or_older_record_lowers_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (store, package) = (ProgramStore::new(folder.path()), semver::Version::new(0, 1, 0));
        assert_eq!(store.recover(&package), (Record::new(package.clone()), None), "a new device has nothing to say");
        store.save(&stored(7, 3)).unwrap();
        let copy = std::fs::read(store.record()).unwrap();
        store.save(&stored(12, 9)).unwrap();
        assert_eq!(store.recover(&package), (stored(12, 9), None));
        // A copy is put back: the last assignment is taken again, and nothing before it.
        std::fs::write(store.record(), &copy).unwrap();
        assert_eq!(store.load(), Ok(Some(stored(11, 9))));
        let (held, alarm) = store.recover(&package);
        assert_eq!(held, stored(11, 9));
        assert!(alarm.unwrap().contains("is older than"));
        assert_eq!(store.recover(&package), (stored(11, 9), None), "it is found once");
        // The record is written first: its next change does not lower what was kept.
        store.save(&stored(7, 3)).unwrap();
        assert_eq!(store.load(), Ok(Some(stored(11, 9))));
        // Torn, both of them.
        for path in [store.record(), files::one_before(&store.record())] {
            std::fs::write(path, b"{}").unwrap();
        }
        let (held, alarm) = store.recover(&package);
        assert_eq!(held, stored(11, 9));
        assert!(alarm.unwrap().contains("nothing older than before"));
        // Gone.
        std::fs::remove_dir_all(store.dir()).unwrap();
        let (held, alarm) = store.recover(&package);
        assert_eq!(held, stored(11, 9));
        assert!(alarm.unwrap().contains("is missing"));
        // And with it what was kept.
        std::fs::remove_dir_all(store.dir()).unwrap();
        std::fs::write(&store.barrier, b"{").unwrap();
        let (new, alarm) = store.recover(&package);
        assert_eq!(new, Record::new(package));
        assert!(alarm.unwrap().contains("is lost as well"));
    }

    #[test]
    fn a_barrier_that_is_lost_is_written_again_with_the_record() {
        let folder = tempfile::tempdir().unwrap();
        let store = ProgramStore::new(folder.path());
        store.save(&stored(7, 3)).unwrap();
        for rubbish in [&b""[..], b"{", &[b'1'; 10_000]] {
            std::fs::write(&store.barrier, rubbish).unwrap();
            assert_eq!(store.load(), Ok(Some(stored(7, 3))));
            store.save(&stored(7, 3)).unwrap();
            assert_eq!(store.barrier(), Some(stored(7, 3).barrier()));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_said_to_be_none(bytes: Vec<u8>) {
            let folder = tempfile::tempdir().unwrap();
            let store = ProgramStore::new(folder.path());
            std::fs::create_dir_all(store.dir()).unwrap();
            std::fs::write(store.record(), bytes).unwrap();
            prop_assert!(store.load().is_err());
        }
    }
}
