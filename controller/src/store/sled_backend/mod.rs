//! The store on sled, in one folder.
//!
//! One thread makes all commits, so that an expectation cannot change between the look and the write, and so that every
//! commit waiting meanwhile shares one flush. sled's flush alone does not survive a power cut (on Linux it does not wait for
//! the drive), so the files are synced through handles of ours after it. A document may be *read* in the moment before it
//! is durable; its writer hears of success only afterwards.
//!
//! sled treats a log it cannot read as one that ends there, or that has nothing to say there, and an empty folder as a
//! new store; hence `identity` and `seal`. It also changes what it cannot read; hence `opening`.
//!
//! After a write that failed, sled gives that error for ever, and what it holds in memory may differ from the disk. The store
//! then takes no more changes and says so through [`SledStore::failure`]; who opens it anew, once there is room, finds
//! everything that was committed.

mod disk;
mod identity;
mod opening;
mod patience;
mod seal;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::{File, TryLockError};
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use self::disk::Disk;
use self::opening::{LOG, Opening};
use self::seal::{Counter, Seal};
use self::writer::{Commit, Writer};
use super::{Change, Store, StoreError, Table, Versioned};
use crate::durable;

/// Pages sled keeps in memory, in bytes.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// Commits that may wait; more have to wait for their turn to wait.
const QUEUE: usize = 1_024;
/// Room left on the disk. sled cannot go on after a write that failed, so writing ends before the disk is full.
const RESERVE_BYTES: u64 = 32 * 1024 * 1024;
/// With less than this sled cannot begin another piece of its log.
const LEAST_ROOM_BYTES: u64 = 1024 * 1024;

/// How often a store that is in use is tried, and how long is waited in between.
const OPEN_TRIES: u32 = 5;
const OPEN_PAUSE: Duration = Duration::from_millis(100);

/// A store in a folder. Dropping it finishes what was handed over.
pub(crate) struct SledStore {
    /// Taken when dropped, as are the next three.
    db: Option<sled::Db>,
    commits: Option<mpsc::Sender<Commit>>,
    writer: Option<JoinHandle<()>>,
    watcher: Option<JoinHandle<()>>,
    folder: PathBuf,
    failure: watch::Receiver<Option<StoreError>>,
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
            Self::Feedback => 12,
            Self::Alerts => 16,
            Self::AlertRules => 17,
            Self::Silences => 18,
            Self::AlertDeliveries => 19,
            Self::Collections => 20,
            Self::CollectionOrders => 21,
            Self::SampleBatches => 22,
            Self::AnalysisTemplates => 23,
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
    if durable::is_full(error) {
        StoreError::Full { folder }
    } else {
        StoreError::Io { folder, reason: error.to_string() }
    }
}

fn from_file(folder: &Path, error: &durable::FileError) -> StoreError {
    let folder = folder.display().to_string();
    if durable::is_full(error.cause()) {
        StoreError::Full { folder }
    } else {
        StoreError::Io { folder, reason: format!("{error}: {}", error.cause()) }
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
    /// [`StoreError`] when it is in use or damaged, or when there is too little room to write; the files stay as they are
    /// then.
    pub(crate) fn open(folder: &Path) -> Result<Self, StoreError> {
        durable::make_folder(folder).map_err(|error| from_file(folder, &error))?;
        disk::check_room(folder, 0, RESERVE_BYTES)?;
        Self::open_with_reserve(folder, RESERVE_BYTES)
    }

    /// As [`Self::open`], with so much room left to the disk.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_with_reserve(folder: &Path, reserve_bytes: u64) -> Result<Self, StoreError> {
        // A process that is just ending may hold it for a moment.
        for _ in 1..OPEN_TRIES {
            match Self::open_once(folder, reserve_bytes) {
                Err(StoreError::InUse { .. }) => std::thread::sleep(OPEN_PAUSE),
                opened => return opened,
            }
        }
        Self::open_once(folder, reserve_bytes)
    }

    fn open_once(folder: &Path, reserve_bytes: u64) -> Result<Self, StoreError> {
        let io = |error: io::Error| from_io(folder, &error);
        durable::make_folder(folder).map_err(|error| from_file(folder, &error))?;
        let opening = before(folder)?;
        let opened = guarded(folder, || open_whole(folder, reserve_bytes));
        let (db, mut disk, seal, counter) = match (opened, opening) {
            (Ok(opened), opening) => {
                opening.map_or(Ok(()), Opening::forget).map_err(io)?;
                opened
            }
            (Err(error @ StoreError::InUse { .. }), _) | (Err(error), None) => return Err(error),
            (Err(error), Some(opening)) => {
                opening.restore().map_err(io)?;
                return Err(error);
            }
        };
        let (commits, queue) = mpsc::channel(QUEUE);
        let (failed, failure) = watch::channel(None);
        let (work, watch) = patience::watched();
        let watcher = {
            let (failed, folder) = (failed.clone(), folder.to_owned());
            move || {
                let no_room = || disk::check_room(&folder, LEAST_ROOM_BYTES, 0);
                if let Err(waited) = watch.run(|| matches!(no_room(), Err(StoreError::Full { .. }))) {
                    let reason = format!("a write has not ended after {} s", waited.as_secs());
                    let error = no_room()
                        .err()
                        .unwrap_or_else(|| StoreError::Io { folder: folder.display().to_string(), reason });
                    give_up(&failed, error);
                }
            }
        };
        let watcher = std::thread::Builder::new().name("store-watch".into()).spawn(watcher).map_err(io)?;
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn({
                let mut writer = Writer { work, db: db.clone(), folder: folder.to_owned(), seal, counter };
                move || {
                    if let Err(error) = writer.run(&mut disk, queue) {
                        give_up(&failed, error);
                    }
                }
            })
            .map_err(io)?;
        Ok(Self {
            db: Some(db),
            commits: Some(commits),
            writer: Some(writer),
            watcher: Some(watcher),
            folder: folder.to_owned(),
            failure,
        })
    }

    /// sled may hold a lock for ever once a write has failed, so it is not asked any more.
    fn db(&self) -> Result<&sled::Db, StoreError> {
        self.db.as_ref().filter(|_| self.failure.borrow().is_none()).ok_or(StoreError::Closed)
    }

    /// Waits until the store cannot write any more, and says why; none when it was shut in order.
    pub(crate) fn failure(&self) -> impl Future<Output = Option<StoreError>> + Send + use<> {
        let mut failure = self.failure.clone();
        async move { failure.wait_for(Option::is_some).await.ok().and_then(|error| error.clone()) }
    }
}

/// From now on the store takes no changes.
fn give_up(failed: &watch::Sender<Option<StoreError>>, error: StoreError) {
    tracing::error!(%error, "the store takes no more changes until the controller is restarted");
    failed.send_if_modified(|known| {
        let first = known.is_none();
        known.get_or_insert(error);
        first
    });
}

/// Keeps what opening a damaged store would change; nothing in a new one.
fn before(folder: &Path) -> Result<Option<Opening>, StoreError> {
    let io = |error: io::Error| from_io(folder, &error);
    let lock = |path: &Path| match File::options().read(true).write(true).open(path) {
        Ok(log) => match log.try_lock() {
            Ok(()) => Ok(Some(log)),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { folder: folder.display().to_string() }),
            Err(TryLockError::Error(error)) => Err(io(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(error)),
    };
    let log = folder.join(LOG);
    if lock(&log)?.is_none() {
        return if identity::is_named(folder) {
            Err(corrupt(folder, format!("its file {LOG} is missing")))
        } else {
            Ok(None)
        };
    }
    Opening::resume(folder).map_err(io)?;
    lock(&log)?.map(|log| Opening::of(folder, &log).map_err(io)).transpose()
}

/// Opens the store and looks through all of it.
fn open_whole(folder: &Path, reserve_bytes: u64) -> Result<(sled::Db, Disk, Seal, Counter), StoreError> {
    let db = sled::Config::new()
        .path(folder)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None)
        .open()
        .map_err(|error| from_sled(folder, &error))?;
    let mut disk = Disk::open(folder, reserve_bytes).map_err(|error| from_io(folder, &error))?;
    let seal = identity::check(&db, &mut disk)?;
    let counter = Counter::open(folder).map_err(|error| from_io(folder, &error))?;
    Ok((db, disk, seal, counter))
}

impl Drop for SledStore {
    fn drop(&mut self) {
        drop(self.commits.take());
        // It ends with the writer, or when the writer does not come back.
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        let (db, writer) = (self.db.take(), self.writer.take());
        if self.failure.borrow().is_some() {
            // Closing it flushes, and a flush may never come back from a disk that failed.
            drop(std::thread::Builder::new().name("store-close".into()).spawn(move || drop(db)));
        } else if let Some(writer) = writer {
            // A panic of the writer was answered to those who waited; there is nobody left to tell.
            let _ = writer.join();
        }
    }
}

#[async_trait::async_trait]
impl Store for SledStore {
    async fn get(&self, table: Table, key: &str) -> Result<Option<Versioned>, StoreError> {
        guarded(&self.folder, || {
            let document = self.db()?.get(table.key(key)).map_err(|error| from_sled(&self.folder, &error))?;
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
        let (db, folder) = (self.db()?.clone(), self.folder.clone());
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
        if self.failure.borrow().is_some() {
            return Err(StoreError::Closed);
        }
        let (done, outcome) = oneshot::channel();
        let commits = self.commits.as_ref().ok_or(StoreError::Closed)?;
        let made = async {
            commits.send(Commit { changes, done }).await.map_err(|_| StoreError::Closed)?;
            outcome.await.unwrap_or(Err(StoreError::Closed))
        };
        tokio::select! {
            biased;
            made = made => made,
            // The writer may never come back.
            error = self.failure() => Err(error.unwrap_or(StoreError::Closed)),
        }
    }
}
