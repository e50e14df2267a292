//! One download: chunk frames in, durable chunks out.
//!
//! Every chunk is held against the signed manifest before a byte of it is written, and written where the manifest says;
//! nothing is counted as there before its file has reached the disk. What the bundle before has in common is taken from there. When
//! to ask for what is [`muster_agent_core::fetch::FetchPlan`]'s decision.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use muster_agent_core::fetch::{FetchPlan, Step};
use muster_agent_core::slots::Slot;
use muster_delta::Decoder;
use muster_shared::bundle::{Chunk, Manifest};
use muster_shared::chunk::{ChunkEncoding, ChunkFrame, ChunkSet};
use muster_shared::ids::Digest;
use muster_shared::limits::CHUNK_BYTES;

use super::base::Base;
use super::gate::{Asking, Gate, Wanted};
use super::slot_files::SlotFiles;
use crate::causes::with_source;
use crate::files::{self, FileError};
use crate::time::jitter;

const _: () = assert!(CHUNK_BYTES <= muster_delta::MAX_CHUNK_BYTES);

pub(super) struct Download {
    pub(super) generation: u64,
    pub(super) manifest: Digest,
    places: Vec<Place>,
    targets: Vec<Target>,
    plan: FetchPlan,
    base: Option<Base>,
    /// Made when the first packed chunk comes.
    decoder: Option<Decoder>,
}

/// A file that is written.
struct Target {
    /// Its path in the bundle.
    name: String,
    path: PathBuf,
    open: Option<File>,
    unsynced: bool,
}

struct Place {
    file: usize,
    start: u64,
    chunk: Chunk,
}

/// What a frame was worth.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The chunk is written.
    Written,
    /// It is not wanted, or not any more.
    Unwanted,
    /// Its bytes are not those the manifest describes; in words.
    Wrong(String),
}

impl Download {
    pub(super) fn new(
        slots: &SlotFiles,
        slot: Slot,
        generation: u64,
        digest: Digest,
        manifest: &Manifest,
        plan: FetchPlan,
        base: Option<Base>,
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
            targets: manifest.files.iter().map(|file| Target::new(file.path.clone(), slots.path(slot, file))).collect(),
            plan,
            base,
            decoder: None,
        }
    }

    /// Takes a frame.
    pub(super) fn take(&mut self, frame: &ChunkFrame<'_>, now_ms: u64) -> Result<Taken, FileError> {
        let place = usize::try_from(frame.index).ok().and_then(|index| self.places.get(index));
        let Some(place) = place.filter(|_| frame.manifest == self.manifest && self.plan.wants(frame.index)) else {
            return Ok(Taken::Unwanted);
        };
        let target = &mut self.targets[place.file];
        let (packed, content) = match frame.encoding {
            ChunkEncoding::Plain => (false, Ok(Cow::Borrowed(frame.bytes))),
            ChunkEncoding::Packed => {
                let old = self.base.as_ref().and_then(|base| base.file(&target.name));
                let unpacked = unpack(&mut self.decoder, frame.bytes, place, old);
                (
                    true,
                    unpacked.map(Cow::Owned).map_err(|why| format!("chunk {} cannot be unpacked: {why}", frame.index)),
                )
            }
        };
        let content = content.and_then(|bytes| match place.chunk.describes(&bytes) {
            true => Ok(bytes),
            false => Err(format!("chunk {} is not what the manifest describes", frame.index)),
        });
        match content {
            Ok(bytes) => {
                target.write(&bytes, place.start)?;
                passing!(ChunkWritten);
                self.plan.arrived(frame.index, now_ms);
                Ok(Taken::Written)
            }
            Err(reason) => {
                self.plan.corrupt(frame.index, packed);
                Ok(Taken::Wrong(reason))
            }
        }
    }

    /// Takes chunk `index` from the bundle before, if it is there and whole.
    fn copy(&mut self, index: u32) -> Result<bool, FileError> {
        let place = usize::try_from(index).ok().and_then(|index| self.places.get(index));
        let found = place.zip(self.base.as_ref()).and_then(|(place, base)| Some((place, base.chunk(&place.chunk)?)));
        let Some((place, bytes)) = found else { return Ok(false) };
        self.targets[place.file].write(&bytes, place.start)?;
        passing!(ChunkCopied);
        Ok(self.plan.found(index))
    }

    /// Makes what was written durable, and says which chunks that are.
    pub(super) fn flush(&mut self) -> Result<Vec<u32>, FileError> {
        self.targets.iter_mut().try_for_each(Target::sync)?;
        passing!(ChunksSynced);
        Ok(self.plan.durable())
    }

    /// What to do next, and how many chunks were found on the device meanwhile. What is to be asked for has passed `gate`.
    pub(super) fn next(&mut self, gate: &mut Gate, asking: &Asking) -> Result<(Step, u64), FileError> {
        let now_ms = asking.now_ms;
        let (first, wanted, accepts) = match self.plan.next(now_ms, jitter()) {
            Step::Request { first, wanted, accepts } => (first, wanted, accepts),
            step @ (Step::Flush | Step::WaitUntil(_) | Step::Disconnected | Step::Done | Step::GiveUp { .. }) => {
                return Ok((step, 0));
            }
        };
        let (mut copied, mut lacking) = (0, Vec::new());
        for offset in wanted.iter() {
            if self.copy(first + offset)? {
                copied += 1;
            } else {
                lacking.push(offset);
            }
        }
        let window: Vec<Wanted> = lacking.iter().take(self.plan.window()).map(|at| self.wanted(first + at)).collect();
        let admitted = if window.is_empty() { Ok(0) } else { gate.admit(&window, asking) };
        let (asked, late) = lacking.split_at(admitted.unwrap_or(0).min(lacking.len()));
        late.iter().for_each(|offset| self.plan.not_asked(first + offset));
        if !asked.is_empty() {
            let mut wanted = ChunkSet::empty(wanted.length());
            asked.iter().for_each(|offset| _ = wanted.insert(*offset));
            return Ok((Step::Request { first, wanted, accepts }, copied));
        }
        match admitted {
            Err(until_ms) if copied == 0 => Ok((Step::WaitUntil(until_ms), 0)),
            Ok(_) | Err(_) => Ok((self.plan.next(now_ms, jitter()), copied)),
        }
    }

    fn wanted(&self, index: u32) -> Wanted {
        let place = usize::try_from(index).ok().and_then(|index| self.places.get(index));
        (index, place.map_or(0, |place| u64::from(place.chunk.length)))
    }

    /// The connection came or went.
    pub(super) fn connection(&mut self, connected: bool) {
        self.plan.connection(connected);
    }
}

impl Target {
    fn new(name: String, path: PathBuf) -> Self {
        Self { name, path, open: None, unsynced: false }
    }

    fn write(&mut self, bytes: &[u8], start: u64) -> Result<(), FileError> {
        let file = match &mut self.open {
            Some(file) => file,
            closed => closed.insert(files::open_for_writing(&self.path, false)?),
        };
        self.unsynced = true;
        file.write_all_at(bytes, start).map_err(FileError::io("write", &self.path))
    }

    fn sync(&mut self) -> Result<(), FileError> {
        if std::mem::take(&mut self.unsynced)
            && let Some(file) = &self.open
        {
            file.sync_data().map_err(FileError::io("make durable", &self.path))?;
        }
        Ok(())
    }
}

/// The chunk at `place` from its short form, or what is wrong with that.
fn unpack(decoder: &mut Option<Decoder>, packed: &[u8], place: &Place, old: Option<&File>) -> Result<Vec<u8>, String> {
    let decoder = match decoder {
        Some(decoder) => decoder,
        none => none.insert(Decoder::new().map_err(|error| format!("there is no memory to unpack it: {error}"))?),
    };
    let length = place.chunk.length as usize;
    decoder.decode(packed, place.start, length, old).map_err(|error| with_source(&error))
}

#[cfg(test)]
mod tests;
