//! The one that makes all commits: holds their expectations against the store, seals them, and makes them durable together.

use std::collections::HashMap;
use std::path::PathBuf;

use tokio::sync::{mpsc, oneshot};

use super::disk::Disk;
use super::patience::Work;
use super::seal::{self, Counter, Seal, term};
use super::{from_io, from_sled, guarded, split};
use crate::store::{Change, Expect, StoreError};

/// Commits that share one flush at most.
const MAX_GROUP: usize = 256;

/// Changes to be made, and who waits for it.
pub(super) struct Commit {
    pub(super) changes: Vec<Change>,
    pub(super) done: oneshot::Sender<Result<(), StoreError>>,
}

/// What makes the commits, in a thread of its own.
pub(super) struct Writer {
    /// Dropped before what may hang when it is closed.
    pub(super) work: Work,
    pub(super) db: sled::Db,
    pub(super) folder: PathBuf,
    pub(super) seal: Seal,
    pub(super) counter: Counter,
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
    pub(super) fn run(&mut self, disk: &mut Disk, mut queue: mpsc::Receiver<Commit>) -> Result<(), StoreError> {
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
