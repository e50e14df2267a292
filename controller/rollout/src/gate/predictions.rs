//! What devices of a comparison predicted, as shares of classes: which classes are looked at, and what they show.
//!
//! Which they are rests on what all devices of the blocks predicted together, so it stays the same whoever is the canary. A column is
//! looked at when it has predictions of canaries and of controls; a device counts with predictions in every column that is.

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::limits::{MAX_DRIFT_CELLS, MAX_DRIFT_COLUMNS};
use muster_shared::rollout::{Block, DriftReport, PredictedClasses, PredictedColumn, ScoredDevice};

use crate::fleet::{Evidence, Predictions};
use crate::statistics::max_t;

/// All predictions of a device.
pub(super) fn counted(measured: &[&Evidence]) -> Predictions {
    let mut all = Predictions::new();
    for (column, classes) in measured.iter().flat_map(|measured| &measured.predictions) {
        let sums = all.entry(column.clone()).or_default();
        for (class, n) in classes {
            let sum = sums.entry(class.clone()).or_default();
            *sum = sum.saturating_add(*n);
        }
    }
    all
}

/// The columns and classes to look at, of what the devices of `blocks` predicted.
pub(super) fn classes(blocks: &[Block<Predictions>], seed: u64) -> PredictedClasses {
    let named = |predictions: &Predictions| -> BTreeSet<String> {
        predictions
            .iter()
            .filter(|(_, classes)| classes.values().any(|n| *n > 0))
            .map(|(name, _)| name.clone())
            .collect()
    };
    let canaries: BTreeSet<String> = blocks.iter().flat_map(|block| named(&block.canary)).collect();
    let controls: BTreeSet<String> = blocks.iter().flat_map(|block| &block.controls).flat_map(named).collect();
    let columns: Vec<&String> = canaries.intersection(&controls).take(MAX_DRIFT_COLUMNS).collect();
    let mut totals: BTreeMap<(&String, &String), u64> = BTreeMap::new();
    for device in blocks.iter().flat_map(Block::members) {
        for column in &columns {
            for (class, n) in device.get(*column).into_iter().flatten() {
                let total = totals.entry((column, class)).or_default();
                *total = total.saturating_add(*n);
            }
        }
    }
    let mut by_total: Vec<_> = totals.into_iter().collect();
    by_total.sort_by(|(a, a_total), (b, b_total)| b_total.cmp(a_total).then_with(|| a.cmp(b)));
    // Each column also has a cell for the rest.
    by_total.truncate(MAX_DRIFT_CELLS.saturating_sub(columns.len()));
    let mut kept: BTreeMap<&String, Vec<String>> = columns.iter().map(|column| (*column, Vec::new())).collect();
    for ((column, class), _) in by_total {
        kept.entry(column).or_default().push(class.clone());
    }
    let columns = kept.into_iter().map(|(column, mut classes)| {
        classes.sort_unstable();
        PredictedColumn { column: column.clone(), classes }
    });
    PredictedClasses { columns: columns.collect(), seed }
}

/// How often a device predicted each of `classes`, column by column, each column ending with its rest. Nothing where it predicted nothing in a column.
pub(super) fn counts(predictions: &Predictions, classes: &PredictedClasses) -> Vec<u64> {
    let mut all = Vec::new();
    for PredictedColumn { column, classes } in &classes.columns {
        let own = predictions.get(column);
        let total = own.into_iter().flat_map(BTreeMap::values).fold(0, |sum: u64, n| sum.saturating_add(*n));
        if total == 0 {
            return Vec::new();
        }
        let start = all.len();
        all.extend(classes.iter().map(|class| own.and_then(|own| own.get(class)).copied().unwrap_or(0)));
        let named = all[start..].iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
        all.push(total.saturating_sub(named));
    }
    all
}

/// Whether canaries predict other classes than their controls; with how many blocks were compared.
pub(super) fn compare(
    blocks: &[Block<ScoredDevice>],
    classes: &PredictedClasses,
    level: f64,
) -> (u32, Option<DriftReport>) {
    let shared: Vec<Block<Vec<f64>>> = blocks
        .iter()
        .filter_map(|block| {
            let controls: Vec<_> =
                block.controls.iter().filter_map(|control| shares(&control.predicted, classes)).collect();
            Some(Block { canary: shares(&block.canary.predicted, classes)?, controls })
        })
        .filter(|block| !block.controls.is_empty())
        .collect();
    let names = classes.columns.iter().flat_map(|PredictedColumn { column, classes }| {
        classes.iter().map(Some).chain([None]).map(move |class| (column, class))
    });
    let names: Vec<_> = names.collect();
    let report = max_t(&shared, classes.seed).and_then(|found| {
        let (column, class) = names.get(found.at)?;
        Some(DriftReport {
            p_value: found.p_value,
            level,
            least_p_value: found.least,
            choices: found.choices,
            exact: found.exact,
            statistic: found.statistic,
            column: (*column).clone(),
            class: class.cloned(),
            difference: found.difference,
        })
    });
    (u32::try_from(shared.len()).unwrap_or(u32::MAX), report)
}

/// Counts as shares of their column; none where they are not counts of `classes`, or a column has none.
fn shares(predicted: &[u64], classes: &PredictedClasses) -> Option<Vec<f64>> {
    let mut rest = predicted;
    let mut all = Vec::with_capacity(predicted.len());
    for column in &classes.columns {
        let (own, others) = rest.split_at_checked(column.classes.len() + 1)?;
        let total: f64 = own.iter().map(|n| *n as f64).sum();
        if total <= 0.0 {
            return None;
        }
        all.extend(own.iter().map(|n| *n as f64 / total));
        rest = others;
    }
    (rest.is_empty() && !all.is_empty()).then_some(all)
}
