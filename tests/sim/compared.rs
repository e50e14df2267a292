//! What must hold of comparisons with devices that stay on the incumbent, written from what a gate promises.

use muster_rollout::{Fleet, GateState, Rollout};
use muster_shared::rollout::{Outcome, RolloutStatus};

use crate::rules::holds;

/// Blocks from which on a comparison can show something.
const ENOUGH: usize = 10;

/// Whom a comparison takes for a control was not told to run the bundle and does not have it; and a wave passes only as its comparison allows. Gives
/// how many comparisons were made.
pub(crate) fn compared(before: &Rollout, next: &Rollout, fleet: &Fleet) -> Result<u64, String> {
    let mut made = 0;
    let known = |wave: usize| before.waves.get(wave).and_then(|state| state.gate.as_ref()?.judged.as_ref());
    for (wave, state) in next.waves.iter().enumerate() {
        let judged = state.gate.as_ref().and_then(|gate| gate.judged.as_ref()).filter(|_| known(wave).is_none());
        let Some(judged) = judged else { continue };
        made += 1;
        for block in &judged.blocks {
            // What runs both bundles is compared with itself.
            for control in block.controls.iter().filter(|control| control.device != block.canary.device) {
                // With the wave after it, it may be told at the very moment.
                let is_told = next.targets.get(&control.device).is_some_and(|target| target.wave as usize <= wave);
                holds(!is_told, || format!("{}: {} is a control and was told", next.id, control.device))?;
                let reported = fleet.devices.get(&control.device).and_then(|facts| facts.reported.as_ref());
                let has = reported.and_then(|report| report.committed.as_ref()).map(|bundle| bundle.manifest);
                let has_it = has == Some(next.bundle.manifest);
                holds(!has_it, || format!("{}: {} is a control and has the bundle", next.id, control.device))?;
            }
        }
    }
    let completed = before.status() == RolloutStatus::Running && next.status() == RolloutStatus::Completed;
    if next.current_wave > before.current_wave || completed {
        let gate = next.waves.get(before.current_wave as usize).and_then(|state| state.gate.as_ref());
        holds(gate.is_none_or(may_pass), || format!("{} passed a wave against its comparison", next.id))?;
    }
    Ok(made)
}

fn may_pass(gate: &GateState) -> bool {
    let Some(judged) = &gate.judged else { return false };
    let must_gain = judged.gate.asks_for_gain();
    match judged.report.outcome {
        Outcome::Successful => true,
        Outcome::Inconclusive => gate.waived_by.is_some() || (gate.blocks.len() < ENOUGH && !must_gain),
        Outcome::Failed | Outcome::Error => false,
    }
}
