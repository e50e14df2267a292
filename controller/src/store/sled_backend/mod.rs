//! The store on sled, in one folder.
//!
//! One thread makes all commits, so that an expectation cannot change between the look and the write, and so that every
//! commit waiting meanwhile shares one flush. sled's flush alone does not survive a power cut (on Linux it does not wait for
//! the drive), so the files are synced through handles of ours after it. A document may be *read* in the moment before it
//! is durable; its writer hears of success only afterwards.
//!
//! sled treats a log it cannot read as one that ends there, and an empty folder as a new store; hence `identity`.

mod disk;
mod identity;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use self::disk::Disk;
use super::{Change, Expect, Store, StoreError, Table, Versioned};
use crate::durable;

/// Pages sled keeps in memory, in bytes.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// Commits that may wait; more have to wait for their turn to wait.
const QUEUE: usize = 1_024;
/// Commits that share one flush at most.
const MAX_GROUP: usize = 256;
/// Room left on the disk. sled cannot go on after a write that failed, so writing ends before the disk is full.
const RESERVE_BYTES: u64 = 32 * 1024 * 1024;

struct Commit {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// A store in a folder. Dropping it finishes what was handed over.
pub(crate) struct SledStore {
    db: sled::Db,
    folder: PathBuf,
    /// Taken when dropped.
    commits: Option<mpsc::Sender<Commit>>,
    writer: Option<JoinHandle<()>>,
}

impl Table {
    /// The first byte of its keys. Never to be changed.
    const fn code(self) -> u8 {
        match self {
            Self::Devices => 1,
            Self::Reports => 2,
            Self::Windows => 3,
            Self::Positions => 4,
            Self::EnrolmentTokens => 5,
            Self::AccessTokens => 6,
            Self::Roots => 7,
            Self::Bundles => 8,
            Self::Rollouts => 9,
            Self::Events => 10,
            Self::Meta => 11,
        }
    }

    fn key(self, key: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(key.len() + 1);
        bytes.push(self.code());
        bytes.extend_from_slice(key.as_bytes());
        bytes
    }
}

fn corrupt(folder: &Path, reason: impl Into<String>) -> StoreError {
    StoreError::Corrupt { folder: folder.display().to_string(), reason: reason.into() }
}

fn from_io(folder: &Path, error: &io::Error) -> StoreError {
    let folder = folder.display().to_string();
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        StoreError::Full { folder }
    } else {
        StoreError::Io { folder, reason: error.to_string() }
    }
}

fn from_sled(folder: &Path, error: &sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            StoreError::InUse { folder: folder.display().to_string() }
        }
        sled::Error::Io(error) => from_io(folder, error),
        sled::Error::Corruption { .. } | sled::Error::ReportableBug(_) | sled::Error::CollectionNotFound(_) => {
            corrupt(folder, error.to_string())
        }
        sled::Error::Unsupported(reason) => {
            StoreError::Io { folder: folder.display().to_string(), reason: reason.clone() }
        }
    }
}

/// Runs `work`; damage that makes sled panic becomes an error.
fn guarded<T>(folder: &Path, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("it could not be read");
        Err(corrupt(folder, reason))
    })
}

fn split(folder: &Path, document: &[u8]) -> Result<Versioned, StoreError> {
    let (version, value) =
        document.split_first_chunk::<8>().ok_or_else(|| corrupt(folder, "a document is too short"))?;
    Ok(Versioned { version: u64::from_be_bytes(*version), value: value.to_vec() })
}

impl SledStore {
    /// Opens the store in `folder`, or makes one there when the folder holds nothing.
    ///
    /// # Errors
    /// [`StoreError`] when it is in use or damaged; nothing is deleted then.
    pub(crate) fn open(folder: &Path) -> Result<Self, StoreError> {
        Self::open_with_reserve(folder, RESERVE_BYTES)
    }

    fn open_with_reserve(folder: &Path, reserve_bytes: u64) -> Result<Self, StoreError> {
        let plain = |error: durable::FileError| StoreError::Io {
            folder: folder.display().to_string(),
            reason: error.to_string(),
        };
        durable::make_folder(folder).map_err(plain)?;
        let db = guarded(folder, || {
            sled::Config::new()
                .path(folder)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(None)
                .open()
                .map_err(|error| from_sled(folder, &error))
        })?;
        let mut disk = Disk::open(folder, reserve_bytes).map_err(|error| from_io(folder, &error))?;
        guarded(folder, || identity::check(&db, &mut disk))?;
        let (commits, queue) = mpsc::channel(QUEUE);
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn({
                let db = db.clone();
                move || write_all(&db, &mut disk, queue)
            })
            .map_err(|error| from_io(folder, &error))?;
        Ok(Self { db, folder: folder.to_owned(), commits: Some(commits), writer: Some(writer) })
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        drop(self.commits.take());
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was answered to those who waited; there is nobody left to tell.
            let _ = writer.join();
        }
    }
}

#[async_trait::async_trait]
impl Store for SledStore {
    async fn get(&self, table: Table, key: &str) -> Result<Option<Versioned>, StoreError> {
        guarded(&self.folder, || {
            let document = self.db.get(table.key(key)).map_err(|error| from_sled(&self.folder, &error))?;
            document.map(|document| split(&self.folder, &document)).transpose()
        })
    }

    async fn scan(
        &self,
        table: Table,
        after: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(String, Versioned)>, StoreError> {
        let prefix = table.key(prefix);
        let start = match after.map(|after| table.key(after)) {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix.clone()),
        };
        let (db, folder) = (self.db.clone(), self.folder.clone());
        let work = move || {
            guarded(&folder, || {
                let mut found = Vec::new();
                for item in db.range::<Vec<u8>, _>((start, Bound::Unbounded)).take(limit) {
                    let (key, document) = item.map_err(|error| from_sled(&folder, &error))?;
                    if !key.starts_with(&prefix) {
                        break;
                    }
                    let key =
                        std::str::from_utf8(&key[1..]).map_err(|_| corrupt(&folder, "a key is not text"))?.to_owned();
                    found.push((key, split(&folder, &document)?));
                }
                Ok(found)
            })
        };
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(StoreError::Closed))
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let (done, outcome) = oneshot::channel();
        let commits = self.commits.as_ref().ok_or(StoreError::Closed)?;
        commits.send(Commit { changes, done }).await.map_err(|_| StoreError::Closed)?;
        outcome.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// The writer's thread.
fn write_all(db: &sled::Db, disk: &mut Disk, mut queue: mpsc::Receiver<Commit>) {
    let folder = disk.folder.clone();
    while let Some(first) = queue.blocking_recv() {
        let mut applied = Vec::new();
        let mut next = Some(first);
        while let Some(commit) = next {
            let outcome = guarded(&folder, || {
                disk.check_room(&commit.changes)?;
                apply(db, &folder, &commit.changes)
            });
            match outcome {
                Ok(()) => applied.push(commit.done),
                // Who waits may have gone; then nobody wants to know.
                Err(error) => drop(commit.done.send(Err(error))),
            }
            next = if applied.len() < MAX_GROUP { queue.try_recv().ok() } else { None };
        }
        if applied.is_empty() {
            continue;
        }
        let synced = guarded(&folder, || disk.sync(db));
        for done in applied {
            // After a failed sync nobody knows what is on the disk, and it must not be claimed later.
            let _ = done.send(synced.clone());
        }
        if let Err(error) = synced {
            tracing::error!(%error, "the store takes no more changes until the controller is restarted");
            return;
        }
    }
}

/// Makes all changes or none.
fn apply(db: &sled::Db, folder: &Path, changes: &[Change]) -> Result<(), StoreError> {
    let mut batch = sled::Batch::default();
    // Versions of keys that this batch has changed already.
    let mut changed: HashMap<Vec<u8>, u64> = HashMap::new();
    for change in changes {
        let (Change::Put { table, key, expect, .. } | Change::Delete { table, key, expect }) = change;
        let full_key = table.key(key);
        let stored = db.get(&full_key).map_err(|error| from_sled(folder, &error))?;
        let stored_version = match &stored {
            Some(document) => split(folder, document)?.version,
            None => 0,
        };
        let met = match expect {
            Expect::Anything => true,
            Expect::Absent => stored_version == 0,
            Expect::Version(version) => stored_version == *version && *version != 0,
        };
        if !met {
            return Err(StoreError::Conflict { table: *table, key: key.clone() });
        }
        let before = changed.get(&full_key).copied().unwrap_or(stored_version);
        match change {
            Change::Put { value, .. } => {
                let version = before.saturating_add(1);
                let document = [version.to_be_bytes().as_slice(), value].concat();
                batch.insert(full_key.as_slice(), document);
                changed.insert(full_key, version);
            }
            Change::Delete { .. } => {
                batch.remove(full_key.as_slice());
                changed.insert(full_key, 0);
            }
        }
    }
    db.apply_batch(batch).map_err(|error| from_sled(folder, &error))
}
