//! What a rollout would do, by the very functions that do it.

use muster_shared::rollout::{RolloutPreview, WavePreview};

use crate::cohort::Survey;
use crate::fleet::Fleet;
use crate::gate;
use crate::rate;
use crate::rollout::{Errand, Rollout};
use crate::wave::take_in;

impl Rollout {
    /// Every wave of a rollout that has not started, as things are.
    #[must_use]
    pub fn preview(&self, fleet: &Fleet, now_ms: u64) -> RolloutPreview {
        let survey = Survey::of(self, fleet);
        let mut planned = self.clone();
        let (mut waves, mut told) = (Vec::new(), 0);
        for (wave, spec) in (0u32..).zip(&self.spec.waves) {
            planned.current_wave = wave;
            take_in(&mut planned, &survey, spec, |_, _| true, None, now_ms);
            let devices: Vec<_> =
                planned.targets.iter().filter(|(_, target)| target.wave == wave).map(|(id, _)| id.clone()).collect();
            let is_away = |id: &_| fleet.devices.get(id).is_none_or(|facts| !facts.online);
            let asked = self.spec.gate.as_ref();
            let all = planned.targets.values().filter(|target| target.errand == Errand::Forward).count() as u64;
            let come = all.saturating_sub(std::mem::replace(&mut told, all));
            let intake = self.spec.rate.as_ref().map(|rate| rate::preview(rate, all.saturating_sub(come), come));
            let dealt = asked.and_then(|asked| gate::deal(&planned, &survey, asked, spec));
            waves.push(WavePreview {
                offline: devices.iter().filter(|id| is_away(id)).cloned().collect(),
                devices,
                intake,
                alpha: asked.map(|asked| gate::alpha(&self.spec, asked, wave)),
                blocks: dealt.map_or_else(Vec::new, |dealt| dealt.blocks),
            });
        }
        RolloutPreview {
            id: self.id.clone(),
            spec: self.spec.clone(),
            manifest: self.bundle.manifest,
            waves,
            approval: self.approval.clone(),
            analyses: self.analyses.clone(),
            group: survey.group().cloned().collect(),
            held: survey.held,
            ends: Vec::new(),
            unsuitable: survey.unsuitable,
        }
    }
}
