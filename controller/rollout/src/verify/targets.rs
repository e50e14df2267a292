//! Rules about who is in, with what target.

use muster_shared::ids::DeviceId;
use muster_shared::rollout::RolloutStatus;

use super::blue_green::{can_join, group_said};
use super::reading::{
    can_take_part, desired_generation, has_incumbent, is_able, is_admitted, is_foreign, is_kept_out, is_meant,
    reported_generation, runs_beside, says_committed, takes_room,
};
use super::shadow_first::is_promoted;
use super::{Case, Violation};
use crate::rollout::{Errand, Target};

impl Case<'_> {
    pub(super) fn targets(&mut self) {
        for (id, old) in &self.before.targets {
            match self.next.targets.get(id) {
                Some(new) => self.kept_target(id, old, new),
                None => self.found.push(Violation::Dropped(id.clone())),
            }
        }
        let new: Vec<_> = self.next.targets.iter().filter(|(id, _)| !self.before.targets.contains_key(*id)).collect();
        for (id, target) in &new {
            self.new_target(id, target);
        }
        self.shadows_first();
        let grew = |id: &DeviceId, wave| self.before.targets.get(id).is_none_or(|old| old.wave < wave);
        for wave in self.before.current_wave..=self.next.current_wave {
            if self.next.targets.iter().any(|(id, target)| target.wave == wave && grew(id, wave)) {
                self.cap(wave);
            }
        }
    }

    fn kept_target(&mut self, id: &DeviceId, old: &Target, new: &Target) {
        let manifest = Some(self.next.bundle.manifest);
        let wrong = |why| Violation::Target { device: id.clone(), why };
        let promoted = is_promoted(old, new);
        self.expect(old.wave == new.wave || promoted, || wrong("its wave changed"));
        if promoted {
            self.promoted(id, old, new);
        }
        // Its past is what it says, until it has taken up the bundle, for which it may get more than one generation.
        let forward = new.errand == Errand::Forward && new.attempts == 1;
        let generation = if forward { new.generation } else { old.generation };
        let retold = old.errand == Errand::Forward
            && (old.attempts == 1 || promoted)
            && self.fleet.devices.get(id).and_then(|facts| facts.reported.as_ref()).is_some_and(|report| {
                report.generation < generation
                    && new.previous == report.committed.as_ref().map(|bundle| bundle.manifest)
            });
        self.expect(old.previous == new.previous || retold, || wrong("its past changed"));
        self.expect(old.failure.is_none() || old.failure == new.failure, || wrong("its failure was forgotten"));
        self.expect(new.generation >= old.generation, || wrong("its generation fell"));
        let back = matches!(self.next.status, RolloutStatus::RollingBack | RolloutStatus::RolledBack)
            || self.is_called_back(id, old, new);
        let errand = match (old.errand, new.errand) {
            (old, new) if old == new => true,
            (Errand::Keep, Errand::Forward) => !back,
            (Errand::Forward, Errand::Back) => back,
            (Errand::Keep, Errand::Back) => back && self.next.destination.is_some(),
            (_, _) => false,
        };
        self.expect(errand, || wrong("there is no such way between its errands"));
        let named = self.next.destination.as_ref().map(|to| to.manifest);
        let to_named = named.is_some() && new.manifest == named;
        let right = match new.errand {
            Errand::Back => to_named || new.manifest == new.previous,
            Errand::Keep | Errand::Forward => new.manifest == manifest,
        };
        let sent_back = new.errand == Errand::Back && old.errand != Errand::Back;
        if let (true, Some(to), Some(facts)) = (sent_back, &self.next.destination, self.fleet.devices.get(id)) {
            let able = is_able(to, facts);
            self.expect(able == to_named || new.previous == named, || {
                wrong("it is to go back to the bundle that was named if it can run that, and only then")
            });
        }
        self.expect(right, || wrong("it is told to run what is neither the bundle nor its past"));
        let beside = match (old.errand, new.errand) {
            (_, Errand::Keep | Errand::Back) => false,
            (Errand::Keep, Errand::Forward) => runs_beside(self.next, self.before.current_wave),
            (Errand::Forward | Errand::Back, Errand::Forward) => old.beside && !promoted,
        };
        self.expect(new.beside == beside, || wrong("it is not told to run it in the part asked for"));
        if (old.errand, old.generation) == (new.errand, new.generation) {
            return;
        }
        self.expect(new.generation > old.generation, || wrong("a new errand needs a new generation"));
        let retried = old.failure.is_some() && new.errand == Errand::Forward;
        self.expect(!retried, || wrong("it failed and is tried again"));
        match self.fleet.devices.get(id) {
            Some(facts) => {
                self.expect(!facts.revoked, || wrong("it is revoked and got a generation"));
                self.expect(!is_foreign(&self.before.id, old, facts), || wrong("it belongs to another rollout"));
                let newer = new.generation > reported_generation(facts) && new.generation > desired_generation(facts);
                self.expect(newer, || wrong("its generation is not new"));
            }
            None => self.found.push(wrong("it does not exist and got a generation")),
        }
    }

    fn new_target(&mut self, id: &DeviceId, target: &Target) {
        let (before, next) = (self.before, self.next);
        let refuse = |why| Violation::TakenIn { device: id.clone(), why };
        let open = matches!(next.status, RolloutStatus::Running | RolloutStatus::Completed);
        self.expect(open, || refuse("the rollout takes nobody in"));
        let current = target.wave == next.current_wave || target.wave == before.current_wave;
        self.expect(current, || refuse("its wave has not come"));
        let Some(facts) = self.fleet.devices.get(id) else {
            return self.found.push(refuse("it does not exist"));
        };
        let wave = next.spec.waves.get(target.wave as usize);
        self.expect(wave.is_some_and(|w| is_meant(next, w, id, facts)), || refuse("it is not selected"));
        self.expect(!facts.revoked, || refuse("it is revoked"));
        self.expect(facts.held_by.is_none(), || refuse("another rollout has it"));
        self.expect(!is_kept_out(next, id), || refuse("it is held back for good, or came later and is left out"));
        self.expect(is_admitted(next, facts), || refuse("it is pinned, or quarantined and this is no emergency"));
        self.expect(can_take_part(next, facts), || refuse("it is not known to be able to run the bundle"));
        let in_its_group = target.group.as_ref() == group_said(next, facts);
        self.expect(in_its_group && can_join(next, facts), || {
            refuse("it is not known to be able to switch with its group")
        });
        let is_beside = runs_beside(next, target.wave);
        self.expect(!is_beside || has_incumbent(facts), || refuse("it has nothing that the bundle could run beside"));
        self.expect(target.beside == (is_beside && target.errand == Errand::Forward), || {
            refuse("it is not told to run the bundle in the part asked for")
        });
        self.expect(target.manifest == Some(next.bundle.manifest), || refuse("it is told to run something else"));
        match target.errand {
            Errand::Keep => {
                self.expect(says_committed(target, facts), || refuse("it is said to have the bundle and has not"));
            }
            Errand::Forward => {
                let newer =
                    target.generation > reported_generation(facts) && target.generation > desired_generation(facts);
                self.expect(newer, || refuse("its generation is not new"));
            }
            Errand::Back => self.found.push(refuse("it was never told to run the bundle")),
        }
    }

    /// Of the devices a wave is meant for and may have, those that are in must not exceed its size.
    fn cap(&mut self, wave: u32) {
        if self.next.spec.blue_green.is_some() {
            return self.group_cap(wave);
        }
        let Some((have, allowed)) = self.places(wave) else { return };
        self.expect(have <= allowed, || Violation::CapExceeded { wave, have, allowed });
    }

    /// Devices that take up room in a wave, and how many may; none where there is no such wave.
    pub(super) fn places(&self, wave: u32) -> Option<(usize, usize)> {
        let next = self.next;
        let spec = next.spec.waves.get(wave as usize)?;
        let (mut all, mut have) = (0, 0);
        for (id, facts) in self.fleet.devices.iter().filter(|(_, facts)| !facts.revoked) {
            // Those that came in with a later wave stand for what they were before: candidates.
            match next.targets.get(id).filter(|target| target.wave <= wave) {
                Some(target) => {
                    let counts = !is_foreign(&next.id, target, facts) && takes_room((wave, spec), id, target, facts);
                    all += usize::from(counts);
                    have += usize::from(counts && (!target.beside || runs_beside(next, wave)));
                }
                None => {
                    let fits = !runs_beside(next, wave) || has_incumbent(facts);
                    let kept = is_kept_out(next, id) || !is_admitted(next, facts);
                    let free = facts.held_by.is_none() && !kept && fits && can_take_part(next, facts);
                    let tellable = reported_generation(facts).max(desired_generation(facts)) < u64::MAX;
                    all += usize::from(free && tellable && is_meant(next, spec, id, facts));
                }
            }
        }
        Some((have, spec.size.of(all)))
    }
}
