//! What becomes of a rollout that wants devices of another one, as asked for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The priority of a rollout that says none.
pub const DEFAULT_PRIORITY: u8 = 50;
/// The highest priority.
pub const MAX_PRIORITY: u8 = 100;

/// What becomes of a rollout that means devices of another one that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Conflict {
    /// It leaves them out, and says so.
    #[default]
    Skip,
    /// It is not made.
    Refuse,
    /// It waits until nobody has any of them.
    Queue,
}

impl Conflict {
    /// Whether it is what nobody asked for.
    #[must_use]
    pub fn is_skip(&self) -> bool {
        *self == Self::Skip
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skip => "skip",
            Self::Refuse => "refuse",
            Self::Queue => "queue",
        })
    }
}
