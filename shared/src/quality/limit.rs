//! A metric held against a limit that somebody set: how likely a value this far beyond it is when the truth lies on it.
//!
//! The same device-level variances as in reports: a score test of shares at their effective size, Student's test of means with the
//! variance between devices.

use super::estimate::{Ratio, effective_size, mean_variance, ratio, tail};
use super::metrics::{calibration_error, measure_target};
use crate::labels::{LabelSpec, LabelTarget, LabelTask};
use crate::sketch::{ClassLabels, LabelCounts, TargetLabels};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Share of right answers.
    Accuracy,
    /// Share of right answers among the answers of each class.
    Precision,
    /// Share of right answers among the labels of each class.
    Recall,
    /// 2·right / (labels + answers) of each class.
    F1,
    /// Expected calibration error.
    CalibrationError,
    /// Mean absolute error of each target.
    Mae,
    /// Root of the mean squared error of each target.
    Rmse,
}

impl Metric {
    /// Whether small values are bad.
    #[must_use]
    pub const fn is_worse_below(self) -> bool {
        match self {
            Self::Accuracy | Self::Precision | Self::Recall | Self::F1 => true,
            Self::CalibrationError | Self::Mae | Self::Rmse => false,
        }
    }
}

/// A metric of some devices, against a limit.
#[derive(Debug, Clone, PartialEq)]
pub struct AgainstLimit {
    /// The class, where it is measured by class.
    pub class: Option<String>,
    /// The output's element, for a regression.
    pub target: Option<u32>,
    /// The metric.
    pub value: f64,
    /// Chance of a value at least as bad when the truth lies on the limit; none where the counts do not tell how sure the value is, as of a
    /// calibration error, or of a root mean squared error on a single device.
    pub p_value: Option<f64>,
    /// Labels or answers it is of.
    pub n: u64,
    /// How many independent ones they are worth, where that is known.
    pub n_effective: Option<f64>,
    /// Devices, or clusters of them, that they come from.
    pub devices: u32,
}

/// Holds `metric` of the labels of `devices`, one sum a device, against `limit`: one result, or one for each class or target. What is of
/// fewer than `k_min` labels or answers is left out, and so is a metric that this task does not have.
#[must_use]
pub fn against_limit(
    spec: &LabelSpec,
    devices: &[&LabelCounts],
    metric: Metric,
    limit: f64,
    k_min: u64,
) -> Vec<AgainstLimit> {
    let found = match &spec.task {
        LabelTask::Classification { classes } => {
            let of_classes = |counts: &&LabelCounts| match counts {
                LabelCounts::Classes(counts) => Some(counts.clone()),
                LabelCounts::Targets(_) => None,
            };
            of_classifier(&devices.iter().filter_map(of_classes).collect::<Vec<_>>(), classes, metric, limit)
        }
        LabelTask::Regression { targets } => {
            let of_target = |(at, target): (usize, &LabelTarget)| {
                let of_device = |counts: &&LabelCounts| match counts {
                    LabelCounts::Targets(targets) => targets.get(at).cloned(),
                    LabelCounts::Classes(_) => None,
                };
                error(&devices.iter().filter_map(of_device).collect::<Vec<_>>(), target, metric, limit)
            };
            targets.iter().enumerate().filter_map(of_target).collect()
        }
    };
    found.into_iter().filter(|result| result.n >= k_min && result.n > 0).collect()
}

fn of_classifier(devices: &[ClassLabels], classes: &[String], metric: Metric, limit: f64) -> Vec<AgainstLimit> {
    let cell = |cells: &[u64], class: usize| cells.get(class).copied().unwrap_or(0);
    let of_classes = |pair: &dyn Fn(&ClassLabels, usize) -> (u64, u64)| -> Vec<AgainstLimit> {
        let of_class = |(class, name): (usize, &String)| {
            let pairs: Vec<(u64, u64)> = devices.iter().map(|counts| pair(counts, class)).collect();
            share(&pairs, limit, Worse::Below).map(|result| AgainstLimit { class: Some(name.clone()), ..result })
        };
        classes.iter().enumerate().filter_map(of_class).collect()
    };
    match metric {
        Metric::Accuracy => {
            let pairs: Vec<(u64, u64)> = devices.iter().map(|c| (c.total_right(), c.total())).collect();
            share(&pairs, limit, Worse::Below).into_iter().collect()
        }
        Metric::Precision => of_classes(&|c, class| (cell(&c.right, class), cell(&c.predicted, class))),
        Metric::Recall => of_classes(&|c, class| (cell(&c.right, class), cell(&c.truth, class))),
        Metric::F1 => of_classes(&|c, class| {
            let occurs = cell(&c.truth, class).saturating_add(cell(&c.predicted, class));
            (cell(&c.right, class).saturating_mul(2), occurs)
        }),
        Metric::CalibrationError => {
            let Some(mut sum) = devices.first().cloned() else { return Vec::new() };
            devices.iter().skip(1).for_each(|counts| sum.merge(counts));
            let n = sum.calibration.iter().fold(0_u64, |n, bin| n.saturating_add(bin.n));
            let with = devices.iter().filter(|counts| counts.total() > 0).count();
            let result = |value| AgainstLimit {
                class: None,
                target: None,
                value,
                p_value: None,
                n,
                n_effective: None,
                devices: u32::try_from(with).unwrap_or(u32::MAX),
            };
            calibration_error(&sum).map(result).into_iter().collect()
        }
        Metric::Mae | Metric::Rmse => Vec::new(),
    }
}

/// Holds a share of which large values are bad against `limit`. `devices` are hits and cases of each device; none without a case.
#[must_use]
pub fn share_above(devices: &[(u64, u64)], limit: f64) -> Option<AgainstLimit> {
    share(devices, limit, Worse::Above)
}

/// On which side of the limit a share is bad.
#[derive(Clone, Copy)]
enum Worse {
    Above,
    Below,
}

/// The score test: under the limit itself a share varies by limit·(1 − limit) / effective size.
fn share(devices: &[(u64, u64)], limit: f64, worse: Worse) -> Option<AgainstLimit> {
    let share = ratio(&devices.iter().map(|(hits, cases)| (*hits as f64, *cases as f64)).collect::<Vec<_>>())?;
    let n_effective = effective_size(&share);
    let limit = limit.clamp(0.0, 1.0);
    let excess = match worse {
        Worse::Above => share.value - limit,
        Worse::Below => limit - share.value,
    };
    let p_value = tail(share.devices, excess, limit * (1.0 - limit) / n_effective);
    Some(AgainstLimit {
        class: None,
        target: None,
        value: share.value,
        p_value: Some(p_value),
        n: devices.iter().fold(0_u64, |sum, (_, cases)| sum.saturating_add(*cases)),
        n_effective: Some(n_effective),
        devices: u32::try_from(share.devices).unwrap_or(u32::MAX),
    })
}

fn error(devices: &[TargetLabels], target: &LabelTarget, metric: Metric, limit: f64) -> Option<AgainstLimit> {
    let unit = target.unit();
    let whole = measure_target(&devices.iter().collect::<Vec<_>>(), target)?;
    let mean = |total: &dyn Fn(&TargetLabels) -> f64| -> Option<Ratio> {
        ratio(&devices.iter().map(|counts| (total(counts), counts.n as f64)).collect::<Vec<_>>())
    };
    let squared = |counts: &TargetLabels| counts.squared_error as f64 * unit * unit;
    let (value, mean, variance, excess) = match metric {
        Metric::Mae => {
            let mean = mean(&|counts| counts.absolute_error as f64 * unit)?;
            let independent = mean_variance(&mean, Some(devices.iter().map(squared).sum()));
            let variance = mean.variance.into_iter().chain(independent).reduce(f64::max);
            (whole.mae.value, mean, variance, mean.value - limit)
        }
        Metric::Rmse => {
            let mean = mean(&squared)?;
            (whole.rmse.value, mean, mean.variance, mean.value - limit * limit)
        }
        Metric::Accuracy | Metric::Precision | Metric::Recall | Metric::F1 | Metric::CalibrationError => return None,
    };
    Some(AgainstLimit {
        class: None,
        target: Some(target.index),
        value,
        p_value: variance.map(|variance| tail(mean.devices, excess, variance)),
        n: whole.n,
        n_effective: None,
        devices: u32::try_from(mean.devices).unwrap_or(u32::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::super::estimate::tests::{Random, device, two_classes};
    use super::*;
    use crate::labels::{Prediction, Truth};
    use crate::profile::SliceSet;
    use crate::sketch::LabelSketch;

    fn measure(spec: &LabelSpec, devices: &[LabelCounts], metric: Metric, limit: f64) -> Vec<AgainstLimit> {
        against_limit(spec, &devices.iter().collect::<Vec<_>>(), metric, limit, 20)
    }

    #[test]
    fn a_share_is_held_against_its_limit() {
        // statsmodels.stats.proportion.proportions_ztest(170, 200, value=0.9, prop_var=0.9, alternative="smaller").
        let [one] = &measure(&two_classes(), &[device(170, 200)], Metric::Accuracy, 0.9)[..] else { panic!() };
        assert!((one.value - 0.85).abs() < 1e-12 && (one.p_value.unwrap() - 0.009_211).abs() < 1e-5, "{one:?}");
        assert_eq!((one.n, one.devices), (200, 1));
        // Better than the limit is no evidence of worse.
        assert!(measure(&two_classes(), &[device(190, 200)], Metric::Accuracy, 0.9)[0].p_value.unwrap() > 0.9);
        // The same labels on devices that disagree say little.
        let apart = [device(95, 100), device(75, 100)];
        assert!(measure(&two_classes(), &apart, Metric::Accuracy, 0.9)[0].p_value.unwrap() > 0.2);
        let [recall] = &measure(&two_classes(), &[device(170, 200)], Metric::Recall, 0.9)[..] else { panic!() };
        assert_eq!((recall.class.as_deref(), recall.n), (Some("a"), 200), "no label is of the other class");
        let precision = measure(&two_classes(), &[device(170, 200)], Metric::Precision, 0.9);
        let shown: Vec<_> = precision.iter().map(|p| (p.class.as_deref().unwrap(), p.value, p.n)).collect();
        assert_eq!(shown, [("a", 1.0, 170), ("b", 0.0, 30)]);
        // 2·170 / (200 + 170).
        let f1 = measure(&two_classes(), &[device(170, 200)], Metric::F1, 0.9);
        assert!((f1[0].value - 340.0 / 370.0).abs() < 1e-12, "{f1:?}");
        let [gap] = &measure(&two_classes(), &[device(170, 200)], Metric::CalibrationError, 0.1)[..] else { panic!() };
        assert!((gap.value - 0.05).abs() < 1e-3 && gap.p_value.is_none() && gap.n == 200, "{gap:?}");
    }

    #[test]
    fn both_sides_of_a_limit_are_one_test() {
        // The first one's other tail.
        let above = share_above(&[(30, 200)], 0.1).unwrap();
        assert!((above.value - 0.15).abs() < 1e-12 && (above.p_value.unwrap() - 0.009_211).abs() < 1e-5, "{above:?}");
        assert!(share_above(&[(10, 200)], 0.1).unwrap().p_value.unwrap() > 0.9);
        assert_eq!((share_above(&[(0, 0)], 0.1), share_above(&[(3, 10)], 0.0).unwrap().p_value), (None, Some(0.0)));
    }

    #[test]
    fn what_is_not_there_is_not_measured() {
        assert_eq!(measure(&two_classes(), &[], Metric::Accuracy, 0.9), []);
        assert_eq!(measure(&two_classes(), &[device(19, 19)], Metric::Accuracy, 0.9), [], "too few labels");
        assert_eq!(measure(&two_classes(), &[device(100, 100)], Metric::Mae, 0.9), []);
        assert_eq!(measure(&two_classes(), &[device(90, 100)], Metric::Accuracy, 1.0)[0].p_value, Some(0.0));
        assert_eq!(measure(&two_classes(), &[device(90, 100)], Metric::Accuracy, 0.0)[0].p_value, Some(1.0));
    }

    #[test]
    fn errors_are_held_against_their_limit() {
        let target = LabelTarget { index: 3, scale: 10.0 };
        let task = LabelTask::Regression { targets: vec![target] };
        let spec = LabelSpec::new("y", task);
        let device = |error: f64| {
            let mut sketch = LabelSketch::empty(&spec);
            for n in 0..50_u8 {
                let truth = f64::from(n);
                let answer = Prediction::Numbers(vec![truth + error * (0.5 + f64::from(n % 5) / 4.0)].into());
                sketch.join(&spec, (&answer, &Truth::Numbers(vec![truth].into())), SliceSet::default(), 1);
            }
            sketch.all
        };
        let devices: Vec<LabelCounts> = [1.9, 2.0, 2.1, 2.0].map(device).into();
        let [mae] = &measure(&spec, &devices, Metric::Mae, 1.0)[..] else { panic!() };
        assert_eq!((mae.target, mae.n, mae.devices), (Some(3), 200, 4));
        assert!((mae.value - 2.0).abs() < 1e-3 && mae.p_value.unwrap() < 0.001, "{mae:?}");
        assert!(measure(&spec, &devices, Metric::Mae, 1.99)[0].p_value.unwrap() > 0.2);
        // By hand: the factors' mean square is (0.25 + 0.5625 + 1 + 1.5625 + 2.25) / 5 = 1.125, the errors' one 4.005.
        let [rmse] = &measure(&spec, &devices, Metric::Rmse, 1.0)[..] else { panic!() };
        assert!((rmse.value - (4.005_f64 * 1.125).sqrt()).abs() < 1e-3 && rmse.p_value.unwrap() < 0.001, "{rmse:?}");
        assert_eq!(measure(&spec, &devices[..1], Metric::Rmse, 1.0)[0].p_value, None, "one device");
    }

    /// The truth lying on the limit, p-values below 5 % must be about that rare, however alike a device's labels are.
    #[test]
    fn false_alarms_are_as_rare_as_said() {
        let mut random = Random(29);
        for (rho, devices, cases) in [(0.0, 1, 200), (0.0, 20, 50), (0.01, 20, 100), (0.05, 20, 50)] {
            let runs = 800;
            let alarms = (0..runs)
                .filter(|_| {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
                    let pairs: Vec<(u64, u64)> =
                        (0..devices).map(|_| (random.hits(0.9, rho, cases) as u64, u64::from(cases))).collect();
                    share(&pairs, 0.9, Worse::Below).unwrap().p_value.unwrap() < 0.05
                })
                .count();
            // Three standard errors of 800 runs above 5 %, and half of it for devices that vary: fewer is no harm.
            assert!(alarms as f64 / f64::from(runs) < 0.073, "rho {rho}, {devices} devices: {alarms} of {runs}");
        }
    }
}
