//! Groups of devices that switch together.
//!
//! Waves take whole groups in. Every device of one is told to prepare the bundle and to hold; once all of the group that can be reached
//! are ready, all of it is told one time to switch at, under a new generation each. Who was away then finds that time past when it
//! returns, and switches at once. A group that does not get ready keeps to what it serves, and the wave waits for it.

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::ids::DeviceId;
use muster_shared::messages::{HeldBack, UpdateState};
use muster_shared::rollout::{Prepared, RolloutSpec, Waiting, WaveSpec};
use muster_shared::trust::Activation;

use crate::cohort::{Survey, hash};
use crate::fleet::{DeviceFacts, Fleet};
use crate::rollout::{Errand, Rollout, Target};
use crate::standing::{Standing, fresh_generation, past, standing};

impl Rollout {
    /// When the device switches to what this rollout tells it to run.
    #[must_use]
    pub fn activation(&self, device: &DeviceId) -> Activation {
        self.targets.get(device).map(|target| target.activation).unwrap_or_default()
    }
}

/// The group of a device that is not in yet; none where the rollout knows no groups, or the device does not say.
pub(crate) fn group_of(spec: &RolloutSpec, facts: &DeviceFacts) -> Option<String> {
    let key = &spec.blue_green.as_ref()?.group_by;
    facts.label_or_attribute(key).cloned()
}

/// Why a device cannot switch with others.
pub(crate) fn misfits(spec: &RolloutSpec, facts: &DeviceFacts) -> Vec<String> {
    let Some(blue_green) = &spec.blue_green else { return Vec::new() };
    let mut faults = Vec::new();
    if group_of(spec, facts).is_none() {
        faults
            .push(format!("it has no label or attribute {:?}, by which devices switch together", blue_green.group_by));
    }
    if !facts.reported.as_ref().is_some_and(|report| report.can_hold) {
        faults.push("its agent cannot prepare a bundle and wait: bring it a later muster-agent".to_owned());
    }
    faults
}

/// What a device is told first.
pub(crate) fn first_word(spec: &RolloutSpec) -> Activation {
    if spec.blue_green.is_some() { Activation::Hold } else { Activation::AtOnce }
}

/// Whether the device has prepared what `target` says, and waits.
pub(crate) fn is_ready(target: &Target, facts: &DeviceFacts) -> bool {
    facts.reported.as_ref().is_some_and(|report| {
        let update = &report.update;
        let waits = matches!(update.held_back, Some(HeldBack::Switch { .. }));
        update.generation == target.generation && update.state == UpdateState::Verified && waits
    })
}

/// The devices that the wave takes in beyond the `members`, of those that `may` come in now: whole groups, in the order of a hash, and whoever belongs to a group that is in.
pub(crate) fn additions<'f, T>(
    survey: &Survey<'f>,
    wave: u32,
    spec: &WaveSpec,
    members: &BTreeMap<DeviceId, T>,
    may: impl Fn(&DeviceId, &DeviceFacts) -> bool,
) -> Vec<(&'f DeviceId, &'f DeviceFacts)> {
    let (mut all, mut inside) = (BTreeSet::new(), BTreeSet::new());
    let meant = || survey.candidates.iter().filter(|candidate| candidate.is_for(wave, spec));
    for candidate in meant() {
        let Some(group) = candidate.group.as_deref() else { continue };
        all.insert(group);
        if members.contains_key(candidate.id) {
            inside.insert(group);
        }
    }
    let room = spec.size.of(all.len()).saturating_sub(inside.len());
    let mut outside: Vec<_> = all.difference(&inside).map(|group| (hash(&survey.rollout, group), *group)).collect();
    outside.sort_unstable();
    inside.extend(outside.into_iter().take(room).map(|(_, group)| group));
    meant()
        .filter(|candidate| !members.contains_key(candidate.id))
        .filter(|candidate| candidate.group.as_deref().is_some_and(|group| inside.contains(group)))
        .map(|candidate| (candidate.id, candidate.facts))
        .filter(|(id, facts)| may(id, facts))
        .collect()
}

/// Tells groups that are ready when to switch. The wave's longest duration runs from then on. Times that lie too
/// far ahead, because the clock was set back, are told anew.
pub(crate) fn switch(next: &mut Rollout, fleet: &Fleet, survey: &Survey<'_>, now_ms: u64) {
    let Some(lead_ms) = next.spec.blue_green.as_ref().map(|blue_green| blue_green.lead_ms) else { return };
    let mut groups = preparing(next, fleet, survey);
    groups.retain(|_, Prepared { ready, of }| *ready > 0 && ready == of);
    let told = tell(next, fleet, now_ms, lead_ms, |group, target, _| match target.activation {
        Activation::Hold => groups.contains_key(group),
        Activation::At { at_ms } => at_ms > now_ms.saturating_add(lead_ms),
        Activation::AtOnce => false,
    });
    if told && let Some(state) = next.waves.get_mut(next.current_wave as usize) {
        state.clock_from_ms = Some(now_ms);
    }
}

/// The rollout completes: whoever has been away all the time switches when it returns, as there is nobody left to tell it.
pub(crate) fn release(next: &mut Rollout, fleet: &Fleet, now_ms: u64) {
    if let Some(lead_ms) = next.spec.blue_green.as_ref().map(|blue_green| blue_green.lead_ms) {
        tell(next, fleet, now_ms, lead_ms, |_, target, facts| target.activation == Activation::Hold && !facts.online);
    }
}

/// Gives the time to every device of which `is_meant` says so, and that has not arrived.
fn tell(
    next: &mut Rollout,
    fleet: &Fleet,
    now_ms: u64,
    lead_ms: u64,
    is_meant: impl Fn(&str, &Target, &DeviceFacts) -> bool,
) -> bool {
    let mut told = false;
    next.change_governed(fleet, |_, _, target, facts| {
        let group = target.group.as_deref().unwrap_or_default();
        if !is_under_way(target, facts) || !is_meant(group, target, facts) {
            return;
        }
        if let Some(generation) = fresh_generation(facts, target.generation) {
            target.generation = generation;
            target.previous = past(target, facts);
            target.activation = Activation::At { at_ms: now_ms.saturating_add(lead_ms) };
            target.assigned_at_ms = now_ms;
            target.done_at_ms = None;
            told = true;
        }
    });
    told
}

/// Whether the device is on its way to the bundle. One that has committed it, as it may have before it was told to hold, needs no word.
fn is_under_way(target: &Target, facts: &DeviceFacts) -> bool {
    target.errand == Errand::Forward && target.failure.is_none() && standing(target, facts) != Standing::Done
}

/// Groups that have not been told to switch, and how far they are. Who may come in and has not belongs to its group already.
fn preparing(rollout: &Rollout, fleet: &Fleet, survey: &Survey<'_>) -> BTreeMap<String, Prepared> {
    let mut groups: BTreeMap<String, Prepared> = BTreeMap::new();
    for (_, target, facts) in rollout.governed_targets(fleet) {
        let Some(group) = target.group.as_ref().filter(|_| target.activation == Activation::Hold) else { continue };
        if is_under_way(target, facts) && facts.online {
            let prepared = groups.entry(group.clone()).or_insert(Prepared { ready: 0, of: 0 });
            prepared.of += 1;
            prepared.ready += u32::from(is_ready(target, facts));
        }
    }
    if !groups.is_empty()
        && let Some(spec) = rollout.spec.waves.get(rollout.current_wave as usize)
    {
        let outside = survey
            .wave_candidates(rollout.current_wave, spec)
            .filter(|(id, facts)| facts.online && !rollout.targets.contains_key(*id));
        for group in outside.filter_map(|(_, facts)| group_of(&rollout.spec, facts)) {
            groups.entry(group).and_modify(|prepared| prepared.of += 1);
        }
    }
    groups
}

/// What groups wait for.
pub(crate) fn waits(rollout: &Rollout, fleet: &Fleet, survey: &Survey<'_>, now_ms: u64) -> Vec<Waiting> {
    if rollout.spec.blue_green.is_none() {
        return Vec::new();
    }
    let mut switching: BTreeMap<String, u64> = BTreeMap::new();
    for (_, target, facts) in rollout.governed_targets(fleet) {
        if let (Activation::At { at_ms }, Some(group)) = (target.activation, &target.group)
            && at_ms > now_ms
            && is_under_way(target, facts)
        {
            switching.insert(group.clone(), at_ms);
        }
    }
    let preparing = preparing(rollout, fleet, survey);
    let preparing = (!preparing.is_empty()).then_some(Waiting::Preparing { groups: preparing });
    let switching = (!switching.is_empty()).then_some(Waiting::Switching { groups: switching });
    preparing.into_iter().chain(switching).collect()
}

/// The next time at which a group switches.
pub(crate) fn next_switch_ms(rollout: &Rollout, now_ms: u64) -> Option<u64> {
    let at = rollout.targets.values().filter_map(|target| match target.activation {
        Activation::At { at_ms } if target.done_at_ms.is_none() => Some(at_ms),
        Activation::At { .. } | Activation::AtOnce | Activation::Hold => None,
    });
    at.filter(|at_ms| *at_ms > now_ms).min()
}
