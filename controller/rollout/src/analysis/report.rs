//! How analyses stand, in numbers and sentences.

use muster_shared::rollout::{Analysis, AnalysisReport, Check, MetricReport, Outcome, Rule};

use super::outcome::Tally;
use super::{AnalysisRuns, Metric, metrics};
use crate::judgement::Judgement;
use crate::rollout::Rollout;

/// Template and metric, as `success-rate@2/errors`.
pub(super) fn name(metric: &Metric<'_>) -> String {
    format!("{}/{}", metric.analysis.template, metric.template.name)
}

fn sentence(metric: &Metric<'_>, tally: &Tally) -> String {
    let (name, Metric { template, run, .. }) = (name(metric), metric);
    let Tally { counted, failed, inconclusive, errors_in_a_row } = tally;
    let last = run.measurements.last();
    let last = last.and_then(|last| last.message.as_ref().or(last.value.as_ref())).map_or("nothing", String::as_str);
    let made = format!("{counted} of {} measurements", template.needed());
    match metric.outcome() {
        Some(Outcome::Failed) => {
            format!("{name}: {failed} of {counted} failed, {} may; the last is {last}", template.failure_limit)
        }
        Some(Outcome::Inconclusive) => {
            let may = template.inconclusive_limit;
            format!("{name}: {inconclusive} of {counted} inconclusive, {may} may be; the last is {last}")
        }
        Some(Outcome::Error) => {
            let may = template.consecutive_error_limit;
            format!("{name}: {errors_in_a_row} errors in a row, {may} may be; the last is: {last}")
        }
        None if run.measurements.is_empty() => format!("{name}: none of {} measurements", template.needed()),
        Some(Outcome::Successful) | None => format!("{name}: {made}, {failed} failed; the last is {last}"),
    }
}

fn report(metric: &Metric<'_>) -> MetricReport {
    let Metric { template, run, .. } = metric;
    let tally = Tally::of(&run.measurements);
    MetricReport {
        name: template.name.clone(),
        outcome: metric.outcome(),
        measured: tally.counted,
        needed: template.needed(),
        failed: tally.failed,
        inconclusive: tally.inconclusive,
        errors: run.errors,
        measurements: run.measurements.clone(),
        sentence: sentence(metric, &tally),
    }
}

/// How the analyses of a wave stand, each by its place in `analyses`.
pub(crate) fn reports(analyses: &[Analysis], runs: &AnalysisRuns) -> Vec<(u32, AnalysisReport)> {
    let mut reports: Vec<(u32, AnalysisReport)> = Vec::new();
    for metric in metrics(analyses, runs) {
        match reports.last_mut().filter(|(at, _)| *at == metric.at) {
            Some((_, known)) => known.metrics.push(report(&metric)),
            None => {
                let template = metric.analysis.template.clone();
                reports.push((metric.at, AnalysisReport { template, metrics: vec![report(&metric)] }));
            }
        }
    }
    reports
}

/// The judgement with what the current wave's analyses came to so far.
pub(crate) fn held(rollout: &Rollout, judgement: Judgement) -> Judgement {
    match rollout.wave_state() {
        Some(state) => hold(&rollout.analyses, &state.analyses, judgement),
        None => judgement,
    }
}

/// The judgement with what `analyses` come to by what was measured.
pub(crate) fn hold(analyses: &[Analysis], runs: &AnalysisRuns, judgement: Judgement) -> Judgement {
    let reports = reports(analyses, runs);
    let check = |(metric, report): (Metric<'_>, &MetricReport)| Check {
        rule: Rule::Analysis,
        outcome: report.outcome.unwrap_or(Outcome::Inconclusive),
        measured: (report.measured > 0).then_some(f64::from(report.failed)),
        limit: f64::from(metric.template.failure_limit),
        canary_samples: u64::from(report.measured),
        control_samples: 0,
        sentence: report.sentence.clone(),
    };
    // Reports are in the order of their metrics.
    let of_each = reports.iter().flat_map(|(_, report)| &report.metrics);
    let checks = metrics(analyses, runs).zip(of_each).map(check).collect();
    let is_open = metrics(analyses, runs).any(|metric| metric.is_open());
    judgement.with_analyses(checks, reports, is_open)
}
