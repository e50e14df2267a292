//! Rules about scores: what a canary is scored by is what it reported.

use muster_shared::rollout::{GateSpec, Guardrail, Metric, ScoredDevice};

use super::Case;
use crate::fleet::{Evidence, Mean};

/// How far two ways to the same number may come apart.
const ROUNDING: f64 = 1e-6;

impl Case<'_> {
    /// Whether a canary's scores follow from what it reported since the soak began, where that can be told from reports alone. One that
    /// failed or was silent scores worst.
    pub(super) fn scores_are_right(&self, gate: &GateSpec, canary: &ScoredDevice) -> bool {
        let id = &canary.device;
        // As it was when it was judged: by now it may be on its way back.
        let (Some(target), Some(facts)) = (self.before.targets.get(id), self.fleet.devices.get(id)) else {
            return false;
        };
        let is_own = |e: &&Evidence| (Some(e.manifest), e.generation) == (target.manifest, target.generation);
        let own: Vec<&Evidence> = facts.soak.iter().filter(is_own).collect();
        gate.guardrails.iter().zip(&canary.scores).all(|(guardrail, score)| match (expected(guardrail, &own), score) {
            (None, _) | (Some(_), Some(1.0)) => true,
            (Some(None), None) => true,
            (Some(Some(expected)), Some(score)) => (score - expected).abs() < ROUNDING,
            (Some(_), _) => false,
        })
    }
}

/// The score of a device that was heard of and did not fail: none of those that rest on more than sums of what it reported, and none in
/// that where there was nothing to sum.
fn expected(guardrail: &Guardrail, own: &[&Evidence]) -> Option<Option<f64>> {
    let mean = |of: &dyn Fn(&Evidence) -> Option<Mean>| {
        let (count, sum) =
            own.iter().filter_map(|e| of(e)).fold((0, 0.0), |(count, sum), m| (count + m.count, sum + m.sum));
        (count > 0).then(|| sum / count as f64)
    };
    let in_range = |mean: Option<f64>| {
        let range = guardrail.range?;
        let share = mean.map(|mean| (mean - range.best) / (range.worst - range.best));
        Some(share.map(|share| share.clamp(0.0, 1.0)))
    };
    match guardrail.metric {
        Metric::ErrorRate => {
            let served: u64 = own.iter().map(|e| e.requests.served).sum();
            let errors: u64 = own.iter().map(|e| e.requests.failed + e.requests.non_finite).sum();
            Some((served > 0).then(|| errors as f64 / served as f64))
        }
        Metric::Memory => in_range(mean(&|e| Some(e.memory))),
        Metric::Temperature => in_range(mean(&|e| Some(e.temperature))),
        Metric::Custom => in_range(mean(&|e| e.numbers.get(guardrail.name.as_ref()?).copied())),
        Metric::LatencyShare
        | Metric::Failures
        | Metric::LabelError
        | Metric::Disagreement
        | Metric::PredictionDrift
        | Metric::Confidence => None,
    }
}
