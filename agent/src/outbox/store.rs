//! The outbox on disk: one sled store, and how it is made to survive a power cut.
//!
//! Keys are the stream's number and the sequence (big endian), values the message's place among all (8 bytes, big endian)
//! and its body. sled's own flush does not reach the platter, so its files are synchronised after it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use muster_agent_core::outbox::{Bounds, Held, Ledger, missing_between};
use muster_shared::messages::Stream;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::error::{OutboxError, guarded};
use crate::causes::with_source;
use crate::files::{self, FileError};
use crate::resources;

const META: u8 = 0;
const EPOCH: [u8; 2] = [META, 1];
const GIVEN_UP: [u8; 2] = [META, 2];
const NEXT: u8 = 3;
const ORDER_BYTES: usize = 8;
/// Kept small: messages are written once and read once.
const CACHE_BYTES: u64 = 256 * 1024;
/// sled keeps a few of these in memory.
const SEGMENT_BYTES: usize = 64 * 1024;
/// Starts that may die while the store is opened before it is taken for the cause.
const MAX_OPENINGS: usize = 3;
/// Room that must be free before anything is written. After one write that failed, sled refuses every other until it is opened
/// again, and it may wait for ever for one that failed on a thread of its own; so it must not meet a full disk.
const RESERVE_BYTES: u64 = 4 * 1024 * 1024;
/// Room taken behind the end of the log before each write.
const AHEAD_BYTES: u64 = 1024 * 1024;
const MAX_NOTE_BYTES: u64 = 64;
/// Messages nobody needs that may wait for the next write.
const MAX_UNNEEDED: usize = 256;

pub(super) struct Store {
    db: sled::Db,
    dir: PathBuf,
    file: File,
    synced_blobs: HashSet<OsString>,
    /// Messages that nobody needs any more, to go with the next write.
    unneeded: Vec<[u8; 9]>,
    /// A write was begun and sled has not come back from it, or only with an error.
    unfinished: bool,
    epoch: u64,
    given_up: u64,
}

fn number(stream: Stream) -> u8 {
    match stream {
        Stream::State => 1,
        Stream::Telemetry => 2,
        Stream::Sketch => 3,
        Stream::Event => 4,
    }
}

fn key(stream: Stream, sequence: u64) -> [u8; 9] {
    let mut key = [number(stream); 9];
    key[1..].copy_from_slice(&sequence.to_be_bytes());
    key
}

fn be_u64(bytes: &[u8]) -> Option<u64> {
    bytes.get(..8)?.try_into().ok().map(u64::from_be_bytes)
}

/// A store that is not to be opened again.
pub(super) struct Condemned {
    pub(super) why: String,
    /// Nothing waited in it.
    pub(super) is_empty: bool,
}

/// What is noted beside the store, as two numbers: the second is missing where an agent before this one wrote it.
#[derive(Clone, Copy)]
struct Note {
    epoch: u64,
    opening: Option<u64>,
}

impl Note {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(bytes).ok()?.split(' ').map(|word| word.parse::<u64>().ok());
        Some(Self { epoch: words.next()??, opening: words.next().flatten() })
    }
}

fn full(dir: &Path) -> OutboxError {
    let free_bytes = resources::disk_free_bytes(dir);
    OutboxError::Full { path: dir.to_owned(), free_bytes, need_bytes: RESERVE_BYTES }
}

fn check_room(dir: &Path) -> Result<(), OutboxError> {
    if resources::disk_free_bytes(dir) < RESERVE_BYTES { Err(full(dir)) } else { Ok(()) }
}

impl Store {
    /// Opens the store with the list of what it holds, and says what had to be repaired. A store that cannot be read is set
    /// aside and a new one begun; so is one that is `condemned`.
    pub(super) fn open(
        data_dir: &Path,
        bounds: Bounds,
        condemned: Option<&Condemned>,
    ) -> Result<(Self, Ledger, Vec<String>), OutboxError> {
        check_room(data_dir)?;
        let dir = data_dir.join("outbox");
        let marker = data_dir.join("outbox.opening");
        let noted = data_dir.join("outbox.epoch");
        let mut alarms = Vec::new();
        let dir_was_there = dir.exists();
        // sled may also take a damaged file for an empty one; the epoch is noted beside it to tell.
        let expected = if dir_was_there {
            files::read_start(&noted, MAX_NOTE_BYTES)?.and_then(|bytes| Note::parse(&bytes))
        } else {
            // It was about a store that is gone, and must not be taken for one about a folder that is only begun.
            files::remove(&noted)?;
            None
        };
        // Nothing is given out before the opening is noted where the store cannot lose it.
        let begin = |store: &Self, ledger: &mut Ledger| {
            let before = expected.filter(|note| note.epoch == store.epoch).and_then(|note| note.opening);
            let opening = ledger.begin_opening(before);
            files::write_durably(&noted, format!("{} {opening}", store.epoch).as_bytes())
        };
        let set_aside = |why: &str, holds_something: bool| -> Result<String, FileError> {
            let alarm = Self::set_aside(&dir, why, holds_something)?;
            // The note was about the store that is gone.
            files::remove(&noted)?;
            Ok(alarm)
        };
        // sled may end the process over a damaged file instead of saying so; the marker tells that from the outside.
        let openings = files::read_start(&marker, MAX_NOTE_BYTES)?.map_or(0, |bytes| match bytes.as_slice() {
            dots if dots.iter().all(|byte| *byte == b'.') => dots.len(),
            // Not what this program writes, so it tells nothing.
            _ => 1,
        });
        let killing = Condemned { why: "the agent did not survive opening it".to_owned(), is_empty: false };
        if let Some(condemned) = condemned.or_else(|| (openings >= MAX_OPENINGS).then_some(&killing))
            && dir_was_there
        {
            alarms.push(set_aside(&condemned.why, expected.is_some() && !condemned.is_empty)?);
        } else {
            files::write_durably(&marker, &vec![b'.'; openings.min(MAX_OPENINGS) + 1])?;
            passing!(OutboxOpening);
        }
        let opened = guarded(|| {
            let store = Self::try_open(&dir)?;
            if dir_was_there && alarms.is_empty() && expected.is_some_and(|note| note.epoch != store.epoch) {
                return Err(OutboxError::Emptied);
            }
            let (mut ledger, missing) = store.ledger(bounds)?;
            begin(&store, &mut ledger)?;
            Ok((store, ledger, missing))
        });
        let (store, ledger, missing) = match opened {
            Err(error) if error.is_damage() => {
                let was_used = expected.is_some() && alarms.is_empty();
                alarms.push(set_aside(&error.to_string(), was_used)?);
                let store = guarded(|| Self::try_open(&dir))?;
                let mut ledger = Ledger::new(bounds);
                begin(&store, &mut ledger)?;
                (store, ledger, 0)
            }
            Err(error) => {
                // It came back, so it was survived: a system that refuses again and again is no sign against the store.
                let survived = match openings {
                    0 => files::remove(&marker),
                    earlier => files::write_durably(&marker, &vec![b'.'; earlier.min(MAX_OPENINGS)]),
                };
                if let Err(error) = survived {
                    tracing::warn!(error = %with_source(&error), "an opening of the outbox is taken for one that ended the agent");
                }
                return Err(error);
            }
            Ok(opened) => opened,
        };
        if missing > 0 {
            alarms.push(format!("the outbox {} was damaged: {missing} undelivered messages are lost", dir.display()));
        }
        passing!(OutboxOpened);
        files::remove(&marker)?;
        Ok((store, ledger, alarms))
    }

    /// Clears the place for a new store. One that holds nothing, as it was never used or all of it was delivered, must not take the place of
    /// one that was set aside with messages in it.
    fn set_aside(dir: &Path, why: &str, holds_something: bool) -> Result<String, FileError> {
        let earlier = files::place_aside(dir);
        if !holds_something && earlier.exists() {
            files::remove(dir)?;
            return Ok(format!(
                "the outbox was damaged ({why}) and begun anew: what was undelivered before is in {} still",
                earlier.display()
            ));
        }
        let aside = files::set_aside(dir)?;
        Ok(format!(
            "the outbox was damaged ({why}) and set aside as {}: undelivered messages are there",
            aside.display()
        ))
    }

    fn try_open(dir: &Path) -> Result<Self, OutboxError> {
        files::make_folder(dir)?;
        let db = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SEGMENT_BYTES)
            .mode(sled::Mode::LowSpace)
            .flush_every_ms(None)
            .open()?;
        let path = dir.join("db");
        let file = File::options().write(true).open(&path).map_err(FileError::io("open", &path))?;
        let given_up = db.get(GIVEN_UP)?.and_then(|v| be_u64(&v)).unwrap_or_default();
        let stored_epoch = db.get(EPOCH)?.and_then(|v| be_u64(&v));
        let epoch = match stored_epoch {
            Some(epoch) => epoch,
            None => getrandom::u64().map_err(|error| OutboxError::Random(error.to_string()))?,
        };
        let (synced_blobs, unneeded) = (HashSet::new(), Vec::new());
        let unfinished = false;
        let mut store = Self { db, dir: dir.to_owned(), file, synced_blobs, unneeded, unfinished, epoch, given_up };
        if stored_epoch.is_none() {
            store.db.insert(EPOCH, &epoch.to_be_bytes())?;
            store.make_durable()?;
            files::sync_folder(dir)?;
        }
        Ok(store)
    }

    /// The list of what the store holds, and how many messages are missing from it: messages go from the front only, so
    /// a gap is damage, unless another opening began behind it.
    fn ledger(&self, bounds: Bounds) -> Result<(Ledger, u64), OutboxError> {
        let mut ledger = Ledger::new(bounds);
        let mut missing = 0u64;
        for stream in Stream::ALL {
            let mut expected = None;
            for entry in self.db.scan_prefix([number(stream)]) {
                let (key, value) = entry?;
                let (Some(sequence), Some(order)) = (key.get(1..).and_then(be_u64), be_u64(&value)) else {
                    continue;
                };
                missing = missing.saturating_add(missing_between(expected.unwrap_or(sequence), sequence));
                expected = Some(sequence.saturating_add(1));
                let bytes = (value.len() - ORDER_BYTES) as u64;
                ledger.restore(stream, Held { sequence, order, bytes });
            }
            if let Some(next) = self.db.get([META, NEXT, number(stream)])?.and_then(|v| be_u64(&v)) {
                ledger.continue_at(stream, next);
                missing = missing.saturating_add(missing_between(expected.unwrap_or(next), next));
            }
        }
        Ok((ledger, missing))
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Counts messages as given up, durably with the next one that is stored.
    pub(super) fn count_given_up(&mut self, messages: u64) {
        self.given_up = self.given_up.saturating_add(messages);
    }

    /// Stores a message and removes others, all or nothing; durable when this returns. After an error other than
    /// [`OutboxError::Full`] nobody knows what was written: the store must be opened again.
    pub(super) fn put(
        &mut self,
        stream: Stream,
        held: Held,
        body: &[u8],
        removed: &[(Stream, u64)],
        given_up: u64,
    ) -> Result<(), OutboxError> {
        self.check_room()?;
        let mut batch = sled::Batch::default();
        let mut value = held.order.to_be_bytes().to_vec();
        value.extend_from_slice(body);
        batch.insert(&key(stream, held.sequence), value);
        for (stream, sequence) in removed {
            batch.remove(&key(*stream, *sequence));
        }
        for key in &self.unneeded {
            batch.remove(key);
        }
        let total = self.given_up.saturating_add(given_up);
        batch.insert(&GIVEN_UP, &total.to_be_bytes());
        batch.insert(&[META, NEXT, number(stream)], &held.sequence.saturating_add(1).to_be_bytes());
        self.apply(batch)?;
        passing!(MessageBatched);
        guarded(|| self.make_durable())?;
        passing!(MessageDurable);
        self.given_up = total;
        self.unneeded.clear();
        Ok(())
    }

    /// The body of a message; empty when it is not there.
    pub(super) fn get(&self, stream: Stream, sequence: u64) -> Result<Vec<u8>, OutboxError> {
        let value = guarded(|| Ok(self.db.get(key(stream, sequence))?))?;
        Ok(value.and_then(|v| v.get(ORDER_BYTES..).map(<[u8]>::to_vec)).unwrap_or_default())
    }

    /// Removes messages: with the next one that is stored, so that an acknowledgement wears no flash by itself, or now where there are
    /// many; not durably either way.
    pub(super) fn forget(&mut self, stream: Stream, sequences: &[u64]) -> Result<(), OutboxError> {
        self.unneeded.extend(sequences.iter().map(|sequence| key(stream, *sequence)));
        if self.unneeded.len() < MAX_UNNEEDED {
            return Ok(());
        }
        self.check_room()?;
        let mut batch = sled::Batch::default();
        for key in std::mem::take(&mut self.unneeded) {
            batch.remove(&key);
        }
        self.apply(batch)
    }

    fn apply(&mut self, batch: sled::Batch) -> Result<(), OutboxError> {
        self.unfinished = true;
        guarded(|| Ok(self.db.apply_batch(batch)?))?;
        self.unfinished = false;
        Ok(())
    }

    /// Lets the store go. Where a write failed half-way, sled would wait for ever for the rest of it, even while it is dropped;
    /// then it stays as it is, locked, until the agent ends.
    pub(super) fn close(self) {
        if self.unfinished {
            tracing::error!("the outbox stays closed until the agent is started again, unless it is set aside");
            std::mem::forget(self);
        } else {
            let _ = guarded(|| {
                drop(self);
                Ok(())
            });
        }
    }

    /// Looks whether there is room, and takes what the log may need next before others fill the disk with it.
    fn check_room(&self) -> Result<(), OutboxError> {
        check_room(&self.dir)?;
        let end = self.file.metadata().map_err(FileError::io("look at", &self.dir))?.len();
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, end, AHEAD_BYTES) {
            // Not every file system can reserve; the free space was looked at before.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(Errno::NOSPC | Errno::DQUOT) => Err(full(&self.dir)),
            Err(error) => Err(OutboxError::File(FileError::io("reserve room for", &self.dir)(error.into()))),
        }
    }

    fn make_durable(&mut self) -> Result<(), OutboxError> {
        self.db.flush()?;
        passing!(LogFlushed);
        self.file.sync_all().map_err(FileError::io("make durable", &self.dir))?;
        // Large pages go to files of their own.
        let blobs = self.dir.join("blobs");
        let Ok(entries) = std::fs::read_dir(&blobs) else { return Ok(()) };
        let mut there = HashSet::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            if !self.synced_blobs.contains(&name) {
                // One that is gone again by now is not needed either.
                if let Ok(file) = File::open(entry.path()) {
                    file.sync_all().map_err(FileError::io("make durable", &blobs))?;
                }
            }
            there.insert(name);
        }
        if !there.is_subset(&self.synced_blobs) {
            files::sync_folder(&blobs)?;
        }
        self.synced_blobs = there;
        Ok(())
    }
}
