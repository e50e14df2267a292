//! The update record and the manifests it refers to, on disk.
//!
//! `slots/record.json` is the one atomic pointer. What keeps old assignments and releases out is kept a second time in
//! `trust/barrier.json`, so that a damaged record costs the installed bundles and nothing else.

use std::path::{Path, PathBuf};

use muster_agent_core::record::{Barrier, Record, RecordError};
use muster_shared::bundle::Manifest;
use muster_shared::ids::Digest;
use muster_shared::limits::MAX_DOCUMENT_BYTES;
use muster_shared::trust::{DocumentKind, Envelope};

use crate::files::{self, FileError};

/// Two bitmaps of the largest bundles, in hexadecimal, and the rest.
const MAX_RECORD_BYTES: u64 = 1024 * 1024;
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
}

impl Records {
    pub(super) fn open(data_dir: &Path) -> Result<Self, FileError> {
        let (slots, trust) = (data_dir.join("slots"), data_dir.join("trust"));
        let records = Self {
            record: slots.join("record.json"),
            barrier: trust.join("barrier.json"),
            manifests: slots.join("manifests"),
            stored_barrier: None,
        };
        files::make_folder(&records.manifests)?;
        files::make_folder(&trust)?;
        Ok(records)
    }

    /// The record, and what had to be repaired.
    pub(super) fn load(&mut self) -> Result<(Record, Vec<String>), RecordsError> {
        let barrier: Option<Barrier> =
            files::read_bounded(&self.barrier, 4_096)?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        self.stored_barrier = barrier;
        let problem = match files::read_bounded(&self.record, MAX_RECORD_BYTES) {
            Ok(None) if barrier.is_none() => return Ok((Record::default(), Vec::new())),
            Ok(None) => "missing".to_owned(),
            Ok(Some(bytes)) => match Record::from_json(&bytes) {
                Ok(record) => return Ok((record, Vec::new())),
                Err(source @ RecordError::Format(_)) => {
                    return Err(RecordsError::Newer { path: self.record.clone(), source });
                }
                Err(error) => error.to_string(),
            },
            Err(error @ FileError::TooLarge { .. }) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        if self.record.exists() {
            files::set_aside(&self.record)?;
        }
        let alarm = format!(
            "the record of installed bundles was damaged ({problem}): nothing is installed any more, and nothing older than before will be"
        );
        tracing::error!("{alarm}");
        Ok((Record::recovered(barrier.unwrap_or_default()), vec![alarm]))
    }

    /// Makes `record` durable.
    pub(super) fn save(&mut self, record: &Record) -> Result<(), RecordsError> {
        let bytes = record.to_json().map_err(|error| RecordsError::Serialise(error.to_string()))?;
        files::write_durably(&self.record, &bytes)?;
        let barrier = record.barrier();
        if self.stored_barrier != Some(barrier) {
            let bytes = serde_json::to_vec(&barrier).map_err(|error| RecordsError::Serialise(error.to_string()))?;
            files::write_durably(&self.barrier, &bytes)?;
            self.stored_barrier = Some(barrier);
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
        let Some(bytes) = files::read_bounded(&self.manifest_path(digest), MAX_MANIFEST_BYTES)? else {
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

    /// Removes manifests that `record` does not refer to.
    pub(super) fn tidy(&self, record: &Record) -> Result<(), FileError> {
        let kept: Vec<PathBuf> = record.manifests().map(|digest| self.manifest_path(&digest)).collect();
        let entries = std::fs::read_dir(&self.manifests).map_err(FileError::io("look through", &self.manifests))?;
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| !kept.contains(path)) {
            files::remove(&path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_record_costs_the_bundles_and_not_the_barrier() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::open(folder.path()).unwrap();
        assert_eq!(records.load().unwrap(), (Record::default(), vec![]));
        let record = Record { generation: 7, security_floor: 3, ..Record::default() };
        records.save(&record).unwrap();
        assert_eq!(records.load().unwrap().0, record);
        let path = folder.path().join("slots/record.json");
        for rubbish in [&b"{"[..], &[0; 2_000_000], b"{\"format\":1}"] {
            std::fs::write(&path, rubbish).unwrap();
            let (recovered, alarms) = records.load().unwrap();
            assert_eq!((recovered.generation, recovered.security_floor, alarms.len()), (6, 3, 1));
        }
        // Removed altogether, it is no fresh start either.
        assert_eq!(records.load().unwrap().0.generation, 6);
        let newer = serde_json::to_string(&record).unwrap().replace("\"format\":1", "\"format\":2");
        std::fs::write(&path, newer).unwrap();
        assert!(matches!(records.load(), Err(RecordsError::Newer { .. })));
        assert!(path.exists(), "a newer agent's record is left alone");
    }
}
