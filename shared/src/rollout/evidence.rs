//! What verdicts rest on, complete: with it each can be reached again elsewhere. How is `muster-rollout`'s matter.
//!
//! A [`Verdict`] is stored together with its [`VerdictInputs`], as one record and before anybody is told of it. [`VerdictEvidence`] is the form in which
//! all of it leaves the controller: one part for each kind of rule, each with just what that rule is judged by.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::analysis::{Analysis, Measurement};
use super::gate::GateEvidence;
use super::spec::{AbortCriterion, Limits};
use super::verdict::{ArmSummary, Verdict};
use crate::ids::{BundleRef, RolloutId};

/// Counts of predictions by class.
pub type ClassCounts = BTreeMap<String, u64>;

/// Rows for which a shadow and the bundle in service were compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ComparedRows {
    /// Both named the same class.
    pub agreed: u64,
    /// They did not.
    pub disagreed: u64,
}

/// How many independent predictions those of a column are worth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PredictionsWorth {
    /// On the canary's side.
    pub canary: f64,
    /// On the side that they are held against.
    pub other: f64,
}

/// What was predicted in one column.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ColumnPredictions {
    /// By canaries.
    pub canary: ClassCounts,
    /// By controls.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub control: ClassCounts,
    /// In the bundle's reference sample, which counts where controls have too few.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reference: ClassCounts,
    /// What they are worth; only where their score is above the limit, as no other is tested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worth: Option<PredictionsWorth>,
}

impl ColumnPredictions {
    /// How many counts it holds.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.canary.len() + self.control.len() + self.reference.len()
    }
}

/// Everything that a wave's limits are held against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LimitsInputs {
    /// The limits.
    pub limits: Limits,
    /// It is an emergency: failures are counted, and nothing is held against any limit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emergency: bool,
    /// The devices of this wave and those before it.
    pub canary: ArmSummary,
    /// The concurrent devices of the same selector on the incumbent.
    pub control: ArmSummary,
    /// Of the control's devices, those that run the bundle beside the incumbent, and are canaries as well.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub on_both_sides: u32,
    /// The first few devices that failed, and why, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub failing: String,
    /// Requests that the control's latency rests on, where they are the very ones that a shadow ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadowed: Option<u64>,
    /// Rows compared, in a wave that runs as shadow and is held against a limit of disagreement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<ComparedRows>,
    /// Columns in which canaries predicted.
    #[serde(default)]
    pub columns: u32,
    /// What was predicted in those that decide. What is stored has the one that decided, then others, to [`crate::limits::MAX_VERDICT_CELLS`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub predictions: BTreeMap<String, ColumnPredictions>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl LimitsInputs {
    /// Devices on either side.
    #[must_use]
    pub fn devices(&self) -> u64 {
        u64::from(self.canary.devices) + u64::from(self.control.devices.saturating_sub(self.on_both_sides))
    }

    /// Whether there is a control, and enough of it to compare with.
    #[must_use]
    pub fn is_compared(&self) -> bool {
        self.control.reports >= self.limits.min_reports && self.control.requests >= self.limits.min_requests
    }
}

/// How devices that were told to run the bundle have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeviceEnds {
    /// All that have: they have committed, failed or timed out.
    pub executed: u32,
    /// They took the bundle up and failed, reverted or crashed.
    pub failed: u32,
    /// They refused it before they began.
    pub rejected: u32,
    /// They did not commit within their deadline.
    pub timed_out: u32,
}

/// Everything that abort criteria are judged by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CriteriaInputs {
    /// The criteria, in order.
    pub criteria: Vec<AbortCriterion>,
    /// How devices have ended.
    pub ends: DeviceEnds,
}

/// The measurements of one metric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MetricInputs {
    /// Measurements that ended in errors, all of them.
    pub errors: u32,
    /// The measurements, oldest first; of errors, those since the last that was none.
    pub measurements: Vec<Measurement>,
}

/// Everything that an analysis of a wave is judged by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AnalysisInputs {
    /// What was asked for: conditions, limits, how many measurements.
    pub analysis: Analysis,
    /// What was measured, one for each metric.
    pub metrics: Vec<MetricInputs>,
}

/// A wave's longest duration, when it was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LongestDuration {
    /// Since when it ran, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// What was allowed, in milliseconds.
    pub max_ms: u64,
}

/// What a verdict was judged by, as far as the verdict and what was asked for do not say it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerdictInputs {
    /// For the limits.
    pub limits: LimitsInputs,
    /// For the abort criteria, where there are such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub criteria: Option<CriteriaInputs>,
    /// Which of the rollout's analyses [`Verdict::analyses`] are, counted from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub analyses: Vec<u32>,
    /// The wave's longest duration, where that was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited: Option<LongestDuration>,
    /// Who let the wave go on though the comparison of its devices showed neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waived_by: Option<String>,
}

/// What one kind of rule was judged by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum EvidencePart {
    /// The limits.
    Limits(LimitsInputs),
    /// The abort criteria.
    Criteria(CriteriaInputs),
    /// One analysis.
    Analysis(AnalysisInputs),
    /// The comparison of devices, with what came of it.
    Gate(GateEvidence),
}

/// Everything that one verdict rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerdictEvidence {
    /// Which rollout.
    pub rollout: RolloutId,
    /// The bundle it brings.
    pub bundle: BundleRef,
    /// The verdict.
    pub verdict: Verdict,
    /// What it was judged by, rule by rule.
    pub parts: Vec<EvidencePart>,
    /// The wave's longest duration, where that was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited: Option<LongestDuration>,
    /// Who let the wave go on though the comparison of its devices showed neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waived_by: Option<String>,
}

impl VerdictEvidence {
    /// The comparison of devices, where there was one.
    #[must_use]
    pub fn gate(&self) -> Option<&GateEvidence> {
        self.parts.iter().find_map(|part| match part {
            EvidencePart::Gate(gate) => Some(gate),
            EvidencePart::Limits(_) | EvidencePart::Criteria(_) | EvidencePart::Analysis(_) => None,
        })
    }
}

/// One entry of what `muster rollout evidence` writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, try_from = "serde_json::Value")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RolloutEvidence {
    /// Of a verdict.
    Verdict(Box<VerdictEvidence>),
    /// Of a comparison of devices alone: all that is kept of verdicts stored without their [`VerdictInputs`], and of those that a long history has dropped.
    Gate(Box<GateEvidence>),
}

impl TryFrom<serde_json::Value> for RolloutEvidence {
    type Error = serde_json::Error;

    /// Tells the two apart by what they hold, so that what is wrong with one is said of that one.
    fn try_from(json: serde_json::Value) -> Result<Self, serde_json::Error> {
        if json.get("verdict").is_some() {
            serde_json::from_value(json).map(Self::Verdict)
        } else {
            serde_json::from_value(json).map(Self::Gate)
        }
    }
}

impl RolloutEvidence {
    /// The comparison of devices, where there was one.
    #[must_use]
    pub fn gate(&self) -> Option<&GateEvidence> {
        match self {
            Self::Verdict(verdict) => verdict.gate(),
            Self::Gate(gate) => Some(gate),
        }
    }
}
