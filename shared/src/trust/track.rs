//! What of a device an assignment is about: the model it serves, or the program it is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the two things a device is kept up to date in. Each has generations of its own, and what is told of one says nothing of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Track {
    /// The bundle that answers requests.
    #[default]
    Model,
    /// The agent's own program. No manifest means the one that the package installed.
    Program,
}

impl Track {
    /// Every track, the one that answers requests first.
    pub const ALL: [Self; 2] = [Self::Model, Self::Program];

    /// Whether it is the model's. It is left out of documents then, so that agents that know of nothing else read them.
    #[must_use]
    pub fn is_model(&self) -> bool {
        *self == Self::Model
    }
}

impl fmt::Display for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model => "model",
            Self::Program => "program",
        })
    }
}
