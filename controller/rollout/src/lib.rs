//! Decisions of the controller about rollouts, free of IO and clock.
//!
//! [`plan()`] looks at a [`Rollout`] and a [`Fleet`] and says what the rollout is next and which devices must be told
//! what; [`verify()`] holds such a [`Decision`] against the rules of a rollout, written apart from the planner. What
//! is stored, when it is planned and how devices are reached is the controller's matter.
//!
//! All times are milliseconds since the Unix epoch and come in as arguments. They may jump: a clock set back makes a
//! wave wait longer, a clock set forward makes it pause earlier, and neither makes it pass without evidence.

mod abort;
mod actions;
mod analysis;
mod approval;
mod beginning;
mod blue_green;
mod cohort;
mod conflict;
mod deadline;
mod emergency;
mod evidence;
mod explain;
mod fleet;
mod gate;
mod judgement;
mod limits;
mod plan;
mod preview;
mod program;
mod rate;
mod reach;
mod recall;
mod replay;
mod rollback;
mod rollout;
mod shadow_first;
mod shared;
mod standing;
pub mod statistics;
mod targets;
mod timing;
mod understanding;
mod updates;
mod verify;
mod view;
mod walk;
mod wave;
mod wording;

pub use actions::{ActionError, OperatorAction, RollbackError, goes_on_in_a_stop};
pub use analysis::{AnalysisRun, AnalysisRuns, Due, MetricRun};
pub use approval::ApprovalRefusal;
pub use conflict::{ConflictError, QueuedRollout};
pub use deadline::DeadlineState;
pub use fleet::{BesideCounts, Desired, DeviceFacts, Evidence, Fleet, KnownFacts, Mean, Predictions};
pub use gate::{Gate, GateState, judge, scales};
pub use plan::{Action, Decision, plan};
pub use program::packaged_program;
pub use rate::Intake;
pub use replay::{Replayed, replay};
pub use rollout::{BundleFacts, Errand, Rollout, Target, WaveState};
pub use shared::Shared;
pub use targets::Targets;
pub use updates::{Note, UpdateLog};
pub use verify::{Violation, verify};

#[cfg(test)]
mod tests;
