//! When a device renews its certificate: at two thirds of its life, by whatever can be known of the time.
//!
//! A board may have no clock before the network sets it, or a wrong one. Two things are certain all the same: a certificate was
//! given out after its beginning, and time has passed since then at least as long as this process has watched it. So a
//! clock before the certificate's beginning is not believed, and the certificate just renewed is not renewed again by a clock
//! that takes it for nearly over already, nor by a time that documents had proved before it came: whoever holds the director's key can
//! date them ahead, as far as the root document lasts. A time that is proved later does count, once; such a thief gets one renewal for
//! each date that reaches its device, which is less than the controller can ask for. A process that starts with a clock it cannot believe cannot know how old its
//! certificate is; it renews once, soon, and then knows.

use crate::backoff::{Backoff, Pauses};

/// The longest pause before a device without a clock renews at its start, in milliseconds. The network may set the clock meanwhile.
const BLIND_MS: u64 = 120_000;
/// Renewals that the controller asks for come no sooner after each other, in milliseconds, or after a hundredth of a short life.
const MOST_ASKED_MS: u64 = 60_000;
/// No two renewals come sooner after each other, in milliseconds.
const LEAST_PAUSE_MS: u64 = 1_000;

/// From when until when a certificate is good, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its beginning.
    pub not_before_ms: u64,
    /// Its end.
    pub not_after_ms: u64,
}

impl Validity {
    fn life_ms(self) -> u64 {
        self.not_after_ms.saturating_sub(self.not_before_ms)
    }
}

/// What the clocks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The time of day, in milliseconds since the Unix epoch. It may be wrong, and jump.
    pub wall_ms: u64,
    /// The latest time that a verified document has proved ([`crate::clock::TimeFloor`]).
    pub floor_ms: u64,
    /// A clock that only ever goes on, in milliseconds.
    pub steady_ms: u64,
}

/// The renewal of one certificate.
#[derive(Debug, Clone)]
pub struct Renewal {
    validity: Validity,
    /// When it is due, in milliseconds since the Unix epoch.
    due_ms: u64,
    /// When it came to be watched, by the steady clock.
    watched_from_ms: u64,
    /// The clock took it for due when it had just been given out.
    wall_is_ahead: bool,
    /// So did what documents had proved by then.
    floor_is_ahead: bool,
    /// When it is due although the clock is before its beginning, by the steady clock.
    blind_ms: Option<u64>,
    /// When it is due because the controller asked for it, by the steady clock.
    asked_ms: Option<u64>,
    /// None of these before this, by the steady clock.
    not_asked_before_ms: u64,
    /// No attempt before this, by the steady clock.
    no_sooner_ms: u64,
    backoff: Backoff,
}

/// `jitter` thousandths of `of_ms`.
fn share(of_ms: u64, jitter: u16) -> u64 {
    (of_ms / 1_000).saturating_mul(u64::from(jitter.min(1_000))) + of_ms % 1_000 * u64::from(jitter.min(1_000)) / 1_000
}

impl Renewal {
    /// Of a certificate found at the start. `jitter` is a random number up to 1,000, which spreads a fleet that enrolled at once
    /// over a twenty-fourth of a life.
    #[must_use]
    pub fn found(validity: Validity, now: Now, jitter: u16) -> Self {
        let blind_ms = (validity.life_ms() / 3).min(BLIND_MS);
        let blind_ms = blind_ms / 2 + share(blind_ms / 2, jitter);
        Self { blind_ms: Some(now.steady_ms.saturating_add(blind_ms)), ..Self::of(validity, now, jitter) }
    }

    /// Of a certificate that has just been given out.
    #[must_use]
    pub fn given(validity: Validity, now: Now, jitter: u16) -> Self {
        let this = Self::of(validity, now, jitter);
        Self {
            wall_is_ahead: now.wall_ms >= this.due_ms,
            floor_is_ahead: now.floor_ms >= this.due_ms,
            no_sooner_ms: now.steady_ms.saturating_add(LEAST_PAUSE_MS),
            not_asked_before_ms: now.steady_ms.saturating_add((validity.life_ms() / 100).min(MOST_ASKED_MS)),
            ..this
        }
    }

    fn of(validity: Validity, now: Now, jitter: u16) -> Self {
        let life_ms = validity.life_ms();
        let two_thirds_ms = life_ms - life_ms / 3;
        let first_ms = (life_ms / 64).clamp(100, 30_000);
        Self {
            validity,
            due_ms: validity.not_before_ms.saturating_add(two_thirds_ms).saturating_add(share(life_ms / 24, jitter)),
            watched_from_ms: now.steady_ms,
            wall_is_ahead: false,
            floor_is_ahead: false,
            blind_ms: None,
            asked_ms: None,
            not_asked_before_ms: 0,
            no_sooner_ms: 0,
            backoff: Backoff::new(Pauses { first_ms, longest_ms: (life_ms / 24).clamp(first_ms, 3_600_000) }),
        }
    }

    /// How long to wait until the renewal is due; nothing when it is. To be asked again after a while, since clocks are set.
    #[must_use]
    pub fn wait_ms(&self, now: Now) -> u64 {
        let watched_ms = now.steady_ms.saturating_sub(self.watched_from_ms);
        let at_least_ms = self.validity.not_before_ms.saturating_add(watched_ms);
        let floor_ms = if self.floor_is_ahead { 0 } else { now.floor_ms };
        let wall_ms = if self.wall_is_ahead { 0 } else { now.wall_ms };
        let mut wait_ms = self.due_ms.saturating_sub(at_least_ms.max(floor_ms).max(wall_ms));
        if now.wall_ms < self.validity.not_before_ms
            && let Some(blind_ms) = self.blind_ms
        {
            wait_ms = wait_ms.min(blind_ms.saturating_sub(now.steady_ms));
        }
        if let Some(asked_ms) = self.asked_ms {
            wait_ms = wait_ms.min(asked_ms.saturating_sub(now.steady_ms));
        }
        wait_ms.max(self.no_sooner_ms.saturating_sub(now.steady_ms))
    }

    /// The controller asks for a renewal: it comes soon, a whole fleet's spread over a thousandth of a life, and not oftener than once in
    /// a minute, whatever the controller says. `jitter` is a random number up to 1,000.
    pub fn asked(&mut self, now: Now, jitter: u16) {
        let spread_ms = share((self.validity.life_ms() / 1_000).min(MOST_ASKED_MS), jitter);
        let asked_ms = now.steady_ms.max(self.not_asked_before_ms).saturating_add(spread_ms);
        self.asked_ms = Some(self.asked_ms.unwrap_or(asked_ms).min(asked_ms));
    }

    /// An attempt failed; the next one comes after a pause.
    pub fn failed(&mut self, now: Now, jitter: u16) {
        self.no_sooner_ms = now.steady_ms.saturating_add(self.backoff.failed(jitter));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BEGIN_MS: u64 = 1_790_000_000_000;
    const DAY_MS: u64 = 86_400_000;

    fn validity(life_ms: u64) -> Validity {
        Validity { not_before_ms: BEGIN_MS, not_after_ms: BEGIN_MS + life_ms }
    }

    fn at(wall_ms: u64, steady_ms: u64) -> Now {
        Now { wall_ms, floor_ms: 0, steady_ms }
    }

    #[test]
    fn it_is_due_at_two_thirds() {
        let found = Renewal::found(validity(300 * DAY_MS), at(BEGIN_MS + DAY_MS, 0), 0);
        assert_eq!(found.wait_ms(at(BEGIN_MS + DAY_MS, 0)), 199 * DAY_MS);
        assert_eq!(found.wait_ms(at(BEGIN_MS + 200 * DAY_MS - 1, 5)), 1);
        assert_eq!(found.wait_ms(at(BEGIN_MS + 200 * DAY_MS, 5)), 0);
        assert_eq!(found.wait_ms(at(BEGIN_MS + 1_000 * DAY_MS, 5)), 0, "late is better than never");
    }

    #[test]
    fn a_board_without_a_clock_renews_once_and_then_counts_for_itself() {
        let life_ms = 300 * DAY_MS;
        let found = Renewal::found(validity(life_ms), at(7, 1_000), 1_000);
        assert_eq!(found.wait_ms(at(7, 1_000)), BLIND_MS);
        assert_eq!(found.wait_ms(at(8, 1_000 + BLIND_MS)), 0);
        // The network sets the clock before that: it need not.
        assert_eq!(found.wait_ms(at(BEGIN_MS + DAY_MS, 1_000 + BLIND_MS)), 199 * DAY_MS + life_ms / 24);
        let given = Renewal::given(validity(life_ms), at(8, 2_000), 0);
        assert_eq!(given.wait_ms(at(8, 2_000)), 200 * DAY_MS);
        assert_eq!(given.wait_ms(at(9, 2_000 + 200 * DAY_MS)), 0);
        assert_eq!(given.wait_ms(at(BEGIN_MS + 200 * DAY_MS, 2_001)), 999, "set meanwhile, the clock counts");
    }

    #[test]
    fn what_a_document_has_proved_counts_and_does_not_stand_for_a_clock() {
        let proved = |days: u64, steady_ms| Now { wall_ms: 7, floor_ms: BEGIN_MS + days * DAY_MS, steady_ms };
        let given = Renewal::given(validity(300 * DAY_MS), proved(1, 0), 0);
        assert_eq!(given.wait_ms(proved(50, 2_000)), 150 * DAY_MS);
        assert_eq!(given.wait_ms(proved(200, 2_000)), 0);
        let found = Renewal::found(validity(300 * DAY_MS), proved(1, 0), 1_000);
        assert_eq!(found.wait_ms(proved(1, 0)), BLIND_MS, "how long ago that was is not known after a start");
    }

    #[test]
    fn a_date_far_ahead_costs_one_renewal() {
        let proved = |days: u64, steady_ms| Now { wall_ms: BEGIN_MS, floor_ms: BEGIN_MS + days * DAY_MS, steady_ms };
        let before = Renewal::given(validity(300 * DAY_MS), proved(1, 0), 0);
        assert_eq!(before.wait_ms(proved(3_000, 2_000)), 0, "it may be true");
        let given = Renewal::given(validity(300 * DAY_MS), proved(3_000, 2_000), 0);
        assert_eq!(given.wait_ms(proved(3_000, 2_000)), 200 * DAY_MS);
        assert_eq!(given.wait_ms(proved(3_001, 2_000 + 199 * DAY_MS)), DAY_MS);
        let right = Now { wall_ms: BEGIN_MS + 200 * DAY_MS, ..proved(3_000, 4_000) };
        assert_eq!(given.wait_ms(right), 0, "the clock counts as ever");
    }

    #[test]
    fn a_clock_that_is_ahead_does_not_renew_for_ever() {
        let ahead_ms = BEGIN_MS + 1_000 * DAY_MS;
        assert_eq!(Renewal::found(validity(300 * DAY_MS), at(ahead_ms, 0), 0).wait_ms(at(ahead_ms, 0)), 0);
        let given = Renewal::given(validity(300 * DAY_MS), at(ahead_ms, 10), 0);
        assert_eq!(given.wait_ms(at(ahead_ms, 10)), 200 * DAY_MS);
        assert_eq!(given.wait_ms(at(ahead_ms + 200 * DAY_MS, 10 + 200 * DAY_MS)), 0);
    }

    #[test]
    fn a_controller_that_asks_is_heard_soon_and_not_over_and_over() {
        let start = at(BEGIN_MS + DAY_MS, 1_000);
        let mut found = Renewal::found(validity(300 * DAY_MS), start, 0);
        found.asked(start, 500);
        found.asked(start, 1_000);
        assert_eq!(found.wait_ms(start), 30_000);
        found.failed(start, 0);
        assert!(found.wait_ms(at(BEGIN_MS + DAY_MS, 40_000)) < 30_000, "it stays asked for");
        let mut given = Renewal::given(validity(300 * DAY_MS), start, 0);
        assert_eq!(given.wait_ms(start), 199 * DAY_MS);
        given.asked(start, 0);
        assert_eq!(given.wait_ms(start), MOST_ASKED_MS);
        let mut short = Renewal::given(validity(20_000), at(BEGIN_MS, 0), 0);
        short.asked(at(BEGIN_MS, 0), 1_000);
        assert_eq!(short.wait_ms(at(BEGIN_MS, 0)), LEAST_PAUSE_MS);
    }

    #[test]
    fn failures_are_spaced_out_and_leave_time_for_many_more() {
        let mut found = Renewal::found(validity(300 * DAY_MS), at(BEGIN_MS + 200 * DAY_MS, 0), 0);
        let (mut steady_ms, mut attempts) = (0, 0);
        while steady_ms < 100 * DAY_MS {
            found.failed(at(BEGIN_MS + 200 * DAY_MS + steady_ms, steady_ms), 1_000);
            let wait_ms = found.wait_ms(at(BEGIN_MS + 200 * DAY_MS + steady_ms, steady_ms));
            assert!((30_000..=3_600_000).contains(&wait_ms), "{wait_ms}");
            (steady_ms, attempts) = (steady_ms + wait_ms, attempts + 1);
        }
        assert!((2_400..2_420).contains(&attempts), "{attempts}");
    }

    fn clocks() -> impl Strategy<Value = u64> {
        prop_oneof![0..DAY_MS, BEGIN_MS - DAY_MS..BEGIN_MS + 20 * 365 * DAY_MS, any::<u64>()]
    }

    proptest! {
        #[test]
        fn a_right_clock_renews_within_a_twenty_fourth_after_two_thirds(
            life_ms in 1_000..20 * 365 * DAY_MS, age in 0..1_000u64, jitter in 0..=1_000u16, was_given: bool,
        ) {
            let age_ms = if was_given { 0 } else { life_ms / 1_000 * age };
            let start = at(BEGIN_MS + age_ms, 5);
            let make = if was_given { Renewal::given } else { Renewal::found };
            let wait_ms = make(validity(life_ms), start, jitter).wait_ms(start);
            let (least, most) = (life_ms - life_ms / 3, life_ms - life_ms / 3 + life_ms / 24);
            if age_ms < least {
                prop_assert!((least..=most.max(age_ms + LEAST_PAUSE_MS)).contains(&(age_ms + wait_ms)));
            } else {
                prop_assert!(age_ms + wait_ms <= most.max(age_ms));
            }
        }

        /// Whatever the clock says, now or later, and whatever documents had proved, a certificate just given out is kept for half its life
        /// while it goes by.
        #[test]
        fn no_clock_and_no_document_makes_it_renew_for_ever(
            life_ms in 6_000..20 * 365 * DAY_MS, wall_ms in clocks(), floor_ms in clocks(), steady_ms in 0..u64::MAX / 2,
            jitter in 0..=1_000u16, moved in 0..500u64,
        ) {
            let at = |wall_ms, steady_ms| Now { wall_ms, floor_ms, steady_ms };
            let given = Renewal::given(validity(life_ms), at(wall_ms, steady_ms), jitter);
            let passed_ms = life_ms / 1_000 * moved;
            let later = at(wall_ms.saturating_add(passed_ms), steady_ms + passed_ms);
            // One that stands further on in its life is wrong and cannot be told from a right one; it renews once too often.
            if wall_ms < BEGIN_MS + life_ms / 12 || wall_ms >= given.due_ms {
                prop_assert!(given.wait_ms(later) > 0);
                prop_assert!(given.wait_ms(at(wall_ms, steady_ms + passed_ms)) > 0);
            }
        }

        /// Nor does any clock make it wait beyond the certificate's end, unless it stands within its life and is behind.
        #[test]
        fn no_clock_makes_it_wait_for_ever(
            life_ms in 6_000..20 * 365 * DAY_MS, wall_ms in clocks(), steady_ms in 0..u64::MAX / 2, jitter in 0..=1_000u16, was_given: bool,
        ) {
            let now = at(wall_ms, steady_ms);
            let make = if was_given { Renewal::given } else { Renewal::found };
            let wait_ms = make(validity(life_ms), now, jitter).wait_ms(now);
            prop_assert!(wait_ms <= life_ms - life_ms / 3 + life_ms / 24);
            if !was_given && wall_ms < BEGIN_MS {
                prop_assert!(wait_ms <= (life_ms / 3).min(BLIND_MS));
            }
        }

        #[test]
        fn any_numbers_give_a_wait(
            not_before_ms: u64, not_after_ms: u64, first: (u64, u64), then: (u64, u64), jitter: u16, was_given: bool, failures in 0..70u8,
        ) {
            let validity = Validity { not_before_ms, not_after_ms };
            let make = if was_given { Renewal::given } else { Renewal::found };
            let mut renewal = make(validity, at(first.0, first.1), jitter);
            for _ in 0..failures {
                renewal.failed(at(then.0, then.1), jitter);
            }
            let _ = renewal.wait_ms(at(then.0, then.1));
            if was_given {
                prop_assert!(make(validity, at(first.0, first.1), jitter).wait_ms(at(first.0, first.1)) >= LEAST_PAUSE_MS.min(u64::MAX - first.1));
            }
        }
    }
}
