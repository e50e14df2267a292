//! Verdicts reached again from what is stored of them, by the functions that reached them first.
//!
//! [`Rollout::evidence`] puts together what a verdict was judged by; [`replay`] judges that again and says what comes out otherwise than it is
//! stored. It believes three things: what devices reported, which devices were compared with which, and those answers to analyses that were too
//! long to be kept whole.

use std::collections::BTreeSet;

use muster_shared::ids::{BundleRef, RolloutId};
use muster_shared::rollout::{
    AnalysisInputs, AnalysisReport, ArmSummary, Block, Check, CriteriaInputs, EvidencePart, GateEvidence, GateReport,
    LimitsInputs, Measurement, MetricInputs, MetricTemplate, Outcome, RolloutEvidence, Verdict, VerdictEvidence,
};
use serde::Serialize;

use crate::analysis::{self, AnalysisRun, AnalysisRuns, MetricRun};
use crate::gate::judge;
use crate::judgement::Judgement;
use crate::rollout::Rollout;

/// Two numbers that differ by less, or by less in proportion, are the same: another machine may round the last digit otherwise.
const ROUNDING: f64 = 1e-9;

/// A verdict as it comes out again.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replayed {
    /// Which rollout.
    pub rollout: RolloutId,
    /// The bundle it brings.
    pub bundle: BundleRef,
    /// Which wave, counted from 0.
    pub wave: u32,
    /// When it was reached, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What was stored.
    pub stored: Outcome,
    /// What comes out.
    pub outcome: Outcome,
    /// Every rule with its numbers, as they come out; none where the comparison of devices is all that is stored.
    pub checks: Vec<Check>,
    /// What comes of the comparison of devices.
    pub gate: Option<GateReport>,
    /// What is stored otherwise than it comes out, in words; nothing where all is as it was stored.
    pub differences: Vec<String>,
}

impl Rollout {
    /// Everything that its verdicts rest on, in order.
    #[must_use]
    pub fn evidence(&self) -> Vec<RolloutEvidence> {
        let verdicts: Vec<VerdictEvidence> =
            self.verdicts.iter().filter_map(|verdict| self.evidence_of(verdict)).collect();
        let told: BTreeSet<u32> = verdicts.iter().filter_map(|known| known.gate()).map(|gate| gate.wave).collect();
        let others = self.gate_evidence().filter(|gate| !told.contains(&gate.wave)).cloned();
        let verdicts = verdicts.into_iter().map(|verdict| RolloutEvidence::Verdict(Box::new(verdict)));
        others.map(|gate| RolloutEvidence::Gate(Box::new(gate))).chain(verdicts).collect()
    }

    fn evidence_of(&self, verdict: &Verdict) -> Option<VerdictEvidence> {
        let inputs = verdict.inputs.as_ref()?;
        let mut parts = vec![EvidencePart::Limits(inputs.limits.clone())];
        parts.extend(inputs.criteria.clone().map(EvidencePart::Criteria));
        for (at, report) in inputs.analyses.iter().zip(&verdict.analyses) {
            let metrics = report
                .metrics
                .iter()
                .map(|metric| MetricInputs { errors: metric.errors, measurements: metric.measurements.clone() });
            let analysis = self.analyses.get(*at as usize)?.clone();
            parts.push(EvidencePart::Analysis(AnalysisInputs { analysis, metrics: metrics.collect() }));
        }
        if verdict.gate.is_some() {
            let state = self.waves.get(verdict.wave as usize)?.gate.as_ref()?;
            parts.push(EvidencePart::Gate(state.judged.clone()?));
        }
        Some(VerdictEvidence {
            rollout: self.id.clone(),
            bundle: self.bundle.bundle.clone(),
            verdict: verdict.shown(),
            parts,
            waited: inputs.waited,
            waived_by: inputs.waived_by.clone(),
        })
    }
}

/// Judges again what is stored.
///
/// # Errors
/// Why it is no evidence, in words.
pub fn replay(evidence: &RolloutEvidence) -> Result<Replayed, String> {
    match evidence {
        RolloutEvidence::Verdict(evidence) => replay_verdict(evidence),
        RolloutEvidence::Gate(stored) => {
            let again = judge_again(stored)?;
            let mut differences = Vec::new();
            compare_reports(&stored.report, &again, &mut differences);
            Ok(Replayed {
                rollout: stored.rollout.clone(),
                bundle: stored.bundle.clone(),
                wave: stored.wave,
                at_ms: stored.at_ms,
                stored: stored.report.outcome,
                outcome: again.outcome,
                checks: Vec::new(),
                gate: Some(again),
                differences,
            })
        }
    }
}

/// The parts of one verdict, each in its place.
struct Parts<'e> {
    limits: &'e LimitsInputs,
    criteria: Option<&'e CriteriaInputs>,
    analyses: Vec<&'e AnalysisInputs>,
    gate: Option<&'e GateEvidence>,
}

impl<'e> Parts<'e> {
    fn of(evidence: &'e VerdictEvidence) -> Result<Self, String> {
        let (mut limits, mut criteria, mut gate, mut analyses) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for part in &evidence.parts {
            match part {
                EvidencePart::Limits(part) => limits.push(part),
                EvidencePart::Criteria(part) => criteria.push(part),
                EvidencePart::Analysis(part) => analyses.push(part),
                EvidencePart::Gate(part) => gate.push(part),
            }
        }
        let wave = u64::from(evidence.verdict.wave) + 1;
        let fault = |what: &str| format!("the verdict on wave {wave} rests on {what}");
        let [limits] = limits[..] else { return Err(fault("one part of kind limits, and it is not there just once")) };
        if criteria.len() > 1 || gate.len() > 1 {
            return Err(fault("at most one part each of the kinds criteria and gate"));
        }
        for AnalysisInputs { analysis, metrics } in &analyses {
            if analysis.metrics.len() != metrics.len() {
                let (has, of) = (metrics.len(), analysis.metrics.len());
                return Err(fault(&format!("measurements of {has} metrics, and {} has {of}", analysis.template)));
            }
        }
        Ok(Self { limits, criteria: criteria.first().copied(), analyses, gate: gate.first().copied() })
    }
}

fn replay_verdict(evidence: &VerdictEvidence) -> Result<Replayed, String> {
    let stored = &evidence.verdict;
    let Parts { limits, criteria, analyses, gate } = Parts::of(evidence)?;
    let mut differences = Vec::new();
    let mut judgement = Judgement::of(limits.clone(), criteria.cloned());
    if !analyses.is_empty() {
        let asked: Vec<_> = analyses.iter().map(|inputs| inputs.analysis.clone()).collect();
        let runs: AnalysisRuns = (0u32..).zip(analyses.iter().map(|inputs| run(inputs))).collect();
        judgement = analysis::hold(&asked, &runs, judgement);
        analyses.iter().for_each(|inputs| compare_measurements(inputs, &mut differences));
    }
    if let Some(gate) = gate {
        let report = judge_again(gate)?;
        compare_reports(&gate.report, &report, &mut differences);
        judgement = judgement.with_gate(report, evidence.waived_by.clone());
    }
    if let Some(waited) = evidence.waited {
        judgement = judgement.with_wait(stored.at_ms, waited);
    }
    let again = judgement.into_verdict(stored.wave, stored.at_ms, stored.summary.clone());
    compare_verdicts(stored, &again, &mut differences);
    Ok(Replayed {
        rollout: evidence.rollout.clone(),
        bundle: evidence.bundle.clone(),
        wave: stored.wave,
        at_ms: stored.at_ms,
        stored: stored.outcome,
        outcome: again.outcome,
        checks: again.checks,
        gate: again.gate,
        differences,
    })
}

/// The measurements as they were when they were judged; when they were to go on does not matter any more.
fn run(inputs: &AnalysisInputs) -> AnalysisRun {
    let metric = |metric: &MetricInputs| MetricRun {
        next_ms: 0,
        errors: metric.errors,
        measurements: metric.measurements.clone(),
    };
    AnalysisRun { began_ms: 0, metrics: inputs.metrics.iter().map(metric).collect() }
}

fn judge_again(stored: &GateEvidence) -> Result<GateReport, String> {
    let GateEvidence { gate, alpha, blocks, dealt, predicted, .. } = stored;
    let scores = gate.guardrails.len();
    let mut devices = blocks.iter().flat_map(Block::members);
    match devices.find(|device| device.scores.len() != scores) {
        Some(device) => Err(format!(
            "{} of wave {} has {} scores, its gate has {scores} guardrails",
            device.device,
            u64::from(stored.wave) + 1,
            device.scores.len()
        )),
        None => Ok(judge(gate, *alpha, blocks, *dealt, predicted.as_ref())),
    }
}

fn alike(stored: f64, again: f64) -> bool {
    stored.total_cmp(&again).is_eq() || (stored - again).abs() <= ROUNDING * (1.0 + stored.abs())
}

fn both_alike(stored: Option<f64>, again: Option<f64>) -> bool {
    match (stored, again) {
        (Some(stored), Some(again)) => alike(stored, again),
        (stored, again) => stored.is_none() && again.is_none(),
    }
}

fn compare_reports(stored: &GateReport, again: &GateReport, differences: &mut Vec<String>) {
    if stored.outcome != again.outcome {
        differences.push(format!("gate: it was stored as {} and comes out as {}", stored.outcome, again.outcome));
    }
    if !alike(stored.log_e, again.log_e) || !alike(stored.log_threshold, again.log_threshold) {
        differences.push(format!(
            "gate: its evidence was stored as {} where {} is enough, and comes out as {} where {} is",
            stored.log_e, stored.log_threshold, again.log_e, again.log_threshold
        ));
    }
    if stored.guardrails.len() != again.guardrails.len() {
        let (had, has) = (stored.guardrails.len(), again.guardrails.len());
        differences.push(format!("gate: {had} guardrails were stored, and {has} come out"));
    }
    for (stored, again) in stored.guardrails.iter().zip(&again.guardrails) {
        let same = stored.outcome == again.outcome && both_alike(stored.upper_bound, again.upper_bound);
        if !same {
            let words = format!("it was stored as {} and comes out as {}", stored.sentence, again.sentence);
            differences.push(format!("gate: {}: {words}", stored.guardrail));
        }
    }
}

/// Answers that were kept whole are held against their conditions again.
fn compare_measurements(inputs: &AnalysisInputs, differences: &mut Vec<String>) {
    let judged_alike = |metric: &MetricTemplate, stored: &Measurement| {
        stored.answer().is_none_or(|answer| metric.measure(stored.at_ms, Ok(answer)).outcome == stored.outcome)
    };
    for (metric, known) in inputs.analysis.metrics.iter().zip(&inputs.metrics) {
        for (at, stored) in known.measurements.iter().enumerate().filter(|(_, stored)| !judged_alike(metric, stored)) {
            differences.push(format!(
                "{}/{}: measurement {} was stored as {}, and its answer does not mean that",
                inputs.analysis.template,
                metric.name,
                at + 1,
                stored.outcome
            ));
        }
    }
}

fn compare_verdicts(stored: &Verdict, again: &Verdict, differences: &mut Vec<String>) {
    if stored.outcome != again.outcome {
        differences.push(format!("it was stored as {} and comes out as {}", stored.outcome, again.outcome));
    }
    let arms = |stored: &ArmSummary, again: &ArmSummary| {
        let latency = both_alike(stored.latency_p99_us, again.latency_p99_us);
        latency && ArmSummary { latency_p99_us: None, ..*stored } == ArmSummary { latency_p99_us: None, ..*again }
    };
    if !arms(&stored.canary, &again.canary) || !arms(&stored.control, &again.control) {
        differences.push("its numbers of canaries and controls are not those that it was judged by".to_owned());
    }
    if stored.checks.len() != again.checks.len() {
        let (had, has) = (stored.checks.len(), again.checks.len());
        differences.push(format!("{had} rules were stored, and {has} come out"));
    }
    for (stored, again) in stored.checks.iter().zip(&again.checks) {
        let samples = |check: &Check| (check.canary_samples, check.control_samples);
        let same = (stored.rule, stored.outcome, samples(stored)) == (again.rule, again.outcome, samples(again))
            && both_alike(stored.measured, again.measured)
            && alike(stored.limit, again.limit);
        if !same {
            differences.push(format!(
                "{}: it was stored as {} ({}) and comes out as {} ({}: {})",
                stored.rule.as_str(),
                stored.outcome,
                stored.sentence,
                again.outcome,
                again.rule.as_str(),
                again.sentence
            ));
        }
    }
    match (&stored.gate, &again.gate) {
        (Some(stored), Some(again)) => compare_reports(stored, again, differences),
        (None, None) => {}
        (_, _) => {
            differences.push("gate: a report is stored without its scores, or scores without a report".to_owned())
        }
    }
    let counts = |reports: &[AnalysisReport]| -> Vec<_> {
        let metrics = reports.iter().flat_map(|report| &report.metrics);
        metrics.map(|m| (m.name.clone(), m.outcome, m.measured, m.failed, m.inconclusive, m.errors)).collect()
    };
    if counts(&stored.analyses) != counts(&again.analyses) {
        differences.push("its analyses are not those that come of what was measured".to_owned());
    }
}
