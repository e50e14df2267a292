//! What time it is, given a clock that may be wrong and a floor that is not.
//!
//! The floor is the latest time that a verified document has proved: it only rises, and it is kept across restarts. A
//! clock behind it has been set back or never been set; expiry is then checked against the floor, which is said
//! openly as [`FreezeProtection::Degraded`].

use muster_shared::messages::FreezeProtection;

use crate::renewal::Validity;

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

/// The time to hold a server's certificate against, from the clock, the floor and the device's own certificate.
///
/// A clock is believed from the beginning of the device's own certificate on. Before, it was never set, and the floor says more;
/// but not past the end of that certificate, so that a false date in an assignment cannot keep the device from hearing that
/// its signer is trusted no more.
#[must_use]
pub fn certificate_time_ms(clock_ms: u64, floor: TimeFloor, own: Option<Validity>) -> u64 {
    match own {
        None => floor.effective_now_ms(clock_ms),
        Some(own) if clock_ms >= own.not_before_ms => clock_ms,
        Some(own) => floor.0.min(own.not_after_ms.saturating_sub(1)).max(own.not_before_ms),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_server_is_believed_by_a_clock_that_was_set_and_by_no_date_far_ahead() {
        let own = Some(Validity { not_before_ms: 100, not_after_ms: 200 });
        let far = TimeFloor::new(9_000);
        assert_eq!(certificate_time_ms(150, far, own), 150);
        assert_eq!(certificate_time_ms(0, far, own), 199);
        assert_eq!(certificate_time_ms(0, TimeFloor::new(160), own), 160);
        assert_eq!(certificate_time_ms(0, TimeFloor::default(), own), 100);
        assert_eq!(certificate_time_ms(5_000, TimeFloor::default(), own), 5_000);
        assert_eq!(certificate_time_ms(7, TimeFloor::default(), None), 7);
    }

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
