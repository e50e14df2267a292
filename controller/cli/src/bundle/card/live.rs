//! The part of a card that changes: who runs the model, and how it does there.

use muster_shared::alert::Alert;
use muster_shared::api::{ColumnDrift, DriftReport, LiveCard, ModelCard, RolloutCard};
use muster_shared::quality::{Quality, QualityReport};

use super::{code, facts, prose, section, table};
use crate::output;

/// Drifted columns shown.
const SHOWN_COLUMNS: usize = 20;

fn milliseconds(us: f64) -> String {
    format!("{} ms", output::significant(us / 1_000.0))
}

fn in_the_field(live: &LiveCard) -> Option<String> {
    let since =
        format!("Figures of windows since {}, as of {}.", output::time(live.since_ms), output::time(live.at_ms));
    let devices = match (live.devices, live.devices_assigned) {
        (0, 0) => "*No device runs it, and none is to.*".to_owned(),
        (0, assigned) => format!("*No device runs it yet; {assigned} are to.*"),
        (running, assigned) => {
            let since = live.running_since_ms.map(|ms| format!(", the first since {}", output::time(ms)));
            format!("{running} device(s) run it{}; {assigned} are to.", since.unwrap_or_default())
        }
    };
    let requests = &live.requests;
    let figures = facts([
        ("requests served", (live.devices > 0 || requests.served > 0).then(|| requests.served.to_string())),
        (
            "error rate",
            live.error_rate.map(|rate| {
                format!("{} ({} failed, {} not finite)", output::percent(rate), requests.failed, requests.non_finite)
            }),
        ),
        (
            "turned away",
            (requests.rejected > 0 || requests.overloaded > 0)
                .then(|| format!("{} unfit, {} for want of time", requests.rejected, requests.overloaded)),
        ),
        (
            "latency p50 / p95 / p99",
            live.latency.map(|latency| [latency.p50_us, latency.p95_us, latency.p99_us].map(milliseconds).join(" / ")),
        ),
    ]);
    section("## In the field", [devices, figures, since])
}

fn metric(quality: &Quality) -> String {
    if quality.suppressed {
        return "too few labels to show".to_owned();
    }
    if let Some(classes) = &quality.classification {
        return format!("accuracy {}", output::interval(&classes.accuracy, output::percent));
    }
    let target = |target: &muster_shared::quality::TargetQuality| {
        format!("MAE[{}] {}", target.index, output::interval(&target.mae, output::significant))
    };
    let targets: Vec<String> = quality.targets.iter().map(target).collect();
    if targets.is_empty() { "-".to_owned() } else { targets.join(", ") }
}

fn quality(report: &QualityReport) -> Option<String> {
    let heading = "### Quality by labels";
    if report.task.is_none() {
        return section(heading, ["*It declares no labels.*".to_owned()]);
    }
    let labelled = report.groups.first().filter(|group| group.quality.labels > 0);
    let Some(group) = labelled else {
        return section(heading, ["*No label has come yet.*".to_owned()]);
    };
    let whole = &group.quality;
    let mut rows = vec![vec!["all".to_owned(), whole.labels.to_string(), metric(whole)]];
    rows.extend(group.slices.iter().map(|slice| {
        let labels = if slice.quality.suppressed {
            format!("under {}, or kept back with one", report.k_min)
        } else {
            slice.quality.labels.to_string()
        };
        vec![code(&slice.slice), labels, metric(&slice.quality)]
    }));
    let concept = group.concept.iter().map(|concept| {
        let verdict = match (concept.drifted, concept.devices) {
            (false, _) => "not worse than on the reference sample",
            (true, 1) => "**worse than on the reference sample**, on this one device",
            (true, _) => "**worse than on the reference sample**",
        };
        let (current, reference) = (output::significant(concept.current), output::significant(concept.reference));
        format!("{}: {current} against {reference}, {verdict}.", concept.metric)
    });
    let table = table(&["slice, the worst first", "labels", "quality (95 %)"], rows);
    section(heading, std::iter::once(table).chain([concept.collect::<Vec<_>>().join("\n")]))
}

fn drift(report: &DriftReport) -> Option<String> {
    let heading = "### Drift from the reference";
    let Some(group) = report.groups.first().filter(|group| group.columns.iter().any(|column| column.n > 0)) else {
        return section(heading, ["*No device has reported what it saw.*".to_owned()]);
    };
    let mut drifted: Vec<&ColumnDrift> = group.columns.iter().filter(|column| column.drifted).collect();
    let state =
        format!("{} of {} columns have drifted, on {} device(s).", drifted.len(), group.columns.len(), group.devices);
    if drifted.is_empty() {
        return section(heading, [state]);
    }
    drifted.sort_by(|a, b| b.psi.unwrap_or(0.0).total_cmp(&a.psi.unwrap_or(0.0)));
    let row = |column: &&ColumnDrift| {
        vec![
            code(&column.name),
            output::word(&column.subject),
            output::optional(column.psi, output::significant),
            output::optional(column.critical, output::significant),
            column.n.to_string(),
            output::percent(column.missing_share),
        ]
    };
    let rows = drifted.iter().take(SHOWN_COLUMNS).map(row);
    let header = ["column", "of", "PSI", "by chance up to", "values", "missing"];
    section(heading, [state, table(&header, rows)])
}

fn alerts(alerts: &[Alert]) -> Option<String> {
    if alerts.is_empty() {
        return section("### Alerts", ["None.".to_owned()]);
    }
    let row = |alert: &Alert| {
        let of = alert.labels.iter().filter(|(label, _)| *label != "bundle");
        let of: Vec<String> = of.map(|(label, value)| code(&format!("{label}={value}"))).collect();
        vec![
            code(alert.rule.as_str()),
            of.join(", "),
            alert.severity.as_str().to_owned(),
            alert.state.as_str().to_owned(),
            output::time(alert.since_ms),
            prose(alert.words().map_or("", String::as_str)),
        ]
    };
    section("### Alerts", [table(&["rule", "of", "severity", "state", "since", "says"], alerts.iter().map(row))])
}

fn rollouts(rollouts: &[RolloutCard]) -> Option<String> {
    if rollouts.is_empty() {
        return section("### Rollouts", ["None brought it.".to_owned()]);
    }
    let row = |rollout: &RolloutCard| {
        vec![
            code(rollout.id.as_str()),
            output::word(&rollout.status),
            output::time(rollout.created_at_ms),
            rollout.devices.to_string(),
            rollout.failures.to_string(),
            prose(&rollout.status_reason),
        ]
    };
    let header = ["rollout", "status", "created", "devices", "failed", "why"];
    section("### Rollouts", [table(&header, rollouts.iter().map(row))])
}

/// Everything that is so now; of a bundle in a folder nothing is known.
pub(super) fn sections(card: &ModelCard) -> Vec<String> {
    let Some(live) = &card.live else {
        return section("## In the field", ["*A bundle in a folder: no controller was asked.*".to_owned()])
            .into_iter()
            .collect();
    };
    [in_the_field(live), quality(&live.quality), drift(&live.drift), alerts(&live.alerts), rollouts(&live.rollouts)]
        .into_iter()
        .flatten()
        .collect()
}
