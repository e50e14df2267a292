//! Silences: alerts that nobody is to be told of for a while.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::MAX_MATCHERS;
use crate::limits::{MAX_LABEL_BYTES, MAX_TEXT_BYTES};

/// Longest silence, in milliseconds: a year.
const MAX_SILENCE_MS: u64 = 366 * 24 * 3_600_000;

/// A requirement on one label of an alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Matcher {
    /// The label: `rule`, `severity`, `bundle`, `column`, `device`, a group's label, or one the rule adds.
    pub label: String,
    /// The value it must have.
    pub value: String,
    /// The label must *not* have that value.
    #[serde(default)]
    pub negate: bool,
}

impl Matcher {
    /// Whether an alert with these labels is meant. A label that is absent has no value.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        (labels.get(&self.label) == Some(&self.value)) != self.negate
    }
}

/// A silence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Silence {
    /// Its name.
    pub id: String,
    /// All must hold.
    pub matchers: Vec<Matcher>,
    /// In milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// In milliseconds since the Unix epoch.
    pub until_ms: u64,
    /// The name of the token it was made with.
    pub by: String,
    /// Why.
    pub reason: String,
}

impl Silence {
    /// Whether it holds at `now_ms` for an alert with these labels ([`super::Alert::all_labels`]).
    #[must_use]
    pub fn covers(&self, labels: &BTreeMap<String, String>, now_ms: u64) -> bool {
        (self.since_ms..self.until_ms).contains(&now_ms) && self.matchers.iter().all(|matcher| matcher.matches(labels))
    }
}

/// A wish for a silence, from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateSilence {
    /// All must hold; at least one.
    pub matchers: Vec<Matcher>,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// Why.
    pub reason: String,
}

/// Why a silence is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SilenceError {
    /// Too few or too many requirements.
    #[error("a silence has 1 to {MAX_MATCHERS} matchers: one without any would hide every alert")]
    Matchers,
    /// All of them are negative.
    #[error(
        "a silence needs at least one matcher of the form label=value: exclusions alone would hide what nobody thought of"
    )]
    OnlyNegative,
    /// A label or value too long, or a label that is empty.
    #[error(
        "the matcher of label {0:?} is not valid: a label has 1 to {MAX_LABEL_BYTES} bytes, a value at most {MAX_LABEL_BYTES}"
    )]
    Matcher(String),
    /// Too short or too long.
    #[error("for_ms must be 1 to {MAX_SILENCE_MS}, a year")]
    Duration,
    /// No reason.
    #[error("a reason of 1 to {MAX_TEXT_BYTES} bytes is needed: whoever finds the silence will ask")]
    Reason,
}

impl CreateSilence {
    /// Checks what the types alone do not express.
    ///
    /// # Errors
    /// [`SilenceError`] with the first fault found.
    pub fn validate(&self) -> Result<(), SilenceError> {
        if !(1..=MAX_MATCHERS).contains(&self.matchers.len()) {
            return Err(SilenceError::Matchers);
        }
        if self.matchers.iter().all(|matcher| matcher.negate) {
            return Err(SilenceError::OnlyNegative);
        }
        let fits = |m: &&Matcher| (1..=MAX_LABEL_BYTES).contains(&m.label.len()) && m.value.len() <= MAX_LABEL_BYTES;
        if let Some(wrong) = self.matchers.iter().find(|matcher| !fits(matcher)) {
            return Err(SilenceError::Matcher(wrong.label.chars().take(80).collect()));
        }
        if !(1..=MAX_SILENCE_MS).contains(&self.for_ms) {
            return Err(SilenceError::Duration);
        }
        if self.reason.trim().is_empty() || self.reason.len() > MAX_TEXT_BYTES {
            return Err(SilenceError::Reason);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(label: &str, value: &str, negate: bool) -> Matcher {
        Matcher { label: label.into(), value: value.into(), negate }
    }

    fn wish(matchers: Vec<Matcher>) -> CreateSilence {
        CreateSilence { matchers, for_ms: 1_000, reason: "the line is being rebuilt".into() }
    }

    #[test]
    fn every_matcher_must_hold_and_only_for_its_time() {
        let silence = Silence {
            id: "s1".into(),
            matchers: vec![matcher("bundle", "digits@1.0.0", false), matcher("site", "lyon", true)],
            since_ms: 100,
            until_ms: 200,
            by: "ana".into(),
            reason: "test".into(),
        };
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let meant = labels(&[("bundle", "digits@1.0.0"), ("site", "oslo")]);
        for (now_ms, covers) in [(99, false), (100, true), (199, true), (200, false)] {
            assert_eq!(silence.covers(&meant, now_ms), covers, "{now_ms}");
        }
        assert!(silence.covers(&labels(&[("bundle", "digits@1.0.0")]), 150), "an absent label differs");
        assert!(!silence.covers(&labels(&[("bundle", "digits@1.0.0"), ("site", "lyon")]), 150));
        assert!(!silence.covers(&labels(&[("site", "oslo")]), 150));
    }

    #[test]
    fn a_silence_that_hides_everything_or_says_nothing_is_refused() {
        wish(vec![matcher("rule", "input-drift", false)]).validate().unwrap();
        assert_eq!(wish(vec![]).validate(), Err(SilenceError::Matchers));
        assert_eq!(wish(vec![matcher("rule", "x", true)]).validate(), Err(SilenceError::OnlyNegative));
        assert_eq!(wish(vec![matcher("", "x", false)]).validate(), Err(SilenceError::Matcher(String::new())));
        assert_eq!(wish(vec![matcher("a", "b", false); 17]).validate(), Err(SilenceError::Matchers));
        let mut wordless = wish(vec![matcher("a", "b", false)]);
        wordless.reason = " ".into();
        assert_eq!(wordless.validate(), Err(SilenceError::Reason));
        wordless.for_ms = 0;
        assert_eq!(wordless.validate(), Err(SilenceError::Duration));
    }
}
