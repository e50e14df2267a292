//! `muster drift`: how far live data has moved from a bundle's reference.

use clap::{Args, Subcommand};
use muster_shared::api::{ColumnDrift, DriftGroup, DriftReport};
use muster_shared::ids::BundleRef;

use crate::command::{Context, block_on};
use crate::duration::Millis;
use crate::failure::Failure;
use crate::output::{self, Tone, cell, number, toned};

#[derive(Debug, Subcommand)]
pub(crate) enum DriftCommand {
    /// Show the drift of every column, by group of devices.
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The bundle, as digits@1.0.0.
    #[arg(value_name = "NAME@VERSION")]
    bundle: BundleRef,
    /// Group devices by this label.
    #[arg(long, value_name = "LABEL")]
    group_by: Option<String>,
    /// Leave out windows older than this.
    #[arg(long, value_name = "DURATION")]
    since: Option<Millis>,
    /// Leave out columns that have not drifted.
    #[arg(long)]
    only_drifted: bool,
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), output::significant)
}

fn column_row(column: &ColumnDrift) -> Vec<comfy_table::Cell> {
    vec![
        cell(&column.name),
        cell(if column.prediction { "prediction" } else { "input" }),
        number(optional(column.psi)),
        number(optional(column.critical)),
        number(column.n.to_string()),
        number(format!("{:.0}", column.n_effective)),
        number(output::percent(column.missing_share)),
        number(output::percent(column.unexpected_share)),
        if column.drifted { toned("yes", Tone::Bad) } else { cell("no") },
    ]
}

fn group_text(report: &DriftReport, group: &DriftGroup) -> String {
    let name = match &report.group_by {
        None => "whole fleet".to_owned(),
        Some(label) if group.group.is_empty() => format!("without {label}"),
        Some(label) => format!("{label}={}", group.group),
    };
    let title = format!("{name}: {} device(s), {} window(s)", group.devices, group.windows);
    if group.columns.is_empty() {
        return output::clean(&format!("{title}, no column to show"));
    }
    // What moved first, and most, is what is looked for.
    let mut columns: Vec<&ColumnDrift> = group.columns.iter().collect();
    let psi = |column: &ColumnDrift| column.psi.unwrap_or(-1.0);
    columns.sort_by(|a, b| b.drifted.cmp(&a.drifted).then(psi(b).total_cmp(&psi(a))));
    let table = output::table(
        &["column", "kind", "psi", "critical", "n", "n eff", "missing", "unexpected", "drifted"],
        columns.into_iter().map(column_row),
    );
    format!("{}\n{table}", output::clean(&title))
}

fn report_text(report: &DriftReport) -> String {
    let windows = match report.since_ms {
        0 => "all windows".to_owned(),
        since_ms => format!("windows since {}", output::time(since_ms)),
    };
    let head = format!(
        "{}: {windows}; drifted means psi above its critical value (chance {}) and above {}",
        report.bundle, report.alpha, report.min_effect
    );
    let groups = report.groups.iter().map(|group| group_text(report, group));
    std::iter::once(head).chain(groups).collect::<Vec<_>>().join("\n\n")
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(crate) fn run(context: &Context, command: DriftCommand) -> Result<(), Failure> {
    let DriftCommand::Show(args) = command;
    let mut query = vec![("bundle", args.bundle.to_string())];
    query.extend(args.group_by.map(|label| ("group-by", label)));
    query.extend(args.since.map(|since| ("since-ms", output::now_ms().saturating_sub(since.0).to_string())));
    let client = context.client()?;
    let mut report: DriftReport = block_on(client.get(&["drift"], &query))?;
    if report.groups.is_empty() {
        output::note("no device has reported yet");
    }
    if args.only_drifted {
        report.groups.iter_mut().for_each(|group| group.columns.retain(|column| column.drifted));
    }
    context.output.show(&report, report_text)
}
