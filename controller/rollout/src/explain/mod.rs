//! Says why a rollout stands where it does: what it does, what it waits for, who decides next, and on which numbers.
//!
//! It decides nothing. The reasons are those of [`plan()`], made now, so what is said is what happens when nothing else does. What
//! happened so far is the controller's history, which it adds.

mod device;

use std::collections::BTreeMap;

use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Decider, DeviceProgress, Explanation, Obstacle, RolloutStatus, Verdict};

use crate::analysis;
use crate::cohort::Survey;
use crate::evidence::Arm;
use crate::fleet::Fleet;
use crate::limits::judge;
use crate::plan::plan;
use crate::rollout::Rollout;
use crate::view::progress;
use crate::wording::counted;

impl Rollout {
    /// Why the rollout stands where it does, and why `device` does where one is asked about.
    #[must_use]
    pub fn explain(&self, fleet: &Fleet, device: Option<&DeviceId>, now_ms: u64) -> Explanation {
        let decision = self.needs_planning().then(|| plan(self, fleet, now_ms));
        // What the next look changes is in nobody else's way.
        let (moves_on, waiting) = decision.map_or((false, Vec::new()), |decision| {
            let moves_on = decision.next.status != self.status;
            (moves_on, if moves_on { Vec::new() } else { decision.waiting })
        });
        let obstacles: Vec<Obstacle> =
            waiting.into_iter().map(|what| Obstacle { decider: what.decider(), what }).collect();
        let decider = if moves_on { Decider::Controller } else { self.decider(&obstacles) };
        let spec = self.spec.waves.get(self.current_wave as usize);
        let running = self.wave_state().filter(|state| !state.is_kept_out);
        let clock_from_ms = running.and_then(|state| state.clock_from_ms);
        let pauses_at_ms = clock_from_ms
            .zip(spec)
            .filter(|_| self.status == RolloutStatus::Running)
            .map(|(from_ms, spec)| from_ms.saturating_add(spec.max_duration_ms));
        Explanation {
            rollout: self.id.clone(),
            bundle: self.bundle.bundle.clone(),
            status: self.status,
            doing: self.doing(fleet),
            device: device.map(|id| self.explain_device(id, fleet, decider, now_ms)),
            obstacles,
            decider,
            pauses_at_ms,
            numbers: self.numbers(fleet, now_ms),
        }
    }

    fn decider(&self, obstacles: &[Obstacle]) -> Decider {
        let first = obstacles.first().map_or(Decider::Controller, |obstacle| obstacle.decider);
        match self.status {
            RolloutStatus::Draft | RolloutStatus::WaitingForApproval | RolloutStatus::Paused => Decider::People,
            RolloutStatus::Ready | RolloutStatus::Running | RolloutStatus::RollingBack => first,
            RolloutStatus::Completed | RolloutStatus::RolledBack | RolloutStatus::Stopped if obstacles.is_empty() => {
                Decider::Nobody
            }
            RolloutStatus::Completed | RolloutStatus::RolledBack | RolloutStatus::Stopped => first,
        }
    }

    fn doing(&self, fleet: &Fleet) -> String {
        let bundle = &self.bundle.bundle;
        let part = if self.wave_stage().is_serve() { "" } else { ", to run it beside what they have" };
        let wave = || format!("wave {} of {}{part}", u64::from(self.current_wave) + 1, self.waves.len());
        let stands = match self.status {
            RolloutStatus::Draft => return "it is being written, and nothing happens".to_owned(),
            RolloutStatus::WaitingForApproval => {
                return format!("it waits for people to approve it before it brings {bundle} to anybody");
            }
            RolloutStatus::Ready => return format!("it is about to bring {bundle} to {}", wave()),
            RolloutStatus::Running => {
                return format!("it brings {bundle} to {}: {}", wave(), self.progress_of_wave(fleet));
            }
            RolloutStatus::Paused => format!("it is paused in {}: {}", wave(), self.progress_of_wave(fleet)),
            RolloutStatus::RollingBack => match &self.destination {
                Some(to) => format!("it takes its devices to {}", to.bundle),
                None => format!("it takes its devices back from {bundle} to what they ran before"),
            },
            RolloutStatus::Completed => format!("it has brought {bundle} to every device it means"),
            RolloutStatus::RolledBack => "it has gone back".to_owned(),
            RolloutStatus::Stopped => "it was stopped, and devices keep what they have".to_owned(),
        };
        format!("{stands} ({})", self.status_reason)
    }

    /// Devices of the current wave by how far they are, the furthest first.
    fn progress_of_wave(&self, fleet: &Fleet) -> String {
        let mut counts: BTreeMap<DeviceProgress, u64> = BTreeMap::new();
        for (id, target) in self.targets.iter().filter(|(_, target)| target.wave == self.current_wave) {
            *counts.entry(progress(target, fleet.devices.get(id))).or_default() += 1;
        }
        if counts.is_empty() {
            return "no device yet".to_owned();
        }
        let said = counts.iter().rev().map(|(progress, n)| format!("{} {}", counted(*n, "device"), word(*progress)));
        said.collect::<Vec<_>>().join(", ")
    }

    /// The rules held against what is known now, where a wave is being watched; else the last verdict.
    fn numbers(&self, fleet: &Fleet, now_ms: u64) -> Option<Verdict> {
        let is_watched = self.status == RolloutStatus::Running
            && self.wave_state().is_some_and(|state| state.started_at_ms.is_some());
        if !is_watched {
            return self.verdicts.last().map(Verdict::shown);
        }
        let survey = Survey::of(self, fleet);
        let (canary, control) = (Arm::canary(self, fleet), Arm::control(self, &survey, fleet));
        let judgement = analysis::held(self, judge(self, &canary, &control));
        Some(judgement.so_far(self.current_wave, now_ms).shown())
    }
}

/// How far a device is, after a number of them.
fn word(progress: DeviceProgress) -> &'static str {
    match progress {
        DeviceProgress::Pending => "to come",
        DeviceProgress::Assigned => "told",
        DeviceProgress::Updating => "updating",
        DeviceProgress::Ready => "ready to switch",
        DeviceProgress::Trial => "on trial",
        DeviceProgress::Beside => "running it beside another",
        DeviceProgress::Committed => "committed",
        DeviceProgress::TimedOut => "timed out",
        DeviceProgress::Failed => "failed",
        DeviceProgress::GoingBack => "going back",
        DeviceProgress::Back => "back",
        DeviceProgress::Revoked => "shut out",
    }
}
