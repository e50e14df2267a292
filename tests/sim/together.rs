//! What must hold of groups of devices that switch together, written from what they promise.

use std::collections::BTreeSet;

use muster_rollout::{Decision, DeviceFacts, Errand, Fleet, Rollout, Target};
use muster_shared::ids::DeviceId;
use muster_shared::messages::{HeldBack, UpdateState};
use muster_shared::rollout::WaveSpec;
use muster_shared::trust::Activation;

use crate::rules::{has_say, holds, may_come_in};

/// The group of a device by what it says itself.
pub(crate) fn site<'f>(rollout: &Rollout, facts: &'f DeviceFacts) -> Option<&'f String> {
    rollout.spec.blue_green.as_ref().and_then(|wish| facts.labels.get(&wish.group_by))
}

fn is_told(target: &Target) -> bool {
    target.errand == Errand::Forward && matches!(target.activation, Activation::At { .. })
}

/// Who is told a time to switch is told it with its whole group, and everybody of that who can be reached had said that it is ready.
pub(crate) fn together(before: &Rollout, next: &Rollout, fleet: &Fleet) -> Result<(), String> {
    let was_told = |id: &DeviceId| before.targets.get(id).is_some_and(is_told);
    let told: BTreeSet<_> =
        next.targets.iter().filter(|(id, t)| is_told(t) && !was_told(id)).map(|(_, t)| t.group.as_ref()).collect();
    for (id, target) in next.targets.iter().filter(|(id, t)| told.contains(&t.group.as_ref()) && !was_told(id)) {
        let Some(facts) = fleet.devices.get(id).filter(|facts| has_say(&next.id, target, facts)) else { continue };
        if target.errand != Errand::Forward || target.failure.is_some() || !facts.online {
            continue;
        }
        let Some(update) = facts.reported.as_ref().map(|report| &report.update) else { continue };
        let old = before.targets.get(id).filter(|old| old.generation == update.generation);
        let has_it = matches!(update.state, UpdateState::Committed | UpdateState::Idle);
        let waits = matches!(update.held_back, Some(HeldBack::Switch { .. })) && update.state == UpdateState::Verified;
        holds(old.is_some() && (waits || has_it), || {
            format!("{}: {:?} switches and {id} is not ready", next.id, target.group)
        })?;
        holds(has_it || is_told(target), || format!("{}: {:?} switches without {id}", next.id, target.group))?;
    }
    Ok(())
}

/// A stopped rollout goes on with nothing but calling back, from a switch that has not come, those of whom it does not know that they serve
/// the bundle.
pub(crate) fn recalls(before: &Rollout, decision: &Decision, fleet: &Fleet) -> Result<(), String> {
    let next = &decision.next;
    let goes_on = || format!("{} was stopped and goes on", next.id);
    let (targets, updated_at_ms) = (next.targets.clone(), next.updated_at_ms);
    let same = Rollout { targets, updated_at_ms, ..before.clone() } == *next;
    holds(same && (next.spec.blue_green.is_some() || decision.actions.is_empty()), goes_on)?;
    for (id, target) in &next.targets {
        let old = before.targets.get(id).ok_or_else(goes_on)?;
        let turned = old.errand == Errand::Forward && target.errand == Errand::Back;
        holds(turned || old.errand == target.errand, goes_on)?;
        let Some(facts) = fleet.devices.get(id).filter(|facts| has_say(&before.id, old, facts)) else { continue };
        let Some(report) = &facts.reported else { continue };
        let serves = report.running.as_ref().is_some_and(|running| running.manifest == before.bundle.manifest);
        holds(!turned || !serves, || format!("{}: {id} serves the bundle and is called back", next.id))?;
        let holds_it = matches!(report.update.held_back, Some(HeldBack::Switch { .. }));
        let is_left = target.errand == Errand::Forward
            && holds_it
            && !serves
            && target.failure.is_none()
            && report.update.generation == target.generation
            && report.generation < u64::MAX;
        holds(!is_left, || format!("{} was stopped, and {id} still waits to switch", next.id))?;
    }
    Ok(())
}

/// A wave that takes another group in has no more of them than its size says.
pub(crate) fn group_cap(
    before: &Rollout,
    next: &Rollout,
    (wave, spec): (u32, &WaveSpec),
    fleet: &Fleet,
) -> Result<(), String> {
    let known: BTreeSet<_> = before.targets.values().filter_map(|target| target.group.as_ref()).collect();
    let came = next.targets.iter().filter(|(id, target)| target.wave == wave && !before.targets.contains_key(*id));
    if came.filter_map(|(_, target)| target.group.as_ref()).all(|group| known.contains(group)) {
        return Ok(());
    }
    let (mut all, mut have) = (BTreeSet::new(), BTreeSet::new());
    for (id, facts) in &fleet.devices {
        let meant = |s: &muster_shared::selector::Selector| facts.is_meant_by(s, id);
        let in_wave = spec.selector.as_ref().is_none_or(meant);
        if let Some(target) = next.targets.get(id).filter(|target| target.wave <= wave) {
            if has_say(&next.id, target, facts) && (target.wave == wave || in_wave) {
                all.extend(target.group.as_ref());
                have.extend(target.group.as_ref());
            }
        } else if may_come_in(next, spec, id, facts) {
            all.extend(site(next, facts));
        }
    }
    let size = spec.size.of(all.len());
    holds(have.len() <= size, || {
        format!("{}: wave {wave} has the groups {have:?} of {all:?}, its size is {size}", next.id)
    })
}
