//! Words of a rollout that controller, command line and pages share: what is asked for, how it stands, and
//! what each verdict rests on. How decisions come about is `muster-rollout`'s matter.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{BundleRef, DeviceId, Digest, RolloutId};
use crate::limits::MAX_WAVES;
use crate::selector::Selector;
use crate::trust::WatchPolicy;

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
    /// How devices watch the bundle before they commit.
    #[serde(default)]
    pub watch: WatchPolicy,
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
        limit((0.0..=1.0).contains(&self.watch.max_error_rate), "watch.max_error_rate", "a share between 0 and 1")
    }
}

/// States of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RolloutStatus {
    /// Being written; nothing happens.
    Draft,
    /// Waits for people.
    WaitingForApproval,
    /// Will start at the next tick.
    Ready,
    /// Brings the bundle out.
    Running,
    /// Devices that have the bundle keep it; no further one gets it.
    Paused,
    /// Devices go back to what they ran before.
    RollingBack,
    /// Every wave passed. Absorbing.
    Completed,
    /// Every device that could be reached went back. Those away get it on return. Absorbing.
    RolledBack,
    /// Stopped by an operator; devices keep what they have. Absorbing.
    Stopped,
}

impl RolloutStatus {
    /// Whether the state is never left.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Completed | Self::RolledBack | Self::Stopped => true,
            Self::Draft | Self::WaitingForApproval | Self::Ready | Self::Running | Self::Paused | Self::RollingBack => {
                false
            }
        }
    }

    /// The state as the API spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::WaitingForApproval => "waiting_for_approval",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::RollingBack => "rolling_back",
            Self::Completed => "completed",
            Self::RolledBack => "rolled_back",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for RolloutStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How an analysis ended (Argo Rollouts' words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Outcome {
    /// The wave passed.
    Successful,
    /// The wave failed; the rollout goes back.
    Failed,
    /// The analysis itself could not be done.
    Error,
    /// Not enough was seen to say; the rollout pauses.
    Inconclusive,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Successful => "Successful",
            Self::Failed => "Failed",
            Self::Error => "Error",
            Self::Inconclusive => "Inconclusive",
        })
    }
}

/// The rules a verdict can rest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Rule {
    /// [`Limits::max_error_rate`].
    ErrorRate,
    /// [`Limits::max_latency_p99_ratio`].
    LatencyP99Ratio,
    /// [`Limits::max_failures`].
    Failures,
    /// [`Limits::max_prediction_psi`].
    PredictionPsi,
    /// [`Limits::min_reports`].
    MinReports,
    /// [`Limits::min_requests`].
    MinRequests,
    /// [`WaveSpec::max_duration_ms`].
    MaxDuration,
}

impl Rule {
    /// The rule as the API spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ErrorRate => "error-rate",
            Self::LatencyP99Ratio => "latency-p99-ratio",
            Self::Failures => "failures",
            Self::PredictionPsi => "prediction-psi",
            Self::MinReports => "min-reports",
            Self::MinRequests => "min-requests",
            Self::MaxDuration => "max-duration",
        }
    }
}

/// One rule held against what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Check {
    /// Which rule.
    pub rule: Rule,
    /// What came of it.
    pub outcome: Outcome,
    /// What was measured; none where there was nothing to measure.
    pub measured: Option<f64>,
    /// The limit it was held against.
    pub limit: f64,
    /// How much was counted on the canary's side: requests, predictions, devices or reports, as the rule has it.
    pub canary_samples: u64,
    /// How much was counted on the control's side; 0 where there is none.
    pub control_samples: u64,
    /// All of it in a sentence.
    pub sentence: String,
}

/// What one side of a comparison reported.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ArmSummary {
    /// Devices meant.
    pub devices: u32,
    /// Devices with at least one report.
    pub reporting: u32,
    /// Telemetry windows with requests in them.
    pub reports: u32,
    /// Requests served.
    pub requests: u64,
    /// Requests the model failed.
    pub errors: u64,
    /// 99th percentile of latency, in microseconds.
    pub latency_p99_us: Option<f64>,
    /// Predictions sketched.
    pub predictions: u64,
    /// Devices that failed, reverted or crashed.
    pub failures: u32,
}

/// What an analysis found, with everything it rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Verdict {
    /// When it was reached, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Which wave, counted from 0.
    pub wave: u32,
    /// What was found.
    pub outcome: Outcome,
    /// Every rule with its numbers.
    pub checks: Vec<Check>,
    /// The devices of this wave and those before it.
    pub canary: ArmSummary,
    /// The concurrent devices of the same selector on the incumbent.
    pub control: ArmSummary,
    /// The verdict in a sentence.
    pub summary: String,
}

/// Why a rollout is not further than it is. Every reason reaches the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reason", rename_all_fields = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Waiting {
    /// No device is selected.
    NoDevices,
    /// Devices of the wave are still updating.
    Updating {
        /// Devices done.
        done: u32,
        /// Devices of the wave that can be reached.
        of: u32,
    },
    /// Devices of the wave are away; they join when they return.
    Offline {
        /// Which.
        devices: Vec<DeviceId>,
    },
    /// The wave is being watched.
    Soaking {
        /// Until when, in milliseconds since the Unix epoch.
        until_ms: u64,
    },
    /// Too few telemetry windows.
    TooFewReports {
        /// Windows there are.
        have: u32,
        /// Windows needed.
        need: u32,
    },
    /// Too few requests.
    TooFewRequests {
        /// Requests there are.
        have: u64,
        /// Requests needed.
        need: u64,
    },
    /// A score of the predictions is above its limit, and still within what chance makes of so few.
    TooFewPredictions {
        /// Predictions there are.
        have: u64,
        /// Predictions that would settle it, if it stays as it is.
        need: u64,
    },
    /// Devices belong to another rollout that is not finished.
    HeldByOtherRollout {
        /// Which devices.
        devices: Vec<DeviceId>,
    },
    /// Devices cannot run the bundle; they are left out.
    Unsuitable {
        /// Which, and why.
        devices: BTreeMap<DeviceId, String>,
    },
    /// An operator or a verdict paused the rollout.
    Paused {
        /// Who or what, and why.
        why: String,
    },
    /// Devices have not gone back yet.
    GoingBack {
        /// Devices done.
        done: u32,
        /// Devices that must.
        of: u32,
    },
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |devices: &mut dyn Iterator<Item = &DeviceId>| {
            let all: Vec<_> = devices.map(DeviceId::as_str).collect();
            let shown = all[..all.len().min(5)].join(", ");
            if all.len() > 5 { format!("{shown} and {} more", all.len() - 5) } else { shown }
        };
        match self {
            Self::NoDevices => f.write_str("no device matches the selector"),
            Self::Updating { done, of } => {
                write!(f, "{done} of {of} reachable devices have committed")
            }
            Self::Offline { devices } => {
                write!(f, "{} away, to join on return: {}", devices.len(), names(&mut devices.iter()))
            }
            Self::Soaking { until_ms } => write!(f, "soaking until {until_ms} ms"),
            Self::TooFewReports { have, need } => {
                write!(f, "{have} of {need} reports with requests")
            }
            Self::TooFewRequests { have, need } => write!(f, "{have} of {need} requests"),
            Self::TooFewPredictions { have, need } => {
                write!(f, "{have} of about {need} predictions that tell a move from chance")
            }
            Self::HeldByOtherRollout { devices } => {
                write!(f, "held by another rollout: {}", names(&mut devices.iter()))
            }
            Self::Unsuitable { devices } => {
                write!(f, "cannot run the bundle: {}", names(&mut devices.keys()))?;
                devices.values().next().map_or(Ok(()), |why| write!(f, " ({why})"))
            }
            Self::Paused { why } => write!(f, "paused: {why}"),
            Self::GoingBack { done, of } => write!(f, "{done} of {of} devices have gone back"),
        }
    }
}

/// How far one device is in a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DeviceProgress {
    /// Its wave has not come.
    Pending,
    /// It has been told and has not answered.
    Assigned,
    /// It works on it.
    Updating,
    /// It serves the new bundle under watch.
    Trial,
    /// It has committed.
    Committed,
    /// It failed or reverted by itself.
    Failed,
    /// It has been told to go back and has not done so.
    GoingBack,
    /// It is back on what it ran before.
    Back,
}

/// One wave as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WaveView {
    /// Devices of this wave alone, by how far they are.
    pub devices: BTreeMap<DeviceId, DeviceProgress>,
    /// When it began, in milliseconds since the Unix epoch.
    pub started_at_ms: Option<u64>,
    /// What its gate found last.
    pub verdict: Option<Verdict>,
}

/// A rollout as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutView {
    /// Its name.
    pub id: RolloutId,
    /// What was asked for.
    pub spec: RolloutSpec,
    /// Digest of the bundle's manifest.
    pub manifest: Digest,
    /// How it stands.
    pub status: RolloutStatus,
    /// Why it stands so, in a sentence: who or what decided last.
    pub status_reason: String,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// When it last changed, in milliseconds since the Unix epoch.
    pub updated_at_ms: u64,
    /// The wave it is in, counted from 0.
    pub current_wave: u32,
    /// Its waves.
    pub waves: Vec<WaveView>,
    /// Why it is not further.
    pub waiting: Vec<Waiting>,
    /// Every verdict so far, oldest first.
    pub verdicts: Vec<Verdict>,
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
            watch: WatchPolicy::default(),
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
