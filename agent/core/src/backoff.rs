//! Pauses between attempts: they double up to a limit, and jitter spreads a fleet out.

/// How long pauses are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pauses {
    /// The first one, in milliseconds.
    pub first_ms: u64,
    /// The longest one, in milliseconds.
    pub longest_ms: u64,
}

/// Counts attempts that failed in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pauses: Pauses,
    failures: u32,
}

impl Backoff {
    /// No failure so far.
    #[must_use]
    pub fn new(pauses: Pauses) -> Self {
        Self { pauses, failures: 0 }
    }

    /// The pause after one more failure, in milliseconds: half of it fixed, and of the other half as many thousandths
    /// as `jitter` says, which is a random number up to 1,000.
    pub fn failed(&mut self, jitter: u16) -> u64 {
        let doubled = self.pauses.first_ms.saturating_mul(1u64.checked_shl(self.failures).unwrap_or(u64::MAX));
        self.failures = self.failures.saturating_add(1).min(63);
        let pause = doubled.min(self.pauses.longest_ms);
        let half = pause / 2;
        half + ((pause - half) / 1_000).saturating_mul(u64::from(jitter.min(1_000)))
            + (pause - half) % 1_000 * u64::from(jitter.min(1_000)) / 1_000
    }

    /// It worked: the next pause is the first one again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// The pause after something that did good for `lasted_ms` milliseconds and then failed: as after one more failure, but not
    /// longer than it lasted. So whoever is cut off every few seconds is at work half of the time.
    pub fn cut_off(&mut self, lasted_ms: u64, jitter: u16) -> u64 {
        self.failures = self.failures.min(self.doublings(lasted_ms));
        self.failed(jitter)
    }

    /// How often the first pause can be doubled before it is longer than `most_ms`.
    fn doublings(self, most_ms: u64) -> u32 {
        (most_ms / self.pauses.first_ms.max(1)).checked_ilog2().unwrap_or(0)
    }

    /// Attempts that failed in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_anew() {
        let mut backoff = Backoff::new(Pauses { first_ms: 100, longest_ms: 1_000 });
        let pauses: Vec<u64> = (0..6).map(|_| backoff.failed(1_000)).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(backoff.failed(0), 500);
        backoff.succeeded();
        assert_eq!((backoff.failed(500), backoff.failures()), (75, 1));
    }

    #[test]
    fn who_is_cut_off_at_work_is_soon_back() {
        let mut backoff = Backoff::new(Pauses { first_ms: 500, longest_ms: 60_000 });
        (0..20).for_each(|_| _ = backoff.failed(1_000));
        assert_eq!(backoff.cut_off(3_000, 1_000), 2_000);
        assert_eq!(backoff.cut_off(3_000, 1_000), 2_000, "and stays so");
        assert_eq!(backoff.cut_off(0, 1_000), 500);
        assert_eq!(backoff.cut_off(1_000_000, 1_000), 1_000, "a long life does not lengthen the pause by itself");
        assert_eq!(backoff.failed(1_000), 2_000);
    }

    proptest! {
        #[test]
        fn a_pause_is_never_longer_than_the_longest(first_ms: u64, longest_ms: u64, jitter: u16, failures in 0usize..200) {
            let mut backoff = Backoff::new(Pauses { first_ms, longest_ms });
            for _ in 0..failures {
                prop_assert!(backoff.failed(jitter) <= longest_ms);
            }
        }
    }
}
