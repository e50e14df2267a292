//! The outbox on disk: one sled store, and how it is made to survive a power cut.
//!
//! Keys are the stream's number and the sequence (big endian), values the message's place among all (8 bytes, big endian)
//! and its body. sled's own flush does not reach the platter, so its files are synchronised after it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use muster_agent_core::outbox::{Bounds, Held, Ledger};
use muster_shared::messages::Stream;

use super::OutboxError;
use crate::files::{self, FileError};

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

pub(super) struct Store {
    db: sled::Db,
    dir: PathBuf,
    file: File,
    synced_blobs: HashSet<OsString>,
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

impl Store {
    /// Opens the store, and says what had to be repaired. A store that cannot be opened is set aside and a new one begun.
    pub(super) fn open(data_dir: &Path) -> Result<(Self, Vec<String>), OutboxError> {
        let dir = data_dir.join("outbox");
        let marker = data_dir.join("outbox.opening");
        let mut alarms = Vec::new();
        let dir_was_there = dir.exists();
        // sled may end the process over a damaged file instead of saying so; the marker tells that from the outside.
        let openings = files::read_bounded(&marker, 64)?.map_or(0, |bytes| bytes.len());
        if openings >= MAX_OPENINGS && dir.exists() {
            alarms.push(Self::begin_anew(&dir, "the agent did not survive opening it")?);
        } else {
            files::write_durably(&marker, &vec![b'.'; openings + 1])?;
        }
        // sled may also take a damaged file for an empty one; the epoch is noted beside it to tell.
        let noted = data_dir.join("outbox.epoch");
        let expected =
            files::read_bounded(&noted, 64)?.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse::<u64>().ok());
        let opened = Self::try_open(&dir).and_then(|store| {
            let emptied = dir_was_there && expected.is_some_and(|epoch| epoch != store.epoch);
            if emptied { Err(OutboxError::Emptied) } else { Ok(store) }
        });
        let store = match opened {
            Ok(store) => store,
            Err(error) if error.is_damage() => {
                alarms.push(Self::begin_anew(&dir, &error.to_string())?);
                Self::try_open(&dir)?
            }
            Err(error) => return Err(error),
        };
        if expected != Some(store.epoch) {
            files::write_durably(&noted, store.epoch.to_string().as_bytes())?;
        }
        files::remove(&marker)?;
        Ok((store, alarms))
    }

    fn begin_anew(dir: &Path, why: &str) -> Result<String, FileError> {
        let aside = files::set_aside(dir)?;
        let alarm = format!(
            "the outbox was damaged ({why}) and set aside as {}: undelivered messages are there",
            aside.display()
        );
        tracing::error!("{alarm}");
        Ok(alarm)
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
        let file = File::open(&path).map_err(FileError::io("open", &path))?;
        let given_up = db.get(GIVEN_UP)?.and_then(|v| be_u64(&v)).unwrap_or_default();
        let stored_epoch = db.get(EPOCH)?.and_then(|v| be_u64(&v));
        let epoch = match stored_epoch {
            Some(epoch) => epoch,
            None => getrandom::u64().map_err(|error| OutboxError::Random(error.to_string()))?,
        };
        let mut store = Self { db, dir: dir.to_owned(), file, synced_blobs: HashSet::new(), epoch, given_up };
        if stored_epoch.is_none() {
            store.db.insert(EPOCH, &epoch.to_be_bytes())?;
            store.make_durable()?;
            files::sync_folder(dir)?;
        }
        Ok(store)
    }

    /// The list of what the store holds, and how many messages are missing from it: messages go from the front only, so
    /// a gap is damage.
    pub(super) fn ledger(&self, bounds: Bounds) -> Result<(Ledger, u64), OutboxError> {
        let mut ledger = Ledger::new(bounds);
        let mut missing = 0u64;
        for stream in Stream::ALL {
            let mut expected = None;
            for entry in self.db.scan_prefix([number(stream)]) {
                let (key, value) = entry?;
                let (Some(sequence), Some(order)) = (key.get(1..).and_then(be_u64), be_u64(&value)) else {
                    continue;
                };
                missing = missing.saturating_add(sequence.saturating_sub(expected.unwrap_or(sequence)));
                expected = Some(sequence.saturating_add(1));
                let bytes = (value.len() - ORDER_BYTES) as u64;
                ledger.restore(stream, Held { sequence, order, bytes });
            }
            if let Some(next) = self.db.get([META, NEXT, number(stream)])?.and_then(|v| be_u64(&v)) {
                ledger.continue_at(stream, next);
                missing = missing.saturating_add(next.saturating_sub(expected.unwrap_or(next)));
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

    /// Stores a message and removes others, all or nothing; durable when this returns.
    pub(super) fn put(
        &mut self,
        stream: Stream,
        held: Held,
        body: &[u8],
        removed: &[(Stream, u64)],
        given_up: u64,
    ) -> Result<(), OutboxError> {
        let mut batch = sled::Batch::default();
        let mut value = held.order.to_be_bytes().to_vec();
        value.extend_from_slice(body);
        batch.insert(&key(stream, held.sequence), value);
        for (stream, sequence) in removed {
            batch.remove(&key(*stream, *sequence));
        }
        let total = self.given_up.saturating_add(given_up);
        batch.insert(&GIVEN_UP, &total.to_be_bytes());
        batch.insert(&[META, NEXT, number(stream)], &held.sequence.saturating_add(1).to_be_bytes());
        self.db.apply_batch(batch)?;
        self.make_durable()?;
        self.given_up = total;
        Ok(())
    }

    /// The body of a message; empty when it is not there.
    pub(super) fn get(&self, stream: Stream, sequence: u64) -> Result<Vec<u8>, sled::Error> {
        let value = self.db.get(key(stream, sequence))?;
        Ok(value.and_then(|v| v.get(ORDER_BYTES..).map(<[u8]>::to_vec)).unwrap_or_default())
    }

    /// Removes messages; not durably.
    pub(super) fn forget(&mut self, stream: Stream, sequences: &[u64]) -> Result<(), OutboxError> {
        let mut batch = sled::Batch::default();
        for sequence in sequences {
            batch.remove(&key(stream, *sequence));
        }
        self.db.apply_batch(batch)?;
        Ok(())
    }

    fn make_durable(&mut self) -> Result<(), OutboxError> {
        self.db.flush()?;
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
