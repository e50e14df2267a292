//! A simulated device: the agent's real update machine, on a flash and an engine that exist only here.
//!
//! Effects are carried out at once, and what answers them waits until the device is given another turn, so a crash can
//! fall between any two. What was not persisted is gone then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use muster_agent_core::admit::{DeviceFacts, Offer, OfferedManifest};
use muster_agent_core::record::Record;
use muster_agent_core::slots::{Pointer, Slot};
use muster_agent_core::update::{Effect, Event, FileDamage, Machine};
use muster_rollout::{BesideCounts, Evidence};
use muster_shared::ids::{BundleRef, DeviceId, Digest};
use muster_shared::messages::{HeldBack, InstalledBundle, RequestCounts, StateReport, UpdateReport, UpdateState};
use muster_shared::protocol::PROTOCOL;
use muster_shared::protocol::earlier::reads_assignment;
use muster_shared::sketch::LatencySketch;
use muster_shared::trust::Assignment;

use crate::draw::candidates;
use crate::store::WindowKey;

/// What a bundle does on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    Good,
    /// Its golden examples come out wrong.
    FailsTest,
    /// It fails requests on trial.
    FailsTrial,
    /// It fails one request in three once it is committed.
    Errs,
    /// It takes the agent down.
    Crashes,
    /// It takes four times as long.
    Slow,
}

/// What a device says that is not so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// It has accepted a generation that nobody gave.
    Generation(u64),
    /// It has committed what it was told last, whatever it does.
    Committed,
    /// What it was told failed.
    Failed,
    /// It has committed another bundle, which it never had.
    Running,
}

/// A bundle, as a device sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bundle {
    pub(crate) manifest: OfferedManifest,
}

impl Bundle {
    pub(crate) fn named(name: &str, release_counter: u64, security_floor: u64) -> Self {
        let bundle: BundleRef = format!("digits@1.{release_counter}.0").parse().expect("a bundle's name");
        Self {
            manifest: OfferedManifest {
                digest: Digest::of(name.as_bytes()),
                bundle,
                release_counter,
                security_floor,
                expires_ms: u64::MAX,
                requirements: Default::default(),
                chunks: 2,
                total_bytes: 100,
                model_bytes: 100,
                needed_memory_bytes: 100,
            },
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        self.manifest.digest
    }
}

/// What leaves a device.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Up {
    Report(Box<StateReport>),
    Window(WindowKey, Box<Evidence>),
}

#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) arch: &'static str,
    /// What its agent understands of the wire contract.
    pub(crate) protocol: u32,
    /// Whether it has power.
    pub(crate) powered: bool,
    /// Whether it has a connection.
    pub(crate) connected: bool,
    pub(crate) lie: Option<Lie>,
    pub(crate) running: Option<InstalledBundle>,
    natures: BTreeMap<Digest, Nature>,
    machine: Machine,
    /// The record as the flash holds it, and earlier ones that a restored flash holds.
    flash: Record,
    images: Vec<Record>,
    beside: Option<InstalledBundle>,
    answers: VecDeque<Event>,
    /// What left it and has not been taken up by the network.
    outbox: Vec<Up>,
    served_on_trial: RequestCounts,
    windows: u64,
    starts: u64,
}

impl Device {
    /// A device that has run nothing.
    pub(crate) fn new(id: DeviceId, arch: &'static str) -> Self {
        Self::with_record(id, arch, Record::default())
    }

    /// A device with this record on its flash. It does nothing before [`Self::start`].
    pub(crate) fn with_record(id: DeviceId, arch: &'static str, flash: Record) -> Self {
        Self {
            id,
            arch,
            protocol: PROTOCOL,
            powered: true,
            connected: true,
            lie: None,
            running: None,
            natures: BTreeMap::new(),
            machine: Machine::new(flash.clone()),
            flash,
            images: Vec::new(),
            beside: None,
            answers: VecDeque::new(),
            outbox: Vec::new(),
            served_on_trial: RequestCounts::default(),
            windows: 0,
            starts: 1,
        }
    }

    /// What `bundle` does here.
    pub(crate) fn set_nature(&mut self, bundle: Digest, nature: Nature) {
        self.natures.insert(bundle, nature);
    }

    pub(crate) fn nature(&self, bundle: &Digest) -> Nature {
        self.natures.get(bundle).copied().unwrap_or(Nature::Good)
    }

    pub(crate) fn record(&self) -> &Record {
        self.machine.record()
    }

    /// Whether it has prepared what it was told, and waits to switch to it.
    pub(crate) fn waits_to_switch(&self) -> bool {
        matches!(self.machine.held_back(), Some(HeldBack::Switch { .. }))
    }

    /// What left the device since it was asked last.
    pub(crate) fn take_outbox(&mut self) -> Vec<Up> {
        std::mem::take(&mut self.outbox)
    }

    /// Whether it has something to do at once.
    pub(crate) fn is_busy(&self) -> bool {
        !self.answers.is_empty()
    }

    /// An assignment reached it. False where it cannot read it: it says nothing of that.
    pub(crate) fn receive(&mut self, assignment: Assignment, bundle: Option<&Bundle>, now_ms: u64) -> bool {
        if !reads_assignment(self.protocol, &assignment) {
            return false;
        }
        let offer = Offer {
            assignment,
            manifest: bundle.map(|bundle| bundle.manifest.clone()),
            director_epoch: 1,
            device: DeviceFacts {
                arch: self.arch.to_owned(),
                memory_bytes: 1 << 30,
                memory_allowed_bytes: Some(1 << 30),
                memory_available_bytes: Some(1 << 29),
                cpu_features: BTreeSet::new(),
                attributes: BTreeMap::new(),
                agent_version: "0.1.0".parse().expect("a version"),
                disk_free_bytes: 1 << 30,
                disk_allowed_bytes: 1 << 30,
                now_ms,
            },
        };
        self.handle(Event::Offered(Box::new(offer)), now_ms);
        true
    }

    /// Another version of the agent takes its place, where that could run what is on the flash.
    pub(crate) fn run_version(&mut self, protocol: u32, now_ms: u64) -> bool {
        let runs_old_things_alone = self.beside.is_none() && !self.waits_to_switch() && !self.is_busy();
        if runs_old_things_alone {
            self.protocol = protocol;
            self.start(now_ms);
            self.report();
        }
        runs_old_things_alone
    }

    /// One turn: the next thing to do, or else a look at what is on trial.
    pub(crate) fn turn(&mut self, now_ms: u64) {
        if let Some((generation, _)) = self.machine.switch_at().filter(|(_, at_ms)| *at_ms <= now_ms) {
            self.handle(Event::Due { generation }, now_ms);
        }
        match self.answers.pop_front() {
            Some(event) => self.handle(event, now_ms),
            None if self.machine.is_watching() => {
                self.handle(Event::Tick { counts: self.served_on_trial }, now_ms);
            }
            None => {}
        }
    }

    /// Applications ask for predictions, and a window is closed over them.
    pub(crate) fn serve(&mut self, requests: u64) {
        let own = self.record().committed_bundle().map(|own| own.manifest);
        let on_trial = self.running.as_ref().map(|running| running.manifest) != own;
        for (installed, on_trial) in [(self.running.clone(), on_trial), (self.beside.clone(), false)]
            .into_iter()
            .filter_map(|(i, t)| Some((i?, t)))
        {
            let nature = self.nature(&installed.manifest);
            let failed = match nature {
                Nature::FailsTrial if on_trial => requests,
                Nature::Errs if !on_trial => requests / 3 + 1,
                Nature::Good
                | Nature::FailsTest
                | Nature::FailsTrial
                | Nature::Errs
                | Nature::Crashes
                | Nature::Slow => 0,
            };
            let counts = RequestCounts { served: requests, failed, ..RequestCounts::default() };
            if on_trial {
                self.served_on_trial.merge(&counts);
            }
            let mut latency_us = LatencySketch::default();
            (0..requests).for_each(|_| latency_us.add(if nature == Nature::Slow { 12 } else { 3 }));
            let is_second = self.beside.as_ref() == Some(&installed);
            let disagreed = if nature == Nature::Slow { requests / 2 + requests % 2 } else { 0 };
            let rows = if is_second { (requests - disagreed, disagreed) } else { (0, 0) };
            let beside = BesideCounts { agreed: rows.0, disagreed: rows.1, ..BesideCounts::default() };
            let evidence = Evidence { requests: counts, latency_us, reports: 1, beside, ..nothing(&installed) };
            self.send_window(evidence);
        }
    }

    /// The power fails or the agent dies; it starts again from what is on the flash.
    pub(crate) fn crash(&mut self, now_ms: u64) {
        if let Some(exposed) = self.record().exposed_bundle() {
            self.send_window(Evidence { crashes: 1, ..nothing(&exposed) });
        }
        self.start(now_ms);
    }

    /// Starts from what is on the flash.
    pub(crate) fn start(&mut self, now_ms: u64) {
        self.machine = Machine::new(self.flash.clone());
        (self.running, self.beside) = (None, None);
        self.answers.clear();
        self.served_on_trial = RequestCounts::default();
        self.starts += 1;
        self.handle(Event::Started, now_ms);
    }

    /// The flash is as it was some time ago.
    pub(crate) fn restore(&mut self, image: usize, now_ms: u64) {
        if let Some(earlier) = self.images.get(image % self.images.len().max(1)) {
            self.flash = earlier.clone();
            self.start(now_ms);
        }
    }

    /// Says how it stands, or says something else.
    pub(crate) fn report(&mut self) {
        let record = self.machine.record();
        let mut report = StateReport {
            generation: record.generation,
            update: UpdateReport { held_back: self.machine.held_back(), ..record.update_report() },
            can_hold: self.protocol > 0,
            protocol: self.protocol,
            running: self.running.clone(),
            committed: record.committed_bundle(),
            security_floor: record.security_floor,
            attributes: BTreeMap::from([("arch".to_owned(), self.arch.to_owned())]),
            starts: self.starts,
            ..StateReport::default()
        };
        match self.lie {
            None => {}
            Some(Lie::Generation(generation)) => report.generation = generation,
            Some(Lie::Failed) => {
                report.update.state = UpdateState::Failed;
                report.update.reason = Some("so it says".to_owned());
            }
            Some(Lie::Committed) => {
                let update = &mut report.update;
                update.state = UpdateState::Committed;
                if let (Some(manifest), Some(update)) = (update.manifest, &record.update) {
                    let bundle = update.bundle.clone().unwrap_or_else(|| claimed().bundle);
                    let done = InstalledBundle { manifest, bundle, generation: update.generation };
                    (report.running, report.committed) = (Some(done.clone()), Some(done));
                }
            }
            Some(Lie::Running) => (report.running, report.committed) = (Some(claimed()), Some(claimed())),
        }
        self.outbox.push(Up::Report(Box::new(report)));
    }

    fn send_window(&mut self, evidence: Evidence) {
        self.windows += 1;
        self.outbox.push(Up::Window(self.windows, Box::new(evidence)));
    }

    fn handle(&mut self, event: Event, now_ms: u64) {
        for effect in self.machine.handle(event, now_ms) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Persist => self.persist(),
            Effect::Tell => {
                self.machine.told(usize::MAX);
                self.persist();
            }
            Effect::Report => self.report(),
            Effect::Fetch { generation, .. } => {
                self.answers.push_back(Event::ChunksDurable { generation, chunks: vec![0] });
                self.answers.push_back(Event::ChunksDurable { generation, chunks: vec![1] });
            }
            Effect::StopFetching => {
                self.answers.retain(|event| !matches!(event, Event::ChunksDurable { .. }));
            }
            Effect::CheckFiles { generation, .. } => {
                let result: Result<(), FileDamage> = Ok(());
                self.answers.push_back(Event::FilesChecked { generation, result });
            }
            Effect::Test { slot, generation } => {
                let fails = self.manifest_in(slot).is_some_and(|digest| self.nature(&digest) == Nature::FailsTest);
                let result = if fails { Err("golden example 1 came out wrong".to_owned()) } else { Ok(()) };
                self.answers.push_back(Event::Tested { generation, result });
            }
            Effect::LoadCommitted(_) => self.answers.push_back(Event::CommittedLoaded),
            Effect::Serve(pointer) => {
                self.served_on_trial = RequestCounts::default();
                self.running = self.installed(pointer);
            }
            Effect::RunBeside(pointer) => self.beside = self.installed(pointer),
            Effect::EndBeside => self.beside = None,
            Effect::ServeNothing => self.running = None,
            Effect::StoreManifest(_) | Effect::Refuse { .. } | Effect::PrepareSlot { .. } | Effect::Tidy { .. } => {}
        }
    }

    fn persist(&mut self) {
        if self.flash != *self.machine.record() {
            let before = std::mem::replace(&mut self.flash, self.machine.record().clone());
            if self.images.len() < 8 {
                self.images.push(before);
            }
        }
    }

    fn manifest_in(&self, slot: Slot) -> Option<Digest> {
        self.record().slots.get(slot).map(|content| content.manifest)
    }

    fn installed(&self, pointer: Pointer) -> Option<InstalledBundle> {
        self.record().installed(pointer)
    }
}

/// Evidence of nothing, about a bundle.
fn nothing(installed: &InstalledBundle) -> Evidence {
    Evidence::of(installed.manifest, installed.generation)
}

/// What a liar says that it runs: a bundle that there is.
fn claimed() -> InstalledBundle {
    let OfferedManifest { digest, bundle, .. } = candidates()[1].manifest.clone();
    InstalledBundle { manifest: digest, bundle, generation: 7 }
}
