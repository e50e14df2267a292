//! One wave: takes devices in, watches them, and says when it is over.
//!
//! The soak runs from the time at which every device of the wave that could be reached was first seen to have
//! committed, and is not started anew by a device that comes back or joins later: the wave waits for such a device
//! until it has committed too, but no longer than its longest duration, after which it is inconclusive like any other.
//! Devices that a freeze, their windows or the rate keep out hold the wave until it is complete (see [`crate::timing`], [`crate::rate`]).
//! A wave passes only on devices of its own, if it has any: at least one must have committed, not failed since, and be there when
//! the wave passes: devices that went dark, or a controller that was away itself, promote nothing.

mod census;

use std::collections::BTreeMap;

use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Deadlines, FailureKind, LongestDuration, Outcome, RolloutStatus, Waiting, WaveSpec};

use census::{Census, waiting};

use crate::abort;
use crate::analysis;
use crate::blue_green;
use crate::cohort::{Survey, hash, new_target};
use crate::conflict::left_out;
use crate::deadline::{self, DeadlineState};
use crate::evidence::Arm;
use crate::fleet::{DeviceFacts, Fleet};
use crate::gate;
use crate::judgement::Judgement;
use crate::limits::judge;
use crate::rate;
use crate::rollout::{Errand, GAVE_UP_ASTRAY, MAX_ATTEMPTS, Rollout, Target, WaveState};
use crate::shadow_first;
use crate::standing::{Standing, fresh_generation, has_refused, past, standing};
use crate::timing::{self, Timing};

/// Enters the wave `next.current_wave`.
pub(crate) fn enter(next: &mut Rollout, now_ms: u64) {
    if let Some(wave) = next.waves.get_mut(next.current_wave as usize) {
        *wave = WaveState { started_at_ms: Some(now_ms), clock_from_ms: Some(now_ms), ..WaveState::default() };
    }
}

/// One step of a running rollout: it stays, goes on, goes back, pauses or completes. Says what it waits for.
pub(crate) fn step<'f>(next: &mut Rollout, fleet: &'f Fleet, survey: &Survey<'f>, now_ms: u64) -> Vec<Waiting> {
    // The second round only enters the wave after one that passed: a wave is not judged at the time it is entered.
    loop {
        let wave = next.current_wave;
        let Some(spec) = next.spec.waves.get(wave as usize).cloned() else { return Vec::new() };
        let started_ms = rewind(next, now_ms);
        let judged = started_ms < now_ms;
        next.change_governed(fleet, |next, _, target, facts| {
            put_right(next, target, facts, now_ms);
            take_note(target, facts, next.spec.deadlines, now_ms);
        });

        // Judged as it will be with those that join now; they join only if the wave goes on.
        let mut grown = next.clone();
        let timing = Timing::of(next, fleet, now_ms);
        let room = rate::room(next, now_ms);
        let left = take_in(&mut grown, survey, &spec, |id, facts| timing.lets_in(id, facts), room, now_ms);
        let mut kept_out = timing.kept_out(survey, &grown, &spec);
        kept_out.extend(rate::waiting(&grown, left, now_ms));
        timing::mark(&mut grown, !kept_out.is_empty(), now_ms);
        let judgement = {
            let (canary, control) = (Arm::canary(&grown, fleet), Arm::control(&grown, survey, fleet));
            judge(&grown, &canary, &control)
        };
        if judged && judgement.is_failed() {
            abort::end(next, judgement, now_ms);
            return Vec::new();
        }
        blue_green::switch(&mut grown, fleet, survey, now_ms);
        let census = Census::of(&grown, fleet, survey, &spec);
        // Who is compared and since when it soaks is settled once the wave is complete.
        let is_complete = kept_out.is_empty();
        let soak_until_ms = soak(&mut grown, &census, &spec, is_complete, now_ms);
        if is_complete {
            deal(&mut grown, survey, &spec);
        }
        // What an analysis finds when the wave is entered cannot be acted on yet, and would drop those that join now.
        let looks = judged || next.wave_state().is_some_and(|state| !state.analyses.is_empty());
        let judgement = if looks { analysis::look(&mut grown, next, fleet, judgement, now_ms) } else { judgement };
        let limits = grown.spec.judged_by();
        let (mut blocking, mut aside) = waiting(census, survey, limits, &judgement, soak_until_ms, kept_out, now_ms);
        blocking.extend(analysis::waiting(&grown));
        aside.extend(deadline::waiting(&grown, fleet));
        aside.splice(0..0, blue_green::waits(&grown, fleet, survey, now_ms));
        let clock_from_ms = grown.wave_state().and_then(|state| state.clock_from_ms).unwrap_or(now_ms);
        let time_is_up = is_complete && clock_from_ms.saturating_add(spec.max_duration_ms) <= now_ms;
        if judged && (blocking.is_empty() || judgement.is_failed() || judgement.is_open()) {
            match course(&mut grown, fleet, judgement, now_ms, !time_is_up) {
                Course::Wait(for_what) => blocking.push(for_what),
                Course::Back(judgement) => {
                    *next = grown;
                    next.conclude(judgement.failed(wave, now_ms));
                    next.status = RolloutStatus::RollingBack;
                    return Vec::new();
                }
                Course::Undecided(judgement) => {
                    *next = grown;
                    next.conclude(judgement.undecided(wave, now_ms));
                    next.status = RolloutStatus::Paused;
                    return aside;
                }
                Course::Pass(judgement) => {
                    *next = grown;
                    let mut verdict = judgement.successful(wave, now_ms);
                    if wave as usize + 1 == next.waves.len() {
                        verdict.summary.push_str(&left_out(survey, fleet));
                    }
                    next.conclude(verdict);
                    if wave as usize + 1 < next.waves.len() {
                        next.current_wave += 1;
                        enter(next, now_ms);
                        continue;
                    }
                    blue_green::release(next, fleet, now_ms);
                    next.status = RolloutStatus::Completed;
                    next.status_reason = format!("completed: {}", next.status_reason);
                    return aside;
                }
            }
        } else if time_is_up {
            let waited = LongestDuration { since_ms: clock_from_ms, max_ms: spec.max_duration_ms };
            let why: Vec<String> = blocking.iter().chain(&aside).map(ToString::to_string).collect();
            next.conclude(judgement.inconclusive(wave, now_ms, waited, &why));
            next.status = RolloutStatus::Paused;
            return aside;
        }
        *next = grown;
        return blocking.into_iter().chain(aside).collect();
    }
}

/// What becomes of a wave that its analyses have decided, or that nothing but the comparison of its devices can hold up.
enum Course {
    Wait(Waiting),
    Back(Judgement),
    Undecided(Judgement),
    Pass(Judgement),
}

impl Course {
    fn of(judgement: Judgement) -> Self {
        match judgement.outcome() {
            Outcome::Failed => Self::Back(judgement),
            Outcome::Inconclusive | Outcome::Error => Self::Undecided(judgement),
            Outcome::Successful => Self::Pass(judgement),
        }
    }
}

fn course(next: &mut Rollout, fleet: &Fleet, judgement: Judgement, now_ms: u64, may_wait: bool) -> Course {
    let judgement = match Course::of(judgement) {
        Course::Pass(judgement) => judgement,
        decided @ (Course::Wait(_) | Course::Back(_) | Course::Undecided(_)) => return decided,
    };
    match gate::answer(next, fleet, now_ms, may_wait) {
        Err(for_what) => Course::Wait(for_what),
        Ok(None) => Course::Pass(judgement),
        Ok(Some(report)) => {
            let waived_by = next.wave_state().and_then(|state| state.gate.as_ref()?.waived_by.clone());
            Course::of(judgement.with_gate(report, waived_by))
        }
    }
}

/// Says who is compared with whom, once the wave has devices.
fn deal(next: &mut Rollout, survey: &Survey<'_>, spec: &WaveSpec) {
    let Some(gate) = next.spec.gate.as_ref().filter(|_| next.wave_state().is_some_and(|state| state.gate.is_none()))
    else {
        return;
    };
    let dealt = gate::deal(next, survey, gate, spec);
    if let Some(state) = next.waves.get_mut(next.current_wave as usize) {
        state.gate = dealt;
    }
}

/// When the clock alone may change something about a running rollout.
pub(crate) fn wake_at_ms(rollout: &Rollout, now_ms: u64) -> Option<u64> {
    let spec = rollout.spec.waves.get(rollout.current_wave as usize)?;
    let state = rollout.wave_state()?;
    let after = |from: Option<u64>, ms: u64| from.map(|from| from.saturating_add(ms));
    [
        after(state.started_at_ms, 1),
        after(state.soak_from_ms, spec.soak_ms),
        after(state.clock_from_ms, spec.max_duration_ms),
        blue_green::next_switch_ms(rollout, now_ms),
    ]
    .into_iter()
    .flatten()
    .filter(|at_ms| *at_ms > now_ms)
    .min()
}

/// Takes times that lie ahead, because the clock was set back, to be now: the wave waits longer, but not for ever. Gives
/// when the wave was entered.
fn rewind(next: &mut Rollout, now_ms: u64) -> u64 {
    let Some(state) = next.waves.get_mut(next.current_wave as usize) else { return now_ms };
    let started_ms = state.started_at_ms.unwrap_or(now_ms).min(now_ms);
    let clock_from_ms = state.clock_from_ms.unwrap_or(now_ms).min(now_ms);
    state.started_at_ms = Some(started_ms);
    state.clock_from_ms = Some(clock_from_ms);
    state.soak_from_ms = state.soak_from_ms.map(|from_ms| from_ms.min(now_ms));
    rate::rewind(next, now_ms);
    started_ms
}

/// Brings a target up to date with what its device reports: what it would go back to, a new generation if it knows a newer one than
/// its own, as after a restored store, and the bundle if it had that and lost it.
fn put_right(next: &Rollout, target: &mut Target, facts: &DeviceFacts, now_ms: u64) {
    if target.failure.is_some() {
        return;
    }
    target.previous = past(target, facts);
    if standing(target, facts) != Standing::Astray {
        return;
    }
    let attempts = target.attempts + 1;
    match fresh_generation(facts, target.generation).filter(|_| attempts <= MAX_ATTEMPTS) {
        Some(generation) => {
            if target.errand == Errand::Keep {
                target.activation = blue_green::first_word(&next.spec);
                target.beside = !next.wave_stage().is_serve();
            }
            target.errand = Errand::Forward;
            target.generation = generation;
            target.assigned_at_ms = now_ms;
            target.done_at_ms = None;
            target.deadline = DeadlineState::default();
            target.attempts = attempts;
        }
        None => target.failure = Some(GAVE_UP_ASTRAY.to_owned()),
    }
}

/// Marks a device that committed, one that failed, reverted or crashed on the bundle, and one that is late. The marks stay.
pub(crate) fn take_note(target: &mut Target, facts: &DeviceFacts, deadlines: Option<Deadlines>, now_ms: u64) {
    if target.failure.is_some() {
        return;
    }
    let standing = standing(target, facts);
    if standing == Standing::Done && target.done_at_ms.is_none() {
        target.done_at_ms = Some(now_ms);
    }
    target.failure = match standing {
        Standing::Failed(why) => Some(why),
        Standing::Unheard | Standing::Working | Standing::Trial | Standing::Done | Standing::Astray => {
            has_crashed(target, facts).then(|| "crashed".to_owned())
        }
    };
    if target.failure.is_some() && has_refused(target, facts) {
        target.failure_kind = FailureKind::Rejected;
    }
    if let Some(deadlines) = deadlines {
        deadline::mark(target, facts, &deadlines, now_ms);
    }
}

fn has_crashed(target: &Target, facts: &DeviceFacts) -> bool {
    facts.evidence.iter().any(|evidence| evidence.crashes > 0 && target.is_about(evidence))
}

/// Tells shadows to serve, and gives targets to the devices that the wave has room for, and that `may` come in now, with what they report already, and tells at most
/// `most` of them to go forward. Says how many more there are.
pub(crate) fn take_in(
    next: &mut Rollout,
    survey: &Survey<'_>,
    spec: &WaveSpec,
    may: impl Fn(&DeviceId, &DeviceFacts) -> bool,
    most: Option<u32>,
    now_ms: u64,
) -> u32 {
    shadow_first::promote(next, survey, spec, &may, now_ms);
    let (mut added, mut told, mut left) = (BTreeMap::new(), 0, 0);
    let mut additions = survey.additions(next.current_wave, spec, &next.targets, may);
    if most.is_some() {
        // Where not all come in at once, those go first that waves take first.
        additions.sort_by_cached_key(|(id, _)| hash(&survey.rollout, id.as_str()));
    }
    for (id, facts) in additions {
        let Some(mut target) = new_target(next, facts, next.current_wave, now_ms) else { continue };
        if target.errand == Errand::Forward {
            if most.is_some_and(|most| told >= most) {
                left += 1;
                continue;
            }
            told += 1;
        }
        take_note(&mut target, facts, next.spec.deadlines, now_ms);
        added.insert(id.clone(), target);
    }
    if !added.is_empty() {
        next.targets.append(&mut added);
    }
    if most.is_some() {
        rate::remember(next, told, now_ms);
    }
    left
}

/// Starts the soak when it is time, and gives its end.
fn soak(next: &mut Rollout, census: &Census, spec: &WaveSpec, is_complete: bool, now_ms: u64) -> Option<u64> {
    let state = next.waves.get_mut(next.current_wave as usize)?;
    if is_complete && state.soak_from_ms.is_none() && census.has_committed && census.done == census.reachable {
        state.soak_from_ms = Some(now_ms);
    }
    state.soak_from_ms.map(|from_ms| from_ms.saturating_add(spec.soak_ms))
}
