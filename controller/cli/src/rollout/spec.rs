//! What a rollout is to be, from flags or from a file ([`file`]). Flags and files in YAML or TOML share their words.

mod contradiction;
mod file;

use std::str::FromStr;

use clap::{Args, ValueEnum};
use muster_shared::ids::BundleRef;
use muster_shared::rollout::{Limits, RolloutSpec, WaveSize, WaveSpec};
use muster_shared::selector::Selector;
use muster_shared::trust::{DeliveryPolicy, MeteredUse, WatchPolicy};
use schemars::JsonSchema;
use serde::Deserialize;

pub(super) use file::{SpecFile, from_file};

use crate::duration::Millis;

const DEFAULT_SOAK: Millis = Millis(600_000);
const DEFAULT_MAX_DURATION: Millis = Millis(3_600_000);

/// A wave as a flag has it: `SIZE` or `SIZE:SELECTOR`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WaveFlag {
    pub(super) size: WaveSize,
    pub(super) selector: Option<Selector>,
}

impl FromStr for WaveFlag {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (size, selector) = match text.split_once(':') {
            Some((size, selector)) => (size, Some(selector)),
            None => (text, None),
        };
        Ok(Self {
            size: size.parse().map_err(|error: muster_shared::rollout::WaveSizeError| error.to_string())?,
            selector: selector
                .map(str::parse)
                .transpose()
                .map_err(|error: muster_shared::selector::SelectorError| error.to_string())?,
        })
    }
}

/// When a wave is judged.
#[derive(Debug, Clone, Copy, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Pace {
    /// The least time each wave is watched after its devices have committed [default: 10m].
    #[arg(long, value_name = "DURATION")]
    pub(super) soak: Option<Millis>,
    /// Pause if a wave has no verdict after this [default: 1h].
    #[arg(long, value_name = "DURATION")]
    pub(super) max_duration: Option<Millis>,
}

/// Limits that stop a wave at once.
#[derive(Debug, Clone, Copy, Default, Args, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct LimitOptions {
    /// Largest share of requests that the model may fail [default: 0.05].
    #[arg(long, value_name = "SHARE")]
    max_error_rate: Option<f64>,
    /// Largest ratio of the 99th percentile of latency to the incumbent's [default: 2].
    #[arg(long, value_name = "RATIO")]
    max_latency_p99_ratio: Option<f64>,
    /// Devices that may fail, revert or crash [default: 0].
    #[arg(long, value_name = "N")]
    max_failures: Option<u32>,
    /// Largest population stability index of predictions, canary against control [default: 0.25].
    #[arg(long, value_name = "PSI")]
    max_prediction_psi: Option<f64>,
    /// Largest share of rows for which a shadow names another class than the bundle in service [default: none].
    #[arg(long, value_name = "SHARE")]
    max_disagreement: Option<f64>,
    /// Reports with requests in them that a wave needs [default: 3].
    #[arg(long, value_name = "N")]
    min_reports: Option<u32>,
    /// Requests that a wave needs [default: 100].
    #[arg(long, value_name = "N")]
    min_requests: Option<u64>,
}

impl LimitOptions {
    fn limits(self) -> Limits {
        let default = Limits::default();
        Limits {
            max_error_rate: self.max_error_rate.unwrap_or(default.max_error_rate),
            max_latency_p99_ratio: self.max_latency_p99_ratio.unwrap_or(default.max_latency_p99_ratio),
            max_failures: self.max_failures.unwrap_or(default.max_failures),
            max_prediction_psi: self.max_prediction_psi.unwrap_or(default.max_prediction_psi),
            max_disagreement: self.max_disagreement,
            min_reports: self.min_reports.unwrap_or(default.min_reports),
            min_requests: self.min_requests.unwrap_or(default.min_requests),
        }
    }
}

/// How each device watches the bundle before it commits.
#[derive(Debug, Clone, Copy, Default, Args, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ProbationOptions {
    /// How long a device serves the new bundle under watch before it commits [default: 60s].
    #[arg(long, value_name = "DURATION")]
    probation: Option<Millis>,
    /// Share of requests that may fail on a device meanwhile; more, and it reverts [default: 0.2].
    #[arg(long, value_name = "SHARE")]
    probation_max_error_rate: Option<f64>,
    /// Requests below which a device does not judge that share [default: 20].
    #[arg(long, value_name = "N")]
    probation_min_requests: Option<u64>,
}

impl ProbationOptions {
    fn policy(self) -> WatchPolicy {
        let default = WatchPolicy::default();
        WatchPolicy {
            probation_ms: self.probation.map_or(default.probation_ms, |duration| duration.0),
            max_error_rate: self.probation_max_error_rate.unwrap_or(default.max_error_rate),
            min_requests: self.probation_min_requests.unwrap_or(default.min_requests),
        }
    }
}

/// Whether a bundle may travel on metered links, as flags and files have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Metered {
    /// As each device is configured.
    #[default]
    AsConfigured,
    /// Yes, however devices are configured.
    Allowed,
    /// No, however devices are configured.
    Never,
}

/// When and how fast each device fetches the bundle.
#[derive(Debug, Clone, Copy, Default, Args, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DeliveryOptions {
    /// Most bytes a device fetches in a second, where it is not configured to fewer [default: no cap].
    #[arg(long, value_name = "BYTES")]
    max_download_bytes_per_s: Option<u64>,
    /// Whether the bundle may travel on metered links [default: as-configured].
    #[arg(long, value_name = "WHEN")]
    metered: Option<Metered>,
    /// Fetch the bundle in devices' quiet hours, too.
    #[arg(long)]
    ignore_quiet_hours: bool,
}

impl DeliveryOptions {
    fn policy(self) -> DeliveryPolicy {
        DeliveryPolicy {
            max_download_bytes_per_s: self.max_download_bytes_per_s,
            metered: match self.metered.unwrap_or_default() {
                Metered::AsConfigured => MeteredUse::AsConfigured,
                Metered::Allowed => MeteredUse::Allowed,
                Metered::Never => MeteredUse::Never,
            },
            ignore_quiet_hours: self.ignore_quiet_hours,
        }
    }
}

impl Pace {
    /// The same, without a soak in an emergency that says nothing of it.
    pub(super) fn or_at_once(self, emergency: bool) -> Self {
        Self { soak: self.soak.or_else(|| emergency.then_some(Millis(0))), ..self }
    }

    /// A wave of this pace; what the wave itself says wins.
    pub(super) fn wave(self, size: WaveSize, selector: Option<Selector>, own: Self) -> WaveSpec {
        let soak = own.soak.or(self.soak).unwrap_or(DEFAULT_SOAK);
        let longest = own.max_duration.or(self.max_duration).unwrap_or(DEFAULT_MAX_DURATION);
        WaveSpec { selector, ..WaveSpec::of(size, soak.0, longest.0) }
    }
}

fn everybody() -> WaveFlag {
    WaveFlag { size: WaveSize::Percent(100), selector: None }
}

/// The rollout that flags describe.
pub(super) fn from_flags(
    bundle: BundleRef,
    selector: Selector,
    waves: &[WaveFlag],
    pace: Pace,
    limits: LimitOptions,
    probation: ProbationOptions,
    delivery: DeliveryOptions,
) -> RolloutSpec {
    let default = [everybody()];
    let waves = if waves.is_empty() { &default } else { waves };
    let waves = waves.iter().map(|wave| pace.wave(wave.size, wave.selector.clone(), Pace::default())).collect();
    RolloutSpec {
        limits: limits.limits(),
        watch: probation.policy(),
        delivery: delivery.policy(),
        ..RolloutSpec::of(bundle, selector, waves)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wave_has_a_size_and_perhaps_a_selector() {
        for bad in ["", "0", "101%", "1:", "1:=x", ":site=a"] {
            assert!(bad.parse::<WaveFlag>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_wave_is_read_or_refused(text in ".{0,20}|[0-9]{1,3}%?:[a-z=!,]{0,10}") {
            let _ = text.parse::<WaveFlag>();
        }
    }
}
