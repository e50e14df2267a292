//! How far the devices of a wave are, and what it waits for.

use std::collections::BTreeMap;

use muster_shared::ids::DeviceId;
use muster_shared::messages::{HeldBack, PressureLevel};
use muster_shared::rollout::{Limits, Waiting, WaveSpec};

use crate::cohort::Survey;
use crate::fleet::Fleet;
use crate::judgement::Judgement;
use crate::rollout::Rollout;
use crate::standing::{has_arrived, held_back};

/// The devices of a wave and those before it, counted.
pub(super) struct Census {
    /// Whether the wave has any device at all.
    is_populated: bool,
    /// Whether a device of the wave has committed and not failed; one that came in with it, if there are such.
    pub(super) has_committed: bool,
    /// Whether one of these can be reached now: what it has not said by the end of the soak, nobody else may say for it.
    is_heard: bool,
    /// Devices that can be reached and have not failed.
    pub(super) reachable: u32,
    /// Of those, the ones that have committed.
    pub(super) done: u32,
    /// Devices that failed or timed out.
    failed: u32,
    /// Devices that are away before they have committed.
    away: Vec<DeviceId>,
    /// Devices that have committed and are away, of those of which one has to be there.
    silent: Vec<DeviceId>,
    /// Devices that can be reached and do not fetch, and why.
    held_back: BTreeMap<DeviceId, HeldBack>,
    /// Devices that can be reached and say that something presses on them: they run no shadow.
    pressed: u32,
}

impl Census {
    pub(super) fn of(rollout: &Rollout, fleet: &Fleet, survey: &Survey<'_>, spec: &WaveSpec) -> Self {
        let (mut reachable, mut done, mut failed, mut away) = (0, 0, 0, Vec::new());
        let (mut held, mut pressed) = (BTreeMap::new(), 0);
        let mut silent = Vec::new();
        // Devices that came in with this wave.
        let mut own = Count::default();
        for (id, target, facts) in rollout.governed_targets(fleet).filter(|(_, target, _)| rollout.is_watched(target)) {
            let committed = has_arrived(target, facts);
            if target.failure.is_some() || target.is_timed_out() {
                failed += 1;
            } else if facts.online {
                reachable += 1;
                done += u32::from(committed);
                let pressure = facts.reported.as_ref().map(|reported| reported.pressure.level);
                pressed += u32::from(pressure.is_some_and(|level| level != PressureLevel::None));
                held.extend(held_back(target, facts).map(|why| (id.clone(), why)));
            } else if !committed {
                away.push(id.clone());
            } else {
                silent.push((target.wave, id.clone()));
            }
            if target.wave == rollout.current_wave {
                own = own.and(committed, facts.online);
            }
        }
        let is_own = own.all > 0;
        let counted = if is_own { own } else { Self::of_earlier(rollout, fleet, survey, spec) };
        let silent = silent.into_iter().filter(|(wave, _)| !is_own || *wave == rollout.current_wave);
        Self {
            is_populated: counted.all > 0,
            has_committed: counted.committed > 0,
            is_heard: counted.heard > 0,
            reachable,
            done,
            failed,
            away,
            silent: silent.map(|(_, id)| id).collect(),
            held_back: held,
            pressed,
        }
    }

    /// Devices of waves before that count towards the size of this one.
    fn of_earlier(rollout: &Rollout, fleet: &Fleet, survey: &Survey<'_>, spec: &WaveSpec) -> Count {
        let earlier = rollout.governed_targets(fleet).filter(|(id, target, _)| {
            target.wave != rollout.current_wave
                && rollout.is_watched(target)
                && survey.is_candidate(id, rollout.current_wave, spec)
        });
        earlier.fold(Count::default(), |count, (_, target, facts)| count.and(has_arrived(target, facts), facts.online))
    }
}

/// The devices on which a wave may pass.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    all: u32,
    committed: u32,
    /// Have committed and can be reached.
    heard: u32,
}

impl Count {
    /// With another one.
    fn and(self, committed: bool, online: bool) -> Self {
        Self {
            all: self.all + 1,
            committed: self.committed + u32::from(committed),
            heard: self.heard + u32::from(committed && online),
        }
    }
}

/// What keeps the wave from passing, and what is worth knowing besides.
pub(super) fn waiting(
    census: Census,
    survey: &Survey<'_>,
    limits: Option<&Limits>,
    judgement: &Judgement,
    soak_until_ms: Option<u64>,
    kept_out: Vec<Waiting>,
    now_ms: u64,
) -> (Vec<Waiting>, Vec<Waiting>) {
    let (mut blocking, mut aside) = (Vec::new(), Vec::new());
    let Census { is_populated, has_committed, is_heard, reachable, done, failed, mut away, silent, held_back, pressed } =
        census;
    if !is_populated && kept_out.is_empty() {
        blocking.push(Waiting::NoDevices);
    }
    blocking.extend(kept_out);
    if done < reachable {
        blocking.push(Waiting::Updating { done, of: reachable });
    } else if is_populated && !has_committed && away.is_empty() {
        blocking.push(Waiting::Updating { done, of: reachable.saturating_add(failed) });
    }
    if !is_heard {
        away.extend(silent);
    }
    if !away.is_empty() {
        // Who is away holds nobody up, unless there is nobody else.
        let list = if is_heard { &mut aside } else { &mut blocking };
        list.push(Waiting::Offline { devices: away });
    }
    if let Some(until_ms) = soak_until_ms.filter(|until_ms| *until_ms > now_ms) {
        blocking.push(Waiting::Soaking { until_ms });
    }
    let canary = judgement.canary();
    if let Some(limits) = limits.filter(|limits| canary.reports < limits.min_reports) {
        blocking.push(Waiting::TooFewReports { have: canary.reports, need: limits.min_reports });
    }
    if let Some(limits) = limits.filter(|limits| canary.requests < limits.min_requests) {
        blocking.push(Waiting::TooFewRequests { have: canary.requests, need: limits.min_requests });
    }
    if let Some(need) = judgement.predictions_needed {
        blocking.push(Waiting::TooFewPredictions { have: canary.predictions, need });
    }
    if let Some((have, need)) = judgement.compared_needed {
        blocking.push(Waiting::TooFewCompared { have, need, resting: pressed });
    }
    if !held_back.is_empty() {
        // They are among those that are still updating; this says why.
        aside.push(Waiting::HeldBack { devices: held_back });
    }
    aside.extend(outsiders(survey));
    (blocking, aside)
}

/// Devices that are meant and left out, and those that are in and do not hear it.
fn outsiders(survey: &Survey<'_>) -> impl Iterator<Item = Waiting> {
    let group: Vec<DeviceId> = survey.group().cloned().collect();
    let held = (!survey.held.is_empty()).then(|| Waiting::HeldByOtherRollout { devices: survey.held.clone() });
    let unsuitable =
        (!survey.unsuitable.is_empty()).then(|| Waiting::Unsuitable { devices: survey.unsuitable.clone() });
    let unheard = (!survey.unheard.is_empty()).then(|| Waiting::CannotBeTold { devices: survey.unheard.clone() });
    let group = (!group.is_empty()).then_some(Waiting::HoldbackGroup { devices: group });
    let later = (!survey.later.is_empty()).then(|| Waiting::CameLater { devices: survey.later.clone() });
    [held, unheard, unsuitable, group, later].into_iter().flatten()
}
