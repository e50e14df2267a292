//! What operators may do to a rollout, and when. Devices are told at the next plan.

use muster_shared::ids::BundleRef;
use muster_shared::limits::bounded_text;
use muster_shared::rollout::RolloutStatus;
use muster_shared::trust::Track;

use crate::fleet::Predictions;
use crate::recall;
use crate::rollout::{BundleFacts, Errand, Rollout, Target};

/// What an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OperatorAction {
    /// No further device gets the bundle; those that have it keep it.
    Pause,
    /// Goes on, with the wave's longest duration anew. Where the comparison of the wave's devices showed neither, this decides that it passes.
    Resume,
    /// Stops at once and for good; devices keep what they have, and are called back from a switch that they wait for. What runs beside another on them ends, which takes until they say so: that
    /// is on the way back, where another abort waits no longer. Once devices serve what they ran as shadow, the shadows left go on, too.
    Abort,
    /// Every device goes back to what it ran before.
    Rollback,
}

impl OperatorAction {
    /// The action as the API spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Abort => "abort",
            Self::Rollback => "rollback",
        }
    }

    const fn done(self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::Resume => "resumed",
            Self::Abort => "stopped",
            Self::Rollback => "rollback ordered",
        }
    }

    const fn allowed_from(self) -> &'static str {
        match self {
            Self::Pause => "ready or running",
            Self::Resume => "paused",
            Self::Abort => "unfinished",
            Self::Rollback => "ready, running, paused, completed or stopped",
        }
    }
}

/// Why an action was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{} is not possible: the rollout is {status}, and must be {}", action.as_str(), action.allowed_from())]
pub struct ActionError {
    /// What was asked for.
    pub action: OperatorAction,
    /// How the rollout stands.
    pub status: RolloutStatus,
}

/// Why devices cannot be taken back to a bundle that was named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RollbackError {
    /// The state does not allow a way back.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// It is the bundle that is taken back.
    #[error("{0} is what the rollout brought: name the bundle to go back to")]
    Itself(BundleRef),
    /// What runs beside another is ended, and devices go on with what they serve.
    #[error(
        "the rollout runs its bundle beside another: its end leaves devices with what they serve, so there is nothing to go back to; roll back without naming a bundle"
    )]
    Beside,
    /// It has told devices to go back already.
    #[error(
        "devices of the rollout are on their way back already: let it end without naming a bundle, then bring the bundle out with a rollout"
    )]
    Underway,
    /// A model takes no program's place, nor a program a model's.
    #[error("the rollout is about the {track} of devices, and {named} is none: name a bundle of the same kind")]
    Track {
        /// What the rollout is about.
        track: Track,
        /// What was named.
        named: BundleRef,
    },
}

/// Whether a rollout that stands so is planned and told of while the fleet is stopped: the way back alone is, which the stop left or an
/// operator has ordered since, and what calls devices of a stopped one back. What has completed brings the bundle to no further device meanwhile.
#[must_use]
pub fn goes_on_in_a_stop(status: RolloutStatus) -> bool {
    match status {
        RolloutStatus::RollingBack | RolloutStatus::RolledBack | RolloutStatus::Stopped => true,
        RolloutStatus::Draft
        | RolloutStatus::WaitingForApproval
        | RolloutStatus::Ready
        | RolloutStatus::Running
        | RolloutStatus::Paused
        | RolloutStatus::Completed => false,
    }
}

impl Rollout {
    /// The rollout after `actor` did `action`.
    ///
    /// # Errors
    /// [`ActionError`] when the rollout stands so that the action has no meaning.
    pub fn apply(
        &self,
        action: OperatorAction,
        actor: &str,
        reason: Option<&str>,
        now_ms: u64,
    ) -> Result<Self, ActionError> {
        let status = self.after(action).ok_or(ActionError { action, status: self.status })?;
        let mut next = self.clone();
        next.status = status;
        next.status_reason = match reason.map(str::trim).filter(|reason| !reason.is_empty()) {
            Some(reason) => bounded_text(&format!("{} by {actor}: {reason}", action.done())),
            None => bounded_text(&format!("{} by {actor}", action.done())),
        };
        next.updated_at_ms = now_ms;
        next.outstanding = status == RolloutStatus::Stopped && recall::is_needed(&next);
        if action == OperatorAction::Resume
            && let Some(wave) = next.waves.get_mut(next.current_wave as usize)
            && wave.started_at_ms.is_some()
        {
            wave.clock_from_ms = Some(now_ms);
            // More time shows nothing more of the same devices: whoever lets an undecided wave go on decides it.
            if let Some(gate) = wave.gate.as_mut().filter(|gate| gate.is_undecided()) {
                gate.waived_by = Some(bounded_text(actor));
            }
            next.measure_anew();
        }
        Ok(next)
    }

    /// The rollout after `actor` ordered its devices back to one bundle, whatever each of them ran before. Those that cannot run it go back
    /// to that all the same.
    ///
    /// # Errors
    /// [`RollbackError`] when the rollout stands so that this has no meaning.
    pub fn roll_back_to(
        &self,
        destination: BundleFacts,
        actor: &str,
        reason: Option<&str>,
        now_ms: u64,
    ) -> Result<Self, RollbackError> {
        let mut next = self.apply(OperatorAction::Rollback, actor, reason, now_ms)?;
        if destination.manifest == self.bundle.manifest {
            return Err(RollbackError::Itself(destination.bundle));
        }
        if destination.track != self.track() {
            return Err(RollbackError::Track { track: self.track(), named: destination.bundle });
        }
        let is_shadow = |target: &Target| target.beside && target.failure.is_none();
        if !self.spec.stage.is_serve() || self.targets.values().any(is_shadow) {
            return Err(RollbackError::Beside);
        }
        if self.targets.values().any(|target| target.errand == Errand::Back) {
            return Err(RollbackError::Underway);
        }
        next.status_reason = bounded_text(&format!("to {}: {}", destination.bundle, next.status_reason));
        // Nothing is compared on the way back.
        next.destination = Some(BundleFacts { reference_predictions: Predictions::new(), ..destination });
        Ok(next)
    }

    /// The rollout as a fleet-wide stop by `actor` leaves it; none when there is nothing left to stop: it has ended, or devices are
    /// ending what runs beside another.
    #[must_use]
    pub fn halted(&self, actor: &str, reason: Option<&str>, now_ms: u64) -> Option<Self> {
        if self.status == RolloutStatus::RollingBack && !self.wave_stage().is_serve() {
            return None;
        }
        let why = match reason.map(str::trim).filter(|reason| !reason.is_empty()) {
            Some(reason) => format!("fleet-wide stop: {reason}"),
            None => "fleet-wide stop".to_owned(),
        };
        self.apply(OperatorAction::Abort, actor, Some(&why), now_ms).ok()
    }

    /// Whether any device was told to run the bundle beside another.
    fn runs_beside(&self) -> bool {
        self.targets.values().any(|target| target.beside)
    }

    pub(crate) fn after(&self, action: OperatorAction) -> Option<RolloutStatus> {
        use RolloutStatus::{
            Completed, Draft, Paused, Ready, RolledBack, RollingBack, Running, Stopped, WaitingForApproval,
        };
        match (action, self.status) {
            (OperatorAction::Pause, Ready | Running) => Some(Paused),
            (OperatorAction::Resume, Paused) => {
                let started = self.waves.first().is_some_and(|wave| wave.started_at_ms.is_some());
                Some(if started { Running } else { Ready })
            }
            (OperatorAction::Abort, Running | Paused) if self.runs_beside() && !self.wave_stage().is_serve() => {
                Some(RollingBack)
            }
            (OperatorAction::Abort, Draft | WaitingForApproval | Ready | Running | Paused | RollingBack) => {
                Some(Stopped)
            }
            (OperatorAction::Rollback, Ready | Running | Paused | Completed | Stopped) => Some(RollingBack),
            (
                OperatorAction::Pause,
                Draft | WaitingForApproval | Paused | RollingBack | Completed | RolledBack | Stopped,
            )
            | (
                OperatorAction::Resume,
                Draft | WaitingForApproval | Ready | Running | RollingBack | Completed | RolledBack | Stopped,
            )
            | (OperatorAction::Abort, Completed | RolledBack | Stopped)
            | (OperatorAction::Rollback, Draft | WaitingForApproval | RollingBack | RolledBack) => None,
        }
    }
}
