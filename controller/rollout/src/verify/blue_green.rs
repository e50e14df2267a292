//! Rules about groups that switch together.

use std::collections::BTreeSet;

use muster_shared::ids::DeviceId;
use muster_shared::messages::{HeldBack, UpdateState};
use muster_shared::rollout::{BlueGreen, RolloutStatus};
use muster_shared::trust::Activation;

use super::reading::{
    can_take_part, desired_generation, is_admitted, is_foreign, is_kept_out, is_meant, reported_generation,
    says_arrived, takes_room,
};
use super::{Case, Violation};
use crate::fleet::DeviceFacts;
use crate::rollout::{Errand, Rollout, Target};

/// To which group a device says that it belongs.
pub(super) fn group_said<'f>(rollout: &Rollout, facts: &'f DeviceFacts) -> Option<&'f String> {
    let BlueGreen { group_by, .. } = rollout.spec.blue_green.as_ref()?;
    facts.label_or_attribute(group_by)
}

/// Whether the device can wait with others, where the rollout has them wait.
pub(super) fn can_join(rollout: &Rollout, facts: &DeviceFacts) -> bool {
    rollout.spec.blue_green.is_none()
        || (group_said(rollout, facts).is_some() && facts.reported.as_ref().is_some_and(|report| report.can_hold))
}

/// Whether the device's last word is that it has prepared what the target says and holds it.
fn says_ready(target: &Target, facts: &DeviceFacts) -> bool {
    facts.reported.as_ref().map(|report| &report.update).is_some_and(|update| {
        matches!(update.held_back, Some(HeldBack::Switch { .. }))
            && (update.state, update.generation) == (UpdateState::Verified, target.generation)
    })
}

impl Case<'_> {
    /// Who is told when to switch, and who is not.
    pub(super) fn switches(&mut self) {
        let (before, next) = (self.before, self.next);
        for (id, target) in &next.targets {
            let wrong = |why| Violation::Target { device: id.clone(), why };
            let old = before.targets.get(id);
            self.expect(old.is_none_or(|old| old.group == target.group), || wrong("its group changed"));
            let Some(BlueGreen { lead_ms, .. }) = &next.spec.blue_green else {
                let free = target.activation == Activation::AtOnce && target.group.is_none();
                self.expect(free, || wrong("it is told to wait, and nobody asked for that"));
                continue;
            };
            let waits = target.activation != Activation::AtOnce;
            self.expect(waits == (target.errand == Errand::Forward), || wrong("it is not told when to switch"));
            let same = old.is_some_and(|old| {
                (old.errand, old.generation) == (target.errand, target.generation)
                    && old.activation != target.activation
            });
            self.expect(!same, || wrong("it is told another time without a new generation"));
            let at_ms = self.now_ms.saturating_add(*lead_ms);
            match (old.filter(|old| old.errand == Errand::Forward).map(|old| old.activation), target.activation) {
                (Some(Activation::At { at_ms: old_ms }), new) if new != (Activation::At { at_ms: old_ms }) => {
                    let later = target.errand != Errand::Forward || (old_ms > at_ms && new == Activation::At { at_ms });
                    self.expect(later, || wrong("its time to switch changed"));
                }
                (Some(Activation::Hold) | None, Activation::At { at_ms: told_ms }) => {
                    self.expect(told_ms == at_ms, || wrong("its group switches at another time"));
                    let goes_on = matches!(next.status, RolloutStatus::Running | RolloutStatus::Completed);
                    self.expect(goes_on, || wrong("it is told to switch while the rollout stands still"));
                    self.group_is_ready(id, target);
                }
                (Some(_) | None, _) => {}
            }
        }
    }

    /// Nobody is told to switch before everybody of its group who can be reached is ready, and then nobody of it is left behind.
    fn group_is_ready(&mut self, id: &DeviceId, told: &Target) {
        let (before, next) = (self.before, self.next);
        for (other, target) in next.targets.iter().filter(|(_, target)| target.group == told.group) {
            let Some(facts) = self.fleet.devices.get(other) else { continue };
            let is_ours = !facts.revoked && !is_foreign(&next.id, target, facts);
            if target.errand != Errand::Forward || target.failure.is_some() || !is_ours {
                continue;
            }
            let was = before.targets.get(other).filter(|was| was.errand == Errand::Forward);
            if was.is_some_and(|was| matches!(was.activation, Activation::At { .. }) || says_arrived(was, facts)) {
                continue;
            }
            let ready = was.is_some_and(|was| says_ready(was, facts));
            self.expect(ready || !facts.online, || Violation::Told {
                device: id.clone(),
                why: "not everybody of its group is ready to switch",
            });
            let hopeless = reported_generation(facts).max(desired_generation(facts)) == u64::MAX;
            self.expect(target.activation != Activation::Hold || hopeless, || Violation::Target {
                device: other.clone(),
                why: "its group switches without it",
            });
        }
    }

    /// A wave takes no more groups in than its size allows of those it is meant for.
    pub(super) fn group_cap(&mut self, wave: u32) {
        let (before, next) = (self.before, self.next);
        let Some(spec) = next.spec.waves.get(wave as usize) else { return };
        let (mut all, mut have) = (BTreeSet::new(), BTreeSet::new());
        for (id, facts) in self.fleet.devices.iter().filter(|(_, facts)| !facts.revoked) {
            match next.targets.get(id) {
                Some(target) if target.wave <= wave => {
                    if !is_foreign(&next.id, target, facts) && takes_room((wave, spec), id, target, facts) {
                        all.extend(target.group.as_ref());
                        have.extend(target.group.as_ref());
                    }
                }
                Some(_) | None => {
                    let kept = is_kept_out(next, id) || !is_admitted(next, facts);
                    let free = facts.held_by.is_none() && !kept && can_take_part(next, facts);
                    let tellable = reported_generation(facts).max(desired_generation(facts)) < u64::MAX;
                    if free && tellable && can_join(next, facts) && is_meant(next, spec, id, facts) {
                        all.extend(group_said(next, facts));
                    }
                }
            }
        }
        // Whoever belongs to a group that is in comes to it, also where the wave has shrunk meanwhile.
        let were_in: BTreeSet<_> = before.targets.values().filter_map(|target| target.group.as_ref()).collect();
        let came = next.targets.iter().filter(|(id, target)| target.wave == wave && !before.targets.contains_key(*id));
        let grew = came.filter_map(|(_, target)| target.group.as_ref()).any(|group| !were_in.contains(group));
        let (have, allowed) = (have.len(), spec.size.of(all.len()));
        self.expect(!grew || have <= allowed, || Violation::CapExceeded { wave, have, allowed });
    }
}
