//! Rules about devices that run the bundle as shadow before they serve it.

use muster_shared::ids::{DeviceId, RolloutId};
use muster_shared::rollout::{GateSpec, Metric, RolloutStatus};
use muster_shared::trust::Stage;
use sha2::{Digest as _, Sha256};

use super::reading::{desired_generation, is_foreign, reported_generation, runs_beside, takes_room};
use super::{Case, Violation};
use crate::fleet::DeviceFacts;
use crate::rollout::{Errand, Target};

/// Whether the device was told to serve what it ran as shadow; it may be on its way back since.
pub(super) fn is_promoted(old: &Target, new: &Target) -> bool {
    old.beside && !new.beside && new.wave > old.wave
}

/// The order in which waves take devices: SHA-256 over the rollout, a zero byte and the name.
fn order(rollout: &RolloutId, id: &DeviceId) -> [u8; 32] {
    Sha256::digest(format!("{rollout}\0{id}")).into()
}

impl Case<'_> {
    /// The targets of `wave` and those before it, as they were when it was judged. Who is told to serve with a later one counts as what it was.
    pub(super) fn judged_in(&self, wave: u32) -> impl Iterator<Item = (&DeviceId, &Target)> {
        self.next.targets.iter().filter_map(move |(id, new)| {
            let old = self.before.targets.get(id).filter(|old| new.wave > wave && is_promoted(old, new));
            let target = old.unwrap_or(new);
            (target.wave <= wave).then_some((id, target))
        })
    }

    /// Whether what the device measures is about the wave: a wave that serves is not about shadows of before.
    pub(super) fn counts_in(&self, wave: u32, target: &Target) -> bool {
        !target.beside || runs_beside(self.next, wave)
    }

    /// The most disagreement that is allowed in the wave; none where it is not held against any.
    pub(super) fn most_disagreement(&self, wave: u32) -> Option<f64> {
        let own = self.next.spec.waves.get(wave as usize).and_then(|wave| wave.stage.as_ref());
        let is_shadow = matches!(own.unwrap_or(&self.next.spec.stage), Stage::Shadow { .. });
        self.next.spec.limits.max_disagreement.filter(|_| is_shadow)
    }

    /// Whether a wave was judged by every guardrail that was asked for and can be measured in its part, and by no other.
    pub(super) fn asked_in(&self, wave: u32, judged: &GateSpec) -> bool {
        let Some(asked) = &self.next.spec.gate else { return false };
        let own = self.next.spec.waves.get(wave as usize).and_then(|wave| wave.stage.as_ref());
        let fits = |metric: Metric| match own.unwrap_or(&self.next.spec.stage) {
            Stage::Serve => metric != Metric::Disagreement,
            Stage::Shadow { .. } => !matches!(metric, Metric::Custom | Metric::Memory | Metric::Temperature),
            Stage::Split { .. } => {
                !matches!(metric, Metric::Custom | Metric::Memory | Metric::Temperature | Metric::Disagreement)
            }
        };
        // A gain is asked for in the first wave that runs the bundle as all are to in the end, and in no other.
        let stages = self.next.spec.waves.iter().map(|wave| wave.stage.as_ref().unwrap_or(&self.next.spec.stage));
        let is_experiment = stages.take_while(|stage| **stage != self.next.spec.stage).count() == wave as usize;
        let must_gain = |margin: Option<f64>| margin.is_some_and(|margin| margin <= 0.0);
        let expected = asked
            .guardrails
            .iter()
            .filter(|guardrail| fits(guardrail.metric) && (is_experiment || !must_gain(guardrail.margin)));
        let same = |(asked, used): (&muster_shared::rollout::Guardrail, &muster_shared::rollout::Guardrail)| {
            (asked.metric, asked.margin, &asked.name, asked.range) == (used.metric, used.margin, &used.name, used.range)
        };
        expected.clone().count() == judged.guardrails.len()
            && expected.zip(&judged.guardrails).all(same)
            && (judged.alpha.to_bits(), judged.controls) == (asked.alpha.to_bits(), asked.controls)
    }

    /// A device serves what it ran as shadow under a new generation, in a wave that serves, and only if it did not fail.
    pub(super) fn promoted(&mut self, id: &DeviceId, old: &Target, new: &Target) {
        let (before, next) = (self.before, self.next);
        let wrong = |why| Violation::Target { device: id.clone(), why };
        self.expect(before.status == RolloutStatus::Running, || wrong("it is told to serve while nothing runs"));
        let current = new.wave == before.current_wave || new.wave == next.current_wave;
        self.expect(current && !runs_beside(next, new.wave), || wrong("it is told to serve before its wave"));
        self.expect(old.failure.is_none(), || wrong("it failed as shadow and is told to serve"));
        self.expect(new.generation > old.generation, || wrong("it is told to serve without a new generation"));
        let spec = next.spec.waves.get(new.wave as usize);
        let meant = spec
            .zip(self.fleet.devices.get(id))
            .is_some_and(|(spec, facts)| takes_room((new.wave, spec), id, old, facts));
        self.expect(meant, || wrong("it is told to serve with a wave that is not for it"));
    }

    /// Shadows serve in the order of their hashes and before others come in; and nobody is left as shadow in the end.
    pub(super) fn shadows_first(&mut self) {
        let (before, next) = (self.before, self.next);
        let wave = next.current_wave;
        let Some(spec) = next.spec.waves.get(wave as usize).filter(|_| !runs_beside(next, wave)) else { return };
        let goes_on = matches!(next.status, RolloutStatus::Running | RolloutStatus::Completed);
        if before.status != RolloutStatus::Running || !goes_on {
            return;
        }
        let is_left = |id: &DeviceId, target: &Target, facts: &DeviceFacts| {
            let tellable = reported_generation(facts).max(desired_generation(facts)).max(target.generation) < u64::MAX;
            let ours = !facts.revoked && !is_foreign(&next.id, target, facts);
            let waits = target.beside && target.errand == Errand::Forward && target.failure.is_none();
            waits && ours && tellable && takes_room((wave, spec), id, target, facts)
        };
        let left: Vec<(&DeviceId, &DeviceFacts)> = next
            .targets
            .iter()
            .filter_map(|(id, target)| Some((id, target, self.fleet.devices.get(id)?)))
            .filter(|(id, target, facts)| is_left(id, target, facts))
            .map(|(id, _, facts)| (id, facts))
            .collect();
        if next.status == RolloutStatus::Completed {
            for (id, _) in &left {
                let why = "the rollout completed, and it is still told to run the bundle as shadow";
                self.found.push(Violation::Target { device: (*id).clone(), why });
            }
        }
        // Those that a freeze or their windows keep out lose their turn for now, and hold their place.
        let free = left.iter().filter(|(id, facts)| next.spec.emergency || !self.is_shut(id, facts));
        let Some(first) = free.map(|(id, _)| order(&next.id, id)).min() else { return };
        for (id, target) in next.targets.iter().filter(|(_, target)| target.wave == wave) {
            let out_of_turn = match before.targets.get(id) {
                None => true,
                Some(old) => is_promoted(old, target) && order(&next.id, id) > first,
            };
            self.expect(!out_of_turn, || Violation::TakenIn {
                device: id.clone(),
                why: "a device that ran the bundle as shadow goes first",
            });
        }
    }
}
