//! Whether the device may ask for more chunks now, how many bytes of them, and otherwise when to look again, and why.
//!
//! Three things hold a download back: a cap on bytes per second, quiet hours, and a link that costs by the byte. The device's
//! configuration says what applies to it; a rollout can lower the cap, wait for a free link or use a metered one, and go ahead in
//! quiet hours. What is on the device already is never held back by any of them: a rollback to the bundle in the other slot
//! asks for nothing. Nor do quiet hours hold anything back from a device that serves nothing.

use muster_shared::limits::{CHUNK_BYTES, CHUNK_WINDOW};
use muster_shared::messages::HeldBack;
use muster_shared::trust::{DeliveryPolicy, MeteredUse};
use serde::Deserialize;

/// What a chunk takes on the wire besides its bytes: topic, frame, packet and record headers.
pub const WIRE_BYTES: u64 = 256;
/// The largest chunk, as it comes on the wire.
const LARGEST_BYTES: u64 = CHUNK_BYTES as u64 + WIRE_BYTES;
/// The largest window of chunks.
const WINDOW_BYTES: u64 = CHUNK_WINDOW as u64 * LARGEST_BYTES;
/// The longest pause before what holds a download back is looked at again, in milliseconds: links and clocks change.
const LOOK_AGAIN_MS: u64 = 30_000;
const MINUTES_PER_DAY: u16 = 24 * 60;

/// Times of the day in which nothing is fetched.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct QuietHours(Vec<Span>);

/// From a minute of the day up to another, which may lie on the next day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    from: u16,
    until: u16,
}

/// Why texts are no quiet hours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuietHoursError {
    /// One is no span.
    #[error("{0:?} is no span of quiet hours: write it as 22:00-06:00, from 00:00 to 24:00, beginning and end apart")]
    Span(String),
    /// Nothing is left.
    #[error("quiet hours leave no minute of the day to fetch anything")]
    AllDay,
}

fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let digits = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(hours) || !digits(minutes) {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    let minute = hours * 60 + minutes;
    (minutes < 60 && minute <= MINUTES_PER_DAY).then_some(minute)
}

impl TryFrom<Vec<String>> for QuietHours {
    type Error = QuietHoursError;
    fn try_from(texts: Vec<String>) -> Result<Self, QuietHoursError> {
        let span = |text: &String| {
            let (from, until) = text.split_once('-')?;
            let (from, until) = (minute(from)?, minute(until)?);
            (from != until && from < MINUTES_PER_DAY).then_some(Span { from, until: until % MINUTES_PER_DAY })
        };
        let refuse = |text: &String| QuietHoursError::Span(text.chars().take(40).collect());
        let spans: Result<Vec<Span>, _> = texts.iter().map(|text| span(text).ok_or_else(|| refuse(text))).collect();
        let hours = Self(spans?);
        if (0..MINUTES_PER_DAY).all(|minute| hours.span_at(minute).is_some()) {
            return Err(QuietHoursError::AllDay);
        }
        Ok(hours)
    }
}

impl QuietHours {
    fn span_at(&self, minute: u16) -> Option<Span> {
        self.0.iter().copied().find(|Span { from, until }| {
            if from < until { (*from..*until).contains(&minute) } else { minute >= *from || minute < *until }
        })
    }

    /// When the quiet hours end in which `minute` of the day lies, as a minute of the day.
    #[must_use]
    pub fn end_of(&self, minute: u16) -> Option<u16> {
        let mut end = self.span_at(minute)?.until;
        // Spans that meet are one; they leave a minute of the day free, so this ends.
        for _ in &self.0 {
            match self.span_at(end) {
                Some(next) => end = next.until,
                None => break,
            }
        }
        Some(end)
    }
}

/// What the device is configured to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// Most bytes of chunks in a second; none for no cap.
    pub max_download_bytes_per_s: Option<u64>,
    /// When nothing is fetched.
    pub quiet_hours: QuietHours,
    /// Whether chunks travel on metered links where the rollout does not say.
    pub metered_chunks: bool,
}

impl Rules {
    fn cap(&self, rollout: &DeliveryPolicy) -> Option<u64> {
        let caps = [self.max_download_bytes_per_s, rollout.max_download_bytes_per_s];
        caps.into_iter().flatten().min().map(|cap| cap.max(1))
    }
}

/// The moment at which is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// By a clock that does not jump, in milliseconds.
    pub now_ms: u64,
    /// The minute of the day at the device; none where its clock is known to be wrong, and then there are no quiet hours.
    pub local_minute: Option<u16>,
    /// Whether the link costs by the byte.
    pub is_metered: bool,
    /// Whether a bundle serves meanwhile; where none does, that cannot wait for the end of quiet hours.
    pub is_serving: bool,
}

/// Bytes that may be asked for at once after a quiet time: what `cap` lets through in a second, so that a line with a long way to
/// go is filled all the same, but no more than a window takes, and no less than the largest chunk, which could never be asked
/// for otherwise.
fn bucket_bytes(cap: u64) -> u64 {
    cap.clamp(LARGEST_BYTES, WINDOW_BYTES)
}

/// What has been asked for lately, and is made good for at the cap's rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// Thousandths of a byte, so that a millisecond's share is a whole number.
    millibytes: u64,
    at_ms: u64,
}

impl Spent {
    /// Nothing, at `now_ms`.
    #[must_use]
    pub fn nothing(now_ms: u64) -> Self {
        Self { millibytes: 0, at_ms: now_ms }
    }

    /// What is left to ask for at `now_ms`, under a cap of `cap` bytes a second.
    fn left_millibytes(&self, cap: u64, now_ms: u64) -> u64 {
        let bucket = bucket_bytes(cap) * 1_000;
        let made_good = now_ms.saturating_sub(self.at_ms).saturating_mul(cap);
        // What was spent under a higher cap is no debt under a lower one.
        bucket - self.millibytes.min(bucket).saturating_sub(made_good)
    }

    /// `bytes` are asked for at `now_ms`.
    pub fn spend(&mut self, bytes: u64, rules: &Rules, rollout: &DeliveryPolicy, now_ms: u64) {
        if let Some(cap) = rules.cap(rollout) {
            let left = self.left_millibytes(cap, now_ms).saturating_sub(bytes.saturating_mul(1_000));
            *self = Self { millibytes: bucket_bytes(cap) * 1_000 - left, at_ms: now_ms.max(self.at_ms) };
        }
    }

    /// `bytes` that were asked for did not have to travel: the chunk came packed.
    pub fn give_back(&mut self, bytes: u64) {
        self.millibytes = self.millibytes.saturating_sub(bytes.saturating_mul(1_000));
    }
}

/// Whether to ask for chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Ask, for so many bytes at most.
    Ask {
        /// The most.
        most_bytes: u64,
    },
    /// Not now.
    Wait {
        /// When to look again, by the clock of [`Moment::now_ms`].
        until_ms: u64,
        /// What holds the download back; none while it only goes on at the cap's pace.
        why: Option<HeldBack>,
    },
}

/// Decides whether a chunk of `next_bytes` bytes, and how much with it, may be asked for at `moment`.
#[must_use]
pub fn decide(rules: &Rules, rollout: &DeliveryPolicy, spent: &Spent, moment: &Moment, next_bytes: u64) -> Decision {
    let Moment { now_ms, local_minute, is_metered, is_serving } = *moment;
    let wait = |for_ms: u64, why| Decision::Wait { until_ms: now_ms.saturating_add(for_ms.max(1)), why };
    let may_cost = match rollout.metered {
        MeteredUse::AsConfigured => rules.metered_chunks,
        MeteredUse::Allowed => true,
        MeteredUse::Never => false,
    };
    if is_metered && !may_cost {
        return wait(LOOK_AGAIN_MS, Some(HeldBack::MeteredLink));
    }
    if is_serving
        && !rollout.ignore_quiet_hours
        && let Some(minute) = local_minute
        && let Some(until_minute) = rules.quiet_hours.end_of(minute)
    {
        let minutes = (until_minute + MINUTES_PER_DAY).saturating_sub(minute) % MINUTES_PER_DAY;
        let left_ms = u64::from(minutes) * 60_000;
        return wait(left_ms.min(LOOK_AGAIN_MS), Some(HeldBack::QuietHours { until_minute }));
    }
    let Some(cap) = rules.cap(rollout) else { return Decision::Ask { most_bytes: u64::MAX } };
    let left = spent.left_millibytes(cap, now_ms);
    // A chunk larger than the bucket goes out of a full one, so that nothing waits for ever.
    let price = next_bytes.min(bucket_bytes(cap)).saturating_mul(1_000);
    if left >= price {
        return Decision::Ask { most_bytes: (left / 1_000).max(next_bytes) };
    }
    wait((price - left).div_ceil(cap), None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hours(spans: &[&str]) -> Result<QuietHours, QuietHoursError> {
        QuietHours::try_from(spans.iter().map(|span| (*span).to_owned()).collect::<Vec<_>>())
    }

    fn capped(cap: u64) -> Rules {
        Rules { max_download_bytes_per_s: Some(cap), ..Rules::default() }
    }

    fn at(now_ms: u64) -> Moment {
        Moment { now_ms, local_minute: None, is_metered: false, is_serving: true }
    }

    #[test]
    fn quiet_hours_may_pass_midnight_and_meet() {
        let night = hours(&["22:00-24:00", "00:00-06:00", "12:30-13:00"]).unwrap();
        for (minute, end) in [(0, Some(360)), (359, Some(360)), (360, None), (750, Some(780)), (1_380, Some(360))] {
            assert_eq!(night.end_of(minute), end, "{minute}");
        }
        assert_eq!(hours(&["22:00-06:00"]).unwrap().end_of(1_439), Some(360));
        assert_eq!(hours(&[]).unwrap().end_of(0), None);
        for bad in ["", "22:00", "22-06", "24:00-06:00", "10:00-10:00", "10:60-11:00", "1:00-02:00", "-1:00-02:00"] {
            assert_eq!(hours(&[bad]), Err(QuietHoursError::Span(bad.to_owned())), "{bad}");
        }
        assert_eq!(hours(&["00:00-12:00", "12:00-24:00"]), Err(QuietHoursError::AllDay));
    }

    #[test]
    fn what_holds_a_download_back_is_said_and_a_rollout_can_go_ahead() {
        let rules = Rules { quiet_hours: hours(&["22:00-06:00"]).unwrap(), ..Rules::default() };
        let night = Moment { local_minute: Some(1_320), ..at(5) };
        let spent = Spent::nothing(0);
        let decided = |rollout: DeliveryPolicy, moment: Moment| decide(&rules, &rollout, &spent, &moment, 10);
        let quiet = Some(HeldBack::QuietHours { until_minute: 360 });
        let until_ms = 5 + LOOK_AGAIN_MS;
        assert_eq!(decided(DeliveryPolicy::default(), night), Decision::Wait { until_ms, why: quiet });
        let urgent = DeliveryPolicy { ignore_quiet_hours: true, ..DeliveryPolicy::default() };
        assert_eq!(decided(urgent, night), Decision::Ask { most_bytes: u64::MAX });
        let bare = Moment { is_serving: false, ..night };
        assert_eq!(decided(DeliveryPolicy::default(), bare), Decision::Ask { most_bytes: u64::MAX });
        // A clock that is known to be wrong knows no hours.
        let lost = Moment { local_minute: None, ..night };
        assert_eq!(decided(DeliveryPolicy::default(), lost), Decision::Ask { most_bytes: u64::MAX });

        let metered = Moment { is_metered: true, ..at(5) };
        let held = Decision::Wait { until_ms, why: Some(HeldBack::MeteredLink) };
        for (configured, rollout, goes) in [
            (false, MeteredUse::AsConfigured, false),
            (true, MeteredUse::AsConfigured, true),
            (false, MeteredUse::Allowed, true),
            (true, MeteredUse::Never, false),
        ] {
            let rules = Rules { metered_chunks: configured, ..Rules::default() };
            let rollout = DeliveryPolicy { metered: rollout, ..DeliveryPolicy::default() };
            assert_eq!(decide(&rules, &rollout, &spent, &metered, 10) != held, goes, "{configured} {rollout:?}");
        }
    }

    #[test]
    fn the_lower_cap_counts_and_the_largest_chunk_passes() {
        let slower = DeliveryPolicy { max_download_bytes_per_s: Some(100), ..DeliveryPolicy::default() };
        let (rules, mut spent) = (capped(1_000), Spent::nothing(0));
        spent.spend(LARGEST_BYTES, &rules, &slower, 0);
        let why = None;
        assert_eq!(decide(&rules, &slower, &spent, &at(0), 50), Decision::Wait { until_ms: 500, why });
        assert_eq!(
            decide(&rules, &DeliveryPolicy::default(), &spent, &at(0), 50),
            Decision::Wait { until_ms: 50, why }
        );
        assert!(matches!(decide(&rules, &slower, &Spent::nothing(0), &at(0), u64::MAX), Decision::Ask { .. }));
        spent.give_back(50);
        assert_eq!(decide(&rules, &slower, &spent, &at(0), 50), Decision::Ask { most_bytes: 50 });
    }

    #[test]
    fn a_high_cap_lets_a_whole_window_out_at_once_and_a_low_one_a_chunk() {
        let rollout = DeliveryPolicy::default();
        for (cap, window) in [(1, 1), (150_000, 2), (5_000_000, CHUNK_WINDOW), (u64::MAX, CHUNK_WINDOW)] {
            let (rules, mut spent) = (capped(cap), Spent::nothing(0));
            let mut asked = 0;
            while matches!(decide(&rules, &rollout, &spent, &at(0), LARGEST_BYTES), Decision::Ask { .. }) {
                spent.spend(LARGEST_BYTES, &rules, &rollout, 0);
                asked += 1;
            }
            assert_eq!(asked, window, "{cap}");
        }
        // Each round trip of 600 ms asks for a window: 870 kB/s, where single chunks were 110.
        let (rules, mut spent) = (capped(5_000_000), Spent::nothing(0));
        for round in 0..10 {
            let asks = decide(&rules, &rollout, &spent, &at(round * 600), LARGEST_BYTES);
            assert_eq!(asks, Decision::Ask { most_bytes: WINDOW_BYTES });
            spent.spend(WINDOW_BYTES, &rules, &rollout, round * 600);
        }
        // Under a lower cap no more is owed than that one's bucket.
        let wait = Decision::Wait { until_ms: 5_401, why: None };
        assert_eq!(decide(&capped(50_000), &rollout, &spent, &at(5_400), 50), wait);
    }

    proptest! {
        /// Whoever asks whenever it may, and spends what it may, never passes the cap over any time, and never waits for ever.
        #[test]
        fn no_time_has_more_than_the_cap_and_a_burst(
            cap in prop_oneof![1u64..200_000, 1u64..2_000_000, 0..=u64::MAX],
            wants in prop::collection::vec((1u64..CHUNK_BYTES as u64, 0u64..5_000, 0u8..4), 1..80),
        ) {
            let (rules, rollout) = (capped(cap), DeliveryPolicy::default());
            let (mut now_ms, mut spent) = (0, Spent::nothing(0));
            let mut sent: Vec<(u64, u64)> = Vec::new();
            for (bytes, pause_ms, patience) in wants {
                now_ms += pause_ms;
                for _ in 0..patience {
                    match decide(&rules, &rollout, &spent, &at(now_ms), bytes) {
                        Decision::Ask { most_bytes } => {
                            prop_assert!(most_bytes >= bytes);
                            spent.spend(bytes, &rules, &rollout, now_ms);
                            sent.push((now_ms, bytes));
                        }
                        Decision::Wait { until_ms, why } => {
                            prop_assert!(until_ms > now_ms && why.is_none());
                            now_ms = until_ms;
                            // Whoever waits as told may ask.
                            let asks = matches!(decide(&rules, &rollout, &spent, &at(now_ms), bytes), Decision::Ask { .. });
                            prop_assert!(asks);
                        }
                    }
                }
            }
            for (at, (from_ms, _)) in sent.iter().enumerate() {
                let mut sum = 0;
                for (to_ms, bytes) in &sent[at..] {
                    sum += bytes;
                    let most = (bucket_bytes(cap.max(1)) * 1_000).saturating_add((to_ms - from_ms).saturating_mul(cap.max(1)));
                    prop_assert!(sum * 1_000 <= most, "{} bytes", sum);
                }
            }
        }

        /// Whatever the clocks do, there is an answer, and one that holds for no longer than it should.
        #[test]
        fn clocks_that_jump_do_no_harm(
            moments in prop::collection::vec((any::<u64>(), prop::option::of(0u16..2_000), any::<bool>()), 1..40),
            cap in prop::option::of(0u64..10_000),
            bytes in any::<u64>(),
        ) {
            let rules = Rules {
                max_download_bytes_per_s: cap,
                quiet_hours: hours(&["22:00-06:00"]).unwrap(),
                metered_chunks: false,
            };
            let (rollout, mut spent) = (DeliveryPolicy::default(), Spent::nothing(7));
            for (now_ms, local_minute, is_metered) in moments {
                let moment = Moment { now_ms, local_minute, is_metered, is_serving: true };
                match decide(&rules, &rollout, &spent, &moment, bytes) {
                    Decision::Ask { .. } => {
                        prop_assert!(!is_metered);
                        prop_assert!(local_minute.is_none_or(|minute| rules.quiet_hours.end_of(minute).is_none()));
                        spent.spend(bytes, &rules, &rollout, now_ms);
                    }
                    Decision::Wait { until_ms, why: Some(_) } => {
                        prop_assert!(until_ms <= now_ms.saturating_add(LOOK_AGAIN_MS));
                    }
                    Decision::Wait { until_ms, why: None } => {
                        prop_assert!(until_ms.saturating_sub(now_ms) <= LARGEST_BYTES * 1_000 || now_ms > u64::MAX / 2);
                    }
                }
            }
        }

        #[test]
        fn any_texts_are_quiet_hours_or_refused(texts in prop::collection::vec("[0-9:\\-]{0,12}|.{0,8}", 0..4)) {
            if let Ok(hours) = QuietHours::try_from(texts) {
                prop_assert!((0..MINUTES_PER_DAY).any(|minute| hours.end_of(minute).is_none()));
                for minute in 0..MINUTES_PER_DAY {
                    if let Some(end) = hours.end_of(minute) {
                        prop_assert!(hours.end_of(end).is_none());
                    }
                }
            }
        }
    }
}
