//! Sealed samples of one collection on disk: few files, each written once and durable before anything rests on it.
//!
//! What has been sealed waits in memory until it is worth a write; then it goes into a file of its own together with the state of the
//! reservoir, so that a power cut leaves the reservoir as it was at the last write. A file goes once nothing in it is kept any more. Before
//! all files would take more than their room, what is kept in the one with least of it moves into the next.
//!
//! A file: `MSR1`, the head's length (4 bytes, little-endian), the head ([`Head`], postcard), the samples, SHA-256 of all before.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use muster_agent_core::reservoir::Reservoir;
use muster_shared::collection::CollectionStage;
use muster_shared::ids::Digest;
use muster_shared::limits::{MAX_BATCH_BYTES, MAX_SAMPLE_BYTES};
use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};

const MAGIC: &[u8; 4] = b"MSR1";
const DIGEST_BYTES: usize = 32;
/// Larger than any file that is written here: a few samples, and the numbers of all.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
const MAX_PLAN_BYTES: u64 = 4 * 1024;

/// A reservoir and what it could not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) reservoir: Reservoir,
    pub(super) dropped: u64,
    pub(super) too_large: u64,
    pub(super) lost: u64,
}

/// How far the upload of an ended collection is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Batches there are.
    pub(super) batches: u32,
    /// Batches the controller has.
    pub(super) batches_done: u32,
    /// Samples in them.
    pub(super) samples_done: u64,
    /// Why the rest is not uploaded.
    pub(super) given_up: Option<String>,
}

impl Plan {
    pub(super) fn stage(&self) -> CollectionStage {
        match &self.given_up {
            Some(_) => CollectionStage::GivenUp,
            None if self.batches_done >= self.batches => CollectionStage::Uploaded,
            None => CollectionStage::Uploading,
        }
    }
}

/// What an opened store held.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Sampling(State),
    Ended { state: State, plan: Plan },
}

#[derive(Serialize, Deserialize)]
struct Head {
    state: State,
    /// Numbers and lengths of the samples in this file, in their order.
    samples: Vec<(u64, u32)>,
}

/// A file and what is kept in it.
#[derive(Debug)]
struct Segment {
    path: PathBuf,
    bytes: u64,
    /// Where each sample begins, and its length.
    live: BTreeMap<u64, (u64, u32)>,
}

impl Segment {
    fn live_bytes(&self) -> u64 {
        self.live.values().map(|(_, length)| u64::from(*length)).sum()
    }
}

/// The samples of one collection.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    room_bytes: u64,
    segments: BTreeMap<u64, Segment>,
    next_segment: u64,
    pending: BTreeMap<u64, Vec<u8>>,
}

fn damaged(path: &Path) -> FileError {
    FileError::io("read", path)(std::io::Error::new(std::io::ErrorKind::InvalidData, "it is damaged"))
}

/// The head of a file that is whole, and where the samples begin.
fn head(bytes: &[u8]) -> Option<(Head, usize)> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
    if Digest::of(content).as_bytes() != digest {
        return None;
    }
    let rest = content.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let head: Head = postcard::from_bytes(rest.get(..length)?).ok()?;
    let samples: u64 = head.samples.iter().map(|(_, length)| u64::from(*length)).sum();
    (samples == (rest.len() - length) as u64).then_some((head, MAGIC.len() + 4 + length))
}

impl Store {
    /// Opens the store in `folder`, or begins one. All its files together take at most `room_bytes`, and once more what is being written.
    ///
    /// # Errors
    /// [`FileError`] when the folder cannot be used.
    pub(super) fn open(folder: &Path, room_bytes: u64) -> Result<(Self, Found), FileError> {
        files::make_folder(folder)?;
        let mut store = Self {
            folder: folder.to_owned(),
            room_bytes,
            segments: BTreeMap::new(),
            next_segment: 1,
            pending: BTreeMap::new(),
        };
        let mut last = None;
        let entries = std::fs::read_dir(folder).map_err(FileError::io("list", folder))?;
        let mut names: Vec<(u64, PathBuf)> = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".sealed"));
            match number.and_then(|number| number.parse().ok()) {
                Some(number) => names.push((number, path)),
                None if path.ends_with("upload.json") => {}
                // What was being written when the power went.
                None => files::remove(&path)?,
            }
        }
        names.sort();
        for (number, path) in names {
            store.next_segment = store.next_segment.max(number + 1);
            let Some(bytes) = files::read_start(&path, MAX_FILE_BYTES)? else { continue };
            let Some((head, mut at)) = head(&bytes) else {
                tracing::warn!(path = %path.display(), "a file of samples is damaged and removed");
                files::remove(&path)?;
                continue;
            };
            let mut live = BTreeMap::new();
            for (sample, length) in &head.samples {
                live.insert(*sample, (at as u64, *length));
                at += *length as usize;
            }
            store.segments.insert(number, Segment { path, bytes: bytes.len() as u64, live });
            last = Some(head.state);
        }
        let plan = store.plan()?;
        let state = last.map(|mut state| {
            // A sample that was moved is in two files; those given up since are in none that counts.
            let kept: BTreeMap<u64, ()> = state.reservoir.kept().iter().map(|kept| (kept.number, ())).collect();
            let mut known: BTreeMap<u64, ()> = BTreeMap::new();
            for segment in store.segments.values_mut().rev() {
                segment.live.retain(|sample, _| kept.contains_key(sample) && known.insert(*sample, ()).is_none());
            }
            state.reservoir.retain(|number| known.contains_key(&number));
            state
        });
        store.drop_empty();
        let found = match (state, plan) {
            (None, None) => Found::Nothing,
            (Some(state), None) => Found::Sampling(state),
            (Some(state), Some(plan)) => Found::Ended { state, plan },
            // Everything was uploaded, and nothing is left to be opened.
            (None, Some(plan)) => {
                let reservoir = Reservoir::new(1, 0, 0);
                Found::Ended { state: State { reservoir, dropped: 0, too_large: 0, lost: 0 }, plan }
            }
        };
        Ok((store, found))
    }

    fn plan_path(&self) -> PathBuf {
        self.folder.join("upload.json")
    }

    /// Takes a sealed sample, to be written later.
    pub(super) fn put(&mut self, number: u64, sealed: Vec<u8>) {
        self.pending.insert(number, sealed);
    }

    /// A sample is not kept any more.
    pub(super) fn give_up(&mut self, number: u64) {
        self.pending.remove(&number);
        for segment in self.segments.values_mut() {
            segment.live.remove(&number);
        }
    }

    /// Bytes that wait to be written.
    pub(super) fn pending_bytes(&self) -> usize {
        self.pending.values().map(Vec::len).sum()
    }

    /// Gives up what waits to be written; tells which samples that were.
    pub(super) fn drop_pending(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.pending).into_keys().collect()
    }

    /// Bytes of all files.
    #[cfg(test)]
    pub(super) fn disk_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// Writes what waits, together with `state`. Without anything new, nothing is written.
    ///
    /// # Errors
    /// [`FileError`]; what waits still waits then.
    pub(super) fn flush(&mut self, state: &State) -> Result<(), FileError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut moved: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut emptied = Vec::new();
        loop {
            let left: u64 = self
                .segments
                .iter()
                .filter(|(number, _)| !emptied.contains(*number))
                .map(|(_, segment)| segment.bytes)
                .sum();
            let new: usize = self.pending_bytes() + moved.values().map(Vec::len).sum::<usize>();
            if left.saturating_add(new as u64) <= self.room_bytes {
                break;
            }
            let candidates = self.segments.iter().filter(|(number, segment)| {
                // One that is full of what is kept would only be written once more.
                !emptied.contains(*number) && segment.live_bytes() < segment.bytes * 3 / 4
            });
            let Some((number, segment)) = candidates.min_by_key(|(_, segment)| segment.live_bytes()) else { break };
            for sample in segment.live.keys() {
                moved.insert(*sample, self.read(*sample)?);
            }
            emptied.push(*number);
        }
        let written: Vec<(u64, &Vec<u8>)> =
            moved.iter().chain(&self.pending).map(|(number, sealed)| (*number, sealed)).collect();
        let samples =
            written.iter().map(|(number, sealed)| (*number, u32::try_from(sealed.len()).unwrap_or(u32::MAX))).collect();
        let path = self.folder.join(format!("{:016}.sealed", self.next_segment));
        let (bytes, begin) = encode(&Head { state: state.clone(), samples }, &written)
            .ok_or_else(|| FileError::io("write", &path)(std::io::Error::other("its head cannot be written")))?;
        files::write_durably(&path, &bytes)?;
        let mut at = begin as u64;
        let mut live = BTreeMap::new();
        for (number, sealed) in written {
            live.insert(number, (at, u32::try_from(sealed.len()).unwrap_or(u32::MAX)));
            at += sealed.len() as u64;
        }
        for number in emptied {
            if let Some(segment) = self.segments.get_mut(&number) {
                segment.live.clear();
            }
        }
        self.segments.insert(self.next_segment, Segment { path, bytes: bytes.len() as u64, live });
        self.next_segment += 1;
        self.pending.clear();
        self.drop_empty();
        Ok(())
    }

    /// Removes files in which nothing is kept, but for the last, which has the state.
    fn drop_empty(&mut self) {
        let last = self.segments.keys().next_back().copied();
        self.segments.retain(|number, segment| {
            if !segment.live.is_empty() || Some(*number) == last {
                return true;
            }
            files::remove(&segment.path).is_err()
        });
    }

    /// One sealed sample.
    ///
    /// # Errors
    /// [`FileError`], also when it is not there.
    pub(super) fn read(&self, number: u64) -> Result<Vec<u8>, FileError> {
        if let Some(sealed) = self.pending.get(&number) {
            return Ok(sealed.clone());
        }
        let found = self.segments.values().rev().find_map(|segment| Some((&segment.path, segment.live.get(&number)?)));
        let Some((path, (at, length))) = found else { return Err(damaged(&self.folder)) };
        let mut bytes = vec![0; *length as usize];
        let read = File::open(path).and_then(|mut file| {
            file.seek(SeekFrom::Start(*at))?;
            file.read_exact(&mut bytes)
        });
        read.map_err(FileError::io("read", path))?;
        Ok(bytes)
    }

    /// The samples on disk and their lengths, in order of their numbers.
    fn lengths(&self) -> BTreeMap<u64, u32> {
        self.segments
            .values()
            .flat_map(|segment| segment.live.iter().map(|(number, (_, length))| (*number, *length)))
            .collect()
    }

    /// The samples of each batch, the same whenever it is asked.
    pub(super) fn batches(&self) -> Vec<Vec<u64>> {
        let mut batches: Vec<Vec<u64>> = Vec::new();
        let mut room = 0;
        for (number, length) in self.lengths() {
            let bytes = length as usize + muster_shared::collection::FRAME_HEAD_BYTES;
            match batches.last_mut() {
                Some(batch) if bytes <= room => {
                    batch.push(number);
                    room -= bytes;
                }
                Some(_) | None => {
                    batches.push(vec![number]);
                    room = MAX_BATCH_BYTES.saturating_sub(bytes);
                }
            }
        }
        batches
    }

    /// Stores how far the upload is. From the first time on, the collection has ended here.
    ///
    /// # Errors
    /// [`FileError`].
    pub(super) fn store_plan(&self, plan: &Plan) -> Result<(), FileError> {
        files::write_durably(&self.plan_path(), &serde_json::to_vec(plan).unwrap_or_default())
    }

    /// How far the upload is, once the collection has ended.
    ///
    /// # Errors
    /// [`FileError`].
    pub(super) fn plan(&self) -> Result<Option<Plan>, FileError> {
        let Some(bytes) = files::read_start(&self.plan_path(), MAX_PLAN_BYTES)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|_| damaged(&self.plan_path()))
    }

    /// Removes every sample; what is stored of the upload stays.
    pub(super) fn clear(&mut self) {
        self.pending.clear();
        self.segments.retain(|_, segment| files::remove(&segment.path).is_err());
    }
}

fn encode(head: &Head, samples: &[(u64, &Vec<u8>)]) -> Option<(Vec<u8>, usize)> {
    let head = postcard::to_stdvec(head).ok()?;
    let length = u32::try_from(head.len()).ok()?;
    let mut bytes = [&MAGIC[..], &length.to_le_bytes(), &head].concat();
    let begin = bytes.len();
    samples.iter().for_each(|(_, sealed)| bytes.extend_from_slice(sealed));
    let digest = Digest::of(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    (bytes.len() as u64 <= MAX_FILE_BYTES.max(2 * MAX_SAMPLE_BYTES as u64)).then_some((bytes, begin))
}
