//! Whether what the device was told last still holds.
//!
//! An assignment has an end, and the controller renews it long before. A device that is cut off, or kept from hearing of
//! anything newer, sees it pass: it serves on, as it must, and says so.

/// How long the last assignment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Freshness {
    issued_at_ms: u64,
    expires_ms: Option<u64>,
    /// The end that a restart would know of.
    stored_ms: Option<u64>,
    told: bool,
}

impl Freshness {
    /// What was stored before a restart; none when nothing was, or it cannot be read.
    #[must_use]
    pub fn restored(expires_ms: Option<u64>) -> Self {
        Self { issued_at_ms: 0, expires_ms, stored_ms: expires_ms, told: false }
    }

    /// A verified assignment came that was issued at `issued_at_ms` and holds until `expires_ms`. The one issued last counts, also
    /// when it ends sooner: messages may come late. Gives what is to be stored, when that is worth a write: when it ends
    /// sooner, and at the latest when half of the time has passed that a restart would know of. Then [`Self::stored`] is to be called.
    #[must_use]
    pub fn renewed(&mut self, issued_at_ms: u64, expires_ms: u64, now_ms: u64) -> Option<u64> {
        if issued_at_ms < self.issued_at_ms || self.expires_ms == Some(expires_ms) {
            return None;
        }
        self.issued_at_ms = issued_at_ms;
        self.expires_ms = Some(expires_ms);
        self.told = false;
        let left_ms = |end_ms: u64| end_ms.saturating_sub(now_ms);
        let lasts =
            self.stored_ms.is_some_and(|stored| stored <= expires_ms && left_ms(stored) > left_ms(expires_ms) / 2);
        (!lasts).then_some(expires_ms)
    }

    /// Those who signed assignments so far are trusted no more: whenever the next one was issued, it counts.
    pub fn forget_issue(&mut self) {
        self.issued_at_ms = 0;
    }

    /// `expires_ms` is stored.
    pub fn stored(&mut self, expires_ms: u64) {
        self.stored_ms = Some(expires_ms);
    }

    /// When the last assignment ended, if that has passed, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn stale_since_ms(&self, now_ms: u64) -> Option<u64> {
        self.expires_ms.filter(|expires_ms| *expires_ms <= now_ms)
    }

    /// [`Self::stale_since_ms`], once for each assignment that ends.
    pub fn news(&mut self, now_ms: u64) -> Option<u64> {
        let since_ms = self.stale_since_ms(now_ms).filter(|_| !self.told)?;
        self.told = true;
        Some(since_ms)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_end_that_passes_is_news_once_until_it_is_renewed() {
        let mut freshness = Freshness::default();
        assert_eq!(freshness.news(u64::MAX), None, "a device that was told nothing waits for nothing");
        assert_eq!(freshness.renewed(1, 100, 0), Some(100));
        assert_eq!((freshness.news(99), freshness.stale_since_ms(99)), (None, None));
        assert_eq!(
            (freshness.news(100), freshness.news(101), freshness.stale_since_ms(101)),
            (Some(100), None, Some(100))
        );
        assert_eq!(freshness.renewed(0, 900, 102), None, "one that was issued before");
        assert_eq!(freshness.stale_since_ms(102), Some(100));
        assert_eq!(freshness.renewed(200, 300, 200), Some(300));
        assert_eq!((freshness.stale_since_ms(200), freshness.news(300)), (None, Some(300)));
        // One that ends sooner counts, and what could not be stored is to be stored with the next.
        freshness.stored(300);
        assert_eq!(freshness.renewed(301, 5_000, 301), Some(5_000));
        assert_eq!(freshness.renewed(302, 4_000, 302), Some(4_000));
        freshness.stored(4_000);
        assert_eq!(freshness.renewed(303, 4_100, 303), None);
        assert_eq!(freshness.renewed(304, 3_000, 304), Some(3_000));
        assert_eq!(freshness.stale_since_ms(3_000), Some(3_000));
        // One signed by another counts, whatever date those before had claimed.
        assert_eq!(freshness.renewed(200, 8_000, 305), None);
        freshness.forget_issue();
        assert_eq!(freshness.renewed(200, 8_000, 305), Some(8_000));
        // A restart tells again: nobody knows whether it was heard.
        assert_eq!(Freshness::restored(Some(300)).news(400), Some(300));
        assert_eq!(Freshness::restored(None).news(400), None);
    }

    proptest! {
        /// Renewed at half-time, a restart at any moment knows of an end that has not passed; and writes are few.
        #[test]
        fn a_restart_never_takes_a_renewed_assignment_for_an_ended_one(
            valid_ms in 10u64..1_000, pauses in prop::collection::vec(0u64..500, 1..100)
        ) {
            let mut freshness = Freshness::default();
            let (mut now_ms, mut stored, mut writes) = (0, None, 0u64);
            for pause in pauses {
                now_ms += pause.min(valid_ms / 2);
                if let Some(expires_ms) = freshness.renewed(now_ms, now_ms + valid_ms, now_ms) {
                    freshness.stored(expires_ms);
                    stored = Some(expires_ms);
                    writes += 1;
                }
                prop_assert_eq!(Freshness::restored(stored).stale_since_ms(now_ms), None);
            }
            prop_assert!(writes <= 1 + now_ms / (valid_ms / 2).max(1));
        }
    }
}
