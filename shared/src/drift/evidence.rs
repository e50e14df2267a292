//! What two vectors of counts prove: how much the current side's shares would differ by chance alone.
//!
//! The reference is a sample of independent rows. The current side is either that too, or the sum of devices (or of random
//! groups of them), which have habits of their own: then every variance is estimated from how their shares differ, as
//! survey statistics does for clusters (Rao and Scott, Annals of Statistics 12(1), 1984; Wolter, Introduction to Variance
//! Estimation, 2007), with no assumption on how habits are made. Few devices say little about that, so Student's and Fisher's
//! distributions stand in for the normal and χ².

use super::tail;

/// Devices from which their habits can be estimated. Below, a correlation is assumed.
pub const MIN_DEVICES: usize = 5;
/// Intra-device correlation assumed where it cannot be estimated.
pub const ASSUMED_CORRELATION: f64 = 0.05;

/// How the current side was drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Draws<'a> {
    /// Each row on its own.
    Rows,
    /// By devices, or random groups of devices: the counts of each.
    Devices {
        /// One vector of cells each.
        counts: &'a [Vec<u64>],
        /// Intra-device correlation to assume below [`MIN_DEVICES`].
        assumed_correlation: f64,
    },
}

/// How the shares of the current side vary.
#[derive(Debug, Clone)]
enum Variation {
    /// As those of independent rows, times a design effect.
    Model {
        design_effect: f64,
        /// Correlation of the rows of a device.
        correlation: f64,
    },
    /// As measured: counts of each cluster less what its size would give, and what makes their products variances.
    Measured { residuals: Vec<Vec<f64>>, scale: f64 },
}

/// Counts of both sides over cells that matter, and how the current shares vary.
#[derive(Debug, Clone)]
pub(super) struct Evidence {
    /// Shares of the reference.
    pub(super) reference: Vec<f64>,
    /// Shares of the current side.
    pub(super) current: Vec<f64>,
    /// Shares of both together.
    pub(super) pooled: Vec<f64>,
    /// Rows of the reference.
    pub(super) n_reference: f64,
    /// Rows of the current side.
    pub(super) n: f64,
    /// Degrees of freedom of the measured variation; infinite where it is assumed.
    pub(super) freedom: f64,
    variation: Variation,
}

/// A statistic's distribution when nothing has moved: `mean` times Fisher's F.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quadratic {
    /// Σ (qᵢ − pᵢ)² / πᵢ as observed.
    pub(super) statistic: f64,
    /// Occupied cells less one.
    pub(super) cells: f64,
    /// Its expectation.
    pub(super) mean: f64,
    /// Degrees of freedom of the statistic.
    pub(super) first: f64,
    /// Degrees of freedom of the expectation's estimate.
    pub(super) second: f64,
}

fn sum_by(counts: &[u64], map: &[Option<usize>], cells: usize) -> Vec<f64> {
    let mut sums = vec![0.0; cells];
    for (count, to) in counts.iter().zip(map) {
        if let Some(sum) = to.and_then(|to| sums.get_mut(to)) {
            *sum += *count as f64;
        }
    }
    sums
}

fn over(counts: &[f64], n: f64) -> Vec<f64> {
    counts.iter().map(|count| count / n).collect()
}

impl Evidence {
    /// Over `cells` cells; cell `i` of the counts goes into `map[i]`, or nowhere. `None` where a side is empty.
    pub(super) fn new(
        reference: &[u64],
        current: &[u64],
        draws: Draws<'_>,
        map: &[Option<usize>],
        cells: usize,
    ) -> Option<Self> {
        let (r, c) = (sum_by(reference, map, cells), sum_by(current, map, cells));
        let (n_reference, n) = (r.iter().sum::<f64>(), c.iter().sum::<f64>());
        if n_reference <= 0.0 || n <= 0.0 {
            return None;
        }
        let pooled = r.iter().zip(&c).map(|(r, c)| (r + c) / (n_reference + n)).collect();
        let (reference, current) = (over(&r, n_reference), over(&c, n));
        let (variation, freedom) = match draws {
            Draws::Rows => (Variation::Model { design_effect: 1.0, correlation: 0.0 }, f64::INFINITY),
            Draws::Devices { counts, assumed_correlation } => {
                let clusters: Vec<Vec<f64>> = counts
                    .iter()
                    .map(|counts| sum_by(counts, map, cells))
                    .filter(|counts| counts.iter().any(|n| *n > 0.0))
                    .collect();
                variation(clusters, &current, n, assumed_correlation)
            }
        };
        Some(Self { reference, current, pooled, n_reference, n, freedom, variation })
    }

    /// The current side alone, over its own cells: its variances are those of its shares. `None` where it is empty.
    pub(super) fn alone(current: &[u64], draws: Draws<'_>) -> Option<Self> {
        let map: Vec<Option<usize>> = (0..current.len()).map(Some).collect();
        let evidence = Self::new(current, current, draws, &map, current.len())?;
        Some(Self { n_reference: f64::INFINITY, ..evidence })
    }

    /// The covariance of the weighted sums `a` and `b` of the current shares, as far as it was measured.
    fn measured(&self, a: &[f64], b: &[f64]) -> Option<f64> {
        let Variation::Measured { residuals, scale } = &self.variation else { return None };
        let dot = |weights: &[f64], residual: &[f64]| weights.iter().zip(residual).map(|(w, e)| w * e).sum::<f64>();
        Some(scale * residuals.iter().map(|residual| dot(a, residual) * dot(b, residual)).sum::<f64>())
    }

    /// The same of one independent row.
    fn of_one_row(&self, a: &[f64], b: &[f64]) -> f64 {
        let mean = |weights: &[f64]| weights.iter().zip(&self.pooled).map(|(w, p)| w * p).sum::<f64>();
        let both: f64 = a.iter().zip(b).zip(&self.pooled).map(|((a, b), p)| a * b * p).sum();
        both - mean(a) * mean(b)
    }

    fn design_effect_assumed(&self) -> f64 {
        match self.variation {
            Variation::Model { design_effect, .. } => design_effect,
            Variation::Measured { .. } => 1.0,
        }
    }

    /// The variance of the weighted sum of (current − reference) shares, and its degrees of freedom. The current side varies at least
    /// as independent rows do.
    pub(super) fn variance(&self, weights: &[f64]) -> (f64, f64) {
        let row = self.of_one_row(weights, weights).max(0.0);
        let least = self.design_effect_assumed() * row / self.n;
        let measured = self.measured(weights, weights).unwrap_or(0.0).max(least);
        let whole = measured + row / self.n_reference;
        // Satterthwaite, Biometrics Bulletin 2(6), 1946: only the measured part is uncertain.
        let freedom = if measured > 0.0 { self.freedom * (whole / measured).powi(2) } else { self.freedom };
        (whole, freedom)
    }

    /// The correlation of two weighted sums of (current − reference) shares.
    pub(super) fn correlation(&self, a: &[f64], b: &[f64]) -> f64 {
        let covariance = |a: &[f64], b: &[f64]| {
            let row = self.of_one_row(a, b);
            self.measured(a, b).unwrap_or_else(|| self.design_effect_assumed() * row / self.n) + row / self.n_reference
        };
        let whole = (covariance(a, a) * covariance(b, b)).sqrt();
        if whole > 0.0 { (covariance(a, b) / whole).clamp(-1.0, 1.0) } else { 0.0 }
    }

    /// Pearson's statistic for two samples and what it is by chance, the first two moments of which are matched (Rao and Scott's
    /// second-order correction). `None` below two occupied cells.
    pub(super) fn quadratic(&self) -> Option<Quadratic> {
        let occupied: Vec<usize> = (0..self.pooled.len()).filter(|cell| self.pooled[*cell] > 0.0).collect();
        let free = occupied.len().checked_sub(1).filter(|free| *free > 0)? as f64;
        let statistic = occupied
            .iter()
            .map(|cell| (self.current[*cell] - self.reference[*cell]).powi(2) / self.pooled[*cell])
            .sum();
        // The trace of the current side's covariance in units of the pooled shares, and that of its square.
        let (trace, square) = match &self.variation {
            Variation::Model { design_effect, correlation } => {
                let each = design_effect / self.n;
                // Shares that differ between devices as a Dirichlet distribution has it are not normal where they are small: a
                // cell's squared deviation varies by 6/a more than 2, a = p·(1 − ρ)/ρ.
                let odds = correlation / (1.0 - correlation).max(1e-6);
                let heavier: f64 = occupied.iter().map(|cell| 3.0 * odds / self.pooled[*cell]).sum();
                (free * each, (free + heavier) * each * each)
            }
            Variation::Measured { residuals, scale } => {
                let rows: Vec<Vec<f64>> = residuals
                    .iter()
                    .map(|row| occupied.iter().map(|cell| row[*cell] / self.pooled[*cell].sqrt()).collect())
                    .collect();
                let (trace, square) = moments_of_product(&rows);
                let (trace, square) = (trace * scale, square * scale * scale);
                let lift = if trace > 0.0 { (free / self.n / trace).max(1.0) } else { 1.0 };
                (trace * lift, square * lift * lift)
            }
        };
        let mean = free / self.n_reference + trace;
        let whole = free / self.n_reference.powi(2) + 2.0 * trace / self.n_reference + square;
        let positive = |x: f64| Some(x).filter(|x| *x > 0.0 && x.is_finite());
        let first = mean * mean / positive(whole)?;
        let second = positive(square).map_or(f64::INFINITY, |square| self.freedom * mean * mean / square);
        Some(Quadratic { statistic, cells: free, mean: positive(mean)?, first, second })
    }
}

/// tr(A) and tr(A²) of A = Σ rowᵀ·row, by way of whichever side is shorter.
fn moments_of_product(rows: &[Vec<f64>]) -> (f64, f64) {
    let width = rows.first().map_or(0, Vec::len);
    let trace = rows.iter().flatten().map(|x| x * x).sum();
    let mut square = 0.0;
    if rows.len() <= width {
        for (at, a) in rows.iter().enumerate() {
            for b in &rows[..=at] {
                let dot: f64 = a.iter().zip(b).map(|(x, y)| x * y).sum();
                square += if std::ptr::eq(a, b) { 1.0 } else { 2.0 } * dot * dot;
            }
        }
        return (trace, square);
    }
    let mut product = vec![0.0; width * width];
    for row in rows {
        for (x, line) in row.iter().zip(product.chunks_exact_mut(width)) {
            if *x != 0.0 {
                line.iter_mut().zip(row).for_each(|(sum, y)| *sum += x * y);
            }
        }
    }
    square += product.iter().map(|x| x * x).sum::<f64>();
    (trace, square)
}

fn variation(clusters: Vec<Vec<f64>>, current: &[f64], n: f64, assumed_correlation: f64) -> (Variation, f64) {
    let sizes: Vec<f64> = clusters.iter().map(|counts| counts.iter().sum()).collect();
    let power = |exponent: i32| sizes.iter().map(|size| (size / n).powi(exponent)).sum::<f64>();
    let (second, third) = (power(2), power(3));
    if clusters.len() < MIN_DEVICES {
        let correlation = assumed_correlation.clamp(0.0, 1.0);
        let design_effect = 1.0 + (n * second - 1.0).max(0.0) * correlation;
        return (Variation::Model { design_effect, correlation }, f64::INFINITY);
    }
    // What of a cluster's variance its residual keeps, with independent rows and with clusters that are all habit: large
    // clusters draw the mean towards themselves.
    let kept = (1.0 - second).min(1.0 - 2.0 * third / second + second).max(1e-6);
    let residuals = clusters
        .into_iter()
        .zip(&sizes)
        .map(|(counts, size)| counts.iter().zip(current).map(|(count, share)| count - size * share).collect())
        .collect();
    let freedom = (1.0 / second - 1.0).max(0.05);
    (Variation::Measured { residuals, scale: 1.0 / (kept * n * n) }, freedom)
}

impl Quadratic {
    /// The chance of a statistic at least as large.
    pub(super) fn p_value(&self) -> f64 {
        tail::fisher(self.statistic / self.mean, self.first, self.second)
    }

    /// The statistic that is exceeded with probability `alpha`.
    pub(super) fn critical(&self, alpha: f64) -> Option<f64> {
        let ratio = tail::solve(alpha, 2.0, |x| tail::fisher(x, self.first, self.second))?;
        Some(ratio * self.mean)
    }
}
