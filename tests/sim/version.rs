//! Fleets of agents of several versions: what a document says to its device, and how many devices a version keeps out.

use muster_rollout::{Decision, Fleet, Rollout};
use muster_shared::ids::DeviceId;
use muster_shared::rollout::{RolloutStatus, Waiting};
use muster_shared::trust::Assignment;

use crate::store::Told;

/// Whether the document says all that its device was told but for how to fetch it.
pub(crate) fn says(document: &Assignment, told: &Told) -> bool {
    (document.manifest, document.generation) == (told.manifest, told.generation)
        && (&document.stage, document.activation) == (&told.stage, told.activation)
}

/// Devices that a plan leaves out for what their agents do not know, and those of earlier versions that a rollout has reached which completes.
pub(crate) fn counted(before: &Rollout, decision: &Decision, fleet: &Fleet) -> (u64, u64) {
    let lacks = |why: &&String| why.contains("update the agent first");
    let left_out = decision.waiting.iter().map(|waiting| {
        if let Waiting::Unsuitable { devices } = waiting { devices.values().filter(lacks).count() } else { 0 }
    });
    let is_old = |id: &DeviceId| {
        fleet.devices.get(id).and_then(|facts| facts.reported.as_ref()).is_some_and(|report| report.protocol < 2)
    };
    let completes = decision.next.status == RolloutStatus::Completed && before.status != RolloutStatus::Completed;
    let targets = decision.next.targets.iter().filter(|(id, target)| target.done_at_ms.is_some() && is_old(id));
    (left_out.sum::<usize>() as u64, if completes { targets.count() as u64 } else { 0 })
}
