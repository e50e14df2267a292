//! How long to wait before asking again: doubling, bounded, and by chance, so that many programs do not come back together.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// The first pause at most.
const FIRST: Duration = Duration::from_millis(200);
/// No pause is longer.
const LONGEST: Duration = Duration::from_secs(10);

/// The pause after so many attempts (from 1), for a `chance` from 0 to 1: between half and all of what doubling gives.
#[must_use]
pub fn pause(attempt: u32, chance: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    let whole = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    whole.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
}

/// A number from 0 to 1, other ones in each program and each time: the standard library seeds its hashes from the system.
#[must_use]
pub fn chance() -> f64 {
    let bits = RandomState::new().hash_one(0u8);
    f64::from(u32::try_from(bits >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_stay_within_bounds() {
        let at_most = |attempt| pause(attempt, 1.0).as_millis();
        assert_eq!([1, 2, 3, 7, 40, u32::MAX].map(at_most), [200, 400, 800, 10_000, 10_000, 10_000]);
        assert_eq!(pause(1, 0.0).as_millis(), 100);
        for chance in [chance(), -1.0, 2.0] {
            let pause = pause(3, chance).as_millis();
            assert!((400..=800).contains(&pause), "{pause}");
        }
    }
}
