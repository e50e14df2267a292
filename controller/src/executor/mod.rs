//! Rollouts at work: plans are made, checked, stored and carried out here; none is thought up here.
//!
//! `plan → verify → compare-and-swap → publish`. The decision is `muster-rollout`'s, and so is the check; this part
//! loads, stores and sends. A plan that breaks a rule is never acted upon: the rollout pauses. A plan made from what
//! has changed meanwhile is dropped and made again. What was stored and not sent, or sent and lost, is sent again,
//! because devices that have not accepted what they shall run are told so until they have.

mod explain;
mod freezes;
mod history;
mod holders;
mod issue;
mod measure;
mod pass;
mod prompts;
mod requests;
mod schedule;
mod stop;
mod updates;
mod urgency;

use std::sync::Arc;
use std::time::Duration;

use muster_rollout::{ActionError, ApprovalRefusal, ConflictError, RollbackError};
use muster_shared::ids::{BundleRef, RolloutId};
use muster_shared::rollout::{FleetStop, RolloutStatus, SpecError};
use muster_shared::trust::TrustError;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub(crate) use explain::explain;
pub(crate) use freezes::{freeze, freezes, lift_freeze};
pub(crate) use issue::{announce_roots, reissue};
pub(crate) use requests::{
    act, approve, create, evidence, preview, reject, roll_back_to, rollouts_of, statuses, view, views,
};
pub(crate) use schedule::Schedule;
pub(crate) use stop::{lift_stop, stop_all, stop_view};

use crate::analysis::TemplatesError;
use crate::clock;
use crate::state::App;
use crate::store::StoreError;
use crate::trust::RootError;

/// The least time between two looks at all rollouts.
const LEAST_PAUSE: Duration = Duration::from_millis(50);

/// What is read of a rollout's record where only its status matters.
#[derive(Debug, Deserialize)]
struct StatusOnly {
    status: RolloutStatus,
}

/// Why a rollout cannot be made, shown or moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecutorError {
    /// No such rollout.
    #[error("there is no rollout {0}")]
    UnknownRollout(RolloutId),
    /// No such bundle.
    #[error("there is no bundle {0}: push it first with `muster bundle push`")]
    UnknownBundle(BundleRef),
    /// Devices would not take it.
    #[error(
        "{bundle} is not trusted any more: {source}. Sign it again with `muster bundle sign` and push it, or build a new version"
    )]
    Untrusted {
        /// The bundle.
        bundle: BundleRef,
        /// Why.
        source: Box<TrustError>,
    },
    /// The root documents do not hold.
    #[error(transparent)]
    Root(#[from] RootError),
    /// An analysis that was asked for cannot be.
    #[error(transparent)]
    Analysis(#[from] TemplatesError),
    /// The wish is not valid.
    #[error("the rollout as asked for is not valid: {0}")]
    Spec(SpecError),
    /// The state does not allow it.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// No such freeze.
    #[error("there is no freeze {0}: muster freeze list shows those there are")]
    UnknownFreeze(String),
    /// A freeze that cannot be.
    #[error("the freeze as asked for is not valid: {0}")]
    Freeze(String),
    /// It wants what others have.
    #[error("the rollout is refused: {0}")]
    Conflict(#[from] ConflictError),
    /// Somebody's word about it is not taken.
    #[error(transparent)]
    Approval(#[from] ApprovalRefusal),
    /// Devices cannot go back to what was named.
    #[error(transparent)]
    Rollback(RollbackError),
    /// The idempotency key was used for another wish.
    #[error("the idempotency key was used before for another rollout, {0}: use a new key")]
    KeyReused(RolloutId),
    /// The fleet is stopped.
    #[error(
        "the fleet is stopped since {} by {}{}: no rollout begins until `muster rollout lift-stop`",
        clock::text(.0.since_ms), .0.by, .0.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"))
    )]
    Stopped(FleetStop),
    /// The fleet is not stopped.
    #[error("the fleet is not stopped: there is nothing to lift")]
    NotStopped,
    /// Others kept changing the records.
    #[error("the rollout's record is being changed by others all the time: try again")]
    Busy,
    /// The store failed.
    #[error("the rollout's record cannot be read or written")]
    Store(#[from] StoreError),
}

impl From<RollbackError> for ExecutorError {
    fn from(error: RollbackError) -> Self {
        match error {
            RollbackError::Action(error) => Self::Action(error),
            RollbackError::Itself(_)
            | RollbackError::Beside
            | RollbackError::Underway
            | RollbackError::Track { .. } => Self::Rollback(error),
        }
    }
}

/// Starts looking after rollouts: when something happened, when a plan said so, and every tick.
pub(crate) fn spawn(app: Arc<App>, mut shutdown: watch::Receiver<bool>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let tick = Duration::from_millis(app.config.rollout.tick_ms);
        let mut known = false;
        loop {
            let began = Instant::now();
            if !known {
                match requests::find_active(&app).await {
                    Ok(()) => known = true,
                    Err(error) => tracing::error!(%error, "rollouts cannot be read; trying again"),
                }
            }
            let wake_at_ms = pass::pass(&app).await;
            // However much happens, planning leaves two thirds of the time to others.
            let pause = LEAST_PAUSE.max(began.elapsed() * 2);
            let until_wake = wake_at_ms.map_or(tick, |at| Duration::from_millis(at.saturating_sub(clock::now_ms())));
            let wait = async {
                tokio::time::sleep(pause).await;
                tokio::select! {
                    () = app.nudge.notified() => {}
                    () = tokio::time::sleep(until_wake.min(tick).saturating_sub(pause)) => {}
                }
            };
            tokio::select! {
                () = wait => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    })
}

#[cfg(test)]
mod tests;
