//! A second model beside the one that answers: on which requests it runs, and how it is kept from standing in anybody's way.
//!
//! A **shadow** runs after the answer has been sent, on one thread of the lowest priority that rests as long as its share of a processor
//! asks for. What finds no room in its short queue is skipped and counted, and so is all that comes while the device is pressed. It has windows of its own, under a lock that no answer waits
//! for. In a **split** the second model answers its share of the requests itself; a request it fails is answered by the incumbent, and
//! counts as failed against it. Whether there is a second model is the updater's decision, and its stage is signed.

mod comparer;
mod follower;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use muster_agent_core::feedback::Place;
use muster_inference::{Images, Tensor};
use muster_shared::bundle::{ModelSignature, TensorSpec};
use muster_shared::ids::Digest;
use muster_shared::messages::PressureLevel;
use muster_shared::sketch::Arm;
use muster_shared::trust::Stage;

pub(crate) use self::comparer::Comparer;
use self::follower::Follower;
use self::worker::{Rest, Worker};
use crate::feedback::{Feedback, LabelWatch, Second};
use crate::host::{Active, ServedModel};
use crate::metrics::BesideOutcome;
use crate::pressure::Pressed;
use crate::samples::Samples;

/// What a shadow may use of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BesideLimits {
    /// Share of one processor, in percent, from 1 to 100.
    pub(crate) max_cpu_percent: u32,
    /// Requests that may wait for it.
    pub(crate) max_queue: usize,
    /// Bytes of tensors that may wait for it.
    pub(crate) max_queue_bytes: usize,
}

impl Default for BesideLimits {
    fn default() -> Self {
        Self { max_cpu_percent: 25, max_queue: 64, max_queue_bytes: 8 * 1024 * 1024 }
    }
}

/// Why a model cannot run beside another.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BesideError {
    /// Nothing answers.
    #[error("no model serves that it could run beside")]
    Alone,
    /// It takes other inputs.
    #[error("it cannot run on the same requests: its {side} {tensor:?} is not the incumbent's")]
    Signature {
        /// Inputs or outputs.
        side: &'static str,
        /// The tensor that differs.
        tensor: String,
    },
    /// It is called otherwise, so callers would not know it.
    #[error("it cannot share the requests of {incumbent:?}: it is called {candidate:?}")]
    Name {
        /// What the incumbent is called.
        incumbent: String,
        /// What it is called.
        candidate: String,
    },
    /// No thread could be started.
    #[error("the system gives no thread for it")]
    Thread(#[source] std::io::Error),
}

/// A request that the incumbent has answered.
pub(crate) struct Answered {
    /// The caller's id, or the one that was made for it.
    pub(crate) id: String,
    /// The device's clock at the answer, in milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
    /// Where the answer is remembered for its label, if it is.
    pub(crate) place: Option<Place>,
    /// What was asked.
    pub(crate) inputs: Vec<Tensor>,
    /// What was measured of the images among it, for the incumbent.
    pub(crate) images: Images,
    /// What the incumbent answered.
    pub(crate) outputs: Vec<Tensor>,
    /// How long its model took.
    pub(crate) run: Duration,
}

impl Answered {
    fn bytes(&self) -> usize {
        self.inputs.iter().chain(&self.outputs).map(|tensor| tensor.data().len()).fold(0, usize::saturating_add)
    }
}

/// A model beside the one that answers. When it is dropped, its thread ends after the request it is at.
pub(crate) struct Beside {
    active: Arc<Active>,
    stage: Stage,
    /// Digest of the incumbent's manifest.
    against: Digest,
    /// The incumbent's labels and the candidate's, where both declare some.
    labels: Option<(Arc<LabelWatch>, Arc<LabelWatch>)>,
    feedback: Feedback,
    shadow: Option<Shadow>,
}

/// What a model that comes to run beside another is given.
pub(crate) struct Surroundings {
    /// What it may use of the device.
    pub(crate) limits: BesideLimits,
    /// What labels are joined with.
    pub(crate) feedback: Feedback,
    /// What requests are offered to in which the two disagree.
    pub(crate) samples: Option<Samples>,
    /// How hard pressed the device is.
    pub(crate) pressed: Pressed,
}

struct Shadow {
    queue: SyncSender<Answered>,
    waiting_bytes: Arc<AtomicUsize>,
    max_waiting_bytes: usize,
    rest: Arc<Rest>,
    pressed: Pressed,
}

impl Beside {
    /// Lets `active` run beside `incumbent` as `stage` says.
    ///
    /// # Errors
    /// [`BesideError`] when the two cannot have the same requests.
    pub(crate) fn start(
        active: Arc<Active>,
        incumbent: &Arc<Active>,
        stage: Stage,
        surroundings: Surroundings,
    ) -> Result<Self, BesideError> {
        let feedback = surroundings.feedback.clone();
        let shadow = match &stage {
            Stage::Shadow { .. } => Some(Shadow::start(&active, incumbent, surroundings)?),
            Stage::Split { .. } | Stage::Serve => None,
        };
        let labels = incumbent.labels.clone().zip(active.labels.clone());
        Ok(Self { active, stage, against: incumbent.served.manifest, labels, feedback, shadow })
    }

    /// Whether `candidate` can have the requests of `incumbent` as `stage` says.
    ///
    /// # Errors
    /// [`BesideError`] with what differs.
    pub(crate) fn check(candidate: &ServedModel, incumbent: &ServedModel, stage: &Stage) -> Result<(), BesideError> {
        let (new, old): (&ModelSignature, &ModelSignature) = (&candidate.signature, &incumbent.signature);
        alike("input", &new.inputs, &old.inputs)?;
        if matches!(stage, Stage::Split { .. }) {
            alike("output", &new.outputs, &old.outputs)?;
            let (new, old) = (candidate.bundle.name.as_str(), incumbent.bundle.name.as_str());
            if new != old {
                return Err(BesideError::Name { incumbent: old.to_owned(), candidate: new.to_owned() });
            }
        }
        Ok(())
    }

    /// The model, if it answers the request known by `key` in place of `incumbent`.
    pub(crate) fn answers(&self, key: &str, incumbent: &Digest) -> Option<&Arc<Active>> {
        let is_its_own = matches!(self.stage, Stage::Split { .. }) && self.against == *incumbent;
        (is_its_own && self.stage.falls_to(&self.active.served.manifest, key)).then_some(&self.active)
    }

    /// Whether requests are dealt out by a key at all.
    pub(crate) fn is_split(&self) -> bool {
        matches!(self.stage, Stage::Split { .. })
    }

    /// Whether the request known by `key`, which `incumbent` answers, is one to run again.
    pub(crate) fn shadows(&self, key: &str, incumbent: &Digest) -> bool {
        self.shadow.is_some() && self.against == *incumbent && self.stage.falls_to(&self.active.served.manifest, key)
    }

    /// What the candidate has to do with the answer to the request known by `key`, which `answered_by` gave.
    pub(crate) fn second(&self, key: &str, answered_by: &Arc<Active>) -> Second {
        let Some((incumbent, candidate)) = self.labels.clone() else { return Second::None };
        let by_candidate = Arc::ptr_eq(answered_by, &self.active);
        let by_incumbent = answered_by.served.manifest == self.against;
        match &self.stage {
            Stage::Shadow { .. } if self.shadows(key, &answered_by.served.manifest) => Second::Awaited(candidate),
            Stage::Split { .. } if by_candidate => Second::Shares { incumbent, candidate, arm: Arm::Candidate },
            Stage::Split { .. } if by_incumbent => Second::Shares { incumbent, candidate, arm: Arm::Incumbent },
            Stage::Shadow { .. } | Stage::Split { .. } | Stage::Serve => Second::None,
        }
    }

    /// Puts an answered request into the queue, or counts it as skipped: where there is no room, and while the device is pressed. Never
    /// waits for the shadow.
    pub(crate) fn run_again(&self, answered: Answered) {
        let Some(shadow) = &self.shadow else { return };
        let place = answered.place;
        let is_paused = shadow.pressed.level() > PressureLevel::None;
        if is_paused || !shadow.offer(answered) {
            self.active.watch.skip(is_paused);
            let outcome = if is_paused { BesideOutcome::Paused } else { BesideOutcome::Skipped };
            self.feedback.metrics().beside(outcome, None);
            if let Some(place) = place {
                self.feedback.no_second_answer(place);
            }
        }
    }

    /// The model.
    pub(crate) fn active(&self) -> &Arc<Active> {
        &self.active
    }

    /// As what it runs.
    pub(crate) fn stage(&self) -> &Stage {
        &self.stage
    }
}

impl Shadow {
    fn start(
        active: &Arc<Active>,
        incumbent: &Arc<Active>,
        Surroundings { limits, feedback, samples, pressed }: Surroundings,
    ) -> Result<Self, BesideError> {
        let (queue, waiting) = sync_channel(limits.max_queue.max(1));
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let rest = Arc::new(Rest::default());
        let metrics = feedback.metrics().clone();
        let (old, new) = (Arc::clone(incumbent), Arc::clone(active));
        let follower = Follower { incumbent: old, candidate: new, feedback, samples };
        let worker = Worker {
            active: Arc::clone(active),
            comparer: Comparer::new(&incumbent.served, &active.served),
            following: follower.start().map_err(BesideError::Thread)?,
            metrics,
            waiting,
            waiting_bytes: Arc::clone(&waiting_bytes),
            rest: Arc::clone(&rest),
            max_cpu_percent: limits.max_cpu_percent,
            pressed: pressed.clone(),
        };
        let spawned = std::thread::Builder::new().name("shadow".to_owned()).spawn(move || worker.run());
        // It is not waited for: a run under way may take as long as it likes.
        drop(spawned.map_err(BesideError::Thread)?);
        Ok(Self { queue, waiting_bytes, max_waiting_bytes: limits.max_queue_bytes, rest, pressed })
    }

    /// Whether there was room for it.
    fn offer(&self, answered: Answered) -> bool {
        let bytes = answered.bytes();
        let before = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let has_room = before.saturating_add(bytes) <= self.max_waiting_bytes;
        let taken = has_room
            && match self.queue.try_send(answered) {
                Ok(()) => true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
            };
        if !taken {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        taken
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.rest.end();
    }
}

fn alike(side: &'static str, new: &[TensorSpec], old: &[TensorSpec]) -> Result<(), BesideError> {
    let same = |one: &TensorSpec, other: &TensorSpec| {
        (&one.name, one.datatype, one.shape.len()) == (&other.name, other.datatype, other.shape.len())
    };
    // Outputs are asked for by their place, so their order counts; inputs go by name.
    let differs = match side {
        "output" => new.iter().zip(old).find(|(one, other)| !same(one, other)).map(|(one, _)| one),
        _ => new.iter().find(|one| !old.iter().any(|other| same(one, other))),
    };
    let missing = old.iter().find(|other| !new.iter().any(|one| one.name == other.name));
    match differs.or(missing) {
        Some(tensor) => Err(BesideError::Signature { side, tensor: tensor.name.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
