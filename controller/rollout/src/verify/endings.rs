//! Rules about how devices come to an end other than by committing: the kind of their failure, and their deadlines.

use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Deadlines, FailureKind, RolloutStatus};

use super::reading::{desired_generation, is_foreign, reported_generation, says_arrived, says_failed};
use super::{Case, Violation};
use crate::deadline::DeadlineState;
use crate::fleet::DeviceFacts;
use crate::rollout::{Errand, Target};

/// Whether the device's last word is that it would not take the bundle up: it says so, or says that it failed under a generation that it
/// has not accepted.
fn says_refused(target: &Target, facts: &DeviceFacts) -> bool {
    says_failed(target, facts)
        && facts.reported.as_ref().is_some_and(|report| report.update.refused || report.generation < target.generation)
}

impl Case<'_> {
    pub(super) fn endings(&mut self) {
        for (id, new) in &self.next.targets {
            let old = self.before.targets.get(id);
            self.kind(id, old, new);
            if new.errand == Errand::Back {
                // What it was late with is past.
                let kept = old.is_some_and(|old| self.is_past(old.deadline, new.deadline));
                self.expect(kept, || Violation::Deadline { device: id.clone(), why: "it changed on the way back" });
            } else {
                self.deadline(id, old, new);
            }
        }
    }

    /// Whether marks are what they were, or what the very plan that turns a device back saw of it before.
    fn is_past(&self, old: DeadlineState, new: DeadlineState) -> bool {
        let marks = [(old.reached_at_ms, new.reached_at_ms), (old.timed_out_at_ms, new.timed_out_at_ms)];
        marks.iter().all(|(old, new)| old == new || new.is_none_or(|at_ms| at_ms == self.now_ms))
    }

    /// A kind stays with its failure, and is what the device said.
    fn kind(&mut self, id: &DeviceId, old: Option<&Target>, new: &Target) {
        let wrong = |why| Violation::Target { device: id.clone(), why };
        self.expect(new.failure_kind != FailureKind::TimedOut, || {
            wrong("silence is taken for a failure of the bundle")
        });
        match old.filter(|old| old.failure.is_some()) {
            Some(old) => self.expect(old.failure_kind == new.failure_kind, || wrong("the kind of its failure changed")),
            None if new.failure.is_none() => {
                self.expect(new.failure_kind == FailureKind::Failed, || wrong("it has the kind of a failure and none"));
            }
            None => {
                let (told, facts) = (old.unwrap_or(new), self.fleet.devices.get(id));
                // One that claims generations of its own is given up for that, whatever it says.
                let claims =
                    |facts: &DeviceFacts| reported_generation(facts).max(desired_generation(facts)) > told.generation;
                let refused = facts.is_some_and(|facts| says_refused(told, facts) && !claims(facts));
                let right = if refused { FailureKind::Rejected } else { FailureKind::Failed };
                self.expect(new.failure_kind == right, || {
                    wrong("it is not the kind of failure that the device told of")
                });
            }
        }
    }

    /// Nobody is timed out before its deadline, and everybody at the first look after it.
    fn deadline(&mut self, id: &DeviceId, old: Option<&Target>, new: &Target) {
        let (now_ms, DeadlineState { reached_at_ms, timed_out_at_ms }) = (self.now_ms, new.deadline);
        let wrong = |why| Violation::Deadline { device: id.clone(), why };
        let Some(Deadlines { in_progress_ms, offline_ms }) = self.next.spec.deadlines else {
            return self.expect(new.deadline.is_unset(), || wrong("nobody asked for one"));
        };
        // A word under another generation has its time anew.
        let old = old.filter(|old| (old.errand, old.generation) == (new.errand, new.generation));
        let was = old.map(|old| old.deadline).unwrap_or_default();
        let kept = |was: Option<u64>, is: Option<u64>| was.is_none_or(|_| was == is);
        let marks_stay = kept(was.reached_at_ms, reached_at_ms) && kept(was.timed_out_at_ms, timed_out_at_ms);
        self.expect(marks_stay, || wrong("what was seen was forgotten"));
        let news = [(was.reached_at_ms, reached_at_ms), (was.timed_out_at_ms, timed_out_at_ms)];
        let dated = news.iter().all(|(was, is)| was == is || *is == Some(now_ms));
        self.expect(dated, || wrong("what is seen now is dated otherwise"));
        let facts = self.fleet.devices.get(id);
        let heard = facts.is_some_and(|facts| facts.online || reported_generation(facts) >= new.generation);
        self.expect(heard || was.reached_at_ms == reached_at_ms, || wrong("it is said to be reached and is not"));
        let over = match reached_at_ms {
            Some(at_ms) => in_progress_ms.is_some_and(|ms| now_ms.saturating_sub(at_ms) >= ms),
            None => offline_ms.is_some_and(|ms| now_ms.saturating_sub(new.assigned_at_ms) >= ms),
        };
        let is_new = was.timed_out_at_ms.is_none() && timed_out_at_ms.is_some();
        let has_ended = new.done_at_ms.is_some() || new.failure.is_some();
        let arrived = facts.is_some_and(|facts| says_arrived(new, facts));
        let marked_early = is_new && (!over || has_ended || arrived || new.errand != Errand::Forward);
        self.expect(!marked_early, || wrong("it is timed out, and has time, has ended or was told nothing"));
        // A wave that is entered, or goes back, is looked at once more by the same plan or by the next.
        let looked_at = self.before.status == RolloutStatus::Running && self.next.status == RolloutStatus::Running;
        let governed = facts.is_some_and(|facts| !facts.revoked && !is_foreign(&self.next.id, new, facts));
        let silent = looked_at && governed && !has_ended && new.errand == Errand::Forward;
        self.expect(!silent || !over || timed_out_at_ms.is_some(), || wrong("it is over, and nothing is noted"));
        self.expect(!silent || !heard || reached_at_ms.is_some() || timed_out_at_ms.is_some(), || {
            wrong("it is reached, and nothing is noted")
        });
    }
}
