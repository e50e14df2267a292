//! Durations as people write them: `500ms`, `30s`, `10m`, `24h`, `7d`.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::output;

/// A duration in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = r"^\s*[0-9]+(ms|s|m|h|d)\s*$", "examples" = ["30s", "10m", "24h"]))]
pub(crate) struct Millis(pub(crate) u64);

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write a whole number and a unit, as 500ms, 30s, 10m, 24h or 7d")]
pub(crate) struct MillisError(String);

/// Units by descending length in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// The query for what is not older than `since`.
pub(crate) fn since_query(since: Option<Millis>) -> Option<(&'static str, String)> {
    since.map(|since| ("since-ms", output::now_ms().saturating_sub(since.0).to_string()))
}

impl FromStr for Millis {
    type Err = MillisError;
    fn from_str(text: &str) -> Result<Self, MillisError> {
        let refuse = || MillisError(text.chars().take(40).collect());
        let trimmed = text.trim();
        let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = trimmed.get(digits.len()..).unwrap_or_default();
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?;
        let count: u64 = digits.parse().map_err(|_| refuse())?;
        count.checked_mul(*factor).map(Self).ok_or_else(refuse)
    }
}

impl TryFrom<String> for Millis {
    type Error = MillisError;
    fn try_from(text: String) -> Result<Self, MillisError> {
        text.parse()
    }
}

impl From<Millis> for String {
    fn from(duration: Millis) -> String {
        duration.to_string()
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = UNITS
            .iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(&("s", 1_000));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl Millis {
    /// The duration for people, to its two greatest units.
    pub(crate) fn rough(self) -> String {
        let mut parts = Vec::new();
        let mut left = self.0;
        for (unit, factor) in UNITS {
            let worth_saying = parts.is_empty() || (parts.len() < 2 && unit != "ms");
            if left >= factor && worth_saying {
                parts.push(format!("{}{unit}", left / factor));
            }
            left %= factor;
        }
        if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_and_mistakes() {
        for (text, ms) in
            [("500ms", 500), ("30s", 30_000), (" 10m ", 600_000), ("24h", 86_400_000), ("7d", 604_800_000), ("0s", 0)]
        {
            assert_eq!(text.parse::<Millis>(), Ok(Millis(ms)), "{text}");
        }
        for bad in
            ["", "10", "s", "-1s", "1.5h", "1h30m", "10 m", "1w", "99999999999999999999d", "1000000000000d", "5µs"]
        {
            assert!(bad.parse::<Millis>().is_err(), "{bad}");
        }
        assert_eq!(Millis(90_000).to_string(), "90s");
        assert_eq!(Millis(0).to_string(), "0s");
        assert_eq!(
            (Millis(90_500).rough(), Millis(12).rough(), Millis(0).rough()),
            ("1m 30s".into(), "12ms".into(), "0s".into())
        );
    }

    proptest! {
        #[test]
        fn any_duration_survives_its_text(ms: u64) {
            prop_assert_eq!(Millis(ms).to_string().parse::<Millis>(), Ok(Millis(ms)));
            let _ = Millis(ms).rough();
        }

        #[test]
        fn any_text_is_a_duration_or_refused(text in ".{0,20}|[0-9]{1,20}[a-z]{0,2}") {
            let _ = text.parse::<Millis>();
        }
    }
}
