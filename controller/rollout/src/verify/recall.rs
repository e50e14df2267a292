//! Rules about a stop: nobody is told to go forward any more, whoever waits to switch is called back, and nobody else is.

use muster_shared::ids::DeviceId;
use muster_shared::messages::UpdateState;
use muster_shared::rollout::RolloutStatus;
use muster_shared::trust::Activation;

use super::reading::{desired_generation, is_foreign, reported_generation, says_arrived, says_failed};
use super::{Case, Violation};
use crate::rollout::{Errand, Rollout, Target};

impl Case<'_> {
    /// Whether nothing of a stopped rollout changed but what its devices are told.
    pub(super) fn only_recalls(&self) -> bool {
        let (before, next) = (self.before, self.next);
        let (targets, updated_at_ms) = (next.targets.clone(), next.updated_at_ms);
        before.outstanding && Rollout { targets, updated_at_ms, ..before.clone() } == *next
    }

    /// Whether the device waited to switch, as far as it has said, when the rollout was stopped.
    pub(super) fn is_called_back(&self, id: &DeviceId, old: &Target, new: &Target) -> bool {
        let stopped = self.before.status == RolloutStatus::Stopped && self.before.outstanding;
        let turns = (old.errand, new.errand) == (Errand::Forward, Errand::Back);
        // Who says that it gave up, and knows a generation that it was not given, is not to be believed, and may be called back as well as not.
        let newest = self.fleet.devices.get(id).map(|facts| reported_generation(facts).max(desired_generation(facts)));
        let knows_another = newest > Some(old.generation);
        stopped && turns && (self.waits_to_switch(id, old) || (knows_another && self.may_switch(id, old)))
    }

    fn waits_to_switch(&self, id: &DeviceId, target: &Target) -> bool {
        let failed = self.fleet.devices.get(id).is_some_and(|facts| says_failed(target, facts));
        self.may_switch(id, target) && !failed
    }

    /// Whether it would switch yet, if it is not to be believed that it gave up.
    fn may_switch(&self, id: &DeviceId, target: &Target) -> bool {
        let Some(facts) = self.fleet.devices.get(id) else { return false };
        let is_ours = !facts.revoked && !is_foreign(&self.before.id, target, facts);
        let waits = target.errand == Errand::Forward && target.activation != Activation::AtOnce;
        let serves = facts.reported.as_ref().and_then(|report| report.running.as_ref()).map(|bundle| bundle.manifest);
        let is_past =
            target.failure.is_some() || says_arrived(target, facts) || serves == Some(self.before.bundle.manifest);
        is_ours && waits && !is_past
    }

    pub(super) fn recall(&mut self) {
        let (before, next) = (self.before, self.next);
        if before.status != RolloutStatus::Stopped || !before.outstanding {
            return;
        }
        for (id, target) in &next.targets {
            let Some(facts) = self.fleet.devices.get(id) else { continue };
            let on_trial = facts.reported.as_ref().is_some_and(|report| {
                (report.update.state, report.update.generation) == (UpdateState::Trial, target.generation)
            });
            let hopeless = reported_generation(facts).max(desired_generation(facts)) == u64::MAX;
            let waits = self.waits_to_switch(id, target) && !on_trial && !hopeless;
            self.expect(!waits, || Violation::Target {
                device: id.clone(),
                why: "the rollout was stopped, and it still waits to switch",
            });
        }
    }
}
