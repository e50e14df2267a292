//! One score a device and guardrail, from what it measured since the soak began. Canaries and controls are scored over the same time.

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Block, GateSpec, Guardrail, Metric, PredictedClasses, ScoredDevice};
use muster_shared::sketch::{LatencySketch, RightCounts};
use muster_shared::trust::Stage;

use super::predictions;
use crate::cohort::drawn_from;
use crate::fleet::{DeviceFacts, Evidence, Fleet, Mean};
use crate::rollout::Rollout;

/// The score of a device that was not heard of, that crashed, or that failed on the bundle.
const WORST: f64 = 1.0;
/// Which latency of a wave's devices is slow, where the rollout does not say.
const SLOW_QUANTILE: f64 = 0.95;

/// A mean of confidences is at most 1, but for rounding.
const MOST_CONFIDENT: f64 = 1.000_01;

/// What one device measured of the bundle it stands for.
struct Side<'f> {
    device: &'f DeviceId,
    part: Part,
    /// All of it; sums that are not asked for are not taken.
    measured: Vec<&'f Evidence>,
    /// It was not heard of since the soak began.
    silent: bool,
    /// It failed, reverted or crashed.
    failed: bool,
    requests: u64,
    errors: u64,
    latency_us: LatencySketch,
    labels: RightCounts,
    /// Rows for which a shadow and the incumbent named the same class, and rows for which they did not.
    agreed: u64,
    disagreed: u64,
}

/// Which of two models on one device is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Canary,
    Control,
}

/// The scores of `blocks`, the gate with the latencies it took for slow, and by what predictions were counted. Devices that another rollout or nobody has any more are left
/// out, and controls that were told to run the bundle; so are blocks without a canary or a control.
pub(super) fn score(
    rollout: &Rollout,
    gate: &GateSpec,
    blocks: &[Block<DeviceId>],
    since_ms: u64,
    fleet: &Fleet,
) -> (GateSpec, Vec<Block<ScoredDevice>>, Option<PredictedClasses>) {
    let seen: Vec<Block<Side<'_>>> = blocks
        .iter()
        .filter_map(|block| {
            let canary = canary(rollout, &block.canary, since_ms, fleet)?;
            let controls: Vec<_> =
                block.controls.iter().filter_map(|id| control(rollout, id, since_ms, fleet)).collect();
            (!controls.is_empty()).then_some(Block { canary, controls })
        })
        .collect();
    let mut gate = gate.clone();
    for guardrail in gate.guardrails.iter_mut().filter(|guardrail| guardrail.metric == Metric::LatencyShare) {
        // Of both sides together: who is a canary must not move what counts as slow.
        guardrail.above_us = guardrail.above_us.or_else(|| slow_us(&seen));
    }
    let drifts = gate.guardrails.iter().any(|guardrail| guardrail.metric == Metric::PredictionDrift);
    let predicted = drifts.then(|| {
        let all: Vec<_> = seen.iter().map(|block| block.map(|side| predictions::counted(&side.measured))).collect();
        predictions::classes(&all, drawn_from(&rollout.id, rollout.current_wave))
    });
    let device = |side: &Side<'_>| {
        let count = |classes| predictions::counts(&predictions::counted(&side.measured), classes);
        ScoredDevice {
            device: side.device.clone(),
            silent: side.silent,
            scores: gate.guardrails.iter().map(|guardrail| side.score(guardrail)).collect(),
            predicted: predicted.as_ref().map(count).unwrap_or_default(),
        }
    };
    let scored = seen.iter().map(|block| block.map(device)).collect();
    (gate, scored, predicted)
}

/// Devices that were not heard of, or have nothing to be scored by yet.
pub(super) fn unscored(blocks: &[Block<ScoredDevice>]) -> Vec<DeviceId> {
    let lacking =
        blocks.iter().flat_map(Block::members).filter(|device| device.silent || device.scores.contains(&None));
    let names: BTreeSet<&DeviceId> = lacking.map(|device| &device.device).collect();
    names.into_iter().cloned().collect()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a latency in microseconds fits")]
fn slow_us(blocks: &[Block<Side<'_>>]) -> Option<u64> {
    let mut all = LatencySketch::default();
    for side in blocks.iter().flat_map(Block::members) {
        all.merge(&side.latency_us);
    }
    all.quantile_us(SLOW_QUANTILE).map(|slow_us| slow_us.ceil().max(1.0) as u64)
}

fn canary<'f>(rollout: &Rollout, id: &DeviceId, since_ms: u64, fleet: &'f Fleet) -> Option<Side<'f>> {
    let target = rollout.targets.get(id)?;
    let facts = rollout.governed(id, target, fleet)?;
    let (device, _) = fleet.devices.get_key_value(id)?;
    let mut side = Side::of((device, Part::Canary), facts, since_ms, |evidence| target.is_about(evidence));
    // It may be here and yet never have taken the bundle up.
    side.silent |= target.done_at_ms.is_none() && target.failure.is_none();
    side.failed |= target.failure.is_some();
    if target.beside {
        for evidence in facts.soak.iter().filter(|evidence| target.is_about(evidence)) {
            side.labels.merge(&evidence.beside.candidate);
        }
    }
    Some(side)
}

fn control<'f>(rollout: &Rollout, id: &DeviceId, since_ms: u64, fleet: &'f Fleet) -> Option<Side<'f>> {
    let (device, facts) = fleet.devices.get_key_value(id)?;
    let incumbent = rollout.incumbent(facts)?;
    if facts.revoked || incumbent == rollout.bundle.manifest {
        return None;
    }
    let mut side = Side::of((device, Part::Control), facts, since_ms, |evidence| evidence.manifest == incumbent);
    match rollout.targets.get(id) {
        None if facts.held_by.is_some() => return None,
        None => {}
        Some(target) if !target.beside => return None,
        Some(target) => {
            let shadowed = matches!(rollout.wave_stage(), Stage::Shadow { .. });
            if shadowed {
                // Its model's time for the very requests that the shadow ran.
                side.latency_us = LatencySketch::default();
            }
            for evidence in facts.soak.iter().filter(|evidence| target.is_about(evidence)) {
                side.labels.merge(&evidence.beside.incumbent);
                if shadowed {
                    side.latency_us.merge(&evidence.incumbent_us);
                }
            }
        }
    }
    Some(side)
}

impl<'f> Side<'f> {
    fn of(
        (device, part): (&'f DeviceId, Part),
        facts: &'f DeviceFacts,
        since_ms: u64,
        counts: impl Fn(&Evidence) -> bool,
    ) -> Self {
        let mut side = Self {
            device,
            part,
            measured: facts.soak.iter().filter(|evidence| counts(evidence)).collect(),
            silent: facts.last_seen_ms.is_none_or(|seen_ms| seen_ms < since_ms),
            failed: false,
            requests: 0,
            errors: 0,
            latency_us: LatencySketch::default(),
            labels: RightCounts::default(),
            agreed: 0,
            disagreed: 0,
        };
        for evidence in side.measured.iter().copied() {
            side.requests = side.requests.saturating_add(evidence.requests.served);
            side.errors = side.errors.saturating_add(evidence.requests.errors());
            side.latency_us.merge(&evidence.latency_us);
            side.labels.merge(&evidence.labels);
            side.agreed = side.agreed.saturating_add(evidence.beside.agreed);
            side.disagreed = side.disagreed.saturating_add(evidence.beside.disagreed);
            side.failed |= evidence.crashes > 0;
        }
        side
    }

    fn score(&self, guardrail: &Guardrail) -> Option<f64> {
        let share = |bad: u64, of: u64| (of > 0).then(|| bad as f64 / of as f64);
        let scaled = |mean: f64| guardrail.scale().map(|range| range.score(mean));
        // A crash takes with it what was not reported yet, and comes on either side: power is cut for all alike.
        if self.silent || self.failed {
            return Some(WORST);
        }
        match guardrail.metric {
            Metric::ErrorRate => share(self.errors, self.requests),
            Metric::LatencyShare => {
                let timed = self.latency_us.count();
                share(timed.saturating_sub(self.latency_us.count_up_to(guardrail.above_us? as f64)), timed)
            }
            Metric::Failures => Some(0.0),
            Metric::LabelError => share(self.labels.labels.saturating_sub(self.labels.right), self.labels.labels),
            Metric::Disagreement if self.part == Part::Control => Some(0.0),
            Metric::Disagreement => share(self.disagreed, self.agreed.saturating_add(self.disagreed)),
            Metric::PredictionDrift => {
                let all = self.measured.iter().flat_map(|measured| measured.predictions.values());
                all.flat_map(BTreeMap::values).any(|n| *n > 0).then_some(0.0)
            }
            // Logits that a profile takes for confidence are beyond, and say nothing.
            Metric::Confidence => self
                .mean(|measured| Some(&measured.confidence))
                .filter(|mean| (0.0..=MOST_CONFIDENT).contains(mean))
                .and_then(scaled),
            Metric::Memory => self.mean(|measured| Some(&measured.memory)).and_then(scaled),
            Metric::Temperature => self.mean(|measured| Some(&measured.temperature)).and_then(scaled),
            Metric::Custom => {
                let name = guardrail.name.as_ref()?;
                self.mean(|measured| measured.numbers.get(name)).and_then(scaled)
            }
        }
    }

    /// The mean over all that was measured.
    fn mean(&self, of: impl Fn(&Evidence) -> Option<&Mean>) -> Option<f64> {
        let mut all = Mean::default();
        self.measured.iter().filter_map(|measured| of(measured)).for_each(|mean| all.merge(mean));
        all.value()
    }
}
