//! Rules about abort criteria: what they count is counted anew, and one that is met ends the rollout at once.

use muster_shared::ids::DeviceId;
use muster_shared::rollout::{AbortAction, FailureKind, FailureType, Outcome, RolloutStatus, Rule};
use muster_shared::trust::Stage;

use super::reading::{desired_generation, is_foreign, reported_generation, says_arrived};
use super::{Case, Violation};
use crate::rollout::{Errand, Target};

impl Case<'_> {
    pub(super) fn abort_criteria(&mut self) {
        let (before, next) = (self.before, self.next);
        let wave = before.current_wave;
        let wrong = |why: String| Violation::Abort { wave, why };
        let stopped = before.status == RolloutStatus::Running && next.status == RolloutStatus::Stopped;
        let criteria = &before.spec.abort_criteria;
        if before.status != RolloutStatus::Running || criteria.is_empty() {
            return self.expect(!stopped, || wrong("it stopped, and nobody asked for that".to_owned()));
        }
        let (executed, kinds) = self.ends();
        let entered_ms = before.waves.get(wave as usize).and_then(|state| state.started_at_ms);
        let is_looked_at = entered_ms.is_some_and(|entered_ms| entered_ms < self.now_ms);
        let verdict = next.verdicts.last().filter(|_| next.verdicts.len() != before.verdicts.len() || stopped);
        let held: Vec<_> = verdict
            .into_iter()
            .flat_map(|verdict| &verdict.checks)
            .filter(|check| check.rule == Rule::AbortCriterion)
            .collect();
        self.expect(verdict.is_none() || held.len() == criteria.len(), || {
            wrong("a verdict does not say how each criterion stands".to_owned())
        });
        let goes_back = matches!(next.status, RolloutStatus::RollingBack | RolloutStatus::RolledBack);
        let (mut cancels, mut goes) = (false, false);
        for (at, criterion) in criteria.iter().enumerate() {
            let of_type = |kind: &&FailureKind| match criterion.failure_type {
                FailureType::Failed => **kind == FailureKind::Failed,
                FailureType::Rejected => **kind == FailureKind::Rejected,
                FailureType::TimedOut => **kind == FailureKind::TimedOut,
                FailureType::All => true,
            };
            let matching = kinds.iter().filter(of_type).count();
            let enough = executed >= u64::from(criterion.min_number_of_executed_things);
            let reached = matching as f64 * 100.0 >= criterion.threshold_percentage * executed as f64;
            let met = enough && reached;
            cancels |= met && criterion.action == AbortAction::Cancel;
            goes |= met && criterion.action == AbortAction::RollBack;
            if let Some(check) = held.get(at) {
                let share = (executed > 0).then(|| matching as f64 * 100.0 / executed as f64);
                let close = match (check.measured, share) {
                    (Some(said), Some(share)) => (said - share).abs() < 1e-6,
                    (said, share) => said.is_none() && share.is_none(),
                };
                let limit = check.limit.total_cmp(&criterion.threshold_percentage).is_eq();
                self.expect(close && limit && check.canary_samples == executed, || {
                    wrong(format!("criterion {} was held against other numbers: {matching} of {executed}", at + 1))
                });
                self.expect((check.outcome == Outcome::Failed) == met, || {
                    wrong(format!("criterion {} is said to be met and is not, or the other way round", at + 1))
                });
            }
        }
        let is_served = before.spec.stage == Stage::Serve;
        self.expect(!is_looked_at || !goes || goes_back, || {
            wrong(format!("a criterion is met by {} of {executed} devices, and it does not go back", kinds.len()))
        });
        self.expect(!is_looked_at || !cancels || goes_back || stopped, || {
            wrong(format!("a criterion is met by {} of {executed} devices, and it goes on", kinds.len()))
        });
        self.expect(!stopped || cancels, || wrong("it stopped, and no criterion cancels".to_owned()));
        let leaves_beside = stopped && !is_served && next.targets.values().any(|target| target.beside);
        self.expect(!leaves_beside, || wrong("it stopped, and leaves bundles beside others".to_owned()));
    }

    /// Devices told to run the bundle that have come to an end, and in which way those did that have not succeeded.
    pub(super) fn ends(&self) -> (u64, Vec<FailureKind>) {
        let (mut executed, mut kinds) = (0, Vec::new());
        for (id, new) in &self.next.targets {
            let told = match new.errand {
                Errand::Forward => new,
                // It is on its way back by now; what it was told before is what counts.
                Errand::Back => match self.before.targets.get(id) {
                    Some(old) if old.errand == Errand::Forward => old,
                    Some(_) | None => continue,
                },
                Errand::Keep => continue,
            };
            let kind = if new.failure.is_some() {
                Some(new.failure_kind)
            } else if self.has_committed(id, told, new) {
                None
            } else if new.deadline.timed_out_at_ms.is_some() {
                Some(FailureKind::TimedOut)
            } else {
                continue;
            };
            executed += 1;
            kinds.extend(kind);
        }
        (executed, kinds)
    }

    /// Whether the device has committed under what it was told when the wave was judged.
    fn has_committed(&self, id: &DeviceId, told: &Target, new: &Target) -> bool {
        if new.errand == Errand::Forward {
            return new.done_at_ms.is_some();
        }
        let Some(facts) = self.fleet.devices.get(id) else { return told.done_at_ms.is_some() };
        if facts.revoked || is_foreign(&self.next.id, told, facts) {
            return told.done_at_ms.is_some();
        }
        // One that claims generations of its own is told anew first, and has its way before it.
        let claims = reported_generation(facts).max(desired_generation(facts)) > told.generation;
        !claims && (told.done_at_ms.is_some() || says_arrived(told, facts))
    }
}
