//! A pretended disk on which the machine's effects are carried out, and what must hold there after every one.

use std::collections::{BTreeMap, BTreeSet};

use muster_agent_core::admit::{DeviceFacts, Offer, OfferedManifest};
use muster_agent_core::record::{MAX_TRIES, Phase, Record};
use muster_agent_core::slots::{Pointer, Slot};
use muster_agent_core::update::{Effect, Event, FileDamage, Machine};
use muster_shared::bundle::Requirements;
use muster_shared::ids::{DeviceId, Digest, RolloutId};
use muster_shared::messages::{DeviceEventKind, RequestCounts, UpdateState};
use muster_shared::trust::{Activation, Assignment, DeliveryPolicy, Stage, WatchPolicy};

pub(crate) const CHUNKS: u32 = 5;
pub(crate) const PROBATION_MS: u64 = 1_000;

/// What a bundle is like; its number picks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    Good,
    FailsItsTest,
    KillsTheAgent,
    BadInTheField,
}

fn nature(bundle: u8) -> Nature {
    match bundle {
        0..=2 => Nature::Good,
        3 => Nature::FailsItsTest,
        4 => Nature::KillsTheAgent,
        _ => Nature::BadInTheField,
    }
}

pub(crate) fn digest(bundle: u8) -> Digest {
    Digest::of(&[bundle])
}

fn bundle_of(manifest: &Digest) -> u8 {
    (0..6).find(|b| digest(*b) == *manifest).unwrap()
}

pub(crate) fn offer(generation: u64, bundle: Option<u8>, suitable: bool) -> Event {
    offer_within(generation, bundle, suitable, 1 << 40)
}

/// An offer to run a bundle in another part than to serve alone.
pub(crate) fn offer_as(generation: u64, bundle: u8, stage: Stage) -> Event {
    let Event::Offered(mut offer) = offer(generation, Some(bundle), true) else { unreachable!() };
    offer.assignment.stage = stage;
    Event::Offered(offer)
}

/// An offer to run a bundle from when `activation` says.
pub(crate) fn offer_when(generation: u64, bundle: u8, activation: Activation) -> Event {
    let Event::Offered(mut offer) = offer(generation, Some(bundle), true) else { unreachable!() };
    offer.assignment.activation = activation;
    Event::Offered(offer)
}

/// An offer to a device on which bundles may take so many bytes together.
pub(crate) fn offer_within(generation: u64, bundle: Option<u8>, suitable: bool, disk_allowed_bytes: u64) -> Event {
    let manifest = bundle.map(|bundle| OfferedManifest {
        digest: digest(bundle),
        bundle: format!("digits@1.{bundle}.0").parse().unwrap(),
        release_counter: u64::from(bundle) + 1,
        security_floor: u64::from(bundle == 2),
        expires_ms: 100,
        requirements: Requirements { min_memory_bytes: if suitable { 0 } else { 2 }, ..Requirements::default() },
        chunks: CHUNKS,
        total_bytes: u64::from(CHUNKS),
        model_bytes: u64::from(CHUNKS),
        needed_memory_bytes: 0,
    });
    Event::Offered(Box::new(Offer {
        assignment: Assignment {
            device: DeviceId::new("dev-1").unwrap(),
            rollout: RolloutId::new("r1").unwrap(),
            manifest: manifest.as_ref().map(|m| m.digest),
            generation,
            issued_at_ms: 0,
            expires_ms: 100,
            watch: WatchPolicy { probation_ms: PROBATION_MS, max_error_rate: 0.2, min_requests: 5 },
            delivery: DeliveryPolicy::default(),
            stage: Stage::Serve,
            activation: Activation::AtOnce,
            track: Default::default(),
        },
        manifest,
        director_epoch: 1,
        device: DeviceFacts {
            arch: "x86_64".into(),
            memory_bytes: 1,
            memory_allowed_bytes: None,
            memory_available_bytes: None,
            cpu_features: BTreeSet::new(),
            attributes: BTreeMap::new(),
            agent_version: semver::Version::new(0, 1, 0),
            disk_free_bytes: 1 << 40,
            disk_allowed_bytes,
            now_ms: 1,
        },
    }))
}

pub(crate) struct World {
    pub(crate) machine: Machine,
    pub(crate) now_ms: u64,
    // On disk.
    pub(crate) record: Record,
    pub(crate) manifests: BTreeSet<Digest>,
    pub(crate) files: BTreeMap<Slot, (Digest, BTreeSet<u32>)>,
    pub(crate) outbox: Vec<(DeviceEventKind, u64)>,
    /// How many bundles it takes.
    pub(crate) room: usize,
    // In memory.
    pub(crate) serving: Option<Pointer>,
    pub(crate) beside: Option<Pointer>,
    pub(crate) loaded: BTreeSet<Slot>,
    pub(crate) fetching: Option<(Slot, u64)>,
    pub(crate) jobs: Vec<Event>,
    pub(crate) tests_run: BTreeMap<u64, u32>,
    pub(crate) ever_committed: bool,
    /// What was offered to serve; nothing else may ever be committed.
    pub(crate) meant_to_serve: BTreeSet<Digest>,
    /// What may take its part: bundles under the generation whose time has come, or that was told to wait for none.
    pub(crate) free: BTreeSet<(u64, Digest)>,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            machine: Machine::new(Record::default()),
            now_ms: 0,
            record: Record::default(),
            manifests: BTreeSet::new(),
            files: BTreeMap::new(),
            outbox: Vec::new(),
            room: 2,
            serving: None,
            beside: None,
            loaded: BTreeSet::new(),
            fetching: None,
            jobs: Vec::new(),
            tests_run: BTreeMap::new(),
            ever_committed: false,
            meant_to_serve: BTreeSet::new(),
            free: BTreeSet::new(),
        };
        world.restart();
        world
    }

    pub(crate) fn restart(&mut self) {
        let bytes = self.record.to_json().unwrap();
        self.machine = Machine::new(Record::from_json(&bytes).unwrap());
        self.serving = None;
        self.beside = None;
        self.loaded.clear();
        self.fetching = None;
        self.jobs.clear();
        self.happens(Event::Started, None);
        // Every start ends with this.
        self.tidy();
    }

    fn tidy(&mut self) {
        let record = self.machine.record();
        self.files.retain(|slot, _| record.slots.get(*slot).is_some());
        self.manifests.retain(|manifest| record.slots.holding(manifest).is_some());
    }

    /// Handles `event`, dying before the effect numbered `dies_at`.
    pub(crate) fn happens(&mut self, event: Event, dies_at: Option<usize>) {
        let mut events = vec![event];
        let mut carried_out = 0;
        while let Some(event) = events.pop() {
            self.takes_note(&event);
            for effect in self.machine.handle(event, self.now_ms) {
                if dies_at == Some(carried_out) {
                    return self.restart();
                }
                carried_out += 1;
                if self.carry_out(effect, &mut events) {
                    return self.restart();
                }
                self.check();
            }
        }
        if dies_at.is_some_and(|at| at >= carried_out) {
            self.restart();
        }
    }

    /// What the updater does with an event besides handing it to the machine.
    fn takes_note(&mut self, event: &Event) {
        if let Event::Offered(offer) = event
            && (offer.assignment.activation.is_at_once()
                || self.is_on_trial(offer) && offer.assignment.activation != Activation::Hold)
        {
            // What serves already has nothing to wait with, unless it is told to.
            self.free.extend(offer.assignment.manifest.map(|manifest| (offer.assignment.generation, manifest)));
        } else if let Event::Due { generation } = event {
            let update = self.machine.record().update.as_ref().filter(|u| u.generation == *generation);
            self.free.extend(update.and_then(|u| u.manifest).map(|manifest| (*generation, manifest)));
        }
        if let Event::Offered(offer) = event
            && offer.assignment.stage.is_serve()
        {
            self.meant_to_serve.extend(offer.assignment.manifest);
        } else if let Event::Tested { generation, result: Ok(()) } = event {
            let update = self.machine.record().update.as_ref().filter(|u| u.generation == *generation);
            self.loaded.extend(update.and_then(|u| u.phase.working_slot()));
        }
    }

    fn is_on_trial(&self, offer: &Offer) -> bool {
        let update = self.machine.record().update.as_ref();
        update.is_some_and(|u| matches!(u.phase, Phase::Trial { .. }) && u.manifest == offer.assignment.manifest)
    }

    /// Carries out one effect; true when the process died of it.
    fn carry_out(&mut self, effect: Effect, events: &mut Vec<Event>) -> bool {
        assert!(self.rests_on_the_disk(&effect), "{effect:?} rests on what is not written yet");
        match effect {
            Effect::StoreManifest(manifest) => {
                self.manifests.insert(manifest);
            }
            Effect::Persist => self.persist(),
            Effect::Tell => {
                self.outbox.extend(self.machine.record().untold.iter().map(|u| (u.kind, u.generation)));
                self.machine.told(usize::MAX);
                self.persist();
            }
            Effect::Report | Effect::Refuse { .. } => {}
            Effect::Tidy { keep } => {
                self.loaded.retain(|slot| Some(*slot) == keep);
                self.tidy();
            }
            Effect::PrepareSlot { slot, fresh } => {
                let content = self.machine.record().slots.get(slot).unwrap().clone();
                assert!(self.manifests.contains(&content.manifest), "a slot is prepared without its manifest");
                let beside = self.files.keys().filter(|other| **other != slot).count();
                if fresh && beside >= self.room {
                    events.push(Event::Obstructed { generation: self.generation(), reason: "no room".into() });
                    self.files.remove(&slot);
                } else if fresh {
                    self.files.insert(slot, (content.manifest, BTreeSet::new()));
                } else {
                    let (manifest, there) = self.files.get(&slot).cloned().unwrap();
                    assert_eq!(manifest, content.manifest);
                    let lost: Vec<u32> = content.have.iter().filter(|c| !there.contains(c)).collect();
                    if !lost.is_empty() {
                        events.push(Event::ChunksLost { generation: self.generation(), chunks: lost });
                    }
                }
            }
            Effect::Fetch { slot, generation } => self.fetching = Some((slot, generation)),
            Effect::StopFetching => self.fetching = None,
            Effect::CheckFiles { slot, generation } => {
                let (_, there) = self.files.get(&slot).unwrap();
                let lost: Vec<u32> = (0..CHUNKS).filter(|c| !there.contains(c)).collect();
                let result =
                    if lost.is_empty() { Ok(()) } else { Err(FileDamage { chunks: lost, reason: "damaged".into() }) };
                self.jobs.push(Event::FilesChecked { generation, result });
            }
            Effect::Test { slot, generation } => {
                *self.tests_run.entry(generation).or_default() += 1;
                let manifest = self.machine.record().slots.get(slot).unwrap().manifest;
                match nature(bundle_of(&manifest)) {
                    Nature::KillsTheAgent => return true,
                    Nature::FailsItsTest => self.jobs.push(Event::Tested { generation, result: Err("wrong".into()) }),
                    Nature::Good | Nature::BadInTheField => {
                        self.jobs.push(Event::Tested { generation, result: Ok(()) });
                    }
                }
            }
            Effect::LoadCommitted(pointer) => {
                assert_eq!(self.record.committed, Some(pointer));
                self.loaded.insert(pointer.slot);
                events.push(Event::CommittedLoaded);
            }
            Effect::Serve(pointer) => {
                self.assert_complete(pointer.slot);
                self.assert_free(pointer);
                assert!(self.loaded.contains(&pointer.slot), "a model serves that is not loaded");
                assert_ne!(self.beside.map(|p| p.slot), Some(pointer.slot), "it would run beside itself");
                self.serving = Some(pointer);
            }
            Effect::RunBeside(pointer) => {
                self.assert_complete(pointer.slot);
                self.assert_free(pointer);
                assert!(self.loaded.contains(&pointer.slot), "a model runs beside another that is not loaded");
                assert!(self.serving.is_some_and(|p| p.slot != pointer.slot), "there is nothing to run beside");
                self.beside = Some(pointer);
            }
            Effect::EndBeside => self.beside = None,
            Effect::ServeNothing => {
                let beside = self.machine.record().update.as_ref().is_some_and(|u| !u.stage.is_serve());
                assert!(!beside || self.machine.record().committed.is_none(), "a model beside it ends no incumbent");
                self.serving = None;
            }
        }
        false
    }

    /// Whether what `effect` rests on would survive a crash right now.
    fn rests_on_the_disk(&self, effect: &Effect) -> bool {
        let now = self.machine.record();
        match effect {
            Effect::Serve(pointer) => {
                let on_trial = self.record.update.as_ref().is_some_and(|u| {
                    u.generation == pointer.generation
                        && matches!(u.phase, Phase::Trial { slot, .. } if slot == pointer.slot)
                });
                on_trial || self.record.committed == Some(*pointer)
            }
            Effect::RunBeside(pointer) => self.record.update.as_ref().is_some_and(|u| {
                u.generation == pointer.generation
                    && matches!(u.phase, Phase::Beside { slot, .. } if slot == pointer.slot)
            }),
            Effect::EndBeside => {
                let phase = self.record.update.as_ref().map(|u| &u.phase);
                !matches!(phase, Some(Phase::Beside { .. }))
            }
            Effect::PrepareSlot { .. }
            | Effect::Fetch { .. }
            | Effect::CheckFiles { .. }
            | Effect::Test { .. }
            | Effect::Report => self.record == *now,
            Effect::Tell => self.record.untold == now.untold,
            Effect::LoadCommitted(pointer) => self.record.committed == Some(*pointer),
            Effect::ServeNothing => self.record.committed == now.committed,
            Effect::Tidy { .. } => (self.record.committed, &self.record.slots) == (now.committed, &now.slots),
            Effect::StopFetching | Effect::StoreManifest(_) | Effect::Persist | Effect::Refuse { .. } => true,
        }
    }

    fn persist(&mut self) {
        let next = self.machine.record().clone();
        assert!(next.generation >= self.record.generation && next.security_floor >= self.record.security_floor);
        let withdrawn = next.update.as_ref().is_some_and(|u| u.phase == Phase::Withdrawn);
        if self.ever_committed {
            assert!(next.committed.is_some() || withdrawn, "the incumbent was lost: {next:?}");
        }
        if let Some(committed) = next.committed_bundle() {
            assert!(self.meant_to_serve.contains(&committed.manifest), "committed, and never meant to serve: {next:?}");
        }
        if let Some((
            generation,
            Phase::Beside { tries_left: MAX_TRIES, .. } | Phase::Verified { tries_left: MAX_TRIES, .. },
        )) = next.update.as_ref().map(|u| (u.generation, &u.phase))
        {
            // It has lived through a probation, and may be loaded as often again.
            self.tests_run.remove(&generation);
        }
        self.ever_committed = next.committed.is_some();
        self.record = Record::from_json(&next.to_json().unwrap()).unwrap();
    }

    pub(crate) fn generation(&self) -> u64 {
        self.machine.record().update.as_ref().map_or(0, |u| u.generation)
    }

    pub(crate) fn assert_complete(&self, slot: Slot) {
        let content = self.machine.record().slots.get(slot).unwrap();
        let (manifest, there) = self.files.get(&slot).unwrap();
        assert_eq!(*manifest, content.manifest);
        assert_eq!(there.len(), CHUNKS as usize);
    }

    /// What waits takes no part.
    fn assert_free(&self, pointer: Pointer) {
        let manifest = self.machine.record().slots.get(pointer.slot).unwrap().manifest;
        let waits = self.record.committed != Some(pointer) && !self.free.contains(&(pointer.generation, manifest));
        assert!(!waits, "generation {} was to wait: {:?}", pointer.generation, self.record);
    }

    fn check(&self) {
        if let Some(pointer) = self.record.committed {
            self.assert_complete(pointer.slot);
        }
        for (generation, times) in &self.tests_run {
            assert!(*times <= MAX_TRIES, "generation {generation} was tried {times} times");
        }
    }

    /// Nothing is being carried out: does what answers requests fit the record?
    pub(crate) fn check_at_rest(&self) {
        self.check();
        let record = self.machine.record();
        let phase = record.update.as_ref().map(|u| u.phase.clone());
        if self.machine.is_watching() && matches!(phase, Some(Phase::Trial { .. })) {
            assert!(self.serving.is_some());
        } else {
            assert_eq!(self.serving, record.committed, "{record:?}");
        }
        match phase {
            Some(Phase::Beside { slot, .. }) if self.jobs.is_empty() => {
                assert_eq!(self.beside, Some(Pointer { slot, generation: self.generation() }));
            }
            Some(Phase::Beside { .. }) => {}
            _ => assert_eq!(self.beside, None, "{record:?}"),
        }
        assert!(self.machine.record().untold.is_empty());
    }

    pub(crate) fn chunk_arrives(&mut self, chunk: u32, dies_at: Option<usize>) {
        let Some((slot, generation)) = self.fetching else { return };
        self.files.get_mut(&slot).unwrap().1.insert(chunk % CHUNKS);
        self.happens(Event::ChunksDurable { generation, chunks: vec![chunk % CHUNKS] }, dies_at);
    }

    pub(crate) fn job_ends(&mut self, dies_at: Option<usize>) {
        if !self.jobs.is_empty() {
            let event = self.jobs.remove(0);
            self.happens(event, dies_at);
        }
    }

    /// The time of what waits for one comes; true when something did.
    pub(crate) fn time_comes(&mut self, dies_at: Option<usize>) -> bool {
        let due = self.machine.switch_at();
        due.into_iter().for_each(|(generation, _)| self.happens(Event::Due { generation }, dies_at));
        due.is_some()
    }

    pub(crate) fn time_passes(&mut self, ms: u64, dies_at: Option<usize>) {
        self.now_ms += ms;
        let Some(serving) = self.serving else { return };
        let manifest = self.machine.record().slots.get(serving.slot).unwrap().manifest;
        let failed = if nature(bundle_of(&manifest)) == Nature::BadInTheField { 9 } else { 0 };
        let counts = RequestCounts { served: 10, failed, ..RequestCounts::default() };
        self.happens(Event::Tick { counts }, dies_at);
    }

    pub(crate) fn stops_in_order(&mut self) {
        let generation = self.generation();
        let gives_back =
            self.machine.record().update.as_ref().is_some_and(|u| {
                matches!(u.phase, Phase::Verified { .. } | Phase::Beside { .. } | Phase::Trial { .. })
            });
        self.happens(Event::Stopping, None);
        if gives_back && let Some(times) = self.tests_run.get_mut(&generation) {
            *times = times.saturating_sub(1);
        }
        self.restart();
    }

    pub(crate) fn runs_to_the_end(&mut self) -> UpdateState {
        for _ in 0..100 {
            for chunk in 0..CHUNKS {
                self.chunk_arrives(chunk, None);
            }
            self.job_ends(None);
            self.time_passes(PROBATION_MS / 2, None);
        }
        assert!(self.jobs.is_empty() && self.fetching.is_none());
        self.check_at_rest();
        self.machine.record().update_report().state
    }
}
