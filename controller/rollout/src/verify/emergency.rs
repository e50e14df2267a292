//! Rules about emergencies.

use muster_shared::rollout::RolloutStatus;

use super::reading::{can_take_part, desired_generation, is_admitted, is_meant, reported_generation};
use super::{Case, Violation};

impl Case<'_> {
    /// An emergency has one wave, leaves nobody out whom it can have, and does not turn back by itself.
    pub(super) fn emergency(&mut self) {
        let (before, next) = (self.before, self.next);
        if !before.spec.emergency {
            return;
        }
        let turned = before.status == RolloutStatus::Running
            && matches!(next.status, RolloutStatus::RollingBack | RolloutStatus::RolledBack);
        self.expect(!turned, || Violation::Emergency("it turned back, and nobody said so"));
        let Some(wave) = next.spec.waves.first().filter(|_| next.spec.waves.len() == 1) else {
            return self.found.push(Violation::Emergency("it has more than one wave, or none"));
        };
        if !matches!(next.status, RolloutStatus::Running | RolloutStatus::Completed) || before.status.is_terminal() {
            return;
        }
        for (id, facts) in self.fleet.devices.iter().filter(|(id, _)| !next.targets.contains_key(*id)) {
            let free = facts.held_by.is_none() && !facts.revoked && is_admitted(next, facts);
            let tellable = reported_generation(facts).max(desired_generation(facts)) < u64::MAX;
            let missing = free && tellable && can_take_part(next, facts) && is_meant(next, wave, id, facts);
            self.expect(!missing, || Violation::LeftOut(id.clone()));
        }
    }
}
