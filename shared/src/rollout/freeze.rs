//! Times in which no further device is told to go forward.

use serde::{Deserialize, Serialize};

use crate::selector::Selector;

/// A freeze: from its beginning to its end no rollout tells a further device that it covers to go forward. Those told before go on, and
/// ways back always do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Freeze {
    /// What it is called.
    pub id: String,
    /// When it begins, in milliseconds since the Unix epoch.
    pub from_ms: u64,
    /// When it ends, in milliseconds since the Unix epoch.
    pub to_ms: u64,
    /// Why.
    pub reason: String,
    /// The devices it covers.
    pub selector: Selector,
    /// The name of the access token it was ordered with.
    pub by: String,
    /// When it was ordered, in milliseconds since the Unix epoch.
    pub created_at_ms: u64,
}

/// A wish for a freeze.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateFreeze {
    /// When it begins, in milliseconds since the Unix epoch; at once where that is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_ms: Option<u64>,
    /// When it ends, in milliseconds since the Unix epoch.
    pub to_ms: u64,
    /// Why.
    pub reason: String,
    /// The devices it covers; all where that is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
}
