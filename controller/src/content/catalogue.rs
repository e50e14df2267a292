//! Bundles by the digest of their manifest, with their chunks laid out for reading.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_shared::bundle::Manifest;
use muster_shared::data_schema::DataSchema;
use muster_shared::ids::{BundleRef, Digest};
use muster_shared::sketch::SketchWindow;
use muster_shared::trust::Envelope;

use crate::store::records::{BundleRecord, manifest_key};
use crate::store::{Records, StoreError, Table};

/// Bundles kept in memory. A manifest may be half a megabyte, and few are in use at once.
const KEPT: usize = 16;

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The digest of the chunk's bytes.
    pub(crate) sha256: Digest,
    /// The digest of the file it is part of.
    pub(crate) file: Digest,
    /// That file's number in the manifest.
    pub(crate) file_number: usize,
    /// Where it starts in the file, in bytes.
    pub(crate) start_bytes: u64,
    /// Its length, in bytes.
    pub(crate) length_bytes: u32,
}

/// A bundle.
#[derive(Debug)]
pub(crate) struct Listed {
    /// The digest of its manifest.
    pub(crate) digest: Digest,
    /// Name and version.
    pub(crate) bundle: BundleRef,
    /// The manifest as it was signed.
    pub(crate) envelope: Envelope,
    /// Its content.
    pub(crate) manifest: Manifest,
    /// Digest of its monitoring profile, which takes long to compute.
    pub(crate) profile_digest: Digest,
    /// Digest of its data schema, where it has one.
    schema_digest: Option<Digest>,
    pieces: Vec<Piece>,
}

impl Listed {
    fn new(record: BundleRecord) -> Self {
        let numbers =
            record.manifest.files.iter().enumerate().flat_map(|(number, file)| file.chunks.iter().map(move |_| number));
        let pieces = record
            .manifest
            .chunks()
            .zip(numbers)
            .map(|((file, start_bytes, chunk), file_number)| Piece {
                sha256: chunk.sha256,
                file: file.sha256,
                file_number,
                start_bytes,
                length_bytes: chunk.length,
            })
            .collect();
        Self {
            digest: record.manifest_digest,
            bundle: record.bundle,
            profile_digest: record.manifest.profile.digest(),
            schema_digest: record.manifest.schema.as_ref().map(DataSchema::digest),
            envelope: record.envelope,
            manifest: record.manifest,
            pieces,
        }
    }

    /// Whether `sketch` was made with its profile and its schema, cell by cell.
    pub(crate) fn fits(&self, sketch: &SketchWindow) -> bool {
        let schema = self.schema_digest.as_ref().zip(self.manifest.schema.as_ref());
        sketch.fits_cells(&self.profile_digest, &self.manifest.profile) && sketch.quality.fits_features(schema)
    }

    /// Where chunk `index` lies; none when there is no such chunk.
    pub(crate) fn piece(&self, index: u32) -> Option<Piece> {
        self.pieces.get(usize::try_from(index).ok()?).copied()
    }
}

/// The bundles in the store, those used last in memory. Clones share them.
#[derive(Clone)]
pub(crate) struct Catalogue {
    records: Records,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    /// The one used last at the end.
    listed: Vec<Arc<Listed>>,
    /// How often something was forgotten: what was read before that is not kept.
    forgotten: u64,
}

impl Catalogue {
    /// Over the bundles in `records`.
    pub(crate) fn new(records: Records) -> Self {
        Self { records, kept: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the bundle anew when it is wanted next: its signatures have changed.
    pub(crate) fn forget(&self, digest: &Digest) {
        let mut kept = self.lock();
        kept.listed.retain(|listed| listed.digest != *digest);
        kept.forgotten += 1;
    }

    /// The bundle whose manifest has this digest.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read.
    pub(crate) async fn get(&self, digest: &Digest) -> Result<Option<Arc<Listed>>, StoreError> {
        let forgotten = {
            let mut kept = self.lock();
            if let Some(at) = kept.listed.iter().position(|listed| listed.digest == *digest) {
                let listed = kept.listed.remove(at);
                kept.listed.push(Arc::clone(&listed));
                return Ok(Some(listed));
            }
            kept.forgotten
        };
        let Some(bundle) = self.records.get::<BundleRef>(Table::Meta, &manifest_key(digest)).await? else {
            return Ok(None);
        };
        let record = self.records.get::<BundleRecord>(Table::Bundles, &bundle.value.to_string()).await?;
        let Some(record) = record.filter(|record| record.value.manifest_digest == *digest) else { return Ok(None) };
        let listed = Arc::new(Listed::new(record.value));
        let mut kept = self.lock();
        if kept.forgotten == forgotten {
            if kept.listed.len() >= KEPT {
                kept.listed.remove(0);
            }
            kept.listed.push(Arc::clone(&listed));
        }
        Ok(Some(listed))
    }

    /// The bundle of this name and version.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read.
    pub(crate) async fn find(&self, bundle: &BundleRef) -> Result<Option<Arc<Listed>>, StoreError> {
        match self.records.get::<BundleRecord>(Table::Bundles, &bundle.to_string()).await? {
            Some(record) => self.get(&record.value.manifest_digest).await,
            None => Ok(None),
        }
    }
}
