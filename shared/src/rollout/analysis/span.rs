//! Lengths of time as analysis templates write them: `90s`, `5m`, `1h30m`, as Go and hence Argo Rollouts do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest: thirty days, in milliseconds.
const MAX_MS: u64 = 30 * 86_400_000;
/// Units by descending length in milliseconds.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A length of time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(u64);

/// Why a text is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a length of time: write whole numbers and units, as 500ms, 90s, 5m or 1h30m, up to 720h")]
pub struct SpanError(String);

impl Span {
    /// That many milliseconds, at most thirty days.
    #[must_use]
    pub fn of_ms(ms: u64) -> Self {
        Self(ms.min(MAX_MS))
    }

    /// Its milliseconds.
    #[must_use]
    pub const fn ms(self) -> u64 {
        self.0
    }
}

impl FromStr for Span {
    type Err = SpanError;
    fn from_str(text: &str) -> Result<Self, SpanError> {
        let refuse = || SpanError(text.chars().take(40).collect());
        let (mut rest, mut total_ms) = (text.trim(), 0u64);
        // Each unit at most once, the larger before the smaller.
        let mut units = UNITS.as_slice();
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, after) = rest.split_at(digits);
            let letters = after.len() - after.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
            let (unit, after) = after.split_at(letters);
            let at = units.iter().position(|(name, _)| *name == unit).ok_or_else(refuse)?;
            let part_ms = number.parse::<u64>().ok().and_then(|n| n.checked_mul(units[at].1)).ok_or_else(refuse)?;
            total_ms = total_ms.checked_add(part_ms).ok_or_else(refuse)?;
            (rest, units) = (after, &units[at + 1..]);
        }
        if text.trim().is_empty() || total_ms > MAX_MS { Err(refuse()) } else { Ok(Self(total_ms)) }
    }
}

impl TryFrom<String> for Span {
    type Error = SpanError;
    fn try_from(text: String) -> Result<Self, SpanError> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left_ms = self.0;
        for (unit, unit_ms) in UNITS {
            if left_ms >= unit_ms {
                write!(f, "{}{unit}", left_ms / unit_ms)?;
                left_ms %= unit_ms;
            }
        }
        if self.0 == 0 { f.write_str("0s") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_read_as_go_reads_them() {
        for (text, ms) in
            [("500ms", 500), ("90s", 90_000), (" 5m ", 300_000), ("1h30m", 5_400_000), ("0s", 0), ("1m1s1ms", 61_001)]
        {
            assert_eq!(text.parse::<Span>().map(Span::ms), Ok(ms), "{text}");
        }
        for bad in ["", "5", "m", "-1s", "1.5h", "30m1h", "1m1m", "721h", "1d", "5 m", "99999999999999999999s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_length_survives_its_text(ms in 0..=MAX_MS) {
            prop_assert_eq!(Span::of_ms(ms).to_string().parse::<Span>(), Ok(Span::of_ms(ms)));
        }

        #[test]
        fn any_text_is_a_length_or_refused(text in ".{0,20}|([0-9]{1,20}[a-z]{0,2}){0,4}") {
            let _ = text.parse::<Span>();
        }
    }
}
