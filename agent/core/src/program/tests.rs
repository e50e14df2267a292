//! A device that is told to run programs, good and bad ones, and is cut off at any step.

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::bundle::Requirements;
use muster_shared::chunk::ChunkSet;
use muster_shared::messages::UpdateState;
use muster_shared::trust::{Assignment, Track, WatchPolicy};
use proptest::prelude::*;

use super::*;
use crate::admit::DeviceFacts;
use crate::record::{Barrier, Untold};

const CHUNKS: u32 = 3;
const PROBATION_MS: u64 = 1_000;
/// The longest time a program has to begin its good probation.
const DEADLINE_MS: u64 = 10_000;
const WELL: Vitals = Vitals { serves: true, linked: true, acknowledged: true, memory_bytes: Some(50) };

fn version(minor: u64) -> semver::Version {
    semver::Version::new(0, minor, 0)
}

fn manifest(name: u8) -> Digest {
    Digest::of(&[name])
}

fn offered(name: u8) -> OfferedProgram {
    OfferedProgram {
        content: Content {
            manifest: manifest(name),
            bundle: format!("muster-agent@0.{name}.0").parse().unwrap(),
            sha256: Digest::of(b"file"),
            release_counter: u64::from(name),
            security_floor: 0,
            max_memory_bytes: Some(100),
            total_bytes: 1_000,
            have: ChunkSet::empty(CHUNKS),
        },
        expires_ms: 1_000,
        requirements: Requirements {
            architectures: ["aarch64".to_owned()].into(),
            min_memory_bytes: 1,
            attributes: Some("board!=toaster".parse().unwrap()),
            ..Requirements::default()
        },
        takes_over_from: version(1),
    }
}

fn offer(generation: u64, program: Option<OfferedProgram>) -> Offer {
    Offer {
        assignment: Assignment {
            device: "dev-1".parse().unwrap(),
            rollout: "r1".parse().unwrap(),
            manifest: program.as_ref().map(|program| program.content.manifest),
            generation,
            issued_at_ms: 0,
            expires_ms: 1_000,
            watch: WatchPolicy { probation_ms: PROBATION_MS, ..WatchPolicy::default() },
            delivery: Default::default(),
            stage: Default::default(),
            activation: Default::default(),
            track: Track::Program,
        },
        program,
        director_epoch: 1,
        device: DeviceFacts {
            arch: "aarch64".to_owned(),
            memory_bytes: 1_000,
            memory_allowed_bytes: None,
            memory_available_bytes: None,
            cpu_features: BTreeSet::new(),
            attributes: BTreeMap::new(),
            agent_version: version(1),
            disk_free_bytes: 1 << 30,
            disk_allowed_bytes: 1 << 30,
            now_ms: 10,
        },
    }
}

/// A device: what is on its disk, and the process that runs, if one does.
struct World {
    disk: Record,
    package: semver::Version,
    process: Option<Machine>,
    now_ms: u64,
    /// Effects that wait for the power to be cut before one of them.
    cut_after: Option<usize>,
    /// What the files of the slots hold: written by fetching, whatever the record says.
    files: BTreeMap<Slot, (Digest, u32)>,
    /// Slots whose file was damaged after it was found right.
    damaged: BTreeSet<Slot>,
    /// The manifest of the program that runs; none for the package's.
    runs: Option<Digest>,
    /// Programs that crash at the start.
    crashing: BTreeSet<Digest>,
    /// Starts on trial by generation, and how many of them were given back by a stop in order.
    trial_starts: BTreeMap<u64, (u32, u32)>,
    /// Generations that have ended, for good.
    ended: BTreeMap<u64, UpdateState>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            disk: Record::new(version(1)),
            package: version(1),
            process: None,
            now_ms: 0,
            cut_after: None,
            files: BTreeMap::new(),
            damaged: BTreeSet::new(),
            runs: None,
            crashing: BTreeSet::new(),
            trial_starts: BTreeMap::new(),
            ended: BTreeMap::new(),
        };
        world.boot();
        world
    }

    /// What is there whole by its file, not by the record alone.
    fn is_whole(&self, slot: Slot) -> bool {
        self.disk.slots.get(&slot).is_some_and(|c| self.files.get(&slot) == Some(&(c.manifest, CHUNKS)))
    }

    fn check(&mut self) {
        let files = &self.files;
        self.damaged.retain(|slot| files.get(slot).is_some_and(|(_, there)| *there < CHUNKS));
        if let Some(slot) = self.disk.committed {
            assert!(
                self.is_whole(slot) || self.damaged.contains(&slot),
                "the committed slot {slot:?} is not whole: {:?}",
                self.disk
            );
        }
        if let Some(Some(slot)) = self.disk.on_trial() {
            assert!(
                self.is_whole(slot) || self.damaged.contains(&slot),
                "the slot on trial {slot:?} is not whole: {:?}",
                self.disk
            );
        }
        if let Some(update) = &self.disk.update {
            let state = self.disk.report(None).update.state;
            if let Some(ended) = self.ended.get(&update.generation) {
                // Another package may end what was committed.
                assert!(*ended == state || *ended == UpdateState::Committed, "{ended:?} became {state:?}");
            } else if state.is_final() {
                self.ended.insert(update.generation, state);
            }
        }
    }

    /// Starts the packaged program, as a service manager does until something runs.
    fn boot(&mut self) {
        for _ in 0..32 {
            let launch = launch(self.disk.clone(), &self.package);
            if let Some(record) = launch.record {
                if self.cut() {
                    continue;
                }
                self.disk = record;
                self.check();
            }
            if let Some(running) = self.disk.on_trial() {
                assert_eq!(launch.run, running);
                let generation = self.disk.update.as_ref().unwrap().generation;
                assert!(!self.ended.contains_key(&generation), "generation {generation} had ended");
                let (starts, given_back) = self.trial_starts.entry(generation).or_default();
                *starts += 1;
                assert!(*starts - *given_back <= MAX_STARTS, "generation {generation} was started {starts} times");
            } else {
                assert_eq!(launch.run, self.disk.committed);
            }
            let mut run = launch.run;
            for _ in Slot::ALL {
                let Some(slot) = run.filter(|slot| self.damaged.contains(slot)) else { break };
                let (record, instead) = could_not_start(self.disk.clone(), slot, "it is damaged");
                self.disk = record.unwrap_or_else(|| self.disk.clone());
                self.check();
                run = instead;
            }
            if run.is_some_and(|slot| self.crashing.contains(&self.disk.slots[&slot].manifest)) {
                assert!(self.disk.on_trial().is_some(), "a program that crashes at its start was committed");
                continue;
            }
            self.runs = run.map(|slot| self.disk.slots[&slot].manifest);
            self.process = Some(Machine::new(self.disk.clone(), run));
            self.take(Event::Started);
            if self.process.is_some() {
                return;
            }
        }
        panic!("nothing runs: {:?}", self.disk);
    }

    /// Whether the power is cut here.
    fn cut(&mut self) -> bool {
        match self.cut_after {
            Some(0) => {
                self.cut_after = None;
                true
            }
            Some(left) => {
                self.cut_after = Some(left - 1);
                false
            }
            None => false,
        }
    }

    /// Hands `event` over and carries out what follows; afterwards a process runs again unless this is within its start.
    fn take(&mut self, event: Event) {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(machine) = &mut self.process else { return };
            for effect in machine.handle(event, self.now_ms) {
                if self.cut() {
                    self.process = None;
                    return;
                }
                let machine = self.process.as_mut().unwrap();
                let running = machine.running();
                match effect {
                    Effect::Persist => {
                        self.disk = machine.record().clone();
                        self.check();
                    }
                    Effect::Tell => machine.told(usize::MAX),
                    Effect::PrepareSlot { slot, fresh } => {
                        assert!(Some(slot) != self.disk.committed && Some(slot) != running);
                        let manifest = machine.manifest(slot).unwrap();
                        if fresh {
                            self.files.insert(slot, (manifest, 0));
                        }
                    }
                    Effect::Fetch { slot, generation } => {
                        assert!(Some(slot) != self.disk.committed && Some(slot) != running);
                        let chunk = self.files[&slot].1;
                        self.files.get_mut(&slot).unwrap().1 += 1;
                        events.push_back(Event::ChunksDurable { generation, chunks: vec![chunk] });
                    }
                    Effect::CheckFile { slot, generation } => {
                        let right = self.files.get(&slot) == Some(&(machine.manifest(slot).unwrap(), CHUNKS));
                        let lost = FileDamage { chunks: vec![0, 1, 2], reason: "damaged".into() };
                        if !right {
                            self.files.insert(slot, (machine.manifest(slot).unwrap(), 0));
                        }
                        events.push_back(Event::FileChecked { generation, result: right.then_some(()).ok_or(lost) });
                    }
                    Effect::Rehearse { generation, .. } => {
                        events.push_back(Event::Rehearsed { generation, result: Ok(()) });
                    }
                    Effect::Restart => {
                        self.process = None;
                        return;
                    }
                    Effect::StoreManifest(slot) => {
                        assert!(Some(slot) != self.disk.committed || self.damaged.contains(&slot));
                    }
                    Effect::Report => {
                        let said = machine.report().running.map(|bundle| bundle.manifest);
                        assert_eq!(said, self.runs, "it says that another program runs");
                    }
                    Effect::Refuse { .. } | Effect::StopFetching => {}
                }
            }
            // One chunk after another, as far as there are any.
            if let Some(machine) = &self.process
                && let Some(Phase::Fetching { slot, .. }) = machine.record().update.as_ref().map(|u| u.phase.clone())
                && events.is_empty()
                && !machine.record().holds_whole(slot)
                && let Some((_, there)) = self.files.get_mut(&slot).filter(|(_, there)| *there < CHUNKS)
            {
                *there += 1;
                let (generation, chunks) = (machine.record().generation, (0..*there).collect());
                events.push_back(Event::ChunksDurable { generation, chunks });
            }
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Offer(name) => {
                let generation = self.process.as_ref().unwrap().record().generation + 1;
                self.take(Event::Offered(Box::new(offer(generation, name.map(offered)))));
            }
            Action::Repeat => {
                let record = self.process.as_ref().unwrap().record();
                let (generation, manifest) = (record.generation, record.update.as_ref().and_then(|u| u.manifest));
                let name = (0..4).find(|name| Some(self::manifest(*name)) == manifest);
                if generation > 0 {
                    self.take(Event::Offered(Box::new(offer(generation, name.map(offered)))));
                }
            }
            Action::Time { well, ms } => {
                let vitals = if *well { WELL } else { Vitals { linked: false, ..WELL } };
                for _ in 0..2 {
                    self.now_ms += ms;
                    self.take(Event::Tick(vitals));
                }
            }
            Action::Crashes(name) => _ = self.crashing.insert(manifest(*name)),
            Action::Stop => {
                let machine = self.process.as_ref().unwrap();
                if machine.is_watching() {
                    let generation = machine.record().generation;
                    self.trial_starts.entry(generation).or_default().1 += 1;
                }
                self.take(Event::Stopping);
                self.process = None;
            }
            Action::Power { after: 0 } => self.process = None,
            Action::Power { after } => self.cut_after = Some(*after),
            Action::Damage(slot) => {
                // A program that runs stays as it was: a file is not written under it.
                if self.process.as_ref().unwrap().running() != Some(*slot)
                    && let Some((_, there @ CHUNKS)) = self.files.get_mut(slot)
                {
                    *there = 0;
                    self.damaged.insert(*slot);
                }
            }
            Action::Package(minor) => {
                self.package = version(*minor);
                self.process = None;
            }
        }
        if self.process.is_none() {
            self.boot();
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Offer(Option<u8>),
    Repeat,
    Time { well: bool, ms: u64 },
    Crashes(u8),
    Stop,
    Power { after: usize },
    Damage(Slot),
    Package(u64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => prop::option::weighted(0.8, 0u8..4).prop_map(Action::Offer),
        1 => Just(Action::Repeat),
        4 => (any::<bool>(), 1u64..DEADLINE_MS).prop_map(|(well, ms)| Action::Time { well, ms }),
        1 => Just(Action::Stop),
        4 => (0usize..30).prop_map(|after| Action::Power { after }),
        1 => prop::sample::select(Slot::ALL.as_slice()).prop_map(Action::Damage),
        1 => (1u64..3).prop_map(Action::Package),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_whole_program_runs_and_none_is_tried_twice(
        crashing in prop::collection::vec(0u8..4, 0..3),
        actions in prop::collection::vec(action(), 1..60),
    ) {
        let mut world = World::new();
        crashing.into_iter().for_each(|name| world.act(&Action::Crashes(name)));
        for action in &actions {
            world.act(action);
            prop_assert!(world.process.is_some());
        }
    }

    #[test]
    fn any_bytes_are_a_record_or_none(bytes: Vec<u8>) {
        let _ = Record::from_json(&bytes);
    }
}

fn state(world: &World) -> (UpdateState, Option<Slot>, Option<String>) {
    let machine = world.process.as_ref().unwrap();
    let report = machine.report();
    (report.update.state, machine.running(), report.update.reason)
}

#[test]
fn a_good_program_is_committed_after_its_probation_and_gone_back_from_without_fetching() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    assert_eq!(state(&world), (UpdateState::Trial, Some(Slot::A), None));
    // Not a moment before.
    world.take(Event::Tick(WELL));
    world.now_ms += PROBATION_MS - 1;
    world.take(Event::Tick(WELL));
    assert_eq!(state(&world).0, UpdateState::Trial);
    world.now_ms += 1;
    world.take(Event::Tick(WELL));
    assert_eq!(state(&world), (UpdateState::Committed, Some(Slot::A), None));
    world.act(&Action::Offer(Some(3)));
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    assert_eq!(state(&world), (UpdateState::Committed, Some(Slot::B), None));
    let files = world.files.clone();
    for (name, slot) in [(Some(2), Some(Slot::A)), (None, None), (Some(3), Some(Slot::B))] {
        world.act(&Action::Offer(name));
        world.act(&Action::Time { well: true, ms: PROBATION_MS });
        assert_eq!(state(&world), (UpdateState::Committed, slot, None), "{name:?}");
        assert_eq!(world.files, files, "nothing was fetched");
    }
}

#[test]
fn a_program_that_crashes_at_its_start_is_tried_three_times_and_never_again() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    world.act(&Action::Crashes(3));
    world.act(&Action::Offer(Some(3)));
    let (update, running, reason) = state(&world);
    assert_eq!((update, running), (UpdateState::Reverted, Some(Slot::A)));
    assert!(reason.unwrap().contains("3 starts of this program ended"));
    assert_eq!(world.trial_starts[&2].0, 3);
    world.act(&Action::Repeat);
    world.act(&Action::Power { after: 0 });
    assert_eq!(world.trial_starts[&2].0, 3);
    assert_eq!(state(&world).0, UpdateState::Reverted);
}

#[test]
fn silence_never_promotes_and_the_reason_says_what_was_missing() {
    for (vitals, says) in [
        (Vitals { linked: false, ..WELL }, "no link to the broker"),
        (Vitals { acknowledged: false, ..WELL }, "acknowledged nothing"),
        (Vitals { serves: false, ..WELL }, "does not answer"),
        (Vitals { memory_bytes: Some(101), ..WELL }, "it takes 101 bytes of memory, its manifest allows 100"),
    ] {
        let mut world = World::new();
        world.act(&Action::Offer(Some(2)));
        let began_ms = world.now_ms;
        while world.process.as_ref().is_some_and(Machine::is_watching) {
            world.now_ms += 500;
            world.take(Event::Tick(vitals));
            assert!(world.now_ms - began_ms <= DEADLINE_MS);
        }
        world.boot();
        let (update, running, reason) = state(&world);
        assert_eq!((update, running), (UpdateState::Reverted, None));
        assert!(reason.as_ref().unwrap().contains(says), "{reason:?}");
    }
}

#[test]
fn a_stop_in_order_gives_the_start_back_and_the_time_still_counts() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    for _ in 0..9 {
        world.now_ms += 1_000;
        world.take(Event::Tick(Vitals::default()));
        world.act(&Action::Stop);
        assert_eq!(state(&world).0, UpdateState::Trial);
    }
    world.now_ms += 1_000;
    world.take(Event::Tick(Vitals::default()));
    world.boot();
    assert_eq!(state(&world).0, UpdateState::Reverted);
}

#[test]
fn another_package_wins() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    world.act(&Action::Package(2));
    let (update, running, reason) = state(&world);
    assert_eq!((update, running), (UpdateState::Failed, None));
    assert!(reason.unwrap().contains("package 0.2.0 was installed over 0.1.0"));
    world.act(&Action::Power { after: 0 });
    assert_eq!(state(&world).1, None);
}

#[test]
fn what_cannot_be_started_gives_way_at_once() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    let (record, run) = could_not_start(world.disk.clone(), Slot::A, "Exec format error");
    let reason = record.unwrap().report(None).update.reason.unwrap();
    assert!(run.is_none() && reason.contains("Exec format error"), "{reason}");
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    assert_eq!(could_not_start(world.disk.clone(), Slot::A, "not mounted"), (None, None), "it may be there again");
}

#[test]
fn a_committed_program_whose_file_is_damaged_is_brought_up_anew_when_it_is_asked_for() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    assert_eq!(state(&world), (UpdateState::Committed, Some(Slot::A), None));
    world.files.insert(Slot::A, (manifest(2), 0));
    world.damaged.insert(Slot::A);
    world.act(&Action::Power { after: 0 });
    assert_eq!(state(&world), (UpdateState::Committed, None, None), "the package runs in its place");
    world.act(&Action::Offer(Some(2)));
    assert_eq!(state(&world), (UpdateState::Trial, Some(Slot::A), None));
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    assert_eq!(state(&world), (UpdateState::Committed, Some(Slot::A), None));
}

#[test]
fn who_is_told_to_keep_what_is_committed_leaves_the_package_it_tries() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    world.act(&Action::Time { well: true, ms: PROBATION_MS });
    world.act(&Action::Offer(None));
    assert_eq!(state(&world), (UpdateState::Trial, None, None));
    world.act(&Action::Offer(Some(2)));
    assert_eq!(state(&world), (UpdateState::Committed, Some(Slot::A), None));
}

#[test]
fn what_does_not_suit_the_device_is_refused_with_the_reason() {
    for (spoil, says) in [
        ((|o| o.device.arch = "armv7".into()) as fn(&mut Offer), "is for aarch64, this device is armv7"),
        (|o| o.device.now_ms = 1_000, "expired"),
        (|o| o.device.memory_bytes = 0, "needs 1 bytes of memory"),
        (|o| o.device.agent_version = version(0), "takes over from muster-agent 0.1.0"),
        (|o| o.device.disk_free_bytes = 5, "bytes of disk"),
    ] {
        let mut machine = Machine::new(Record::new(version(1)), None);
        let mut offer = offer(1, Some(offered(2)));
        spoil(&mut offer);
        let effects = machine.handle(Event::Offered(Box::new(offer)), 0);
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. })), "{effects:?}");
        let update = machine.report().update;
        assert!(update.refused && update.reason.as_ref().unwrap().contains(says), "{update:?}");
    }
}

#[test]
fn a_lost_or_earlier_record_lets_nothing_older_in() {
    let barrier = |generation, security_floor| Barrier { generation, director_epoch: 1, security_floor };
    let lost = Record::recovered(version(1), barrier(7, 3));
    assert_eq!((lost.generation, lost.director_epoch, lost.security_floor, lost.committed), (6, 1, 3, None));
    let mut have = ChunkSet::empty(CHUNKS);
    (0..CHUNKS).for_each(|chunk| _ = have.insert(chunk));
    let content = Content { have, ..offered(2).content };
    let trial = Phase::Trial { slot: Some(Slot::A), starts_left: 2, waited_ms: 0 };
    let mut earlier = Record { generation: 4, director_epoch: 1, security_floor: 1, ..Record::new(version(1)) };
    earlier.slots.insert(Slot::A, content);
    earlier.committed = Some(Slot::A);
    earlier.committed_generation = 4;
    // It knows nothing of a later assignment: that one is taken again. What it holds may run, with release counter 2.
    let held = earlier.clone().held_to(barrier(9, 2));
    assert_eq!(held, Record { generation: 8, security_floor: 2, ..earlier.clone() });
    assert_eq!(launch(held, &version(1)).run, Some(Slot::A));
    assert_eq!(earlier.clone().held_to(barrier(4, 1)), earlier, "it is not behind");
    // Below the floor it runs no more, committed or on trial.
    assert_eq!(launch(earlier.clone().held_to(barrier(9, 3)), &version(1)).run, None);
    let Update { generation, rollout, .. } = {
        let mut machine = Machine::new(Record::new(version(1)), None);
        drop(machine.handle(Event::Offered(Box::new(offer(5, Some(offered(2))))), 0));
        machine.record().update.clone().unwrap()
    };
    let update = Update {
        generation,
        rollout,
        manifest: Some(manifest(2)),
        bundle: None,
        probation_ms: 1,
        delivery: Default::default(),
        phase: trial,
    };
    let tried = Record { committed: None, update: Some(update), ..earlier };
    assert_eq!(launch(tried.clone().held_to(barrier(9, 2)), &version(1)).run, Some(Slot::A));
    assert_eq!(launch(tried.held_to(barrier(9, 3)), &version(1)).run, None);
}

#[test]
fn an_older_program_reads_what_a_newer_one_wrote() {
    let mut world = World::new();
    world.act(&Action::Offer(Some(2)));
    let mut json: serde_json::Value = serde_json::from_slice(&world.disk.to_json().unwrap()).unwrap();
    json["more"] = true.into();
    json["update"]["delivery"] = serde_json::json!({"a-later": "word"});
    json["slots"]["a"]["more"] = 1.into();
    world.disk.note(DeviceEventKind::Assigned, "words");
    let told = serde_json::to_value(&world.disk.untold).unwrap();
    json["untold"] = told;
    let last = json["untold"].as_array_mut().unwrap();
    last.last_mut().unwrap()["more"] = serde_json::json!({"a": 1});
    // Of a kind that this program does not know, and of a form that it does not.
    last.push(serde_json::json!({"kind": "hibernated", "generation": 3, "since": 1}));
    last.push(serde_json::json!(["later"]));
    let other = Untold { kind: DeviceEventKind::Other, generation: 3, bundle: None, detail: String::new() };
    world.disk.untold.push(other);
    let read = |json: &serde_json::Value| Record::from_json(json.to_string().as_bytes());
    assert_eq!(read(&json).unwrap(), world.disk);
    json["update"]["phase"] = serde_json::json!({"state": "hibernating", "for": 3});
    assert_eq!(launch(read(&json).unwrap(), &version(1)).run, None);
    json["format"] = 2.into();
    assert_eq!(read(&json), Err(RecordError::Format(2)));
}
