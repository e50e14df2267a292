//! What the scores of a wave prove.
//!
//! Evidence that canaries are worse is gathered block by block and looked at after each; that of several guardrails is averaged, which is
//! evidence again. Each margin must be kept at the whole level: all of them together are kept wrongly no more often than one. A device
//! that was silent scores worst on either side as far as a loss goes. A silent control says nothing for the bundle, so margins leave it out.
//!
//! Predictions are compared once, at the end, as a permutation test has it: it rejects at its part of the level, and is then evidence of one
//! over that part; else it is evidence of 0. On average that is 1 at most, so it is averaged with the others.

use muster_shared::rollout::{
    Block, DriftReport, GateReport, GateSpec, Guardrail, GuardrailReport, Metric, Outcome, PredictedClasses,
    ScoredDevice,
};

use super::{predictions, wording};
use crate::statistics::{EProcess, MIN_BLOCKS, Margin, log_mean_exp, spread};

/// No evidence is as strong as this; an infinite number could not be stored.
const MOST_LOG_E: f64 = 1e6;

/// A gate while blocks are added to it.
#[derive(Debug, Clone)]
pub struct Gate<'s> {
    alpha: f64,
    rails: Vec<Rail<'s>>,
    blocks: u32,
    /// The strongest evidence after any block.
    strongest: f64,
}

#[derive(Debug, Clone)]
struct Rail<'s> {
    guardrail: &'s Guardrail,
    /// Its evidence when that of all was strongest.
    strongest: f64,
    scale: Option<f64>,
    process: Option<EProcess>,
    margin: Margin,
    blocks: u32,
    drift: Option<DriftReport>,
}

/// Judges a wave by its scored `blocks`, in order, at the level `alpha`. `dealt` is how many blocks there were before devices were left out: with fewer
/// than [`MIN_BLOCKS`] the wave rests on its limits, unless the bundle must be better. `predicted` is what predictions were counted by, where the gate asks for them.
#[must_use]
pub fn judge(
    spec: &GateSpec,
    alpha: f64,
    blocks: &[Block<ScoredDevice>],
    dealt: usize,
    predicted: Option<&PredictedClasses>,
) -> GateReport {
    let expected = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
    let mut gate = Gate::new(spec, alpha, &scales(spec, blocks), expected);
    blocks.iter().for_each(|block| gate.add(block));
    if let Some(classes) = predicted {
        gate.compare_predictions(blocks, classes);
    }
    // An experiment that too few devices took part in has shown nothing.
    gate.report(dealt < MIN_BLOCKS as usize && !spec.asks_for_gain())
}

/// By what the scores of each guardrail are divided: their spread within blocks ([`spread`]).
#[must_use]
pub fn scales(spec: &GateSpec, blocks: &[Block<ScoredDevice>]) -> Vec<Option<f64>> {
    let of = |(at, guardrail)| -> Vec<Block<f64>> {
        blocks.iter().filter_map(|block| Some(beyond(guardrail, scores(block, at, false)?))).collect()
    };
    spec.guardrails.iter().enumerate().map(|rail| spread(&of(rail))).collect()
}

/// The scores, the canary's less what it may be worse by: those of canaries which are worse by just that are as likely to stand at any place.
fn beyond(guardrail: &Guardrail, scores: Block<f64>) -> Block<f64> {
    Block { canary: scores.canary - guardrail.tolerance(), ..scores }
}

/// The scores of one guardrail; none without a canary's and a control's.
fn scores(block: &Block<ScoredDevice>, at: usize, heard_controls_only: bool) -> Option<Block<f64>> {
    let score = |device: &ScoredDevice| device.scores.get(at).copied().flatten().filter(|score| score.is_finite());
    let controls = block.controls.iter().filter(|device| !(heard_controls_only && device.silent));
    let controls: Vec<f64> = controls.filter_map(score).collect();
    (!controls.is_empty()).then_some(())?;
    Some(Block { canary: score(&block.canary)?, controls })
}

impl<'s> Gate<'s> {
    /// A gate without any block. `scales` holds one for each guardrail, known before the first block or the same whoever is the canary
    /// ([`scales`]); a guardrail without one gathers no evidence of a loss. `expected` is about how many blocks there will be.
    #[must_use]
    pub fn new(spec: &'s GateSpec, alpha: f64, scales: &[Option<f64>], expected: u32) -> Self {
        let rail = |(at, guardrail): (usize, &'s Guardrail)| {
            let scale = scales.get(at).copied().flatten();
            let gathers = guardrail.metric.is_loss() && guardrail.metric != Metric::PredictionDrift;
            let process = scale.filter(|_| gathers).and_then(|scale| EProcess::new(scale, expected));
            Rail { guardrail, strongest: 0.0, scale, process, margin: Margin::default(), blocks: 0, drift: None }
        };
        let rails = spec.guardrails.iter().enumerate().map(rail).collect();
        Self { alpha, rails, blocks: 0, strongest: 0.0 }
    }

    /// Adds one block. Each may be added once.
    pub fn add(&mut self, block: &Block<ScoredDevice>) {
        self.blocks += 1;
        for (at, rail) in self.rails.iter_mut().enumerate() {
            if let Some((scores, process)) = scores(block, at, false).zip(rail.process.as_mut()) {
                process.add(&beyond(rail.guardrail, scores));
            }
            if rail.is_drift() {
                continue;
            }
            if let Some(scores) = scores(block, at, true) {
                rail.margin.add(&scores);
                rail.blocks += 1;
            }
        }
        let log_e = self.log_e();
        if log_e > self.strongest {
            self.note(log_e);
        }
    }

    /// Takes the evidence as it is now, `log_e` of all together, for the strongest.
    fn note(&mut self, log_e: f64) {
        self.strongest = log_e;
        self.rails.iter_mut().for_each(|rail| rail.strongest = rail.log_e());
    }

    /// Compares what the devices of all `blocks` predicted, where the gate asks for that: once, after the last of them was added.
    pub fn compare_predictions(&mut self, blocks: &[Block<ScoredDevice>], classes: &PredictedClasses) {
        let level = self.alpha / self.losses().count().max(1) as f64;
        let Some(rail) = self.rails.iter_mut().find(|rail| rail.is_drift()) else { return };
        (rail.blocks, rail.drift) = predictions::compare(blocks, classes, level);
        if rail.rejected().is_some() {
            // It is enough by itself, whatever rounding makes of the mean.
            self.note(self.log_e().max(self.strongest).max(-self.alpha.ln()));
        }
    }

    fn losses(&self) -> impl Iterator<Item = &Rail<'s>> {
        self.rails.iter().filter(|rail| rail.guardrail.metric.is_loss())
    }

    /// Evidence of a loss after the blocks so far: the mean over guardrails, as a natural logarithm.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        // A test that has not rejected is evidence of 0, not of 1.
        let log_e = |rail: &Rail<'_>| match rail.is_drift() && rail.rejected().is_none() {
            true => f64::NEG_INFINITY,
            false => rail.log_e(),
        };
        if self.losses().next().is_none() { 0.0 } else { log_mean_exp(|| self.losses().map(log_e)).max(-MOST_LOG_E) }
    }

    /// What the blocks so far prove. `limits_only` where there can be no more of them, and they are too few for any margin.
    #[must_use]
    pub fn report(&self, limits_only: bool) -> GateReport {
        let log_threshold = -self.alpha.ln();
        let has_failed = self.strongest >= log_threshold;
        let reports =
            self.rails.iter().map(|rail| rail.report(self.alpha, has_failed && rail.strongest >= log_threshold));
        let guardrails: Vec<GuardrailReport> = reports.collect();
        let kept = guardrails.iter().all(|report| report.outcome == Outcome::Successful);
        let mut report = GateReport {
            outcome: match (has_failed, kept) {
                (true, _) => Outcome::Failed,
                (false, true) => Outcome::Successful,
                (false, false) => Outcome::Inconclusive,
            },
            limits_only: limits_only && !has_failed,
            alpha: self.alpha,
            alpha_left: None,
            blocks: self.blocks,
            log_e: self.strongest,
            log_threshold,
            guardrails,
            sentence: String::new(),
        };
        report.sentence = wording::report(&report);
        report
    }
}

impl Rail<'_> {
    fn is_drift(&self) -> bool {
        self.guardrail.metric == Metric::PredictionDrift
    }

    /// The test of predictions, if it rejects.
    fn rejected(&self) -> Option<&DriftReport> {
        self.drift.as_ref().filter(|drift| drift.p_value <= drift.level)
    }

    fn log_e(&self) -> f64 {
        if let Some(drift) = self.rejected() {
            return -drift.level.ln();
        }
        self.process.as_ref().map_or(0.0, EProcess::log_e).clamp(-MOST_LOG_E, MOST_LOG_E)
    }

    fn report(&self, alpha: f64, has_failed: bool) -> GuardrailReport {
        let guardrail = self.guardrail;
        let upper_bound = self.margin.upper_bound(alpha);
        let kept = guardrail.margin.is_none_or(|margin| upper_bound.is_some_and(|bound| bound < margin));
        let mut report = GuardrailReport {
            guardrail: guardrail.clone(),
            outcome: match (has_failed, kept) {
                (true, _) => Outcome::Failed,
                (false, true) => Outcome::Successful,
                (false, false) => Outcome::Inconclusive,
            },
            blocks: self.blocks,
            scale: self.scale,
            log_e: self.strongest,
            mean_difference: match &self.drift {
                Some(drift) => Some(drift.difference),
                None => (self.blocks > 0 && !self.is_drift()).then(|| self.margin.mean()),
            },
            upper_bound,
            blocks_needed: guardrail.margin.and_then(|margin| self.margin.blocks_needed(alpha, margin)),
            drift: self.drift.clone(),
            sentence: String::new(),
        };
        report.sentence = wording::guardrail(&report);
        report
    }
}
