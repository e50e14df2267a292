//! One download: chunk frames in, durable chunks out.
//!
//! Every chunk is held against the signed manifest before a byte of it is written, and written where the manifest says;
//! nothing is counted as there before its file has reached the disk. When to ask for what is
//! [`muster_agent_core::fetch::FetchPlan`]'s decision.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use muster_agent_core::fetch::{FetchPlan, Step};
use muster_agent_core::slots::Slot;
use muster_shared::bundle::{Chunk, Manifest};
use muster_shared::chunk::ChunkFrame;
use muster_shared::ids::Digest;

use super::slot_files::SlotFiles;
use crate::files::{self, FileError};
use crate::time::jitter;

pub(super) struct Download {
    pub(super) generation: u64,
    pub(super) manifest: Digest,
    places: Vec<Place>,
    paths: Vec<PathBuf>,
    open: BTreeMap<usize, File>,
    unsynced: BTreeSet<usize>,
    plan: FetchPlan,
}

struct Place {
    file: usize,
    start: u64,
    chunk: Chunk,
}

/// What a frame was worth.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The chunk is written, its length in bytes.
    Written(usize),
    /// It is not wanted, or not any more.
    Unwanted,
    /// Its bytes are not those the manifest describes.
    Wrong(u32),
}

impl Download {
    pub(super) fn new(
        slots: &SlotFiles,
        slot: Slot,
        generation: u64,
        digest: Digest,
        manifest: &Manifest,
        plan: FetchPlan,
    ) -> Self {
        let mut places = Vec::new();
        for (file, of) in manifest.files.iter().enumerate() {
            let mut start = 0;
            for chunk in &of.chunks {
                places.push(Place { file, start, chunk: *chunk });
                start += u64::from(chunk.length);
            }
        }
        Self {
            generation,
            manifest: digest,
            places,
            paths: manifest.files.iter().map(|file| slots.path(slot, file)).collect(),
            open: BTreeMap::new(),
            unsynced: BTreeSet::new(),
            plan,
        }
    }

    /// Takes a frame.
    pub(super) fn take(&mut self, frame: &ChunkFrame<'_>, now_ms: u64) -> Result<Taken, FileError> {
        let place = usize::try_from(frame.index).ok().and_then(|index| self.places.get(index));
        let Some(place) = place.filter(|_| frame.manifest == self.manifest && self.plan.wants(frame.index)) else {
            return Ok(Taken::Unwanted);
        };
        if frame.bytes.len() != place.chunk.length as usize || Digest::of(frame.bytes) != place.chunk.sha256 {
            self.plan.corrupt(frame.index);
            return Ok(Taken::Wrong(frame.index));
        }
        let path = &self.paths[place.file];
        let file = match self.open.entry(place.file) {
            std::collections::btree_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::btree_map::Entry::Vacant(closed) => closed.insert(files::open_for_writing(path, false)?),
        };
        file.write_all_at(frame.bytes, place.start).map_err(FileError::io("write", path))?;
        self.unsynced.insert(place.file);
        self.plan.arrived(frame.index, now_ms);
        Ok(Taken::Written(frame.bytes.len()))
    }

    /// Makes what was written durable, and says which chunks that are.
    pub(super) fn flush(&mut self) -> Result<Vec<u32>, FileError> {
        for file in std::mem::take(&mut self.unsynced) {
            if let Some(open) = self.open.get(&file) {
                open.sync_data().map_err(FileError::io("make durable", &self.paths[file]))?;
            }
        }
        Ok(self.plan.durable())
    }

    /// What to do next.
    pub(super) fn next(&mut self, now_ms: u64) -> Step {
        self.plan.next(now_ms, jitter())
    }

    /// The connection came or went.
    pub(super) fn connection(&mut self, connected: bool) {
        self.plan.connection(connected);
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::bundle::{GOLDEN_PATH, MODEL_PATH};
    use muster_shared::chunk::{ChunkEncoding, ChunkSet};
    use muster_shared::limits::CHUNK_BYTES;

    use super::super::slot_files::tests::manifest;
    use super::*;
    use crate::causes::with_source;
    use crate::tiny_disk::TinyDisk;

    #[test]
    fn only_what_the_manifest_describes_is_written_and_only_where_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let slots = SlotFiles::new(folder.path());
        let model = vec![7; CHUNK_BYTES + 9];
        let manifest = manifest(&[(GOLDEN_PATH, b"{}"), (MODEL_PATH, &model)]);
        slots.prepare(Slot::A, &manifest).unwrap();
        let digest = Digest::of(b"m");
        let plan = FetchPlan::new(ChunkSet::empty(3), 1_000, true);
        let mut download = Download::new(&slots, Slot::A, 1, digest, &manifest, plan);
        assert!(matches!(download.next(0), Step::Request { first: 0, .. }));
        let mut take = |manifest: Digest, index: u32, bytes: &[u8]| {
            let frame = ChunkFrame { manifest, index, encoding: ChunkEncoding::Plain, bytes };
            download.take(&frame, 1).unwrap()
        };
        assert_eq!(take(digest, 0, b"{!"), Taken::Wrong(0));
        assert_eq!(take(digest, 0, b"{}longer than signed"), Taken::Wrong(0));
        assert_eq!(take(Digest::of(b"other"), 0, b"{}"), Taken::Unwanted);
        assert_eq!(take(digest, 3, b"{}"), Taken::Unwanted);
        assert_eq!(take(digest, 0, b"{}"), Taken::Written(2));
        assert_eq!(take(digest, 0, b"{}"), Taken::Unwanted);
        assert_eq!(take(digest, 2, &model[CHUNK_BYTES..]), Taken::Written(9));
        assert_eq!(take(digest, 1, &model[..CHUNK_BYTES]), Taken::Written(CHUNK_BYTES));
        assert_eq!(download.next(2), Step::Flush);
        assert_eq!(download.flush().unwrap(), [0, 1, 2]);
        assert_eq!(download.next(3), Step::Done);
        slots.check(Slot::A, &manifest).unwrap();
    }

    #[test]
    fn a_disk_that_is_full_after_all_is_named_and_the_chunk_is_wanted_again() {
        let name = "updater::download::tests::a_disk_that_is_full_after_all_is_named_and_the_chunk_is_wanted_again";
        TinyDisk::run(name, 16, |disk| {
            let slots = SlotFiles::new(disk.dir());
            let model = vec![7; CHUNK_BYTES];
            let manifest = manifest(&[(GOLDEN_PATH, b"{}"), (MODEL_PATH, &model)]);
            slots.prepare(Slot::A, &manifest).unwrap();
            // Not every file system can reserve room.
            let path = disk.dir().join("slots/a/files").join(MODEL_PATH);
            File::create(&path).unwrap().set_len(model.len() as u64).unwrap();
            disk.fill();
            let digest = Digest::of(b"m");
            let plan = FetchPlan::new(ChunkSet::empty(2), 1_000, true);
            let mut download = Download::new(&slots, Slot::A, 1, digest, &manifest, plan);
            let frame = ChunkFrame { manifest: digest, index: 1, encoding: ChunkEncoding::Plain, bytes: &model };
            let text = with_source(&download.take(&frame, 1).unwrap_err());
            assert!(text.contains(MODEL_PATH) && text.contains("No space left"), "{text}");
            assert_eq!(download.flush().unwrap(), Vec::<u32>::new());
            disk.empty();
            assert_eq!(download.take(&frame, 2).unwrap(), Taken::Written(CHUNK_BYTES));
            assert_eq!(download.flush().unwrap(), [1]);
        });
    }
}
