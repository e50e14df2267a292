//! How fast devices come in, in the words of AWS IoT Jobs (`jobExecutionsRolloutConfig`).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::RolloutSpec;

/// The most devices a minute that a rollout can be asked to take in.
pub const MAX_PER_MINUTE: u32 = 1_000;

fn most() -> u32 {
    MAX_PER_MINUTE
}

/// How many devices a minute a rollout tells to go forward; waves, sizes and soaks stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct Rate {
    /// The most devices in any minute, 1 to 1000. Without an exponential rate it holds from the beginning.
    #[serde(default = "most")]
    pub maximum_per_minute: u32,
    /// A rate that begins lower and grows up to the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exponential_rate: Option<ExponentialRate>,
}

/// A rate that grows with what has been achieved.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct ExponentialRate {
    /// Devices a minute at the beginning, 1 to 1000.
    pub base_rate_per_minute: u32,
    /// By how much the rate is multiplied at each increase, 1.1 to 5 with one decimal.
    pub increment_factor: f64,
    /// What an increase takes.
    pub rate_increase_criteria: RateIncreaseCriteria,
}

/// What an increase of the rate takes: one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct RateIncreaseCriteria {
    /// Each time that so many more devices have been told, a minute ago or longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number_of_notified_things: Option<u32>,
    /// Each time that so many more devices have done it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number_of_succeeded_things: Option<u32>,
}

impl Rate {
    /// Whether it grows with devices that have been told; else with those that have succeeded, if it grows at all.
    #[must_use]
    pub fn grows_by_telling(&self) -> bool {
        self.exponential_rate.is_some_and(|growing| growing.rate_increase_criteria.number_of_notified_things.is_some())
    }
}

impl ExponentialRate {
    /// The factor in tenths, exactly; none where it is not between 1.1 and 5, or has more than one decimal.
    #[must_use]
    pub fn factor_tenths(&self) -> Option<u32> {
        (11..=50).find(|tenths| (self.increment_factor * 10.0 - f64::from(*tenths)).abs() < 1e-9)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { maximum_per_minute: most, exponential_rate } = self;
        let Some(ExponentialRate { base_rate_per_minute, increment_factor, rate_increase_criteria }) = exponential_rate
        else {
            return write!(f, "{most} devices a minute");
        };
        write!(f, "{base_rate_per_minute} devices a minute, times {increment_factor} whenever ")?;
        let RateIncreaseCriteria { number_of_notified_things: told, number_of_succeeded_things: done } =
            rate_increase_criteria;
        match (told, done) {
            (Some(more), _) => write!(f, "{more} more have been told")?,
            (None, more) => write!(f, "{} more have succeeded", more.unwrap_or_default())?,
        }
        write!(f, ", at most {most}")
    }
}

/// Whether a rate can be kept; says what is wrong, and what to do.
pub(super) fn validate(spec: &RolloutSpec) -> Result<(), &'static str> {
    let Some(Rate { maximum_per_minute, exponential_rate }) = &spec.rate else { return Ok(()) };
    let expect = |holds: bool, why| if holds { Ok(()) } else { Err(why) };
    let range = 1..=MAX_PER_MINUTE;
    expect(range.contains(maximum_per_minute), "maximum_per_minute must be 1 to 1000")?;
    expect(
        spec.blue_green.is_none(),
        "devices of a group switch together, however slowly they come in, so it would slow nothing that answers: leave it or blue_green out",
    )?;
    expect(
        spec.waves.iter().all(|wave| wave.stage.is_none()),
        "devices that ran the bundle as shadow are told to serve it all at once: leave it or the stage of waves out",
    )?;
    let Some(growing) = exponential_rate else { return Ok(()) };
    expect(range.contains(&growing.base_rate_per_minute), "base_rate_per_minute must be 1 to 1000")?;
    expect(
        growing.base_rate_per_minute <= *maximum_per_minute,
        "base_rate_per_minute must not be above maximum_per_minute: lower one or raise the other",
    )?;
    expect(growing.factor_tenths().is_some(), "increment_factor must be 1.1 to 5 with one decimal")?;
    let RateIncreaseCriteria { number_of_notified_things: told, number_of_succeeded_things: done } =
        growing.rate_increase_criteria;
    match (told, done) {
        (Some(1..), None) | (None, Some(1..)) => Ok(()),
        (Some(0), None) | (None, Some(0)) => Err("rate_increase_criteria must be 1 device at least"),
        (None, None) | (Some(_), Some(_)) => {
            Err("rate_increase_criteria must be either number_of_notified_things or number_of_succeeded_things")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{BlueGreen, WaveSpec};
    use crate::selector::Selector;

    fn asked(rate: &str) -> RolloutSpec {
        let waves = vec![WaveSpec::of("100%".parse().unwrap(), 1_000, 60_000)];
        let plain = RolloutSpec::of("digits@1.0.0".parse().unwrap(), Selector::all(), waves);
        RolloutSpec { rate: Some(serde_json::from_str(rate).unwrap()), ..plain }
    }

    fn growing(base: u32, factor: f64, criteria: &str) -> RolloutSpec {
        asked(&format!(
            r#"{{"maximum_per_minute": 500, "exponential_rate": {{"base_rate_per_minute": {base},
                 "increment_factor": {factor}, "rate_increase_criteria": {{{criteria}}}}}}}"#
        ))
    }

    #[test]
    fn a_rate_that_cannot_be_kept_is_refused() {
        let good = r#""number_of_succeeded_things": 50"#;
        for spec in
            [growing(10, 2.0, good), growing(500, 1.1, good), growing(1, 5.0, r#""number_of_notified_things": 1"#)]
        {
            assert_eq!(spec.validate(), Ok(()));
        }
        let both = r#""number_of_succeeded_things": 50, "number_of_notified_things": 50"#;
        for (spec, word) in [
            (asked(r#"{"maximum_per_minute": 0}"#), "rate: maximum_per_minute"),
            (asked(r#"{"maximum_per_minute": 1001}"#), "1 to 1000"),
            (growing(0, 2.0, good), "base_rate_per_minute"),
            (growing(501, 2.0, good), "above maximum_per_minute"),
            (growing(10, 1.0, good), "increment_factor"),
            (growing(10, 1.25, good), "one decimal"),
            (growing(10, 5.1, good), "1.1 to 5"),
            (growing(10, 2.0, ""), "either"),
            (growing(10, 2.0, both), "either"),
            (growing(10, 2.0, r#""number_of_succeeded_things": 0"#), "1 device"),
            (RolloutSpec { blue_green: Some(BlueGreen::default()), ..growing(10, 2.0, good) }, "blue_green"),
        ] {
            let error = spec.validate().unwrap_err().to_string();
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    }

    #[test]
    fn a_wish_that_is_none_keeps_its_bytes_and_any_other_has_its_words() {
        let spec = RolloutSpec { rate: None, ..growing(10, 2.0, r#""number_of_succeeded_things": 50"#) };
        assert!(!serde_json::to_string(&spec).unwrap().contains("\"rate\""), "{spec:?}");
        let said = |criteria| growing(10, 1.5, criteria).rate.unwrap().to_string();
        let said = [said(r#""number_of_succeeded_things": 50"#), said(r#""number_of_notified_things": 7"#)];
        let words = ["50 more have succeeded", "7 more have been told"]
            .map(|when| format!("10 devices a minute, times 1.5 whenever {when}, at most 500"));
        assert_eq!(said, words);
        assert_eq!(asked("{}").rate.unwrap(), Rate { maximum_per_minute: 1_000, exponential_rate: None });
    }
}
