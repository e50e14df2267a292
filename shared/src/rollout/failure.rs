//! How a device fails a rollout. The words are those of AWS IoT Jobs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// In which way a device did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FailureKind {
    /// It took the bundle up and did not make it: it failed, reverted or crashed.
    #[default]
    Failed,
    /// It refused the bundle before it began, as one that it cannot run or has no room for.
    Rejected,
    /// It has not committed within its deadline. It says nothing of the bundle, and may commit yet.
    TimedOut,
}

impl FailureKind {
    /// Whether it is what is meant where nothing is said.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        *self == Self::Failed
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::TimedOut => "timed out",
        })
    }
}
