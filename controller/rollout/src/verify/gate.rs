//! Rules about comparing canaries with controls. Every number is computed anew, straight from its formula.

use std::collections::BTreeSet;

use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Block, GateEvidence, GateSpec, Guardrail, Metric, Outcome, RolloutStatus, ScoredDevice};

use super::reading::runs_beside;
use super::{Case, Violation, drift};
use crate::gate::GateState;
use crate::program::packaged_program;
use crate::rollout::Errand;

/// Blocks without which a confidence sequence says nothing.
const ENOUGH: usize = 10;
/// How far two ways to the same number may come apart.
const ROUNDING: f64 = 1e-6;

impl Case<'_> {
    pub(super) fn gate(&mut self) {
        let (before, next) = (self.before, self.next);
        for ((wave, old), new) in (0u32..).zip(&before.waves).zip(&next.waves) {
            let wrong = |why: &'static str| Violation::Gate { wave, why: why.to_owned() };
            match (&old.gate, &new.gate) {
                (None, None) => {}
                (Some(_), None) => self.found.push(wrong("who is compared was forgotten")),
                (None, Some(dealt)) => {
                    self.expect(next.spec.gate.is_some(), || wrong("no comparison was asked for"));
                    self.expect(dealt.waived_by.is_none(), || wrong("nobody decided that"));
                    self.dealt(wave, dealt);
                }
                (Some(old), Some(new)) => {
                    self.expect(old.blocks == new.blocks, || wrong("who is compared changed"));
                    self.expect(old.waived_by == new.waived_by, || wrong("only an operator decides that"));
                    let stays = old.judged.is_none() || old.judged == new.judged;
                    self.expect(stays, || wrong("what was judged changed"));
                }
            }
            let newly = old.gate.as_ref().is_none_or(|gate| gate.judged.is_none());
            if let Some((gate, judged)) = new.gate.as_ref().and_then(|gate| Some((gate, gate.judged.as_ref()?)))
                && newly
            {
                self.judged(wave, gate, judged);
            }
        }
        if before.status == RolloutStatus::Running && next.spec.gate.is_some() {
            self.passed_gate();
        }
    }

    /// A wave with devices of its own passes only when its comparison says so, when it could say nothing, or when a person did.
    fn passed_gate(&mut self) {
        let (before, next) = (self.before, self.next);
        let wave = before.current_wave;
        let passed = next.current_wave > wave || next.status == RolloutStatus::Completed;
        let wrong = |why: &str| Violation::Gate { wave, why: why.to_owned() };
        let gate = next.waves.get(wave as usize).and_then(|state| state.gate.as_ref());
        let report = gate.and_then(|gate| gate.judged.as_ref()).map(|judged| &judged.report);
        if passed && self.judged_in(wave).any(|(_, target)| target.wave == wave) {
            let may = gate.zip(report).is_some_and(|(gate, report)| match report.outcome {
                Outcome::Successful => true,
                Outcome::Inconclusive => {
                    let rests_on_limits = gate.blocks.len() < ENOUGH && !must_be_better(gate);
                    rests_on_limits || gate.waived_by.is_some()
                }
                Outcome::Failed | Outcome::Error => false,
            });
            self.expect(may, || wrong("it passed without the comparison that was asked for"));
        }
        if report.is_some_and(|report| report.outcome == Outcome::Failed) {
            let back = matches!(next.status, RolloutStatus::RollingBack | RolloutStatus::RolledBack);
            self.expect(back, || wrong("canaries are worse, and it goes on"));
        }
    }

    fn dealt(&mut self, wave: u32, dealt: &GateState) {
        let wrong = |device: &DeviceId, why: &str| Violation::Gate { wave, why: format!("{device} {why}") };
        let incumbent = |id: &DeviceId| {
            let facts = self.fleet.devices.get(id).filter(|facts| facts.online && !facts.revoked)?;
            let committed = facts.reported.as_ref()?.committed.as_ref().map(|bundle| bundle.manifest);
            // What a package installed has no bundle.
            committed.or_else(|| (!self.next.track().is_model()).then(packaged_program))
        };
        let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
        for Block { canary, controls } in &dealt.blocks {
            let target = self.next.targets.get(canary);
            if !target.is_some_and(|target| target.wave == wave && target.errand == Errand::Forward) {
                found.push(wrong(canary, "is compared as a canary, which it is not"));
            }
            let beside = target.is_some_and(|target| target.beside);
            let mut members = vec![canary];
            if beside && *controls != [canary.clone()] {
                found.push(wrong(canary, "runs both bundles and is compared with another"));
            } else if !beside {
                members.extend(controls);
            }
            for id in members {
                let of = incumbent(id);
                if !seen.insert(id) {
                    found.push(wrong(id, "is compared twice"));
                }
                if of.is_none() || of == Some(self.next.bundle.manifest) || of != incumbent(canary) {
                    found.push(wrong(id, "is compared though it was away or ran something else"));
                }
                if id != canary && self.next.targets.contains_key(id) {
                    found.push(wrong(id, "is a control and was told to run the bundle"));
                }
            }
        }
        self.found.extend(found);
    }

    fn judged(&mut self, wave: u32, gate: &GateState, judged: &GateEvidence) {
        let mut wrongs: Vec<&str> = Vec::new();
        let mut hold = |holds: bool, why: &'static str| {
            if !holds {
                wrongs.push(why)
            }
        };
        let soaked = self.next.waves.get(wave as usize).and_then(|state| state.soak_from_ms);
        hold(soaked.is_some_and(|from_ms| from_ms <= self.now_ms), "it was judged before it soaked");
        hold(judged.dealt == gate.blocks.len(), "it was judged on another number of blocks");
        hold(self.asked_in(wave, &judged.gate), "it was judged by other guardrails than were asked for");
        let of_dealt = |block: &Block<ScoredDevice>| {
            let dealt = gate.blocks.iter().find(|dealt| dealt.canary == block.canary.device);
            dealt.is_some_and(|dealt| block.controls.iter().all(|control| dealt.controls.contains(&control.device)))
        };
        hold(judged.blocks.iter().all(of_dealt), "it was judged on devices that were not dealt");
        // Those that the next wave takes in at the same time were controls until now.
        let is_in = |id: &DeviceId| self.next.targets.get(id).is_some_and(|t| t.wave <= wave && !t.beside);
        let contaminated = |block: &Block<ScoredDevice>| block.controls.iter().any(|control| is_in(&control.device));
        hold(!judged.blocks.iter().any(contaminated), "a control was told to run the bundle");
        hold(
            judged.blocks.iter().all(|block| self.scores_are_right(&judged.gate, &block.canary)),
            "a score is not what was reported",
        );
        // Whoever takes the bundle with the last wave leaves nobody but those held back to compare with.
        let nobody_left = !runs_beside(self.next, u32::try_from(self.next.spec.waves.len() - 1).unwrap_or(0))
            && self.next.spec.holdback.is_none();
        let waves = self.next.spec.waves.len() - usize::from(nobody_left);
        let all: f64 = (1..=waves.max(1).max(wave as usize + 1)).map(|j| 1.0 / (j * j) as f64).sum();
        let alpha = judged.gate.alpha / f64::from(wave + 1).powi(2) / all;
        hold((judged.alpha - alpha).abs() < ROUNDING, "its part of alpha is another");
        let later: f64 = (wave as usize + 2..=waves).map(|j| judged.gate.alpha / (j * j) as f64 / all).sum();
        hold(
            judged.report.alpha_left.is_some_and(|left| (left - later).abs() < ROUNDING),
            "it leaves another part of alpha",
        );
        let (e, bounds) = computed(&judged.gate, alpha, judged);
        let seed = judged.predicted.as_ref().is_none_or(|classes| classes.seed == drift::seed(&self.next.id, wave));
        hold(seed, "its choices are drawn from elsewhere");
        hold(
            judged.blocks.iter().all(|block| self.predictions_are_right(judged, &block.canary)),
            "predictions are not what was reported",
        );
        let same = |a: f64, b: f64| (a - b).abs() <= ROUNDING * (1.0 + b.abs());
        hold(same(judged.report.log_e, e), "its evidence is another");
        let failed = e >= -alpha.ln();
        let kept =
            judged.gate.guardrails.iter().zip(&bounds).all(|(guardrail, bound)| {
                guardrail.margin.is_none_or(|margin| bound.is_some_and(|bound| bound < margin))
            });
        let expected = match (failed, kept) {
            (true, _) => Outcome::Failed,
            (false, true) => Outcome::Successful,
            (false, false) => Outcome::Inconclusive,
        };
        // Within rounding of a threshold either side is right.
        let close = same(e, -alpha.ln());
        hold(judged.report.outcome == expected || close, "it does not follow from its scores");
        self.found.extend(wrongs.into_iter().map(|why| Violation::Gate { wave, why: why.to_owned() }));
    }
}

/// Whether the wave had to show that the bundle is better.
fn must_be_better(gate: &GateState) -> bool {
    let judged = gate.judged.as_ref().into_iter().flat_map(|judged| &judged.gate.guardrails);
    judged.filter_map(|guardrail| guardrail.margin).any(|margin| margin <= 0.0)
}

/// The greatest mean over guardrails of the evidence after any block, as a natural logarithm, and the upper end of each guardrail's confidence sequence.
fn computed(gate: &GateSpec, alpha: f64, judged: &GateEvidence) -> (f64, Vec<Option<f64>>) {
    let blocks = &judged.blocks;
    let losses = gate.guardrails.iter().filter(|guardrail| guardrail.metric != Metric::Disagreement).count();
    let mut means = vec![0.0; blocks.len()];
    let mut bounds = Vec::new();
    let is_drift = |guardrail: &Guardrail| guardrail.metric == Metric::PredictionDrift;
    for (at, guardrail) in gate.guardrails.iter().enumerate() {
        if is_drift(guardrail) {
            bounds.push(None);
            continue;
        }
        let value = |device: &ScoredDevice| device.scores[at];
        // Of a number, the loss has to lie beyond the margin.
        let is_number = guardrail.range.is_some() || guardrail.metric == Metric::Confidence;
        let allowed = if is_number { guardrail.margin.unwrap_or_default().max(0.0) } else { 0.0 };
        let beyond = |device: &ScoredDevice| value(device).map(|score| score - allowed);
        let spread = {
            let (mut squares, mut controls) = (0.0, 0.0);
            for block in blocks {
                let mut all: Vec<f64> = block.controls.iter().filter_map(value).collect();
                let (Some(canary), false) = (beyond(&block.canary), all.is_empty()) else { continue };
                controls += all.len() as f64;
                all.push(canary);
                let mean = all.iter().sum::<f64>() / all.len() as f64;
                squares += all.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>();
            }
            f64::sqrt(squares / f64::max(controls, 1.0))
        };
        // λ from half to three times 5/√n, five of them.
        let lambdas: Vec<f64> =
            (0..5).map(|i| 2.5 / (blocks.len() as f64).sqrt() * 6f64.powf(f64::from(i) / 4.0)).collect();
        let mut logs = vec![0.0; lambdas.len()];
        let mut differences = Vec::new();
        for (block, mean_e) in blocks.iter().zip(&mut means) {
            let all: Vec<f64> = block.controls.iter().filter_map(value).collect();
            if let (Some(canary), false) = (beyond(&block.canary), all.is_empty() || spread == 0.0) {
                for (log, lambda) in logs.iter_mut().zip(&lambdas) {
                    // E = 1 / mean of exp(λ (x_j − x_c) / s)
                    let sum: f64 = 1.0 + all.iter().map(|x| (lambda * (x - canary) / spread).exp()).sum::<f64>();
                    *log -= (sum / (all.len() as f64 + 1.0)).ln();
                }
            }
            if guardrail.metric != Metric::Disagreement {
                *mean_e += logs.iter().map(|log: &f64| log.exp()).sum::<f64>() / (logs.len() * losses) as f64;
            }
            let heard: Vec<f64> = block.controls.iter().filter(|device| !device.silent).filter_map(value).collect();
            if let (Some(canary), false) = (value(&block.canary), heard.is_empty()) {
                differences.push(canary - heard.iter().sum::<f64>() / heard.len() as f64);
            }
        }
        bounds.push(upper_end(&differences, alpha));
    }
    // A test that rejects at its part of the level is evidence of one over that part, and it is made at the end.
    let drift =
        gate.guardrails.iter().any(is_drift).then(|| drift::p_value(blocks, judged.predicted.as_ref()?)).flatten();
    let rejects = drift.is_some_and(|p| p <= alpha / losses as f64);
    if let Some(last) = means.last_mut().filter(|_| rejects) {
        *last += 1.0 / alpha;
    }
    (means.iter().fold(1.0, |most: f64, e| most.max(*e)).ln(), bounds)
}

/// d̄ + σ̂ √(2 (nρ² + 1) / (n²ρ²) · ln(√(nρ² + 1) / α)) with ρ = 0.3.
fn upper_end(differences: &[f64], alpha: f64) -> Option<f64> {
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let t = n * 0.09 + 1.0;
    let width = (2.0 * t / (n * n * 0.09) * (t.sqrt() / alpha).ln()).sqrt();
    (differences.len() >= ENOUGH).then_some(mean + variance.sqrt() * width)
}
