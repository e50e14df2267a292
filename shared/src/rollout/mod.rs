//! Words of a rollout that controller, command line and pages share: what is asked for, how it stands, and
//! what each verdict rests on. How decisions come about is `muster-rollout`'s matter.

mod analysis;
mod approval;
mod aside;
mod evidence;
mod explanation;
mod failure;
mod freeze;
mod gate;
mod guardrail;
mod preview;
mod spec;
mod stop;
mod verdict;
mod waiting;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use analysis::{
    Analysis, AnalysisReport, AnalysisTemplate, Argument, Condition, ExpressionError, FleetQuestion, Header,
    Measurement, MetricReport, MetricTemplate, PrometheusQuestion, Provider, Question, Span, SpanError, TemplateError,
    TemplateRef, TemplateRefError, TemplateView, Value, WebMethod, WebQuestion,
};
pub use approval::{Approval, ApprovalOutcome, ApprovalRecord};
pub use aside::{Pin, Quarantine};
pub use evidence::{
    AnalysisInputs, ClassCounts, ColumnPredictions, ComparedRows, CriteriaInputs, DeviceEnds, EvidencePart,
    LimitsInputs, LongestDuration, MetricInputs, PredictionsWorth, RolloutEvidence, VerdictEvidence, VerdictInputs,
};
pub use explanation::{Decider, DeviceExplanation, Explanation, Obstacle, Told};
pub use failure::FailureKind;
pub use freeze::{CreateFreeze, Freeze};
pub use gate::{
    Block, DriftReport, GateError, GateEvidence, GateReport, GateSpec, GuardrailReport, PredictedClasses,
    PredictedColumn, ScoredDevice,
};
pub use guardrail::{Guardrail, Metric, ScoreRange};
pub use preview::{IntakePreview, RolloutPreview, WavePreview};
pub use spec::{
    AbortAction, AbortCriterion, AnalysisUse, AnalysisUseError, ApprovalError, ApprovalSpec, BlueGreen, ClockTime,
    Conflict, DEFAULT_PRIORITY, Day, Deadlines, EmergencyError, ExponentialRate, FailureType, Joining, Limits,
    MAX_PER_MINUTE, MAX_PRIORITY, MaintenanceWindow, Rate, RateIncreaseCriteria, ReachError, RolloutSpec,
    ShadowFirstError, SpecError, WaveSize, WaveSizeError, WaveSpec, WindowError,
};
pub use stop::{FleetStop, FleetStopView};
pub use verdict::{ArmSummary, Check, DeviceOutcomes, Outcome, Rule, Verdict};
pub use waiting::{Prepared, Waiting};

use crate::ids::{DeviceId, Digest, RolloutId};

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
    /// Stopped by an operator or a criterion; devices keep what they have. Absorbing.
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
    /// It has the bundle, checked and tested, and waits for the time at which its group switches.
    Ready,
    /// It serves the new bundle under watch.
    Trial,
    /// It runs the new bundle beside the one before, as the rollout asks.
    Beside,
    /// It has committed.
    Committed,
    /// Its deadline is over, and it has not committed. It may yet.
    TimedOut,
    /// It failed or reverted by itself.
    Failed,
    /// It has been told to go back and has not done so.
    GoingBack,
    /// It is back on what it ran before.
    Back,
    /// It is shut out, so it is neither waited for nor counted.
    Revoked,
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
    /// How its analyses stand; none before its soak.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub analyses: Vec<AnalysisReport>,
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
    /// The name of the access token it was asked for with; none where that was not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who approved it, where that is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalRecord>,
    /// When it last changed, in milliseconds since the Unix epoch.
    pub updated_at_ms: u64,
    /// The wave it is in, counted from 0.
    pub current_wave: u32,
    /// Its waves.
    pub waves: Vec<WaveView>,
    /// How the devices that have come in fare, since the current wave began.
    #[serde(default)]
    pub outcomes: DeviceOutcomes,
    /// Why it is not further.
    pub waiting: Vec<Waiting>,
    /// Every verdict so far, oldest first.
    pub verdicts: Vec<Verdict>,
}
