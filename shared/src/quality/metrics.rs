//! Metrics from counts, as scikit-learn defines them.

use serde::{Deserialize, Serialize};

use super::estimate::{Estimate, mean_estimate, share_estimate};
use crate::labels::{LabelTarget, LabelTask, UNITS_PER_SCALE};
use crate::sketch::{CALIBRATION_BINS, CONFIDENCE_UNITS, ClassLabels, LabelCounts, TargetLabels};

/// How well one class is told from the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClassQuality {
    /// Its name.
    pub class: String,
    /// Labels of this class.
    pub support: u64,
    /// Labelled answers of this class.
    pub predicted: u64,
    /// Right answers among the answers of this class; none without such answers.
    pub precision: Option<Estimate>,
    /// Right answers among the labels of this class; none without such labels.
    pub recall: Option<Estimate>,
    /// 2·right / (support + predicted); none without either.
    pub f1: Option<Estimate>,
}

/// Answers of a confidence within one bin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReliabilityBin {
    /// The bin's lower end.
    pub from: f64,
    /// Its upper end.
    pub to: f64,
    /// Answers in it.
    pub n: u64,
    /// Their mean confidence.
    pub confidence: f64,
    /// The share of them that was right.
    pub accuracy: f64,
}

/// Quality of a classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClassificationQuality {
    /// The share of labelled answers that was right. Labels of no known class count as wrong.
    pub accuracy: Estimate,
    /// Mean over the classes that were labelled or answered; a class without answers counts as 0.
    pub macro_precision: f64,
    /// Mean over these classes; one without labels counts as 0.
    pub macro_recall: f64,
    /// Mean over these classes.
    pub macro_f1: f64,
    /// Labels of no known class.
    pub other: u64,
    /// Expected calibration error over 15 equal bins; none without confidences within 0 and 1.
    pub calibration_error: Option<f64>,
    /// Class by class; left out where it would show too few rows.
    pub classes: Vec<ClassQuality>,
    /// Accuracy by confidence; bins without answers are left out.
    pub reliability: Vec<ReliabilityBin>,
    /// What was taken for what: truth, answer and how often, most often first, at most 20.
    pub confusions: Vec<(String, String, u64)>,
}

/// Quality of a regression, for one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TargetQuality {
    /// The output's element.
    pub index: u32,
    /// Labelled answers.
    pub n: u64,
    /// Labels of rows in which the model gave no number.
    pub unanswered: u64,
    /// Mean absolute error.
    pub mae: Estimate,
    /// Root of the mean squared error.
    pub rmse: Estimate,
    /// Mean of answer − truth.
    pub bias: Estimate,
    /// Share of the truth's variance that is explained; none where the truth does not vary.
    pub r2: Option<f64>,
    /// Errors by size, most negative first: bins at ±1/256, 1/64, 1/16, 1/4 and 1 of the target's scale.
    pub errors: Vec<u64>,
}

/// Confusions shown.
const SHOWN_CONFUSIONS: usize = 20;

fn share(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}

/// Σ over bins of n/N · |accuracy − mean confidence| (Naeini et al., AAAI 2015), over 15 equal bins; `None` without a
/// confidence.
#[must_use]
pub fn calibration_error(counts: &ClassLabels) -> Option<f64> {
    let n: f64 = counts.calibration.iter().map(|bin| bin.n as f64).sum();
    let gap = |right: u64, confidence: u64| (right as f64 - confidence as f64 / CONFIDENCE_UNITS).abs();
    (n > 0.0).then(|| counts.calibration.iter().map(|bin| gap(bin.right, bin.confidence)).sum::<f64>() / n)
}

fn reliability(counts: &ClassLabels) -> Vec<ReliabilityBin> {
    let bins = CALIBRATION_BINS as f64;
    let with = counts.calibration.iter().enumerate().filter(|(_, bin)| bin.n > 0);
    with.map(|(at, bin)| ReliabilityBin {
        from: at as f64 / bins,
        to: (at as f64 + 1.0) / bins,
        n: bin.n,
        confidence: bin.confidence as f64 / CONFIDENCE_UNITS / bin.n as f64,
        accuracy: share(bin.right, bin.n),
    })
    .collect()
}

fn confusions(counts: &ClassLabels, classes: &[String]) -> Vec<(String, String, u64)> {
    let name = |at: usize, none: &str| classes.get(at).map_or_else(|| none.to_owned(), Clone::clone);
    let width = classes.len() + 1;
    let mut pairs: Vec<_> = counts.confused.iter().map(|(pair, n)| (*pair as usize, *n)).collect();
    pairs.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let shown = pairs.into_iter().take(SHOWN_CONFUSIONS);
    shown.map(|(pair, n)| (name(pair / width, "(other)"), name(pair % width, "(none)"), n)).collect()
}

/// Measures a classifier by the counts of each device, all of `classes`. `None` without a label.
#[must_use]
pub fn measure_classes(devices: &[&ClassLabels], classes: &[String]) -> Option<ClassificationQuality> {
    let mut sum = (*devices.first()?).clone();
    for counts in devices.iter().skip(1) {
        sum.merge(counts);
    }
    let at = |cells: &[u64], class: usize| cells.get(class).copied().unwrap_or(0);
    let pairs = |hits: &dyn Fn(&ClassLabels) -> u64, cases: &dyn Fn(&ClassLabels) -> u64| -> Vec<(f64, f64)> {
        devices.iter().map(|counts| (hits(counts) as f64, cases(counts) as f64)).collect()
    };
    let accuracy = share_estimate(&pairs(&ClassLabels::total_right, &ClassLabels::total))?;
    let class = |(class, name): (usize, &String)| {
        let right = |counts: &ClassLabels| at(&counts.right, class);
        let support = |counts: &ClassLabels| at(&counts.truth, class);
        let predicted = |counts: &ClassLabels| at(&counts.predicted, class);
        ClassQuality {
            class: name.clone(),
            support: support(&sum),
            predicted: predicted(&sum),
            precision: share_estimate(&pairs(&right, &predicted)),
            recall: share_estimate(&pairs(&right, &support)),
            f1: share_estimate(&pairs(&|counts| right(counts).saturating_mul(2), &|counts| {
                support(counts).saturating_add(predicted(counts))
            })),
        }
    };
    let by_class: Vec<ClassQuality> = classes.iter().enumerate().map(class).collect();
    // As scikit-learn has it: the classes that occur on either side, with 0 for what is undefined.
    let occur: Vec<&ClassQuality> = by_class.iter().filter(|class| class.f1.is_some()).collect();
    let mean = |metric: &dyn Fn(&ClassQuality) -> Option<Estimate>| {
        let values = occur.iter().map(|class| metric(class).map_or(0.0, |estimate| estimate.value));
        if occur.is_empty() { 0.0 } else { values.sum::<f64>() / occur.len() as f64 }
    };
    Some(ClassificationQuality {
        accuracy,
        macro_precision: mean(&|class| class.precision),
        macro_recall: mean(&|class| class.recall),
        macro_f1: mean(&|class| class.f1),
        other: at(&sum.truth, classes.len()),
        calibration_error: calibration_error(&sum),
        reliability: reliability(&sum),
        confusions: confusions(&sum, classes),
        classes: by_class,
    })
}

/// Measures a regression of one target by the counts of each device. `None` without a label of an answer.
#[must_use]
pub fn measure_target(devices: &[&TargetLabels], target: &LabelTarget) -> Option<TargetQuality> {
    let mut sum = (*devices.first()?).clone();
    for counts in devices.iter().skip(1) {
        sum.merge(counts);
    }
    let unit = target.unit();
    let n = sum.n as f64;
    let pairs = |total: &dyn Fn(&TargetLabels) -> f64| -> Vec<(f64, f64)> {
        devices.iter().map(|counts| (total(counts), counts.n as f64)).collect()
    };
    let squares = sum.squared_error as f64 * unit * unit;
    let mae = mean_estimate(&pairs(&|counts| counts.absolute_error as f64 * unit), Some(squares))?;
    let bias = mean_estimate(&pairs(&|counts| counts.error as f64 * unit), Some(squares))?;
    let mse = mean_estimate(&pairs(&|counts| counts.squared_error as f64 * unit * unit), None)?;
    let root = |x: f64| x.max(0.0).sqrt();
    // Σ(y − ȳ)² from whole numbers: no digit is lost where the mean is far from 0. Each truth is below 2⁵², so that the first
    // product fits for up to 2²⁴ labels; beyond, rounding is harmless.
    let exact = i128::try_from(sum.squared_truth)
        .ok()
        .and_then(|squares| squares.checked_mul(i128::from(sum.n)))
        .zip(sum.truth.checked_mul(sum.truth))
        .map(|(squares, square)| squares.saturating_sub(square) as f64 / n);
    let spread = exact.unwrap_or_else(|| sum.squared_truth as f64 - (sum.truth as f64).powi(2) / n);
    Some(TargetQuality {
        index: target.index,
        n: sum.n,
        unanswered: sum.unanswered,
        mae: Estimate { low: mae.low.map(|low| low.max(0.0)), ..mae },
        rmse: Estimate { value: root(mse.value), low: mse.low.map(root), high: mse.high.map(root) },
        bias,
        r2: (spread > 0.0).then(|| 1.0 - sum.squared_error as f64 / spread),
        errors: sum.errors,
    })
}

/// One score of a device by its labels, larger being worse: the share of wrong answers, or the mean absolute error as a share of the
/// scale, averaged over targets. `None` without a label. It is what a gate compares ("1 − accuracy from labels").
#[must_use]
pub fn device_score(counts: &LabelCounts, task: &LabelTask) -> Option<f64> {
    match (counts, task) {
        (LabelCounts::Classes(counts), _) => {
            (counts.total() > 0).then(|| 1.0 - share(counts.total_right(), counts.total()))
        }
        (LabelCounts::Targets(counts), LabelTask::Regression { .. }) => {
            let scores: Vec<f64> = counts
                .iter()
                .filter(|target| target.n > 0)
                .map(|target| target.absolute_error as f64 / UNITS_PER_SCALE / target.n as f64)
                .collect();
            (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
        }
        (LabelCounts::Targets(_), LabelTask::Classification { .. }) => None,
    }
}
