//! Tails of the distributions that decide, and where they reach a given chance.

use statrs::distribution::{ChiSquared, ContinuousCDF as _, FisherSnedecor, StudentsT};
use statrs::function::erf::erfc;
use statrs::function::gamma::ln_gamma;

/// Degrees of freedom past which Student's, Fisher's and the χ² distribution are taken for their limits.
const MANY: f64 = 1e5;

/// P(|Z| > z) for Student's t with `freedom` degrees of freedom, the normal distribution where they are infinite.
pub(super) fn two_sided(z: f64, freedom: f64) -> f64 {
    if freedom > MANY {
        return erfc(z.abs() / std::f64::consts::SQRT_2);
    }
    StudentsT::new(0.0, 1.0, freedom.max(0.05)).map_or(1.0, |t| (2.0 * t.sf(z.abs())).min(1.0))
}

/// P(X > x) for χ² with `freedom` degrees of freedom. Past [`MANY`] of them its cube root is taken for normal (Wilson and Hilferty, PNAS 17, 1931):
/// the series of the exact value has as many terms as the root of the degrees of freedom, and devices may claim counts that make them 1e33.
fn chi_squared(x: f64, freedom: f64) -> f64 {
    if freedom > MANY {
        let variance = 2.0 / (9.0 * freedom);
        let z = (((x / freedom).ln() / 3.0).exp_m1() + variance) / variance.sqrt();
        return erfc(z / std::f64::consts::SQRT_2) / 2.0;
    }
    ChiSquared::new(freedom).map_or(1.0, |chi| chi.sf(x))
}

/// P(F > x) for Fisher's F, χ²/ν where the second degrees of freedom are infinite.
pub(super) fn fisher(x: f64, first: f64, second: f64) -> f64 {
    if x <= 0.0 {
        return 1.0;
    }
    let first = first.max(0.05);
    if second > MANY {
        return chi_squared(x * first, first);
    }
    FisherSnedecor::new(first, second.max(0.05)).map_or(1.0, |f| f.sf(x))
}

/// P(X > x) for the gamma distribution with this mean and variance.
pub(super) fn gamma(x: f64, mean: f64, variance: f64) -> f64 {
    if mean <= 0.0 || variance <= 0.0 {
        return 0.0;
    }
    chi_squared(2.0 * x * mean / variance, 2.0 * mean * mean / variance)
}

/// Where the falling `tail` reaches `alpha`, to one part in a million; `None` when that is not between 0 and 1e12.
pub(super) fn solve(alpha: f64, start: f64, tail: impl Fn(f64) -> f64) -> Option<f64> {
    if !(alpha > 0.0 && alpha < 1.0 && start > 0.0 && start.is_finite()) {
        return None;
    }
    let gap = |x: f64| {
        let chance = tail(x);
        // Counts past what numbers can hold give none: nothing is beyond chance then.
        if chance.is_nan() { -alpha.ln() } else { chance.max(1e-300).ln() - alpha.ln() }
    };
    let (mut low, mut high) = (0.0, start);
    let (mut at_low, mut at_high) = (-alpha.ln(), gap(start));
    while at_high > 0.0 {
        (low, at_low) = (high, at_high);
        high *= 2.0;
        if high > 1e12 {
            return None;
        }
        at_high = gap(high);
    }
    // The Illinois variant of the false position: an end that stays twice loses half of its weight.
    let mut stayed = 0;
    for _ in 0..100 {
        if high - low <= 1e-6 * high {
            break;
        }
        let middle = (low * at_high - high * at_low) / (at_high - at_low);
        let middle = if middle > low && middle < high { middle } else { f64::midpoint(low, high) };
        let at_middle = gap(middle);
        if at_middle > 0.0 {
            (low, at_low) = (middle, at_middle);
            if stayed == 1 {
                at_high /= 2.0;
            }
            stayed = 1;
        } else {
            (high, at_high) = (middle, at_middle);
            if stayed == -1 {
                at_low /= 2.0;
            }
            stayed = -1;
        }
        if at_middle.abs() < 1e-7 {
            return Some(middle);
        }
    }
    Some(high)
}

fn ln_choose(n: f64, k: f64) -> f64 {
    ln_gamma(n + 1.0) - ln_gamma(k + 1.0) - ln_gamma(n - k + 1.0)
}

/// P(X ≥ x) and P(X ≤ x) of the hypergeometric distribution: `draws` without replacement from `all`, of which `marked` count.
/// Counts need not be whole: they are rounded.
pub(super) fn hypergeometric(x: f64, all: f64, marked: f64, draws: f64) -> (f64, f64) {
    let (x, all, marked, draws) = (x.round(), all.round(), marked.round(), draws.round());
    let (least, greatest) = ((draws + marked - all).max(0.0), draws.min(marked));
    if x < least || x > greatest || greatest - least < 0.5 {
        return (f64::from(u8::from(x <= least)), f64::from(u8::from(x >= greatest)));
    }
    let at = (ln_choose(marked, x) + ln_choose(all - marked, draws - x) - ln_choose(all, draws)).exp();
    // From x outwards each term follows from the one before.
    let sum = |mut from: f64, step: f64| {
        let (mut term, mut sum) = (at, 0.0);
        for _ in 0..100_000 {
            let ratio = if step > 0.0 {
                (marked - from) * (draws - from) / ((from + 1.0) * (all - marked - draws + from + 1.0))
            } else {
                from * (all - marked - draws + from) / ((marked - from + 1.0) * (draws - from + 1.0))
            };
            term *= ratio;
            from += step;
            sum += term;
            if !(from > least && from < greatest) || term < 1e-18 * (sum + at) {
                break;
            }
        }
        sum
    };
    let above = if x < greatest { sum(x, 1.0) } else { 0.0 };
    let below = if x > least { sum(x, -1.0) } else { 0.0 };
    ((at + above).min(1.0), (at + below).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values by scipy 1.17.1.
    #[test]
    fn tails_are_the_published_ones() {
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} {b}");
        close(fisher(3.2, 4.5, 21.0), 0.029_743_663_457_816_14);
        close(two_sided(-2.5, 7.0), 0.040_992_218_585_752_89);
        close(two_sided(2.575_829_3, f64::INFINITY), 0.010_000_000_102_632_378);
        close(gamma(3.1, 2.0, 2.5), 0.196_397_674_481_903_2);
        close(solve(0.01, 1.0, |x| fisher(x, 4.5, 21.0)).unwrap(), 4.189_878_329_201_353);
        close(solve(0.01, 1e4, |x| fisher(x, 4.5, 21.0)).unwrap(), 4.189_878_329_201_353);
        let nearly = |a: f64, b: f64| assert!((a - b).abs() <= 3e-5 * b, "{a} {b}");
        let sigma = 2.0f64.sqrt();
        nearly(chi_squared(2e5 + sigma * 2e5f64.sqrt(), 2e5), 0.158_654_851_551_675_1);
        nearly(chi_squared(2e5 + 4.0 * sigma * 2e5f64.sqrt(), 2e5), 3.383_811_638_688_205_6e-5);
        nearly(chi_squared(2e9 - 2.0 * sigma * 2e9f64.sqrt(), 2e9), 0.977_251_575_423_048_5);
        let (above, below) = hypergeometric(7.0, 100.0, 30.0, 12.0);
        close(above, 0.029_383_908_522_211_948);
        close(below, 0.994_072_700_496_848_1);
        let (above, below) = hypergeometric(40.0, 2_000.0, 1_000.0, 50.0);
        close(above, 9.504_737_471_649_534e-6);
        close(below, 0.999_997_831_762_417_5);
        assert_eq!(hypergeometric(0.0, 10.0, 0.0, 5.0), (1.0, 1.0));
        // A spread of 1e-17 about a mean of 0.5, as counts that nobody can have had give it, is answered at once.
        assert!(gamma(0.6, 0.5, 1e-34) < 1e-300);
        close(gamma(0.4, 0.5, 1e-34), 1.0);
        assert_eq!(solve(2.0, 1.0, |_| 0.5), None);
        assert_eq!(solve(0.01, 1.0, |_| 0.5), None);
    }
}
