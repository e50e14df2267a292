//! What kind of drift it is, in one sentence a person can act on.

use super::distance::psi_term;
use super::psi;
use crate::api::{CellChange, ColumnDrift, DeviceDrift, DriftKind, ScoreName, Subject};
use crate::ids::DeviceId;
use crate::profile::{Column, Reference};

/// What falls into each cell of `column`, in the order of its cells.
#[must_use]
pub fn cell_names(column: &Column) -> Vec<String> {
    match &column.reference {
        Reference::Numeric { lower_edges, max, .. } => {
            let last = lower_edges.last().map(|edge| format!("[{edge}, {max}]"));
            let below = lower_edges.first().map(|edge| format!("< {edge}"));
            below
                .into_iter()
                .chain(lower_edges.windows(2).map(|edge| format!("[{}, {})", edge[0], edge[1])))
                .chain(last)
                .chain([format!("> {max}"), "+inf".to_owned(), "-inf".to_owned(), "missing".to_owned()])
                .collect()
        }
        Reference::Class { classes, .. } => {
            classes.iter().cloned().chain(["(other)".to_owned(), "(missing)".to_owned()]).collect()
        }
    }
}

/// Every cell of `column` on both sides; none where a side is empty.
#[must_use]
pub fn cell_changes(column: &Column, reference: &[u64], current: &[u64]) -> Vec<CellChange> {
    let sum = |counts: &[u64]| counts.iter().map(|n| *n as f64).sum::<f64>();
    let (n_reference, n) = (sum(reference), sum(current));
    if n_reference <= 0.0 || n <= 0.0 {
        return Vec::new();
    }
    let cells = cell_names(column).into_iter().zip(reference.iter().zip(current));
    cells
        .map(|(cell, (r, c))| {
            let (p, q) = (*r as f64 / n_reference, *c as f64 / n);
            CellChange { cell, reference: *r, current: *c, change: q - p, psi: psi_term(p, q) }
        })
        .collect()
}

/// What `device`, which counted `own` of the `current` counts of all, adds to their drift.
#[must_use]
pub fn contribution(device: &DeviceId, reference: &[u64], current: &[u64], own: &[u64]) -> Option<DeviceDrift> {
    let whole = psi(reference, current)?;
    let rest: Vec<u64> = current.iter().zip(own).map(|(all, own)| all.saturating_sub(*own)).collect();
    let psi_without = psi(reference, &rest);
    let contribution = match psi_without {
        Some(without) if whole > 0.0 => (whole - without) / whole,
        Some(_) => 0.0,
        None => 1.0,
    };
    let n = own.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
    Some(DeviceDrift { device: device.clone(), n, psi: psi(reference, own)?, psi_without, contribution })
}

/// Whether values are gone or impossible rather than moved, and by how much.
fn quality_fault(column: &ColumnDrift, alpha: f64, least: f64) -> bool {
    let changed = |p_value: Option<f64>, change: f64| p_value.is_some_and(|p| p <= alpha) && change.abs() >= least;
    changed(column.missing_p_value, column.missing_share - column.reference_missing_share)
        // A few values past the extremes come with every move of the inputs.
        || (changed(column.unexpected_p_value, column.unexpected_share) && column.unexpected_share >= 0.5)
}

/// In which sense `column` has moved. Bad values are a matter of quality whatever they do to the distribution.
#[must_use]
pub fn kind_of(column: &ColumnDrift, alpha: f64, min_share_effect: f64) -> DriftKind {
    if !column.drifted {
        return DriftKind::None;
    }
    if quality_fault(column, alpha, min_share_effect) {
        return DriftKind::Quality;
    }
    match column.subject {
        Subject::Input => DriftKind::Data,
        Subject::Output | Subject::PredictedClass => DriftKind::Prediction,
        Subject::Confidence => DriftKind::Concept,
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// That in one sentence.
#[must_use]
pub fn sentence(column: &ColumnDrift, kind: DriftKind, devices: u32) -> String {
    let name = &column.name;
    let psi = column.psi.map_or_else(|| "-".to_owned(), |psi| format!("{psi:.3}"));
    let critical = column.critical.map_or_else(|| "unknown".to_owned(), |critical| format!("{critical:.3}"));
    let evidence = format!("PSI {psi}, by chance up to {critical}; {} rows of {devices} device(s)", column.n);
    match kind {
        DriftKind::None if column.n == 0 => format!("{name} has not been counted yet."),
        DriftKind::None if column.significant => {
            format!("{name} has moved beyond chance, but too little to matter ({evidence}).")
        }
        DriftKind::None if !column.beyond_chance.is_empty() => {
            format!("{name} has not moved beyond what chance explains once all its tests are counted ({evidence}).")
        }
        DriftKind::None => format!("{name} has not moved beyond what chance explains ({evidence})."),
        DriftKind::Quality => format!(
            "Data quality: {} of the values of {name} are missing (reference {}) and {} are outside anything the reference had; look at the \
             sensor or the step before the model ({evidence}).",
            percent(column.missing_share),
            percent(column.reference_missing_share),
            percent(column.unexpected_share)
        ),
        DriftKind::Data => format!(
            "Data drift: the input {name} is distributed otherwise than in the reference{}; whether answers suffer only predictions and labels \
             tell ({evidence}).",
            if column.beyond_chance.contains(&ScoreName::Unexpected) {
                format!(", {} of it outside the reference's range", percent(column.unexpected_share))
            } else {
                String::new()
            }
        ),
        DriftKind::Prediction => format!(
            "Prediction drift (label shift, if inputs of a class look as before): the answers {name} are distributed otherwise than on the \
             reference ({evidence})."
        ),
        DriftKind::Concept => format!(
            "Sign of concept drift: the model's certainty {name} is distributed otherwise than on the reference; labels would prove it \
             ({evidence})."
        ),
    }
}
