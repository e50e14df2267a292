//! The update machine in a world that crashes: between any two effects, over and over.
//!
//! The world carries effects out on a pretended disk. What it checks after every step is what a device owner relies on: the
//! incumbent is never lost, a bundle that takes the agent down is not tried for ever, and in the end every update ends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::collections::{BTreeMap, BTreeSet};

use muster_agent_core::admit::{DeviceFacts, Offer, OfferedManifest};
use muster_agent_core::record::{MAX_TRIES, Phase, Record, Untold};
use muster_agent_core::slots::{Pointer, Slot};
use muster_agent_core::update::{Effect, Event, FileDamage, Machine};
use muster_shared::bundle::Requirements;
use muster_shared::chunk::ChunkSet;
use muster_shared::ids::{DeviceId, Digest, RolloutId};
use muster_shared::messages::{DeviceEventKind, RequestCounts, UpdateState};
use muster_shared::trust::{Assignment, DeliveryPolicy, WatchPolicy};
use proptest::prelude::*;

const CHUNKS: u32 = 5;
const PROBATION_MS: u64 = 1_000;

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

fn digest(bundle: u8) -> Digest {
    Digest::of(&[bundle])
}

fn bundle_of(manifest: &Digest) -> u8 {
    (0..6).find(|b| digest(*b) == *manifest).unwrap()
}

fn offer(generation: u64, bundle: Option<u8>, suitable: bool) -> Event {
    offer_within(generation, bundle, suitable, 1 << 40)
}

/// An offer to a device on which bundles may take so many bytes together.
fn offer_within(generation: u64, bundle: Option<u8>, suitable: bool, disk_allowed_bytes: u64) -> Event {
    let manifest = bundle.map(|bundle| OfferedManifest {
        digest: digest(bundle),
        bundle: format!("digits@1.{bundle}.0").parse().unwrap(),
        release_counter: u64::from(bundle) + 1,
        security_floor: u64::from(bundle == 2),
        expires_ms: 100,
        requirements: Requirements { min_memory_bytes: if suitable { 0 } else { 2 }, ..Requirements::default() },
        chunks: CHUNKS,
        total_bytes: u64::from(CHUNKS),
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
        },
        manifest,
        director_epoch: 1,
        device: DeviceFacts {
            arch: "x86_64".into(),
            memory_bytes: 1,
            agent_version: semver::Version::new(0, 1, 0),
            disk_free_bytes: 1 << 40,
            disk_allowed_bytes,
            now_ms: 1,
        },
    }))
}

struct World {
    machine: Machine,
    now_ms: u64,
    // On disk.
    record: Record,
    manifests: BTreeSet<Digest>,
    files: BTreeMap<Slot, (Digest, BTreeSet<u32>)>,
    outbox: Vec<(DeviceEventKind, u64)>,
    /// How many bundles it takes.
    room: usize,
    // In memory.
    serving: Option<Pointer>,
    fetching: Option<(Slot, u64)>,
    jobs: Vec<Event>,
    tests_run: BTreeMap<u64, u32>,
    ever_committed: bool,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            machine: Machine::new(Record::default()),
            now_ms: 0,
            record: Record::default(),
            manifests: BTreeSet::new(),
            files: BTreeMap::new(),
            outbox: Vec::new(),
            room: 2,
            serving: None,
            fetching: None,
            jobs: Vec::new(),
            tests_run: BTreeMap::new(),
            ever_committed: false,
        };
        world.restart();
        world
    }

    fn restart(&mut self) {
        let bytes = self.record.to_json().unwrap();
        self.machine = Machine::new(Record::from_json(&bytes).unwrap());
        self.serving = None;
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
    fn happens(&mut self, event: Event, dies_at: Option<usize>) {
        let mut events = vec![event];
        let mut carried_out = 0;
        while let Some(event) = events.pop() {
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
            Effect::Tidy { .. } => self.tidy(),
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
                events.push(Event::CommittedLoaded);
            }
            Effect::Serve(pointer) => {
                self.assert_complete(pointer.slot);
                self.serving = Some(pointer);
            }
            Effect::ServeNothing => self.serving = None,
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
        self.ever_committed = next.committed.is_some();
        self.record = Record::from_json(&next.to_json().unwrap()).unwrap();
    }

    fn generation(&self) -> u64 {
        self.machine.record().update.as_ref().map_or(0, |u| u.generation)
    }

    fn assert_complete(&self, slot: Slot) {
        let content = self.machine.record().slots.get(slot).unwrap();
        let (manifest, there) = self.files.get(&slot).unwrap();
        assert_eq!(*manifest, content.manifest);
        assert_eq!(there.len(), CHUNKS as usize);
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
    fn check_at_rest(&self) {
        self.check();
        let committed = self.machine.record().committed;
        if self.machine.is_watching() {
            assert!(self.serving.is_some());
        } else {
            assert_eq!(self.serving, committed, "{:?}", self.machine.record());
        }
        assert!(self.machine.record().untold.is_empty());
    }

    fn chunk_arrives(&mut self, chunk: u32, dies_at: Option<usize>) {
        let Some((slot, generation)) = self.fetching else { return };
        self.files.get_mut(&slot).unwrap().1.insert(chunk % CHUNKS);
        self.happens(Event::ChunksDurable { generation, chunks: vec![chunk % CHUNKS] }, dies_at);
    }

    fn job_ends(&mut self, dies_at: Option<usize>) {
        if !self.jobs.is_empty() {
            let event = self.jobs.remove(0);
            self.happens(event, dies_at);
        }
    }

    fn time_passes(&mut self, ms: u64, dies_at: Option<usize>) {
        self.now_ms += ms;
        let Some(serving) = self.serving else { return };
        let manifest = self.machine.record().slots.get(serving.slot).unwrap().manifest;
        let failed = if nature(bundle_of(&manifest)) == Nature::BadInTheField { 9 } else { 0 };
        let counts = RequestCounts { served: 10, failed, ..RequestCounts::default() };
        self.happens(Event::Tick { counts }, dies_at);
    }

    fn stops_in_order(&mut self) {
        let generation = self.generation();
        let gives_back = self
            .machine
            .record()
            .update
            .as_ref()
            .is_some_and(|u| matches!(u.phase, Phase::Verified { .. } | Phase::Trial { .. }));
        self.happens(Event::Stopping, None);
        if gives_back && let Some(times) = self.tests_run.get_mut(&generation) {
            *times = times.saturating_sub(1);
        }
        self.restart();
    }

    fn runs_to_the_end(&mut self) -> UpdateState {
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

#[derive(Debug, Clone)]
enum Step {
    Offered { newer: u64, bundle: Option<u8>, suitable: bool },
    OfferedAgain,
    ChunkArrives(u32),
    ChunkRots(u32),
    JobEnds,
    TimePasses(u64),
    Dies,
    StopsInOrder,
    DiskFull,
}

fn step() -> impl Strategy<Value = (Step, Option<usize>)> {
    let step = prop_oneof![
        3 => (0u64..3, prop::option::weighted(0.9, 0u8..6), prop::bool::weighted(0.9))
            .prop_map(|(newer, bundle, suitable)| Step::Offered { newer, bundle, suitable }),
        1 => Just(Step::OfferedAgain),
        10 => (0..CHUNKS).prop_map(Step::ChunkArrives),
        1 => (0..CHUNKS).prop_map(Step::ChunkRots),
        6 => Just(Step::JobEnds),
        4 => (0u64..PROBATION_MS).prop_map(Step::TimePasses),
        1 => Just(Step::Dies),
        1 => Just(Step::StopsInOrder),
        1 => Just(Step::DiskFull),
    ];
    (step, prop::option::weighted(0.2, 0usize..6))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_incumbent_stays_and_updates_end(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        let mut last = (0, None, true);
        for (step, dies_at) in steps {
            match step {
                Step::Offered { newer, bundle, suitable } => {
                    if newer > 0 {
                        last = (last.0 + newer, bundle, suitable);
                        world.happens(offer(last.0, bundle, suitable), dies_at);
                    } else if last.0 > 1 {
                        // An old one, replayed.
                        let before = world.record.clone();
                        world.happens(offer(last.0 - 1, bundle, suitable), None);
                        if before.generation == last.0 {
                            prop_assert_eq!(&world.record, &before);
                        }
                    }
                }
                Step::OfferedAgain => if last.0 > 0 { world.happens(offer(last.0, last.1, last.2), dies_at) },
                Step::ChunkArrives(chunk) => world.chunk_arrives(chunk, dies_at),
                Step::ChunkRots(chunk) => {
                    if let Some((slot, _)) = world.fetching {
                        world.files.get_mut(&slot).unwrap().1.remove(&chunk);
                    }
                }
                Step::JobEnds => world.job_ends(dies_at),
                Step::TimePasses(ms) => world.time_passes(ms, dies_at),
                Step::Dies => world.restart(),
                Step::StopsInOrder => world.stops_in_order(),
                Step::DiskFull => {
                    if let Some((_, generation)) = world.fetching {
                        world.happens(Event::Obstructed { generation, reason: "disk full".into() }, dies_at);
                    }
                }
            }
            world.check_at_rest();
        }
        // However bad it was: a good bundle, offered now, gets through.
        let generation = last.0 + 1;
        let held = world.record.slots.holding(&digest(2)).is_some();
        // What never served, or does not any more, takes no room from it.
        world.room = if world.record.committed.is_none() && !held { 1 } else { 2 };
        world.happens(offer_within(generation, Some(2), true, world.room as u64 * u64::from(CHUNKS)), None);
        prop_assert_eq!(world.runs_to_the_end(), UpdateState::Committed);
        let committed = world.record.committed_bundle().unwrap();
        prop_assert_eq!((committed.manifest, committed.generation), (digest(2), generation));
        prop_assert_eq!(world.serving, world.record.committed);
        prop_assert!(world.outbox.contains(&(DeviceEventKind::Committed, generation)));
    }
}

#[test]
fn each_kind_of_bundle_ends_as_it_must_and_the_incumbent_serves_on() {
    for (bundle, state) in
        [(3, UpdateState::Failed), (4, UpdateState::Failed), (5, UpdateState::Reverted), (2, UpdateState::Committed)]
    {
        let mut world = World::new();
        world.happens(offer(1, Some(0), true), None);
        assert_eq!(world.runs_to_the_end(), UpdateState::Committed);
        world.happens(offer(2, Some(bundle), true), None);
        assert_eq!(world.runs_to_the_end(), state, "bundle {bundle}");
        let serves = world.machine.record().installed(world.serving.unwrap()).unwrap();
        let expected = if state == UpdateState::Committed { digest(bundle) } else { digest(0) };
        assert_eq!(serves.manifest, expected);
    }
}

#[test]
fn where_nothing_is_committed_one_bundle_has_room_wherever_the_agent_dies() {
    let tight = |generation, bundle| offer_within(generation, bundle, true, u64::from(CHUNKS));
    for (before, state) in [(3, UpdateState::Failed), (0, UpdateState::Committed)] {
        for dies_at in 0..12 {
            let mut world = World { room: 1, ..World::new() };
            world.happens(tight(1, Some(before)), None);
            assert_eq!(world.runs_to_the_end(), state);
            if state == UpdateState::Committed {
                world.happens(tight(2, None), None);
            }
            assert!(world.record.committed.is_none() && world.record.slots.holding(&digest(before)).is_some());
            world.happens(tight(3, Some(1)), Some(dies_at));
            world.happens(tight(3, Some(1)), None);
            assert_eq!(world.runs_to_the_end(), UpdateState::Committed, "{state:?} {dies_at}");
        }
    }
}

#[test]
fn going_back_to_the_bundle_before_needs_no_chunk() {
    let mut world = World::new();
    for (generation, bundle) in [(1, 0), (2, 1)] {
        world.happens(offer(generation, Some(bundle), true), None);
        assert_eq!(world.runs_to_the_end(), UpdateState::Committed);
    }
    world.happens(offer(3, Some(0), true), None);
    assert_eq!(world.fetching, None);
    assert_eq!(world.runs_to_the_end(), UpdateState::Committed);
    assert_eq!(world.record.committed_bundle().unwrap().manifest, digest(0));
    // And an assignment of what runs already changes the generation alone.
    world.happens(offer(4, Some(0), true), None);
    assert_eq!(world.serving.unwrap().generation, 4);
    assert_eq!(world.record.update_report().state, UpdateState::Committed);
}

#[test]
fn the_floor_keeps_older_releases_out_once_the_newer_one_has_committed() {
    let mut world = World::new();
    world.happens(offer(1, Some(2), true), None);
    assert_eq!(world.record.security_floor, 0);
    world.runs_to_the_end();
    assert_eq!(world.record.security_floor, 1);
}

#[test]
fn a_committed_bundle_whose_files_rot_is_replaced_by_the_one_before_or_fetched_again() {
    let mut world = World::new();
    world.happens(offer(1, Some(0), true), None);
    world.runs_to_the_end();
    let mut alone = Machine::new(world.record.clone());
    let pointer = world.record.committed.unwrap();
    assert_eq!(alone.handle(Event::Started, 0), [Effect::LoadCommitted(pointer)]);
    let rotten = Event::CommittedUnusable { reason: "chunk 1 is damaged".into(), damaged: vec![1] };
    let effects = alone.handle(rotten.clone(), 0);
    assert!(effects.contains(&Effect::Fetch { slot: pointer.slot, generation: 1 }), "{effects:?}");
    let mut have = ChunkSet::empty(CHUNKS);
    for chunk in [0, 2, 3, 4] {
        have.insert(chunk);
    }
    assert_eq!(alone.record().slots.get(pointer.slot).unwrap().have, have);
    assert!(!alone.is_serving(), "quiet hours must not hold it back");
    // Nor while it is another update that is being fetched.
    world.happens(offer(2, Some(1), true), None);
    assert!(world.fetching.is_some() && world.machine.is_serving());
    let mut at_work = Machine::new(world.record.clone());
    let _ = at_work.handle(Event::Started, 0);
    let effects = at_work.handle(rotten.clone(), 0);
    assert!(effects.contains(&Effect::Fetch { slot: pointer.slot.other(), generation: 2 }), "{effects:?}");
    assert!(!at_work.is_serving());
    world.runs_to_the_end();
    let pointer = world.record.committed.unwrap();
    let mut with_fallback = Machine::new(world.record.clone());
    let _ = with_fallback.handle(Event::Started, 0);
    let effects = with_fallback.handle(rotten, 0);
    let other = Pointer { slot: pointer.slot.other(), generation: 2 };
    // It serves before anything has to be written: the disk may be full.
    assert_eq!(effects, [Effect::LoadCommitted(other)]);
    assert_eq!(with_fallback.record().update_report().state, UpdateState::Reverted);
    let effects = with_fallback.clone().handle(Event::CommittedLoaded, 0);
    let tidy = Effect::Tidy { keep: Some(other.slot) };
    assert_eq!(effects, [Effect::Serve(other), Effect::Persist, Effect::Tell, tidy]);
    // Neither can be loaded, though the bytes are right: nothing is thrown away.
    let unloadable = Event::CommittedUnusable { reason: "no runtime".into(), damaged: vec![] };
    let _ = with_fallback.handle(unloadable, 0);
    assert_eq!(with_fallback.record().committed, Some(other));
}

#[test]
fn a_lost_manifest_is_taken_from_the_assignment_said_again() {
    let mut world = World::new();
    world.happens(offer(1, Some(0), true), None);
    world.runs_to_the_end();
    let pointer = world.record.committed.unwrap();
    let lost = Event::CommittedManifestLost { reason: "it is missing".into() };
    let start = || {
        let mut machine = Machine::new(world.record.clone());
        assert_eq!(machine.handle(Event::Started, 0), [Effect::LoadCommitted(pointer)]);
        assert_eq!(machine.handle(lost.clone(), 0), [Effect::Persist, Effect::Tell, Effect::Report]);
        assert_eq!(machine.record().committed, Some(pointer), "nothing is given up");
        machine.told(1);
        machine
    };
    let mut machine = start();
    let again = [Effect::StoreManifest(digest(0)), Effect::LoadCommitted(pointer)];
    assert_eq!(machine.handle(offer(1, Some(0), true), 0), again);
    let tidy = Effect::Tidy { keep: Some(pointer.slot) };
    assert_eq!(machine.handle(Event::CommittedLoaded, 0), [Effect::Serve(pointer), Effect::Report, tidy]);
    assert_eq!(machine.handle(offer(1, Some(0), true), 0), [Effect::Report], "once is enough");

    // Under another generation it is checked and tried like any bundle, without fetching.
    let mut machine = start();
    let effects = machine.handle(offer(2, Some(0), true), 0);
    assert!(effects.starts_with(&[Effect::StopFetching, Effect::StoreManifest(digest(0)), Effect::Persist]));
    assert_eq!(effects.last(), Some(&Effect::CheckFiles { slot: pointer.slot, generation: 2 }));
}

#[test]
fn a_start_serves_before_it_writes_tells_or_tidies() {
    let mut world = World::new();
    world.happens(offer(1, Some(0), true), None);
    world.runs_to_the_end();
    let pointer = world.record.committed.unwrap();
    let mut record = world.record.clone();
    record.untold.push(Untold { kind: DeviceEventKind::Committed, generation: 1, bundle: None, detail: "left".into() });
    let mut machine = Machine::new(record);
    assert_eq!(machine.handle(Event::Started, 0), [Effect::LoadCommitted(pointer)]);
    // What a death just after a commit left behind goes with the next start, and not only with the next commit.
    let tidy = Effect::Tidy { keep: Some(pointer.slot) };
    assert_eq!(machine.handle(Event::CommittedLoaded, 0), [Effect::Serve(pointer), Effect::Tell, tidy]);
}

#[test]
fn a_stop_in_order_costs_no_try_and_time_watched_counts() {
    let mut world = World::new();
    world.happens(offer(1, Some(0), true), None);
    for chunk in 0..CHUNKS {
        world.chunk_arrives(chunk, None);
    }
    world.job_ends(None);
    world.job_ends(None);
    for _ in 0..4 {
        world.time_passes(PROBATION_MS / 5, None);
        assert_eq!(world.record.update_report().state, UpdateState::Trial);
        world.stops_in_order();
        world.job_ends(None);
    }
    world.time_passes(PROBATION_MS / 5, None);
    assert_eq!(world.record.update_report().state, UpdateState::Committed);
}
