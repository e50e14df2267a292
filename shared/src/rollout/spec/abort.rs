//! When so many devices fail that the rollout ends by itself. The names are those of AWS IoT Jobs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::RolloutSpec;
use crate::limits::MAX_ABORT_CRITERIA;
use crate::rollout::FailureKind;

/// Which failures a criterion counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub enum FailureType {
    /// Devices that took the bundle up and failed, reverted or crashed.
    Failed,
    /// Devices that refused it before they began.
    Rejected,
    /// Devices that did not commit within their deadline.
    TimedOut,
    /// Each of them.
    All,
}

impl FailureType {
    /// Whether a failure of that kind counts.
    #[must_use]
    pub fn counts(self, kind: FailureKind) -> bool {
        match self {
            Self::Failed => kind == FailureKind::Failed,
            Self::Rejected => kind == FailureKind::Rejected,
            Self::TimedOut => kind == FailureKind::TimedOut,
            Self::All => true,
        }
    }

    /// What a device did that is counted, after a number of them.
    const fn did(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Rejected => "rejected the bundle",
            Self::TimedOut => "timed out",
            Self::All => "did not succeed",
        }
    }
}

/// How a rollout ends whose criterion is met. There is no pause: a criterion that is met stays so, and would pause again whoever resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub enum AbortAction {
    /// Every device goes back to what it ran before.
    #[default]
    RollBack,
    /// It stops, and devices keep what they have. AWS IoT Jobs has this alone.
    Cancel,
}

impl AbortAction {
    /// Whether it is what is done where nothing is said.
    #[must_use]
    pub fn is_roll_back(&self) -> bool {
        *self == Self::RollBack
    }
}

impl fmt::Display for AbortAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RollBack => "roll back",
            Self::Cancel => "cancel",
        })
    }
}

/// When so many devices fail that the rollout ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct AbortCriterion {
    /// Which failures count.
    pub failure_type: FailureType,
    /// How the rollout ends.
    #[serde(default, skip_serializing_if = "AbortAction::is_roll_back")]
    pub action: AbortAction,
    /// The least share of devices that ends it, in percent: of those that have come to an end, the ones that failed so.
    pub threshold_percentage: f64,
    /// Devices that must have come to an end before that share is looked at: they have committed, failed or timed out.
    #[cfg_attr(feature = "json-schema", schemars(range(min = 1)))]
    pub min_number_of_executed_things: u32,
}

impl AbortCriterion {
    /// Whether it is met by `matching` failures among `executed` devices that have come to an end.
    #[must_use]
    pub fn is_met(&self, matching: u32, executed: u32) -> bool {
        executed >= self.min_number_of_executed_things
            && f64::from(matching) * 100.0 >= self.threshold_percentage * f64::from(executed)
    }

    /// What `matching` devices did, as it counts them.
    #[must_use]
    pub fn did(&self) -> &'static str {
        self.failure_type.did()
    }
}

impl fmt::Display for AbortCriterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failure_type, action, threshold_percentage, min_number_of_executed_things: least } = self;
        write!(
            f,
            "{action} when {threshold_percentage} % of at least {least} devices that ended {}",
            failure_type.did()
        )
    }
}

/// Whether the criteria can ever decide; says what is wrong, and what to do.
pub(super) fn validate(spec: &RolloutSpec) -> Result<(), &'static str> {
    let any = |is: &dyn Fn(&AbortCriterion) -> bool| spec.abort_criteria.iter().any(is);
    let never_tolerates = spec.limits.max_failures == 0;
    let never_late = spec.deadlines.is_none();
    let faults = [
        (spec.abort_criteria.len() > MAX_ABORT_CRITERIA, "a rollout has at most 8"),
        (
            any(&|criterion| !(criterion.threshold_percentage > 0.0 && criterion.threshold_percentage <= 100.0)),
            "threshold_percentage must be above 0 and 100 at most",
        ),
        (
            any(&|criterion| criterion.min_number_of_executed_things == 0),
            "min_number_of_executed_things must be at least 1: no device that ended is no share",
        ),
        (
            spec.emergency && !spec.abort_criteria.is_empty(),
            "an emergency is held against nothing: leave them out, or let it be no emergency",
        ),
        (
            never_late && any(&|criterion| criterion.failure_type == FailureType::TimedOut),
            "without deadlines no device times out: give deadlines, or leave the criterion on timed_out out",
        ),
        (
            never_tolerates
                && any(&|criterion| matches!(criterion.failure_type, FailureType::Failed | FailureType::Rejected)),
            "limits.max_failures is 0, so the first device that fails takes everything back and no share is ever looked at: raise it, or leave the criterion out",
        ),
        (
            never_tolerates && never_late && any(&|criterion| criterion.failure_type == FailureType::All),
            "limits.max_failures is 0 and no device times out without deadlines, so no share is ever looked at: raise it, give deadlines, or leave the criterion out",
        ),
        (
            !spec.abort_criteria.is_empty() && spec.waves.iter().any(|wave| wave.stage.is_some()),
            "devices that run the bundle as shadow first are told twice, so what they have come to is not final: leave it out, or let no wave have a stage of its own",
        ),
    ];
    faults.iter().find(|(wrong, _)| *wrong).map_or(Ok(()), |(_, why)| Err(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{Deadlines, WaveSpec};
    use crate::selector::Selector;

    fn criterion(failure_type: FailureType) -> AbortCriterion {
        let action = AbortAction::RollBack;
        AbortCriterion { failure_type, action, threshold_percentage: 20.0, min_number_of_executed_things: 10 }
    }

    #[test]
    fn criteria_that_never_decide_are_refused() {
        let waves = vec![WaveSpec::of("100%".parse().unwrap(), 0, 60_000)];
        let plain = RolloutSpec::of("digits@1.0.0".parse().unwrap(), Selector::all(), waves);
        assert!(!serde_json::to_string(&plain).unwrap().contains("abort"), "a wish that is none keeps its bytes");
        let mut good = plain;
        good.limits.max_failures = 1_000;
        good.deadlines = Some(Deadlines { in_progress_ms: Some(1_800_000), offline_ms: None });
        good.abort_criteria = vec![criterion(FailureType::All), criterion(FailureType::TimedOut)];
        assert_eq!(good.validate(), Ok(()));
        let says = |change: &dyn Fn(&mut RolloutSpec), word: &str| {
            let mut spec = good.clone();
            change(&mut spec);
            let error = spec.validate().unwrap_err().to_string();
            assert!(error.starts_with("abort_criteria: ") && error.contains(word), "{error:?} does not say {word:?}");
        };
        says(&|s| s.abort_criteria = vec![criterion(FailureType::All); 9], "at most 8");
        says(&|s| s.abort_criteria[0].threshold_percentage = 0.0, "threshold_percentage");
        says(&|s| s.abort_criteria[0].threshold_percentage = f64::NAN, "threshold_percentage");
        says(&|s| s.abort_criteria[1].threshold_percentage = 100.5, "100 at most");
        says(&|s| s.abort_criteria[0].min_number_of_executed_things = 0, "at least 1");
        says(&|s| s.deadlines = None, "no device times out");
        says(
            &|s| {
                s.limits.max_failures = 0;
                s.abort_criteria.push(criterion(FailureType::Rejected));
            },
            "max_failures is 0",
        );
        says(
            &|s| {
                (s.limits.max_failures, s.deadlines) = (0, None);
                s.abort_criteria.truncate(1);
            },
            "give deadlines",
        );
    }

    #[test]
    fn a_share_is_looked_at_once_enough_have_ended_and_at_the_threshold() {
        let twenty = criterion(FailureType::Failed);
        assert!(!twenty.is_met(9, 9), "too few to look");
        assert!(twenty.is_met(2, 10) && !twenty.is_met(1, 10));
        assert!(!twenty.is_met(19, 100) && twenty.is_met(20, 100));
        assert_eq!(twenty.to_string(), "roll back when 20 % of at least 10 devices that ended failed");
    }

    #[test]
    fn criteria_are_read_as_aws_names_them() {
        let json = r#"{"failure_type": "timed_out", "action": "cancel", "threshold_percentage": 12.5, "min_number_of_executed_things": 4}"#;
        let read: AbortCriterion = serde_json::from_str(json).unwrap();
        let expected = AbortCriterion {
            action: AbortAction::Cancel,
            threshold_percentage: 12.5,
            min_number_of_executed_things: 4,
            ..criterion(FailureType::TimedOut)
        };
        assert_eq!(read, expected);
        assert!(serde_json::from_str::<AbortCriterion>(&json.replace("cancel", "pause")).is_err());
    }
}
