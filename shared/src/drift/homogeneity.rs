//! Whether two arms of a rollout answer alike: Pearson's test at the size their devices are worth.

use statrs::distribution::{ChiSquared, ContinuousCDF as _};

/// Pearson's test that two vectors of counts over the same cells come from one distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Homogeneity {
    /// χ², with each side's counts taken for as many values as they are worth.
    pub statistic: f64,
    /// Occupied cells less one.
    pub degrees_of_freedom: f64,
    /// Chance of a statistic at least as large when nothing has moved.
    pub p_value: f64,
}

impl Homogeneity {
    /// The statistic that is exceeded with probability `alpha` when nothing has moved.
    #[must_use]
    pub fn critical(&self, alpha: f64) -> f64 {
        ChiSquared::new(self.degrees_of_freedom).map_or(f64::INFINITY, |chi| chi.inverse_cdf(1.0 - alpha))
    }
}

/// Tests whether `reference` and `current` come from one distribution (Pearson, Philosophical Magazine 50, 1900, in its form
/// for two samples). Unlike [`psi`](super::psi), it does not mistake a cell that few values have not reached yet for a move. The effective sizes
/// ([`effective_size`]) say how many independent values each side is worth. `None` when a side is empty, the lengths differ, or
/// fewer than two cells are occupied.
#[must_use]
pub fn homogeneity(
    reference: &[u64],
    reference_effective: f64,
    current: &[u64],
    current_effective: f64,
) -> Option<Homogeneity> {
    let cells = occupied_cells(reference, current);
    let sum = |counts: &[u64]| counts.iter().map(|n| *n as f64).sum::<f64>();
    let (n_reference, n_current) = (sum(reference), sum(current));
    let sides_hold = [n_reference, n_current, reference_effective, current_effective].iter().all(|n| *n > 0.0);
    if reference.len() != current.len() || cells < 2 || !sides_hold {
        return None;
    }
    let (n_r, n_c) = (reference_effective.min(n_reference), current_effective.min(n_current));
    let statistic = reference
        .iter()
        .zip(current)
        .filter(|(r, c)| **r > 0 || **c > 0)
        .map(|(r, c)| {
            let (p, q) = (*r as f64 / n_reference, *c as f64 / n_current);
            let pooled = (p * n_r + q * n_c) / (n_r + n_c);
            (p - q) * (p - q) / pooled
        })
        .sum::<f64>()
        * (n_r * n_c / (n_r + n_c));
    let degrees_of_freedom = (cells - 1) as f64;
    let p_value = ChiSquared::new(degrees_of_freedom).ok()?.sf(statistic);
    Some(Homogeneity { statistic, degrees_of_freedom, p_value })
}

/// Cells that hold anything on either side.
fn occupied_cells(reference: &[u64], current: &[u64]) -> usize {
    reference.iter().zip(current).filter(|(r, c)| **r > 0 || **c > 0).count()
}

/// How many independent values the counts of several devices are worth: n / deff, deff = 1 + (m̄ − 1)·ρ̂
/// (Kish, Survey Sampling, 1965), m̄ being the mean count of a device. ρ̂ is the ANOVA estimator of the intraclass correlation, averaged over cells with
/// their share as weight and kept within 0 and 1. One device alone gives no estimate of ρ̂: its own count is returned.
#[must_use]
pub fn effective_size(devices: &[Vec<u64>]) -> f64 {
    let sizes: Vec<f64> = devices.iter().map(|cells| cells.iter().map(|n| *n as f64).sum()).collect();
    let total: f64 = sizes.iter().sum();
    let groups = sizes.iter().filter(|n| **n > 0.0).count();
    if groups < 2 || total <= groups as f64 {
        return total;
    }
    let k = groups as f64;
    let mean_size = total / k;
    // n0 of the unbalanced one-way ANOVA.
    let n0 = (total - sizes.iter().map(|n| n * n).sum::<f64>() / total) / (k - 1.0);
    let cells = devices.iter().map(Vec::len).max().unwrap_or(0);
    let (mut weighted, mut weights) = (0.0, 0.0);
    for cell in 0..cells {
        let count = |device: &Vec<u64>| device.get(cell).map_or(0.0, |n| *n as f64);
        let p = devices.iter().map(count).sum::<f64>() / total;
        if p <= 0.0 || p >= 1.0 {
            continue;
        }
        let (mut between, mut within) = (0.0, 0.0);
        for (device, n) in devices.iter().zip(&sizes).filter(|(_, n)| **n > 0.0) {
            let p_device = count(device) / n;
            between += n * (p_device - p) * (p_device - p);
            within += n * p_device * (1.0 - p_device);
        }
        let (msb, msw) = (between / (k - 1.0), within / (total - k));
        let denominator = msb + (n0 - 1.0) * msw;
        if denominator > 0.0 {
            let weight = p * (1.0 - p);
            weighted += weight * ((msb - msw) / denominator);
            weights += weight;
        }
    }
    let rho = if weights > 0.0 { (weighted / weights).clamp(0.0, 1.0) } else { 0.0 };
    total / (1.0 + (mean_size - 1.0) * rho)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn homogeneity_is_the_textbook_test() {
        // scipy.stats.chi2_contingency([[10, 20, 30], [20, 20, 20]], correction=False): 5.333333, p = 0.069483.
        let test = homogeneity(&[10, 20, 30], 60.0, &[20, 20, 20], 60.0).unwrap();
        assert!((test.statistic - 5.333_333_333).abs() < 1e-8, "{test:?}");
        assert!((test.p_value - 0.069_483_451).abs() < 1e-8, "{test:?}");
        assert!((test.critical(0.05) - 5.991_465).abs() < 1e-5);
        // Worth half as many values, it is half as sure.
        let half = homogeneity(&[10, 20, 30], 30.0, &[20, 20, 20], 30.0).unwrap();
        assert!((half.statistic * 2.0 - test.statistic).abs() < 1e-9);
        assert_eq!(homogeneity(&[5, 0], 5.0, &[7, 0], 7.0), None);
        assert_eq!(homogeneity(&[0, 0], 0.0, &[7, 1], 8.0), None);
    }

    #[test]
    fn clustered_devices_are_worth_less() {
        let alike = vec![vec![50, 50]; 10];
        assert!(effective_size(&alike) > 999.0);
        // Each device sees one class only: ten devices are worth ten values.
        let split: Vec<_> = (0..10).map(|d| if d % 2 == 0 { vec![100, 0] } else { vec![0, 100] }).collect();
        assert!((effective_size(&split) - 10.0).abs() < 0.5, "{}", effective_size(&split));
        assert!((effective_size(&[vec![3, 4]]) - 7.0).abs() < 1e-12);
        assert!(effective_size(&[]).abs() < 1e-12);
    }

    proptest! {
        /// Counts come from devices, which may say anything.
        #[test]
        fn any_counts_give_scores_that_are_numbers(
            reference in prop::collection::vec(any_count(), 0..5),
            devices in prop::collection::vec(prop::collection::vec(any_count(), 0..5), 0..4),
        ) {
            let effective = effective_size(&devices);
            prop_assert!(effective.is_finite() && effective >= 0.0, "{}", effective);
            for current in &devices {
                let test = homogeneity(&reference, effective, current, effective);
                prop_assert!(
                    test.is_none_or(|test| test.statistic >= 0.0 && (0.0..=1.0).contains(&test.p_value)), "{:?}", test
                );
            }
        }

        #[test]
        fn the_effective_size_is_between_the_devices_and_the_values(devices in prop::collection::vec(prop::collection::vec(1u64..50, 4), 2..12)) {
            let total: u64 = devices.iter().flatten().sum();
            let effective = effective_size(&devices);
            prop_assert!(effective <= total as f64 + 1e-6 && effective >= devices.len() as f64 - 1e-6);
        }
    }

    fn any_count() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 0..1_000u64, any::<u64>(), Just(u64::MAX)]
    }
}
