//! When so many devices fail that a rollout ends by itself, from flags: `timed_out:20%:10` or `failed:5%:50:cancel`.

use std::str::FromStr;

use clap::Args;
use muster_shared::rollout::{AbortAction, AbortCriterion, FailureType};

/// A criterion as a flag has it: `TYPE:SHARE:LEAST[:ACTION]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CriterionFlag(pub(super) AbortCriterion);

impl FromStr for CriterionFlag {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (failure_type, share, least, action) = match parts[..] {
            [failure_type, share, least] => (failure_type, share, least, "roll_back"),
            [failure_type, share, least, action] => (failure_type, share, least, action),
            _ => return Err("write TYPE:SHARE:LEAST[:ACTION], as timed_out:20%:10".to_owned()),
        };
        let failure_type = match failure_type {
            "failed" => FailureType::Failed,
            "rejected" => FailureType::Rejected,
            "timed_out" => FailureType::TimedOut,
            "all" => FailureType::All,
            other => return Err(format!("{other:?} is no type of failure: failed, rejected, timed_out or all")),
        };
        let action = match action {
            "roll_back" => AbortAction::RollBack,
            "cancel" => AbortAction::Cancel,
            other => return Err(format!("{other:?} is no action: roll_back or cancel")),
        };
        let threshold_percentage = share.strip_suffix('%').and_then(|share| share.parse().ok());
        let threshold_percentage =
            threshold_percentage.ok_or_else(|| format!("{share:?} is no share of devices: write it as 20%"))?;
        let min_number_of_executed_things =
            least.parse().map_err(|_| format!("{least:?} is no number of devices that must have ended"))?;
        Ok(Self(AbortCriterion { failure_type, action, threshold_percentage, min_number_of_executed_things }))
    }
}

/// When a rollout ends by itself.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct AbortOptions {
    /// End the rollout when that share of the devices that ended has failed so, as timed_out:20%:10: TYPE is failed, rejected, timed_out or
    /// all; LEAST is how many must have ended before the share is looked at; ACTION is roll_back (unless told otherwise) or cancel, which
    /// leaves devices with what they have. Up to 8 times.
    #[arg(long = "abort-when", value_name = "TYPE:SHARE:LEAST[:ACTION]")]
    abort_criteria: Vec<CriterionFlag>,
}

impl AbortOptions {
    /// What flags ask for.
    pub(super) fn criteria(&self) -> Vec<AbortCriterion> {
        self.abort_criteria.iter().map(|flag| flag.0).collect()
    }
}

/// Criteria, one a line.
pub(super) fn text(criteria: &[AbortCriterion]) -> String {
    criteria.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn criteria_are_read_as_people_write_them() {
        let read = |text: &str| text.parse::<CriterionFlag>();
        let plain = read("timed_out:12.5%:10").unwrap().0;
        let expected = AbortCriterion {
            failure_type: FailureType::TimedOut,
            action: AbortAction::RollBack,
            threshold_percentage: 12.5,
            min_number_of_executed_things: 10,
        };
        assert_eq!(plain, expected);
        assert_eq!(read("all:20%:5:cancel").unwrap().0.action, AbortAction::Cancel);
        assert_eq!(text(&[plain]), "roll back when 12.5 % of at least 10 devices that ended timed out");
        for (bad, word) in [
            ("timed_out:20%", "TYPE:SHARE:LEAST"),
            ("late:20%:5", "timed_out"),
            ("all:20:5", "20%"),
            ("all:20%:few", "few"),
            ("all:20%:5:pause", "cancel"),
        ] {
            let why = read(bad).unwrap_err();
            assert!(why.contains(word), "{bad}: {why}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_criterion_or_refused(text in ".{0,24}|[a-z_]{3,9}:[0-9.]{1,4}%:[0-9]{1,3}(:[a-z_]{4,9})?") {
            let _ = text.parse::<CriterionFlag>();
        }
    }
}
