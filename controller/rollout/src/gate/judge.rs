//! What the scores of a wave prove.
//!
//! Evidence that canaries are worse is gathered block by block and looked at after each; that of several guardrails is averaged, which is
//! evidence again. Each margin must be kept at the whole level: all of them together are kept wrongly no more often than one. A device
//! that was silent scores worst on either side as far as a loss goes. A silent control says nothing for the bundle, so margins leave it out.

use muster_shared::rollout::{Block, GateReport, GateSpec, Guardrail, GuardrailReport, Outcome, ScoredDevice};

use super::wording;
use crate::statistics::{EProcess, MIN_BLOCKS, Margin, log_mean_exp, spread};

/// No evidence is as strong as this; an infinite number could not be stored.
const MOST_LOG_E: f64 = 1e6;

/// A gate while blocks are added to it.
#[derive(Debug, Clone)]
pub struct Gate<'s> {
    spec: &'s GateSpec,
    alpha: f64,
    rails: Vec<Rail>,
    blocks: u32,
    /// The strongest evidence after any block.
    strongest: f64,
    /// That of each guardrail then.
    strongest_of: Vec<f64>,
}

#[derive(Debug, Clone)]
struct Rail {
    scale: Option<f64>,
    process: Option<EProcess>,
    margin: Margin,
    blocks: u32,
}

/// Judges a wave by its scored `blocks`, in order, at the level `alpha`. `dealt` is how many blocks there were before devices were left out: with fewer
/// than [`MIN_BLOCKS`] the wave rests on its limits.
#[must_use]
pub fn judge(spec: &GateSpec, alpha: f64, blocks: &[Block<ScoredDevice>], dealt: usize) -> GateReport {
    let expected = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
    let mut gate = Gate::new(spec, alpha, &scales(spec, blocks), expected);
    blocks.iter().for_each(|block| gate.add(block));
    gate.report(dealt < MIN_BLOCKS as usize)
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
        let rail = |(at, guardrail): (usize, &Guardrail)| {
            let scale = scales.get(at).copied().flatten();
            let process = scale.filter(|_| guardrail.metric.is_loss()).and_then(|scale| EProcess::new(scale, expected));
            Rail { scale, process, margin: Margin::default(), blocks: 0 }
        };
        let rails: Vec<Rail> = spec.guardrails.iter().enumerate().map(rail).collect();
        Self { spec, alpha, strongest_of: vec![0.0; rails.len()], rails, blocks: 0, strongest: 0.0 }
    }

    /// Adds one block. Each may be added once.
    pub fn add(&mut self, block: &Block<ScoredDevice>) {
        self.blocks += 1;
        for ((at, rail), guardrail) in self.rails.iter_mut().enumerate().zip(&self.spec.guardrails) {
            if let Some((scores, process)) = scores(block, at, false).zip(rail.process.as_mut()) {
                process.add(&beyond(guardrail, scores));
            }
            if let Some(scores) = scores(block, at, true) {
                rail.margin.add(&scores);
                rail.blocks += 1;
            }
        }
        let log_e = self.log_e();
        if log_e > self.strongest {
            self.strongest = log_e;
            self.strongest_of = self.rails.iter().map(Rail::log_e).collect();
        }
    }

    /// Evidence of a loss after the blocks so far: the mean over guardrails, as a natural logarithm.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        let losses =
            || self.spec.guardrails.iter().zip(&self.rails).filter(|(guardrail, _)| guardrail.metric.is_loss());
        if losses().next().is_none() { 0.0 } else { log_mean_exp(|| losses().map(|(_, rail)| rail.log_e())) }
    }

    /// What the blocks so far prove. `limits_only` where there can be no more of them, and they are too few for any margin.
    #[must_use]
    pub fn report(&self, limits_only: bool) -> GateReport {
        let log_threshold = -self.alpha.ln();
        let has_failed = self.strongest >= log_threshold;
        let guardrails: Vec<GuardrailReport> = self
            .spec
            .guardrails
            .iter()
            .zip(&self.rails)
            .zip(&self.strongest_of)
            .map(|((guardrail, rail), log_e)| {
                rail.report(guardrail, self.alpha, *log_e, has_failed && *log_e >= log_threshold)
            })
            .collect();
        let kept = guardrails.iter().all(|report| report.outcome == Outcome::Successful);
        let mut report = GateReport {
            outcome: match (has_failed, kept) {
                (true, _) => Outcome::Failed,
                (false, true) => Outcome::Successful,
                (false, false) => Outcome::Inconclusive,
            },
            limits_only: limits_only && !has_failed,
            alpha: self.alpha,
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

impl Rail {
    fn log_e(&self) -> f64 {
        self.process.as_ref().map_or(0.0, EProcess::log_e).clamp(-MOST_LOG_E, MOST_LOG_E)
    }

    fn report(&self, guardrail: &Guardrail, alpha: f64, log_e: f64, has_failed: bool) -> GuardrailReport {
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
            log_e,
            mean_difference: (self.blocks > 0).then(|| self.margin.mean()),
            upper_bound,
            blocks_needed: guardrail.margin.and_then(|margin| self.margin.blocks_needed(alpha, margin)),
            sentence: String::new(),
        };
        report.sentence = wording::guardrail(&report);
        report
    }
}
