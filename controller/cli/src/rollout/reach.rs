//! Whom a rollout leaves on what they have, as flags have it.

use clap::{Args, ValueEnum};
use muster_shared::rollout::{Joining, RolloutSpec, WaveSize};
use schemars::JsonSchema;
use serde::Deserialize;

/// What becomes of devices that are meant only later, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum JoiningWord {
    /// They come in with the wave that has room for them.
    #[default]
    Include,
    /// They are left out.
    Exclude,
}

/// Whom a rollout leaves out.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct ReachOptions {
    /// Share of the devices that keeps what it has for good, to compare with, as 5%: the same devices in every rollout with that share, and
    /// controls also for the last wave [default: none].
    #[arg(long, value_name = "SHARE")]
    pub(super) holdback: Option<WaveSize>,
    /// What becomes of devices that the selector means only after the rollout began [default: include].
    #[arg(long, value_name = "WHEN")]
    pub(super) joining: Option<JoiningWord>,
}

impl ReachOptions {
    /// `spec` with what was asked for.
    pub(super) fn of(self, spec: RolloutSpec) -> RolloutSpec {
        let joining = match self.joining.unwrap_or_default() {
            JoiningWord::Include => Joining::Include,
            JoiningWord::Exclude => Joining::Exclude,
        };
        RolloutSpec { holdback: self.holdback, joining, ..spec }
    }
}
