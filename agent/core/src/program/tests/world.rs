//! A device as the tests of its program have it: its disk, its power, and a process that what is told reaches.

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::bundle::Requirements;
use muster_shared::chunk::ChunkSet;
use muster_shared::messages::UpdateState;
use muster_shared::trust::{Assignment, Track, WatchPolicy};
use proptest::prelude::*;

use super::*;
use crate::admit::DeviceFacts;

pub(super) const CHUNKS: u32 = 3;
pub(super) const PROBATION_MS: u64 = 1_000;
/// The longest time a program has to begin its good probation.
pub(super) const DEADLINE_MS: u64 = 10_000;
pub(super) const WELL: Vitals = Vitals { serves: true, linked: true, acknowledged: true, memory_bytes: Some(50) };

pub(super) fn version(minor: u64) -> semver::Version {
    semver::Version::new(0, minor, 0)
}

pub(super) fn manifest(name: u8) -> Digest {
    Digest::of(&[name])
}

pub(super) fn offered(name: u8) -> OfferedProgram {
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

pub(super) fn offer(generation: u64, program: Option<OfferedProgram>) -> Offer {
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
pub(super) struct World {
    pub(super) disk: Record,
    pub(super) package: semver::Version,
    pub(super) process: Option<Machine>,
    pub(super) now_ms: u64,
    /// Effects that wait for the power to be cut before one of them.
    pub(super) cut_after: Option<usize>,
    /// What the files of the slots hold: written by fetching, whatever the record says.
    pub(super) files: BTreeMap<Slot, (Digest, u32)>,
    /// Slots whose file was damaged after it was found right.
    pub(super) damaged: BTreeSet<Slot>,
    /// The manifest of the program that runs; none for the package's.
    pub(super) runs: Option<Digest>,
    /// Programs that crash at the start.
    pub(super) crashing: BTreeSet<Digest>,
    /// Starts on trial by generation, and how many of them were given back by a stop in order.
    pub(super) trial_starts: BTreeMap<u64, (u32, u32)>,
    /// Generations that have ended, for good.
    pub(super) ended: BTreeMap<u64, UpdateState>,
}

impl World {
    pub(super) fn new() -> Self {
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
    pub(super) fn is_whole(&self, slot: Slot) -> bool {
        self.disk.slots.get(&slot).is_some_and(|c| self.files.get(&slot) == Some(&(c.manifest, CHUNKS)))
    }

    pub(super) fn check(&mut self) {
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
    pub(super) fn boot(&mut self) {
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
    pub(super) fn cut(&mut self) -> bool {
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
    pub(super) fn take(&mut self, event: Event) {
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

    pub(super) fn act(&mut self, action: &Action) {
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
pub(super) enum Action {
    Offer(Option<u8>),
    Repeat,
    Time { well: bool, ms: u64 },
    Crashes(u8),
    Stop,
    Power { after: usize },
    Damage(Slot),
    Package(u64),
}

pub(super) fn action() -> impl Strategy<Value = Action> {
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
