//! A share or a mean with its 95 % interval, from the counts of each device.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use super::INTERVAL;

/// An estimate and its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Estimate {
    /// The value itself.
    pub value: f64,
    /// The interval's lower end; none where the counts do not tell how sure it is.
    #[serde(default)]
    pub low: Option<f64>,
    /// Its upper end.
    #[serde(default)]
    pub high: Option<f64>,
}

/// The ratio of two sums over devices, and how it varies between them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ratio {
    /// Σ numerator / Σ denominator.
    pub(super) value: f64,
    /// Σ denominator.
    pub(super) size: f64,
    /// Devices with a denominator.
    pub(super) devices: usize,
    /// Linearised variance between devices; none with one device.
    pub(super) variance: Option<f64>,
}

/// The ratio estimator over clusters, with its linearised variance m/(m−1) · Σ(xᵢ − r·nᵢ)² / (Σnᵢ)² (Cochran, Sampling
/// Techniques, 3rd ed., §6.3 and §10.2). `devices` are numerators and denominators. `None` without a denominator.
pub(super) fn ratio(devices: &[(f64, f64)]) -> Option<Ratio> {
    let with: Vec<(f64, f64)> = devices.iter().copied().filter(|(_, n)| *n > 0.0).collect();
    let size: f64 = with.iter().map(|(_, n)| n).sum();
    if size <= 0.0 || !size.is_finite() {
        return None;
    }
    let value = with.iter().map(|(x, _)| x).sum::<f64>() / size;
    let m = with.len() as f64;
    let variance = (with.len() > 1).then(|| {
        let squares: f64 = with.iter().map(|(x, n)| (x - value * n).powi(2)).sum();
        m / (m - 1.0) * squares / (size * size)
    });
    Some(Ratio { value, size, devices: with.len(), variance })
}

/// The quantile of Student's distribution with one degree of freedom less than there are devices; of the normal one for a single
/// device, whose own rows are all there is to go by.
pub(super) fn quantile(devices: usize, probability: f64) -> f64 {
    let normal = || Normal::standard().inverse_cdf(probability);
    if devices < 2 {
        return normal();
    }
    StudentsT::new(0.0, 1.0, (devices - 1) as f64).map_or_else(|_| normal(), |t| t.inverse_cdf(probability))
}

/// The chance of an excess at least as large as `excess` when nothing is beyond, its variance being `variance`: Student's upper tail with one
/// degree of freedom less than there are devices, the normal one for a single device.
pub(super) fn tail(devices: usize, excess: f64, variance: f64) -> f64 {
    if variance.is_nan() || variance <= 0.0 {
        return if excess > 0.0 { 0.0 } else { 1.0 };
    }
    let score = excess / variance.sqrt();
    let normal = || Normal::standard().sf(score);
    if devices < 2 {
        return normal();
    }
    StudentsT::new(0.0, 1.0, (devices - 1) as f64).map_or_else(|_| normal(), |t| t.sf(score))
}

/// How many independent values the denominators of a share are worth: p(1−p) / variance, at most their sum.
pub(super) fn effective_size(share: &Ratio) -> f64 {
    let binomial = share.value * (1.0 - share.value);
    match share.variance {
        Some(variance) if variance > 0.0 && binomial > 0.0 => (binomial / variance).clamp(1.0, share.size.max(1.0)),
        Some(_) | None => share.size,
    }
}

/// A share with Wilson's interval at its effective size (Wilson, JASA 22, 1927; with clusters as in Dean and Pagano, Journal of Survey
/// Statistics and Methodology 3, 2015). `devices` are hits and cases of each device. `None` without a case.
#[must_use]
pub fn share_estimate(devices: &[(f64, f64)]) -> Option<Estimate> {
    let share = ratio(devices)?;
    let n = effective_size(&share);
    let q2 = quantile(share.devices, 0.5 + INTERVAL / 2.0).powi(2);
    let p = share.value.clamp(0.0, 1.0);
    let centre = (p + q2 / (2.0 * n)) / (1.0 + q2 / n);
    let half = (q2 * (p * (1.0 - p) / n + q2 / (4.0 * n * n))).sqrt() / (1.0 + q2 / n);
    Some(Estimate { value: p, low: Some((centre - half).max(0.0)), high: Some((centre + half).min(1.0)) })
}

/// A mean with Student's interval. `devices` are sums and counts of each device; `squares` is the sum of squares over all, which a
/// single device's interval rests on, where it is known. `None` without a count.
#[must_use]
pub fn mean_estimate(devices: &[(f64, f64)], squares: Option<f64>) -> Option<Estimate> {
    let mean = ratio(devices)?;
    let variance = mean.variance.or_else(|| mean_variance(&mean, squares));
    let half = variance.map(|variance| quantile(mean.devices, 0.5 + INTERVAL / 2.0) * variance.sqrt());
    Some(Estimate {
        value: mean.value,
        low: half.map(|half| mean.value - half),
        high: half.map(|half| mean.value + half),
    })
}

/// The variance of a mean of independent values.
pub(super) fn mean_variance(mean: &Ratio, squares: Option<f64>) -> Option<f64> {
    let spread = squares? / mean.size - mean.value * mean.value;
    (mean.size > 1.0).then(|| spread.max(0.0) / (mean.size - 1.0))
}

/// The difference of two ratios, the first less the second, with Student's interval: each device's residuals of both belong together
/// (linearised variance m/(m−1) · Σ zᵢ² with zᵢ = (xᵢ − r·nᵢ)/Σn − (yᵢ − s·mᵢ)/Σm; Cochran, §6.12). `devices` are the numerators and
/// denominators of both on each device; `squares` are the sums of squares of both over all, which the interval of a single device rests on.
/// `None` where one of them has no denominator.
#[must_use]
pub fn difference_estimate(devices: &[[(f64, f64); 2]], squares: Option<[f64; 2]>) -> Option<Estimate> {
    let side = |at: usize| -> Option<Ratio> { ratio(&devices.iter().map(|device| device[at]).collect::<Vec<_>>()) };
    let (one, other) = (side(0)?, side(1)?);
    let value = one.value - other.value;
    let with = devices.iter().filter(|[a, b]| a.1 > 0.0 || b.1 > 0.0);
    let (m, squared) = with.fold((0_usize, 0.0), |(m, sum), [a, b]| {
        let z = (a.0 - one.value * a.1) / one.size - (b.0 - other.value * b.1) / other.size;
        (m + 1, sum + z * z)
    });
    let variance = if m > 1 {
        Some(m as f64 / (m - 1) as f64 * squared)
    } else {
        squares.and_then(|[a, b]| Some(mean_variance(&one, Some(a))? + mean_variance(&other, Some(b))?))
    };
    let half = variance.map(|variance| quantile(m, 0.5 + INTERVAL / 2.0) * variance.sqrt());
    Some(Estimate { value, low: half.map(|half| value - half), high: half.map(|half| value + half) })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::labels::{LabelSpec, LabelTask, Prediction, Truth};
    use crate::profile::SliceSet;
    use crate::sketch::{LabelCounts, LabelSketch};

    /// Labels of the classes a and b.
    pub(in crate::quality) fn two_classes() -> LabelSpec {
        LabelSpec::new("p", LabelTask::Classification { classes: vec!["a".to_owned(), "b".to_owned()] })
    }

    /// A device with `n` labels of class a, `right` of them answered so.
    pub(in crate::quality) fn device(right: u64, n: u64) -> LabelCounts {
        let spec = two_classes();
        let mut sketch = LabelSketch::empty(&spec);
        for row in 0..n {
            let answer = Prediction::Class(Some((u16::from(row >= right), 0.8)));
            sketch.join(&spec, (&answer, &Truth::Class(0)), SliceSet::default(), 1);
        }
        sketch.all
    }

    /// A small generator, so that simulations have a fixed seed (Vigna's splitmix64).
    pub(in crate::quality) struct Random(pub(in crate::quality) u64);

    impl Random {
        pub(in crate::quality) fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        }

        fn normal(&mut self) -> f64 {
            (-2.0 * self.uniform().max(1e-300).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
        }

        /// Hits of `cases` on one device, whose own rate varies so that two of its cases correlate by `rho`.
        pub(in crate::quality) fn hits(&mut self, rate: f64, rho: f64, cases: u32) -> f64 {
            // A device's rate is spread about the common one with variance rho·p(1−p).
            let own = (rate + (rho * rate * (1.0 - rate)).sqrt() * self.normal()).clamp(0.0, 1.0);
            (0..cases).filter(|_| self.uniform() < own).count() as f64
        }
    }

    #[test]
    fn a_single_device_has_wilsons_interval() {
        // statsmodels.stats.proportion.proportion_confint(81, 263, method="wilson").
        let estimate = share_estimate(&[(81.0, 263.0)]).unwrap();
        assert!((estimate.value - 0.307_984_79).abs() < 1e-8);
        assert!((estimate.low.unwrap() - 0.255_288_52).abs() < 1e-6, "{estimate:?}");
        assert!((estimate.high.unwrap() - 0.366_209_58).abs() < 1e-6, "{estimate:?}");
        let none = share_estimate(&[(0.0, 10.0)]).unwrap();
        assert!(none.low.unwrap().abs() < 1e-12 && (none.high.unwrap() - 0.277_532_8).abs() < 1e-6, "{none:?}");
        assert_eq!(share_estimate(&[(0.0, 0.0)]), None);
    }

    #[test]
    fn devices_that_disagree_widen_the_interval() {
        let alike = share_estimate(&[(50.0, 100.0), (51.0, 100.0), (49.0, 100.0), (50.0, 100.0)]).unwrap();
        let apart = share_estimate(&[(10.0, 100.0), (90.0, 100.0), (20.0, 100.0), (80.0, 100.0)]).unwrap();
        let width = |estimate: &Estimate| estimate.high.unwrap() - estimate.low.unwrap();
        assert!(width(&apart) > 3.0 * width(&alike), "{alike:?} {apart:?}");
        let means = mean_estimate(&[(10.0, 10.0), (30.0, 10.0)], Some(1e9)).unwrap();
        // By hand: mean 2, variance 2·(100 + 100)/400 = 1, t(1) = 12.7062.
        assert!((means.value - 2.0).abs() < 1e-12 && (means.low.unwrap() - (2.0 - 12.706_2)).abs() < 1e-3, "{means:?}");
        assert_eq!(mean_estimate(&[(3.0, 1.0)], None).unwrap().low, None);
    }

    #[test]
    fn a_difference_rests_on_what_devices_tell_of_both() {
        // By hand: 0.9 − 0.8; residuals (9.5 − 0.9·10)/20 − (8.5 − 0.8·10)/20 = 0 on both devices, which err alike.
        let alike = difference_estimate(&[[(9.5, 10.0), (8.5, 10.0)], [(8.5, 10.0), (7.5, 10.0)]], None).unwrap();
        assert!((alike.value - 0.1).abs() < 1e-12 && (alike.high.unwrap() - alike.low.unwrap()).abs() < 1e-9);
        assert_eq!(difference_estimate(&[[(1.0, 2.0), (0.0, 0.0)]], None), None);
        assert_eq!(difference_estimate(&[[(1.0, 2.0), (1.0, 2.0)]], None).unwrap().low, None);
        let mut random = Random(23);
        let runs = 600;
        let held = (0..runs)
            .filter(|_| {
                let devices: Vec<[(f64, f64); 2]> = (0..15)
                    .map(|_| [(random.hits(0.85, 0.03, 40), 40.0), (random.hits(0.8, 0.03, 90), 90.0)])
                    .collect();
                let estimate = difference_estimate(&devices, None).unwrap();
                estimate.low.unwrap() <= 0.05 && 0.05 <= estimate.high.unwrap()
            })
            .count();
        // 570 expected; below 552 comes by chance once in a thousand.
        assert!((552..=590).contains(&held), "{held} of {runs}");
    }

    /// 95 % intervals must hold the true share about that often, however alike a device's cases are.
    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        let mut random = Random(17);
        for (rho, devices, cases) in [(0.0, 1, 200), (0.0, 20, 50), (0.01, 20, 200), (0.05, 20, 50), (0.05, 40, 100)] {
            let runs = 600;
            let held = (0..runs)
                .filter(|_| {
                    let counts: Vec<(f64, f64)> =
                        (0..devices).map(|_| (random.hits(0.8, rho, cases), f64::from(cases))).collect();
                    let estimate = share_estimate(&counts).unwrap();
                    estimate.low.unwrap() <= 0.8 && 0.8 <= estimate.high.unwrap()
                })
                .count();
            // Three standard errors of 600 runs below 95 %.
            assert!(held as f64 / f64::from(runs) > 0.923, "rho {rho}, {devices} devices: {held} of {runs}");
        }
    }

    proptest! {
        #[test]
        fn any_counts_give_an_interval_about_the_value(
            devices in prop::collection::vec((0.0..=1.0f64, prop_oneof![Just(0.0), 1.0..1e19f64]), 0..8),
        ) {
            let devices: Vec<(f64, f64)> = devices.into_iter().map(|(share, n)| (share * n, n)).collect();
            if let Some(Estimate { value, low, high }) = share_estimate(&devices) {
                let (low, high) = (low.unwrap(), high.unwrap());
                prop_assert!((0.0..=1.0).contains(&low) && (0.0..=1.0).contains(&high));
                prop_assert!(low <= value + 1e-9 && value <= high + 1e-9, "{} {} {}", low, value, high);
            }
            let _ = mean_estimate(&devices, Some(1.0));
        }
    }
}
