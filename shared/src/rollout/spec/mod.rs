//! What an operator asks for, and what makes it valid.

mod abort;
mod analysis;
mod approval;
mod blue_green;
mod conflict;
mod deadlines;
mod emergency;
mod experiment;
mod field;
mod limits;
mod rate;
mod reach;
mod shadow_first;
mod wave;
mod windows;

use serde::{Deserialize, Serialize};

pub use abort::{AbortAction, AbortCriterion, FailureType};
pub use analysis::{AnalysisUse, AnalysisUseError};
pub use approval::{ApprovalError, ApprovalSpec};
pub use blue_green::BlueGreen;
pub use conflict::{Conflict, DEFAULT_PRIORITY, MAX_PRIORITY};
pub use deadlines::Deadlines;
pub use emergency::EmergencyError;
pub use limits::Limits;
pub use rate::{ExponentialRate, MAX_PER_MINUTE, Rate, RateIncreaseCriteria};
pub use reach::{Joining, ReachError};
pub use shadow_first::ShadowFirstError;
pub use wave::{WaveSize, WaveSizeError, WaveSpec};
pub use windows::{ClockTime, Day, MaintenanceWindow, WindowError};

use super::gate::{GateError, GateSpec};
use crate::ids::BundleRef;
use crate::limits::MAX_WAVES;
use crate::selector::Selector;
use crate::trust::{DeliveryPolicy, MIN_DOWNLOAD_BYTES_PER_S, Stage, StageError, WatchPolicy};

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
    /// Analyses that waves must stand beside their limits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub analyses: Vec<AnalysisUse>,
    /// How devices watch the bundle before they commit.
    #[serde(default)]
    pub watch: WatchPolicy,
    /// When and how fast devices may fetch the bundle.
    #[serde(default, skip_serializing_if = "DeliveryPolicy::is_default")]
    pub delivery: DeliveryPolicy,
    /// In which part devices run the bundle, where their wave does not say so itself. Waves, soak and limits are the same for all.
    #[serde(default, skip_serializing_if = "Stage::is_serve")]
    pub stage: Stage,
    /// Everybody at once, held against nothing: it ends the rollouts in its way, and waits for nobody's leave.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emergency: bool,
    /// Who must approve it before it begins; nobody, unless the controller demands it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalSpec>,
    /// Whether groups of devices switch together, and how; none to let each switch when it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blue_green: Option<BlueGreen>,
    /// How long each device may take; none to wait for those that can be reached as long as the wave may last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadlines: Option<Deadlines>,
    /// When so many devices fail that it ends by itself; at most [`crate::limits::MAX_ABORT_CRITERIA`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub abort_criteria: Vec<AbortCriterion>,
    /// What becomes of it where it means devices of another rollout that has not ended.
    #[serde(default, skip_serializing_if = "Conflict::is_skip")]
    pub conflict: Conflict,
    /// Who goes first of those that queue for the same devices, 0 to 100: the highest, and of these the oldest.
    #[serde(default = "default_priority", skip_serializing_if = "is_default_priority")]
    pub priority: u8,
    /// When it begins, in milliseconds since the Unix epoch; at once where that is not said or past.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at_ms: Option<u64>,
    /// When devices may come in, by their own clocks; at any time where no window is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<MaintenanceWindow>,
    /// The time zone of devices that name none by the label or attribute `timezone`; UTC where that is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// The share of the devices meant that keeps what it has for good, to compare with: the same devices in every rollout with that share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdback: Option<WaveSize>,
    /// What becomes of devices that are meant only later.
    #[serde(default, skip_serializing_if = "Joining::is_include")]
    pub joining: Joining,
    /// How many devices a minute come in; as many as a wave has room for, where that is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
}

fn default_priority() -> u8 {
    DEFAULT_PRIORITY
}

fn is_default_priority(priority: &u8) -> bool {
    *priority == DEFAULT_PRIORITY
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
    /// An emergency that asks for care.
    #[error("an emergency goes to every device at once, held against nothing: {0}")]
    Emergency(#[from] EmergencyError),
    /// A reach that cannot be.
    #[error(transparent)]
    Reach(#[from] ReachError),
    /// A gate that cannot be.
    #[error("gate: {0}")]
    Gate(#[from] GateError),
    /// An experiment that cannot be.
    #[error("gate: {0}")]
    Experiment(&'static str),
    /// Analyses that cannot be.
    #[error("analyses: {0}")]
    Analyses(#[from] AnalysisUseError),
    /// Approvals that cannot be.
    #[error("approval: {0}")]
    Approval(#[from] ApprovalError),
    /// Groups that cannot switch together.
    #[error("blue_green: {0}")]
    BlueGreen(&'static str),
    /// A rate that cannot be kept.
    #[error("rate: {0}")]
    Rate(&'static str),
    /// Waves that cannot run the bundle as shadow.
    #[error(transparent)]
    ShadowFirst(#[from] ShadowFirstError),
    /// Deadlines that cannot be kept.
    #[error("deadlines: {0}")]
    Deadlines(&'static str),
    /// Criteria that never decide.
    #[error("abort_criteria: {0}")]
    AbortCriteria(&'static str),
    /// Windows that cannot be.
    #[error("windows: {0}")]
    Windows(#[from] WindowError),
    /// A wish that makes no sense for an agent program.
    #[error("{0}; this bundle is an agent program")]
    Program(&'static str),
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
    /// The rollout of `bundle` to the devices that `selector` means, and for the rest as it is without being asked for.
    #[must_use]
    pub fn of(bundle: BundleRef, selector: Selector, waves: Vec<WaveSpec>) -> Self {
        Self {
            bundle,
            selector,
            waves,
            limits: Limits::default(),
            gate: None,
            analyses: Vec::new(),
            watch: WatchPolicy::default(),
            delivery: DeliveryPolicy::default(),
            stage: Stage::Serve,
            emergency: false,
            approval: None,
            blue_green: None,
            deadlines: None,
            abort_criteria: Vec::new(),
            conflict: Conflict::Skip,
            priority: DEFAULT_PRIORITY,
            start_at_ms: None,
            windows: Vec::new(),
            timezone: None,
            holdback: None,
            joining: Joining::Include,
            rate: None,
        }
    }

    /// The limits that waves are held against; none in an emergency.
    #[must_use]
    pub fn judged_by(&self) -> Option<&Limits> {
        (!self.emergency).then_some(&self.limits)
    }

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
        emergency::validate(self)?;
        reach::validate(self)?;
        self.stage.validate()?;
        shadow_first::validate(self)?;
        self.gate.as_ref().map_or(Ok(()), |gate| gate.validate(&self.stages()))?;
        experiment::validate(self).map_err(SpecError::Experiment)?;
        analysis::validate(&self.analyses, self.waves.len())?;
        self.approval.as_ref().map_or(Ok(()), ApprovalSpec::validate)?;
        deadlines::validate(self).map_err(SpecError::Deadlines)?;
        abort::validate(self).map_err(SpecError::AbortCriteria)?;
        blue_green::validate(self).map_err(SpecError::BlueGreen)?;
        rate::validate(self).map_err(SpecError::Rate)?;
        windows::validate(&self.windows, self.timezone.as_deref())?;
        if self.priority > MAX_PRIORITY {
            return Err(SpecError::Limit { field: "priority", reason: "0 to 100" });
        }
        let limit = |ok: bool, field, reason| {
            if ok { Ok(()) } else { Err(SpecError::Limit { field, reason }) }
        };
        let Limits { max_error_rate, max_latency_p99_ratio, max_prediction_psi, min_reports, min_requests, .. } =
            self.limits;
        let max_disagreement = self.limits.max_disagreement.unwrap_or_default();
        limit((0.0..=1.0).contains(&max_error_rate), "max_error_rate", "a share between 0 and 1")?;
        limit(max_latency_p99_ratio.is_finite() && max_latency_p99_ratio > 0.0, "max_latency_p99_ratio", "above 0")?;
        limit(max_prediction_psi.is_finite() && max_prediction_psi > 0.0, "max_prediction_psi", "above 0")?;
        limit((0.0..=1.0).contains(&max_disagreement), "max_disagreement", "a share between 0 and 1")?;
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
    fn a_spec_must_be_able_to_end_and_to_see() {
        let wave = |size: &str| WaveSpec::of(size.parse().unwrap(), 1, 2);
        let waves = vec![wave("1"), wave("100%")];
        let good = RolloutSpec::of("digits@1.0.0".parse().unwrap(), Selector::all(), waves);
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
        let first = with(&|s| s.priority = 101).to_string();
        assert!(first.contains("priority") && first.contains("0 to 100"), "{first}");
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
