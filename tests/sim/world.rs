//! One run: a fleet, its controllers, the network between them, and one event after the other.

use muster_rollout::{Due, OperatorAction};
use muster_shared::ids::{DeviceId, RolloutId};
use muster_shared::rollout::{RolloutStatus, Value};
use muster_shared::trust::Assignment;
use muster_tests::random::Random;

use crate::controller::{Controller, Did, Planner};
use crate::device::{Bundle, Device, Lie, Nature, Up};
use crate::draw::{self, Trouble};
use crate::rules::Ledger;
use crate::store::{Commit, DeviceRecord, Received, Store, Stored};

const START_MS: u64 = 1_000_000_000;
const HOUR_MS: i64 = 3_600_000;

/// A message on its way.
#[derive(Debug, Clone)]
enum Message {
    Up(DeviceId, Up),
    Down(Box<Assignment>),
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) store: Store,
    pub(crate) ledger: Ledger,
    pub(crate) devices: Vec<Device>,
    pub(crate) controllers: Vec<Controller>,
    pub(crate) now_ms: u64,
    pub(crate) trouble: Trouble,
    network: Vec<Message>,
    /// What others were asked and have yet to answer.
    questions: Vec<(RolloutId, Due)>,
    bundles: Vec<Bundle>,
    planner: Planner,
    /// What happened, in words; empty unless asked for.
    story: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(seed: u64, planner: Planner, asks_verify: bool, tells: bool) -> Self {
        let mut random = Random::new(seed);
        let trouble = Trouble::draw(&mut random);
        let controllers = (0..=usize::from(trouble.two_controllers)).map(|_| Controller::default()).collect();
        let bundles = std::iter::once(draw::incumbent()).chain(draw::candidates()).collect();
        let mut world = Self {
            random,
            store: Store::default(),
            ledger: Ledger::new(asks_verify),
            devices: Vec::new(),
            controllers,
            now_ms: START_MS,
            trouble,
            network: Vec::new(),
            questions: Vec::new(),
            bundles,
            planner,
            story: tells.then(Vec::new),
        };
        for number in 0..2 + world.random.below(5) {
            world.enrol(number);
        }
        world.create_rollout();
        world
    }

    pub(crate) fn note(&mut self, words: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(format!("{:>6} {:>7} ms  {}", self.ledger.event, self.now_ms - START_MS, words()));
        }
    }

    pub(crate) fn story(&self) -> &[String] {
        self.story.as_deref().unwrap_or_default()
    }

    fn enrol(&mut self, number: usize) {
        let id = DeviceId::new(format!("d{number}")).expect("an id");
        let arch = if self.random.chance(85) { "x86_64" } else { "armv7" };
        let is_blank = self.random.chance(10);
        let mut device = if is_blank { Device::new(id.clone(), arch) } else { draw::installed(id.clone(), arch) };
        for bundle in draw::candidates() {
            device.set_nature(bundle.digest(), draw::nature(&mut self.random, self.trouble.bad_bundles));
        }
        if self.trouble.mixed {
            device.protocol = draw::protocol(&mut self.random);
        }
        let labels = [("site".to_owned(), (*self.random.pick(&["a", "b", "c"])).to_owned())];
        let mut record = DeviceRecord { labels: labels.into(), ..DeviceRecord::default() };
        if !is_blank {
            let told = draw::first_told();
            self.ledger.gave(&id, &told);
            record.desired = Some(told);
        }
        self.store.devices.insert(id.clone(), Stored { version: 1, value: record });
        device.start(self.now_ms);
        (0..4).for_each(|_| device.turn(self.now_ms));
        device.report();
        self.devices.push(device);
        self.hear(&id, true);
        self.collect(self.devices.len() - 1);
    }

    pub(crate) fn create_rollout(&mut self) {
        let candidates = draw::candidates();
        let bundle = &candidates[self.random.below(candidates.len())];
        let spec = draw::spec(&mut self.random, bundle);
        let number = self.store.rollouts.len() + 1;
        let now_ms = self.controllers[0].now_ms(self.now_ms);
        let rollout = draw::rollout(&mut self.random, number, spec, bundle, now_ms);
        self.note(|| {
            format!(
                "{} is created: {} to {} in {} waves",
                rollout.id,
                rollout.spec.bundle,
                rollout.spec.selector,
                rollout.waves.len()
            )
        });
        self.store.rollouts.insert(rollout.id.clone(), Stored { version: 1, value: rollout });
    }

    /// One event, and what must hold after it.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        self.ledger.tally.events += 1;
        self.now_ms += 1 + self.random.below(60) as u64;
        self.ledger.happens(self.now_ms);
        let Trouble {
            vanish,
            crash,
            restore,
            lie,
            restart,
            clock,
            operator,
            relabel,
            revoke,
            freeze,
            other_version,
            ..
        } = self.trouble;
        let device = self.random.below(self.devices.len());
        let kinds = [
            24,
            24,
            24,
            8,
            2,
            vanish,
            crash,
            restore,
            lie,
            restart,
            clock,
            operator,
            relabel,
            revoke,
            6,
            1,
            3,
            freeze,
            other_version,
        ];
        let mut at = self.random.below(kinds.iter().sum());
        let kind = kinds.iter().position(|weight| match at.checked_sub(*weight) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        });
        match kind.unwrap_or_default() {
            0 => {
                let at = self.random.below(self.controllers.len());
                self.control(at)?;
            }
            1 => self.deliver()?,
            2 => self.turn(device),
            3 => self.serve(device),
            4 => self.devices[device].report(),
            5 => self.vanish_or_return(device),
            6 => self.crash(device),
            7 => {
                let image = self.random.below(8);
                self.note(|| format!("d{device} goes back in time"));
                self.devices[device].restore(image, self.now_ms);
            }
            8 => self.lie(device),
            9 => {
                let at = self.random.below(self.controllers.len());
                self.note(|| format!("controller {at} restarts"));
                self.controllers[at].restart();
                self.ledger.tally.restarts += 1;
            }
            10 => self.jump(),
            11 => self.operate_at_random()?,
            12 => {
                let site = (*self.random.pick(&["a", "b", "c"])).to_owned();
                self.change_record(device, |record| drop(record.labels.insert("site".to_owned(), site)));
            }
            13 => self.change_record(device, |record| record.revoked = !record.revoked),
            14 => self.answer_one()?,
            15 if self.random.chance(30) => self.change_record(device, |record| {
                record.pinned = !record.pinned;
                record.updates = record.updates.released();
            }),
            16 => self.approve_at_random()?,
            17 => self.freeze(),
            18 => self.run_version(device),
            _ if self.store.rollouts.len() < 3 => self.create_rollout(),
            _ => {}
        }
        self.collect(device);
        self.ledger.device(&self.devices[device])
    }

    /// A controller does one step.
    pub(crate) fn control(&mut self, at: usize) -> Result<(), String> {
        let did = self.controllers[at].turn(&mut self.store, &mut self.ledger, self.planner, self.now_ms)?;
        for question in std::mem::take(&mut self.controllers[at].questions) {
            // One that is on its way is not asked again, but for controllers that do not know of it.
            if !self.questions.contains(&question) || self.random.chance(10) {
                self.questions.push(question);
            }
        }
        match &did {
            Did::Sent(device, told) => {
                let protocol = self.store.protocol(device);
                match told.assignment(device, self.now_ms).written_for(protocol) {
                    Ok(assignment) => {
                        self.ledger.sent(device, told, &assignment, protocol)?;
                        self.note(|| format!("controller {at} tells {device} generation {}", told.generation));
                        self.send(Message::Down(Box::new(assignment)));
                    }
                    Err(unknown) => {
                        self.ledger.not_sent(device, told, &self.store)?;
                        self.note(|| format!("controller {at} cannot tell {device}: {unknown}"));
                    }
                }
            }
            Did::Dropped => {
                self.ledger.tally.dropped_plans += 1;
                self.note(|| format!("controller {at} was overtaken"));
            }
            Did::Stored(id) => {
                let rollout = self.store.rollouts.get(id).map(|rollout| {
                    let rollout = &rollout.value;
                    format!(
                        "{id} is {}, wave {}, {} devices",
                        rollout.status(),
                        rollout.current_wave,
                        rollout.targets.len()
                    )
                });
                self.note(|| rollout.unwrap_or_default());
            }
            Did::Nothing | Did::Loaded | Did::Planned => {}
        }
        Ok(())
    }

    fn send(&mut self, message: Message) {
        if self.random.chance(self.trouble.lost) {
            self.ledger.tally.lost += 1;
            return;
        }
        if self.random.chance(self.trouble.twice) {
            self.network.push(message.clone());
        }
        self.network.push(message);
    }

    /// One message arrives, if there is one.
    fn deliver(&mut self) -> Result<(), String> {
        if self.network.is_empty() {
            return Ok(());
        }
        let late = self.random.chance(self.trouble.reordered);
        let at = if late { self.random.below(self.network.len()) } else { 0 };
        match self.network.remove(at) {
            Message::Up(id, up) => self.hear_up(&id, up),
            Message::Down(told) => {
                let bundle = self.bundles.iter().find(|bundle| Some(bundle.digest()) == told.manifest).cloned();
                let at = self.devices.iter().position(|device| device.id == told.device);
                let Some(at) = at else { return Ok(()) };
                if self.devices[at].powered && self.devices[at].connected {
                    let is_read = self.devices[at].receive(*told, bundle.as_ref(), self.now_ms);
                    self.ledger.tally.unread += u64::from(!is_read);
                    self.collect(at);
                    self.ledger.device(&self.devices[at])?;
                }
            }
        }
        Ok(())
    }

    fn hear_up(&mut self, id: &DeviceId, up: Up) {
        let at_ms = self.controllers[0].now_ms(self.now_ms);
        let heard = self.store.heard.entry(id.clone()).or_default();
        heard.last_seen_ms = Some(at_ms);
        match up {
            Up::Report(report) => {
                let update = report.update.clone();
                let before = heard.report.replace(*report).map(|before| before.update);
                if before.is_none_or(|before| (before.state, before.generation) != (update.state, update.generation)) {
                    self.note(|| format!("{id} is heard: {:?} of generation {}", update.state, update.generation));
                }
            }
            Up::Window(key, evidence) => {
                let event = self.ledger.event;
                heard.windows.entry(key).or_insert(Received { at_ms, event, evidence: *evidence });
            }
        }
    }

    /// The broker notices that a device came or went.
    fn hear(&mut self, id: &DeviceId, online: bool) {
        let at_ms = self.controllers[0].now_ms(self.now_ms);
        let heard = self.store.heard.entry(id.clone()).or_default();
        heard.online = online;
        if online {
            heard.last_seen_ms = Some(at_ms);
        }
    }

    /// What a device has to say goes to the network, or waits for a connection.
    fn collect(&mut self, at: usize) {
        let device = &mut self.devices[at];
        if device.powered && device.connected {
            let id = device.id.clone();
            for up in device.take_outbox() {
                self.send(Message::Up(id.clone(), up));
            }
        }
    }

    fn turn(&mut self, at: usize) {
        if !self.devices[at].powered {
            return;
        }
        let deadly = self.devices[at]
            .record()
            .exposed_bundle()
            .is_some_and(|bundle| self.devices[at].nature(&bundle.manifest) == Nature::Crashes);
        if deadly && self.random.chance(40) {
            self.crash(at);
        } else {
            self.devices[at].turn(self.now_ms);
        }
    }

    fn crash(&mut self, at: usize) {
        if self.devices[at].powered {
            self.note(|| format!("d{at} crashes"));
            self.devices[at].crash(self.now_ms);
        }
    }

    fn serve(&mut self, at: usize) {
        if self.devices[at].powered {
            let requests = 1 + self.random.below(20) as u64;
            self.devices[at].serve(requests);
        }
    }

    fn vanish_or_return(&mut self, at: usize) {
        let id = self.devices[at].id.clone();
        if self.devices[at].powered && self.devices[at].connected {
            let notices = self.random.chance(70);
            let loses_power = self.random.chance(40);
            self.note(|| format!("{id} goes away"));
            self.devices[at].connected = false;
            self.devices[at].powered = !loses_power;
            if notices {
                self.hear(&id, false);
            }
        } else {
            self.come_back(at);
        }
    }

    /// The device connects, and is told what it shall run.
    pub(crate) fn come_back(&mut self, at: usize) {
        let id = self.devices[at].id.clone();
        self.note(|| format!("{id} is back"));
        if !self.devices[at].powered {
            self.devices[at].powered = true;
            self.devices[at].start(self.now_ms);
        }
        self.devices[at].connected = true;
        self.devices[at].report();
        let is_revoked = self.store.devices.get(&id).is_some_and(|record| record.value.revoked);
        self.hear(&id, !is_revoked);
    }

    fn lie(&mut self, at: usize) {
        let lies = [
            None,
            Some(Lie::Generation(u64::MAX)),
            Some(Lie::Generation(self.random.below(20) as u64)),
            Some(Lie::Committed),
            Some(Lie::Failed),
            Some(Lie::Running),
        ];
        let lie = *self.random.pick(&lies);
        self.note(|| format!("d{at} says from now on: {lie:?}"));
        self.devices[at].lie = lie;
        self.devices[at].report();
    }

    /// Another version of its agent takes over.
    fn run_version(&mut self, at: usize) {
        let protocol = draw::protocol(&mut self.random);
        if self.devices[at].powered && self.devices[at].run_version(protocol, self.now_ms) {
            self.note(|| format!("d{at} is of number {protocol} from now on"));
        }
    }

    fn jump(&mut self) {
        let at = self.random.below(self.controllers.len());
        let ahead_ms = *self.random.pick(&[0, -HOUR_MS, HOUR_MS, -700, 700, 30 * HOUR_MS]);
        self.note(|| format!("the clock of controller {at} jumps to {ahead_ms} ms ahead"));
        self.set_clock(at, ahead_ms);
    }

    pub(crate) fn set_clock(&mut self, at: usize, ahead_ms: i64) {
        self.ledger.clock_went_back |= ahead_ms < self.controllers[at].clock_ahead_ms || self.controllers.len() > 1;
        self.controllers[at].clock_ahead_ms = ahead_ms;
        self.ledger.jumps();
    }

    fn change_record(&mut self, at: usize, change: impl FnOnce(&mut DeviceRecord)) {
        let Some(stored) = self.store.devices.get_mut(&self.devices[at].id) else { return };
        change(&mut stored.value);
        stored.version += 1;
        let words =
            format!("the record of d{at} changes: {:?}, revoked: {}", stored.value.labels, stored.value.revoked);
        if stored.value.revoked {
            let id = self.devices[at].id.clone();
            self.hear(&id, false);
        }
        self.note(|| words);
    }

    fn operate_at_random(&mut self) -> Result<(), String> {
        let ids: Vec<_> = self.store.rollouts.keys().cloned().collect();
        let id = self.random.pick(&ids).clone();
        use OperatorAction::{Abort, Pause, Resume, Rollback};
        let action = *self.random.pick(&[Pause, Resume, Resume, Abort, Rollback]);
        self.operate(&id, action)
    }

    fn freeze(&mut self) {
        let now_ms = self.controllers[0].now_ms(self.now_ms);
        let freeze = draw::freeze(&mut self.random, self.store.freezes.len(), now_ms);
        self.note(|| format!("{} is ordered, for {} ms", freeze.id, freeze.to_ms - freeze.from_ms));
        self.store.freezes.push(freeze);
        self.ledger.tally.frozen += 1;
    }

    fn approve_at_random(&mut self) -> Result<(), String> {
        let waiting = self.waiting_for_approval();
        if waiting.is_empty() {
            return Ok(());
        }
        let id = self.random.pick(&waiting).clone();
        let who = *self.random.pick(&["maker", "maker", "second", "third", "stranger"]);
        self.approve(&id, who)
    }

    /// Somebody approves a rollout, which is refused or taken.
    pub(crate) fn approve(&mut self, id: &RolloutId, who: &str) -> Result<(), String> {
        let Some(Stored { version, value: before }) = self.store.rollouts.get(id).cloned() else { return Ok(()) };
        let now_ms = self.controllers[0].now_ms(self.now_ms);
        let Ok(next) = before.approve(who, None, now_ms) else { return Ok(()) };
        self.ledger.approvals.gave(id, who);
        self.ledger.tally.approved += 1;
        self.note(|| format!("{who} approves {id}, which is {}", next.status()));
        let rollouts = vec![Stored { version, value: next }];
        self.store.commit(Commit { rollouts, ..Commit::default() }).map_err(|_| "an approval was overtaken".to_owned())
    }

    pub(crate) fn waiting_for_approval(&self) -> Vec<RolloutId> {
        let all = self.store.rollouts.values().map(|rollout| &rollout.value);
        let waiting = all.filter(|rollout| rollout.status() == RolloutStatus::WaitingForApproval);
        waiting.map(|rollout| rollout.id.clone()).collect()
    }

    /// An operator acts on what the store says now.
    pub(crate) fn operate(&mut self, id: &RolloutId, action: OperatorAction) -> Result<(), String> {
        let Some(Stored { version, value: before }) = self.store.rollouts.get(id).cloned() else { return Ok(()) };
        let now_ms = self.controllers[0].now_ms(self.now_ms);
        let Ok(next) = before.apply(action, "alice", None, now_ms) else { return Ok(()) };
        self.ledger.operated(&before, &next)?;
        self.ledger.tally.operated += 1;
        self.note(|| format!("an operator does {} to {id}", action.as_str()));
        let rollouts = vec![Stored { version, value: next }];
        self.store.commit(Commit { rollouts, ..Commit::default() }).map_err(|_| "an operator was overtaken".to_owned())
    }

    /// Somebody answers a question, however late; some answers get lost, and some come twice.
    fn answer_one(&mut self) -> Result<(), String> {
        if self.questions.is_empty() {
            return Ok(());
        }
        let at = self.random.below(self.questions.len());
        let question = self.questions.swap_remove(at);
        if self.random.chance(self.trouble.twice) {
            self.questions.push(question.clone());
        }
        if self.random.chance(self.trouble.lost) { Ok(()) } else { self.answer(&question) }
    }

    /// Everybody answers.
    pub(crate) fn answer_all(&mut self) -> Result<(), String> {
        std::mem::take(&mut self.questions).iter().try_for_each(|question| self.answer(question))
    }

    fn answer(&mut self, (id, due): &(RolloutId, Due)) -> Result<(), String> {
        let answer = if self.random.chance(self.trouble.bad_answers) {
            self.random.pick(&[Ok(0.0), Ok(0.5), Err("nobody is there".to_owned())]).clone()
        } else {
            Ok(1.0)
        };
        let Some(Stored { version, value: before }) = self.store.rollouts.get(id).cloned() else { return Ok(()) };
        let now_ms = self.controllers[0].now_ms(self.now_ms);
        let Some(next) = before.record(due, answer.clone().map(Value::Number), now_ms) else { return Ok(()) };
        self.ledger.answered(&before, &next, due, answer.as_ref().ok().copied())?;
        self.note(|| format!("an analysis of {id} is answered: {answer:?}"));
        let rollouts = vec![Stored { version, value: next }];
        self.store.commit(Commit { rollouts, ..Commit::default() }).map_err(|_| "an answer was overtaken".to_owned())
    }

    /// Whether every rollout has come to its end.
    pub(crate) fn is_over(&self) -> bool {
        self.store.rollouts.values().all(|rollout| rollout.value.status().is_terminal())
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.network.is_empty() && self.devices.iter().all(|device| !device.is_busy())
    }

    /// Everything that is on its way arrives, and every device does what it has to do.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        for _ in 0..200 {
            for at in 0..self.devices.len() {
                self.collect(at);
            }
            if self.is_quiet() {
                return Ok(());
            }
            while !self.network.is_empty() {
                self.deliver()?;
            }
            for at in 0..self.devices.len() {
                if self.devices[at].is_busy() {
                    self.turn(at);
                }
                self.ledger.device(&self.devices[at])?;
            }
        }
        Err("devices and network never come to rest".to_owned())
    }

    pub(crate) fn paused(&self) -> Vec<RolloutId> {
        let paused = self.store.rollouts.values().filter(|r| r.value.status() == RolloutStatus::Paused);
        paused.map(|rollout| rollout.value.id.clone()).collect()
    }
}
