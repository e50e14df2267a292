//! Who is compared with whom.
//!
//! A wave takes devices in the order of a hash, so among devices that are alike it was chance which of them became canaries. Only devices
//! that were there when the wave took them in are dealt: being away says nothing of the bundle.

use muster_shared::ids::{DeviceId, Digest};
use muster_shared::limits::MAX_GATE_BLOCKS;
use muster_shared::rollout::{Block, GateSpec, WaveSpec};

use super::GateState;
use crate::cohort::{Survey, hash};
use crate::fleet::DeviceFacts;
use crate::rollout::{Errand, Rollout};
use crate::statistics::{Member, blocks};

/// Deals blocks for the current wave; none while it has no device of its own.
pub(crate) fn deal(rollout: &Rollout, survey: &Survey<'_>, gate: &GateSpec, spec: &WaveSpec) -> Option<GateState> {
    let wave = rollout.current_wave;
    rollout.targets.values().any(|target| target.wave == wave).then(|| {
        let mut dealt = if rollout.wave_stage().is_serve() {
            let mut members: Vec<_> = survey
                .comparable(wave, spec)
                .filter_map(|(id, facts)| Some((hash(&rollout.id, id.as_str()), member(rollout, gate, id, facts)?)))
                .collect();
            members.sort_unstable_by_key(|(hash, _)| *hash);
            blocks(members.into_iter().map(|(_, member)| member), gate.controls as usize)
        } else {
            // Both models see the same device, so what sets devices apart cancels.
            let beside = survey.wave_candidates(wave, spec).filter(|(id, facts)| {
                incumbent(rollout, facts).is_some()
                    && rollout.targets.get(*id).is_some_and(|t| t.wave == wave && t.beside)
            });
            beside.map(|(id, _)| Block { canary: id.clone(), controls: vec![id.clone()] }).collect()
        };
        dealt.truncate(MAX_GATE_BLOCKS);
        GateState { blocks: dealt, judged: None, waived_by: None }
    })
}

/// The bundle that a device which is there has committed, if it is not the rollout's.
fn incumbent(rollout: &Rollout, facts: &DeviceFacts) -> Option<Digest> {
    let committed = rollout.incumbent(facts)?;
    (facts.online && committed != rollout.bundle.manifest).then_some(committed)
}

type Stratum<'f> = (Digest, Vec<Option<&'f String>>);

fn member<'f>(
    rollout: &Rollout,
    gate: &GateSpec,
    id: &DeviceId,
    facts: &'f DeviceFacts,
) -> Option<Member<DeviceId, Stratum<'f>>> {
    let target = rollout.targets.get(id);
    let is_canary = target.is_some();
    if target.is_some_and(|target| target.wave != rollout.current_wave || target.errand != Errand::Forward) {
        return None;
    }
    let shared = gate.match_on.iter().map(|key| facts.label_or_attribute(key)).collect();
    Some(Member { device: id.clone(), stratum: (incumbent(rollout, facts)?, shared), is_canary })
}
