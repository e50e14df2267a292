//! How canaries are compared with controls: what is asked for, what was scored, and what came of it.
//!
//! The device is the statistical unit: each gives one score a guardrail, larger being worse. How scores come about and what they prove is
//! `muster-rollout`'s matter.

use serde::{Deserialize, Serialize};

use super::guardrail::{Guardrail, Metric};
use super::verdict::Outcome;
use crate::ids::{BundleRef, DeviceId, RolloutId};
use crate::limits::{MAX_GATE_CONTROLS, MAX_GATE_KEYS, MAX_GUARDRAILS, MAX_LABEL_BYTES};
use crate::trust::Stage;

/// How the devices of a wave are compared with others before it passes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GateSpec {
    /// The chance that a bundle equal to the incumbent is rolled back, over all waves together; and that one which is worse by a margin
    /// passes.
    #[serde(default = "default_alpha")]
    pub alpha: f64,
    /// Controls that each canary is compared with at most.
    #[serde(default = "default_controls")]
    pub controls: u32,
    /// Labels or attributes that a canary and its controls must share, as `site`. That they ran the same bundle before is asked always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_on: Vec<String>,
    /// What must not become worse.
    pub guardrails: Vec<Guardrail>,
}

const fn default_alpha() -> f64 {
    0.05
}

const fn default_controls() -> u32 {
    4
}

/// Why a gate as asked for is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// A level that is none.
    #[error("alpha: above 0 and at most 0.5, as 0.05")]
    Alpha,
    /// Too few controls, or too many.
    #[error("controls: from 1 to {MAX_GATE_CONTROLS}")]
    Controls,
    /// Names that no label or attribute can have, or too many.
    #[error("match_on: at most {MAX_GATE_KEYS} names of labels or attributes, each once")]
    MatchOn,
    /// None, or too many.
    #[error("guardrails: from 1 to {MAX_GUARDRAILS}")]
    Guardrails,
    /// The same twice.
    #[error("guardrail {0}: it is there twice")]
    Twice(String),
    /// A field that does not go with the metric.
    #[error("guardrail {metric}: {reason}")]
    Guardrail {
        /// Which.
        metric: Metric,
        /// What is expected.
        reason: &'static str,
    },
    /// Nothing that a wave would have to prove.
    #[error("guardrails: give at least one of them a margin above 0, or waves would pass without proof")]
    NoMargin,
    /// The same of the waves in one part.
    #[error(
        "guardrails: waves that serve and waves that run as shadow each need one with a margin above 0, or would pass without proof: error-rate, \
         latency-share, label-error and confidence are of both"
    )]
    NoMarginInPart,
}

impl GateError {
    /// The field of [`GateSpec`] at fault.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Alpha => "alpha",
            Self::Controls => "controls",
            Self::MatchOn => "match_on",
            Self::Guardrails | Self::Twice(_) | Self::Guardrail { .. } | Self::NoMargin | Self::NoMarginInPart => {
                "guardrails"
            }
        }
    }
}

impl GateSpec {
    /// A gate with these guardrails, and for the rest as it is without being asked for.
    #[must_use]
    pub fn of(guardrails: Vec<Guardrail>) -> Self {
        Self { alpha: default_alpha(), controls: default_controls(), match_on: Vec::new(), guardrails }
    }

    /// Checks what the types alone do not express. `stages` are the parts in which devices run the bundle, one after the other: each
    /// guardrail must be one of any of them, and each of them must have something to prove.
    ///
    /// # Errors
    /// [`GateError`] with the first fault found.
    pub fn validate(&self, stages: &[&Stage]) -> Result<(), GateError> {
        self.validate_alone()?;
        for guardrail in &self.guardrails {
            let faults: Option<Vec<_>> = stages.iter().map(|stage| guardrail.suits(stage).err()).collect();
            if let Some(reason) = faults.and_then(|faults| faults.first().copied()) {
                return Err(GateError::Guardrail { metric: guardrail.metric, reason });
            }
        }
        let proves = |stage: &&Stage| self.part_for(stage).guardrails.iter().any(Guardrail::holds_every_wave);
        if stages.iter().all(proves) { Ok(()) } else { Err(GateError::NoMarginInPart) }
    }

    /// Whether the bundle must be shown to be better in anything.
    #[must_use]
    pub fn asks_for_gain(&self) -> bool {
        self.guardrails.iter().any(Guardrail::asks_for_gain)
    }

    /// The gate of a wave whose devices run the bundle in that part: without what cannot be measured there.
    #[must_use]
    pub fn part_for(&self, stage: &Stage) -> Self {
        let suits = |guardrail: &&Guardrail| guardrail.suits(stage).is_ok();
        Self { guardrails: self.guardrails.iter().filter(suits).cloned().collect(), ..self.clone() }
    }

    /// The same without what depends on the part in which devices run the bundle.
    ///
    /// # Errors
    /// [`GateError`] with the first fault found.
    pub fn validate_alone(&self) -> Result<(), GateError> {
        let expect = |holds: bool, error: GateError| if holds { Ok(()) } else { Err(error) };
        expect(self.alpha > 0.0 && self.alpha <= 0.5, GateError::Alpha)?;
        expect((1..=MAX_GATE_CONTROLS).contains(&self.controls), GateError::Controls)?;
        let is_key = |(at, key): (usize, &String)| {
            (1..=MAX_LABEL_BYTES).contains(&key.len()) && !self.match_on[..at].contains(key)
        };
        let keys = self.match_on.len() <= MAX_GATE_KEYS && self.match_on.iter().enumerate().all(is_key);
        expect(keys, GateError::MatchOn)?;
        expect((1..=MAX_GUARDRAILS).contains(&self.guardrails.len()), GateError::Guardrails)?;
        for (at, guardrail) in self.guardrails.iter().enumerate() {
            let twice = self.guardrails[..at].iter().any(|other| other.measures_the_same(guardrail));
            expect(!twice, GateError::Twice(guardrail.to_string()))?;
            let metric = guardrail.metric;
            guardrail.validate().map_err(|reason| GateError::Guardrail { metric, reason })?;
        }
        expect(self.guardrails.iter().any(Guardrail::holds_every_wave), GateError::NoMargin)
    }
}

/// One canary and its controls: devices first, and when they have been watched, their scores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Block<T> {
    /// The device on the new bundle.
    pub canary: T,
    /// Devices like it on the incumbent. Where the bundle runs beside the incumbent, the device itself.
    pub controls: Vec<T>,
}

impl<T> Block<T> {
    /// The canary, then its controls.
    pub fn members(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.canary).chain(&self.controls)
    }

    /// The same block of what `change` makes of each member.
    pub fn map<U>(&self, change: impl Fn(&T) -> U) -> Block<U> {
        Block { canary: change(&self.canary), controls: self.controls.iter().map(&change).collect() }
    }
}

/// One device of a block, as the gate saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ScoredDevice {
    /// Which.
    pub device: DeviceId,
    /// It was not heard of while it was to be watched, so it scores worst.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
    /// One for each guardrail, in order; none where there was nothing to score. With `prediction-drift` 0 where there are predictions.
    pub scores: Vec<Option<f64>>,
    /// How often it predicted each of [`GateEvidence::predicted`], where the gate asks for that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub predicted: Vec<u64>,
}

/// Classes of one column of predictions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PredictedColumn {
    /// Which column.
    pub column: String,
    /// Its classes; after them comes the rest.
    pub classes: Vec<String>,
}

/// What predictions are counted by: column by column, class by class.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PredictedClasses {
    /// The columns.
    pub columns: Vec<PredictedColumn>,
    /// From where choices of other canaries are drawn.
    pub seed: u64,
}

/// How canaries' predictions differ from their controls', held against every or many another choice of canaries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DriftReport {
    /// How often equal bundles would differ by as much.
    pub p_value: f64,
    /// Up to which it is enough to roll back: the part of the wave's level that this guardrail gets.
    pub level: f64,
    /// The least that so many blocks can give.
    pub least_p_value: f64,
    /// Choices of canaries that were looked at, the one made included.
    pub choices: u32,
    /// They were all that there are; else they were drawn.
    pub exact: bool,
    /// The greatest difference of a class's share, in standard deviations over choices.
    pub statistic: f64,
    /// In which column.
    pub column: String,
    /// In which class of it; none for the rest.
    pub class: Option<String>,
    /// Mean difference of its share, canary less control.
    pub difference: f64,
}

/// What one guardrail showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuardrailReport {
    /// What was asked for.
    pub guardrail: Guardrail,
    /// `Successful` when canaries are shown to be worse by less than the margin, and where there is none to show.
    pub outcome: Outcome,
    /// Blocks with a score of the canary and of a control.
    pub blocks: u32,
    /// By what differences of scores were divided; none where scores do not differ within any block.
    pub scale: Option<f64>,
    /// Evidence that canaries are worse, as a natural logarithm: 0 for none.
    pub log_e: f64,
    /// Mean difference of scores, canary less control.
    pub mean_difference: Option<f64>,
    /// By how much canaries are worse at most, at the level of the wave.
    pub upper_bound: Option<f64>,
    /// Blocks that would show it, if they are like those so far.
    pub blocks_needed: Option<u32>,
    /// With `prediction-drift`, what the test came to; its evidence is one over its level where it rejects, and none where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftReport>,
    /// All of it in a sentence.
    pub sentence: String,
}

/// What a gate made of one wave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GateReport {
    /// `Failed` when canaries are worse, `Successful` when every margin is kept, else `Inconclusive`.
    pub outcome: Outcome,
    /// Fewer blocks than can show anything: the wave rests on its limits alone.
    pub limits_only: bool,
    /// The wave's part of [`GateSpec::alpha`].
    pub alpha: f64,
    /// What is left of [`GateSpec::alpha`] for the waves after this one; none where it is no wave of a rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha_left: Option<f64>,
    /// Blocks compared.
    pub blocks: u32,
    /// Evidence that canaries are worse, the mean over guardrails, as a natural logarithm.
    pub log_e: f64,
    /// From where on it is enough to roll back.
    pub log_threshold: f64,
    /// Every guardrail with its numbers.
    pub guardrails: Vec<GuardrailReport>,
    /// All of it in a sentence.
    pub sentence: String,
}

/// Everything that the verdict of a gate rests on: with it, the verdict can be reached again elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GateEvidence {
    /// Which rollout.
    pub rollout: RolloutId,
    /// The bundle it brings.
    pub bundle: BundleRef,
    /// Which wave, counted from 0.
    pub wave: u32,
    /// When it was judged, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What was asked for, with the latencies that were taken for slow.
    pub gate: GateSpec,
    /// The wave's part of its α.
    pub alpha: f64,
    /// Blocks that were dealt, those left out since included.
    pub dealt: usize,
    /// The scores.
    pub blocks: Vec<Block<ScoredDevice>>,
    /// With `prediction-drift`, what was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<PredictedClasses>,
    /// What came of them.
    pub report: GateReport,
}

#[cfg(test)]
mod tests {
    use super::super::guardrail::ScoreRange;
    use super::*;

    fn gate(guardrails: &[(Metric, Option<f64>)]) -> GateSpec {
        let guardrail = |(metric, margin): &(Metric, Option<f64>)| Guardrail::of(*metric, *margin);
        GateSpec { match_on: vec!["site".into()], ..GateSpec::of(guardrails.iter().map(guardrail).collect()) }
    }

    #[test]
    fn a_gate_must_be_able_to_prove_something() {
        let good = gate(&[(Metric::ErrorRate, Some(0.03)), (Metric::LatencyShare, None), (Metric::Failures, None)]);
        assert_eq!(good.validate(&[&Stage::Serve]), Ok(()));
        let with = |change: &dyn Fn(&mut GateSpec)| {
            let mut gate = good.clone();
            change(&mut gate);
            gate.validate(&[&Stage::Serve]).unwrap_err()
        };
        assert_eq!(with(&|g| g.alpha = 0.0), GateError::Alpha);
        assert_eq!(with(&|g| g.alpha = f64::NAN), GateError::Alpha);
        assert_eq!(with(&|g| g.controls = 0), GateError::Controls);
        assert_eq!(with(&|g| g.match_on.push("site".into())), GateError::MatchOn);
        assert_eq!(with(&|g| g.guardrails.clear()), GateError::Guardrails);
        assert_eq!(with(&|g| g.guardrails[0].margin = None), GateError::NoMargin);
        assert_eq!(with(&|g| g.guardrails[0].margin = Some(-0.01)), GateError::NoMargin);
        assert_eq!(with(&|g| g.guardrails[1].metric = Metric::ErrorRate), GateError::Twice("error-rate".into()));
        for (at, change) in [
            (0, (Some(1.5), None)),
            (0, (Some(-1.0), None)),
            (0, (Some(0.1), Some(5))),
            (1, (None, Some(0))),
            (2, (Some(0.1), None)),
        ] {
            let error = with(&|g| (g.guardrails[at].margin, g.guardrails[at].above_us) = change);
            assert!(matches!(error, GateError::Guardrail { .. }), "{at} {change:?}: {error}");
        }
        let numbers = |change: &dyn Fn(&mut Guardrail)| {
            let mut gate = gate(&[(Metric::Custom, Some(0.1))]);
            gate.guardrails[0].name = Some("line_stops".parse().unwrap());
            gate.guardrails[0].range = Some(ScoreRange { best: 10.0, worst: 0.0 });
            change(&mut gate.guardrails[0]);
            gate
        };
        assert_eq!(numbers(&|_| {}).validate(&[&Stage::Serve]), Ok(()));
        assert_eq!(numbers(&|g| (g.metric, g.name) = (Metric::Memory, None)).validate(&[&Stage::Serve]), Ok(()));
        let shadow = Stage::Shadow { share_bp: 10_000 };
        assert!(numbers(&|_| {}).validate(&[&shadow]).unwrap_err().to_string().contains("cannot be told"));
        for change in [
            &(|g: &mut Guardrail| g.name = None) as &dyn Fn(&mut Guardrail),
            &|g| g.range = None,
            &|g| g.range = Some(ScoreRange { best: 1.0, worst: 1.0 }),
            &|g| g.range = Some(ScoreRange { best: f64::NAN, worst: 1.0 }),
            &|g| g.range = Some(ScoreRange { best: 0.0, worst: 2e15 }),
            &|g| g.metric = Metric::Temperature,
            &|g| (g.metric, g.name) = (Metric::ErrorRate, None),
            &|g| (g.metric, g.name) = (Metric::Confidence, None),
        ] {
            let error = numbers(change).validate(&[&Stage::Serve]).unwrap_err();
            assert!(matches!(error, GateError::Guardrail { .. }), "{error}");
        }
        let disagrees = gate(&[(Metric::Disagreement, Some(0.1))]);
        assert!(disagrees.validate(&[&Stage::Serve]).unwrap_err().to_string().contains("shadow"));
        assert_eq!(disagrees.validate(&[&Stage::Shadow { share_bp: 10_000 }]), Ok(()));
    }
}
