//! The update record and the manifests it refers to, on disk.
//!
//! `slots/record.json` is the one atomic pointer. What keeps old assignments and releases out is kept a second time in
//! `trust/barrier.json`, so that a damaged record opens no door. What the record said before its last change stays beside it, so that a
//! torn one costs that change.

use std::path::{Path, PathBuf};

use muster_agent_core::garbage::Kept;
use muster_agent_core::record::{Barrier, Record, RecordError, Untold};
use muster_shared::bundle::Manifest;
use muster_shared::ids::Digest;
use muster_shared::limits::{MAX_DOCUMENT_BYTES, bounded_text};
use muster_shared::messages::DeviceEventKind;
use muster_shared::trust::{DocumentKind, Envelope};

use crate::causes::with_source;
use crate::files::{self, FileError};
use crate::sealed;

/// Two bitmaps of the largest bundles, in hexadecimal, and the rest.
const MAX_RECORD_BYTES: u64 = 1024 * 1024;
const MAX_BARRIER_BYTES: u64 = 4_096;
/// What is the matter with a file whose seal does not fit.
const CHANGED: &str = "it is not what was written";
const MAX_MANIFEST_BYTES: u64 = MAX_DOCUMENT_BYTES as u64 * 2;

/// Why the record cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordsError {
    /// A file cannot be read or written.
    #[error("the record of installed bundles cannot be used")]
    File(#[from] FileError),
    /// A newer agent wrote it.
    #[error("{path} cannot be used")]
    Newer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: RecordError,
    },
    /// It does not serialise.
    #[error("the record of installed bundles cannot be written: {0}")]
    Serialise(String),
}

/// Where records and manifests are.
#[derive(Debug)]
pub(super) struct Records {
    record: PathBuf,
    barrier: PathBuf,
    manifests: PathBuf,
    stored_barrier: Option<Barrier>,
    /// The strictest that is known: a record that was recovered stands before the last generation.
    strictest: Barrier,
}

impl Records {
    pub(super) fn open(data_dir: &Path) -> Result<Self, FileError> {
        let records = Self::of(data_dir);
        files::make_folder(&records.manifests)?;
        files::make_folder(&data_dir.join("trust"))?;
        Ok(records)
    }

    /// Those below `data_dir`, for who only looks.
    pub(super) fn of(data_dir: &Path) -> Self {
        let (slots, trust) = (data_dir.join("slots"), data_dir.join("trust"));
        Self {
            record: slots.join("record.json"),
            barrier: trust.join("barrier.json"),
            manifests: slots.join("manifests"),
            stored_barrier: None,
            strictest: Barrier::default(),
        }
    }

    /// The record as it is, without a repair; none where there is none.
    pub(super) fn look(&self) -> Result<Option<Record>, String> {
        let Some(bytes) = files::read_bounded(&self.record, MAX_RECORD_BYTES).map_err(|error| with_source(&error))?
        else {
            return Ok(None);
        };
        let damaged =
            |why: &str| format!("the record of installed bundles {} is damaged: {why}", self.record.display());
        let json = sealed::open_if_sealed(&bytes).ok_or_else(|| damaged(CHANGED))?;
        Record::from_json(json).map(Some).map_err(|error| damaged(&error.to_string()))
    }

    /// The record. What had to be repaired is among what it has to tell, and written with it: a death does not lose that.
    pub(super) fn load(&mut self) -> Result<Record, RecordsError> {
        let (barrier, barrier_problem) = match files::read_start(&self.barrier, MAX_BARRIER_BYTES) {
            Ok(None) => (None, None),
            Ok(Some(bytes)) => match sealed::open_if_sealed(&bytes).map(serde_json::from_slice::<Barrier>) {
                Some(Ok(barrier)) => (Some(barrier), None),
                Some(Err(error)) => (None, Some(error.to_string())),
                None => (None, Some(CHANGED.to_owned())),
            },
            Err(error) => (None, Some(with_source(&error))),
        };
        // One that is damaged differs from whatever is right, so it is written again with the record.
        self.stored_barrier = barrier;
        let read = files::read_bounded(&self.record, MAX_RECORD_BYTES);
        let is_there = !matches!(read, Ok(None));
        let mut unread = None;
        let (problem, salvaged) = match read {
            Ok(None) if barrier.is_none() && barrier_problem.is_none() => return Ok(Record::default()),
            Ok(None) => ("missing".to_owned(), None),
            Ok(Some(bytes)) => match sealed::open_if_sealed(&bytes).map(Record::from_json) {
                Some(Ok(record)) => match record.clone().held_to(barrier.unwrap_or_default()) {
                    Some(held) => {
                        self.strictest = barrier.unwrap_or_default().strictest(record.barrier());
                        return Ok(self.held(&record, held, barrier_problem));
                    }
                    None => (format!("what it runs is older than {} allows", self.barrier.display()), None),
                },
                Some(Err(source @ RecordError::Format(_))) => {
                    return Err(RecordsError::Newer { path: self.record.clone(), source });
                }
                Some(Err(error)) => (error.to_string(), Record::salvaged(&bytes)),
                // What is not what was written says nothing.
                None => (CHANGED.to_owned(), None),
            },
            Err(error @ FileError::TooLarge { .. }) => (error.to_string(), None),
            Err(error) => (with_source(&*unread.insert(error)), None),
        };
        if is_there && let Some(record) = barrier.and_then(|barrier| self.before(barrier)) {
            let alarm = format!(
                "the record of installed bundles {} was damaged ({problem}): what it said before its last change holds",
                self.record.display()
            );
            self.strictest = barrier.unwrap_or_default();
            return Ok(self.repaired(record, &alarm, false));
        }
        if let Some(error) = unread {
            return Err(error.into());
        }
        let mut alarm = format!(
            "the record of installed bundles {} was damaged ({problem}): nothing is installed any more",
            self.record.display()
        );
        if barrier.or(salvaged).is_some() {
            alarm.push_str(", and nothing older than before will be");
        } else {
            let why = barrier_problem.as_deref().unwrap_or("missing");
            alarm.push_str(&format!(
                ", and {} that kept older assignments and releases out is lost as well ({why}): hold what this device is assigned next against what it ran",
                self.barrier.display()
            ));
        }
        self.strictest = barrier.or(salvaged).unwrap_or_default();
        Ok(self.repaired(Record::recovered(self.strictest), &alarm, barrier_problem.is_some()))
    }

    /// The record as it was before its last change, if that is whole and `barrier` leaves it standing.
    fn before(&self, barrier: Barrier) -> Option<Record> {
        let bytes = files::read_bounded(&files::one_before(&self.record), MAX_RECORD_BYTES).ok()??;
        Record::from_json(sealed::open(&bytes)?).ok()?.held_to(barrier)
    }

    /// A whole `record` as far as the barrier leaves it standing, which is `held`.
    fn held(&mut self, record: &Record, mut held: Record, barrier_problem: Option<String>) -> Record {
        if held != *record {
            let alarm = format!(
                "the record of installed bundles {} is older than {}, as where a copy was put back: what it runs stays, and nothing older than before will be installed",
                self.record.display(),
                self.barrier.display()
            );
            return self.repaired(held, &alarm, false);
        }
        // Until the barrier is written again, which the record goes ahead of, every start finds this anew.
        if let Some(problem) = barrier_problem {
            alarm(
                &mut held,
                &format!(
                    "{} was damaged ({problem}); what it said is in {} too",
                    self.barrier.display(),
                    self.record.display()
                ),
            );
        }
        held
    }

    /// Puts `record` in the place of the damaged one, which is kept for people to look at.
    fn repaired(&mut self, mut record: Record, why: &str, barrier_is_damaged: bool) -> Record {
        alarm(&mut record, why);
        let damaged = [(&self.record, true), (&self.barrier, barrier_is_damaged)];
        let kept = damaged
            .into_iter()
            .filter(|(path, damaged)| *damaged && path.exists())
            .try_for_each(|(path, _)| files::keep_aside(path))
            .map_err(RecordsError::from);
        // At once, so that what was salvaged is there at the next start; until then it can be salvaged again. What was there is
        // damaged, so it does not take the place of the one before. A disk that takes nothing keeps nothing from serving.
        if let Err(error) = kept.and_then(|()| self.write(&record, files::write_durably)) {
            alarm(&mut record, &with_source(&error));
        }
        record
    }

    /// Makes `record` durable.
    pub(super) fn save(&mut self, record: &Record) -> Result<(), RecordsError> {
        self.write(record, files::write_durably_keeping_one)
    }

    fn write(
        &mut self,
        record: &Record,
        put: impl FnOnce(&Path, &[u8]) -> Result<(), FileError>,
    ) -> Result<(), RecordsError> {
        let bytes = record.to_json().map_err(|error| RecordsError::Serialise(error.to_string()))?;
        put(&self.record, &sealed::seal(&bytes))?;
        let barrier = record.barrier().strictest(self.strictest);
        if self.stored_barrier != Some(barrier) {
            let bytes = serde_json::to_vec(&barrier).map_err(|error| RecordsError::Serialise(error.to_string()))?;
            passing!(BarrierPending);
            files::write_durably(&self.barrier, &sealed::seal(&bytes))?;
            passing!(BarrierStored);
            self.stored_barrier = Some(barrier);
            self.strictest = barrier;
        }
        Ok(())
    }

    fn manifest_path(&self, digest: &Digest) -> PathBuf {
        self.manifests.join(format!("{digest}.json"))
    }

    /// Keeps a signed manifest, durably.
    pub(super) fn store_manifest(&self, digest: &Digest, envelope: &Envelope) -> Result<(), FileError> {
        let json = serde_json::to_vec(envelope).unwrap_or_default();
        files::write_durably(&self.manifest_path(digest), &json)
    }

    /// A kept manifest: the one with this digest or none. Signatures are the caller's matter.
    pub(super) fn manifest(&self, digest: &Digest) -> Result<Option<(Envelope, Manifest)>, FileError> {
        let Some(bytes) = files::read_start(&self.manifest_path(digest), MAX_MANIFEST_BYTES)? else {
            return Ok(None);
        };
        let parsed = serde_json::from_slice::<Envelope>(&bytes).ok().and_then(|envelope| {
            let payload = envelope.payload_bytes().ok().filter(|payload| Digest::of(payload) == *digest)?;
            let manifest: Manifest = serde_json::from_slice(&payload).ok()?;
            let right_kind = envelope.payload_type == DocumentKind::Manifest.payload_type();
            (right_kind && manifest.validate().is_ok()).then_some((envelope, manifest))
        });
        Ok(parsed)
    }

    /// What `record` needs in the folder of the slots.
    pub(super) fn kept(&self, record: &Record) -> Kept {
        Kept::by(record, |digest| {
            let (_, manifest) = self.manifest(digest).ok()??;
            Some(manifest.files.into_iter().map(|file| file.path).collect())
        })
    }
}

/// Leaves with `record` what people have to learn.
fn alarm(record: &mut Record, text: &str) {
    tracing::error!("{text}");
    let detail = bounded_text(text);
    record.note(Untold { kind: DeviceEventKind::Alarm, generation: 0, bundle: None, detail });
}

#[cfg(test)]
mod tests {
    use muster_shared::bundle::{GOLDEN_PATH, MODEL_PATH};
    use muster_shared::trust::sign_document;
    use proptest::prelude::*;

    use super::super::slot_files::tests::manifest;
    use super::*;
    use crate::tiny_disk::TinyDisk;
    use crate::trust_store::tests::signer;

    /// What is loaded, and what there is to tell about that.
    fn loaded(records: &mut Records) -> (Record, Vec<String>) {
        let mut record = records.load().unwrap();
        let alarms = std::mem::take(&mut record.untold).into_iter().map(|untold| untold.detail).collect();
        (record, alarms)
    }

    /// Records in a folder of their own that hold generation 7 and floor 3.
    fn stored() -> (tempfile::TempDir, Records, Record) {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::open(folder.path()).unwrap();
        assert_eq!(records.load().unwrap(), Record::default());
        let record = Record { generation: 7, security_floor: 3, ..Record::default() };
        records.save(&record).unwrap();
        (folder, records, record)
    }

    fn stored_manifest(records: &Records) -> (Digest, PathBuf) {
        let manifest = manifest(&[(GOLDEN_PATH, b"{}"), (MODEL_PATH, b"model")]);
        let envelope = sign_document(DocumentKind::Manifest, &manifest, [&signer()]).unwrap();
        let digest = Digest::of(&envelope.payload_bytes().unwrap());
        records.store_manifest(&digest, &envelope).unwrap();
        assert_eq!(records.manifest(&digest).unwrap(), Some((envelope, manifest)));
        (digest, records.manifest_path(&digest))
    }

    #[test]
    fn a_damaged_record_costs_the_bundles_and_not_the_barrier() {
        let (folder, mut records, record) = stored();
        assert_eq!(loaded(&mut records).0, record);
        let path = folder.path().join("slots/record.json");
        for rubbish in [&b"{"[..], &[0; 2_000_000], b"{\"format\":1}"] {
            std::fs::write(&path, rubbish).unwrap();
            let (recovered, alarms) = loaded(&mut records);
            assert_eq!((recovered.generation, recovered.security_floor, alarms.len()), (6, 3, 1));
            assert!(alarms[0].contains("record.json") && alarms[0].contains("nothing older"), "{alarms:?}");
        }
        assert!(folder.path().join("slots/record.json.damaged").exists());
        // Removed altogether, it is no fresh start either, however often.
        for _ in 0..3 {
            std::fs::remove_file(&path).unwrap();
            assert_eq!(loaded(&mut records).0.generation, 6);
        }
        let newer = serde_json::to_string(&record).unwrap().replace("\"format\":1", "\"format\":2");
        std::fs::write(&path, newer).unwrap();
        assert!(matches!(records.load(), Err(RecordsError::Newer { .. })));
        assert!(path.exists(), "a newer agent's record is left alone");
    }

    #[test]
    fn a_torn_record_costs_its_last_change_and_nothing_else() {
        let (folder, mut records, before) = stored();
        records.save(&Record { generation: 8, security_floor: 4, ..before.clone() }).unwrap();
        let path = folder.path().join("slots/record.json");
        let whole = std::fs::read(&path).unwrap();
        let mut changed = whole.clone();
        changed[whole.len() / 3] ^= 1;
        for torn in [&whole[..whole.len() / 2], &vec![0; whole.len()], &changed] {
            std::fs::write(&path, torn).unwrap();
            let mut records = Records::open(folder.path()).unwrap();
            let (record, alarms) = loaded(&mut records);
            // The last assignment is taken again, and nothing older; the floor stays where it was.
            assert_eq!(record, Record { generation: 7, security_floor: 4, ..before.clone() });
            assert!(alarms.len() == 1 && alarms[0].contains("record.json"), "{alarms:?}");
            // Written with the record, the alarm is told however soon the agent dies.
            assert_eq!(loaded(&mut Records::open(folder.path()).unwrap()), (record, alarms));
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_costs_its_last_change_or_is_left_alone() {
        let (folder, mut records, before) = stored();
        records.save(&Record { generation: 8, ..before.clone() }).unwrap();
        let path = folder.path().join("slots/record.json");
        let obstruct = || {
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
        };
        obstruct();
        let (record, alarms) = loaded(&mut Records::open(folder.path()).unwrap());
        assert_eq!(record, before);
        assert!(alarms.len() == 1 && alarms[0].contains("cannot read"), "{alarms:?}");
        obstruct();
        std::fs::remove_file(files::one_before(&path)).unwrap();
        std::fs::remove_dir(folder.path().join("slots/record.json.damaged")).unwrap();
        let error = Records::open(folder.path()).unwrap().load().unwrap_err();
        assert!(with_source(&error).contains("cannot read"), "{error:?}");
        assert!(path.is_dir() && !folder.path().join("slots/record.json.damaged").exists());
    }

    #[test]
    fn a_record_older_than_the_barrier_lowers_nothing_and_lets_nothing_older_in() {
        let (folder, mut records, old) = stored();
        let path = folder.path().join("slots/record.json");
        let copy = std::fs::read(&path).unwrap();
        records.save(&Record { generation: 12, security_floor: 9, ..old.clone() }).unwrap();
        std::fs::write(&path, &copy).unwrap();
        let mut records = Records::open(folder.path()).unwrap();
        let (record, alarms) = loaded(&mut records);
        assert_eq!(record, Record { generation: 11, security_floor: 9, ..old.clone() });
        assert!(alarms.len() == 1 && alarms[0].contains("is older than"), "{alarms:?}");
        records.save(&record).unwrap();
        assert_eq!(loaded(&mut records), (record, vec![]), "it is found once");

        // What is behind stays behind for the barrier too: the record is written first, and may be all there is.
        std::fs::write(&path, &copy).unwrap();
        let mut records = Records::open(folder.path()).unwrap();
        records.load().unwrap();
        records.save(&old).unwrap();
        let barrier = std::fs::read(folder.path().join("trust/barrier.json")).unwrap();
        let barrier: Barrier = serde_json::from_slice(sealed::open(&barrier).unwrap()).unwrap();
        assert_eq!((barrier.generation, barrier.security_floor), (12, 9));
    }

    #[test]
    fn a_damaged_barrier_is_never_passed_over_in_silence() {
        for rubbish in [&b"{"[..], b"", b"{\"generation\":-1}", &[b'1'; 10_000]] {
            let (folder, mut records, record) = stored();
            let barrier = folder.path().join("trust/barrier.json");
            std::fs::write(&barrier, rubbish).unwrap();
            let (read, alarms) = loaded(&mut records);
            assert_eq!(read, record);
            assert!(alarms.len() == 1 && alarms[0].contains("barrier.json"), "{alarms:?}");
            records.save(&record).unwrap();
            assert_eq!(records.load().unwrap(), record, "it is right again after the next change");

            std::fs::write(&barrier, rubbish).unwrap();
            std::fs::remove_file(folder.path().join("slots/record.json")).unwrap();
            let (read, alarms) = loaded(&mut records);
            assert_eq!(read, Record::default());
            assert!(alarms.len() == 1 && alarms[0].contains("is lost as well"), "{alarms:?}");
            assert!(folder.path().join("trust/barrier.json.damaged").exists());
        }
    }

    #[test]
    fn a_record_that_contradicts_itself_still_says_what_to_keep_out() {
        let (folder, mut records, record) = stored();
        std::fs::write(folder.path().join("trust/barrier.json"), "rubbish").unwrap();
        let json = String::from_utf8(record.to_json().unwrap()).unwrap();
        let torn = json.replace("\"committed\":null", "\"committed\":{\"slot\":\"a\",\"generation\":7}");
        assert_ne!(torn, json);
        std::fs::write(folder.path().join("slots/record.json"), torn).unwrap();
        let (recovered, alarms) = loaded(&mut records);
        assert_eq!((recovered.generation, recovered.security_floor), (6, 3));
        assert!(alarms[0].contains("nothing older"), "{alarms:?}");
        // It is there at the next start, too.
        assert_eq!(loaded(&mut Records::open(folder.path()).unwrap()), (recovered, alarms));
    }

    #[test]
    fn a_full_disk_is_named_and_leaves_what_was_there() {
        TinyDisk::run("updater::records::tests::a_full_disk_is_named_and_leaves_what_was_there", 1, |disk| {
            let mut records = Records::open(disk.dir()).unwrap();
            let record = Record { generation: 7, security_floor: 3, ..Record::default() };
            records.save(&record).unwrap();
            let (digest, _) = stored_manifest(&records);
            disk.fill();
            let next = Record { generation: 8, ..record.clone() };
            let text = with_source(&records.save(&next).unwrap_err());
            assert!(text.contains("record.json") && text.contains("No space left"), "{text}");
            let (envelope, _) = records.manifest(&digest).unwrap().unwrap();
            let text = with_source(&records.store_manifest(&Digest::of(b"other"), &envelope).unwrap_err());
            assert!(text.contains("manifests/") && text.contains("No space left"), "{text}");
            assert_eq!(records.load().unwrap(), record);
            disk.empty();
            records.save(&next).unwrap();
            assert_eq!(records.load().unwrap(), next);
        });
    }

    proptest! {
        #[test]
        fn any_files_are_a_record_or_said_to_be_none(record: Option<Vec<u8>>, barrier: Option<Vec<u8>>) {
            let folder = tempfile::tempdir().unwrap();
            let mut records = Records::open(folder.path()).unwrap();
            for (path, content) in [("slots/record.json", &record), ("trust/barrier.json", &barrier)] {
                if let Some(content) = content {
                    std::fs::write(folder.path().join(path), content).unwrap();
                }
            }
            let (read, alarms) = loaded(&mut records);
            prop_assert_eq!(alarms.is_empty(), record.is_none() && barrier.is_none());
            prop_assert_eq!(read, Record::default());
        }

        #[test]
        fn a_manifest_is_the_one_with_the_digest_or_none(at: prop::sample::Index, byte: u8, cut: bool) {
            let (_folder, records, _) = stored();
            let (digest, path) = stored_manifest(&records);
            let good = std::fs::read(&path).unwrap();
            let (whole, mut bytes) = (records.manifest(&digest).unwrap().unwrap(), good);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            std::fs::write(&path, bytes).unwrap();
            if let Some((_, manifest)) = records.manifest(&digest).unwrap() {
                // Damage to a signature is its checker's to find.
                prop_assert_eq!(manifest, whole.1);
            }
        }
    }
}
