//! Which model answers requests, and how many at once.
//!
//! A request takes the model that is current when it arrives and keeps it to its end, so that a switch drops nothing and
//! no answer is a mixture. The host decides neither when to switch (`updater`) nor what a request means (`serve`); what it counts
//! goes through [`Monitor`].

#[cfg(test)]
pub(crate) mod fixtures;
mod pace;

use std::sync::{Arc, Once, OnceLock, PoisonError, RwLock};

use muster_inference::Model;
use muster_inference::quality::QualityGate;
use muster_shared::bundle::ModelSignature;
use muster_shared::ids::{BundleRef, Digest};
use muster_shared::messages::{InstalledBundle, RequestCounts};
use muster_shared::profile::Profile;
use muster_shared::trust::Stage;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

pub(crate) use self::pace::{Pace, Shapes};
use crate::beside::{Beside, BesideError, BesideLimits, Surroundings};
use crate::feedback::{Feedback, LabelWatch};
use crate::heartbeat::{Begun, UnderWay};
use crate::monitor::{ModelWatch, Monitor};
use crate::pressure::Pressed;
use crate::samples::Samples;

/// How much work the host takes on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostLimits {
    /// Requests that are computed at once; at least one is.
    pub(crate) max_concurrency: usize,
    /// Requests that may wait for their turn.
    pub(crate) max_queue: usize,
}

/// A loaded model and what is known about it.
pub(crate) struct ServedModel {
    /// Its bundle's name and version.
    pub(crate) bundle: BundleRef,
    /// Digest of its manifest.
    pub(crate) manifest: Digest,
    /// The generation under which it serves.
    pub(crate) generation: u64,
    /// What it takes and gives.
    pub(crate) signature: ModelSignature,
    /// What is watched, and against which reference.
    pub(crate) profile: Arc<Profile>,
    /// What inputs are held against; nothing where its bundle has no data schema.
    pub(crate) quality: Option<Arc<QualityGate>>,
    /// The model itself.
    pub(crate) model: Arc<dyn Model>,
}

impl ServedModel {
    /// What it is called in reports.
    pub(crate) fn installed(&self) -> InstalledBundle {
        InstalledBundle { manifest: self.manifest, bundle: self.bundle.clone(), generation: self.generation }
    }
}

/// A model while it serves.
pub(crate) struct Active {
    /// The model.
    pub(crate) served: Arc<ServedModel>,
    /// What its requests are counted against.
    pub(crate) watch: Arc<ModelWatch>,
    /// How its labels are read; none where its bundle declares none.
    pub(crate) labels: Option<Arc<LabelWatch>>,
    /// What they are counted with.
    pub(crate) monitor: Monitor,
    /// How long it takes.
    pub(crate) pace: Pace,
    /// Its first failure.
    pub(crate) first_failure: Once,
    /// When it came to serve, in milliseconds since the Unix epoch.
    pub(crate) since_ms: u64,
}

impl Active {
    fn new(served: Arc<ServedModel>, watch: Arc<ModelWatch>, monitor: Monitor, since_ms: u64) -> Self {
        let labels = LabelWatch::new(&served, &watch, &monitor);
        Self { served, watch, monitor, labels, pace: Pace::default(), first_failure: Once::new(), since_ms }
    }
}

/// The permission to compute one request; another may when it is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "it is held, not read")]
pub(crate) struct Turn {
    /// Given up first, so that whoever gets the permit next finds a place.
    begun: Option<UnderWay>,
    permit: OwnedSemaphorePermit,
}

/// Why a request did not get its [`Turn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{workers} requests are being computed and {queue} are waiting, which is as many as may: try again later")]
pub(crate) struct Busy {
    /// Requests that are computed at once.
    workers: usize,
    /// Requests that may wait.
    queue: usize,
}

/// How busy the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Requests being computed.
    pub(crate) running: usize,
    /// Requests waiting for their turn.
    pub(crate) waiting: usize,
}

/// Holds the model that answers requests. Cloning gives another handle to the same host.
#[derive(Clone)]
pub(crate) struct ModelHost {
    inner: Arc<Inner>,
}

struct Inner {
    /// Locked only to clone or replace the pointer.
    active: RwLock<Option<Arc<Active>>>,
    limits: HostLimits,
    workers: Arc<Semaphore>,
    /// When each request that is computed got its turn.
    turns: Begun,
    /// The one request that may be computed on a thread that drives connections.
    here: Semaphore,
    queue: Semaphore,
    monitor: Monitor,
    feedback: Feedback,
    /// Locked only to clone or replace the pointer.
    beside: RwLock<Option<Arc<Beside>>>,
    beside_limits: BesideLimits,
    /// Its windows have a lock of their own, so that answering never waits for a thread of low priority.
    beside_monitor: Monitor,
    samples: OnceLock<Samples>,
    pressed: Pressed,
}

impl ModelHost {
    /// A host without a model, with the usual limits for one beside it.
    #[cfg(test)]
    pub(crate) fn new(limits: HostLimits, monitor: Monitor, feedback: Feedback) -> Self {
        Self::with_beside(limits, BesideLimits::default(), monitor, feedback)
    }

    /// A host without a model. One beside the one that answers may use what `beside_limits` say.
    pub(crate) fn with_beside(
        limits: HostLimits,
        beside_limits: BesideLimits,
        monitor: Monitor,
        feedback: Feedback,
    ) -> Self {
        let limits = HostLimits {
            // `drained` takes all permits at once, which are counted in 32 bits.
            max_concurrency: limits.max_concurrency.clamp(1, 65_536),
            max_queue: limits.max_queue.min(Semaphore::MAX_PERMITS),
        };
        Self {
            inner: Arc::new(Inner {
                active: RwLock::new(None),
                limits,
                workers: Arc::new(Semaphore::new(limits.max_concurrency)),
                turns: Begun::new(limits.max_concurrency),
                here: Semaphore::new(1),
                queue: Semaphore::new(limits.max_queue),
                beside: RwLock::new(None),
                beside_limits,
                beside_monitor: Monitor::new(monitor.window_ms()),
                monitor,
                feedback,
                samples: OnceLock::new(),
                pressed: Pressed::default(),
            }),
        }
    }

    /// Lets `model` answer every request that arrives from now on. Requests under way are finished by the model they
    /// started with.
    pub(crate) fn activate(&self, model: ServedModel, now_ms: u64) {
        let served = Arc::new(model);
        let watch = Arc::new(ModelWatch::new(&served));
        let next = Arc::new(Active::new(served, Arc::clone(&watch), self.inner.monitor.clone(), now_ms));
        let mut active = self.inner.active.write().unwrap_or_else(PoisonError::into_inner);
        self.inner.monitor.begin(&watch, now_ms);
        let before = active.replace(next);
        drop(active);
        // Freeing a model can take long: not under the lock.
        drop(before);
    }

    /// Lets no model answer from now on. Requests under way are finished.
    pub(crate) fn deactivate(&self, now_ms: u64) {
        let mut active = self.inner.active.write().unwrap_or_else(PoisonError::into_inner);
        self.inner.monitor.unwatch(now_ms);
        let before = active.take();
        drop(active);
        drop(before);
    }

    /// Lets `model` run beside the one that answers, as `stage` says, in place of one that does already.
    ///
    /// # Errors
    /// [`BesideError`] when the two cannot have the same requests; what ran beside before goes on.
    pub(crate) fn run_beside(&self, model: ServedModel, stage: Stage, now_ms: u64) -> Result<(), BesideError> {
        let incumbent = self.active().ok_or(BesideError::Alone)?;
        Beside::check(&model, &incumbent.served, &stage)?;
        let served = Arc::new(model);
        let monitor = self.inner.beside_monitor.clone();
        let watch = Arc::new(ModelWatch::beside(&served, incumbent.served.manifest));
        monitor.begin(&watch, now_ms);
        let active = Arc::new(Active::new(served, watch, monitor, now_ms));
        let surroundings = Surroundings {
            limits: self.inner.beside_limits,
            feedback: self.inner.feedback.clone(),
            samples: self.inner.samples.get().cloned(),
            pressed: self.inner.pressed.clone(),
        };
        let beside = Arc::new(Beside::start(active, &incumbent, stage, surroundings)?);
        let before = self.inner.beside.write().unwrap_or_else(PoisonError::into_inner).replace(beside);
        passing!(BesideBegun);
        drop(before);
        Ok(())
    }

    /// Lets no model run beside the one that answers.
    pub(crate) fn end_beside(&self, now_ms: u64) {
        let before = self.inner.beside.write().unwrap_or_else(PoisonError::into_inner).take();
        self.inner.beside_monitor.unwatch(now_ms);
        if before.is_some() {
            passing!(BesideEnded);
        }
        drop(before);
    }

    /// The model that runs beside the one that answers.
    pub(crate) fn beside(&self) -> Option<Arc<Beside>> {
        self.inner.beside.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the requests of a model beside the one that answers are counted with.
    pub(crate) fn beside_monitor(&self) -> &Monitor {
        &self.inner.beside_monitor
    }

    /// The model that answers requests.
    pub(crate) fn current(&self) -> Option<Arc<ServedModel>> {
        self.active().map(|active| Arc::clone(&active.served))
    }

    /// Requests the current model had since it was activated.
    pub(crate) fn counts(&self) -> RequestCounts {
        self.inner.monitor.counts_since_watch()
    }

    /// The model that answers requests, with what belongs to serving it.
    pub(crate) fn active(&self) -> Option<Arc<Active>> {
        self.inner.active.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What requests are counted with.
    pub(crate) fn monitor(&self) -> &Monitor {
        &self.inner.monitor
    }

    /// What labels are joined with.
    pub(crate) fn feedback(&self) -> &Feedback {
        &self.inner.feedback
    }

    /// Offers every inference that is answered to `samples` from now on.
    pub(crate) fn offer_to(&self, samples: Samples) {
        // Set once, at the start.
        let _ = self.inner.samples.set(samples);
    }

    /// What answered inferences are offered to, while any collection takes some.
    pub(crate) fn open_samples(&self) -> Option<&Samples> {
        self.inner.samples.get().filter(|samples| samples.is_open())
    }

    /// How hard pressed the device is: a model beside the one that answers rests meanwhile.
    pub(crate) fn pressed(&self) -> &Pressed {
        &self.inner.pressed
    }

    /// The limits in force.
    pub(crate) fn limits(&self) -> HostLimits {
        self.inner.limits
    }

    /// How busy the host is.
    pub(crate) fn load(&self) -> Load {
        let HostLimits { max_concurrency, max_queue } = self.inner.limits;
        Load {
            running: max_concurrency.saturating_sub(self.inner.workers.available_permits()),
            waiting: max_queue.saturating_sub(self.inner.queue.available_permits()),
        }
    }

    /// Waits for the permission to compute a request, in the order of asking.
    ///
    /// # Errors
    /// [`Busy`], at once, when as many wait already as may.
    pub(crate) async fn turn(&self) -> Result<Turn, Busy> {
        let HostLimits { max_concurrency, max_queue } = self.inner.limits;
        let busy = Busy { workers: max_concurrency, queue: max_queue };
        if let Ok(permit) = Arc::clone(&self.inner.workers).try_acquire_owned() {
            return Ok(self.begin(permit));
        }
        let _place = self.inner.queue.try_acquire().map_err(|_| busy)?;
        let permit = Arc::clone(&self.inner.workers).acquire_owned().await.map_err(|_| busy)?;
        Ok(self.begin(permit))
    }

    fn begin(&self, permit: OwnedSemaphorePermit) -> Turn {
        Turn { begun: self.inner.turns.begin(), permit }
    }

    /// The permission to compute a request on the thread that read it, for as long as it is held. One request has it at most, so that
    /// of two threads one always drives connections, however long an inference takes that was taken for a quick one.
    pub(crate) fn here(&self) -> Option<SemaphorePermit<'_>> {
        self.inner.here.try_acquire().ok()
    }

    /// When the request got its turn that has been computing the longest, by the clock of [`crate::heartbeat`].
    pub(crate) fn oldest_turn_ms(&self) -> Option<u64> {
        self.inner.turns.oldest_ms()
    }

    /// Waits until no request is being computed or counted.
    pub(crate) async fn drained(&self) {
        let all = u32::try_from(self.inner.limits.max_concurrency).unwrap_or(u32::MAX);
        drop(self.inner.workers.acquire_many(all).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(max_concurrency: usize, max_queue: usize) -> ModelHost {
        let monitor = Monitor::new(1_000);
        ModelHost::new(HostLimits { max_concurrency, max_queue }, monitor, Feedback::for_tests())
    }

    #[tokio::test]
    async fn as_many_run_and_wait_as_may_and_the_next_is_turned_away() {
        let host = host(1, 1);
        let first = host.turn().await.unwrap();
        let waiting = tokio::spawn({
            let host = host.clone();
            async move { host.turn().await }
        });
        while host.load().waiting == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(host.turn().await.unwrap_err(), Busy { workers: 1, queue: 1 });
        assert_eq!(host.load(), Load { running: 1, waiting: 1 });
        drop(first);
        let second = waiting.await.unwrap().unwrap();
        assert_eq!(host.load(), Load { running: 1, waiting: 0 });
        drop(second);
        host.drained().await;
        assert_eq!(host.load(), Load { running: 0, waiting: 0 });
    }

    #[tokio::test]
    async fn a_caller_who_gives_up_leaves_the_queue() {
        let host = host(1, 1);
        let first = host.turn().await.unwrap();
        let waiting = tokio::spawn({
            let host = host.clone();
            async move { host.turn().await }
        });
        while host.load().waiting == 0 {
            tokio::task::yield_now().await;
        }
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        assert_eq!(host.load().waiting, 0);
        drop(first);
    }

    #[tokio::test]
    async fn a_limit_of_zero_still_serves_one() {
        assert!(host(0, 0).turn().await.is_ok());
    }
}
