//! Why one device stands where it does in a rollout, or why it has no part in it.

use muster_shared::ids::DeviceId;
use muster_shared::messages::{UpdateReport, UpdateState};
use muster_shared::rollout::{Decider, DeviceExplanation, DeviceProgress, RolloutStatus, Told};

use crate::cohort::Survey;
use crate::evidence::Arm;
use crate::fleet::{DeviceFacts, Fleet};
use crate::rollout::{Errand, MAX_ATTEMPTS, Rollout, Target};
use crate::standing::{Standing, has_arrived, held_back, is_taken, standing};
use crate::timing::Timing;
use crate::understanding;
use crate::view::progress;

impl Rollout {
    /// `decider` is who decides next about the whole rollout.
    pub(super) fn explain_device(
        &self,
        id: &DeviceId,
        fleet: &Fleet,
        decider: Decider,
        now_ms: u64,
    ) -> DeviceExplanation {
        let facts = fleet.devices.get(id);
        match self.targets.get(id) {
            Some(target) => {
                let seen = self.as_reported(id, target, fleet, now_ms);
                let (mut doing, decider) = self.of_member(&seen, facts, decider);
                if target.beside && target.failure.is_none() {
                    doing.push_str(&self.turn_of(id, fleet));
                }
                DeviceExplanation {
                    device: id.clone(),
                    doing,
                    decider,
                    wave: Some(target.wave),
                    progress: Some(progress(target, facts)),
                    failure: seen.failed_as(),
                    told: (target.errand != Errand::Keep).then(|| told(target)),
                    measured: facts.map(|facts| Arm::of_device(&seen, facts)),
                }
            }
            None => {
                let (doing, decider, wave) = self.of_outsider(id, facts, fleet, decider, now_ms);
                let progress = wave.map(|_| DeviceProgress::Pending);
                DeviceExplanation {
                    device: id.clone(),
                    doing,
                    decider,
                    wave,
                    progress,
                    failure: None,
                    told: None,
                    measured: None,
                }
            }
        }
    }

    /// The target with what the next plan would note. One that has ended notes nothing any more, and who commits after it has committed.
    fn as_reported(&self, id: &DeviceId, target: &Target, fleet: &Fleet, now_ms: u64) -> Target {
        let arrived = self.governed(id, target, fleet).is_some_and(|facts| has_arrived(target, facts));
        Target { done_at_ms: target.done_at_ms.or_else(|| arrived.then_some(now_ms)), ..target.clone() }
    }

    fn of_member(&self, target: &Target, facts: Option<&DeviceFacts>, decider: Decider) -> (String, Decider) {
        let Some(facts) = facts else { return ("it is not known any more".to_owned(), Decider::Nobody) };
        if facts.revoked {
            return shut_out();
        }
        if is_taken(&self.id, target, facts) {
            let by = facts.held_by.as_ref().or_else(|| Some(&facts.desired.as_ref()?.rollout));
            let by = by.map_or_else(|| "another rollout".to_owned(), ToString::to_string);
            return (format!("it belongs to {by} by now, and this rollout has no say over it"), Decider::Nobody);
        }
        if self.status == RolloutStatus::Stopped && target.errand != Errand::Back {
            return ("it keeps what it has: the rollout was stopped".to_owned(), Decider::Nobody);
        }
        let goal = self.goal(target);
        if let (Errand::Forward, Some(why)) = (target.errand, &target.failure) {
            return (format!("it counts as failed on {goal}, and is not tried again: {why}"), Decider::Nobody);
        }
        if target.is_timed_out() {
            let why = target.lateness(self.spec.deadlines.as_ref());
            return (
                format!("it timed out on {goal}, and is not waited for: {why}; it may commit yet, and counts then"),
                Decider::Devices,
            );
        }
        if let Some(why) = understanding::unheard(self, target, facts) {
            return (format!("it cannot be told to run {goal}: {why}"), Decider::People);
        }
        match standing(target, facts) {
            Standing::Unheard if !facts.online => {
                (format!("it is away, and is told on return to run {goal}"), Decider::Devices)
            }
            Standing::Unheard => {
                (format!("it has been told to run {goal}, and has not taken that up yet"), Decider::Devices)
            }
            Standing::Working => (working(&goal, target, facts), Decider::Devices),
            Standing::Trial => (format!("it serves {goal} under watch, before it commits"), Decider::Devices),
            Standing::Done => match target.errand {
                Errand::Keep => {
                    (format!("it ran {goal} before the rollout came: it counts, and is told nothing"), decider)
                }
                Errand::Forward if target.beside => (format!("it runs {goal} beside what it has committed"), decider),
                Errand::Forward => (format!("it has committed {goal}"), decider),
                Errand::Back => (format!("it is back: it runs {goal}"), Decider::Nobody),
            },
            Standing::Failed(why) => match target.errand {
                Errand::Back => {
                    (format!("it could not go back to {goal}: {why}; {}", again(target)), Decider::Controller)
                }
                Errand::Keep | Errand::Forward => (format!("it failed on {goal}: {why}"), Decider::Controller),
            },
            Standing::Astray => {
                let why = "it claims a newer generation than it was given, or has lost what it had";
                (format!("{why}; {}", again(target)), Decider::Controller)
            }
        }
    }

    /// When a device that runs the bundle as shadow is to serve it; nothing where that is not asked for.
    fn turn_of(&self, id: &DeviceId, fleet: &Fleet) -> String {
        let with = self.to_come(fleet).into_iter().find(|(_, devices)| devices.contains(id)).map(|(wave, _)| wave);
        with.map_or_else(String::new, |wave| {
            format!("; as things are, it is told to serve it with wave {} of {}", u64::from(wave) + 1, self.waves.len())
        })
    }

    fn of_outsider(
        &self,
        id: &DeviceId,
        facts: Option<&DeviceFacts>,
        fleet: &Fleet,
        decider: Decider,
        now_ms: u64,
    ) -> (String, Decider, Option<u32>) {
        let left_out = |why: String, decider| (why, decider, None);
        let Some(facts) = facts else { return left_out("it is not known".to_owned(), Decider::Nobody) };
        if facts.revoked {
            let (why, decider) = shut_out();
            return left_out(why, decider);
        }
        if !facts.is_meant_by(&self.spec.selector, id) {
            return left_out(format!("it is not meant: the selector is {}", self.spec.selector), Decider::People);
        }
        if self.status.is_terminal() || self.status == RolloutStatus::RollingBack {
            let status = self.status.as_str().replace('_', " ");
            let why = format!("it never came in, and the rollout, being {status}, takes nobody in");
            return left_out(why, Decider::Nobody);
        }
        let survey = Survey::of(self, fleet);
        if survey.held.contains(id) {
            let by = facts.held_by.as_ref().map_or_else(|| "another rollout".to_owned(), ToString::to_string);
            return left_out(format!("it belongs to {by}, which has not ended"), Decider::OtherRollouts);
        }
        if survey.later.contains(id) {
            let why = "it is meant only since the rollout began, which takes nobody in who comes later";
            return left_out(why.to_owned(), Decider::Nobody);
        }
        if survey.group().any(|held_back| held_back == id) {
            let why = "it belongs to the group that keeps what it has for good, to compare with";
            return left_out(why.to_owned(), Decider::Nobody);
        }
        if let Some(why) = survey.unsuitable.get(id) {
            return left_out(format!("it is left out: {why}"), Decider::People);
        }
        if let Some(why) = Timing::of(self, fleet, now_ms).keeps_out(id, facts) {
            let decider = why.decider();
            return left_out(format!("it is kept out for now: {why}"), decider);
        }
        let with = self.to_come(fleet).into_iter().find(|(_, devices)| devices.contains(id)).map(|(wave, _)| wave);
        let of = self.waves.len();
        match with {
            Some(wave) => {
                (format!("as things are, it comes in with wave {} of {of}", u64::from(wave) + 1), decider, Some(wave))
            }
            None if facts.reported.is_none() => {
                left_out("it has never reported, so it is not known what it can run".to_owned(), Decider::Devices)
            }
            None => left_out("it comes in when the rollout has room for it".to_owned(), decider),
        }
    }

    /// What the device is told to run, in words.
    fn goal(&self, target: &Target) -> String {
        let named = [Some(&self.bundle), self.destination.as_ref()];
        let named = named.into_iter().flatten().find(|bundle| Some(bundle.manifest) == target.manifest);
        match (named, target.manifest) {
            (Some(bundle), _) => bundle.bundle.to_string(),
            (None, Some(manifest)) => format!("what it ran before ({})", manifest.short()),
            (None, None) => "nothing, as before".to_owned(),
        }
    }
}

fn shut_out() -> (String, Decider) {
    ("it is shut out: its certificate is refused, so it is neither waited for nor counted".to_owned(), Decider::People)
}

fn told(target: &Target) -> Told {
    let Target { manifest, generation, assigned_at_ms, done_at_ms, attempts, .. } = *target;
    Told { manifest, generation, at_ms: assigned_at_ms, done_at_ms, attempts }
}

fn again(target: &Target) -> String {
    if target.attempts < MAX_ATTEMPTS {
        format!("it is told again, for the {} of {MAX_ATTEMPTS} times", ordinal(target.attempts + 1))
    } else {
        format!("it has been told {MAX_ATTEMPTS} times, and is given up")
    }
}

fn ordinal(n: u32) -> String {
    match n {
        1 => "first".to_owned(),
        2 => "second".to_owned(),
        3 => "third".to_owned(),
        n => format!("{n}th"),
    }
}

fn working(goal: &str, target: &Target, facts: &DeviceFacts) -> String {
    let update = facts.reported.as_ref().map(|report| &report.update);
    let mut doing = match update.filter(|update| update.generation == target.generation) {
        Some(update) if update.state == UpdateState::Fetching => {
            format!("it fetches {goal}: {} of {} chunks", update.chunks_done, update.chunks_total)
        }
        Some(UpdateReport { state: UpdateState::Verified, held_back: Some(what), .. }) => {
            format!("it has checked and tested {goal}, and waits for {what}")
        }
        Some(update) if update.state == UpdateState::Verified => format!("it has verified {goal}, and tests it"),
        Some(_) | None => format!("it works on {goal}"),
    };
    if let Some(why) = held_back(target, facts) {
        doing.push_str(&format!("; it does not fetch now: {why}"));
    }
    if !facts.online {
        doing.push_str("; it is away");
    }
    doing
}
