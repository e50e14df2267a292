//! Which of many tests count when the share of false ones among those that count is to be limited.

/// Which of `p_values` are discoveries at the false-discovery rate `rate` (Benjamini and Hochberg, Journal of the Royal Statistical
/// Society B 57, 1995): with p₍₁₎ ≤ … ≤ p₍ₘ₎, all up to the largest k with p₍ₖ₎ ≤ k·rate/m. The expected share of false
/// discoveries is at most `rate` where tests are independent or positively dependent (Benjamini and Yekutieli, Annals of
/// Statistics 29, 2001), as columns of one request are. What is no number between 0 and 1 is no discovery, and counts as a test.
#[must_use]
pub fn discoveries(p_values: &[f64], rate: f64) -> Vec<bool> {
    let usable = |p: f64| (0.0..=1.0).contains(&p);
    let mut sorted: Vec<f64> = p_values.iter().copied().filter(|p| usable(*p)).collect();
    sorted.sort_by(f64::total_cmp);
    let tests = p_values.len() as f64;
    let limit = sorted.iter().zip(1_u32..).filter(|(p, rank)| **p <= f64::from(*rank) * rate / tests).last();
    let limit = limit.map(|(p, _)| *p);
    p_values.iter().map(|p| usable(*p) && limit.is_some_and(|limit| *p <= limit)).collect()
}
