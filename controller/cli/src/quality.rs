//! `muster quality`: how good a bundle is by the labels that devices joined with its predictions.

use clap::{Args, Subcommand};
use comfy_table::Cell;
use muster_shared::ids::BundleRef;
use muster_shared::labels::LabelTask;
use muster_shared::quality::{Baseline, ConceptDrift, Estimate, Quality, QualityGroup, QualityReport};

use crate::command::{Context, block_on};
use crate::duration::{Millis, since_query};
use crate::failure::Failure;
use crate::output::{self, Tone, cell, number, toned};

#[derive(Debug, Subcommand)]
pub(crate) enum QualityCommand {
    /// Show accuracy or errors by group, slice and time, the worst slice first.
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
    /// Length of a point of the trend.
    #[arg(long, value_name = "DURATION")]
    trend: Option<Millis>,
}

fn share(estimate: &Estimate) -> String {
    output::interval(estimate, output::percent)
}

/// What a row of a table says of a quality, after its name.
fn cells(quality: &Quality) -> Vec<Cell> {
    if quality.suppressed {
        return vec![number("too few"), cell("-"), cell("-")];
    }
    let labels = number(quality.labels.to_string());
    if let Some(classification) = &quality.classification {
        return vec![labels, cell(share(&classification.accuracy)), number(output::percent(classification.macro_f1))];
    }
    match quality.targets.first() {
        Some(target) => vec![
            labels,
            cell(output::interval(&target.mae, output::significant)),
            number(output::optional(target.r2, output::significant)),
        ],
        None => vec![labels, cell("-"), cell("-")],
    }
}

fn header(first: &'static str, task: &LabelTask) -> [&'static str; 4] {
    match task {
        LabelTask::Classification { .. } => [first, "labels", "accuracy (95 %)", "macro f1"],
        LabelTask::Regression { .. } => [first, "labels", "mae (95 %)", "r2"],
    }
}

fn concept_text(concept: &ConceptDrift) -> String {
    let verdict = match (concept.drifted, concept.devices) {
        (false, _) => "not worse than the reference",
        (true, 1) => "this one device is worse than the reference, which says nothing about others",
        (true, _) => "worse than the reference",
    };
    format!(
        "{}: {verdict}: {} against {}, {} worse where {} is beyond chance",
        concept.metric,
        output::significant(concept.current),
        output::significant(concept.reference),
        output::significant(concept.worsening),
        output::optional(concept.critical, output::significant),
    )
}

fn details(quality: &Quality) -> Vec<String> {
    let mut parts = Vec::new();
    if let Some(classification) = &quality.classification {
        let estimate = |estimate: &Option<Estimate>| cell(estimate.as_ref().map_or_else(|| "-".to_owned(), share));
        let rows = classification.classes.iter().filter(|class| class.f1.is_some()).map(|class| {
            vec![
                cell(&class.class),
                number(class.support.to_string()),
                estimate(&class.precision),
                estimate(&class.recall),
                estimate(&class.f1),
            ]
        });
        parts.push(output::table(&["class", "labels", "precision", "recall", "f1"], rows));
        if let Some(error) = classification.calibration_error {
            let rows = classification.reliability.iter().map(|bin| {
                vec![
                    cell(format!("{} to {}", output::percent(bin.from), output::percent(bin.to))),
                    number(bin.n.to_string()),
                    number(output::percent(bin.confidence)),
                    number(output::percent(bin.accuracy)),
                ]
            });
            let table = output::table(&["confidence", "answers", "mean", "right"], rows);
            parts.push(format!("calibration error {}\n{table}", output::percent(error)));
        }
    }
    if !quality.targets.is_empty() {
        let rows = quality.targets.iter().map(|target| {
            vec![
                number(target.index.to_string()),
                number(target.n.to_string()),
                cell(output::interval(&target.mae, output::significant)),
                cell(output::interval(&target.rmse, output::significant)),
                cell(output::interval(&target.bias, output::significant)),
                number(output::optional(target.r2, output::significant)),
            ]
        });
        parts.push(output::table(&["element", "labels", "mae", "rmse", "bias", "r2"], rows));
    }
    parts
}

fn group_text(report: &QualityReport, task: &LabelTask, group: &QualityGroup) -> String {
    let name = output::group_name(report.group_by.as_deref(), &group.group);
    let standing = &group.standing;
    let results = &standing.results;
    let delay = output::optional(standing.delay_p50_ms, |ms| format!("{} s", output::significant(ms / 1_000.0)));
    let mut parts = vec![format!(
        "{name}: {} device(s), {} window(s)\nlabels: {} of {} predictions ({}), half of them within {delay}; {} late, {} \
         duplicate, {} unknown, {} invalid; {} predictions forgotten",
        group.devices,
        group.windows,
        results.joined,
        standing.predictions,
        output::optional(standing.coverage, output::percent),
        results.late,
        results.duplicate,
        results.unknown,
        results.invalid,
        standing.forgotten,
    )];
    let all = std::iter::once(vec![cell("all")].into_iter().chain(cells(&group.quality)).collect());
    parts.push(output::table(
        &header("slice", task),
        all.chain(
            group.slices.iter().map(|slice| std::iter::once(cell(&slice.slice)).chain(cells(&slice.quality)).collect()),
        ),
    ));
    parts.extend(group.concept.iter().map(concept_text));
    parts.extend(details(&group.quality));
    if group.trend.len() > 1 {
        let rows = group
            .trend
            .iter()
            .map(|point| std::iter::once(cell(output::time(point.start_ms))).chain(cells(&point.quality)).collect());
        parts.push(output::table(&header("from", task), rows));
    }
    if group.concept.iter().any(|concept| concept.drifted && concept.devices > 1) {
        let text = "this model is worse on live labels than on its reference: concept drift";
        parts.push(output::table(&["verdict"], [vec![toned(text, Tone::Bad)]]));
    }
    parts.join("\n\n")
}

fn baseline_text(baseline: &Baseline) -> String {
    match baseline {
        Baseline::Classification { rows, right, .. } => {
            let accuracy = if *rows == 0 { 0.0 } else { *right as f64 / *rows as f64 };
            format!("; on the reference sample the accuracy was {} over {rows} rows", output::percent(accuracy))
        }
        Baseline::Regression { rows, targets } => {
            let errors: Vec<String> = targets.iter().map(|target| output::significant(target.mae)).collect();
            format!("; on the reference sample the mean absolute error was {} over {rows} rows", errors.join(", "))
        }
    }
}

fn report_text(report: &QualityReport) -> String {
    let Some(task) = &report.task else {
        return format!("{} declares no labels: add [labels] to its description and build it again", report.bundle);
    };
    let windows = match report.since_ms {
        0 => "all windows".to_owned(),
        since_ms => format!("windows since {}", output::time(since_ms)),
    };
    let baseline = report.baseline.as_ref().map(baseline_text).unwrap_or_default();
    let head = format!("{}: {windows}; below {} labels nothing is shown{baseline}", report.bundle, report.k_min);
    let groups = report.groups.iter().map(|group| group_text(report, task, group));
    output::clean(&std::iter::once(head).chain(groups).collect::<Vec<_>>().join("\n\n"))
}

/// Shows the quality of a bundle.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(crate) fn show(context: &Context, args: ShowArgs) -> Result<(), Failure> {
    let mut query = vec![("bundle", args.bundle.to_string())];
    query.extend(args.group_by.map(|label| ("group-by", label)));
    query.extend(since_query(args.since));
    query.extend(args.trend.map(|trend| ("trend-ms", trend.0.to_string())));
    let client = context.client()?;
    let report: QualityReport = block_on(client.get(&["quality"], &query))?;
    if report.task.is_some() && report.groups.is_empty() {
        output::note("no device has reported labels or predictions yet");
    }
    context.output.show(&report, report_text)
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(crate) fn run(context: &Context, command: QualityCommand) -> Result<(), Failure> {
    let QualityCommand::Show(args) = command;
    show(context, args)
}
