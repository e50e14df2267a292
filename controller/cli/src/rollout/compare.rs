//! `muster rollout compare`: how a bundle answers beside the one in service.

use clap::Args;
use muster_shared::comparison::{ColumnAgreement, ComparisonGroup, ComparisonReport, ModelFigures};
use muster_shared::ids::{BundleRef, RolloutId};
use muster_shared::rollout::RolloutView;

use crate::command::{Context, block_on};
use crate::duration::{Millis, since_query};
use crate::failure::Failure;
use crate::output::{self, cell, number};

/// Pairs of classes shown of a column, those that disagree most often first.
const SHOWN_PAIRS: usize = 10;

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// A rollout's id, or the bundle that runs beside another, as digits@1.1.0.
    #[arg(value_name = "ROLLOUT|NAME@VERSION")]
    what: String,
    /// Group devices by this label.
    #[arg(long, value_name = "LABEL")]
    group_by: Option<String>,
    /// Leave out windows older than this.
    #[arg(long, value_name = "DURATION")]
    since: Option<Millis>,
}

/// What is to be compared.
enum What {
    Bundle(BundleRef),
    Rollout(RolloutId),
}

fn what(text: &str) -> Result<What, Failure> {
    let fault = |error: &dyn std::fmt::Display| Failure::input(format!("{text:?}: {error}"));
    if text.contains('@') {
        text.parse().map(What::Bundle).map_err(|error: muster_shared::ids::IdError| fault(&error))
    } else {
        RolloutId::new(text).map(What::Rollout).map_err(|error| fault(&error))
    }
}

fn microseconds(value: Option<f64>) -> String {
    output::optional(value, |us| format!("{us:.0} us"))
}

fn figures_row(name: &str, figures: &ModelFigures) -> Vec<comfy_table::Cell> {
    let rate = if figures.requests == 0 { 0.0 } else { figures.errors as f64 / figures.requests as f64 };
    vec![
        cell(name),
        number(figures.requests.to_string()),
        number(figures.errors.to_string()),
        number(output::percent(rate)),
        number(microseconds(figures.latency_p50_us)),
        number(microseconds(figures.latency_p99_us)),
    ]
}

fn column_text(column: &ColumnAgreement) -> String {
    match column {
        ColumnAgreement::Classes { name, rows, agreement, pairs } => {
            let share = output::optional(agreement.as_ref(), |share| output::interval(share, output::percent));
            let mut differing: Vec<(u64, &str, &str)> = pairs
                .iter()
                .flat_map(|(old, row)| row.iter().map(move |(new, n)| (*n, old.as_str(), new.as_str())))
                .filter(|(_, old, new)| old != new)
                .collect();
            differing.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
            let mut text = output::clean(&format!("{name}: agreement {share} of {rows} row(s)"));
            if !differing.is_empty() {
                let shown = differing.iter().take(SHOWN_PAIRS);
                let rows = shown.map(|(n, old, new)| vec![cell(old), cell(new), number(n.to_string())]);
                text.push('\n');
                text.push_str(&output::table(&["incumbent", "candidate", "rows"], rows));
                if differing.len() > SHOWN_PAIRS {
                    text.push_str(&format!("\n{} more pairs: --output json has all", differing.len() - SHOWN_PAIRS));
                }
            }
            text
        }
        ColumnAgreement::Numbers { name, rows, untold, mean_difference, root_mean_square, .. } => {
            let optional = |value: &Option<f64>| output::optional(*value, output::significant);
            output::clean(&format!(
                "{name}: mean difference {}, root mean square {} of {rows} row(s), {untold} without a number",
                optional(mean_difference),
                optional(root_mean_square)
            ))
        }
    }
}

fn group_text(report: &ComparisonReport, group: &ComparisonGroup) -> String {
    let name = output::group_name(report.group_by.as_deref(), &group.group);
    let incumbent = group.incumbent.as_ref().map_or_else(|| group.against.short(), ToString::to_string);
    // Who wonders why little was compared is told.
    let paused = match group.paused {
        0 => String::new(),
        paused => format!(" ({paused} of them while a device was pressed: see device show)"),
    };
    let title = output::clean(&format!(
        "{name}, beside {incumbent}: {} device(s), {} window(s); {} request(s) compared, {} skipped{paused}, {} failed by the candidate alone",
        group.devices, group.windows, group.compared, group.skipped, group.candidate_failed
    ));
    let figures = output::table(
        &["model", "requests", "errors", "rate", "p50", "p99"],
        [
            figures_row(&incumbent, &group.incumbent_figures),
            figures_row(&report.bundle.to_string(), &group.candidate_figures),
        ],
    );
    let parts = [title, figures].into_iter().chain(group.columns.iter().map(column_text));
    let parts = parts.chain(group.labels.as_ref().map(super::labels::text));
    parts.collect::<Vec<_>>().join("\n")
}

fn report_text(report: &ComparisonReport) -> String {
    let groups = report.groups.iter().map(|group| group_text(report, group));
    groups.collect::<Vec<_>>().join("\n\n")
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(super) fn run(context: &Context, args: CompareArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let bundle = match what(&args.what)? {
        What::Bundle(bundle) => bundle,
        What::Rollout(id) => {
            let view: RolloutView = block_on(client.get(&["rollouts", id.as_str()], &[]))?;
            view.spec.bundle
        }
    };
    let mut query = vec![("bundle", bundle.to_string())];
    query.extend(args.group_by.map(|label| ("group-by", label)));
    query.extend(since_query(args.since));
    let report: ComparisonReport = block_on(client.get(&["comparison"], &query))?;
    if report.groups.is_empty() {
        output::note("this bundle has run beside no other yet, as far as devices have reported");
    }
    context.output.show(&report, report_text)
}

#[cfg(test)]
mod tests {
    use muster_shared::ids::Digest;
    use muster_shared::quality::Estimate;

    use super::*;

    #[test]
    fn a_rollout_or_a_bundle_is_meant() {
        assert!(matches!(what("digits@1.0.0"), Ok(What::Bundle(_))));
        assert!(matches!(what("r12"), Ok(What::Rollout(_))));
        assert!(what("digits@").is_err() && what("../r1").is_err());
    }

    #[test]
    fn the_text_leads_with_what_disagrees() {
        let pairs = [("1", [("1", 90), ("7", 3)]), ("7", [("1", 5), ("7", 2)])];
        let pairs = pairs.map(|(old, row)| (old.to_owned(), row.map(|(new, n)| (new.to_owned(), n)).into()));
        let group = ComparisonGroup {
            group: String::new(),
            against: Digest::of(b"m"),
            incumbent: Some("digits@1.0.0".parse().unwrap()),
            devices: 3,
            windows: 4,
            compared: 100,
            skipped: 2,
            paused: 1,
            candidate_failed: 1,
            candidate_figures: ModelFigures { requests: 101, errors: 1, ..ModelFigures::default() },
            incumbent_figures: ModelFigures { requests: 500, latency_p50_us: Some(31.4), ..ModelFigures::default() },
            columns: vec![ColumnAgreement::Classes {
                name: "class".into(),
                rows: 100,
                agreement: Some(Estimate { value: 0.92, low: Some(0.85), high: Some(0.96) }),
                pairs: pairs.into(),
            }],
            labels: None,
        };
        let report = ComparisonReport {
            bundle: "digits@1.1.0".parse().unwrap(),
            group_by: None,
            since_ms: 0,
            groups: vec![group],
        };
        let text = report_text(&report);
        for part in [
            "beside digits@1.0.0: 3 device(s)",
            "100 request(s) compared, 2 skipped (1 of them while a device was pressed",
            "31 us",
            "agreement 92",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let (five, three) = (text.rfind('5').unwrap(), text.rfind('3').unwrap());
        assert!(five < three, "{text}");
    }
}
