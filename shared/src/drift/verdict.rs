//! From counts to a verdict on one column.
//!
//! Every score gets the value it exceeds by chance with probability α. Whether a column has *drifted* is one decision at level α
//! for all of it: the tests behind it share α among them (Bonferroni, with weights), so that however many scores are looked at, a
//! column that has not moved is called drifted with probability α at most.

use serde::{Deserialize, Serialize};

use super::cells;
use super::distance::{self, js_term, psi_term};
use super::evidence::{ASSUMED_CORRELATION, Draws, Evidence, MIN_DEVICES, Quadratic};
use super::layout::Layout;
use super::proportion::{self, Prior, Proportion};
use super::{small_counts, tail};

/// What decides, beside the counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Criteria {
    /// Chance of calling a column drifted that has not moved.
    pub alpha: f64,
    /// The PSI below which a move is too small to matter, however sure it is.
    pub min_effect: f64,
    /// The change of a share (of missing or unexpected values) below which it is too small to matter.
    pub min_share_effect: f64,
}

impl Default for Criteria {
    fn default() -> Self {
        Self { alpha: 0.01, min_effect: 0.1, min_share_effect: 0.01 }
    }
}

/// A score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Score {
    /// What it is.
    pub value: f64,
    /// What it exceeds by chance with probability α; none where that cannot be told.
    pub critical: Option<f64>,
}

impl Score {
    /// Whether it is larger than chance makes it.
    #[must_use]
    pub fn is_significant(&self) -> bool {
        self.critical.is_some_and(|critical| self.value > critical)
    }
}

/// How the loss to clustering was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Clustering {
    /// Rows are taken to be independent.
    #[default]
    Rows,
    /// One device alone: what is its habit and what has moved cannot be told apart. A correlation is assumed.
    WithinOneDevice,
    /// Too few devices to estimate how they differ. A correlation is assumed.
    FewDevices,
    /// Estimated from the counts of each device, or of random groups of devices.
    Devices,
}

/// Pearson's test for two samples, corrected for clustering.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChiSquare {
    /// Pearson's statistic as for independent rows, over cells put together until each is expected to hold 5 values.
    pub statistic: f64,
    /// Its degrees of freedom for independent rows.
    pub degrees_of_freedom: f64,
    /// What it exceeds by chance with probability α, the loss to clustering considered.
    pub critical: Option<f64>,
    /// The chance of a statistic at least as large when nothing has moved.
    pub p_value: f64,
}

/// How one column's counts differ from its reference.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnVerdict {
    /// Population stability index.
    pub psi: Score,
    /// Jensen–Shannon divergence in bits.
    pub jensen_shannon: Score,
    /// Largest difference of one cell's share.
    pub l_infinity: Score,
    /// Kolmogorov–Smirnov statistic from bins; numbers only.
    pub kolmogorov_smirnov: Option<Score>,
    /// Wasserstein-1 distance from bins over the reference's standard deviation; numbers with a spread only.
    pub wasserstein: Option<Score>,
    /// The test behind it; none with fewer than two occupied cells.
    pub chi_square: Option<ChiSquare>,
    /// Share of rows without a value.
    pub missing: Proportion,
    /// Share of values outside the reference's range, infinite, or in no known class.
    pub unexpected: Proportion,
    /// Rows counted.
    pub n: u64,
    /// Independent rows they are worth.
    pub n_effective: f64,
    /// How the loss was found.
    pub clustering: Clustering,
    /// The chance of evidence this strong when nothing has moved.
    pub p_value: f64,
    /// `p_value` is at most α.
    pub significant: bool,
    /// Some move is large enough to matter.
    pub effect: bool,
    /// What is significant is also large enough to matter.
    pub drifted: bool,
}

/// How much of α each test has: a shape's is shared by its two tests, or all of it goes to the one that classes have.
const SHAPE: f64 = 0.75;
const SHARE: f64 = 0.125;

/// Puts together the tests that share a column's α: each p-value is raised by what share it has.
struct Tests {
    p_value: f64,
    drifted: bool,
    alpha: f64,
}

impl Tests {
    fn take(&mut self, p_value: f64, weight: f64, matters: bool) {
        let raised = (p_value / weight).min(1.0);
        self.p_value = self.p_value.min(raised);
        self.drifted |= matters && raised <= self.alpha;
    }
}

fn clustering(draws: Draws<'_>) -> Clustering {
    let Draws::Devices { counts, .. } = draws else { return Clustering::Rows };
    match counts.iter().filter(|counts| counts.iter().any(|n| *n > 0)).count() {
        0 | 1 => Clustering::WithinOneDevice,
        devices if devices < MIN_DEVICES => Clustering::FewDevices,
        _ => Clustering::Devices,
    }
}

/// What a statistic that is the largest of several weighted sums exceeds by chance, by Bonferroni's bound over them.
fn largest(evidence: &Evidence, sums: &[Vec<f64>], value: f64, alpha: f64) -> (Option<f64>, f64) {
    let deviations: Vec<(f64, f64)> = sums
        .iter()
        .map(|weights| evidence.variance(weights))
        .filter(|(variance, _)| *variance > 0.0)
        .map(|(variance, freedom)| (variance.sqrt(), freedom))
        .collect();
    let tail = |x: f64| deviations.iter().map(|(s, freedom)| tail::two_sided(x / s, *freedom)).sum::<f64>();
    let start = 3.0 * deviations.iter().map(|(s, _)| *s).fold(0.0, f64::max);
    (tail::solve(alpha, start, tail), if value > 0.0 { tail(value).min(1.0) } else { 1.0 })
}

/// Weighted sums that are the distribution function after each cell but the last.
fn cumulated(cells: usize) -> Vec<Vec<f64>> {
    (1..cells).map(|upto| (0..cells).map(|cell| f64::from(u8::from(cell < upto))).collect()).collect()
}

/// The value that the largest difference of a share exceeds with probability `alpha`. Small shares are skewed: upwards, a gamma distribution of the
/// same mean and variance stands in for the normal one where it is the heavier.
fn l_infinity_critical(evidence: &Evidence, alpha: f64) -> Option<f64> {
    let cells = evidence.pooled.len();
    let deviations: Vec<(f64, f64, f64)> = (0..cells)
        .filter(|cell| evidence.pooled[*cell] > 0.0)
        .map(|one| {
            let indicator: Vec<f64> = (0..cells).map(|cell| f64::from(u8::from(cell == one))).collect();
            let (variance, freedom) = evidence.variance(&indicator);
            (evidence.pooled[one], variance, freedom)
        })
        .filter(|(_, variance, _)| *variance > 0.0)
        .collect();
    let tail = |x: f64| {
        let of = |(share, variance, freedom): &(f64, f64, f64)| {
            let down = tail::two_sided(x / variance.sqrt(), *freedom) / 2.0;
            down + down.max(tail::gamma(share + x, *share, *variance))
        };
        deviations.iter().map(of).sum::<f64>()
    };
    let start = 3.0 * deviations.iter().map(|(_, variance, _)| variance.sqrt()).fold(0.0, f64::max);
    tail::solve(alpha, start, tail)
}

/// The value that the Wasserstein distance exceeds with probability `alpha`. By Cauchy and Schwarz, with W = Σ wₖ·sₖ, the sum
/// Σ wₖ·|dₖ| is at most W times the root of Σ (wₖ·sₖ/W)·(dₖ/sₖ)², a quadratic form of mean 1.
fn wasserstein_critical(layout: &Layout, evidence: &Evidence, alpha: f64) -> Option<f64> {
    let edges = &layout.scale()?.edges;
    let sums = cumulated(layout.order().len());
    // Half the widths of the bins to both sides of each edge.
    let width = |at: usize| edges.get(at + 1).zip(edges.get(at)).map_or(0.0, |(upper, lower)| upper - lower);
    let weights = (0..edges.len()).map(|at| (width(at) + at.checked_sub(1).map_or(0.0, width)) / 2.0);
    let parts: Vec<(f64, &Vec<f64>)> = weights
        .zip(sums.get(1..)?)
        .map(|(weight, sum)| (weight * evidence.variance(sum).0.sqrt(), sum))
        .filter(|(part, _)| *part > 0.0)
        .collect();
    let whole: f64 = parts.iter().map(|(part, _)| part).sum();
    let mut square = 0.0;
    for (at, (one, a)) in parts.iter().enumerate() {
        for (other, b) in &parts[..=at] {
            let twice = if std::ptr::eq(*a, *b) { 1.0 } else { 2.0 };
            square += twice * one * other * evidence.correlation(a, b).powi(2) / (whole * whole);
        }
    }
    let first = 1.0 / square;
    let second = evidence.freedom * first;
    let ratio = tail::solve(alpha, 2.0, |x| tail::fisher(x, first, second))?;
    Some(whole * ratio.sqrt())
}

/// Classes with one row in the reference: they say how many it did not have.
fn singletons(layout: &Layout, reference: &[u64]) -> f64 {
    layout.order().iter().filter(|cell| reference.get(**cell) == Some(&1)).count() as f64
}

/// Critical values of PSI and Jensen–Shannon: those of independent rows, with few counts considered, times what clustering adds.
fn divergence_criticals(
    layout: &Layout,
    reference: &[u64],
    all: &Evidence,
    tested: Option<&Quadratic>,
    alpha: f64,
) -> [Option<f64>; 2] {
    let free = all.pooled.iter().filter(|share| **share > 0.0).count() as f64 - 1.0;
    let both = 1.0 / all.n_reference + 1.0 / all.n;
    let clustered = tested.and_then(|quadratic| {
        let independent =
            tail::solve(alpha, free.max(1.0), |x| tail::fisher(x / quadratic.cells, quadratic.cells, f64::INFINITY))?;
        Some(quadratic.critical(alpha)? / (both * independent))
    });
    // Cells that the reference left empty by its making are no cells like others.
    let counted = |cell: usize| reference.get(cell).is_some_and(|n| *n > 0);
    let mut shares = all.pooled.clone();
    let by_making: Vec<usize> = layout.unexpected().iter().copied().filter(|cell| !counted(*cell)).collect();
    by_making.iter().for_each(|cell| shares[*cell] = 0.0);
    let of = |term: fn(f64, f64) -> f64| {
        let (mut mean, mut variance) = small_counts::moments(&shares, all.n_reference, all.n, term);
        let mut add = |(m, v): (f64, f64)| {
            mean += m;
            variance += v;
        };
        if layout.scale().is_none() && !by_making.is_empty() {
            add(small_counts::of_unseen(singletons(layout, reference), all.n_reference, all.n, term));
        } else if !by_making.is_empty() {
            add(small_counts::past_an_extreme(all.n_reference, all.n, term));
            add(small_counts::past_an_extreme(all.n_reference, all.n, term));
        }
        let alone = tail::solve(alpha, mean.max(1e-12), |x| tail::gamma(x, mean, variance))?;
        Some(alone * clustered?.max(1.0))
    };
    [of(psi_term), of(js_term)]
}

/// Scores the counts of one column over the cells of `layout`, and judges. `None` where a side is empty or the lengths differ.
#[must_use]
pub fn judge(
    layout: &Layout,
    reference: &[u64],
    current: &[u64],
    draws: Draws<'_>,
    criteria: &Criteria,
) -> Option<ColumnVerdict> {
    if reference.len() != layout.cells() || current.len() != layout.cells() {
        return None;
    }
    let alpha = criteria.alpha;
    let identity: Vec<Option<usize>> = (0..layout.cells()).map(Some).collect();
    let all = Evidence::new(reference, current, draws, &identity, layout.cells())?;
    let psi = distance::psi(reference, current)?;
    let jensen_shannon = distance::jensen_shannon(reference, current)?;
    let l_infinity = distance::l_infinity(reference, current)?;
    let matters = psi > criteria.min_effect;
    let mut tests = Tests { p_value: 1.0, drifted: false, alpha };

    let (map, cells) = cells::merged(layout, reference, current);
    let tested = Evidence::new(reference, current, draws, &map, cells);
    let quadratic = tested.as_ref().and_then(Evidence::quadratic);
    let shape = if layout.scale().is_some() { SHAPE / 2.0 } else { SHAPE };
    let chi_square = quadratic.as_ref().map(|quadratic| {
        let evidence = tested.as_ref().unwrap_or(&all);
        let pearson = 1.0 / (1.0 / evidence.n_reference + 1.0 / evidence.n);
        let p_value = quadratic.p_value();
        tests.take(p_value, shape, matters);
        ChiSquare {
            statistic: quadratic.statistic * pearson,
            degrees_of_freedom: quadratic.cells,
            critical: quadratic.critical(alpha).map(|critical| critical * pearson),
            p_value,
        }
    });

    // Order has a meaning among values that are there.
    let mut map = vec![None; layout.cells()];
    layout.order().iter().enumerate().for_each(|(at, cell)| map[*cell] = Some(at));
    let ordered = layout
        .scale()
        .and_then(|scale| Some((scale, Evidence::new(reference, current, draws, &map, layout.order().len())?)));
    let kolmogorov_smirnov = ordered.as_ref().and_then(|(_, evidence)| {
        let value = distance::kolmogorov_smirnov(layout, reference, current)?;
        let (critical, p_value) = largest(evidence, &cumulated(layout.order().len()), value, alpha);
        tests.take(p_value, shape, matters);
        Some(Score { value, critical })
    });
    let wasserstein = ordered.as_ref().and_then(|(scale, evidence)| {
        let spread = scale.spread(reference)?;
        let value = distance::wasserstein(layout, reference, current)? / spread;
        let critical = wasserstein_critical(layout, evidence, alpha).map(|critical| critical / spread);
        Some(Score { value, critical })
    });

    let changed = |share: &Proportion| (share.current - share.reference).abs() >= criteria.min_share_effect;
    let missing = proportion::test(reference, current, draws, &[layout.missing()], Prior::Counted)?;
    tests.take(missing.p_value, SHARE, changed(&missing));
    let counted_in_reference = layout.unexpected().iter().any(|cell| reference[*cell] > 0);
    let prior = if layout.scale().is_some() && !counted_in_reference {
        Prior::Exceedance
    } else {
        Prior::Unseen { singletons: singletons(layout, reference) }
    };
    let unexpected = proportion::test(reference, current, draws, layout.unexpected(), prior)?;
    tests.take(unexpected.p_value, SHARE, changed(&unexpected));

    let [psi_critical, js_critical] = divergence_criticals(layout, reference, &all, quadratic.as_ref(), alpha);
    let l_critical = l_infinity_critical(&all, alpha);
    let n_effective = quadratic.as_ref().map_or(all.n, |quadratic| {
        let each = quadratic.mean / quadratic.cells - 1.0 / all.n_reference;
        if each > 0.0 { (1.0 / each).min(all.n) } else { all.n }
    });
    Some(ColumnVerdict {
        psi: Score { value: psi, critical: psi_critical },
        jensen_shannon: Score { value: jensen_shannon, critical: js_critical },
        l_infinity: Score { value: l_infinity, critical: l_critical },
        kolmogorov_smirnov,
        wasserstein,
        chi_square,
        missing,
        unexpected,
        n: current.iter().fold(0, |sum: u64, n| sum.saturating_add(*n)),
        n_effective,
        clustering: clustering(draws),
        p_value: tests.p_value,
        significant: tests.p_value <= alpha,
        effect: matters || changed(&missing) || changed(&unexpected),
        drifted: tests.drifted,
    })
}

/// How devices draw, with the correlation that is assumed where it cannot be estimated.
#[must_use]
pub fn by_devices(counts: &[Vec<u64>]) -> Draws<'_> {
    Draws::Devices { counts, assumed_correlation: ASSUMED_CORRELATION }
}

/// The p-values' false discovery rates (Benjamini and Hochberg, Journal of the Royal Statistical Society B 57(1), 1995), in the same order: calling
/// everything up to some rate a drift, that share of the calls is expected to be false.
#[must_use]
pub fn false_discovery_rates(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*b].total_cmp(&p_values[*a]));
    let mut rates = vec![1.0; p_values.len()];
    let mut least: f64 = 1.0;
    for (from_last, at) in order.into_iter().enumerate() {
        let rank = (p_values.len() - from_last) as f64;
        least = least.min(p_values[at] * p_values.len() as f64 / rank);
        rates[at] = least;
    }
    rates
}
