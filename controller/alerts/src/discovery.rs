//! Which of many tests count when the share of false ones among those that count is to be limited.

use muster_shared::drift::false_discovery_rates;

/// Which of `p_values` are discoveries at the false-discovery rate `rate` (Benjamini and Hochberg, Journal of the Royal Statistical
/// Society B 57, 1995): with p₍₁₎ ≤ … ≤ p₍ₘ₎, all up to the largest k with p₍ₖ₎ ≤ k·rate/m. The expected share of false
/// discoveries is at most `rate` where tests are independent or positively dependent (Benjamini and Yekutieli, Annals of
/// Statistics 29, 2001), as columns of one request are. What is no number between 0 and 1 is no discovery, and counts as a test.
#[must_use]
pub fn discoveries(p_values: &[f64], rate: f64) -> Vec<bool> {
    let usable = |p: f64| (0.0..=1.0).contains(&p);
    let tested: Vec<f64> = p_values.iter().map(|p| if usable(*p) { *p } else { 1.0 }).collect();
    let rates = false_discovery_rates(&tested);
    p_values.iter().zip(rates).map(|(p, least)| usable(*p) && least <= rate).collect()
}
