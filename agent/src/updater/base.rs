//! The bundle that the other slot holds, as a source for the next one.
//!
//! Nothing read here is trusted: a file may have rotted since it was checked. Whoever takes a chunk holds it against the manifest of
//! the bundle it is for.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use muster_agent_core::slots::Slot;
use muster_shared::bundle::{Chunk, Manifest};
use muster_shared::ids::Digest;

use super::slot_files::SlotFiles;
use crate::files;

pub(super) struct Base {
    manifest: Digest,
    /// By their paths in the bundle.
    files: BTreeMap<String, File>,
    /// The file each chunk is part of, and where it starts there, in bytes.
    chunks: HashMap<Digest, (String, u64)>,
}

impl Base {
    /// What `slot` holds: the bundle with this `manifest`. A file that cannot be opened is left out.
    pub(super) fn open(slots: &SlotFiles, slot: Slot, digest: Digest, manifest: &Manifest) -> Self {
        let opened = manifest.files.iter().filter_map(|file| {
            let open = files::open_for_reading(&slots.path(slot, file)).ok().flatten()?;
            Some((file.path.clone(), open))
        });
        let chunks = manifest.chunks().map(|(file, start, chunk)| (chunk.sha256, (file.path.clone(), start)));
        Self { manifest: digest, files: opened.collect(), chunks: chunks.collect() }
    }

    /// The digest of its manifest.
    pub(super) fn manifest(&self) -> Digest {
        self.manifest
    }

    /// The file at `path` of the bundle.
    pub(super) fn file(&self, path: &str) -> Option<&File> {
        self.files.get(path)
    }

    /// The bytes of `chunk`, if it is part of this bundle too and still whole.
    pub(super) fn chunk(&self, chunk: &Chunk) -> Option<Vec<u8>> {
        let (path, start) = self.chunks.get(&chunk.sha256)?;
        let mut bytes = vec![0; chunk.length as usize];
        self.file(path)?.read_exact_at(&mut bytes, *start).ok()?;
        chunk.describes(&bytes).then_some(bytes)
    }
}
