//! Whether a model is worse on live labels than it was on the reference sample: concept drift, as labels show it.

use serde::{Deserialize, Serialize};

use super::estimate::{Ratio, effective_size, mean_variance, quantile, ratio, tail};
use super::metrics::{calibration_error, measure_target};
use crate::labels::{LabelSpec, LabelTarget, LabelTask};
use crate::limits::{MAX_CLASSES, MAX_LABEL_TARGETS};
use crate::sketch::LabelCounts;

/// Chance of a false alarm.
const ALPHA: f64 = 0.01;
/// A smaller loss of accuracy does not matter, however sure it is.
pub const MIN_ACCURACY_DROP: f64 = 0.02;
/// A smaller growth of the mean absolute error, as a share of the reference's, does not matter.
pub const MIN_ERROR_RISE: f64 = 0.1;

/// How one class fared on the reference sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClassBaseline {
    /// Rows of this class.
    pub support: u64,
    /// Answers of this class.
    pub predicted: u64,
    /// Right answers.
    pub right: u64,
}

/// How one target fared on the reference sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TargetBaseline {
    /// Mean absolute error.
    pub mae: f64,
    /// Root of the mean squared error.
    pub rmse: f64,
    /// Mean of answer − truth.
    pub bias: f64,
    /// Share of the truth's variance that is explained; none where the truth does not vary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r2: Option<f64>,
}

/// How good the model was on the labelled reference sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Baseline {
    /// Of a classifier.
    Classification {
        /// Labelled rows.
        rows: u64,
        /// Right answers.
        right: u64,
        /// Class by class.
        classes: Vec<ClassBaseline>,
        /// Expected calibration error.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ece: Option<f64>,
    },
    /// Of a regression.
    Regression {
        /// Labelled rows.
        rows: u64,
        /// Target by target.
        targets: Vec<TargetBaseline>,
    },
}

impl Baseline {
    /// The baseline that counts of the reference sample come to; `None` without a label.
    #[must_use]
    pub fn of(counts: &LabelCounts, task: &LabelTask) -> Option<Self> {
        let rows = counts.total();
        match (counts, task) {
            (LabelCounts::Classes(counts), LabelTask::Classification { .. }) if rows > 0 => {
                let cells = counts.truth.iter().zip(&counts.predicted).zip(&counts.right);
                let class = |((support, predicted), right): ((&u64, &u64), &u64)| ClassBaseline {
                    support: *support,
                    predicted: *predicted,
                    right: *right,
                };
                Some(Self::Classification {
                    rows,
                    right: counts.total_right(),
                    classes: cells.map(class).collect(),
                    ece: calibration_error(counts),
                })
            }
            (LabelCounts::Targets(counts), LabelTask::Regression { targets }) => {
                let target = |(counts, target)| {
                    measure_target(&[counts], target).map(|quality| TargetBaseline {
                        mae: quality.mae.value,
                        rmse: quality.rmse.value,
                        bias: quality.bias.value,
                        r2: quality.r2,
                    })
                };
                let targets: Option<Vec<_>> = counts.iter().zip(targets).map(target).collect();
                targets.map(|targets| Self::Regression { rows, targets })
            }
            (LabelCounts::Classes(_) | LabelCounts::Targets(_), _) => None,
        }
    }

    /// Whether it is one of `task`, and of numbers that make sense.
    #[must_use]
    pub fn fits(&self, task: &LabelTask) -> bool {
        match (self, task) {
            (Self::Classification { rows, right, classes, ece }, LabelTask::Classification { classes: names }) => {
                classes.len() == names.len()
                    && names.len() <= MAX_CLASSES
                    && right <= rows
                    && ece.is_none_or(|ece| (0.0..=1.0).contains(&ece))
            }
            (Self::Regression { targets, .. }, LabelTask::Regression { targets: declared }) => {
                let sane = |target: &TargetBaseline| {
                    target.mae.is_finite() && target.rmse.is_finite() && target.bias.is_finite() && target.mae >= 0.0
                };
                targets.len() == declared.len() && targets.len() <= MAX_LABEL_TARGETS && targets.iter().all(sane)
            }
            (Self::Classification { .. }, LabelTask::Regression { .. })
            | (Self::Regression { .. }, LabelTask::Classification { .. }) => false,
        }
    }
}

/// A quality held against the reference's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConceptDrift {
    /// What was compared: `accuracy`, or `mae` with the target's element.
    pub metric: String,
    /// On the reference sample.
    pub reference: f64,
    /// On live labels.
    pub current: f64,
    /// How much worse: a loss of accuracy, a growth of the error.
    pub worsening: f64,
    /// What it exceeds by chance with probability `alpha` when nothing has changed; none where the counts do not tell.
    pub critical: Option<f64>,
    /// Chance of a worsening at least as large when nothing has changed; none where the counts do not tell.
    #[serde(default)]
    pub p_value: Option<f64>,
    /// What it must exceed to matter.
    pub min_effect: f64,
    /// How many independent labels the live ones are worth.
    pub n_effective: f64,
    /// Devices, or clusters of them, that the live labels come from. What is said of a single one is said of it alone: how much devices
    /// differ cannot be told then.
    pub devices: u32,
    /// Chance of a false alarm.
    pub alpha: f64,
    /// Worse both beyond chance and enough to matter.
    pub drifted: bool,
}

/// Holds the labels of each device against the baseline in `spec`: one comparison for a classifier, one for each target of a regression. Empty
/// without a baseline or without labels.
///
/// The critical value is that of the two-sample score test of shares (or Welch's of means), one-sided, with the live side's variance taken
/// between devices and Student's quantile for their number.
#[must_use]
pub fn concept_drift(spec: &LabelSpec, devices: &[&LabelCounts]) -> Vec<ConceptDrift> {
    spec.baseline.as_ref().map_or_else(Vec::new, |baseline| against(spec, baseline, None, devices))
}

/// The same without a labelled reference: `later` labels against `earlier` ones, by device each. The earlier count for as many labels as
/// they are worth; that both come from the same devices makes the test more cautious.
#[must_use]
pub fn concept_drift_since(spec: &LabelSpec, earlier: &[&LabelCounts], later: &[&LabelCounts]) -> Vec<ConceptDrift> {
    let Some((first, rest)) = earlier.split_first() else { return Vec::new() };
    let mut sum = (*first).clone();
    // They are of one task, so they can be added.
    rest.iter().for_each(|counts| drop(sum.merge(counts)));
    Baseline::of(&sum, &spec.task).map_or_else(Vec::new, |baseline| against(spec, &baseline, Some(earlier), later))
}

/// `devices` against `baseline`, which comes from independent rows or from the devices in `earlier`.
fn against(
    spec: &LabelSpec,
    baseline: &Baseline,
    earlier: Option<&[&LabelCounts]>,
    devices: &[&LabelCounts],
) -> Vec<ConceptDrift> {
    match (baseline, &spec.task) {
        (Baseline::Classification { rows, right, .. }, LabelTask::Classification { .. }) if *rows > 0 => {
            let worth = earlier.and_then(accuracy).map(|share| effective_size(&share));
            accuracy_drop(*right as f64 / *rows as f64, worth.unwrap_or(*rows as f64), devices).into_iter().collect()
        }
        (Baseline::Regression { rows, targets }, LabelTask::Regression { targets: declared }) => declared
            .iter()
            .zip(targets)
            .enumerate()
            .filter_map(|(at, (target, baseline))| {
                let worth =
                    earlier.and_then(|earlier| Errors::of(at, target, earlier)).map(|errors| errors.n_effective);
                let found = Errors::of(at, target, devices)?;
                let metric = format!("mae[{}]", target.index);
                Some(error_rise(worth.unwrap_or(*rows as f64), baseline, metric, &found))
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// The share of right answers.
fn accuracy(devices: &[&LabelCounts]) -> Option<Ratio> {
    let of_device = |counts: &&LabelCounts| match counts {
        LabelCounts::Classes(counts) => Some((counts.total_right() as f64, counts.total() as f64)),
        LabelCounts::Targets(_) => None,
    };
    ratio(&devices.iter().filter_map(of_device).collect::<Vec<_>>())
}

fn accuracy_drop(reference: f64, n_reference: f64, devices: &[&LabelCounts]) -> Option<ConceptDrift> {
    let share = accuracy(devices)?;
    let n_effective = effective_size(&share);
    // The variance under "nothing has changed" is that of the common share; devices say how much their labels are worth.
    let common = (reference * n_reference + share.value * n_effective) / (n_reference + n_effective);
    let variance = common * (1.0 - common) * (1.0 / n_reference + 1.0 / n_effective);
    let critical = quantile(share.devices, 1.0 - ALPHA) * variance.sqrt();
    let worsening = reference - share.value;
    Some(ConceptDrift {
        metric: "accuracy".into(),
        reference,
        current: share.value,
        worsening,
        critical: Some(critical),
        p_value: Some(tail(share.devices, worsening, variance)),
        min_effect: MIN_ACCURACY_DROP,
        n_effective,
        devices: u32::try_from(share.devices).unwrap_or(u32::MAX),
        alpha: ALPHA,
        drifted: worsening > critical && worsening > MIN_ACCURACY_DROP,
    })
}

/// The mean absolute error of one target, and how sure it is.
struct Errors {
    mean: Ratio,
    variance: Option<f64>,
    n_effective: f64,
}

impl Errors {
    fn of(at: usize, target: &LabelTarget, devices: &[&LabelCounts]) -> Option<Self> {
        let unit = target.unit();
        // Σ|e|, n and Σe² of each device.
        let sums: Vec<(f64, f64, f64)> = devices
            .iter()
            .filter_map(|counts| match counts {
                LabelCounts::Targets(targets) => targets.get(at),
                LabelCounts::Classes(_) => None,
            })
            .map(|counts| {
                (counts.absolute_error as f64 * unit, counts.n as f64, counts.squared_error as f64 * unit * unit)
            })
            .collect();
        let mean = ratio(&sums.iter().map(|(sum, n, _)| (*sum, *n)).collect::<Vec<_>>())?;
        let independent = mean_variance(&mean, Some(sums.iter().map(|(_, _, squares)| squares).sum()));
        let variance = mean.variance.into_iter().chain(independent).reduce(f64::max);
        let n_effective = match (variance, independent) {
            (Some(variance), Some(independent)) if variance > 0.0 => (mean.size * independent / variance).max(1.0),
            _ => mean.size,
        };
        Some(Self { mean, variance, n_effective })
    }
}

fn error_rise(n_reference: f64, baseline: &TargetBaseline, metric: String, found: &Errors) -> ConceptDrift {
    let reference_variance = (baseline.rmse.powi(2) - baseline.mae.powi(2)).max(0.0) / n_reference.max(1.0);
    let both = found.variance.map(|variance| variance + reference_variance);
    let critical = both.map(|both| quantile(found.mean.devices, 1.0 - ALPHA) * both.sqrt());
    let worsening = found.mean.value - baseline.mae;
    let min_effect = MIN_ERROR_RISE * baseline.mae;
    ConceptDrift {
        metric,
        reference: baseline.mae,
        current: found.mean.value,
        worsening,
        critical,
        p_value: both.map(|both| tail(found.mean.devices, worsening, both)),
        min_effect,
        n_effective: found.n_effective,
        devices: u32::try_from(found.mean.devices).unwrap_or(u32::MAX),
        alpha: ALPHA,
        drifted: worsening > min_effect && critical.is_some_and(|critical| worsening > critical),
    }
}

#[cfg(test)]
mod tests {
    use super::super::estimate::tests::{Random, two_classes};
    use super::*;
    use crate::profile::SliceSet;
    use crate::sketch::LabelSketch;

    fn spec(rows: u64, right: u64) -> LabelSpec {
        let half = ClassBaseline { support: rows / 2, predicted: rows / 2, right: right / 2 };
        let baseline = Baseline::Classification { rows, right, classes: vec![half; 2], ece: None };
        LabelSpec { baseline: Some(baseline), ..two_classes() }
    }

    fn device(spec: &LabelSpec, right: u64, n: u64) -> LabelCounts {
        let mut counts = LabelSketch::empty(spec).all;
        if let LabelCounts::Classes(counts) = &mut counts {
            counts.truth[0] = n;
            counts.predicted[0] = right;
            counts.predicted[1] = n - right;
            counts.right[0] = right;
        }
        counts
    }

    fn drift(spec: &LabelSpec, devices: &[LabelCounts]) -> ConceptDrift {
        concept_drift(spec, &devices.iter().collect::<Vec<_>>()).remove(0)
    }

    #[test]
    fn a_model_that_got_worse_is_seen_and_one_that_did_not_is_not() {
        let spec = spec(1_000, 950);
        assert_eq!(spec.validate(), Ok(()));
        let worse: Vec<_> = (0..10).map(|n| device(&spec, 80 + n % 3, 100)).collect();
        let found = drift(&spec, &worse);
        assert!(found.drifted && found.metric == "accuracy" && (found.reference - 0.95).abs() < 1e-12, "{found:?}");
        let better: Vec<_> = (0..10).map(|n| device(&spec, 96 + n % 3, 100)).collect();
        assert!(!drift(&spec, &better).drifted);
        // Sure, and too little to matter.
        let little: Vec<_> = (0..10).map(|n| device(&spec, 93_500 + n % 3, 100_000)).collect();
        let found = drift(&spec, &little);
        assert!(!found.drifted && found.worsening < found.min_effect, "{found:?}");
        // One bad device of four is no sign of the model.
        let odd: Vec<_> = [95, 95, 95, 30].map(|right| device(&spec, right, 100)).into();
        assert!(!drift(&spec, &odd).drifted, "{:?}", drift(&spec, &odd));
        let unlabelled = LabelSpec { baseline: None, ..spec.clone() };
        assert_eq!(concept_drift(&unlabelled, &worse.iter().collect::<Vec<_>>()), []);
        assert_eq!(concept_drift(&spec, &[]), []);
    }

    #[test]
    fn without_a_labelled_reference_later_labels_stand_against_earlier_ones() {
        let bare = LabelSpec { baseline: None, ..spec(1_000, 950) };
        let devices = |right: u64| (0..10).map(|n| device(&bare, right + n % 3, 100)).collect::<Vec<_>>();
        fn refs(counts: &[LabelCounts]) -> Vec<&LabelCounts> {
            counts.iter().collect()
        }
        let (before, worse) = (devices(94), devices(80));
        let found = concept_drift_since(&bare, &refs(&before), &refs(&worse)).remove(0);
        // 949 and 809 of 1,000 by hand.
        assert!((found.reference - 0.949).abs() < 1e-12 && (found.current - 0.809).abs() < 1e-12, "{found:?}");
        assert!(found.drifted, "{found:?}");
        assert!(!concept_drift_since(&bare, &refs(&worse), &refs(&before))[0].drifted);
        // Devices of which half are always wrong are no firm ground.
        let split: Vec<_> = (0..10).map(|n| device(&bare, if n % 2 == 0 { 100 } else { 70 }, 100)).collect();
        let unsure = concept_drift_since(&bare, &refs(&split), &refs(&worse)).remove(0);
        assert!(unsure.critical > found.critical, "{unsure:?} {found:?}");
        assert_eq!(concept_drift_since(&bare, &[], &refs(&worse)), []);
        assert_eq!(concept_drift_since(&bare, &refs(&before), &[]), []);
    }

    #[test]
    fn a_growing_error_is_seen() {
        let target = LabelTarget { index: 3, scale: 10.0 };
        let baseline = TargetBaseline { mae: 1.0, rmse: 1.25, bias: 0.0, r2: Some(0.5) };
        let spec = LabelSpec {
            baseline: Some(Baseline::Regression { rows: 500, targets: vec![baseline] }),
            ..LabelSpec::new("y", LabelTask::Regression { targets: vec![target] })
        };
        assert_eq!(spec.validate(), Ok(()));
        let device = |error: f64| {
            let mut sketch = LabelSketch::empty(&spec);
            for n in 0..50u8 {
                let truth = f64::from(n);
                let answer = truth + error * (0.5 + f64::from(n % 5) / 4.0);
                let row = (spec.prediction(&[answer]), crate::labels::Truth::Numbers([truth].into()));
                sketch.join(&spec, (&row.0, &row.1), SliceSet::default(), 1);
            }
            sketch.all
        };
        let found = drift(&spec, &[device(2.0), device(2.1), device(1.9)]);
        assert!(found.drifted && found.metric == "mae[3]" && (found.current - 2.0).abs() < 0.01, "{found:?}");
        assert!(!drift(&spec, &[device(1.0), device(0.9), device(1.05)]).drifted);
        assert!(drift(&spec, &[device(2.0)]).drifted);
    }

    /// When nothing has changed, the alarm is raised no more often than it says, whatever the labels of a device have in common. The
    /// least effect is left aside: it only makes alarms rarer.
    #[test]
    fn false_alarms_stay_within_the_nominal_rate() {
        let mut random = Random(5);
        for (rho, devices, cases) in [(0.0, 1, 200), (0.0, 20, 50), (0.01, 20, 200), (0.05, 20, 50), (0.05, 100, 20)] {
            let runs = 1_500;
            let mut alarms = 0;
            for _ in 0..runs {
                let rows = 1_000;
                let truth = 0.9;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
                let mut draw = |rho, cases| random.hits(truth, rho, cases) as u64;
                let spec = spec(u64::from(rows), draw(0.0, rows));
                let counts: Vec<_> = (0..devices).map(|_| device(&spec, draw(rho, cases), u64::from(cases))).collect();
                let found = drift(&spec, &counts);
                alarms += u32::from(found.worsening > found.critical.unwrap());
            }
            // Nominal 1 %; three standard errors of this many runs above it.
            let rate = f64::from(alarms) / f64::from(runs);
            assert!(rate < 0.01 + 3.0 * (0.01 * 0.99 / f64::from(runs)).sqrt() + 0.004, "rho {rho}, {devices}: {rate}");
        }
    }
}
