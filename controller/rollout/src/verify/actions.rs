//! Rules about what devices are told.

use std::collections::BTreeSet;

use muster_shared::ids::DeviceId;
use muster_shared::rollout::RolloutStatus;

use super::reading::{desired_generation, is_foreign, is_in_store, reported_generation, says_back, says_failed};
use super::{Case, Violation};
use crate::fleet::DeviceFacts;
use crate::plan::Action;
use crate::rollout::{Errand, Target};

impl Case<'_> {
    pub(super) fn actions(&mut self) {
        let mut told = BTreeSet::new();
        for action in &self.decision.actions {
            let Action::Assign { device, manifest, generation } = action;
            let wrong = |why| Violation::Told { device: device.clone(), why };
            self.expect(told.insert(device), || wrong("it is told twice"));
            let Some(facts) = self.fleet.devices.get(device) else {
                self.found.push(wrong("it does not exist"));
                continue;
            };
            match self.next.targets.get(device) {
                Some(target) if (target.manifest, target.generation) == (*manifest, *generation) => {
                    self.told(device, target, facts);
                }
                Some(_) => self.found.push(wrong("it has another target")),
                None => self.found.push(wrong("it is not in the rollout")),
            }
        }
        let Some(errand) = self.spoken() else { return };
        for (id, target) in self.next.targets.iter().filter(|(_, target)| target.errand == errand) {
            let facts = self.fleet.devices.get(id);
            if !told.contains(id) && facts.is_some_and(|facts| self.must_be_told(target, facts)) {
                self.found.push(Violation::NotTold(id.clone()));
            }
        }
    }

    /// What devices are told about as the rollout stands.
    fn spoken(&self) -> Option<Errand> {
        match self.next.status {
            RolloutStatus::Running | RolloutStatus::Completed | RolloutStatus::Paused => Some(Errand::Forward),
            RolloutStatus::RollingBack | RolloutStatus::RolledBack => Some(Errand::Back),
            RolloutStatus::Stopped if self.before.outstanding => Some(Errand::Back),
            RolloutStatus::Draft
            | RolloutStatus::WaitingForApproval
            | RolloutStatus::Ready
            | RolloutStatus::Stopped => None,
        }
    }

    fn told(&mut self, device: &DeviceId, target: &Target, facts: &DeviceFacts) {
        let wrong = |why| Violation::Told { device: device.clone(), why };
        self.expect(Some(target.errand) == self.spoken(), || wrong("not as the rollout stands"));
        self.expect(!facts.revoked, || wrong("it is revoked"));
        let ours = facts.desired.as_ref().is_some_and(|desired| desired.rollout == self.before.id);
        self.expect(facts.held_by.is_none() || ours, || wrong("another rollout has it"));
        let again = is_in_store(&self.next.id, target, facts);
        self.expect(again || target.generation > desired_generation(facts), || {
            wrong("the store has a newer generation")
        });
        self.expect(target.generation > reported_generation(facts), || wrong("it knows that generation"));
        self.expect(again || self.next.status != RolloutStatus::Paused, || wrong("the rollout is paused"));
        let failed = target.errand == Errand::Forward && target.failure.is_some();
        self.expect(!failed, || wrong("it failed on the bundle"));
    }

    fn must_be_told(&self, target: &Target, facts: &DeviceFacts) -> bool {
        let again = is_in_store(&self.next.id, target, facts);
        let overtaken = desired_generation(facts) > target.generation;
        let given_up = says_failed(target, facts) || (target.errand == Errand::Forward && target.failure.is_some());
        let due = if again { facts.online } else { self.next.status != RolloutStatus::Paused };
        // Who says that it is back needs no word, whatever generation it claims to have accepted.
        let is_back = target.errand == Errand::Back && says_back(target, facts);
        let reachable = !is_back && !facts.revoked && !is_foreign(&self.next.id, target, facts);
        due && reachable && !overtaken && !given_up && reported_generation(facts) < target.generation
    }
}
