//! What an operator asks for, and what makes it valid.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::gate::{GateError, GateSpec};
use crate::ids::BundleRef;
use crate::limits::MAX_WAVES;
use crate::selector::Selector;
use crate::trust::{DeliveryPolicy, MIN_DOWNLOAD_BYTES_PER_S, Stage, StageError, WatchPolicy};

/// How large a wave is, all waves before it included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum WaveSize {
    /// That many devices, written `3`.
    Count(u32),
    /// That share of the devices meant, rounded up, written `25%`.
    Percent(u8),
}

impl WaveSize {
    /// How many of `candidates` devices the wave reaches.
    #[must_use]
    pub fn of(self, candidates: usize) -> usize {
        match self {
            Self::Count(count) => candidates.min(count as usize),
            Self::Percent(percent) => (candidates * usize::from(percent)).div_ceil(100).min(candidates),
        }
    }
}

/// Why a text is not a wave's size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the size of a wave: write a number of devices (3) or a share (25%), neither of them zero")]
pub struct WaveSizeError(String);

impl FromStr for WaveSize {
    type Err = WaveSizeError;
    fn from_str(text: &str) -> Result<Self, WaveSizeError> {
        let refuse = || WaveSizeError(text.chars().take(40).collect());
        match text.trim().strip_suffix('%') {
            Some(percent) => {
                let percent = percent.parse().map_err(|_| refuse())?;
                (1..=100).contains(&percent).then_some(Self::Percent(percent)).ok_or_else(refuse)
            }
            None => {
                let count = text.trim().parse().map_err(|_| refuse())?;
                (count > 0).then_some(Self::Count(count)).ok_or_else(refuse)
            }
        }
    }
}

impl TryFrom<String> for WaveSize {
    type Error = WaveSizeError;
    fn try_from(text: String) -> Result<Self, WaveSizeError> {
        text.parse()
    }
}

impl From<WaveSize> for String {
    fn from(size: WaveSize) -> String {
        size.to_string()
    }
}

impl fmt::Display for WaveSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// One wave of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WaveSpec {
    /// How large it is.
    pub size: WaveSize,
    /// Narrows the wave to some of the rollout's devices, as to one site.
    #[serde(default)]
    pub selector: Option<Selector>,
    /// The least time it is watched after its devices have committed, in milliseconds.
    pub soak_ms: u64,
    /// After this without a verdict the rollout pauses, in milliseconds.
    pub max_duration_ms: u64,
}

/// Limits that stop a wave at once when they are passed. Each is judged once enough has been counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Limits {
    /// Largest share of served requests that the model fails.
    pub max_error_rate: f64,
    /// Largest ratio of the 99th percentile of latency to the incumbent's.
    pub max_latency_p99_ratio: f64,
    /// Devices that may fail, revert or crash on the new bundle.
    pub max_failures: u32,
    /// Largest population stability index of predictions, canary against control.
    pub max_prediction_psi: f64,
    /// Telemetry windows with requests in them that a wave needs from its devices; the control needs as many for a
    /// comparison.
    pub min_reports: u32,
    /// Requests that a wave needs from its devices.
    pub min_requests: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_error_rate: 0.05,
            max_latency_p99_ratio: 2.0,
            max_failures: 0,
            max_prediction_psi: 0.25,
            min_reports: 3,
            min_requests: 100,
        }
    }
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutSpec {
    /// The bundle to bring out.
    pub bundle: BundleRef,
    /// The devices meant.
    pub selector: Selector,
    /// The waves, in order; the last reaches every device meant.
    pub waves: Vec<WaveSpec>,
    /// Limits of every wave.
    #[serde(default)]
    pub limits: Limits,
    /// How devices of a wave are compared with others before it passes; none to hold them against the limits alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateSpec>,
    /// How devices watch the bundle before they commit.
    #[serde(default)]
    pub watch: WatchPolicy,
    /// When and how fast devices may fetch the bundle.
    #[serde(default, skip_serializing_if = "DeliveryPolicy::is_default")]
    pub delivery: DeliveryPolicy,
    /// In which part devices run the bundle. Waves, soak and limits are the same for all.
    #[serde(default, skip_serializing_if = "Stage::is_serve")]
    pub stage: Stage,
}

/// Why a rollout as asked for is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No wave, or too many.
    #[error("a rollout has 1 to {MAX_WAVES} waves, this one has {0}")]
    Waves(usize),
    /// The last wave leaves devices out.
    #[error("the last wave must reach every device: its size must be 100%, without a selector of its own")]
    LastWave,
    /// A wave that can never end.
    #[error("wave {0}: its longest duration must be longer than its soak time")]
    Duration(usize),
    /// A part that no device can run a bundle in.
    #[error("stage: {0}")]
    Stage(#[from] StageError),
    /// A gate that cannot be.
    #[error("gate: {0}")]
    Gate(#[from] GateError),
    /// A limit that is not a sensible number.
    #[error("limit {field}: {reason}")]
    Limit {
        /// Its name.
        field: &'static str,
        /// What is expected.
        reason: &'static str,
    },
}

impl RolloutSpec {
    /// Checks what the types alone do not express.
    ///
    /// # Errors
    /// [`SpecError`] with the first fault found.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.waves.is_empty() || self.waves.len() > MAX_WAVES {
            return Err(SpecError::Waves(self.waves.len()));
        }
        if self.waves.last().is_some_and(|w| w.size != WaveSize::Percent(100) || w.selector.is_some()) {
            return Err(SpecError::LastWave);
        }
        if let Some(at) = self.waves.iter().position(|w| w.max_duration_ms <= w.soak_ms) {
            return Err(SpecError::Duration(at + 1));
        }
        self.stage.validate()?;
        self.gate.as_ref().map_or(Ok(()), |gate| gate.validate(&self.stage))?;
        let limit = |ok: bool, field, reason| {
            if ok { Ok(()) } else { Err(SpecError::Limit { field, reason }) }
        };
        let Limits { max_error_rate, max_latency_p99_ratio, max_prediction_psi, min_reports, min_requests, .. } =
            self.limits;
        limit((0.0..=1.0).contains(&max_error_rate), "max_error_rate", "a share between 0 and 1")?;
        limit(max_latency_p99_ratio.is_finite() && max_latency_p99_ratio > 0.0, "max_latency_p99_ratio", "above 0")?;
        limit(max_prediction_psi.is_finite() && max_prediction_psi > 0.0, "max_prediction_psi", "above 0")?;
        limit(min_reports > 0, "min_reports", "at least 1: no data must never promote")?;
        limit(min_requests > 0, "min_requests", "at least 1: no data must never promote")?;
        limit((0.0..=1.0).contains(&self.watch.max_error_rate), "watch.max_error_rate", "a share between 0 and 1")?;
        let cap = self.delivery.max_download_bytes_per_s;
        let reason = "at least 256, or the bundle would never arrive";
        limit(cap.is_none_or(|cap| cap >= MIN_DOWNLOAD_BYTES_PER_S), "delivery.max_download_bytes_per_s", reason)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_round_up_and_never_past_the_fleet() {
        for (text, candidates, size) in
            [("1%", 12, 1), ("25%", 10, 3), ("100%", 7, 7), ("3", 12, 3), ("30", 12, 12), ("50%", 0, 0)]
        {
            assert_eq!(text.parse::<WaveSize>().unwrap().of(candidates), size, "{text} of {candidates}");
        }
        for bad in ["", "0", "0%", "101%", "-1", "1.5%", "%", "ten"] {
            assert!(bad.parse::<WaveSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_spec_must_be_able_to_end_and_to_see() {
        let wave =
            |size: &str| WaveSpec { size: size.parse().unwrap(), selector: None, soak_ms: 1, max_duration_ms: 2 };
        let good = RolloutSpec {
            bundle: "digits@1.0.0".parse().unwrap(),
            selector: Selector::all(),
            waves: vec![wave("1"), wave("100%")],
            limits: Limits::default(),
            gate: None,
            watch: WatchPolicy::default(),
            delivery: DeliveryPolicy::default(),
            stage: Stage::Serve,
        };
        assert_eq!(good.validate(), Ok(()));
        let with = |change: &dyn Fn(&mut RolloutSpec)| {
            let mut spec = good.clone();
            change(&mut spec);
            spec.validate().unwrap_err()
        };
        assert_eq!(with(&|s| s.waves.clear()), SpecError::Waves(0));
        assert_eq!(with(&|s| s.waves.truncate(1)), SpecError::LastWave);
        assert_eq!(with(&|s| s.waves[0].soak_ms = 2), SpecError::Duration(1));
        assert!(matches!(with(&|s| s.limits.min_reports = 0), SpecError::Limit { field: "min_reports", .. }));
        assert!(matches!(with(&|s| s.limits.max_error_rate = f64::NAN), SpecError::Limit { .. }));
        let none_of_it = with(&|s| s.stage = Stage::Shadow { share_bp: 0 });
        assert!(none_of_it.to_string().contains("0 basis points"), "{none_of_it}");
        let crawls = with(&|s| s.delivery.max_download_bytes_per_s = Some(MIN_DOWNLOAD_BYTES_PER_S - 1));
        assert!(crawls.to_string().contains("delivery.max_download_bytes_per_s"), "{crawls}");
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_refused(text in ".{0,12}") {
            if let Ok(size) = text.parse::<WaveSize>() {
                prop_assert_eq!(size.to_string().parse::<WaveSize>().unwrap(), size);
            }
        }
    }
}
