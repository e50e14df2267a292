//! `muster drift`: how far live data has moved from a bundle's reference, and a table from any reference.

mod answers;
mod explain;
mod export;
mod faults;
mod inputs;
mod rows;
mod score;

use clap::{Args, Subcommand, ValueEnum};
use muster_shared::api::{ColumnDrift, ColumnQuantiles, DriftGroup, DriftReport};
use muster_shared::drift::{Clustering, Score};
use muster_shared::ids::BundleRef;
use muster_shared::sketch::LatencyCount;

use crate::command::{Context, block_on};
use crate::duration::{Millis, since_query};
use crate::failure::Failure;
use crate::output::{self, Tone, cell, number, toned};

#[derive(Debug, Subcommand)]
pub(crate) enum DriftCommand {
    /// Show the drift of every column, by group of devices.
    Show(ShowArgs),
    /// Explain what moved in a column, which devices contribute and since when.
    Explain(explain::ExplainArgs),
    /// Print the counts behind the scores, or write sketches of raw values, for notebooks.
    Export(export::ExportArgs),
    /// Score a table against a bundle or a profile, here and without a controller. Exit code 3 says that it has drifted.
    Score(score::ScoreArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The bundle, as digits@1.0.0.
    #[arg(value_name = "NAME@VERSION")]
    bundle: BundleRef,
    /// Group devices by this label.
    #[arg(long, value_name = "LABEL")]
    group_by: Option<String>,
    /// What else to tell apart.
    #[arg(long, value_enum)]
    by: Option<By>,
    /// Leave out windows older than this.
    #[arg(long, value_name = "DURATION")]
    since: Option<Millis>,
    /// Leave out columns that have not drifted.
    #[arg(long)]
    only_drifted: bool,
}

/// What else than groups of devices can be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// Steps of time, in their order: the trend.
    Window,
    /// Slices of rows, as the profile declares them; those with too few rows are kept back.
    Slice,
}

impl By {
    /// As the API has it.
    fn word(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Slice => "slice",
        }
    }
}

fn score_cell(score: Option<Score>) -> comfy_table::Cell {
    let text = output::optional(score.map(|score| score.value), output::significant);
    if score.is_some_and(|score| score.is_significant()) { number(format!("{text}*")) } else { number(text) }
}

fn verdict(column: &ColumnDrift) -> comfy_table::Cell {
    if column.drifted {
        return toned("drifted", Tone::Bad);
    }
    match column.psi {
        None => cell("-"),
        Some(_) if column.significant => toned("slight", Tone::Busy),
        Some(_) => toned("stable", Tone::Good),
    }
}

fn column_row(column: &ColumnDrift) -> Vec<comfy_table::Cell> {
    let worth = match column.clustering {
        Clustering::WithinOneDevice | Clustering::FewDevices => format!("~{:.0}", column.n_effective),
        Clustering::Rows | Clustering::Devices => format!("{:.0}", column.n_effective),
    };
    vec![
        cell(&column.name),
        cell(output::word(&column.subject)),
        score_cell(column.psi.map(|value| Score { value, critical: column.critical })),
        number(output::optional(column.critical, output::significant)),
        score_cell(column.jensen_shannon),
        score_cell(column.l_infinity),
        score_cell(column.kolmogorov_smirnov),
        score_cell(column.wasserstein),
        number(column.n.to_string()),
        number(worth),
        number(output::percent(column.missing_share)),
        number(output::percent(column.unexpected_share)),
        number(output::optional(column.q_value, output::significant)),
        verdict(column),
    ]
}

/// The scores of columns: what moved first, and most, is what is looked for.
fn columns_table<'c>(columns: impl IntoIterator<Item = &'c ColumnDrift>) -> String {
    let mut columns: Vec<&ColumnDrift> = columns.into_iter().collect();
    let psi = |column: &ColumnDrift| column.psi.unwrap_or(-1.0);
    columns.sort_by(|a, b| b.drifted.cmp(&a.drifted).then(psi(b).total_cmp(&psi(a))));
    output::table(
        &[
            "column",
            "about",
            "psi",
            "critical",
            "js",
            "l-inf",
            "ks",
            "w1/sd",
            "n",
            "n eff",
            "missing",
            "unexpected",
            "q",
            "verdict",
        ],
        columns.into_iter().map(column_row),
    )
}

fn group_text(report: &DriftReport, group: &DriftGroup) -> String {
    let mut name = output::group_name(report.group_by.as_deref(), &group.group);
    if let Some(slice) = &group.slice {
        name = format!("{name}, {slice}");
    }
    if report.by_window {
        name = format!("{name}, {} to {}", output::time(group.start_ms), output::time(group.end_ms));
    }
    if group.suppressed {
        let k_min = report.k_min;
        return output::clean(&format!("{name}: kept back (fewer than {k_min} rows, or needed to hide such a slice)"));
    }
    let title = format!("{name}: {} device(s), {} window(s)", group.devices, group.windows);
    let mut text = if group.columns.is_empty() {
        output::clean(&format!("{title}, no column to show"))
    } else {
        format!("{}\n{}", output::clean(&title), columns_table(&group.columns))
    };
    for part in [quantiles_text(&group.quantiles), objectives_text(&group.objectives)].into_iter().flatten() {
        text = format!("{text}\n{part}");
    }
    let inputs = [group.quality.as_ref().map(inputs::quality), group.outliers.as_ref().map(inputs::outliers)];
    std::iter::once(text).chain(inputs.into_iter().flatten()).collect::<Vec<_>>().join("\n\n")
}

fn quantiles_text(columns: &[ColumnQuantiles]) -> Option<String> {
    let first = columns.first()?;
    let ranks = first.quantiles.iter().map(|(rank, _)| format!("p{}", rank * 100.0));
    let header: Vec<String> = ["column".to_owned()].into_iter().chain(ranks).chain(["n".to_owned()]).collect();
    let rows = columns.iter().map(|column| {
        let values = column.quantiles.iter().map(|(_, value)| number(output::significant(*value)));
        let ends = [cell(&column.column), number(column.n.to_string())];
        let [name, n] = ends;
        [name].into_iter().chain(values).chain([n]).collect()
    });
    let table = output::table(&header.iter().map(String::as_str).collect::<Vec<_>>(), rows);
    Some(format!("quantiles (contains raw values), rank error {}\n{table}", output::percent(first.rank_error)))
}

fn objectives_text(objectives: &[LatencyCount]) -> Option<String> {
    let served = objectives.first()?.served;
    let edge = |count: &LatencyCount| {
        let share = count.share_above().map_or_else(|| "-".to_owned(), output::percent);
        format!("{share} ({}) above {} ms", count.above, count.edge_us as f64 / 1_000.0)
    };
    Some(format!("latency of {served} requests: {}", objectives.iter().map(edge).collect::<Vec<_>>().join(", ")))
}

fn report_text(report: &DriftReport) -> String {
    let windows = match report.since_ms {
        0 => "all windows".to_owned(),
        since_ms => format!("windows since {}", output::time(since_ms)),
    };
    let head = format!(
        "{}: {windows}; * beyond chance ({}); drifted: that among all columns, and psi above {}",
        report.bundle, report.alpha, report.min_effect
    );
    let groups = report.groups.iter().map(|group| group_text(report, group));
    std::iter::once(head).chain(groups).collect::<Vec<_>>().join("\n\n")
}

fn show(context: &Context, args: ShowArgs) -> Result<(), Failure> {
    let mut query = vec![("bundle", args.bundle.to_string())];
    query.extend(args.group_by.map(|label| ("group-by", label)));
    query.extend(args.by.map(|by| ("by", by.word().to_owned())));
    query.extend(since_query(args.since));
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

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses, a file is wrong, or a table has drifted.
pub(crate) fn run(context: &Context, command: DriftCommand) -> Result<(), Failure> {
    match command {
        DriftCommand::Show(args) => show(context, args),
        DriftCommand::Explain(args) => explain::run(context, args),
        DriftCommand::Export(args) => export::run(context, &args),
        DriftCommand::Score(args) => score::run(context, &args),
    }
}
