//! Takes every device of a rollout back to what it ran before.
//!
//! Every device that was told to run the bundle is told to go back, under a new generation, whether it ran the
//! bundle, gave it up by itself or was never reached: what the store says it shall run must not stay the bundle that is
//! taken back. Where an operator named a bundle to go back to, every device that can run it goes there, also those that had
//! the bundle before the rollout came; one that cannot, or fails to get there, goes back to what it ran before. Where none is
//! named, devices that had the bundle before are left alone. Devices that a later rollout has taken are left alone in any case.

use std::collections::BTreeMap;

use muster_shared::ids::{DeviceId, Digest};
use muster_shared::limits::bounded_text;
use muster_shared::messages::{HeldBack, StateReport};
use muster_shared::protocol::number_of;
use muster_shared::rollout::{RolloutStatus, Waiting};
use muster_shared::trust::{Activation, DeliveryPolicy, Stage};

use crate::fleet::Fleet;
use crate::rollout::{Errand, MAX_ATTEMPTS, Rollout, Target};
use crate::standing::{Standing, fresh_generation, held_back, past, standing};
use crate::understanding::unfit_for;
use crate::wording::{counted, names};

impl Rollout {
    /// What the device was to go back to, if this rollout has gone back without it: while it was shut out, the rollout had no say
    /// over it, so what it was told under `generation` still stands. `reported` says whether it can run a bundle that was named.
    #[must_use]
    pub fn way_back(&self, device: &DeviceId, generation: u64, reported: &StateReport) -> Option<Option<Digest>> {
        let target = self.targets.get(device).filter(|target| target.generation == generation)?;
        if self.status != RolloutStatus::RolledBack || target.errand == Errand::Back {
            return None;
        }
        if let Some(named) =
            self.destination.as_ref().filter(|to| unfit_for(to, &reported.attributes, number_of(reported)).is_empty())
        {
            return Some(Some(named.manifest));
        }
        let had_it = target.errand == Errand::Keep || target.previous == Some(self.bundle.manifest);
        (!had_it).then_some(target.previous)
    }

    /// When and how fast the device fetches what this rollout tells it to run. What the operator asked for is about the bundle; an
    /// emergency, and the way back from a bundle that fails, wait for no quiet hours and no other link.
    #[must_use]
    pub fn delivery(&self, device: &DeviceId) -> DeliveryPolicy {
        match self.targets.get(device).map(|target| target.errand) {
            Some(Errand::Back) => DeliveryPolicy::at_once(),
            _ if self.spec.emergency => DeliveryPolicy::at_once(),
            Some(Errand::Keep | Errand::Forward) | None => self.spec.delivery,
        }
    }

    /// In which part the device runs what this rollout tells it to run: whoever goes back serves what it ran before.
    #[must_use]
    pub fn stage(&self, device: &DeviceId) -> Stage {
        let beside = self.targets.get(device).filter(|target| target.errand != Errand::Back && target.beside);
        beside.map_or(Stage::Serve, |target| self.spec.stage_of(target.wave).clone())
    }
}

impl Target {
    /// It is told to run `goal` again, at once.
    pub(crate) fn turn_back(&mut self, goal: Option<Digest>, generation: u64, attempts: u32, now_ms: u64) {
        self.errand = Errand::Back;
        self.beside = false;
        self.activation = Activation::AtOnce;
        self.manifest = goal;
        self.generation = generation;
        self.assigned_at_ms = now_ms;
        self.done_at_ms = None;
        self.attempts = attempts;
    }
}

/// How far a rollout has gone back.
#[derive(Debug, Default)]
struct Retreat {
    /// Devices that are back.
    back: u32,
    /// Devices that can be reached and are on their way.
    going: u32,
    /// Of those, the ones that lack what they ran before and do not fetch it now, and why.
    held_back: BTreeMap<DeviceId, HeldBack>,
    /// Devices that are away.
    away: Vec<DeviceId>,
    /// Devices that cannot go back.
    stuck: Vec<DeviceId>,
    /// Devices that do not go to the bundle named, and why.
    unfit: BTreeMap<DeviceId, String>,
}

/// One step of going back; ends it when nobody who can be reached is left. Says what it waits for.
pub(crate) fn go_back(next: &mut Rollout, fleet: &Fleet, now_ms: u64) -> Vec<Waiting> {
    let retreat = tell(next, fleet, now_ms);
    if retreat.going == 0 {
        next.status = RolloutStatus::RolledBack;
        let mut reason = format!("{}; {} back", next.status_reason, counted(u64::from(retreat.back), "device"));
        if !retreat.away.is_empty() {
            reason.push_str(&format!(", {} away to follow on return", retreat.away.len()));
        }
        if !retreat.stuck.is_empty() {
            reason.push_str(&format!(", {} cannot go back: {}", retreat.stuck.len(), names(&retreat.stuck)));
        }
        if let Some(to) = next.destination.as_ref().filter(|_| !retreat.unfit.is_empty()) {
            let (count, who) = (retreat.unfit.len(), names(retreat.unfit.keys()));
            reason.push_str(&format!(", {count} not to {} but to what they ran: {who}", to.bundle));
        }
        next.status_reason = reason;
    }
    let mut waiting = Vec::new();
    if retreat.going > 0 {
        waiting.push(Waiting::GoingBack { done: retreat.back, of: retreat.back.saturating_add(retreat.going) });
    }
    if !retreat.held_back.is_empty() {
        waiting.push(Waiting::HeldBack { devices: retreat.held_back });
    }
    if !retreat.unfit.is_empty() {
        waiting.push(Waiting::Unsuitable { devices: retreat.unfit });
    }
    if !retreat.away.is_empty() {
        waiting.push(Waiting::Offline { devices: retreat.away });
    }
    waiting
}

fn tell(next: &mut Rollout, fleet: &Fleet, now_ms: u64) -> Retreat {
    let mut retreat = Retreat::default();
    next.change_governed(fleet, |next, id, target, facts| {
        target.previous = past(target, facts);
        let unfit = next.destination.as_ref().map(|to| unfit_for(to, &facts.attributes, facts.protocol()));
        let named =
            next.destination.as_ref().map(|to| to.manifest).filter(|_| unfit.as_ref().is_some_and(Vec::is_empty));
        let had_it = target.errand == Errand::Keep || target.previous == Some(next.bundle.manifest);
        if had_it && target.errand != Errand::Back && named.is_none() {
            return;
        }
        // Whoever failed to get to the bundle named goes back to what it knows.
        let gave_up = target.errand == Errand::Back
            && (target.manifest != named || matches!(standing(target, facts), Standing::Failed(_)));
        let goal = if gave_up { target.previous } else { named.or(target.previous) };
        let attempts = match (target.errand, standing(target, facts)) {
            (Errand::Back, Standing::Astray | Standing::Failed(_)) => Some(target.attempts + 1),
            (Errand::Back, Standing::Unheard | Standing::Working | Standing::Trial | Standing::Done) => None,
            (Errand::Keep | Errand::Forward, _) => Some(1),
        };
        if let Some(attempts) = attempts {
            match fresh_generation(facts, target.generation).filter(|_| attempts <= MAX_ATTEMPTS) {
                Some(generation) => {
                    target.turn_back(goal, generation, attempts, now_ms);
                }
                None => {
                    retreat.stuck.push(id.clone());
                    return;
                }
            }
        }
        if let Some(to) = next.destination.as_ref().filter(|to| target.manifest != Some(to.manifest)) {
            let unfit = unfit.filter(|unfit| !unfit.is_empty()).map(|unfit| unfit.join("; "));
            let why = unfit.unwrap_or_else(|| "it failed to get there".to_owned());
            let why = format!("{}: {why}; it goes back to what it ran before", to.bundle);
            retreat.unfit.insert(id.clone(), bounded_text(&why));
        }
        if standing(target, facts) == Standing::Done {
            target.done_at_ms = target.done_at_ms.or(Some(now_ms));
            retreat.back += 1;
        } else if facts.online {
            retreat.going += 1;
            retreat.held_back.extend(held_back(target, facts).map(|why| (id.clone(), why)));
        } else {
            retreat.away.push(id.clone());
        }
    });
    retreat
}
