//! Waves that run the bundle as shadow, before any device serves it.

use super::RolloutSpec;
use crate::trust::{Stage, StageError};

impl RolloutSpec {
    /// In which part the devices of the wave, counted from 0, run the bundle.
    #[must_use]
    pub fn stage_of(&self, wave: u32) -> &Stage {
        self.waves.get(wave as usize).and_then(|wave| wave.stage.as_ref()).unwrap_or(&self.stage)
    }

    /// Every part in which devices run the bundle, in the order of the waves, each once.
    #[must_use]
    pub fn stages(&self) -> Vec<&Stage> {
        let mut stages: Vec<&Stage> = Vec::new();
        for wave in &self.waves {
            let stage = wave.stage.as_ref().unwrap_or(&self.stage);
            if !stages.contains(&stage) {
                stages.push(stage);
            }
        }
        stages
    }
}

/// Why waves cannot run the bundle in a part of their own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShadowFirstError {
    /// The rollout itself has a part.
    #[error("wave {0}: stage: the whole rollout has one that is not serve; leave out one of the two")]
    Both(usize),
    /// Another part than a shadow.
    #[error("wave {0}: stage: a wave runs as shadow or serves; a split is for the whole rollout")]
    Split(usize),
    /// A share that is none.
    #[error("wave {0}: stage: {1}")]
    Share(usize, StageError),
    /// It comes too late.
    #[error("wave {0}: stage: waves that run as shadow come before the first that serves")]
    Late(usize),
    /// Nobody serves in the end.
    #[error("wave {0}: stage: the last wave serves; to run a shadow and no more, give the whole rollout stage shadow")]
    Last(usize),
    /// A limit that nothing is held against.
    #[error(
        "limit max_disagreement: only a shadow disagrees; let the rollout or its first waves run as shadow, or leave it out"
    )]
    NoShadow,
}

/// Whether waves can run the bundle in the parts they ask for.
pub(super) fn validate(spec: &RolloutSpec) -> Result<(), ShadowFirstError> {
    let mut serves = false;
    for (number, wave) in (1usize..).zip(&spec.waves) {
        let Some(stage) = &wave.stage else {
            serves = true;
            continue;
        };
        if !spec.stage.is_serve() {
            return Err(ShadowFirstError::Both(number));
        }
        stage.validate().map_err(|error| ShadowFirstError::Share(number, error))?;
        match stage {
            Stage::Serve => serves = true,
            Stage::Split { .. } => return Err(ShadowFirstError::Split(number)),
            Stage::Shadow { .. } if serves => return Err(ShadowFirstError::Late(number)),
            Stage::Shadow { .. } if number == spec.waves.len() => return Err(ShadowFirstError::Last(number)),
            Stage::Shadow { .. } => {}
        }
    }
    let has_shadow = spec.stages().iter().any(|stage| matches!(stage, Stage::Shadow { .. }));
    if spec.limits.max_disagreement.is_some() && !has_shadow { Err(ShadowFirstError::NoShadow) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{BlueGreen, GateSpec, Guardrail, Metric, Rate, WaveSpec};
    use crate::selector::Selector;

    const SHADOW: Stage = Stage::Shadow { share_bp: 2_000 };

    /// `s` for a wave that runs as shadow, `w` for one that serves.
    fn spec(shape: &str) -> RolloutSpec {
        let wave = |part| WaveSpec {
            stage: (part == 's').then_some(SHADOW),
            ..WaveSpec::of("100%".parse().unwrap(), 1_000, 60_000)
        };
        RolloutSpec::of("digits@1.0.0".parse().unwrap(), Selector::all(), shape.chars().map(wave).collect())
    }

    #[test]
    fn shadows_come_first_and_the_last_wave_serves() {
        for good in ["w", "ww", "sw", "ssw", "sww"] {
            assert_eq!(spec(good).validate(), Ok(()), "{good}");
        }
        for (shape, expected) in
            [("ws", "wave 2: stage: waves"), ("wsw", "wave 2"), ("s", "wave 1: stage: the last"), ("ss", "wave 2")]
        {
            let error = spec(shape).validate().unwrap_err().to_string();
            assert!(error.contains(expected), "{shape}: {error}");
        }
        let says = |change: &dyn Fn(&mut RolloutSpec), word: &str| {
            let mut spec = spec("sw");
            change(&mut spec);
            let error = spec.validate().unwrap_err().to_string();
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        };
        says(&|s| s.stage = SHADOW, "leave out one of the two");
        says(&|s| s.waves[0].stage = Some(Stage::Shadow { share_bp: 0 }), "0 basis points");
        says(&|s| s.waves[0].stage = Some(Stage::Split { share_bp: 1, experiment: "x".into() }), "a split");
        says(&|s| s.blue_green = Some(BlueGreen::default()), "leave stage out");
        says(
            &|s| s.rate = Some(Rate { maximum_per_minute: 5, exponential_rate: None }),
            "told to serve it all at once",
        );
        says(&|s| s.limits.max_disagreement = Some(1.1), "max_disagreement");
        says(&|s| (s.waves[0].stage, s.limits.max_disagreement) = (None, Some(0.1)), "only a shadow");
        says(&|s| (s.waves[0].soak_ms, s.emergency) = (0, true), "emergency");
    }

    #[test]
    fn a_wave_without_a_part_of_its_own_is_written_as_before() {
        let json = serde_json::to_string(&spec("ww")).unwrap();
        assert!(!json.contains("stage") && !json.contains("disagreement"), "{json}");
        let read: RolloutSpec = serde_json::from_str(&serde_json::to_string(&spec("sw")).unwrap()).unwrap();
        assert_eq!((read.stage_of(0), read.stage_of(1), read.stages().len()), (&SHADOW, &Stage::Serve, 2));
    }

    #[test]
    fn each_part_is_compared_by_what_can_be_measured_in_it_and_must_prove_something() {
        let gate = |guardrails: &[(Metric, Option<f64>)]| {
            let each = guardrails.iter().map(|(metric, margin)| Guardrail::of(*metric, *margin));
            RolloutSpec { gate: Some(GateSpec::of(each.collect())), ..spec("sw") }
        };
        let both = gate(&[(Metric::Disagreement, Some(0.02)), (Metric::ErrorRate, Some(0.03))]);
        assert_eq!(both.validate(), Ok(()));
        let parts =
            both.gate.as_ref().map(|gate| [SHADOW, Stage::Serve].map(|stage| gate.part_for(&stage).guardrails.len()));
        assert_eq!(parts, Some([2, 1]));
        let unproven = gate(&[(Metric::Disagreement, Some(0.02))]).validate().unwrap_err().to_string();
        assert!(unproven.contains("each need one with a margin"), "{unproven}");
        let mut serving = both;
        serving.waves[0].stage = None;
        assert!(serving.validate().unwrap_err().to_string().contains("needs a rollout that runs as shadow"));
    }
}
