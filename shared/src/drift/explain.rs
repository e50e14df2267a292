//! What kind of drift it is, in one sentence a person can act on.

use super::distance::psi_term;
use super::psi;
use super::verdict::Criteria;
use crate::api::{CellChange, ColumnDrift, DeviceDrift, DriftKind, MissingLimit, ScoreName, Subject};
use crate::ids::DeviceId;
use crate::profile::{Column, Reference};
use crate::quality::ConceptDrift;

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

/// What is known of a group beside the column.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings<'s> {
    /// What labels say; empty without enough of them.
    pub labels: &'s [ConceptDrift],
    /// The limit of missing values that the column's feature exceeds.
    pub missing_limit: Option<&'s MissingLimit>,
    /// Whether the column differed from the reference in the first windows already.
    pub from_the_first: bool,
    /// Whether any input has drifted.
    pub inputs_moved: bool,
}

impl Surroundings<'_> {
    /// Whether labels say that the model has become worse; `None` where they say nothing.
    fn worse(&self) -> Option<bool> {
        (!self.labels.is_empty()).then(|| self.labels.iter().any(|found| found.drifted))
    }
}

/// In which sense `column` has moved. Bad values are a matter of quality whatever they do to the distribution.
#[must_use]
pub fn kind_of(column: &ColumnDrift, surroundings: &Surroundings<'_>, criteria: &Criteria) -> DriftKind {
    let worse = surroundings.worse();
    if surroundings.missing_limit.is_some() {
        return DriftKind::Quality;
    }
    if !column.drifted {
        return if worse == Some(true) { DriftKind::Concept } else { DriftKind::None };
    }
    if quality_fault(column, criteria.alpha, criteria.min_share_effect) {
        return DriftKind::Quality;
    }
    match column.subject {
        // What the labels prove weighs more than when it began.
        Subject::Output | Subject::PredictedClass | Subject::Confidence if worse == Some(true) => DriftKind::Concept,
        _ if surroundings.from_the_first => DriftKind::Skew,
        Subject::Input => DriftKind::Data,
        Subject::Confidence if worse.is_none() => DriftKind::Concept,
        Subject::Output | Subject::PredictedClass | Subject::Confidence => DriftKind::Prediction,
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// What labels say, as a sentence to go on with.
fn labels_say(surroundings: &Surroundings<'_>) -> String {
    let figure = |found: &ConceptDrift, value: f64| {
        if found.metric == "accuracy" { percent(value) } else { format!("{value:.4}") }
    };
    let worst = surroundings.labels.iter().find(|found| found.drifted).or_else(|| surroundings.labels.first());
    let Some(found) = worst else { return "whether answers suffer only labels tell".into() };
    let (before, now) = (figure(found, found.reference), figure(found, found.current));
    if found.drifted {
        format!("labels show that answers suffer: {} {now}, {before} before", found.metric)
    } else {
        format!("labels show no loss: {} {now}, {before} before", found.metric)
    }
}

/// That in one sentence.
#[must_use]
pub fn sentence(column: &ColumnDrift, kind: DriftKind, surroundings: &Surroundings<'_>, devices: u32) -> String {
    let name = &column.name;
    let psi = column.psi.map_or_else(|| "-".to_owned(), |psi| format!("{psi:.3}"));
    let chance = column.critical.map_or_else(
        || "too few values to say what chance makes of it".to_owned(),
        |critical| format!("by chance up to {critical:.3}"),
    );
    let evidence = format!("PSI {psi}, {chance}; {} rows of {devices} device(s)", column.n);
    let labels = labels_say(surroundings);
    match kind {
        DriftKind::None if column.n == 0 => format!("{name} has not been counted yet."),
        DriftKind::None if column.significant => {
            format!("{name} has moved beyond chance, but too little to matter ({evidence}).")
        }
        DriftKind::None if !column.beyond_chance.is_empty() => {
            format!("{name} has not moved beyond what chance explains once all its tests are counted ({evidence}).")
        }
        DriftKind::None => format!("{name} has not moved beyond what chance explains ({evidence})."),
        DriftKind::Quality => {
            let limit = surroundings.missing_limit.map_or_else(String::new, |limit| {
                format!(
                    ", where the data schema allows {} of them to be missing and {} are",
                    percent(limit.limit),
                    percent(limit.share)
                )
            });
            format!(
                "Data quality: {} of the values of {name} are missing (reference {}) and {} are outside anything the reference had{limit}; look \
                 at the sensor or the step before the model ({evidence}).",
                percent(column.missing_share),
                percent(column.reference_missing_share),
                percent(column.unexpected_share)
            )
        }
        DriftKind::Data => format!(
            "Data drift: the input {name} has come to be distributed otherwise than in the reference{}; {labels} ({evidence}).",
            if column.beyond_chance.contains(&ScoreName::Unexpected) {
                format!(", {} of it outside the reference's range", percent(column.unexpected_share))
            } else {
                String::new()
            }
        ),
        DriftKind::Prediction => format!(
            "Prediction drift (label shift, if inputs of a class look as before): the answers {name} have come to be distributed otherwise \
             than on the reference; {labels} ({evidence})."
        ),
        DriftKind::Skew => format!(
            "Training-serving skew: {name} differed from the reference from the first windows on, so that training and serving never agreed; \
             compare how it is made in training and on the device; {labels} ({evidence})."
        ),
        DriftKind::Concept if surroundings.labels.is_empty() => format!(
            "Sign of concept drift: the model's certainty {name} has come to be distributed otherwise than on the reference; this rests on \
             certainty alone, and labels would prove it ({evidence})."
        ),
        DriftKind::Concept => format!(
            "Concept drift: {labels}; {} ({name}: {evidence}).",
            if surroundings.inputs_moved {
                "inputs have moved too, which may be part of it"
            } else {
                "the inputs are distributed as before, so that the same input has come to mean something else"
            }
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(drifted: bool) -> Vec<ConceptDrift> {
        vec![ConceptDrift {
            metric: "accuracy".into(),
            reference: 0.95,
            current: if drifted { 0.8 } else { 0.94 },
            worsening: if drifted { 0.15 } else { 0.01 },
            critical: Some(0.03),
            p_value: Some(if drifted { 1e-6 } else { 0.3 }),
            min_effect: 0.02,
            n_effective: 500.0,
            devices: 10,
            alpha: 0.01,
            drifted,
        }]
    }

    /// The table in docs/drift.md, row by row.
    #[test]
    fn each_kind_is_told_by_what_moved_when_and_what_labels_say() {
        use DriftKind::{Concept, Data, Prediction, Quality, Skew};
        use Subject::{Confidence, Input, PredictedClass};
        let limit = MissingLimit {
            feature: "x".into(),
            share: 0.3,
            limit: 0.1,
            n_effective: 99.0,
            p_value: 0.0,
            q_value: Some(0.0),
            exceeded: true,
        };
        let (worse, fine) = (labels(true), labels(false));
        let none: &[ConceptDrift] = &[];
        // What moved, whether it has drifted, labels, from the first windows on, beyond the limit of missing values.
        for (subject, drifted, labels, from_the_first, over_limit, expected) in [
            (Input, true, none, false, false, Data),
            (Input, true, &fine[..], false, false, Data),
            (Input, true, &worse[..], false, false, Data),
            (Input, true, none, true, false, Skew),
            (Input, false, none, true, false, DriftKind::None),
            (Input, false, &worse[..], false, false, Concept),
            (Input, false, none, false, true, Quality),
            (Input, true, &worse[..], true, true, Quality),
            (PredictedClass, true, none, false, false, Prediction),
            (PredictedClass, true, none, true, false, Skew),
            (PredictedClass, true, &worse[..], false, false, Concept),
            (Confidence, true, none, false, false, Concept),
            (Confidence, true, &fine[..], false, false, Prediction),
            (Confidence, true, &worse[..], true, false, Concept),
            (Confidence, true, none, true, false, Skew),
        ] {
            let column = ColumnDrift { name: "x".into(), subject, drifted, n: 100, ..ColumnDrift::default() };
            let surroundings = Surroundings {
                labels,
                missing_limit: over_limit.then_some(&limit),
                from_the_first,
                inputs_moved: false,
            };
            let kind = kind_of(&column, &surroundings, &Criteria::default());
            assert_eq!(kind, expected, "{subject:?} {drifted} {labels:?} {from_the_first} {over_limit}");
            let sentence = sentence(&column, kind, &surroundings, 10);
            let says = match expected {
                DriftKind::None => "not moved beyond what chance explains",
                Data => "Data drift: the input x",
                Prediction => "Prediction drift",
                Concept if labels.is_empty() => "certainty alone",
                Concept => "accuracy 80.0 %, 95.0 % before",
                Quality => "allows 10.0 % of them to be missing and 30.0 % are",
                Skew => "from the first windows on",
            };
            assert!(sentence.contains(says), "{sentence}");
            // Nothing here says what chance makes of these columns.
            assert!(sentence.contains("too few values to say"), "{sentence}");
        }
    }
}
