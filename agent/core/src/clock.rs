//! What time it is, given a clock that may be wrong and a floor that is not.
//!
//! The floor is the latest time that a verified document has proved: it only rises, and it is kept across restarts. A
//! clock behind it has been set back or never been set; expiry is then checked against the floor, which is said
//! openly as [`FreezeProtection::Degraded`].

use muster_shared::messages::FreezeProtection;

/// The latest time known to have passed, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct TimeFloor(u64);

impl TimeFloor {
    /// The floor at `floor_ms`.
    #[must_use]
    pub fn new(floor_ms: u64) -> Self {
        Self(floor_ms)
    }

    /// The floor, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn floor_ms(self) -> u64 {
        self.0
    }

    /// The time to hold documents against: what the clock says, but never before the floor.
    #[must_use]
    pub fn effective_now_ms(self, clock_ms: u64) -> u64 {
        clock_ms.max(self.0)
    }

    /// Whether a document that is out of date can be told.
    #[must_use]
    pub fn protection(self, clock_ms: u64) -> FreezeProtection {
        if clock_ms >= self.0 { FreezeProtection::Full } else { FreezeProtection::Degraded }
    }

    /// The floor after a verified document said it was made at `made_at_ms`. No document can lift the floor past
    /// `bound_ms`, the end of the root document's life: beyond it nothing is valid any more, so a wrong date in one
    /// signed document cannot close the device to every later one.
    #[must_use]
    pub fn raised(self, made_at_ms: u64, bound_ms: u64) -> Self {
        Self(self.0.max(made_at_ms.min(bound_ms.saturating_sub(1))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_clock_set_back_is_noticed_and_does_not_help() {
        let floor = TimeFloor::default().raised(1_000, 5_000);
        assert_eq!(floor.effective_now_ms(10), 1_000);
        assert_eq!(floor.protection(10), FreezeProtection::Degraded);
        assert_eq!(floor.effective_now_ms(2_000), 2_000);
        assert_eq!(floor.protection(1_000), FreezeProtection::Full);
        assert_eq!(floor.raised(9_999, 5_000).floor_ms(), 4_999);
    }

    proptest! {
        #[test]
        fn the_floor_only_rises(start: u64, made_at_ms: u64, bound_ms: u64, clock_ms: u64) {
            let floor = TimeFloor::new(start);
            let raised = floor.raised(made_at_ms, bound_ms);
            prop_assert!(raised >= floor);
            prop_assert!(raised.effective_now_ms(clock_ms) >= floor.effective_now_ms(clock_ms));
        }
    }
}
