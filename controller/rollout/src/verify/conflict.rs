//! Rules about devices that several rollouts want: nobody jumps the queue, and nobody is left out in silence.

use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Conflict, RolloutStatus};

use super::reading::is_foreign;
use super::{Case, Violation};
use crate::fleet::DeviceFacts;

impl Case<'_> {
    pub(super) fn conflict(&mut self) {
        let (before, next) = (self.before, self.next);
        let begins = before.status == RolloutStatus::Ready && next.status == RolloutStatus::Running;
        if begins && before.spec.conflict == Conflict::Queue {
            self.turn();
        }
        if before.status == RolloutStatus::Running && next.status == RolloutStatus::Completed {
            let without = self.fleet.devices.iter().filter(|(id, facts)| self.is_missed(id, facts)).count();
            let said = next.verdicts.last().is_some_and(|verdict| {
                let plural = if without == 1 { "" } else { "s" };
                let digits: String = verdict.summary.replace(',', "");
                digits.contains(&format!("without {without} device{plural} of "))
            });
            self.expect(without == 0 || said, || Violation::Unsaid(without));
        }
    }

    /// Whether the rollout means the device, or had it, and another one has it.
    fn is_missed(&self, id: &DeviceId, facts: &DeviceFacts) -> bool {
        let came_later = self.next.meant.as_ref().is_some_and(|meant| !meant.contains(id));
        let meant = || !came_later && facts.is_meant_by(&self.next.spec.selector, id);
        !facts.revoked
            && match self.before.targets.get(id) {
                Some(target) => is_foreign(&self.next.id, target, facts),
                None => !self.next.targets.contains_key(id) && facts.held_by.is_some() && meant(),
            }
    }

    fn turn(&mut self) {
        let own = self.before;
        for (id, facts) in self.fleet.devices.iter().filter(|(_, facts)| !facts.revoked) {
            if !facts.is_meant_by(&own.spec.selector, id) {
                continue;
            }
            self.expect(facts.held_by.is_none(), || {
                Violation::Begun("another rollout has a device that it queues for")
            });
            for other in &self.fleet.queue {
                let first = other.priority > own.spec.priority
                    || (other.priority == own.spec.priority
                        && (other.created_at_ms, &other.id) < (own.created_at_ms, &own.id));
                let wanted = facts.is_meant_by(&other.selector, id);
                self.expect(!(first && wanted), || Violation::Begun("another one in the queue goes first"));
            }
        }
    }
}
