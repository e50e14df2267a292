//! A rollout as the API shows it. Waves that have not come are shown with the devices they would take as things are.

use std::collections::BTreeMap;

use muster_shared::ids::DeviceId;
use muster_shared::rollout::{DeviceProgress, RolloutStatus, RolloutView, Verdict, Waiting, WaveView};

use crate::analysis;
use crate::blue_green::is_ready;
use crate::cohort::Survey;
use crate::fleet::{DeviceFacts, Fleet};
use crate::rollout::{Errand, Rollout, Target};
use crate::standing::{Standing, standing};
use crate::wave::take_in;

impl Rollout {
    /// The rollout as the API shows it; `waiting` is what the last plan said.
    #[must_use]
    pub fn view(&self, fleet: &Fleet, waiting: &[Waiting]) -> RolloutView {
        let mut devices: Vec<BTreeMap<DeviceId, DeviceProgress>> = vec![BTreeMap::new(); self.waves.len()];
        for (id, target) in &self.targets {
            if let Some(wave) = devices.get_mut(target.wave as usize) {
                wave.insert(id.clone(), progress(target, fleet.devices.get(id)));
            }
        }
        for (wave, ids) in self.to_come(fleet) {
            if let Some(wave) = devices.get_mut(wave as usize) {
                wave.extend(ids.into_iter().map(|id| (id, DeviceProgress::Pending)));
            }
        }
        let last_verdict =
            |wave: u32| self.verdicts.iter().rev().find(|verdict| verdict.wave == wave).map(Verdict::shown);
        RolloutView {
            id: self.id.clone(),
            spec: self.spec.clone(),
            manifest: self.bundle.manifest,
            status: self.status,
            status_reason: self.status_reason.clone(),
            created_at_ms: self.created_at_ms,
            created_by: self.created_by.clone(),
            approval: self.approval.clone(),
            updated_at_ms: self.updated_at_ms,
            current_wave: self.current_wave,
            waves: (0u32..)
                .zip(self.waves.iter().zip(devices))
                .map(|(wave, (state, devices))| WaveView {
                    devices,
                    started_at_ms: state.started_at_ms,
                    verdict: last_verdict(wave),
                    analyses: analysis::reports(&self.analyses, &state.analyses)
                        .into_iter()
                        .map(|(_, report)| report)
                        .collect(),
                })
                .collect(),
            outcomes: self.outcomes(fleet),
            waiting: waiting.to_vec(),
            verdicts: self.verdicts.iter().map(Verdict::shown).collect(),
        }
    }

    /// The devices each wave to come would take in, those included that run as shadow until then.
    pub(crate) fn to_come(&self, fleet: &Fleet) -> Vec<(u32, Vec<DeviceId>)> {
        match self.status {
            RolloutStatus::RollingBack
            | RolloutStatus::Completed
            | RolloutStatus::RolledBack
            | RolloutStatus::Stopped => return Vec::new(),
            RolloutStatus::Draft
            | RolloutStatus::WaitingForApproval
            | RolloutStatus::Ready
            | RolloutStatus::Running
            | RolloutStatus::Paused => {}
        }
        let survey = Survey::of(self, fleet);
        let (mut planned, mut to_come) = (self.clone(), Vec::new());
        for (wave, (spec, state)) in (0u32..).zip(self.spec.waves.iter().zip(&self.waves)) {
            if state.started_at_ms.is_none() {
                planned.current_wave = wave;
                take_in(&mut planned, &survey, spec, |_, _| true, None, self.updated_at_ms);
                let comes = planned.targets.iter().filter(|(_, target)| target.wave == wave);
                to_come.push((wave, comes.map(|(id, _)| id.clone()).collect()));
            }
        }
        to_come
    }
}

/// How far a device is.
pub(crate) fn progress(target: &Target, facts: Option<&DeviceFacts>) -> DeviceProgress {
    if facts.is_some_and(|facts| facts.revoked) {
        return DeviceProgress::Revoked;
    }
    let standing = match facts.map(|facts| standing(target, facts)) {
        // Gone, or about something else by now: what it had done counts.
        Some(Standing::Astray) | None if target.done_at_ms.is_some() => Standing::Done,
        Some(standing) => standing,
        None => Standing::Unheard,
    };
    match (target.errand, standing) {
        (Errand::Back, Standing::Done) => DeviceProgress::Back,
        (
            Errand::Back,
            Standing::Unheard | Standing::Working | Standing::Trial | Standing::Failed(_) | Standing::Astray,
        ) => DeviceProgress::GoingBack,
        (Errand::Forward, Standing::Done) if target.beside => DeviceProgress::Beside,
        (Errand::Keep, _) | (Errand::Forward, Standing::Done) => DeviceProgress::Committed,
        (Errand::Forward, Standing::Failed(_)) => DeviceProgress::Failed,
        // Given up, whatever it says now.
        (Errand::Forward, _) if target.failure.is_some() => DeviceProgress::Failed,
        (Errand::Forward, _) if target.is_timed_out() => DeviceProgress::TimedOut,
        (Errand::Forward, Standing::Unheard | Standing::Astray) => DeviceProgress::Assigned,
        (Errand::Forward, Standing::Working) if facts.is_some_and(|facts| is_ready(target, facts)) => {
            DeviceProgress::Ready
        }
        (Errand::Forward, Standing::Working) => DeviceProgress::Updating,
        (Errand::Forward, Standing::Trial) => DeviceProgress::Trial,
    }
}
