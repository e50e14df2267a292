//! Samples for retraining: which inferences are kept, sealed, for the collections this device was told of and its owner allows.
//!
//! Three threads of work share one state. An inference is offered once its answer is known: that decides and no more. A thread of its own
//! seals what was accepted and writes it ([`keeper`], [`store`]). A task uploads it when the collection has ended ([`upload`]). What is
//! told to the device has been verified by the updater before it comes here; here it is only held against what came before.
//! The choice itself is `muster_agent_core::reservoir`'s. No input is ever written in the clear.

mod keeper;
mod offer;
mod orders;
mod outlook;
mod store;
#[cfg(test)]
mod tests;
mod upload;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use muster_agent_core::reservoir::{Random, Reservoir};
use muster_shared::collection::{CollectionProgress, CollectionStage, SamplesReport, Wanted};
use muster_shared::ids::{CollectionId, DeviceId, Digest};
use tokio::sync::Notify;

use self::offer::Job;
pub(crate) use self::offer::Offered;
use self::outlook::Outlook;
use self::store::Store;
pub(crate) use self::upload::Uploader;
use crate::config::SamplesConfig;
use crate::time::{EffectiveTime, Steady, wall_ms};

/// Samples of one device. Cloning gives another handle to the same.
#[derive(Clone)]
pub(crate) struct Samples {
    inner: Arc<Inner>,
}

struct Inner {
    config: SamplesConfig,
    folder: PathBuf,
    time: EffectiveTime,
    clock: Steady,
    /// Whether any collection takes samples: all that an inference looks at while none does.
    is_open: AtomicBool,
    hot: Mutex<Hot>,
    /// Told when there is something for the keeper.
    work: Condvar,
    /// Held by whoever changes what collections there are or moves samples between queue and disk; always locked before the other two, and
    /// never while an inference is offered.
    turn: Mutex<()>,
    /// What is on disk, locked before `hot`.
    disk: Mutex<BTreeMap<CollectionId, Store>>,
    /// Told when a collection may be uploaded.
    uploads: Notify,
    /// Something an operator should hear soon.
    has_news: AtomicBool,
    reported_ms: AtomicU64,
    on_news: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// What is held for moments only.
#[derive(Default)]
struct Hot {
    device: Option<DeviceId>,
    /// The epoch of the director's keys and the generation of the statement in force.
    standing: (u64, u64),
    statement: Vec<Wanted>,
    collections: Vec<Collection>,
    queue: VecDeque<Job>,
    queued_bytes: usize,
    outlooks: Vec<(Digest, Arc<Outlook>)>,
    reported: SamplesReport,
    stops: bool,
}

/// A collection on this device.
struct Collection {
    wanted: Wanted,
    stage: CollectionStage,
    reason: Option<String>,
    reservoir: Reservoir,
    /// Decides whether an inference is part of a random share.
    random: Random,
    /// Accepted, and neither placed nor given up yet.
    under_way: u64,
    dropped: u64,
    too_large: u64,
    lost: u64,
    uploaded: u64,
    /// It ends then at the latest, by the clock that does not jump: the other may stand still.
    ends_at_ms: u64,
}

impl Collection {
    fn progress(&self) -> CollectionProgress {
        CollectionProgress {
            collection: self.wanted.collection.clone(),
            stage: self.stage,
            reason: self.reason.clone(),
            matched: self.reservoir.seen(),
            held: self.reservoir.held(),
            held_bytes: self.reservoir.bytes(),
            dropped: self.dropped,
            too_large: self.too_large,
            lost: self.lost,
            uploaded: self.uploaded,
        }
    }
}

impl Hot {
    fn collection(&mut self, id: &CollectionId) -> Option<&mut Collection> {
        self.collections.iter_mut().find(|collection| collection.wanted.collection == *id)
    }
}

/// The keeper's thread while it runs.
pub(crate) struct Keeping {
    samples: Samples,
    thread: JoinHandle<()>,
}

impl Keeping {
    /// Writes what waits and ends the thread.
    pub(crate) fn stop(self) {
        self.samples.hot().stops = true;
        self.samples.inner.work.notify_all();
        if self.thread.join().is_err() {
            tracing::error!("the keeper of samples ended with a panic");
        }
    }
}

impl Samples {
    /// Samples below `data_dir` as `config` allows. Nothing is read or written yet.
    pub(crate) fn new(data_dir: &std::path::Path, config: SamplesConfig, time: EffectiveTime) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                folder: data_dir.join("samples"),
                time,
                clock: Steady::start(),
                is_open: AtomicBool::new(false),
                hot: Mutex::default(),
                work: Condvar::new(),
                turn: Mutex::default(),
                disk: Mutex::default(),
                uploads: Notify::new(),
                has_news: AtomicBool::new(false),
                reported_ms: AtomicU64::new(0),
                on_news: OnceLock::new(),
            }),
        }
    }

    /// Starts the thread that seals and writes.
    ///
    /// # Errors
    /// What the system says when it gives none.
    pub(crate) fn start(&self) -> std::io::Result<Keeping> {
        let samples = self.clone();
        let thread = std::thread::Builder::new().name("samples".to_owned()).spawn(move || keeper::run(&samples))?;
        Ok(Keeping { samples: self.clone(), thread })
    }

    /// Calls `wake` whenever there is something to report.
    pub(crate) fn on_news(&self, wake: impl Fn() + Send + Sync + 'static) {
        // Set once, at the start.
        let _ = self.inner.on_news.set(Box::new(wake));
    }

    fn hot(&self) -> MutexGuard<'_, Hot> {
        self.inner.hot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.inner.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self) -> MutexGuard<'_, BTreeMap<CollectionId, Store>> {
        self.inner.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time to hold limits against, in milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64 {
        wall_ms().max(self.inner.time.floor_ms())
    }

    /// Finds out anew whether inferences are to be looked at.
    fn refresh(&self, hot: &Hot) {
        let is_open = hot.collections.iter().any(|collection| collection.stage == CollectionStage::Sampling);
        self.inner.is_open.store(is_open, Ordering::Release);
    }

    fn tell(&self) {
        self.inner.has_news.store(true, Ordering::Release);
        if let Some(wake) = self.inner.on_news.get() {
            wake();
        }
    }

    /// How this device stands with its collections.
    pub(crate) fn report(&self) -> SamplesReport {
        let mut hot = self.hot();
        let report = SamplesReport {
            generation: hot.standing.1,
            allowed: self.inner.config.allow,
            collections: hot.collections.iter().map(Collection::progress).collect(),
        };
        // A device that was never told of any, and allows none, has nothing to say.
        let report = if report.generation == 0 && !report.allowed { SamplesReport::default() } else { report };
        hot.reported = report.clone();
        drop(hot);
        self.inner.has_news.store(false, Ordering::Release);
        self.inner.reported_ms.store(self.inner.clock.now_ms(), Ordering::Release);
        report
    }

    /// Whether [`Self::report`] has something to say that is worth a message: at once what an operator waits for, and mere counts
    /// now and then.
    pub(crate) fn has_news(&self) -> bool {
        if self.inner.has_news.load(Ordering::Acquire) {
            return true;
        }
        let since_ms = self.inner.clock.now_ms().saturating_sub(self.inner.reported_ms.load(Ordering::Acquire));
        if since_ms < self.inner.config.report_ms {
            return false;
        }
        let hot = self.hot();
        let progress = hot.collections.iter().map(Collection::progress);
        !progress.eq(hot.reported.collections.iter().cloned())
    }
}
