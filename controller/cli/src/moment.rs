//! Times as people write them: `2026-03-01T22:00:00Z`.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::Deserialize;

/// A moment as people write it: RFC 3339, with an offset or in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("pattern" = r"^\s*[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?([Zz]|[+-][0-9]{2}(:?[0-9]{2})?)\s*$", "examples" = ["2026-03-01T22:00:00Z", "2026-03-01T23:00:00+01:00"]))]
pub(crate) struct Moment(pub(crate) u64);

impl FromStr for Moment {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            let text: String = text.chars().take(40).collect();
            format!("{text:?} is not a time: write 2026-03-01T22:00:00Z, or with an offset 2026-03-01T23:00:00+01:00")
        };
        let at: jiff::Timestamp = text.trim().parse().map_err(|_| refuse())?;
        u64::try_from(at.as_millisecond()).map(Self).map_err(|_| refuse())
    }
}

impl TryFrom<String> for Moment {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_an_offset() {
        for (text, ms) in [("1970-01-01T00:00:01Z", 1_000), (" 1970-01-01T01:00:01+01:00 ", 1_000)] {
            assert_eq!(text.parse::<Moment>().unwrap().0, ms);
        }
        for bad in ["", "tomorrow", "2026-03-01", "2026-03-01T22:00:00", "1969-12-31T23:00:00Z"] {
            assert!(bad.parse::<Moment>().unwrap_err().contains("is not a time"), "{bad}");
        }
    }
}
