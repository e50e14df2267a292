//! Agents of earlier versions: what they read of what they are sent. Each refuses fields that it does not know, in silence, as the real ones did.

use muster_rollout::{Decision, Fleet, Rollout};
use muster_shared::ids::{DeviceId, Digest, RolloutId};
use muster_shared::rollout::{RolloutStatus, Waiting};
use muster_shared::trust::{Activation, Assignment, DeliveryPolicy, Stage, WatchPolicy};
use serde::Deserialize;

use crate::store::Told;

/// Assignments as the first agents knew them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what matters is what it refuses")]
struct Assignment0 {
    device: DeviceId,
    rollout: RolloutId,
    manifest: Option<Digest>,
    generation: u64,
    issued_at_ms: u64,
    expires_ms: u64,
    watch: WatchPolicy,
}

/// Assignments as agents knew them that knew of no programs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what matters is what it refuses")]
struct Assignment1 {
    device: DeviceId,
    rollout: RolloutId,
    manifest: Option<Digest>,
    generation: u64,
    issued_at_ms: u64,
    expires_ms: u64,
    watch: WatchPolicy,
    #[serde(default)]
    delivery: DeliveryPolicy,
    #[serde(default)]
    stage: Stage,
    #[serde(default)]
    activation: Activation,
}

/// Whether an agent of number `protocol` reads the document.
pub(crate) fn reads(protocol: u32, document: &Assignment) -> bool {
    let Ok(text) = serde_json::to_string(document) else { return false };
    match protocol {
        0 => serde_json::from_str::<Assignment0>(&text).is_ok(),
        1 => serde_json::from_str::<Assignment1>(&text).is_ok(),
        _ => serde_json::from_str::<Assignment>(&text).is_ok(),
    }
}

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
