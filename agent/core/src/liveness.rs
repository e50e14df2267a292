//! Is the agent alive, or does it only look so? Decided from what its parts last said, and from the clock.
//!
//! A part says at each turn by when it will be heard of again: whoever waits a minute for a network is not stuck within that minute.
//! Whether there is a network, and whether anybody asks for an inference, is no matter here.

use std::fmt;

/// How much later than it said a part may be heard of again, in milliseconds: a slow card can take that long to write.
pub const GRACE_MS: u64 = 120_000;

/// When a part of the agent was last heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// What it is called.
    pub part: &'static str,
    /// When it was heard of, in milliseconds.
    pub at_ms: u64,
    /// By when it said to be heard of again, in milliseconds; none while nothing is expected of it.
    pub again_by_ms: Option<u64>,
}

/// The inference that has been computing the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inference {
    /// When it was given its turn, in milliseconds. It counts from there, so that a thread that never starts shows too.
    pub begun_ms: u64,
    /// How long one may take, in milliseconds.
    pub allowed_ms: u64,
}

/// What has come to a standstill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// A part has not been heard of.
    Silent {
        /// Which.
        part: &'static str,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// An inference does not come to its end.
    Computing {
        /// For how long it has been at it, in milliseconds.
        for_ms: u64,
        /// How long it may, in milliseconds.
        allowed_ms: u64,
    },
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent { part, for_ms } => write!(f, "{part} has not turned for {} s", for_ms / 1_000),
            Self::Computing { for_ms, allowed_ms } => write!(
                f,
                "an inference has been computing for {} s, of {} s that it may: see [serve] stuck-after-ms",
                for_ms / 1_000,
                allowed_ms / 1_000
            ),
        }
    }
}

/// What has come to a standstill at `now_ms`; the part that has been silent longest beyond its word, where several are.
#[must_use]
pub fn stuck(beats: &[Beat], oldest: Option<Inference>, now_ms: u64) -> Option<Stuck> {
    let overdue = |beat: &Beat| {
        let by_ms = beat.again_by_ms?.saturating_add(GRACE_MS);
        (now_ms > by_ms).then(|| now_ms - by_ms)
    };
    let silent = beats
        .iter()
        .filter_map(|beat| Some((overdue(beat)?, beat)))
        .max_by_key(|(overdue_ms, _)| *overdue_ms)
        .map(|(_, beat)| Stuck::Silent { part: beat.part, for_ms: now_ms.saturating_sub(beat.at_ms) });
    silent.or_else(|| {
        let Inference { begun_ms, allowed_ms } = oldest?;
        let for_ms = now_ms.saturating_sub(begun_ms);
        (for_ms > allowed_ms).then_some(Stuck::Computing { for_ms, allowed_ms })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn beat(part: &'static str, at_ms: u64, again_by_ms: u64) -> Beat {
        Beat { part, at_ms, again_by_ms: Some(again_by_ms) }
    }

    #[test]
    fn each_part_is_found_stuck_by_itself() {
        let parts = ["the event loop", "the worker threads", "the updater", "the broker link"];
        for stuck_part in parts {
            // All others keep their word.
            let beats: Vec<Beat> = parts
                .iter()
                .map(|part| if *part == stuck_part { beat(part, 10_000, 15_000) } else { beat(part, 299_000, 304_000) })
                .collect();
            assert_eq!(stuck(&beats, None, 135_000), None, "{stuck_part} has until 2 minutes after its word");
            let found = stuck(&beats, None, 300_000);
            assert_eq!(found, Some(Stuck::Silent { part: stuck_part, for_ms: 290_000 }));
            assert_eq!(found.unwrap().to_string(), format!("{stuck_part} has not turned for 290 s"));
        }
    }

    #[test]
    fn a_long_wait_that_was_announced_is_no_standstill() {
        let loading = beat("the updater", 0, 600_000);
        assert_eq!(stuck(&[loading], None, 700_000), None);
        assert!(stuck(&[loading], None, 720_001).is_some());
        let ended = Beat { again_by_ms: None, ..loading };
        assert_eq!(stuck(&[ended], None, u64::MAX), None, "nothing is expected of what has not begun, or is over");
    }

    #[test]
    fn an_inference_may_take_what_it_is_allowed_and_no_more() {
        let oldest = Inference { begun_ms: 1_000, allowed_ms: 60_000 };
        assert_eq!(stuck(&[], Some(oldest), 61_000), None);
        let found = stuck(&[], Some(oldest), 61_001).unwrap();
        assert_eq!(found, Stuck::Computing { for_ms: 60_001, allowed_ms: 60_000 });
        assert!(found.to_string().contains("stuck-after-ms"));
        assert_eq!(stuck(&[], Some(Inference { begun_ms: 5, allowed_ms: 0 }), 4), None, "a clock that is read twice");
    }

    proptest! {
        #[test]
        fn who_keeps_their_word_is_alive_and_who_is_silent_for_long_is_not(
            at_ms in 0..1u64 << 50,
            promised_ms in 0..86_400_000u64,
            later_ms in 0..u64::from(u32::MAX),
        ) {
            let beats = [beat("the updater", at_ms, at_ms + promised_ms)];
            let found = stuck(&beats, None, at_ms + later_ms);
            prop_assert_eq!(found.is_some(), later_ms > promised_ms + 120_000);
        }
    }
}
