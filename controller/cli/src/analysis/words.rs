//! How templates and measurements are said.

use muster_shared::listing::first_few;
use muster_shared::rollout::{AnalysisReport, MetricTemplate, Provider, TemplateView};

use crate::output::{self, cell, number, toned};
use crate::rollout::outcome_tone;

/// Whom a metric asks, in a word.
pub(super) fn provider(provider: &Provider) -> &'static str {
    match provider {
        Provider::Prometheus(_) => "prometheus",
        Provider::Web(_) => "web",
        Provider::Fleet(_) => "fleet",
    }
}

pub(super) fn list_table(all: &[TemplateView]) -> String {
    let rows = all.iter().map(|view| {
        let args = view.template.args.iter().map(|arg| &arg.name);
        vec![
            cell(view.template.name.as_str()),
            number(view.version.to_string()),
            cell(first_few(args, 5)),
            cell(first_few(view.template.metrics.iter().map(|metric| &metric.name), 5)),
            cell(output::time(view.pushed_at_ms)),
            cell(&view.pushed_by),
        ]
    });
    output::table(&["template", "version", "args", "metrics", "pushed", "by"], rows)
}

fn conditions(metric: &MetricTemplate) -> String {
    let success = metric.success_condition.iter().map(|condition| format!("success: {condition}"));
    let failure = metric.failure_condition.iter().map(|condition| format!("failure: {condition}"));
    success.chain(failure).collect::<Vec<_>>().join("\n")
}

fn pace(metric: &MetricTemplate) -> String {
    let delay = metric.initial_delay.map_or_else(String::new, |delay| format!("after {delay}, "));
    let interval = metric.interval.map_or_else(String::new, |interval| format!(" every {interval}"));
    format!("{delay}{} times{interval}", metric.needed())
}

/// A template with what it measures.
pub(super) fn template(view: &TemplateView) -> String {
    let args = view.template.args.iter().map(|arg| match &arg.value {
        Some(value) => format!("{}={value}", arg.name),
        None => format!("{} (needed)", arg.name),
    });
    let head = output::properties(&[
        ("template", format!("{}@{}", view.template.name, view.version)),
        ("pushed", format!("{} by {}", output::time(view.pushed_at_ms), view.pushed_by)),
        ("args", args.collect::<Vec<_>>().join("\n")),
    ]);
    let rows = view.template.metrics.iter().map(|metric| {
        let asked = match &metric.provider {
            Provider::Prometheus(asked) => asked.query.clone(),
            Provider::Web(asked) => asked.url.clone(),
            Provider::Fleet(_) => String::new(),
        };
        vec![
            cell(&metric.name),
            cell(pace(metric)),
            cell(conditions(metric)),
            number(metric.failure_limit.to_string()),
            number(metric.inconclusive_limit.to_string()),
            number(metric.consecutive_error_limit.to_string()),
            cell(provider(&metric.provider)),
            cell(asked),
        ]
    });
    let header = ["metric", "measured", "condition", "may fail", "may be open", "errors", "asks", "for"];
    format!("{head}\n{}", output::table(&header, rows))
}

/// How the analyses of a wave stand, one metric a line.
pub(crate) fn report_table(reports: &[AnalysisReport]) -> String {
    let each = reports.iter().flat_map(|report| report.metrics.iter().map(move |metric| (report, metric)));
    let rows = each.map(|(report, metric)| {
        let outcome = match metric.outcome {
            Some(outcome) => toned(outcome.to_string(), outcome_tone(outcome)),
            None => cell("Running"),
        };
        let last = metric.measurements.last();
        let said = last.and_then(|last| last.message.as_ref().or(last.value.as_ref()));
        vec![
            cell(report.template.to_string()),
            cell(&metric.name),
            outcome,
            number(format!("{}/{}", metric.measured, metric.needed)),
            number(metric.failed.to_string()),
            number(metric.inconclusive.to_string()),
            number(metric.errors.to_string()),
            cell(output::time_or_dash(last.map(|last| last.at_ms))),
            cell(said.map_or("-", String::as_str)),
        ]
    });
    output::table(&["analysis", "metric", "outcome", "measured", "failed", "open", "errors", "last", "answer"], rows)
}
