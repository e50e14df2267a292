//! Compares the canaries of a wave with devices like them that stay on the incumbent.
//!
//! [`deal`] says who is compared with whom when the wave takes its devices in, before anything is known of how they fare. When the soak is
//! over, every device gets one score a guardrail ([`score`]), and [`judge()`] says what the scores prove. More hours of the same devices are
//! no more evidence about the fleet, so a wave is judged once: where that is inconclusive, people decide. When a wave is ready to be
//! judged is [`crate::wave`]'s matter.

mod deal;
mod judge;
mod predictions;
mod score;
mod wording;

use std::collections::BTreeSet;

use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Block, GateEvidence, GateReport, GateSpec, Outcome, RolloutSpec, Waiting};
use serde::{Deserialize, Serialize};

pub(crate) use deal::deal;
pub use judge::{Gate, judge, scales};

use crate::fleet::Fleet;
use crate::reach::keeps_controls;
use crate::rollout::Rollout;
use crate::statistics::wave_alpha;

/// How the comparison of one wave stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateState {
    /// Who is compared with whom.
    pub blocks: Vec<Block<DeviceId>>,
    /// What was scored and what came of it, once it was.
    pub judged: Option<GateEvidence>,
    /// Who let the wave go on though the comparison was inconclusive.
    pub waived_by: Option<String>,
}

impl GateState {
    /// The comparison was made, showed neither, and nobody has decided since.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        self.waived_by.is_none() && self.judged.as_ref().is_some_and(|judged| is_open(&judged.report))
    }
}

/// Neither shown to be worse nor shown to be good, though there were enough blocks to tell.
pub(crate) fn is_open(report: &GateReport) -> bool {
    report.outcome == Outcome::Inconclusive && !report.limits_only
}

impl Rollout {
    /// What the comparison of each wave that was judged rests on, in order.
    pub fn gate_evidence(&self) -> impl Iterator<Item = &GateEvidence> {
        self.waves.iter().filter_map(|state| state.gate.as_ref()?.judged.as_ref())
    }

    /// Windows received since then are what devices of the current wave are scored by; none when nobody is to be scored.
    #[must_use]
    pub fn scored_since_ms(&self) -> Option<u64> {
        self.to_score().next()?;
        self.wave_state()?.soak_from_ms
    }

    /// The times since which what devices measured is asked for: windows from before and after one of them must not be added up.
    pub fn cuts_ms(&self) -> impl Iterator<Item = u64> + use<> {
        [Some(self.evidence_since_ms()), self.scored_since_ms()].into_iter().flatten()
    }

    /// The devices that the current wave has yet to score.
    #[must_use]
    pub fn scored_devices(&self) -> BTreeSet<&DeviceId> {
        self.to_score().flat_map(Block::members).collect()
    }

    fn to_score(&self) -> impl Iterator<Item = &Block<DeviceId>> {
        let dealt = self.wave_state().and_then(|state| state.gate.as_ref());
        dealt.filter(|gate| gate.judged.is_none()).into_iter().flat_map(|gate| &gate.blocks)
    }
}

/// The level at which `wave`, counted from 0, is judged. The last wave of a bundle that takes the incumbent's place leaves nobody to compare
/// with but the group that is held back; where there is none, it gets no part.
pub(crate) fn alpha(spec: &RolloutSpec, gate: &GateSpec, wave: u32) -> f64 {
    let all = u32::try_from(spec.waves.len()).unwrap_or(u32::MAX);
    wave_alpha(gate.alpha, wave, if keeps_controls(spec) { all } else { all.saturating_sub(1).max(1) })
}

/// What is left of the level after `wave`, counted from 0.
fn alpha_left(spec: &RolloutSpec, gate: &GateSpec, wave: u32) -> f64 {
    let spent: f64 = (0..=wave).map(|wave| alpha(spec, gate, wave)).sum();
    (gate.alpha - spent).max(0.0)
}

/// Judges the current wave, once; none where the rollout asks for no comparison. As long as `may_wait`, it is not judged before every device
/// of its blocks has been scored.
///
/// # Errors
/// What it waits for.
pub(crate) fn answer(
    next: &mut Rollout,
    fleet: &Fleet,
    now_ms: u64,
    may_wait: bool,
) -> Result<Option<GateReport>, Waiting> {
    let wave = next.current_wave;
    let Some((gate, state)) = next.spec.gate_of(wave).zip(next.wave_state()) else { return Ok(None) };
    let Some(dealt) = &state.gate else { return Ok(None) };
    if let Some(judged) = &dealt.judged {
        return Ok(Some(judged.report.clone()));
    }
    let (gate, blocks, predicted) =
        score::score(next, &gate, &dealt.blocks, state.soak_from_ms.unwrap_or(now_ms), fleet);
    let mut unscored = score::unscored(&blocks);
    unscored.retain(|id| next.targets.get(id).is_none_or(|target| !target.is_timed_out()));
    if may_wait && !unscored.is_empty() {
        return Err(Waiting::Unscored { devices: unscored });
    }
    let alpha = alpha(&next.spec, &gate, wave);
    let report = GateReport {
        alpha_left: Some(alpha_left(&next.spec, &gate, wave)),
        ..judge(&gate, alpha, &blocks, dealt.blocks.len(), predicted.as_ref())
    };
    let evidence = GateEvidence {
        rollout: next.id.clone(),
        bundle: next.bundle.bundle.clone(),
        wave,
        at_ms: now_ms,
        alpha,
        dealt: dealt.blocks.len(),
        gate,
        blocks,
        predicted,
        report: report.clone(),
    };
    if let Some(state) = next.waves.get_mut(wave as usize).and_then(|state| state.gate.as_mut()) {
        state.judged = Some(evidence);
    }
    Ok(Some(report))
}
