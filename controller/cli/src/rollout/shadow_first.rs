//! A first wave that runs the bundle as shadow, as flags and files have it.

use clap::Args;
use muster_shared::rollout::{RolloutSpec, WaveSize, WaveSpec};
use muster_shared::selector::Selector;
use muster_shared::trust::Stage;
use schemars::JsonSchema;
use serde::Deserialize;

use super::spec::{Pace, WaveFlag};
use super::stage::Share;
use crate::duration::Millis;

/// Which devices run the bundle as shadow before they, or any others, serve it.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct ShadowFirstOptions {
    /// Run the bundle as shadow on that many devices first, as 10% or 5:site=lyon: a wave before all others. They are the first to serve.
    #[arg(long, value_name = "SIZE[:SELECTOR]")]
    pub(super) shadow_first: Option<WaveFlag>,
    /// The share of the requests that they run it on meanwhile [default: 100%].
    #[arg(long, value_name = "PERCENT", requires = "shadow_first")]
    pub(super) shadow_share: Option<Share>,
    /// The least time they are watched meanwhile [default: as --soak].
    #[arg(long, value_name = "DURATION", requires = "shadow_first")]
    pub(super) shadow_soak: Option<Millis>,
}

/// The same as a section of a file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ShadowFirstTable {
    /// On how many devices: a number ('3') or a share (25%).
    size: WaveSize,
    /// Narrows it to some of the rollout's devices, as to one site.
    selector: Option<Selector>,
    /// The share of requests it runs on [default: 100%].
    share: Option<Share>,
    /// The least time it is watched [default: as the other waves].
    soak: Option<Millis>,
    /// Pause if it has no verdict after this [default: as the other waves].
    max_duration: Option<Millis>,
}

impl ShadowFirstOptions {
    /// `spec` with a wave before its own, where one is asked for.
    pub(super) fn of(&self, spec: RolloutSpec, pace: Pace) -> RolloutSpec {
        let first = self.shadow_first.clone().map(|WaveFlag { size, selector }| ShadowFirstTable {
            size,
            selector,
            share: self.shadow_share,
            soak: self.shadow_soak,
            max_duration: None,
        });
        let waves = first.map(|first| first.wave(pace)).into_iter().chain(spec.waves).collect();
        RolloutSpec { waves, ..spec }
    }
}

impl ShadowFirstTable {
    /// The wave it asks for; of `pace`, where it does not say otherwise.
    pub(super) fn wave(self, pace: Pace) -> WaveSpec {
        let share_bp = self.share.map_or(10_000, |share| share.basis_points);
        let own = Pace { soak: self.soak, max_duration: self.max_duration };
        WaveSpec { stage: Some(Stage::Shadow { share_bp }), ..pace.wave(self.size, self.selector, own) }
    }
}
