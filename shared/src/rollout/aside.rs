//! Devices that rollouts leave aside: those that were pinned, and those on which updates keep failing.

use serde::{Deserialize, Serialize};

/// That no rollout takes a device in, because updates failed on it again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Quarantine {
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Why: how many updates failed, and how the last one did.
    pub why: String,
}

/// That no rollout takes a device in, because an operator said so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pin {
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// The name of the access token it was ordered with.
    pub by: String,
    /// Why, as far as that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
