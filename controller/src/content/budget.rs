//! How many bytes may be sent: so many per second, and so many at once after a quiet time.

/// A bucket that fills with time and is emptied by sending.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_per_s: u64,
    burst_bytes: u64,
    /// Thousandths of a byte, so that a millisecond's share is a whole number.
    level_millibytes: u64,
    filled_at_ms: u64,
}

impl Budget {
    /// A full bucket.
    pub(crate) fn new(bytes_per_s: u64, burst_bytes: u64, now_ms: u64) -> Self {
        let (bytes_per_s, burst_bytes) = (bytes_per_s.max(1), burst_bytes.max(1));
        Self { bytes_per_s, burst_bytes, level_millibytes: burst_bytes.saturating_mul(1_000), filled_at_ms: now_ms }
    }

    /// Takes `bytes`, or says after how many milliseconds to try again. More than the bucket holds is taken from a
    /// full one, so that nothing waits for ever.
    pub(crate) fn take(&mut self, bytes: u64, now_ms: u64) -> Result<(), u64> {
        let full = self.burst_bytes.saturating_mul(1_000);
        // A clock set back fills nothing and starts counting anew.
        let passed_ms = now_ms.saturating_sub(self.filled_at_ms);
        self.level_millibytes =
            self.level_millibytes.saturating_add(passed_ms.saturating_mul(self.bytes_per_s)).min(full);
        self.filled_at_ms = now_ms;
        let price = bytes.saturating_mul(1_000).min(full);
        if self.level_millibytes >= price {
            self.level_millibytes -= price;
            return Ok(());
        }
        Err((price - self.level_millibytes).div_ceil(self.bytes_per_s).max(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let mut budget = Budget::new(1_000, 500, 0);
        assert_eq!(budget.take(500, 0), Ok(()));
        assert_eq!(budget.take(100, 0), Err(100));
        assert_eq!(budget.take(100, 99), Err(1));
        assert_eq!(budget.take(100, 100), Ok(()));
        // A message larger than the bucket goes out once it is full.
        assert_eq!(budget.take(9_999, 100), Err(500));
        assert_eq!(budget.take(9_999, 600), Ok(()));
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate(
            rate in 1u64..10_000, burst in 1u64..10_000, steps in prop::collection::vec((0u64..500, 1u64..2_000), 1..60)
        ) {
            let mut budget = Budget::new(rate, burst, 0);
            let (mut now, mut sent) = (0, 0);
            for (pause, bytes) in steps {
                now += pause;
                let bytes = bytes.min(burst);
                match budget.take(bytes, now) {
                    Ok(()) => sent += bytes,
                    // Whoever waits as told gets it.
                    Err(wait) => {
                        now += wait;
                        prop_assert_eq!(budget.take(bytes, now), Ok(()));
                        sent += bytes;
                    }
                }
                prop_assert!(sent * 1_000 <= burst * 1_000 + now * rate);
            }
        }
    }
}
