//! Whom a rollout leaves on what they have: a group held back for good, and who comes later.

use serde::{Deserialize, Serialize};

use super::{RolloutSpec, WaveSize};

/// Largest share of devices that can be held back: a rollout that reaches fewer than half reaches nobody.
const MOST_HELD_BACK_PERCENT: u8 = 50;

/// What becomes of devices that the selector means only later: enrolled, or given other labels, after the rollout began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Joining {
    /// They come in with the wave that has room for them.
    #[default]
    Include,
    /// They are left out: the devices meant are those of the beginning.
    Exclude,
}

impl Joining {
    /// Whether they come in.
    #[must_use]
    pub fn is_include(&self) -> bool {
        *self == Self::Include
    }
}

/// Why a rollout cannot leave out whom it is asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReachError {
    /// A group that is no share, or too large.
    #[error("holdback: a share of the devices from 1% to {MOST_HELD_BACK_PERCENT}%")]
    Holdback,
    /// An emergency leaves nobody out.
    #[error("an emergency goes to every device at once: leave out holdback and joining, or let it be no emergency")]
    Emergency,
}

/// Whether the rollout can leave out whom it is asked to.
pub(super) fn validate(spec: &RolloutSpec) -> Result<(), ReachError> {
    if spec.emergency && (spec.holdback.is_some() || !spec.joining.is_include()) {
        return Err(ReachError::Emergency);
    }
    match spec.holdback {
        None | Some(WaveSize::Percent(1..=MOST_HELD_BACK_PERCENT)) => Ok(()),
        Some(WaveSize::Percent(_) | WaveSize::Count(_)) => Err(ReachError::Holdback),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{SpecError, WaveSpec};
    use crate::selector::Selector;

    #[test]
    fn a_group_is_a_share_of_at_most_half() {
        let waves = vec![WaveSpec::of("100%".parse().unwrap(), 0, 60_000)];
        let good = RolloutSpec::of("digits@1.0.0".parse().unwrap(), Selector::all(), waves);
        let json = serde_json::to_string(&good).unwrap();
        assert!(!json.contains("holdback") && !json.contains("joining"), "{json}");
        let with = |holdback: &str| RolloutSpec { holdback: Some(holdback.parse().unwrap()), ..good.clone() };
        assert!(with("1%").validate().is_ok() && with("50%").validate().is_ok());
        for bad in ["3", "51%", "100%"] {
            assert_eq!(with(bad).validate(), Err(SpecError::Reach(ReachError::Holdback)), "{bad}");
        }
        let urgent = RolloutSpec { emergency: true, ..with("5%") };
        assert_eq!(urgent.validate(), Err(SpecError::Reach(ReachError::Emergency)));
        let urgent = RolloutSpec { emergency: true, joining: Joining::Exclude, ..good.clone() };
        assert_eq!(urgent.validate(), Err(SpecError::Reach(ReachError::Emergency)));
        let whole = RolloutSpec { joining: Joining::Exclude, ..with("5%") };
        let json = serde_json::to_string(&whole).unwrap();
        assert!(json.contains(r#""holdback":"5%""#) && json.contains(r#""joining":"exclude""#), "{json}");
        assert_eq!(serde_json::from_str::<RolloutSpec>(&json).unwrap(), whole);
    }
}
