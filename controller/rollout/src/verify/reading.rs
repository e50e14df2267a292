//! What facts about a device mean for a rollout, read for the checker alone.

use std::collections::BTreeMap;

use muster_shared::ids::{DeviceId, RolloutId};
use muster_shared::messages::{StateReport, UpdateState};
use muster_shared::rollout::{WaveSize, WaveSpec};
use muster_shared::trust::Stage;
use sha2::{Digest as _, Sha256};

use crate::fleet::DeviceFacts;
use crate::rollout::{BundleFacts, Errand, Rollout, Target};

/// The highest generation reported; 0 without a report.
pub(super) fn reported_generation(facts: &DeviceFacts) -> u64 {
    facts.reported.as_ref().map_or(0, |report| report.generation)
}

/// The generation in the store; 0 without one.
pub(super) fn desired_generation(facts: &DeviceFacts) -> u64 {
    facts.desired.as_ref().map_or(0, |desired| desired.generation)
}

/// Whether the store says that the device is another rollout's.
pub(super) fn is_foreign(rollout: &RolloutId, target: &Target, facts: &DeviceFacts) -> bool {
    let Some(desired) = &facts.desired else { return facts.held_by.is_some() };
    if desired.rollout == *rollout {
        return false;
    }
    let moved_on = if target.errand == Errand::Keep {
        desired.manifest != target.manifest
    } else {
        desired.generation >= target.generation
    };
    facts.held_by.is_some() || moved_on
}

/// Whether the store has this very assignment.
pub(super) fn is_in_store(rollout: &RolloutId, target: &Target, facts: &DeviceFacts) -> bool {
    match &facts.desired {
        Some(desired) => {
            (&desired.rollout, desired.generation, desired.manifest) == (rollout, target.generation, target.manifest)
        }
        None => false,
    }
}

fn runs(report: &StateReport, target: &Target) -> bool {
    report.running.as_ref().map(|bundle| bundle.manifest) == target.manifest
}

fn has_committed_it(report: &StateReport, target: &Target) -> bool {
    report.committed.as_ref().map(|bundle| bundle.manifest) == target.manifest
}

/// Whether the device's last word is that it committed what the target says, under the target's generation.
pub(super) fn says_committed(target: &Target, facts: &DeviceFacts) -> bool {
    facts.reported.as_ref().is_some_and(|report| match target.errand {
        Errand::Keep => runs(report, target) && has_committed_it(report, target),
        Errand::Forward | Errand::Back => {
            report.update.generation == target.generation
                && matches!(report.update.state, UpdateState::Committed | UpdateState::Idle)
                && has_committed_it(report, target)
        }
    })
}

/// Whether the device's last word is that it has arrived where the target wants it: it has committed the bundle, or runs it beside the
/// one it has committed, where that is what it was told.
pub(super) fn says_arrived(target: &Target, facts: &DeviceFacts) -> bool {
    let runs_beside = target.beside
        && target.errand == Errand::Forward
        && facts.reported.as_ref().is_some_and(|report| {
            (report.update.state, report.update.generation) == (UpdateState::Beside, target.generation)
        });
    runs_beside || says_committed(target, facts)
}

/// Whether devices that come in with the wave run the bundle beside what they have: the wave says so, or else the rollout.
pub(super) fn runs_beside(rollout: &Rollout, wave: u32) -> bool {
    let own = rollout.spec.waves.get(wave as usize).and_then(|wave| wave.stage.as_ref());
    *own.unwrap_or(&rollout.spec.stage) != Stage::Serve
}

/// Whether the device has committed a bundle that another could run beside.
pub(super) fn has_incumbent(facts: &DeviceFacts) -> bool {
    facts.reported.as_ref().is_some_and(|report| report.committed.is_some())
}

/// Whether the device's last word is that it gave the target up.
pub(super) fn says_failed(target: &Target, facts: &DeviceFacts) -> bool {
    facts.reported.as_ref().is_some_and(|report| {
        report.update.generation == target.generation
            && matches!(report.update.state, UpdateState::Failed | UpdateState::Reverted)
    })
}

/// Whether the device's last word is that it runs what it ran before, and rests.
pub(super) fn says_back(target: &Target, facts: &DeviceFacts) -> bool {
    facts.reported.as_ref().is_some_and(|report| {
        let heard = report.generation.max(report.update.generation) >= target.generation;
        let rests = match report.update.state {
            UpdateState::Idle | UpdateState::Committed | UpdateState::Reverted | UpdateState::Failed => true,
            UpdateState::Fetching
            | UpdateState::Verified
            | UpdateState::Beside
            | UpdateState::Trial
            | UpdateState::Other => false,
        };
        heard && rests && runs(report, target)
    })
}

/// Whether the wave is meant for the device, leaving aside who has it.
pub(super) fn is_meant(rollout: &Rollout, wave: &WaveSpec, id: &DeviceId, facts: &DeviceFacts) -> bool {
    facts.is_meant_by(&rollout.spec.selector, id) && wave.selector.as_ref().is_none_or(|s| facts.is_meant_by(s, id))
}

/// Whether a device that is in takes up room in the wave. What its labels make of the rollout's selector is past.
pub(super) fn takes_room(wave: (u32, &WaveSpec), id: &DeviceId, target: &Target, facts: &DeviceFacts) -> bool {
    let (number, spec) = wave;
    target.wave == number || (target.wave < number && spec.selector.as_ref().is_none_or(|s| facts.is_meant_by(s, id)))
}

/// Whether the rollout never takes the device in: it belongs to the share of devices held back, the first ones by SHA-256 over
/// `muster holdback group`, a zero byte and the name; or it came later where those are left out.
pub(super) fn is_kept_out(rollout: &Rollout, id: &DeviceId) -> bool {
    let later = rollout.meant.as_ref().is_some_and(|meant| !meant.contains(id));
    let share = match rollout.spec.holdback {
        Some(WaveSize::Percent(percent)) => u128::from(percent),
        Some(WaveSize::Count(_)) | None => 0,
    };
    let hash: [u8; 32] = Sha256::digest(format!("muster holdback group\0{id}")).into();
    let first = hash.first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
    later || u128::from(first) * 100 < share * (1 << 64)
}

/// Whether neither people nor its own failures keep the device from the rollout.
pub(super) fn is_admitted(rollout: &Rollout, facts: &DeviceFacts) -> bool {
    facts.pinned.is_none() && (rollout.spec.emergency || facts.quarantined.is_none())
}

/// The least protocol number with which a device reads assignments of the rollout, whatever bundle they name: stages and switches came with 1,
/// programs with 2.
fn asked_number(rollout: &Rollout) -> u32 {
    let waves = 0..u32::try_from(rollout.spec.waves.len()).unwrap_or(u32::MAX);
    let is_new = rollout.spec.blue_green.is_some() || waves.into_iter().any(|wave| runs_beside(rollout, wave));
    if rollout.bundle.track.is_model() { u32::from(is_new) } else { 2 }
}

/// The number that a device says; where it says none, 1 for one that can hold and names the size of its disk.
fn said_number(facts: &DeviceFacts) -> u32 {
    let Some(report) = &facts.reported else { return 0 };
    match report.protocol {
        0 if report.can_hold && report.attributes.contains_key("disk-bytes") => 1,
        said => said,
    }
}

/// Whether the device is known to be able to run the rollout's bundle, and to read what it would be told.
pub(super) fn can_take_part(rollout: &Rollout, facts: &DeviceFacts) -> bool {
    is_able(&rollout.bundle, facts) && said_number(facts) >= asked_number(rollout)
}

/// Whether the device is known to be able to run the bundle, and to read its manifest.
pub(super) fn is_able(bundle: &BundleFacts, facts: &DeviceFacts) -> bool {
    let requirements = &bundle.requirements;
    let of_features = bundle.features.iter().map(|feature| feature.since()).max().unwrap_or(0);
    let of_instructions = u32::from(!requirements.cpu_features.is_empty());
    let of_program = if bundle.track.is_model() { 0 } else { 2 };
    let readable = said_number(facts) >= of_features.max(of_instructions).max(of_program);
    let says = |key: &str| facts.attributes.get(key);
    let right_arch =
        requirements.architectures.is_empty() || says("arch").is_some_and(|a| requirements.architectures.contains(a));
    let enough_memory = requirements.min_memory_bytes == 0
        || says("memory-bytes").and_then(|m| m.parse().ok()).unwrap_or(0u64) >= requirements.min_memory_bytes;
    let new_enough = match &requirements.min_agent_version {
        None => true,
        Some(least) => says("agent-version").is_some_and(|v| v.parse().is_ok_and(|have| *least <= have)),
    };
    let has_instructions = requirements.cpu_features.iter().all(|feature| says(&format!("cpu-{feature}")).is_some());
    // Whatever the device is called and an operator says of it, its own attributes count.
    let is_as_wanted =
        requirements.attributes.as_ref().is_none_or(|wanted| wanted.matches("", &BTreeMap::new(), &facts.attributes));
    right_arch && enough_memory && new_enough && has_instructions && is_as_wanted && readable
}
