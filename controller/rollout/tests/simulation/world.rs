//! Controller, network and fleet in virtual time. The controller stores what the planner decides, and sends what it
//! wants sent; everything between may go wrong.

use std::collections::BTreeMap;

use muster_rollout::{Action, Decision, Desired, DeviceFacts, Evidence, Fleet, OperatorAction, Rollout, plan, verify};
use muster_shared::ids::{DeviceId, Digest, RolloutId};
use muster_shared::messages::StateReport;
use muster_shared::rollout::{Outcome, RolloutStatus};

use crate::chance::Chance;
use crate::device::Device;
use crate::scenario::{START_MS, Scenario, TICK_MS};

/// What is under way.
enum Message {
    Assignment { manifest: Option<Digest>, generation: u64 },
    State(Box<StateReport>),
    Window(Box<Evidence>),
}

pub(crate) struct World {
    pub(crate) rollout: Rollout,
    pub(crate) devices: BTreeMap<DeviceId, Device>,
    scenario: Scenario,
    chance: Chance,
    now_ms: u64,
    tick: u64,
    /// What the controller knows of devices, besides what they measured.
    store: BTreeMap<DeviceId, DeviceFacts>,
    windows: Vec<(u64, DeviceId, Evidence)>,
    under_way: Vec<(u64, DeviceId, Message)>,
    /// Devices that ever were.
    enrolled: usize,
    /// What every generation ever told to a device said.
    told: BTreeMap<(DeviceId, u64), Option<Digest>>,
    stopped: bool,
}

fn other() -> RolloutId {
    "r9".parse().expect("an id")
}

fn is_others(facts: &DeviceFacts) -> bool {
    facts.desired.as_ref().is_some_and(|desired| desired.rollout == other())
}

impl World {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let mut world = Self {
            rollout: scenario.rollout(),
            devices: BTreeMap::new(),
            scenario: scenario.clone(),
            chance: Chance::new(scenario.seed),
            now_ms: START_MS,
            tick: 0,
            store: BTreeMap::new(),
            windows: Vec::new(),
            under_way: Vec::new(),
            enrolled: 0,
            told: BTreeMap::new(),
            stopped: false,
        };
        (0..scenario.devices).for_each(|_| world.enrol());
        world
    }

    /// From now on nothing goes wrong, and everybody is there.
    pub(crate) fn make_peace(&mut self) {
        self.scenario = self.scenario.at_peace();
        self.devices.values_mut().for_each(|device| device.online = true);
        self.store.values_mut().for_each(|facts| facts.held_by = None);
    }

    /// One second, as the scenario has it.
    pub(crate) fn step(&mut self) {
        self.tick += 1;
        self.now_ms += TICK_MS;
        if self.chance.percent(self.scenario.clock_percent) {
            let jump_ms = self.chance.below(40 * TICK_MS);
            self.now_ms = if self.chance.percent(50) { self.now_ms + jump_ms } else { self.now_ms - jump_ms };
        }
        self.change_fleet();
        self.live();
        self.deliver();
        if self.chance.percent(self.scenario.operator_percent) {
            self.operate();
        }
        self.decide();
    }

    fn enrol(&mut self) {
        let id = DeviceId::new(format!("d{}", self.enrolled)).expect("an id");
        let site = format!("s{}", self.enrolled % 2);
        self.enrolled += 1;
        let mut facts = DeviceFacts::default();
        facts.labels.insert("site".to_owned(), site);
        // A new device runs nothing, and may not have been heard of when its wave comes.
        let device = if self.chance.percent(20) {
            Device::blank()
        } else {
            let device = Device::new(self.scenario.incumbent());
            facts.reported = Some(device.report.clone());
            device
        };
        self.store.insert(id.clone(), facts);
        self.devices.insert(id, device);
    }

    fn change_fleet(&mut self) {
        if !self.chance.percent(self.scenario.fleet_percent) {
            return;
        }
        let at = self.chance.below(self.devices.len() as u64);
        let Some(id) = self.devices.keys().nth(usize::try_from(at).expect("a place")).cloned() else {
            return self.enrol();
        };
        let free = !self.rollout.takes_part(&id) || self.rollout.status().is_terminal();
        let facts = self.store.get_mut(&id).expect("a stored device");
        match self.chance.below(6) {
            0 => self.enrol(),
            1 => {
                self.devices.remove(&id);
                self.store.remove(&id);
            }
            2 => facts.revoked = true,
            3 => drop(facts.labels.insert("site".to_owned(), format!("s{}", self.chance.below(2)))),
            // A store brought back from a copy: the device knows generations that the store does not.
            4 => self.devices.get_mut(&id).expect("a device").report.generation += 3,
            _ if free && facts.held_by.is_none() => {
                let known = facts.desired.as_ref().map_or(0, |desired| desired.generation);
                let generation = known.max(facts.reported.as_ref().map_or(0, |report| report.generation)) + 1;
                let manifest = Some(Digest::from_bytes([9; 32]));
                facts.desired = Some(Desired { manifest, generation, rollout: other() });
                facts.held_by = Some(other());
                self.told.insert((id.clone(), generation), manifest);
                self.send(id, Message::Assignment { manifest, generation });
            }
            _ => facts.held_by = None,
        }
    }

    /// Devices go and come, work, measure and report.
    fn live(&mut self) {
        let ids: Vec<DeviceId> = self.devices.keys().cloned().collect();
        for id in ids {
            let mut device = self.devices.remove(&id).expect("a device");
            if self.chance.percent(self.scenario.presence_percent) {
                device.online = !device.online;
            }
            device.work(&mut self.chance, &self.scenario);
            let window = if self.scenario.is_silent { None } else { device.measure(&mut self.chance, &self.scenario) };
            if device.online {
                self.send(id.clone(), Message::State(Box::new(device.report.clone())));
                if let Some(window) = window {
                    self.send(id.clone(), Message::Window(Box::new(window)));
                }
            }
            self.devices.insert(id, device);
        }
    }

    fn send(&mut self, to: DeviceId, message: Message) {
        let percent = self.scenario.messages_percent;
        if self.chance.percent(percent) {
            return;
        }
        let late = if self.chance.percent(percent) { 1 + self.chance.below(6) } else { 0 };
        // Windows are counted once however often they come; the other two may come twice, at any time.
        let again = match &message {
            Message::Assignment { manifest, generation } => {
                Some(Message::Assignment { manifest: *manifest, generation: *generation })
            }
            Message::State(report) => Some(Message::State(report.clone())),
            Message::Window(_) => None,
        };
        if let Some(again) = again.filter(|_| self.chance.percent(percent)) {
            self.under_way.push((self.tick + self.chance.below(8), to.clone(), again));
        }
        self.under_way.push((self.tick + late, to, message));
    }

    fn deliver(&mut self) {
        let (due, later) = std::mem::take(&mut self.under_way).into_iter().partition(|(at, _, _)| *at <= self.tick);
        self.under_way = later;
        let due: Vec<(u64, DeviceId, Message)> = due;
        for (_, id, message) in due {
            let (Some(device), Some(facts)) = (self.devices.get_mut(&id), self.store.get_mut(&id)) else { continue };
            match message {
                Message::Assignment { manifest, generation } if device.online && !facts.revoked => {
                    device.hear(manifest, generation);
                }
                Message::Assignment { .. } => {}
                Message::State(report) => {
                    facts.attributes.clone_from(&report.attributes);
                    facts.reported = Some(*report);
                }
                Message::Window(window) => self.windows.push((self.now_ms, id, *window)),
            }
        }
    }

    fn operate(&mut self) {
        let action = match self.chance.below(8) {
            0..=2 => OperatorAction::Pause,
            3..=5 => OperatorAction::Resume,
            6 => OperatorAction::Rollback,
            _ => OperatorAction::Abort,
        };
        if let Ok(next) = self.rollout.apply(action, "alice", None, self.now_ms) {
            self.stopped = action == OperatorAction::Abort;
            self.rollout = next;
        }
    }

    fn fleet(&self) -> Fleet {
        let mut fleet = Fleet { devices: self.store.clone(), ..Fleet::default() };
        for (id, facts) in &mut fleet.devices {
            facts.online = !facts.revoked && self.devices.get(id).is_some_and(|device| device.online);
        }
        let since_ms = self.rollout.evidence_since_ms();
        for (received_ms, id, window) in &self.windows {
            if let Some(facts) = fleet.devices.get_mut(id).filter(|_| *received_ms >= since_ms) {
                facts.evidence.push(window.clone());
            }
        }
        fleet
    }

    fn decide(&mut self) {
        let fleet = self.fleet();
        let decision = plan(&self.rollout, &fleet, self.now_ms);
        self.examine(&decision, &fleet);
        let fate = if self.chance.percent(self.scenario.controller_percent) { self.chance.below(3) } else { 3 };
        if fate == 0 {
            // It died before anything was stored.
            return;
        }
        for Action::Assign { device, manifest, generation } in &decision.actions {
            let said = self.told.insert((device.clone(), *generation), *manifest);
            assert!(said.is_none_or(|said| said == *manifest), "one generation of {device} said two things");
            let desired = Desired { manifest: *manifest, generation: *generation, rollout: self.rollout.id.clone() };
            self.store.get_mut(device).expect("a stored device").desired = Some(desired);
        }
        self.rollout = decision.next;
        match fate {
            // It died before anything was sent.
            1 => return,
            2 => {
                let text = serde_json::to_string(&self.rollout).expect("a rollout can be written");
                self.rollout = serde_json::from_str(&text).expect("a rollout can be read");
            }
            _ => {}
        }
        for Action::Assign { device, manifest, generation } in decision.actions {
            self.send(device, Message::Assignment { manifest, generation });
        }
    }

    /// What must hold at every tick, whatever happens.
    fn examine(&self, decision: &Decision, fleet: &Fleet) {
        let (before, next, now_ms) = (&self.rollout, &decision.next, self.now_ms);
        assert_eq!(verify(before, decision, fleet, now_ms), Ok(()));
        let again = plan(next, fleet, now_ms);
        assert!(
            again.next == *next && again.actions == decision.actions,
            "planned twice: {again:?} after {decision:?}"
        );
        assert_eq!(verify(next, &again, fleet, now_ms), Ok(()));

        assert!(before.targets.keys().all(|id| next.targets.contains_key(id)), "cohorts only grow");
        // Of the devices that are in and not cut off, there are never more than the largest wave so far allows.
        let mut allowed = 0;
        for (wave, spec) in (0u32..=next.current_wave).zip(&next.spec.waves) {
            allowed = allowed.max(spec.size.of(self.enrolled));
            let reachable = |id: &DeviceId| self.store.get(id).is_some_and(|facts| !facts.revoked && !is_others(facts));
            let members = next.targets.iter().filter(|(id, target)| target.wave <= wave && reachable(id));
            let have = members.count();
            assert!(self.scenario.by_site || have <= allowed, "wave {wave} has {have}");
        }
        if self.stopped {
            assert_eq!((next.status, decision.actions.len()), (RolloutStatus::Stopped, 0), "an abort wins");
        }
        if self.scenario.is_silent {
            assert!(next.current_wave == 0 && next.status != RolloutStatus::Completed, "silence never promotes");
        }
        if self.scenario.is_bad {
            let passed = next.verdicts.iter().any(|verdict| verdict.outcome == Outcome::Successful);
            assert!(!passed, "a bundle that fails every request never passes");
        }
        if next.status == RolloutStatus::Completed && before.status == RolloutStatus::Running {
            let passed = next.verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Successful).count();
            assert!(passed >= next.waves.len(), "every wave passed on its own");
        }
        let view = next.view(fleet, &decision.waiting);
        assert_eq!(view.waves.len(), next.waves.len());
    }

    /// What must hold when it is over and nothing went wrong any more.
    pub(crate) fn examine_end(&self) {
        let rollout = &self.rollout;
        let over = rollout.status().is_terminal() || rollout.status() == RolloutStatus::Paused;
        assert!(over, "it is still {} after all faults have ceased", rollout.status());
        assert!(!rollout.status_reason.is_empty());
        if rollout.status() != RolloutStatus::RolledBack {
            return;
        }
        for (id, target) in &rollout.targets {
            let (Some(device), Some(facts)) = (self.devices.get(id), self.store.get(id)) else { continue };
            let ours = facts.desired.as_ref().is_none_or(|desired| desired.rollout == rollout.id);
            let is_astray = device.report.generation > target.generation;
            if !facts.revoked && ours && !is_astray {
                let runs = device.report.running.as_ref().map(|bundle| bundle.manifest);
                assert_eq!(runs, target.previous, "{id} is back on what it ran before");
            }
        }
    }
}
