//! The files of a slot: reserved at once, written in pieces, held against the manifest.
//!
//! Paths come from a verified manifest, whose grammar keeps them inside the slot's folder; no link is followed all the same.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use muster_agent_core::admit::DISK_RESERVE_BYTES;
use muster_agent_core::slots::Slot;
use muster_agent_core::update::FileDamage;
use muster_shared::bundle::{BundleFile, Manifest};
use muster_shared::chunk::ChunkSet;
use muster_shared::ids::{Digest, Hasher};
use muster_shared::limits::CHUNK_BYTES;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::files::{self, FileError};
use crate::resources;

/// Why a slot cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub(super) enum SlotError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no room.
    #[error("the bundle needs {need} bytes of disk with reserve, {have} are free")]
    NoRoom {
        /// What it needs, in bytes.
        need: u64,
        /// What there is, in bytes.
        have: u64,
    },
}

/// The folders of both slots. Cloning gives another handle to the same.
#[derive(Debug, Clone)]
pub(super) struct SlotFiles {
    dir: PathBuf,
}

impl SlotFiles {
    pub(super) fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("slots") }
    }

    /// The slots of programs, in the folder of their track.
    pub(super) fn of_programs(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn folder(&self, slot: Slot) -> PathBuf {
        self.dir.join(slot.as_str()).join("files")
    }

    pub(super) fn path(&self, slot: Slot, file: &BundleFile) -> PathBuf {
        self.folder(slot).join(&file.path)
    }

    /// Empties the slot and reserves room for every file of `manifest`, so that a full disk shows now and not half-way.
    pub(super) fn prepare(&self, slot: Slot, manifest: &Manifest) -> Result<(), SlotError> {
        let folder = self.folder(slot);
        files::remove(&folder)?;
        passing!(SlotEmptied);
        files::make_folder(&folder)?;
        let need = manifest.total_bytes().saturating_add(DISK_RESERVE_BYTES);
        let have = resources::disk_free_bytes(&folder);
        if have < need {
            return Err(SlotError::NoRoom { need, have });
        }
        for file in &manifest.files {
            self.reserve(slot, file)?;
        }
        files::sync_folder(&folder)?;
        files::sync_folder(&self.dir.join(slot.as_str()))?;
        Ok(files::sync_folder(&self.dir)?)
    }

    fn reserve(&self, slot: Slot, file: &BundleFile) -> Result<(), FileError> {
        let path = self.path(slot, file);
        let parent = path.parent().map(Path::to_owned).unwrap_or_default();
        files::make_folder(&parent)?;
        files::remove(&path)?;
        let open = files::open_for_writing(&path, true)?;
        let reserved = if file.length == 0 {
            Ok(())
        } else {
            match rustix::fs::fallocate(&open, FallocateFlags::empty(), 0, file.length) {
                // Not every file system can reserve; the free space was looked at before.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => open.set_len(file.length),
                other => other.map_err(std::io::Error::from),
            }
        };
        passing!(RoomReserved);
        reserved.and_then(|()| open.sync_all()).map_err(FileError::io("reserve room for", &path))?;
        files::sync_folder(&parent)
    }

    /// Which chunks of `have` cannot be there, because their file is missing or cut; such files are reserved again.
    pub(super) fn missing(&self, slot: Slot, manifest: &Manifest, have: &ChunkSet) -> Result<Vec<u32>, SlotError> {
        let mut lost = Vec::new();
        let mut first = 0u32;
        for file in &manifest.files {
            let chunks = u32::try_from(file.chunks.len()).unwrap_or(u32::MAX);
            let there =
                std::fs::symlink_metadata(self.path(slot, file)).is_ok_and(|m| m.is_file() && m.len() == file.length);
            if !there {
                self.reserve(slot, file)?;
                lost.extend((first..first.saturating_add(chunks)).filter(|chunk| have.contains(*chunk)));
            }
            first = first.saturating_add(chunks);
        }
        Ok(lost)
    }

    /// Reads a file whole, if it is what the manifest says.
    pub(super) fn read(&self, slot: Slot, manifest: &Manifest, path: &str) -> Result<Vec<u8>, FileDamage> {
        let Some(file) = manifest.file(path) else {
            return Err(FileDamage { chunks: Vec::new(), reason: format!("the bundle has no {path}") });
        };
        let bytes = files::read_bounded(&self.path(slot, file), file.length)
            .map_err(|error| unreadable(&error))?
            .unwrap_or_default();
        if Digest::of(&bytes) != file.sha256 {
            return Err(self.damage(slot, manifest, file));
        }
        Ok(bytes)
    }

    /// Holds every file of the slot against `manifest`.
    pub(super) fn check(&self, slot: Slot, manifest: &Manifest) -> Result<(), FileDamage> {
        for file in &manifest.files {
            if !self.is_right(slot, file).map_err(|error| unreadable(&error))? {
                return Err(self.damage(slot, manifest, file));
            }
        }
        Ok(())
    }

    fn is_right(&self, slot: Slot, file: &BundleFile) -> Result<bool, FileError> {
        let path = self.path(slot, file);
        let Some(open) = files::open_for_reading(&path)? else { return Ok(false) };
        let mut open = open.take(file.length.saturating_add(1));
        let (mut hash, mut length, mut buffer) = (Hasher::default(), 0u64, vec![0; CHUNK_BYTES]);
        loop {
            let read = open.read(&mut buffer).map_err(FileError::io("read", &path))?;
            if read == 0 {
                break;
            }
            length = length.saturating_add(read as u64);
            hash.update(&buffer[..read]);
        }
        Ok(length == file.length && hash.finish() == file.sha256)
    }

    /// Which chunks of `file` are not right.
    fn damage(&self, slot: Slot, manifest: &Manifest, file: &BundleFile) -> FileDamage {
        let open = files::open_for_reading(&self.path(slot, file)).ok().flatten();
        let mut buffer = vec![0; CHUNK_BYTES];
        let chunks: Vec<u32> = (0u32..)
            .zip(manifest.chunks())
            .filter(|(_, (of, _, _))| of.path == file.path)
            .filter(|(_, (_, start, chunk))| {
                let bytes = &mut buffer[..(chunk.length as usize).min(CHUNK_BYTES)];
                let right = open.as_ref().is_some_and(|open| open.read_exact_at(bytes, *start).is_ok())
                    && Digest::of(bytes) == chunk.sha256;
                !right
            })
            .map(|(index, _)| index)
            .collect();
        let reason = if chunks.is_empty() {
            format!("{} is not the file the manifest describes, although every piece of it is", file.path)
        } else {
            format!("{} is damaged in {} of its {} chunks", file.path, chunks.len(), file.chunks.len())
        };
        FileDamage { chunks, reason }
    }
}

/// A file that cannot be read at all: fetching it again would be a guess.
fn unreadable(error: &FileError) -> FileDamage {
    let source = std::error::Error::source(error).map(|e| format!(": {e}")).unwrap_or_default();
    FileDamage { chunks: Vec::new(), reason: format!("{error}{source}") }
}

#[cfg(test)]
pub(super) mod tests {
    use muster_shared::bundle::{DataType, GOLDEN_PATH, Lineage, MODEL_PATH, ModelSignature, TensorSpec};

    use super::*;
    use crate::causes::with_source;
    use crate::tiny_disk::TinyDisk;

    /// A manifest of two files, the first of three chunks.
    pub(in super::super) fn manifest(files: &[(&str, &[u8])]) -> Manifest {
        let tensor = |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, shape: vec![-1, 2] };
        Manifest {
            name: "digits".parse().unwrap(),
            version: semver::Version::new(1, 0, 0),
            description: String::new(),
            release_counter: 1,
            security_floor: 0,
            created_at_ms: 1,
            expires_ms: u64::MAX,
            requirements: Default::default(),
            budgets: Default::default(),
            files: files.iter().map(|(path, content)| BundleFile::describe(*path, content)).collect(),
            signature: ModelSignature { inputs: vec![tensor("in")], outputs: vec![tensor("out")] },
            pipeline: None,
            schema: None,
            profile: Default::default(),
            lineage: Lineage::default(),
            card: None,
            program: None,
        }
    }

    #[test]
    fn damage_is_found_chunk_by_chunk() {
        let folder = tempfile::tempdir().unwrap();
        let slots = SlotFiles::new(folder.path());
        let model: Vec<u8> = (0..CHUNK_BYTES * 2 + 5).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let manifest = manifest(&[(GOLDEN_PATH, b"{}"), (MODEL_PATH, &model)]);
        slots.prepare(Slot::B, &manifest).unwrap();
        assert_eq!(slots.check(Slot::B, &manifest).unwrap_err().chunks, [0]);
        let folder = folder.path().join("slots/b/files");
        std::fs::write(folder.join(GOLDEN_PATH), b"{}").unwrap();
        std::fs::write(folder.join(MODEL_PATH), &model).unwrap();
        slots.check(Slot::B, &manifest).unwrap();
        assert_eq!(slots.read(Slot::B, &manifest, MODEL_PATH).unwrap(), model);
        let mut rotten = model.clone();
        rotten[CHUNK_BYTES] ^= 1;
        std::fs::write(folder.join(MODEL_PATH), &rotten).unwrap();
        let damage = slots.check(Slot::B, &manifest).unwrap_err();
        assert_eq!(damage.chunks, [2]);
        assert!(damage.reason.contains("1 of its 3 chunks"), "{}", damage.reason);
        std::fs::write(folder.join(MODEL_PATH), &model[..10]).unwrap();
        assert_eq!(slots.check(Slot::B, &manifest).unwrap_err().chunks, [1, 2, 3]);

        let mut have = ChunkSet::empty(4);
        for chunk in 0..4 {
            have.insert(chunk);
        }
        assert_eq!(slots.missing(Slot::B, &manifest, &have).unwrap(), [1, 2, 3]);
        assert!(slots.missing(Slot::B, &manifest, &have).unwrap().is_empty(), "it is reserved again");
        slots.prepare(Slot::B, &manifest).unwrap();
    }

    #[test]
    fn a_bundle_larger_than_the_disk_is_refused_before_a_byte_is_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let mut manifest = manifest(&[(GOLDEN_PATH, b"{}"), (MODEL_PATH, b"x")]);
        manifest.files[1].length = u64::MAX / 2;
        let text = SlotFiles::new(folder.path()).prepare(Slot::A, &manifest).unwrap_err().to_string();
        assert!(text.contains("bytes of disk"), "{text}");
    }

    #[test]
    fn a_full_disk_is_named_where_room_is_reserved() {
        TinyDisk::run("updater::slot_files::tests::a_full_disk_is_named_where_room_is_reserved", 16, |disk| {
            let slots = SlotFiles::new(disk.dir());
            let model = vec![7; 3 * CHUNK_BYTES];
            let manifest = manifest(&[(GOLDEN_PATH, b"{}"), (MODEL_PATH, &model)]);
            slots.prepare(Slot::A, &manifest).unwrap();
            let path = disk.dir().join("slots/a/files").join(MODEL_PATH);
            std::fs::remove_file(&path).unwrap();
            disk.fill();
            let have = ChunkSet::empty(4);
            let text = with_source(&slots.missing(Slot::A, &manifest, &have).unwrap_err());
            assert!(text.contains(MODEL_PATH) && text.contains("No space left"), "{text}");
            let text = slots.prepare(Slot::B, &manifest).unwrap_err().to_string();
            assert!(text.contains("bytes of disk"), "{text}");
            disk.empty();
            slots.missing(Slot::A, &manifest, &have).unwrap();
        });
    }
}
