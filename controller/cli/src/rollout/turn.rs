//! When a rollout begins, and beside which others: from flags or from a file in the same words.

use clap::{Args, ValueEnum};
use muster_shared::rollout::{Conflict, DEFAULT_PRIORITY, MaintenanceWindow, RolloutSpec};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::moment::Moment;

/// What becomes of a rollout that means devices of another one, as flags and files have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ConflictWord {
    /// It leaves them out, and says so.
    #[default]
    Skip,
    /// It is not made.
    Refuse,
    /// It waits until nobody has any of them.
    Queue,
}

/// When it begins, and who goes first.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct TurnOptions {
    /// Begin at this time, as 2026-03-01T22:00:00Z [default: at once].
    #[arg(long, value_name = "TIME")]
    pub(super) start_at: Option<Moment>,
    /// Where it means devices of another rollout that has not ended: leave them out, refuse to make it, or queue [default: skip].
    #[arg(long, value_name = "WHAT")]
    pub(super) conflict: Option<ConflictWord>,
    /// Of those that queue for the same devices, the highest goes first, 0 to 100 [default: 50].
    #[arg(long, value_name = "N")]
    pub(super) priority: Option<u8>,
    /// Let devices come in only then, by their own clocks, as "mon-fri 22:00-05:00". Once for each [default: at any time].
    #[arg(long = "window", value_name = "[DAYS ]FROM-TO")]
    pub(super) windows: Vec<MaintenanceWindow>,
    /// The time zone of devices that name none by the label or attribute timezone, as Europe/Paris [default: UTC].
    #[arg(long, value_name = "ZONE", requires = "windows")]
    pub(super) timezone: Option<String>,
}

impl TurnOptions {
    /// `spec` with what was asked for.
    pub(super) fn apply(self, spec: RolloutSpec) -> RolloutSpec {
        RolloutSpec {
            start_at_ms: self.start_at.map(|at| at.0),
            conflict: match self.conflict.unwrap_or_default() {
                ConflictWord::Skip => Conflict::Skip,
                ConflictWord::Refuse => Conflict::Refuse,
                ConflictWord::Queue => Conflict::Queue,
            },
            priority: self.priority.unwrap_or(DEFAULT_PRIORITY),
            windows: self.windows,
            timezone: self.timezone,
            ..spec
        }
    }
}
