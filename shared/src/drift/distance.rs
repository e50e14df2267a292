//! How far apart two vectors of counts lie: scores without a judgement.
//!
//! Every score takes the counts of reference and current over the same cells and is `None` where a side is empty or the
//! lengths differ. How large a score chance alone makes is decided in [`super::small_counts`].

use super::layout::Layout;

/// Share that an empty cell counts as in [`psi`], so that a cell seen on one side only gives a finite score.
pub const PSI_FLOOR: f64 = 1e-4;

/// The shares of both sides, cell by cell.
pub(super) fn shares(reference: &[u64], current: &[u64]) -> Option<Vec<(f64, f64)>> {
    let sum = |counts: &[u64]| counts.iter().map(|n| *n as f64).sum::<f64>();
    let (n_reference, n_current) = (sum(reference), sum(current));
    if reference.len() != current.len() || n_reference <= 0.0 || n_current <= 0.0 {
        return None;
    }
    Some(reference.iter().zip(current).map(|(r, c)| (*r as f64 / n_reference, *c as f64 / n_current)).collect())
}

/// One cell's part of [`psi`].
pub(super) fn psi_term(p: f64, q: f64) -> f64 {
    if p <= 0.0 && q <= 0.0 {
        return 0.0;
    }
    let (p, q) = (p.max(PSI_FLOOR), q.max(PSI_FLOOR));
    (q - p) * (q / p).ln()
}

/// One cell's part of [`jensen_shannon`].
pub(super) fn js_term(p: f64, q: f64) -> f64 {
    let mean = f64::midpoint(p, q);
    let part = |x: f64| if x > 0.0 { 0.5 * x * (x / mean).log2() } else { 0.0 };
    part(p) + part(q)
}

/// The population stability index Σ (qᵢ − pᵢ) · ln(qᵢ / pᵢ), shares below [`PSI_FLOOR`] being lifted to it (Siddiqi, Credit Risk
/// Scorecards, 2006). Of an input column it is what credit scoring calls the characteristic stability index (CSI).
#[must_use]
pub fn psi(reference: &[u64], current: &[u64]) -> Option<f64> {
    Some(shares(reference, current)?.into_iter().map(|(p, q)| psi_term(p, q)).sum())
}

/// The Jensen–Shannon *divergence* in bits, 0 to 1 (Lin, IEEE Transactions on Information Theory 37(1), 1991). Its square root is
/// the Jensen–Shannon *distance* that scipy and Evidently report.
#[must_use]
pub fn jensen_shannon(reference: &[u64], current: &[u64]) -> Option<f64> {
    let sum: f64 = shares(reference, current)?.into_iter().map(|(p, q)| js_term(p, q)).sum();
    Some(sum.clamp(0.0, 1.0))
}

/// The largest difference between the shares of one cell, as TensorFlow Data Validation has it for categories.
#[must_use]
pub fn l_infinity(reference: &[u64], current: &[u64]) -> Option<f64> {
    Some(shares(reference, current)?.into_iter().map(|(p, q)| (p - q).abs()).fold(0.0, f64::max))
}

/// F(edge) of current less reference after each cell of `order`, over values that are there; the last one, 0, is left out.
pub(super) fn steps(layout: &Layout, reference: &[u64], current: &[u64]) -> Option<Vec<f64>> {
    let pick =
        |counts: &[u64]| layout.order().iter().map(|cell| counts.get(*cell).copied()).collect::<Option<Vec<_>>>();
    let shares = shares(&pick(reference)?, &pick(current)?)?;
    let mut sum = 0.0;
    let mut steps: Vec<f64> = shares
        .into_iter()
        .map(|(p, q)| {
            sum += q - p;
            sum
        })
        .collect();
    steps.pop();
    Some(steps)
}

/// The Kolmogorov–Smirnov statistic over the bins: the largest difference of the two distribution functions at an edge. It is at
/// most that of the values themselves. `None` for classes, which have no order.
#[must_use]
pub fn kolmogorov_smirnov(layout: &Layout, reference: &[u64], current: &[u64]) -> Option<f64> {
    layout.scale()?;
    Some(steps(layout, reference, current)?.into_iter().map(f64::abs).fold(0.0, f64::max))
}

/// ∫ |a + (b − a)·t| dt over a width of `width`.
fn area(a: f64, b: f64, width: f64) -> f64 {
    if a * b >= 0.0 {
        return width * (a.abs() + b.abs()) / 2.0;
    }
    width * (a * a + b * b) / (2.0 * (a.abs() + b.abs()))
}

/// The Wasserstein-1 (earth mover's) distance over the bins, in the column's own unit: values lie evenly within their
/// bin, those below the minimum at it, those above the maximum at that, infinite ones likewise. `None` for classes.
#[must_use]
pub fn wasserstein(layout: &Layout, reference: &[u64], current: &[u64]) -> Option<f64> {
    let edges = &layout.scale()?.edges;
    let steps = steps(layout, reference, current)?;
    // The difference of the distribution functions at each edge: the steps after −∞ and "below" are at the minimum.
    let at_edges = steps.get(1..)?;
    Some(edges.windows(2).zip(at_edges.windows(2)).map(|(edge, d)| area(d[0], d[1], edge[1] - edge[0])).sum())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn psi_of_known_counts() {
        // By hand: shares .5/.5 against .25/.75: (-.25)·ln(.5) + (.25)·ln(1.5) = .25·(ln 2 + ln 1.5) = .25·ln 3.
        let score = psi(&[50, 50], &[25, 75]).unwrap();
        assert!((score - 0.25 * 3f64.ln()).abs() < 1e-12);
        assert_eq!(psi(&[0, 0], &[1, 2]), None);
        assert_eq!(psi(&[1, 2], &[1, 2, 3]), None);
        // A cell never seen in the reference: (1 − 1e-4)·ln(1e4), twice by symmetry.
        let score = psi(&[100, 0], &[0, 100]).unwrap();
        assert!((score - 2.0 * (1.0 - 1e-4) * 1e4f64.ln()).abs() < 1e-9);
    }

    #[test]
    fn scores_of_shares_by_hand() {
        // .5/.5 against .25/.75: the mean is .375/.625.
        let (reference, current) = ([50, 50], [25, 75]);
        let expected = 0.5 * (0.5 * (0.5 / 0.375f64).log2() + 0.5 * (0.5 / 0.625f64).log2())
            + 0.5 * (0.25 * (0.25 / 0.375f64).log2() + 0.75 * (0.75 / 0.625f64).log2());
        assert!((jensen_shannon(&reference, &current).unwrap() - expected).abs() < 1e-12);
        assert!((jensen_shannon(&[1, 0], &[0, 1]).unwrap() - 1.0).abs() < 1e-12);
        assert!((l_infinity(&reference, &current).unwrap() - 0.25).abs() < 1e-12);
        assert_eq!(kolmogorov_smirnov(&Layout::classes(0), &reference, &current), None);
    }

    #[test]
    fn distances_of_a_number_by_hand() {
        let layout = Layout::numeric(vec![0.0, 1.0, 2.0, 4.0]);
        // below, [0,1), [1,2), [2,4], above, +inf, -inf, missing
        let counts = |cells: [u64; 8]| cells;
        let reference = counts([0, 10, 0, 0, 0, 0, 0, 0]);
        // All of it one bin further: by 1 on average.
        let moved = counts([0, 0, 7, 0, 0, 0, 0, 0]);
        assert!((wasserstein(&layout, &reference, &moved).unwrap() - 1.0).abs() < 1e-12);
        assert!((kolmogorov_smirnov(&layout, &reference, &moved).unwrap() - 1.0).abs() < 1e-12);
        // From an even [0, 1) up to the maximum, wherever above it.
        for far in [counts([0, 0, 0, 0, 3, 0, 0, 9]), counts([0, 0, 0, 0, 0, 3, 0, 0])] {
            assert!((wasserstein(&layout, &reference, &far).unwrap() - 3.5).abs() < 1e-12);
        }
        let down = counts([3, 0, 0, 0, 0, 0, 3, 0]);
        assert!((wasserstein(&layout, &reference, &down).unwrap() - 0.5).abs() < 1e-12);
        // Half a bin's values changed places with another's: the distribution functions cross.
        let (one, other) = (counts([0, 1, 2, 1, 0, 0, 0, 0]), counts([0, 2, 0, 2, 0, 0, 0, 0]));
        assert!((wasserstein(&layout, &one, &other).unwrap() - (0.125 + 0.125 + 0.25)).abs() < 1e-12);
        // The standard deviation of an even distribution over a width of 1.
        assert!((layout.scale().unwrap().spread(&reference).unwrap() - (1.0f64 / 12.0).sqrt()).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn psi_is_symmetric_and_never_negative(a in prop::collection::vec(0u64..1_000, 5), b in prop::collection::vec(0u64..1_000, 5)) {
            if let (Some(ab), Some(ba)) = (psi(&a, &b), psi(&b, &a)) {
                prop_assert!(ab >= 0.0 && (ab - ba).abs() < 1e-9);
            }
        }

        #[test]
        fn any_counts_give_scores_that_are_numbers(
            reference in prop::collection::vec(any_count(), 0..9), current in prop::collection::vec(any_count(), 0..9),
        ) {
            for layout in [Layout::numeric(vec![0.0, 1.0, 2.0, 4.0]), Layout::numeric(vec![1.0, 1.0]), Layout::classes(2)] {
                for score in [
                    psi(&reference, &current),
                    jensen_shannon(&reference, &current),
                    l_infinity(&reference, &current),
                    kolmogorov_smirnov(&layout, &reference, &current),
                    wasserstein(&layout, &reference, &current),
                ] {
                    prop_assert!(score.is_none_or(|score| score.is_finite() && score >= 0.0), "{:?}", score);
                }
            }
        }
    }

    fn any_count() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 0..1_000u64, any::<u64>(), Just(u64::MAX)]
    }
}
