//! What devices of a comparison are scored by. How a score comes about is `muster-rollout`'s matter.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::MetricName;
use crate::limits::MAX_METRIC_VALUE;
use crate::trust::Stage;

/// What a device is scored by: a share of something bad, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Metric {
    /// Share of served requests that the model failed.
    ErrorRate,
    /// Share of served requests that took longer than [`Guardrail::above_us`].
    LatencyShare,
    /// 1 where the device failed, reverted or crashed, 0 where it did not.
    Failures,
    /// Share of labelled answers that were wrong.
    LabelError,
    /// Share of rows for which a shadow names another class than the bundle in service.
    Disagreement,
    /// Whether canaries predict other classes than their controls, all classes at once: a test by itself, not a score.
    PredictionDrift,
    /// One less the mean confidence of the answers.
    Confidence,
    /// Mean of the agent's resident memory in bytes, within [`Guardrail::range`].
    Memory,
    /// Mean temperature of the device in degrees Celsius, within [`Guardrail::range`].
    Temperature,
    /// Mean of the number [`Guardrail::name`] that applications on the device send, within [`Guardrail::range`].
    #[serde(rename = "metric")]
    Custom,
}

impl Metric {
    /// Every metric there is.
    pub const ALL: [Self; 10] = [
        Self::ErrorRate,
        Self::LatencyShare,
        Self::Failures,
        Self::LabelError,
        Self::Disagreement,
        Self::PredictionDrift,
        Self::Confidence,
        Self::Memory,
        Self::Temperature,
        Self::Custom,
    ];

    /// The metric as the API spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ErrorRate => "error-rate",
            Self::LatencyShare => "latency-share",
            Self::Failures => "failures",
            Self::LabelError => "label-error",
            Self::Disagreement => "disagreement",
            Self::PredictionDrift => "prediction-drift",
            Self::Confidence => "confidence",
            Self::Memory => "memory",
            Self::Temperature => "temperature",
            Self::Custom => "metric",
        }
    }

    /// Whether a larger score than the controls' is a loss by itself. Another answer than the incumbent's may be the better one, so a
    /// disagreement only has to stay below its margin.
    #[must_use]
    pub const fn is_loss(self) -> bool {
        !matches!(self, Self::Disagreement)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which numbers score 0 and which 1. What lies beyond scores as the nearer end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ScoreRange {
    /// What scores 0. Above [`Self::worst`] where larger numbers are better.
    pub best: f64,
    /// What scores 1.
    pub worst: f64,
}

impl ScoreRange {
    /// The score of `value`, from 0 for the best to 1.
    #[must_use]
    pub fn score(&self, value: f64) -> f64 {
        ((value - self.best) / (self.worst - self.best)).clamp(0.0, 1.0)
    }

    fn is_one(&self) -> bool {
        let ends = [self.best, self.worst];
        // A number that is none lies in no range.
        ends.iter().all(|end| (-MAX_METRIC_VALUE..=MAX_METRIC_VALUE).contains(end))
            && self.best.total_cmp(&self.worst).is_ne()
    }
}

/// One thing that must not become worse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Guardrail {
    /// What devices are scored by.
    pub metric: Metric,
    /// By how much canaries may be worse than their controls, as a share from 0 to 1: a wave passes only when more is ruled out. With 0 or less
    /// they must be shown to be better, by that share at least, in the wave that is the experiment. Without a margin the guardrail can roll
    /// back, and holds no wave up. Of a number ([`Self::scale`]) only a loss beyond it rolls back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// With `latency-share`, which latency is slow, in microseconds. Without it, the 95th percentile of the controls' from the start of
    /// the wave to that of the soak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above_us: Option<u64>,
    /// With `metric`, which of the numbers that applications send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<MetricName>,
    /// With `metric`, `memory` (bytes) and `temperature` (degrees Celsius), what is best and what is worst; a margin is a share of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<ScoreRange>,
}

impl Guardrail {
    /// One of this metric and margin alone.
    #[must_use]
    pub const fn of(metric: Metric, margin: Option<f64>) -> Self {
        Self { metric, margin, above_us: None, name: None, range: None }
    }

    /// How a measured number becomes a score; none where the measure is a share of something bad already.
    #[must_use]
    pub fn scale(&self) -> Option<ScoreRange> {
        let confidence = ScoreRange { best: 1.0, worst: 0.0 };
        if self.metric == Metric::Confidence { Some(confidence) } else { self.range }
    }

    /// By how much a canary may score worse before that counts as evidence of a loss. Numbers of devices hardly differ by chance, so a
    /// difference of no account would be plain to see: with a margin, only a loss beyond it rolls back.
    #[must_use]
    pub fn tolerance(&self) -> f64 {
        self.scale().and(self.margin).unwrap_or(0.0).max(0.0)
    }

    /// Whether the bundle must be shown to be better.
    #[must_use]
    pub fn asks_for_gain(&self) -> bool {
        self.margin.is_some_and(|margin| margin <= 0.0)
    }

    /// Whether it holds up every wave in which it can be measured.
    #[must_use]
    pub fn holds_every_wave(&self) -> bool {
        self.margin.is_some_and(|margin| margin > 0.0)
    }

    /// Whether `other` looks at the same thing.
    #[must_use]
    pub fn measures_the_same(&self, other: &Self) -> bool {
        (self.metric, self.above_us, &self.name) == (other.metric, other.above_us, &other.name)
    }

    /// Whether it can be measured where devices run the bundle in that part.
    ///
    /// # Errors
    /// What is expected.
    pub fn suits(&self, stage: &Stage) -> Result<(), &'static str> {
        let is_shadow = matches!(stage, Stage::Shadow { .. });
        match self.metric {
            Metric::Disagreement if !is_shadow => Err("it needs a rollout that runs as shadow"),
            Metric::Custom | Metric::Memory | Metric::Temperature if !stage.is_serve() => {
                Err("both bundles run on each device, and which of them it comes from cannot be told")
            }
            Metric::ErrorRate
            | Metric::LatencyShare
            | Metric::Failures
            | Metric::LabelError
            | Metric::Disagreement
            | Metric::PredictionDrift
            | Metric::Confidence
            | Metric::Memory
            | Metric::Temperature
            | Metric::Custom => Ok(()),
        }
    }

    /// # Errors
    /// What is expected.
    pub(super) fn validate(&self) -> Result<(), &'static str> {
        let Self { metric, margin, above_us, name, range } = self;
        let expect = |holds: bool, expected| if holds { Ok(()) } else { Err(expected) };
        let is_share = margin.is_none_or(|margin| margin > -1.0 && margin <= 1.0);
        expect(is_share, "its margin is a share up to 1, or, where it must become better, from 0 down to above -1")?;
        let edge = above_us.is_none_or(|edge_us| *metric == Metric::LatencyShare && edge_us > 0);
        expect(edge, "above_us is a latency above 0, of latency-share alone")?;
        let is_custom = *metric == Metric::Custom;
        expect(name.is_some() == is_custom, "a name is that of a number that applications send, of metric alone")?;
        let is_ranged = is_custom || matches!(metric, Metric::Memory | Metric::Temperature);
        let fits = range.as_ref().map_or(!is_ranged, |range| is_ranged && range.is_one());
        expect(
            fits,
            "a range from the best number to the worst goes with metric, memory and temperature, and with them always",
        )?;
        // A few devices without a failure prove little, and their scores do not spread: no bound would say so.
        expect(*metric != Metric::Failures || margin.is_none(), "a device fails or does not: it has no margin")?;
        let is_drift = *metric == Metric::PredictionDrift;
        expect(!is_drift || margin.is_none(), "predictions drift or do not: it has no margin")?;
        expect(*metric != Metric::Disagreement || self.holds_every_wave(), "it needs a margin above 0")
    }
}

impl fmt::Display for Guardrail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.above_us, &self.name) {
            (Some(edge_us), _) => write!(f, "{}:{}ms", self.metric, edge_us / 1_000),
            (None, Some(name)) => write!(f, "{}:{name}", self.metric),
            (None, None) => self.metric.fmt(f),
        }
    }
}
