//! The fleet-wide stop as people see it.

use serde::{Deserialize, Serialize};

use crate::api::RolloutCard;

/// A stop of the whole fleet: while it stands, no rollout goes on and none begins; what is on its way back goes on where an operator
/// orders it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetStop {
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// The name of the access token it was ordered with.
    pub by: String,
    /// Why, as far as that was said.
    pub reason: Option<String>,
}

/// Whether the fleet is stopped, and what that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetStopView {
    /// The stop that stands; none where rollouts may go on.
    pub stop: Option<FleetStop>,
    /// The rollouts that this call ended. Those that ran a bundle beside another are on their way back until devices have ended it.
    pub rollouts: Vec<RolloutCard>,
}
