//! How scores of few counts depart from their limit.
//!
//! PSI and Jensen–Shannon behave like Pearson's χ² when every cell holds many values. With few, empty cells weigh far more than
//! that. Here each cell's part is given the mean and variance it has for Poisson counts, and the sum a gamma
//! distribution of that mean and variance.

use statrs::function::gamma::ln_gamma;

/// Counts up to which each one is looked at; larger ones are taken for normal.
const FEW: f64 = 12.0;
/// Nodes and weights of the five-point Gauss–Hermite rule for a standard normal.
const NORMAL: [(f64, f64); 5] = [
    (-2.856_970_013_872_806, 0.011_257_411_327_721),
    (-1.355_626_179_974_266, 0.222_075_922_005_613),
    (0.0, 0.533_333_333_333_333),
    (1.355_626_179_974_266, 0.222_075_922_005_613),
    (2.856_970_013_872_806, 0.011_257_411_327_721),
];

/// Counts with their chances when `mean` are expected.
fn counts(mean: f64) -> Vec<(f64, f64)> {
    if mean > FEW {
        return NORMAL.iter().map(|(z, weight)| ((mean + z * mean.sqrt()).max(0.0), *weight)).collect();
    }
    let reach = 12.0 + 6.0 * mean.sqrt();
    let mut all = Vec::new();
    let mut k = 0.0;
    while k <= mean + reach {
        all.push((k, (k * mean.max(1e-300).ln() - mean - ln_gamma(k + 1.0)).exp()));
        k += 1.0;
    }
    all
}

/// Mean and variance of `term(0, q)` of the values past an extreme of the reference: with θ = n/(n + nᵣ) there are k of them with chance
/// (1 − θ)·θᵏ, whatever the distribution.
pub(super) fn past_an_extreme(n_reference: f64, n: f64, term: impl Fn(f64, f64) -> f64) -> (f64, f64) {
    const PARTS: u32 = 64;
    let theta = (n / (n + n_reference)).min(1.0 - 1e-12);
    let (mut first, mut second) = (0.0, 0.0);
    for part in 0..PARTS {
        let beyond = (f64::from(part) + 0.5) / f64::from(PARTS);
        let k = (beyond.ln() / theta.ln()).floor();
        let value = term(0.0, k / n);
        first += value / f64::from(PARTS);
        second += value * value / f64::from(PARTS);
    }
    (first, (second - first * first).max(0.0))
}

/// Mean and variance of `term(0, q)` of the values in classes that the reference did not have: as many as it had in classes of one
/// row only, for as many rows (Good, Biometrika 40, 1953), those being a matter of chance too.
pub(super) fn of_unseen(singletons: f64, n_reference: f64, n: f64, term: impl Fn(f64, f64) -> f64) -> (f64, f64) {
    let mean = singletons * n / n_reference;
    let deviation = (mean * (1.0 + n / n_reference)).sqrt();
    let (mut first, mut second) = (0.0, 0.0);
    for (z, weight) in NORMAL {
        let value = term(0.0, (mean + z * deviation).max(0.0) / n);
        first += weight * value;
        second += weight * value * value;
    }
    (first, (second - first * first).max(0.0))
}

/// Mean and variance, when nothing has moved, of the sum over cells of `term(p, q)`: `shares` are those of both sides.
pub(super) fn moments(shares: &[f64], n_reference: f64, n: f64, term: impl Fn(f64, f64) -> f64) -> (f64, f64) {
    let (mut mean, mut variance) = (0.0, 0.0);
    let mut before: Option<(f64, f64, f64)> = None;
    for share in shares.iter().filter(|share| **share > 0.0) {
        if let Some((same, m, v)) = before
            && (same - share).abs() <= 1e-9 * share
        {
            mean += m;
            variance += v;
            continue;
        }
        let (mut first, mut second) = (0.0, 0.0);
        let current = counts(share * n);
        for (r, r_chance) in counts(share * n_reference) {
            for (c, c_chance) in &current {
                let value = term(r / n_reference, c / n);
                first += r_chance * c_chance * value;
                second += r_chance * c_chance * value * value;
            }
        }
        let of_cell = (first, (second - first * first).max(0.0));
        mean += of_cell.0;
        variance += of_cell.1;
        before = Some((*share, of_cell.0, of_cell.1));
    }
    // The shares add up to 1, which takes one degree of freedom of as many as there are cells.
    let cells = shares.iter().filter(|share| **share > 0.0).count() as f64;
    let kept = ((cells - 1.0) / cells.max(1.0)).max(0.0);
    (mean * kept, variance * kept)
}
