//! Experiments: what a bundle must be better in, said before anything is measured. What is measured, what counts and for how long stand in the wish,
//! which nobody can change: a guardrail whose margin is not above 0, and the soak of the wave that is the experiment.

use super::RolloutSpec;
use crate::rollout::gate::GateSpec;

impl RolloutSpec {
    /// The gate of a wave, counted from 0: without what cannot be measured in its part, and without what only the experiment's wave must show.
    #[must_use]
    pub fn gate_of(&self, wave: u32) -> Option<GateSpec> {
        let mut gate = self.gate.as_ref()?.part_for(self.stage_of(wave));
        gate.guardrails.retain(|guardrail| !guardrail.asks_for_gain() || wave == self.experiment_wave());
        Some(gate)
    }

    /// The wave that is the experiment, where one is asked for: the first whose devices run the bundle as all are to in the end.
    fn experiment_wave(&self) -> u32 {
        let first = self.waves.iter().position(|wave| wave.stage.as_ref().is_none_or(|stage| *stage == self.stage));
        u32::try_from(first.unwrap_or_default()).unwrap_or(u32::MAX)
    }
}

/// Whether an experiment has devices to compare with; says what to do.
pub(super) fn validate(spec: &RolloutSpec) -> Result<(), &'static str> {
    let is_asked = spec.gate.as_ref().is_some_and(GateSpec::asks_for_gain);
    let is_last = spec.experiment_wave() as usize + 1 == spec.waves.len();
    if is_asked && is_last && spec.stage.is_serve() && spec.holdback.is_none() {
        return Err(
            "a bundle that must be better is compared in its first wave, and the last leaves nobody to compare with: give a smaller \
             wave before it, or a holdback",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{Guardrail, Metric, WaveSize, WaveSpec};
    use crate::selector::Selector;
    use crate::trust::Stage;

    fn experiment(waves: &[&str]) -> RolloutSpec {
        let waves = waves.iter().map(|size| WaveSpec::of(size.parse().unwrap(), 1_000, 60_000)).collect();
        let rails = [(Metric::LabelError, 0.0), (Metric::ErrorRate, 0.03)];
        let gate = GateSpec::of(rails.map(|(metric, margin)| Guardrail::of(metric, Some(margin))).to_vec());
        let plain = RolloutSpec::of("digits@1.0.0".parse().unwrap(), Selector::all(), waves);
        RolloutSpec { gate: Some(gate), ..plain }
    }

    fn asked(spec: &RolloutSpec, wave: u32) -> Vec<Metric> {
        spec.gate_of(wave).unwrap().guardrails.iter().map(|guardrail| guardrail.metric).collect()
    }

    #[test]
    fn only_the_wave_of_the_experiment_must_show_a_gain() {
        let spec = experiment(&["20%", "50%", "100%"]);
        assert_eq!(spec.validate(), Ok(()));
        assert_eq!(asked(&spec, 0), [Metric::LabelError, Metric::ErrorRate]);
        assert_eq!([asked(&spec, 1), asked(&spec, 2)], [[Metric::ErrorRate], [Metric::ErrorRate]]);
        let mut shadow_first = spec;
        shadow_first.waves[0].stage = Some(Stage::Shadow { share_bp: 10_000 });
        assert_eq!([asked(&shadow_first, 0).len(), asked(&shadow_first, 1).len()], [1, 2]);
    }

    #[test]
    fn an_experiment_without_anybody_to_compare_with_is_refused() {
        let alone = experiment(&["100%"]);
        let why = alone.validate().unwrap_err().to_string();
        assert!(why.starts_with("gate: ") && why.contains("holdback"), "{why}");
        let held = RolloutSpec { holdback: Some(WaveSize::Percent(20)), ..alone.clone() };
        assert_eq!(held.validate(), Ok(()));
        let split = RolloutSpec { stage: Stage::Split { share_bp: 5_000, experiment: "warm".to_owned() }, ..alone };
        assert_eq!(split.validate(), Ok(()), "each device is compared with itself");
    }

    #[test]
    fn a_gain_alone_proves_nothing_for_the_waves_after_it() {
        let mut spec = experiment(&["20%", "100%"]);
        spec.gate.as_mut().unwrap().guardrails.pop();
        assert!(spec.validate().unwrap_err().to_string().contains("above 0"));
    }
}
