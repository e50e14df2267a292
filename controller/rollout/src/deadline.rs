//! When the silence of a device counts.
//!
//! Each device has its own deadline: from when it was reached, or else from when it was told. One that has not committed by then is timed
//! out. That is no failure of the bundle, so it neither takes the rollout back nor lets it pass: it is not waited for any more, and has not
//! succeeded. It stays told, and may commit late; then it counts as any other that did. The mark itself stays, and belongs to the generation
//! under which it was made: a device that is told anew has its time anew.
//!
//! The clock of a deadline counts on while the rollout is paused and while quiet hours hold a device back: devices go on then, too, and
//! silence looks the same. Nobody is marked in a rollout that does not run.

use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Deadlines, FailureKind, Waiting};
use serde::{Deserialize, Serialize};

use crate::fleet::{DeviceFacts, Fleet};
use crate::rollout::{Errand, Rollout, Target};
use crate::wording::duration;

/// How the deadline of one device stands, under the generation it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeadlineState {
    /// When it was first seen, since it was told, to be connected or to have taken up what it was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reached_at_ms: Option<u64>,
    /// When it was first seen to be late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timed_out_at_ms: Option<u64>,
}

impl DeadlineState {
    /// Whether nothing was noted, as where nobody asked for deadlines.
    #[must_use]
    pub fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

impl Target {
    /// Whether it timed out, and has neither arrived nor failed since.
    pub(crate) fn is_timed_out(&self) -> bool {
        self.is_unanswered() && self.deadline.timed_out_at_ms.is_some()
    }

    /// In which way it has not succeeded so far; none where it has, or is still within its time.
    pub(crate) fn failed_as(&self) -> Option<FailureKind> {
        match &self.failure {
            Some(_) => Some(self.failure_kind),
            None => self.is_timed_out().then_some(FailureKind::TimedOut),
        }
    }

    /// Why it timed out, in words.
    pub(crate) fn lateness(&self, deadlines: Option<&Deadlines>) -> String {
        let within_ms = match self.deadline.reached_at_ms {
            Some(_) => deadlines.and_then(|deadlines| deadlines.in_progress_ms),
            None => deadlines.and_then(|deadlines| deadlines.offline_ms),
        };
        let within = within_ms.map_or_else(String::new, |ms| format!(" within {}", duration(ms)));
        match self.deadline.reached_at_ms.map(|at_ms| at_ms.saturating_sub(self.assigned_at_ms)) {
            Some(0) => format!("reached at once, nothing committed{within}"),
            Some(after_ms) => {
                format!("reached {} after it was told, nothing committed{within} of that", duration(after_ms))
            }
            None => format!("not reached{within} of being told"),
        }
    }

    fn due_ms(&self, deadlines: &Deadlines) -> Option<u64> {
        let (from_ms, within_ms) = match self.deadline.reached_at_ms {
            Some(reached_at_ms) => (reached_at_ms, deadlines.in_progress_ms?),
            None => (self.assigned_at_ms, deadlines.offline_ms?),
        };
        Some(from_ms.saturating_add(within_ms))
    }

    /// Whether a deadline of it still runs.
    fn has_time(&self) -> bool {
        self.is_unanswered() && self.deadline.timed_out_at_ms.is_none()
    }

    /// Whether it was told to run the bundle, and has neither arrived nor failed.
    fn is_unanswered(&self) -> bool {
        self.errand == Errand::Forward && self.failure.is_none() && self.done_at_ms.is_none()
    }
}

impl Rollout {
    /// Why `device` timed out, in words; none where it did not, or has committed or failed since.
    #[must_use]
    pub fn timed_out(&self, device: &DeviceId) -> Option<String> {
        let target = self.targets.get(device).filter(|target| target.is_timed_out())?;
        Some(target.lateness(self.spec.deadlines.as_ref()))
    }
}

/// Marks a device that was reached, and one whose deadline is over. To be asked once it is known whether it has arrived or failed.
pub(crate) fn mark(target: &mut Target, facts: &DeviceFacts, deadlines: &Deadlines, now_ms: u64) {
    if !target.has_time() {
        return;
    }
    if target.deadline.reached_at_ms.is_none() && is_reached(target, facts) {
        target.deadline.reached_at_ms = Some(now_ms);
    }
    if target.due_ms(deadlines).is_some_and(|due_ms| due_ms <= now_ms) {
        target.deadline.timed_out_at_ms = Some(now_ms);
    }
}

/// Whether it can be told, or was.
fn is_reached(target: &Target, facts: &DeviceFacts) -> bool {
    facts.online || facts.reported.as_ref().is_some_and(|report| report.generation >= target.generation)
}

/// When the next deadline of a device is over.
pub(crate) fn wake_at_ms(rollout: &Rollout, now_ms: u64) -> Option<u64> {
    let deadlines = rollout.spec.deadlines.as_ref()?;
    let running = rollout.targets.values().filter(|target| target.has_time());
    running.filter_map(|target| target.due_ms(deadlines)).filter(|due_ms| *due_ms > now_ms).min()
}

/// The devices that are not waited for any more.
pub(crate) fn waiting(rollout: &Rollout, fleet: &Fleet) -> Option<Waiting> {
    rollout.spec.deadlines?;
    let late = rollout.governed_targets(fleet).filter(|(_, target, _)| target.is_timed_out());
    let devices: Vec<DeviceId> = late.map(|(id, ..)| id.clone()).collect();
    (!devices.is_empty()).then_some(Waiting::TimedOut { devices })
}
