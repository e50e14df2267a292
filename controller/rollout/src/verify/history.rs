//! Rules about states, waves, times and verdicts.

use muster_shared::rollout::{AbortAction, AbortCriterion, Joining, Outcome, RolloutStatus, Waiting};
use muster_shared::trust::Activation;

use super::{Case, Violation};

impl Case<'_> {
    pub(super) fn history(&mut self) {
        let (before, next) = (self.before, self.next);
        for (same, what) in [
            (before.id == next.id, "the name"),
            (before.spec == next.spec, "what was asked for"),
            (before.bundle == next.bundle, "the bundle"),
            (before.analyses == next.analyses, "what its analyses measure"),
            (before.destination == next.destination, "where it goes back to"),
            (before.created_at_ms == next.created_at_ms, "the time of creation"),
            (before.waves.len() == next.waves.len(), "the number of waves"),
        ] {
            self.expect(same, || Violation::Changed { what });
        }
        self.meant();
        self.transition();
        self.wave_order();
        self.times();
        self.verdicts();
        let paused = |waiting: &Waiting| matches!(waiting, Waiting::Paused { .. });
        let speaks = match next.status {
            RolloutStatus::Paused => self.decision.waiting.iter().any(paused),
            RolloutStatus::Ready | RolloutStatus::RollingBack => !self.decision.waiting.is_empty(),
            RolloutStatus::Draft
            | RolloutStatus::WaitingForApproval
            | RolloutStatus::Running
            | RolloutStatus::Completed
            | RolloutStatus::RolledBack
            | RolloutStatus::Stopped => true,
        };
        self.expect(speaks, || Violation::Silent);
        let ahead = self.decision.wake_at_ms.is_none_or(|at_ms| at_ms > self.now_ms);
        self.expect(ahead, || Violation::Wake);
    }

    /// Where later devices are left out, who is meant is fixed when it begins and stays so.
    fn meant(&mut self) {
        let (before, next) = (self.before, self.next);
        let begins = before.status == RolloutStatus::Ready && next.status != RolloutStatus::Ready;
        let right = if begins && before.spec.joining == Joining::Exclude {
            let selected = self.fleet.devices.iter().filter(|(id, facts)| facts.is_meant_by(&before.spec.selector, id));
            next.meant.as_ref().is_some_and(|meant| meant.iter().eq(selected.map(|(id, _)| id)))
        } else {
            before.meant == next.meant
        };
        self.expect(right, || Violation::Changed { what: "who is meant" });
    }

    fn transition(&mut self) {
        let (from, to) = (self.before.status, self.next.status);
        match from {
            RolloutStatus::Ready => {
                // What waits for its time or its turn stays as it is.
                let stays = to == RolloutStatus::Ready && self.before == self.next;
                self.expect(stays || to == RolloutStatus::Running, || Violation::Transition { from, to });
            }
            RolloutStatus::Running => {
                let onward = matches!(
                    to,
                    RolloutStatus::Running
                        | RolloutStatus::Paused
                        | RolloutStatus::RollingBack
                        | RolloutStatus::RolledBack
                        | RolloutStatus::Completed
                );
                // Whether one is met is a rule of its own.
                let cancels = |criterion: &AbortCriterion| criterion.action == AbortAction::Cancel;
                let may_stop = self.before.spec.abort_criteria.iter().any(cancels);
                let onward = onward || (may_stop && to == RolloutStatus::Stopped);
                self.expect(onward, || Violation::Transition { from, to });
            }
            RolloutStatus::RollingBack => {
                let onward = matches!(to, RolloutStatus::RollingBack | RolloutStatus::RolledBack);
                self.expect(onward, || Violation::Transition { from, to });
            }
            // When, is a matter of approvals.
            RolloutStatus::WaitingForApproval if to == RolloutStatus::Stopped => {}
            RolloutStatus::Draft
            | RolloutStatus::WaitingForApproval
            | RolloutStatus::Paused
            | RolloutStatus::Completed
            | RolloutStatus::RolledBack => {
                self.expect(self.before == self.next, || Violation::Absorbing(from));
            }
            RolloutStatus::Stopped => {
                let same = self.before == self.next || self.only_recalls();
                self.expect(same, || Violation::Absorbing(from));
            }
        }
    }

    fn wave_order(&mut self) {
        let (from, to) = (self.before.current_wave, self.next.current_wave);
        let last = self.before.waves.len().saturating_sub(1);
        let running = self.before.status == RolloutStatus::Running && self.next.status == RolloutStatus::Running;
        let may_advance = running && (from as usize) < last;
        let right = from == to || (may_advance && to == from + 1);
        self.expect(right, || Violation::WaveSkipped { from, to });
        let completed = self.next.status == RolloutStatus::Completed && self.before.status == RolloutStatus::Running;
        self.expect(!completed || from as usize == last, || Violation::WaveSkipped { from, to });
    }

    /// Times of the past stay as they are; the clock set back may only draw those of the current wave to now.
    fn times(&mut self) {
        let (current, now_ms) = (self.before.current_wave as usize, self.now_ms);
        for ((wave, old), new) in (0u32..).zip(&self.before.waves).zip(&self.next.waves) {
            for (what, old_ms, new_ms) in [
                ("the start", old.started_at_ms, new.started_at_ms),
                ("the clock", old.clock_from_ms, new.clock_from_ms),
                ("the soak", old.soak_from_ms, new.soak_from_ms),
            ] {
                let right = match (old_ms, new_ms) {
                    (None, Some(new_ms)) => new_ms == now_ms && wave as usize <= current + 1,
                    (Some(_), Some(new_ms)) if what == "the clock" && old.is_kept_out && !new.is_kept_out => {
                        new_ms == now_ms
                    }
                    (Some(old_ms), Some(new_ms)) => {
                        let set_back = old_ms > now_ms;
                        let restarts = set_back || (what == "the clock" && self.tells_to_switch());
                        new_ms == old_ms || (wave as usize == current && restarts && new_ms == now_ms)
                    }
                    (None, None) => true,
                    (Some(_), None) => false,
                };
                self.expect(right, || Violation::Time { what, wave });
            }
        }
    }

    /// Whether a group is told to switch, from which on the wave's longest duration runs.
    fn tells_to_switch(&self) -> bool {
        self.next.targets.iter().any(|(id, target)| {
            let waits = matches!(target.activation, Activation::At { .. });
            waits && self.before.targets.get(id).is_some_and(|old| old.activation != target.activation)
        })
    }

    fn verdicts(&mut self) {
        let (before, next, now_ms) = (self.before, self.next, self.now_ms);
        let added = match next.verdicts.strip_prefix(before.verdicts.as_slice()) {
            Some(added) => added,
            // Of a long history the oldest may go, as many as come in.
            None if next.verdicts.len() == before.verdicts.len()
                && next.verdicts.len() > 1
                && next.verdicts[..next.verdicts.len() - 1] == before.verdicts[1..] =>
            {
                &next.verdicts[next.verdicts.len() - 1..]
            }
            None => return self.found.push(Violation::Verdict("one that was given has been changed")),
        };
        let needed = match (before.status, next.status) {
            (
                RolloutStatus::Running,
                RolloutStatus::RollingBack | RolloutStatus::RolledBack | RolloutStatus::Stopped,
            ) => Some(Outcome::Failed),
            (RolloutStatus::Running, RolloutStatus::Paused) => Some(Outcome::Inconclusive),
            (RolloutStatus::Running, RolloutStatus::Completed) => Some(Outcome::Successful),
            _ if before.current_wave != next.current_wave => Some(Outcome::Successful),
            _ => None,
        };
        match (added, needed) {
            ([], None) => {}
            ([one], Some(needed)) => {
                let right = one.outcome == needed && one.wave == before.current_wave && one.at_ms == now_ms;
                self.expect(right, || Violation::Verdict("the new one is not about what happens"));
                let broken = one.checks.iter().any(|check| check.outcome == Outcome::Failed);
                self.expect(broken == (needed == Outcome::Failed), || {
                    Violation::Verdict("the new one does not follow from its checks")
                });
            }
            ([], Some(_)) => self.found.push(Violation::Verdict("there is none for what happens")),
            (_, _) => self.found.push(Violation::Verdict("there are more than what happens calls for")),
        }
    }
}
