//! How a device of a rollout stands to what it was told, as far as its last report shows.

use muster_shared::ids::{DeviceId, Digest, RolloutId};
use muster_shared::limits::bounded_text;
use muster_shared::messages::{HeldBack, UpdateState};

use crate::fleet::{Desired, DeviceFacts, Fleet};
use crate::rollout::{Errand, Rollout, Target};
use crate::walk::side_by_side;

/// How a device stands to its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has not taken the target up.
    Unheard,
    /// It works on it.
    Working,
    /// It serves the bundle under watch.
    Trial,
    /// It runs what it was told, and keeps it.
    Done,
    /// It could not, or would not.
    Failed(String),
    /// It knows a newer generation than the target's, or has lost the bundle it was said to keep.
    Astray,
}

impl Rollout {
    /// What is known of the device `id` if the rollout still has a say over it: it exists, is not revoked, and no other
    /// rollout has taken it. The store's word on whose assignment it has is the last one: two rollouts can claim a device
    /// when one that was finished is told to go back.
    pub(crate) fn governed<'f>(&self, id: &DeviceId, target: &Target, fleet: &'f Fleet) -> Option<&'f DeviceFacts> {
        fleet.devices.get(id).filter(|facts| self.governs(target, facts))
    }

    fn governs(&self, target: &Target, facts: &DeviceFacts) -> bool {
        !facts.revoked && !is_taken(&self.id, target, facts)
    }

    /// The targets that the rollout has a say over, with what is known of their devices.
    pub(crate) fn governed_targets<'t, 'f>(
        &'t self,
        fleet: &'f Fleet,
    ) -> impl Iterator<Item = (&'t DeviceId, &'t Target, &'f DeviceFacts)> {
        self.governed_of(&self.targets, fleet)
    }

    /// Those of `targets`, which come in the order of their names, that the rollout has a say over.
    pub(crate) fn governed_of<'t, 'f>(
        &'t self,
        targets: impl IntoIterator<Item = (&'t DeviceId, &'t Target)>,
        fleet: &'f Fleet,
    ) -> impl Iterator<Item = (&'t DeviceId, &'t Target, &'f DeviceFacts)> {
        side_by_side(targets, &fleet.devices)
            .filter_map(|(id, target, facts)| Some((id, target, facts.filter(|facts| self.governs(target, facts))?)))
    }

    /// Does `change` to every target that the rollout has a say over.
    pub(crate) fn change_governed<'f>(
        &mut self,
        fleet: &'f Fleet,
        mut change: impl FnMut(&Self, &DeviceId, &mut Target, &'f DeviceFacts),
    ) {
        let mut changed = Vec::new();
        for (at, (id, target, facts)) in side_by_side(&self.targets, &fleet.devices).enumerate() {
            let Some(facts) = facts.filter(|facts| self.governs(target, facts)) else { continue };
            let mut next = target.clone();
            change(self, id, &mut next, facts);
            if next != *target {
                changed.push((at, next));
            }
        }
        self.targets.replace(changed);
    }
}

/// Whether another rollout has the device now.
pub(crate) fn is_taken(rollout: &RolloutId, target: &Target, facts: &DeviceFacts) -> bool {
    match &facts.desired {
        Some(desired) if desired.rollout == *rollout => false,
        Some(desired) => {
            facts.held_by.is_some()
                || match target.errand {
                    Errand::Keep => desired.manifest != target.manifest,
                    Errand::Forward | Errand::Back => desired.generation >= target.generation,
                }
        }
        None => facts.held_by.is_some(),
    }
}

/// Whether the device has arrived where its target wants it, and has not failed.
pub(crate) fn has_arrived(target: &Target, facts: &DeviceFacts) -> bool {
    target.failure.is_none() && standing(target, facts) == Standing::Done
}

/// How the device stands.
pub(crate) fn standing(target: &Target, facts: &DeviceFacts) -> Standing {
    match target.errand {
        Errand::Keep => match target.manifest.and_then(|manifest| settled_generation(facts, manifest)) {
            Some(generation) if generation == target.generation => Standing::Done,
            Some(_) | None => Standing::Astray,
        },
        Errand::Forward | Errand::Back => told(target, facts),
    }
}

fn told(target: &Target, facts: &DeviceFacts) -> Standing {
    if newest_generation(facts) > target.generation {
        return Standing::Astray;
    }
    let Some(report) = &facts.reported else { return Standing::Unheard };
    let is_about_it = report.update.generation == target.generation;
    let runs_it = report.running.as_ref().map(|bundle| bundle.manifest) == target.manifest;
    let has_gone_back = target.errand == Errand::Back && runs_it;
    // A device may refuse a generation without accepting it, so this comes before the question of acceptance.
    let failed = match report.update.state {
        _ if !is_about_it || has_gone_back => None,
        UpdateState::Failed if has_refused(target, facts) => Some("rejected"),
        UpdateState::Failed => Some("failed"),
        UpdateState::Reverted => Some("reverted"),
        UpdateState::Idle
        | UpdateState::Fetching
        | UpdateState::Verified
        | UpdateState::Beside
        | UpdateState::Trial
        | UpdateState::Committed
        | UpdateState::Other => None,
    };
    if let Some(how) = failed {
        return Standing::Failed(words(how, report.update.reason.as_deref()));
    }
    let refused_in_peace = is_about_it && has_gone_back && report.update.state.is_final();
    if report.generation < target.generation && !refused_in_peace {
        return Standing::Unheard;
    }
    let has_committed_it = report.committed.as_ref().map(|bundle| bundle.manifest) == target.manifest;
    match report.update.state {
        UpdateState::Idle | UpdateState::Committed | UpdateState::Reverted | UpdateState::Failed if has_gone_back => {
            Standing::Done
        }
        UpdateState::Idle | UpdateState::Committed
            if is_about_it && target.errand == Errand::Forward && has_committed_it =>
        {
            Standing::Done
        }
        // What runs beside another has arrived, and is not committed.
        UpdateState::Beside if is_about_it && target.errand == Errand::Forward && target.beside => Standing::Done,
        UpdateState::Trial if is_about_it => Standing::Trial,
        UpdateState::Idle
        | UpdateState::Fetching
        | UpdateState::Verified
        | UpdateState::Beside
        | UpdateState::Trial
        | UpdateState::Committed
        | UpdateState::Reverted
        | UpdateState::Failed
        | UpdateState::Other => Standing::Working,
    }
}

/// Whether the device, where it failed, would not take up what it was told: it says so, or has not accepted that generation.
pub(crate) fn has_refused(target: &Target, facts: &DeviceFacts) -> bool {
    facts.reported.as_ref().is_some_and(|report| {
        let is_about_it = report.update.generation == target.generation;
        let has_failed = matches!(report.update.state, UpdateState::Failed | UpdateState::Reverted);
        is_about_it && has_failed && (report.update.refused || report.generation < target.generation)
    })
}

/// What keeps the device from fetching what `target` says, as far as it says so.
pub(crate) fn held_back(target: &Target, facts: &DeviceFacts) -> Option<HeldBack> {
    let update = &facts.reported.as_ref()?.update;
    let fetches_it = update.generation == target.generation && update.state == UpdateState::Fetching;
    update.held_back.filter(|_| fetches_it)
}

fn words(how: &str, reason: Option<&str>) -> String {
    match reason.map(str::trim).filter(|reason| !reason.is_empty()) {
        Some(reason) => bounded_text(&format!("{how}: {reason}")),
        None => how.to_owned(),
    }
}

/// What the device will go back to. As long as it has not taken up its first generation, its reports say so better than
/// the first one did: it may have come to something else since, or not have been heard of at all.
pub(crate) fn past(target: &Target, facts: &DeviceFacts) -> Option<Digest> {
    match &facts.reported {
        Some(report)
            if target.errand == Errand::Forward && target.attempts == 1 && report.generation < target.generation =>
        {
            report.committed.as_ref().map(|bundle| bundle.manifest)
        }
        Some(_) | None => target.previous,
    }
}

/// The generation under which the device runs `manifest` for good, with nothing else on its way.
pub(crate) fn settled_generation(facts: &DeviceFacts, manifest: Digest) -> Option<u64> {
    let report = facts.reported.as_ref()?;
    let nothing_else = facts
        .desired
        .as_ref()
        .is_none_or(|desired| desired.manifest == Some(manifest) && desired.generation <= report.generation);
    let at_rest = match report.update.state {
        UpdateState::Idle | UpdateState::Committed => true,
        UpdateState::Fetching
        | UpdateState::Verified
        | UpdateState::Beside
        | UpdateState::Trial
        | UpdateState::Reverted
        | UpdateState::Failed
        | UpdateState::Other => false,
    };
    let committed = report.committed.as_ref().is_some_and(|bundle| bundle.manifest == manifest);
    let running = report.running.as_ref().filter(|bundle| bundle.manifest == manifest)?;
    (nothing_else && at_rest && committed).then_some(running.generation)
}

/// The highest generation that the store or the device itself knows of.
pub(crate) fn newest_generation(facts: &DeviceFacts) -> u64 {
    let desired = facts.desired.as_ref().map_or(0, |desired| desired.generation);
    let reported = facts.reported.as_ref().map_or(0, |report| report.generation);
    desired.max(reported)
}

/// A generation above every one that the store, the device or `least` knows of; none when there is none left.
pub(crate) fn fresh_generation(facts: &DeviceFacts, least: u64) -> Option<u64> {
    newest_generation(facts).max(least).checked_add(1)
}

/// Whether the store already says what `target` says.
pub(crate) fn is_stored(rollout: &RolloutId, target: &Target, desired: Option<&Desired>) -> bool {
    desired.is_some_and(|desired| {
        desired.rollout == *rollout && desired.generation == target.generation && desired.manifest == target.manifest
    })
}
