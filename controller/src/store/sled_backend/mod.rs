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

use std::collections::HashMap;
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
use self::patience::Work;
use self::seal::{Counter, Seal, term};
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
/// With less than this sled cannot begin another piece of its log.
const LEAST_ROOM_BYTES: u64 = 1024 * 1024;

/// How often a store that is in use is tried, and how long is waited in between.
const OPEN_TRIES: u32 = 5;
const OPEN_PAUSE: Duration = Duration::from_millis(100);

struct Commit {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

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
                    let error =
                        no_room().err().unwrap_or(StoreError::Io { folder: folder.display().to_string(), reason });
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

/// What makes the commits, in a thread of its own.
struct Writer {
    /// Dropped before what may hang when it is closed.
    work: Work,
    db: sled::Db,
    folder: PathBuf,
    seal: Seal,
    counter: Counter,
}

/// What a batch comes to.
struct Planned {
    batch: sled::Batch,
    seal: Seal,
}

/// A key that a batch has changed already.
#[derive(Clone, Copy)]
struct Changed {
    version: u64,
    /// What it adds to the sum.
    term: u128,
}

impl Writer {
    /// Ends with the first write that failed: nobody knows then what is on the disk, and it must not be claimed later.
    fn run(&mut self, disk: &mut Disk, mut queue: mpsc::Receiver<Commit>) -> Result<(), StoreError> {
        let folder = self.folder.clone();
        while let Some(first) = queue.blocking_recv() {
            self.work.begins();
            let mut applied = Vec::new();
            let mut failed = Ok(());
            let mut next = Some(first);
            while let Some(commit) = next {
                let Commit { changes, done } = commit;
                if let Err(error) = disk.check_room(&changes) {
                    // Who waits may have gone; then nobody wants to know.
                    drop(done.send(Err(error)));
                } else {
                    match guarded(&folder, || self.plan(&changes)) {
                        Ok(planned) => {
                            failed = guarded(&folder, || self.apply(planned));
                            applied.push(done);
                        }
                        Err(error @ StoreError::Conflict { .. }) => drop(done.send(Err(error))),
                        // sled answers reads with the error of a write that failed in the background.
                        Err(error) => {
                            failed = Err(error);
                            applied.push(done);
                        }
                    }
                }
                next = if failed.is_ok() && applied.len() < MAX_GROUP { queue.try_recv().ok() } else { None };
            }
            if applied.is_empty() {
                self.work.is_done();
                continue;
            }
            let synced = failed.and_then(|()| guarded(&folder, || self.sync(disk)));
            self.work.is_done();
            for done in applied {
                let _ = done.send(synced.clone());
            }
            synced?;
        }
        // Best effort: an old number is right as well.
        let _ = self.counter.sync();
        Ok(())
    }

    fn sync(&self, disk: &mut Disk) -> Result<(), StoreError> {
        disk.sync(&self.db)?;
        self.counter.set(self.seal.commits).map_err(|error| from_io(&self.folder, &error))
    }

    /// Holds the expectations against what is stored. Nothing is changed.
    fn plan(&self, changes: &[Change]) -> Result<Planned, StoreError> {
        let mut batch = sled::Batch::default();
        let mut sum = self.seal.sum;
        let mut changed: HashMap<Vec<u8>, Changed> = HashMap::new();
        for change in changes {
            let (Change::Put { table, key, expect, .. } | Change::Delete { table, key, expect }) = change;
            let full_key = table.key(key);
            let stored = self.db.get(&full_key).map_err(|error| from_sled(&self.folder, &error))?;
            let stored = match &stored {
                Some(document) => {
                    Changed { version: split(&self.folder, document)?.version, term: term(&full_key, document) }
                }
                None => Changed { version: 0, term: 0 },
            };
            let met = match expect {
                Expect::Anything => true,
                Expect::Absent => stored.version == 0,
                Expect::Version(version) => stored.version == *version && *version != 0,
            };
            if !met {
                return Err(StoreError::Conflict { table: *table, key: key.clone() });
            }
            let before = changed.get(&full_key).copied().unwrap_or(stored);
            let after = match change {
                Change::Put { value, .. } => {
                    let version = before.version.saturating_add(1);
                    let document = [version.to_be_bytes().as_slice(), value].concat();
                    let term = term(&full_key, &document);
                    batch.insert(full_key.as_slice(), document);
                    Changed { version, term }
                }
                Change::Delete { .. } => {
                    batch.remove(full_key.as_slice());
                    Changed { version: 0, term: 0 }
                }
            };
            sum = sum.wrapping_sub(before.term).wrapping_add(after.term);
            changed.insert(full_key, after);
        }
        let seal = Seal { commits: self.seal.commits.saturating_add(1), sum };
        batch.insert(seal::KEY, seal.to_bytes());
        Ok(Planned { batch, seal })
    }

    /// Makes all changes. After an error some of them may have been made.
    fn apply(&mut self, planned: Planned) -> Result<(), StoreError> {
        self.db.apply_batch(planned.batch).map_err(|error| from_sled(&self.folder, &error))?;
        self.seal = planned.seal;
        Ok(())
    }
}
