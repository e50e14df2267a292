//! A simulated controller: the executor's steps one by one, so that anything can happen between any two of them.
//!
//! `load → plan → verify → read the devices' records → compare-and-swap → send`, for each rollout, then reminders. What
//! it holds in memory is lost when it restarts; what it stored is not.

use std::collections::{BTreeMap, VecDeque};

use muster_rollout::{Action, Decision, Due, Fleet, Rollout};
use muster_shared::ids::{DeviceId, RolloutId};
use muster_shared::rollout::RolloutStatus;

use crate::rules::Ledger;
use crate::store::{Commit, DeviceRecord, Store, Stored, Told};

/// Updates that fail in a row on a device before it is quarantined.
const QUARANTINE_AFTER: u32 = 2;

/// What plans: the real planner, or one with a fault.
pub(crate) type Planner = fn(&Rollout, &Fleet, u64) -> Decision;

/// What a controller is about.
#[derive(Debug, Default)]
enum Step {
    #[default]
    Idle,
    /// It holds rollouts as they were when it loaded them, and is about to plan the one at this place.
    Plan(usize),
    /// A decision waits for the devices' records to be read.
    Read(usize, Box<Planned>),
    /// Everything waits to be stored.
    Store(usize, Box<Commit>, Vec<(DeviceId, Told)>, u64),
    /// It is stored, and waits to be sent.
    Send(usize, VecDeque<(DeviceId, Told)>),
    /// Devices that have not heard are told again.
    Remind(VecDeque<(DeviceId, Told)>),
}

#[derive(Debug)]
struct Planned {
    decision: Decision,
    seen: BTreeMap<DeviceId, Option<u64>>,
    freezes: usize,
    event: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Controller {
    /// How far its clock is from the true time.
    pub(crate) clock_ahead_ms: i64,
    /// When the clock alone may change something, by its own clock.
    pub(crate) wake_at_ms: Option<u64>,
    /// What it asks others for analyses.
    pub(crate) questions: Vec<(RolloutId, Due)>,
    step: Step,
    rollouts: Vec<Stored<Rollout>>,
}

/// What a controller did with its turn.
#[derive(Debug)]
pub(crate) enum Did {
    Nothing,
    Loaded,
    Planned,
    Stored(RolloutId),
    /// Its plan was overtaken.
    Dropped,
    Sent(DeviceId, Told),
}

impl Controller {
    pub(crate) fn now_ms(&self, true_ms: u64) -> u64 {
        true_ms.saturating_add_signed(self.clock_ahead_ms)
    }

    pub(crate) fn restart(&mut self) {
        (self.step, self.rollouts, self.wake_at_ms) = (Step::Idle, Vec::new(), None);
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.step, Step::Idle)
    }

    /// Does one step at `true_ms`.
    pub(crate) fn turn(
        &mut self,
        store: &mut Store,
        ledger: &mut Ledger,
        planner: Planner,
        true_ms: u64,
    ) -> Result<Did, String> {
        match std::mem::take(&mut self.step) {
            Step::Idle => {
                self.clear_the_way(store, ledger, true_ms)?;
                // Those that were stopped need no planning; whoever plans them all the same must find nothing to do.
                let active = store.rollouts.values().filter(|rollout| {
                    rollout.value.needs_planning() || rollout.value.status() == RolloutStatus::Stopped
                });
                self.rollouts = active.cloned().collect();
                self.wake_at_ms = None;
                self.step = Step::Plan(0);
                Ok(Did::Loaded)
            }
            Step::Plan(at) => self.plan(at, store, ledger, planner, true_ms),
            Step::Read(at, planned) => {
                self.read(at, *planned, store);
                Ok(Did::Nothing)
            }
            Step::Store(at, commit, to_send, planned_at_event) => {
                self.store(at, *commit, to_send, planned_at_event, store, ledger)
            }
            Step::Send(at, mut queue) => {
                let next = queue.pop_front();
                self.step = if queue.is_empty() { Step::Plan(at + 1) } else { Step::Send(at, queue) };
                Ok(next.map_or(Did::Nothing, |(device, told)| Did::Sent(device, told)))
            }
            Step::Remind(mut queue) => {
                let next = queue.pop_front();
                if !queue.is_empty() {
                    self.step = Step::Remind(queue);
                }
                Ok(next.map_or(Did::Nothing, |(device, told)| Did::Sent(device, told)))
            }
        }
    }

    fn plan(
        &mut self,
        at: usize,
        store: &Store,
        ledger: &mut Ledger,
        planner: Planner,
        true_ms: u64,
    ) -> Result<Did, String> {
        let Some(Stored { value: before, .. }) = self.rollouts.get(at) else {
            self.step = Step::Remind(reminders(store));
            return Ok(Did::Nothing);
        };
        let now_ms = self.now_ms(true_ms);
        let held_by = self.held_by_others(at);
        let fleet = store.fleet(before, &held_by, now_ms);
        let decision = planner(before, &fleet, now_ms);
        ledger.planned(before, &decision, &fleet, now_ms, planner)?;
        self.wake_at_ms = [self.wake_at_ms, decision.wake_at_ms].into_iter().flatten().min();
        self.questions.extend(decision.due.iter().map(|due| (before.id.clone(), due.clone())));
        let seen = fleet.devices.iter().map(|(id, facts)| (id.clone(), facts.desired.as_ref().map(|d| d.generation)));
        let (seen, freezes) = (seen.collect(), fleet.freezes.len());
        let planned = Planned { decision, seen, freezes, event: ledger.event };
        self.step = Step::Read(at, Box::new(planned));
        Ok(Did::Planned)
    }

    /// Ends what is in the way of emergencies, as far as nobody is faster.
    fn clear_the_way(&mut self, store: &mut Store, ledger: &mut Ledger, true_ms: u64) -> Result<(), String> {
        self.rollouts = store.rollouts.values().filter(|rollout| rollout.value.needs_planning()).cloned().collect();
        let now_ms = self.now_ms(true_ms);
        for at in 0..self.rollouts.len() {
            let emergency = self.rollouts[at].value.clone();
            let held_by = self.held_by_others(at);
            let in_the_way = emergency.in_the_way(&store.fleet(&emergency, &held_by, now_ms));
            for Stored { version, value } in &mut self.rollouts {
                let ended =
                    value.overridden(&emergency, "controller", now_ms).filter(|_| in_the_way.contains(&value.id));
                let Some(next) = ended else { continue };
                ledger.operated(value, &next)?;
                let rollouts = vec![Stored { version: *version, value: next.clone() }];
                if store.commit(Commit { rollouts, ..Commit::default() }).is_ok() {
                    ledger.tally.overridden += 1;
                    (*version, *value) = (*version + 1, next);
                }
            }
        }
        Ok(())
    }

    fn held_by_others(&self, except: usize) -> BTreeMap<DeviceId, RolloutId> {
        let mut held_by = BTreeMap::new();
        for (at, Stored { value: rollout, .. }) in self.rollouts.iter().enumerate() {
            let other = self.rollouts.get(except);
            if at != except && other.is_some_and(|other| rollout.holds_against(&other.value)) {
                for device in rollout.targets.keys() {
                    held_by.entry(device.clone()).or_insert_with(|| rollout.id.clone());
                }
            }
        }
        held_by
    }

    /// Reads the records of the devices to be told, and puts together what is to be stored. Where one has changed since the plan was
    /// made, the plan is dropped.
    fn read(&mut self, at: usize, planned: Planned, store: &Store) {
        let Planned { decision: Decision { next, actions, notes, .. }, seen, freezes, event } = planned;
        let Some(Stored { version, value: before }) = self.rollouts.get(at) else { return };
        let (mut commit, mut to_send) = (Commit::default(), Vec::new());
        for Action::Assign { device, manifest, generation } in actions {
            let Some(Stored { version, value: record }) = store.devices.get(&device).cloned() else { continue };
            let told = Told {
                manifest,
                generation,
                stage: next.stage(&device),
                activation: next.activation(&device),
                watch: next.spec.watch,
                delivery: next.delivery(&device),
                rollout: next.id.clone(),
            };
            if record.desired.as_ref() != Some(&told) {
                let now = record.desired.as_ref().map(|told| told.generation);
                if record.revoked || seen.get(&device) != Some(&now) {
                    self.step = Step::Plan(at + 1);
                    return;
                }
                let value = DeviceRecord { desired: Some(told.clone()), ..record };
                commit.devices.push((device.clone(), Stored { version, value }));
            }
            if store.heard.get(&device).is_some_and(|heard| heard.online) {
                to_send.push((device, told));
            }
        }
        for (device, note) in notes {
            let known = commit.devices.iter().position(|(id, _)| *id == device);
            let Some(stored) = store.devices.get(&device) else { continue };
            let at = known.unwrap_or_else(|| {
                commit.devices.push((device, stored.clone()));
                commit.devices.len() - 1
            });
            let record = &mut commit.devices[at].1.value;
            record.updates = record.updates.with(&note, QUARANTINE_AFTER, next.updated_at_ms);
        }
        commit.freezes = (next.targets.len() > before.targets.len()).then_some(freezes);
        // Also where only devices' records change: an operator who was faster must not be overtaken.
        if next != *before || !commit.devices.is_empty() {
            commit.rollouts.push(Stored { version: *version, value: next });
        }
        self.step = Step::Store(at, Box::new(commit), to_send, event);
    }

    fn store(
        &mut self,
        at: usize,
        commit: Commit,
        to_send: Vec<(DeviceId, Told)>,
        planned_at_event: u64,
        store: &mut Store,
        ledger: &mut Ledger,
    ) -> Result<Did, String> {
        let changed = commit.clone();
        if store.commit(commit).is_err() {
            self.step = Step::Plan(at + 1);
            return Ok(Did::Dropped);
        }
        if let Some(before) = self.rollouts.get(at) {
            ledger.committed(&before.value, &changed, planned_at_event, store)?;
        }
        let did = match changed.rollouts.into_iter().next() {
            None => Did::Nothing,
            Some(Stored { version, value }) => {
                let id = value.id.clone();
                if let Some(held) = self.rollouts.get_mut(at) {
                    *held = Stored { version: version + 1, value };
                }
                Did::Stored(id)
            }
        };
        self.step = if to_send.is_empty() { Step::Plan(at + 1) } else { Step::Send(at, to_send.into()) };
        Ok(did)
    }
}

/// Devices that can be reached and have not accepted what they shall run, except for what was stopped before they heard
/// of it.
fn reminders(store: &Store) -> VecDeque<(DeviceId, Told)> {
    let mut due = VecDeque::new();
    for (id, record) in &store.devices {
        let Some(told) = record.value.desired.as_ref().filter(|_| store.is_behind(id)) else { continue };
        let stopped = store.rollouts.get(&told.rollout).is_some_and(|r| r.value.status() == RolloutStatus::Stopped);
        let report = store.heard.get(id).and_then(|heard| heard.report.as_ref());
        let taken_up =
            report.is_some_and(|r| (r.update.generation, r.update.manifest) == (told.generation, told.manifest));
        if !stopped || taken_up {
            due.push_back((id.clone(), told.clone()));
        }
    }
    due
}
