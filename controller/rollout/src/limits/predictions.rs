//! Whether canaries predict other classes than their controls, or than the bundle's reference where controls have too few.

use std::collections::BTreeMap;

use muster_shared::drift::{homogeneity, psi};
use muster_shared::rollout::{
    Check, ClassCounts, ColumnPredictions, Limits, LimitsInputs, Outcome, PredictionsWorth, Rule,
};

use super::too_few;
use crate::evidence::{Arm, total};
use crate::rollout::Rollout;
use crate::wording::{comparison, count, counted};

/// A prediction score above its limit counts only if chance alone makes as much of nothing less often than this. With few
/// predictions a score is large by itself.
const PREDICTION_ALPHA: f64 = 0.001;

/// What came of it.
pub(super) struct Predicted {
    pub(super) check: Check,
    /// How many predictions would settle it where they are too few to.
    pub(super) needed: Option<u64>,
    /// The column that decided.
    pub(super) decisive: Option<String>,
}

/// What was predicted, and what that is worth where it takes a test.
pub(super) fn counts(rollout: &Rollout, canary: &Arm<'_>, control: &Arm<'_>) -> BTreeMap<String, ColumnPredictions> {
    let limits = &rollout.spec.limits;
    let own = |classes: &BTreeMap<&str, u64>| classes.iter().map(|(class, n)| ((*class).to_owned(), *n)).collect();
    let column = |(name, classes): (&&str, &BTreeMap<&str, u64>)| {
        let mut counts = ColumnPredictions {
            canary: own(classes),
            control: control.predictions.get(name).map(own).unwrap_or_default(),
            reference: rollout.bundle.reference_predictions.get(*name).cloned().unwrap_or_default(),
            worth: None,
        };
        // What is within the limit needs no test, which takes another look at every device.
        counts.worth = compared(limits, &counts).filter(|compared| compared.is_above(limits)).map(|compared| {
            let other = compared.reference.map_or_else(|| control.effective_predictions(name), |rows| rows as f64);
            PredictionsWorth { canary: canary.effective_predictions(name), other }
        });
        ((*name).to_owned(), counts)
    };
    canary.predictions.iter().map(column).collect()
}

/// The score of one column, and what it was compared with.
struct ColumnScore<'a> {
    column: &'a str,
    score: f64,
    /// The chance of as much when nothing has moved.
    p_value: f64,
    /// How many times the predictions at hand would show this score to be beyond chance.
    times_needed: f64,
    canary: u64,
    control: u64,
    reference: Option<u64>,
}

/// Holds what was predicted against its limit.
pub(super) fn hold(inputs: &LimitsInputs) -> Predicted {
    let LimitsInputs { limits, canary, control, columns, predictions, .. } = inputs;
    let limit = limits.max_prediction_psi;
    let passes = |score: &ColumnScore<'_>| score.score > limit;
    let worst = predictions
        .iter()
        .filter_map(|(name, column)| column_score(limits, name, column))
        // Beyond chance first: one column that has moved for sure outweighs a larger score that may mean nothing.
        .max_by(|a, b| {
            let sure = |score: &ColumnScore<'_>| passes(score) && score.p_value < PREDICTION_ALPHA;
            sure(a).cmp(&sure(b)).then(a.score.total_cmp(&b.score))
        });
    let outcome = match &worst {
        None => Outcome::Inconclusive,
        Some(worst) if !passes(worst) => Outcome::Successful,
        Some(worst) if worst.p_value < PREDICTION_ALPHA => Outcome::Failed,
        Some(_) => Outcome::Inconclusive,
    };
    let sentence = match &worst {
        Some(worst) => {
            let of = if *columns > 1 { format!(" of {}", worst.column) } else { String::new() };
            let beside = match worst.reference {
                None => format!("control {}", count(worst.control)),
                Some(rows) => format!("no control of that size, the bundle's reference {}", count(rows)),
            };
            let within = if outcome == Outcome::Inconclusive {
                format!("; within chance so far, p = {:.3}", worst.p_value)
            } else {
                String::new()
            };
            format!(
                "prediction PSI{of} {} (canary {}, {beside}{within})",
                comparison(worst.score, limit, ""),
                counted(worst.canary, "prediction"),
            )
        }
        None if canary.predictions == 0 => "prediction PSI not judged: no class predictions".to_owned(),
        None if canary.predictions < limits.min_requests => {
            format!("prediction PSI not judged: {}", too_few(canary.predictions, limits.min_requests, "predictions"))
        }
        None => format!(
            "prediction PSI not compared: neither the control ({}) nor the bundle's reference has {} of the same column",
            count(control.predictions),
            counted(limits.min_requests, "prediction"),
        ),
    };
    let needed = worst.as_ref().filter(|_| outcome == Outcome::Inconclusive).map(|worst| {
        let needed = (worst.canary as f64 * worst.times_needed).ceil().clamp(0.0, 1e15);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped just above")]
        let needed = needed as u64;
        needed.max(worst.canary.saturating_add(1))
    });
    let check = Check {
        rule: Rule::PredictionPsi,
        outcome,
        measured: worst.as_ref().map(|worst| worst.score),
        limit,
        canary_samples: worst.as_ref().map_or(canary.predictions, |worst| worst.canary),
        control_samples: worst.as_ref().map_or(control.predictions, |worst| worst.control),
        sentence,
    };
    Predicted { check, needed, decisive: worst.map(|worst| worst.column.to_owned()) }
}

/// Two sides of one column over the same classes.
struct Compared {
    other: Vec<u64>,
    current: Vec<u64>,
    score: f64,
    /// Rows of the bundle's reference, where it stands in for a control.
    reference: Option<u64>,
}

impl Compared {
    fn is_above(&self, limits: &Limits) -> bool {
        self.score > limits.max_prediction_psi
    }
}

/// The canaries' side of a column and the one it is held against; none where either has too few.
fn compared(limits: &Limits, column: &ColumnPredictions) -> Option<Compared> {
    let is_enough = |side: &ClassCounts| !side.is_empty() && total(side) >= limits.min_requests;
    let (other, reference) = match (is_enough(&column.control), is_enough(&column.reference)) {
        _ if !is_enough(&column.canary) => return None,
        (true, _) => (&column.control, None),
        (false, true) => (&column.reference, Some(total(&column.reference))),
        (false, false) => return None,
    };
    let (other, current) = aligned(other, &column.canary);
    let score = psi(&other, &current)?;
    Some(Compared { other, current, score, reference })
}

fn column_score<'a>(limits: &Limits, name: &'a str, column: &ColumnPredictions) -> Option<ColumnScore<'a>> {
    let compared = compared(limits, column)?;
    let Compared { other, current, score, reference } = &compared;
    let worth = column.worth.filter(|_| compared.is_above(limits));
    // A single class on both sides cannot have moved.
    let test = worth.and_then(|worth| homogeneity(other, worth.other, current, worth.canary));
    let p_value = test.map_or(1.0, |test| test.p_value);
    let times_needed = test.map_or(1.0, |test| test.critical(PREDICTION_ALPHA) / test.statistic.max(f64::MIN_POSITIVE));
    Some(ColumnScore {
        column: name,
        score: *score,
        p_value,
        times_needed,
        canary: total(&column.canary),
        control: total(&column.control),
        reference: *reference,
    })
}

/// The counts of two sides over the same classes.
fn aligned(reference: &ClassCounts, current: &ClassCounts) -> (Vec<u64>, Vec<u64>) {
    let mut cells: BTreeMap<&str, (u64, u64)> = reference.iter().map(|(class, n)| (class.as_str(), (*n, 0))).collect();
    for (class, n) in current {
        cells.entry(class).or_default().1 = *n;
    }
    cells.into_values().unzip()
}
