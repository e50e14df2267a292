//! Whether a share has changed: of missing values, of unexpected ones.

use super::evidence::{Draws, Evidence};
use super::tail;

/// Counts past which a hypergeometric sum is left to the normal distribution.
const MANY: f64 = 1e9;

/// What is known of the reference's share beforehand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Prior {
    /// It was counted like the current one.
    Counted,
    /// The cell lies past the extremes of the reference itself, so that none of it could fall there: how many values go past
    /// the extremes of earlier ones follows from their order alone, whatever the distribution (Gumbel and von Schelling, Annals of
    /// Mathematical Statistics 21(2), 1950).
    Exceedance,
    /// Classes that the reference did not have: those it had once say how many more there are (Good, Biometrika 40, 1953).
    Unseen {
        /// Classes with one row in the reference.
        singletons: f64,
    },
}

/// A share on both sides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Proportion {
    /// Of the reference.
    pub reference: f64,
    /// Of the current side.
    pub current: f64,
    /// The chance of a difference at least as large when nothing has changed.
    pub p_value: f64,
    /// How many independent values the current ones are worth.
    pub n_effective: f64,
}

/// Tests the share of `cells`. `None` where a side is empty.
pub(super) fn test(
    reference: &[u64],
    current: &[u64],
    draws: Draws<'_>,
    cells: &[usize],
    prior: Prior,
) -> Option<Proportion> {
    let length = reference.len().max(current.len());
    let map: Vec<Option<usize>> = (0..length).map(|cell| Some(usize::from(cells.contains(&cell)))).collect();
    let evidence = Evidence::new(reference, current, draws, &map, 2)?;
    let (p, q) = (evidence.reference[1], evidence.current[1]);
    let shares = |p_value: f64, n_effective: f64| {
        Some(Proportion { reference: p, current: q, p_value: p_value.clamp(0.0, 1.0), n_effective })
    };
    if q <= 0.0 && p <= 0.0 {
        return shares(1.0, evidence.n);
    }
    // By how much the habits of devices swell the variance says what their counts are worth.
    let (variance, freedom) = evidence.variance(&[0.0, 1.0]);
    let row = evidence.pooled[1] * (1.0 - evidence.pooled[1]);
    if row <= 0.0 {
        return shares(1.0, evidence.n);
    }
    let n_r = evidence.n_reference;
    let worth = (row / (variance - row / n_r).max(row / evidence.n)).clamp(1.0, evidence.n);
    let (marked_r, marked) = (p * n_r, q * worth);
    let exact = match prior {
        _ if n_r + worth > MANY => 0.0,
        Prior::Exceedance => {
            // At least k values past the extremes: among the first k + 1 of all, at most one is of the reference.
            let k = marked.floor();
            tail::hypergeometric(1.0, n_r + worth, n_r, k + 1.0).1
        }
        Prior::Counted | Prior::Unseen { .. } => {
            let seen = if let Prior::Unseen { singletons } = prior { marked_r.max(singletons) } else { marked_r };
            let (above, below) = tail::hypergeometric(marked.floor(), n_r + worth, seen + marked.floor(), worth);
            2.0 * if matches!(prior, Prior::Unseen { .. }) { above } else { above.min(below) }
        }
    };
    let normal = if variance > 0.0 { tail::two_sided((q - p) / variance.sqrt(), freedom) } else { 1.0 };
    shares(exact.max(normal), worth)
}
