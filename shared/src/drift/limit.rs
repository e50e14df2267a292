//! Whether a share is above a limit that is given and not counted, as the missing values that a data schema allows.

use statrs::function::beta::beta_reg;

use super::clusters::total;
use super::evidence::{ASSUMED_CORRELATION, Evidence};
use super::tail;
use super::verdict::by_devices;

/// A share held against a limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AboveLimit {
    /// The share.
    pub share: f64,
    /// How many independent values it rests on, clustering in devices considered.
    pub n_effective: f64,
    /// The chance of a share at least as large where the true one is at the limit.
    pub p_value: f64,
}

/// P(X ≥ k) of the binomial distribution; k and n need not be whole (as in Korn and Graubard, Survey Methodology 24(2), 1998).
fn at_least(k: f64, n: f64, share: f64) -> f64 {
    if k <= 0.0 || share >= 1.0 {
        1.0
    } else if share <= 0.0 {
        0.0
    } else {
        beta_reg(k, n - k + 1.0, share)
    }
}

/// Tests one-sided whether a share is above `limit`: the binomial test at the effective size, and Student's between devices; the larger p-value
/// counts. `clusters` holds of each device, or random group of devices, the values that do not count and those that do. `None` without a
/// value.
#[must_use]
pub fn above_limit(clusters: &[Vec<u64>], limit: f64) -> Option<AboveLimit> {
    let evidence = Evidence::alone(&total(clusters), by_devices(clusters))?;
    let (share, n) = (evidence.current.get(1).copied()?, evidence.n);
    let (variance, freedom) = evidence.variance(&[0.0, 1.0]);
    let row = share * (1.0 - share);
    let n_effective = if row > 0.0 && variance > 0.0 {
        (row / variance).clamp(1.0, n)
    } else {
        // Values that are all alike do not tell how devices differ.
        let sizes = clusters.iter().map(|counts| counts.iter().map(|n| *n as f64).sum::<f64>() / n);
        let mean_cluster = n * sizes.map(|size| size * size).sum::<f64>();
        (n / (1.0 + (mean_cluster - 1.0).max(0.0) * ASSUMED_CORRELATION)).max(1.0)
    };
    let p_value = if share <= limit {
        1.0
    } else {
        let exact = at_least(share * n_effective, n_effective, limit);
        let between = if row > 0.0 { tail::two_sided((share - limit) / variance.sqrt(), freedom) / 2.0 } else { 0.0 };
        exact.max(between).clamp(0.0, 1.0)
    };
    Some(AboveLimit { share, n_effective, p_value })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn even(devices: u64, rows: u64, marked: u64) -> Vec<Vec<u64>> {
        vec![vec![rows - marked, marked]; usize::try_from(devices).unwrap()]
    }

    /// Expected values by scipy 1.17.1: `binom.sf(k - 1, n, limit)`.
    #[test]
    fn the_binomial_tail_is_the_published_one() {
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} {b}");
        close(at_least(15.0, 100.0, 0.1), 0.072_572_965_264_880_73);
        close(at_least(1.0, 20.0, 0.01), 0.182_093_062_402_769_15);
        close(at_least(40.0, 1_000.0, 0.02), 4.339_875_894_746_424e-5);
        assert!((at_least(0.0, 10.0, 0.3) - 1.0).abs() < 1e-12);
        assert!(at_least(1.0, 10.0, 0.0).abs() < 1e-12);
    }

    #[test]
    fn a_share_above_the_limit_is_sure_only_where_many_devices_have_it() {
        // Twice what is allowed, on each of forty devices.
        let all = above_limit(&even(40, 100, 20), 0.1).unwrap();
        assert!((all.share - 0.2).abs() < 1e-12 && all.p_value < 1e-6, "{all:?}");
        // The same values, all from four of the devices.
        let few: Vec<_> = (0..40).map(|n| if n < 4 { vec![0, 100] } else { vec![100, 0] }).collect();
        let few = above_limit(&few, 0.05).unwrap();
        assert!((few.share - 0.1).abs() < 1e-12 && few.p_value > 0.05 && few.n_effective < 60.0, "{few:?}");
        // One device is worth few values, whatever it counted.
        let one = above_limit(&even(1, 100_000, 12_000), 0.1).unwrap();
        assert!(one.p_value > 0.1 && one.n_effective < 25.0, "{one:?}");
        assert!(above_limit(&even(1, 100_000, 100_000), 0.1).unwrap().p_value < 1e-9);
        assert!((above_limit(&even(9, 100, 10), 0.1).unwrap().p_value - 1.0).abs() < 1e-12);
        assert!(above_limit(&even(9, 100, 1), 0.0).unwrap().p_value < 0.01);
        assert_eq!((above_limit(&[], 0.1), above_limit(&even(3, 0, 0), 0.1)), (None, None));
    }

    /// A small generator with a fixed seed (Vigna's splitmix64).
    struct Random(u64);

    impl Random {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        }
    }

    /// Where the true share is at the limit, it is called higher no more often than promised, habits of devices or not.
    #[test]
    fn a_share_at_the_limit_is_seldom_called_higher() {
        let mut random = Random(11);
        for (devices, rows, correlation) in
            [(1, 200, 0.0), (3, 200, 0.02), (20, 20, 0.0), (20, 50, 0.05), (100, 10, 0.05), (100, 50, 0.01)]
        {
            let (limit, runs, alpha) = (0.1, 800, 0.05);
            let mut alarms = 0;
            for _ in 0..runs {
                // Each row repeats an earlier one of its device with a chance that makes two rows correlate so (Pólya's urn).
                let urn = if correlation > 0.0 { (1.0 - correlation) / correlation } else { f64::INFINITY };
                let clusters: Vec<Vec<u64>> = (0..devices)
                    .map(|_| {
                        let mut counts = vec![0, 0];
                        for row in 0..rows {
                            let repeats = random.uniform() < f64::from(row) / (f64::from(row) + urn);
                            let share = if repeats { counts[1] as f64 / f64::from(row) } else { limit };
                            counts[usize::from(random.uniform() < share)] += 1;
                        }
                        counts
                    })
                    .collect();
                alarms += u32::from(above_limit(&clusters, limit).unwrap().p_value <= alpha);
            }
            let rate = f64::from(alarms) / f64::from(runs);
            // Three standard errors of so many runs.
            assert!(rate < alpha + 0.024, "{devices} devices of {rows} rows, {correlation}: {rate}");
        }
    }

    proptest! {
        #[test]
        fn any_counts_are_tested_without_harm(
            counts in prop::collection::vec(prop::collection::vec(prop_oneof![0..9u64, any::<u64>()], 2), 0..9),
            limit in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64],
        ) {
            if let Some(found) = above_limit(&counts, limit) {
                prop_assert!((0.0..=1.0).contains(&found.p_value) && (0.0..=1.0).contains(&found.share), "{:?}", found);
                prop_assert!(found.n_effective >= 1.0, "{:?}", found);
            }
        }
    }
}
