//! What an analysis found, with everything it rests on.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::analysis::AnalysisReport;
use super::evidence::VerdictInputs;
use super::failure::FailureKind;
use super::gate::GateReport;

/// How an analysis ended (Argo Rollouts' words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Outcome {
    /// The wave passed.
    Successful,
    /// The wave failed; the rollout goes back, or stops where a criterion says so.
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
    /// [`super::Limits::max_error_rate`].
    ErrorRate,
    /// [`super::Limits::max_latency_p99_ratio`].
    LatencyP99Ratio,
    /// [`super::Limits::max_failures`].
    Failures,
    /// [`super::Limits::max_prediction_psi`].
    PredictionPsi,
    /// [`super::Limits::max_disagreement`].
    Disagreement,
    /// [`super::Limits::min_reports`].
    MinReports,
    /// [`super::Limits::min_requests`].
    MinRequests,
    /// [`super::WaveSpec::max_duration_ms`].
    MaxDuration,
    /// [`super::RolloutSpec::gate`]: evidence and threshold as natural logarithms.
    Gate,
    /// [`super::RolloutSpec::abort_criteria`], one each: the share in percent of the devices that have come to an end, how many these are, and the
    /// least share that ends the rollout.
    AbortCriterion,
    /// [`super::RolloutSpec::analyses`], one metric each: the measurements that failed, and how many may.
    Analysis,
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
            Self::Disagreement => "disagreement",
            Self::MinReports => "min-reports",
            Self::MinRequests => "min-requests",
            Self::MaxDuration => "max-duration",
            Self::AbortCriterion => "abort-criterion",
            Self::Gate => "gate",
            Self::Analysis => "analysis",
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
    /// Of the devices reporting, those with at least one error or crash: errors are counted over devices that reported.
    #[serde(default)]
    pub erring: u32,
    /// Devices meant that have what they were meant to have, and have not failed: success is counted over all that are meant, so that silence is none.
    #[serde(default)]
    pub succeeded: u32,
    /// Of the failures, the devices that refused the bundle before they began.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rejected: u32,
    /// Devices whose deadline is over, and that have neither committed nor failed; they are no failures.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timed_out: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl ArmSummary {
    /// Success and errors, each over the devices that it is to be held against.
    #[must_use]
    pub fn outcomes(&self) -> DeviceOutcomes {
        let Self { devices, reporting, erring, succeeded, failures, rejected, timed_out, .. } = *self;
        let failed = failures.saturating_sub(rejected);
        DeviceOutcomes { targeted: devices, succeeded, reported: reporting, erring, failed, rejected, timed_out }
    }
}

/// How devices fare, with two denominators: errors over those that reported, success over those targeted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeviceOutcomes {
    /// Devices meant.
    pub targeted: u32,
    /// Of those targeted, they have what they were meant to have, and have not failed.
    pub succeeded: u32,
    /// Devices with at least one report since the wave began.
    pub reported: u32,
    /// Of those that reported, with at least one error or crash since then.
    pub erring: u32,
    /// Of those targeted, they failed, reverted or crashed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed: u32,
    /// Of those targeted, they refused the bundle before they began.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rejected: u32,
    /// Of those targeted, their deadline is over, and they have neither committed nor failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timed_out: u32,
}

impl fmt::Display for DeviceOutcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { targeted, succeeded, reported, erring, failed, rejected, timed_out } = *self;
        let share = |part: u32, of: u32| match of {
            0 => String::new(),
            of => format!(" ({:.1} %)", 100.0 * f64::from(part) / f64::from(of)),
        };
        write!(
            f,
            "success on {succeeded} of {targeted} devices targeted{}, errors on {erring} of {reported} that reported{}",
            share(succeeded, targeted),
            share(erring, reported)
        )?;
        let kinds =
            [(failed, FailureKind::Failed), (rejected, FailureKind::Rejected), (timed_out, FailureKind::TimedOut)];
        kinds.iter().filter(|(count, _)| *count > 0).try_for_each(|(count, kind)| write!(f, ", {count} {kind}"))
    }
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
    /// What came of the comparison; none where the rollout asks for none, or it was not made yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateReport>,
    /// How each analysis of the wave stood.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub analyses: Vec<AnalysisReport>,
    /// The verdict in a sentence.
    pub summary: String,
    /// What else it takes to reach it again, as it is stored; none where it is shown ([`Self::shown`]), and of verdicts from before there was such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<VerdictInputs>,
}

impl Verdict {
    /// The verdict as it is shown: with every number, without the counts of classes behind them.
    #[must_use]
    pub fn shown(&self) -> Self {
        Self { inputs: None, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_and_errors_have_their_own_denominators() {
        let arm = ArmSummary { devices: 40, reporting: 38, erring: 3, succeeded: 35, ..ArmSummary::default() };
        let said = arm.outcomes().to_string();
        assert_eq!(said, "success on 35 of 40 devices targeted (87.5 %), errors on 3 of 38 that reported (7.9 %)");
        let ended = ArmSummary { failures: 3, rejected: 1, timed_out: 2, ..arm }.outcomes().to_string();
        assert!(ended.ends_with("(7.9 %), 2 failed, 1 rejected, 2 timed out"), "{ended}");
        let nobody = DeviceOutcomes { targeted: 2, ..DeviceOutcomes::default() }.to_string();
        assert_eq!(nobody, "success on 0 of 2 devices targeted (0.0 %), errors on 0 of 0 that reported");
        // Verdicts of before are still read.
        let mut stored = serde_json::to_value(arm).unwrap();
        stored.as_object_mut().unwrap().retain(|name, _| name != "erring" && name != "succeeded");
        assert_eq!(
            serde_json::from_value::<ArmSummary>(stored).unwrap(),
            ArmSummary { erring: 0, succeeded: 0, ..arm }
        );
    }
}
