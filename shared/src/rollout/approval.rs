//! What people said about a rollout before it began.

use serde::{Deserialize, Serialize};

/// What one person said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Approval {
    /// The name of the access token it was said with.
    pub by: String,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Why, as far as that was said.
    pub reason: Option<String>,
}

/// What came of asking for approvals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ApprovalOutcome {
    /// There are not enough yet.
    Pending,
    /// There were enough.
    Approved,
    /// Somebody rejected it.
    Rejected,
    /// There were not enough in time.
    TimedOut,
}

/// Approvals of a rollout that needs some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApprovalRecord {
    /// How many it takes: what was asked for, or what the controller demands, whichever is more.
    pub needed: u32,
    /// Those given, oldest first, nobody's twice.
    pub given: Vec<Approval>,
    /// Who rejected it, if somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Approval>,
    /// What came of it.
    pub outcome: ApprovalOutcome,
}
