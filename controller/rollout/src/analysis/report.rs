//! How analyses stand, in numbers and sentences.

use muster_shared::rollout::{AnalysisReport, Check, MetricReport, MetricTemplate, Outcome, Rule};

use super::outcome::{Tally, outcome};
use super::{MetricRun, metrics};
use crate::limits::Judgement;
use crate::rollout::{Rollout, WaveState};

/// Template and metric, as `success-rate@2/errors`.
pub(super) fn name(rollout: &Rollout, analysis: u32, metric: &MetricTemplate) -> String {
    match rollout.analyses.get(analysis as usize) {
        Some(analysis) => format!("{}/{}", analysis.template, metric.name),
        None => metric.name.clone(),
    }
}

fn sentence(name: &str, metric: &MetricTemplate, run: &MetricRun) -> String {
    let tally = Tally::of(run);
    let last = run.measurements.last();
    let last = last.and_then(|last| last.message.as_ref().or(last.value.as_ref())).map_or("nothing", String::as_str);
    let made = format!("{} of {} measurements", tally.counted, metric.needed());
    match outcome(metric, run) {
        Some(Outcome::Failed) => {
            format!(
                "{name}: {} of {} failed, {} may; the last is {last}",
                tally.failed, tally.counted, metric.failure_limit
            )
        }
        Some(Outcome::Inconclusive) => format!(
            "{name}: {} of {} inconclusive, {} may be; the last is {last}",
            tally.inconclusive, tally.counted, metric.inconclusive_limit
        ),
        Some(Outcome::Error) => {
            let (errors, may) = (tally.errors_in_a_row, metric.consecutive_error_limit);
            format!("{name}: {errors} errors in a row, {may} may be; the last is: {last}")
        }
        Some(Outcome::Successful) => format!("{name}: {made}, {} failed; the last is {last}", tally.failed),
        None if run.measurements.is_empty() => format!("{name}: none of {} measurements", metric.needed()),
        None => format!("{name}: {made}, {} failed; the last is {last}", tally.failed),
    }
}

/// How the analyses of a wave stand.
pub(crate) fn reports(rollout: &Rollout, state: &WaveState) -> Vec<AnalysisReport> {
    let mut reports: Vec<(u32, AnalysisReport)> = Vec::new();
    for (analysis, _, _, metric, run) in metrics(&rollout.analyses, state) {
        let tally = Tally::of(run);
        let report = MetricReport {
            name: metric.name.clone(),
            outcome: outcome(metric, run),
            measured: tally.counted,
            needed: metric.needed(),
            failed: tally.failed,
            inconclusive: tally.inconclusive,
            errors: run.errors,
            measurements: run.measurements.clone(),
            sentence: sentence(&name(rollout, analysis, metric), metric, run),
        };
        match reports.last_mut().filter(|(at, _)| *at == analysis) {
            Some((_, known)) => known.metrics.push(report),
            None => {
                let template = rollout.analyses.get(analysis as usize).map(|analysis| analysis.template.clone());
                reports.extend(template.map(|template| (analysis, AnalysisReport { template, metrics: vec![report] })));
            }
        }
    }
    reports.into_iter().map(|(_, report)| report).collect()
}

/// The judgement with what the current wave's analyses came to so far.
pub(crate) fn held(rollout: &Rollout, judgement: Judgement) -> Judgement {
    let Some(state) = rollout.wave_state() else { return judgement };
    let checks = metrics(&rollout.analyses, state).map(|(analysis, _, _, metric, run)| {
        let tally = Tally::of(run);
        Check {
            rule: Rule::Analysis,
            outcome: outcome(metric, run).unwrap_or(Outcome::Inconclusive),
            measured: (tally.counted > 0).then_some(f64::from(tally.failed)),
            limit: f64::from(metric.failure_limit),
            canary_samples: u64::from(tally.counted),
            control_samples: 0,
            sentence: sentence(&name(rollout, analysis, metric), metric, run),
        }
    });
    judgement.with_analyses(
        checks.collect(),
        reports(rollout, state),
        metrics(&rollout.analyses, state)
            .any(|found| matches!(outcome(found.3, found.4), Some(Outcome::Inconclusive | Outcome::Error))),
    )
}
