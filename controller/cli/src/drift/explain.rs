//! `muster drift explain`: reference and current side by side, who contributes, since when.

use clap::Args;
use muster_shared::api::{CellChange, ConceptBasis, DriftExplanation};
use muster_shared::ids::BundleRef;

use super::columns_table;
use crate::command::{Context, block_on};
use crate::duration::{Millis, since_query};
use crate::failure::Failure;
use crate::output::{self, Tone, cell, number, toned};

/// Characters of the longest bar.
const BAR_CHARS: f64 = 24.0;
/// Cells named as those that moved most.
const MOVED_MOST: usize = 3;

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The bundle, as digits@1.0.0.
    #[arg(value_name = "NAME@VERSION")]
    bundle: BundleRef,
    /// The column to explain; otherwise the one that moved most.
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Group devices by this label.
    #[arg(long, value_name = "LABEL")]
    group_by: Option<String>,
    /// Leave out windows older than this.
    #[arg(long, value_name = "DURATION")]
    since: Option<Millis>,
}

fn bar(share: f64, most: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most BAR_CHARS")]
    let length = if most > 0.0 { (share / most * BAR_CHARS).round() as usize } else { 0 };
    "█".repeat(length)
}

fn bars(cells: &[CellChange]) -> String {
    let sum = |of: fn(&CellChange) -> u64| cells.iter().map(|cell| of(cell) as f64).sum::<f64>().max(1.0);
    let (n_reference, n) = (sum(|cell| cell.reference), sum(|cell| cell.current));
    let shares: Vec<(f64, f64)> =
        cells.iter().map(|cell| (cell.reference as f64 / n_reference, cell.current as f64 / n)).collect();
    let most = shares.iter().flat_map(|(p, q)| [*p, *q]).fold(0.0, f64::max);
    let mut moved: Vec<f64> = cells.iter().map(|cell| cell.psi).collect();
    moved.sort_by(|a, b| b.total_cmp(a));
    let least_moved = moved.get(MOVED_MOST - 1).copied().unwrap_or(0.0).max(0.01);
    let rows = cells.iter().zip(&shares).filter(|(change, _)| change.reference > 0 || change.current > 0).map(
        |(change, (p, q))| {
            let word = format!("{:+.1} %", change.change * 100.0);
            vec![
                cell(&change.cell),
                number(output::percent(*p)),
                cell(bar(*p, most)),
                number(output::percent(*q)),
                cell(bar(*q, most)),
                if change.psi >= least_moved { toned(word, Tone::Bad) } else { number(word) },
            ]
        },
    );
    output::table(&["cell", "reference", "", "current", "", "change"], rows)
}

/// The cells that moved most, with the change of their share.
fn moved_most(cells: &[CellChange]) -> String {
    let mut moved: Vec<&CellChange> = cells.iter().filter(|cell| cell.psi > 0.0).collect();
    moved.sort_by(|a, b| b.psi.total_cmp(&a.psi));
    let named = moved.iter().take(MOVED_MOST).map(|cell| format!("{} {:+.1} %", cell.cell, cell.change * 100.0));
    let named: Vec<String> = named.collect();
    if named.is_empty() { "nothing".to_owned() } else { named.join(", ") }
}

fn basis(explanation: &DriftExplanation) -> &'static str {
    match explanation.concept_basis {
        ConceptBasis::Nothing => "nothing: there are no labels, or too few, and the profile has no certainty",
        ConceptBasis::Certainty => "the model's certainty alone: there are no labels, or too few",
        ConceptBasis::LabelsAgainstReference => "labels, against those of the reference sample",
        ConceptBasis::LabelsAgainstEarlier => {
            "labels, those of the later half of the windows against those of the earlier half"
        }
    }
}

fn text(explanation: &DriftExplanation) -> String {
    let mut parts = vec![
        format!(
            "{}: {}, {} device(s)",
            explanation.bundle,
            output::group_name(explanation.group_by.as_deref(), &explanation.group),
            explanation.devices
        ),
        format!("kind of drift: {}", output::word(&explanation.kind)),
        explanation.sentence.clone(),
        format!("whether the model errs more often rests on {}", basis(explanation)),
        columns_table([&explanation.column]),
        bars(&explanation.cells),
        format!("moved most: {}", moved_most(&explanation.cells)),
    ];
    if let Some(since_ms) = explanation.since_ms {
        parts.push(format!("drifted without a break since {}", output::time(since_ms)));
    }
    if !explanation.contributors.is_empty() {
        let rows = explanation.contributors.iter().map(|device| {
            vec![
                cell(device.device.as_str()),
                number(device.n.to_string()),
                number(output::significant(device.psi)),
                number(output::optional(device.psi_without, output::significant)),
                number(format!("{:.1} %", device.contribution * 100.0)),
            ]
        });
        parts.push(output::table(&["device", "rows", "own psi", "psi without it", "contribution"], rows));
    }
    output::clean(&parts.join("\n\n"))
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(super) fn run(context: &Context, args: ExplainArgs) -> Result<(), Failure> {
    let mut query = vec![("bundle", args.bundle.to_string())];
    query.extend(args.column.map(|column| ("column", column)));
    query.extend(args.group_by.map(|label| ("group-by", label)));
    query.extend(since_query(args.since));
    let client = context.client()?;
    let explanations: Vec<DriftExplanation> = block_on(client.get(&["drift", "explain"], &query))?;
    if explanations.is_empty() {
        output::note("no device has reported yet");
    }
    context.output.show(&explanations, |all| all.iter().map(text).collect::<Vec<_>>().join("\n\n"))
}
