//! The program's track: how the agent comes to run another program than the one its package installed, and back.
//!
//! `fetching → verified → trial → committed | reverted | failed`, with two slots of its own and the package as a third place that nothing here
//! can damage. What a model does in one process a program does over several: it is fetched and tried apart by the old one, which then ends;
//! [`launch()`] decides at the next start which program runs; and the new one judges itself by what it can do ([`Vitals`]). A program
//! that is not committed by then gives way to the committed one, once and for good under its generation.
//!
//! As in [`crate::update`], effects are carried out in order, [`Effect::Persist`] stands before everything that rests on it, and every effect
//! may be carried out twice.

mod admit;
mod health;
mod launch;
mod record;

use muster_shared::ids::{BundleRef, Digest};
use muster_shared::limits::bounded_text;
use muster_shared::messages::{DeviceEventKind, InstalledBundle, TrackReport};

use self::admit::{Admission, admit, target_slot};
pub use self::admit::{Offer, OfferedProgram};
pub use self::health::Vitals;
use self::health::{Verdict, Watch};
pub use self::launch::{Launch, could_not_start, launch};
pub use self::record::{Content, MAX_STARTS, Phase, Record, RecordError, Update};
use crate::record::{MAX_REPAIRS, MAX_TRIES};
use crate::slots::Slot;
use crate::update::FileDamage;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The process started.
    Started,
    /// A verified assignment came.
    Offered(Box<Offer>),
    /// Chunks are durable.
    ChunksDurable {
        /// The update's generation.
        generation: u64,
        /// Which.
        chunks: Vec<u32>,
    },
    /// Chunks the record counts as durable are not there.
    ChunksLost {
        /// The update's generation.
        generation: u64,
        /// Which.
        chunks: Vec<u32>,
    },
    /// The answer to [`Effect::CheckFile`].
    FileChecked {
        /// The update's generation.
        generation: u64,
        /// Fine, or the damage found.
        result: Result<(), FileDamage>,
    },
    /// The answer to [`Effect::Rehearse`].
    Rehearsed {
        /// The update's generation.
        generation: u64,
        /// Fine, or why it must not be started.
        result: Result<(), String>,
    },
    /// Time has passed; how the agent does.
    Tick(Vitals),
    /// The update cannot go on.
    Obstructed {
        /// The update's generation.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// The process is about to end in order.
    Stopping,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make the manifest that came with the offer durable, as that of this slot.
    StoreManifest(Slot),
    /// Make [`Machine::record`] durable.
    Persist,
    /// Put what [`Record::untold`] lists into the outbox, forget it ([`Machine::told`]) and persist once more.
    Tell,
    /// Report the state.
    Report,
    /// Tell about an offer treated as if it had not come.
    Refuse {
        /// Its generation.
        generation: u64,
        /// What it brought.
        bundle: Option<BundleRef>,
        /// Why.
        reason: String,
    },
    /// Make the slot's folder ready: empty and reserved when `fresh`, and otherwise as it is, answering with [`Event::ChunksLost`].
    PrepareSlot {
        /// Which.
        slot: Slot,
        /// Whether nothing in it counts.
        fresh: bool,
    },
    /// Fetch what [`Content::have`] lacks.
    Fetch {
        /// Into which slot.
        slot: Slot,
        /// The update's generation.
        generation: u64,
    },
    /// Fetch no more.
    StopFetching,
    /// Hold the slot's file against its manifest and make it executable.
    CheckFile {
        /// Which.
        slot: Slot,
        /// The update's generation.
        generation: u64,
    },
    /// Ask the slot's program for its version and whether it can take the present configuration.
    Rehearse {
        /// Which.
        slot: Slot,
        /// The update's generation.
        generation: u64,
    },
    /// End in order and start again: another program is to run.
    Restart,
}

/// The machine of the program's track.
#[derive(Debug, Clone)]
pub struct Machine {
    record: Record,
    /// Where the program that runs is; none for what the package installed.
    running: Option<Slot>,
    /// What that is, whatever its slot is to hold next.
    runs: Option<InstalledBundle>,
    /// This process was started to try its program.
    is_tried: bool,
    /// The trial of the program that runs.
    watch: Option<Watch>,
}

impl Machine {
    /// The machine as the record left it, in a process of the program `running`. [`Event::Started`] must be the first event.
    #[must_use]
    pub fn new(record: Record, running: Option<Slot>) -> Self {
        let runs = record.report(running).running;
        Self { record, running, runs, is_tried: false, watch: None }
    }

    /// What has to survive a crash.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What the controller is told.
    #[must_use]
    pub fn report(&self) -> TrackReport {
        let mut report = self.record.report(self.running);
        let manifest = |bundle: &Option<InstalledBundle>| bundle.as_ref().map(|bundle| bundle.manifest);
        if manifest(&report.running) != manifest(&self.runs) {
            report.running.clone_from(&self.runs);
        }
        report
    }

    /// Where the program that runs is; none for what the package installed.
    #[must_use]
    pub fn running(&self) -> Option<Slot> {
        self.running
    }

    /// Whether [`Event::Tick`] is wanted.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.watch.is_some()
    }

    /// The first `count` of what [`Record::untold`] lists have reached the outbox.
    pub fn told(&mut self, count: usize) {
        self.record.untold.drain(..count.min(self.record.untold.len()));
    }

    /// Takes what happened at `now_ms` (of a clock that does not jump) and says what is to be done.
    #[must_use]
    pub fn handle(&mut self, event: Event, now_ms: u64) -> Vec<Effect> {
        match event {
            Event::Started => self.start(now_ms),
            Event::Offered(offer) => self.offered(*offer),
            Event::ChunksDurable { generation, chunks } => self.chunks(generation, &chunks, true),
            Event::ChunksLost { generation, chunks } => self.chunks(generation, &chunks, false),
            Event::FileChecked { generation, result } => self.checked(generation, result),
            Event::Rehearsed { generation, result } => self.rehearsed(generation, result),
            Event::Tick(vitals) => self.tick(&vitals, now_ms),
            Event::Obstructed { generation, reason } => match self.phase_of(generation) {
                Some(Phase::Fetching { .. } | Phase::Verified { .. }) => self.fail(&reason, false),
                Some(
                    Phase::Trial { .. }
                    | Phase::Committed
                    | Phase::Reverted { .. }
                    | Phase::Failed { .. }
                    | Phase::Unknown,
                )
                | None => Vec::new(),
            },
            Event::Stopping => self.stopping(now_ms),
        }
    }

    fn phase_of(&self, generation: u64) -> Option<&Phase> {
        self.record.update.as_ref().filter(|update| update.generation == generation).map(|update| &update.phase)
    }

    fn generation(&self) -> u64 {
        self.record.update.as_ref().map_or(0, |update| update.generation)
    }

    fn set_phase(&mut self, phase: Phase) {
        if let Some(update) = &mut self.record.update {
            update.phase = phase;
        }
    }

    fn start(&mut self, now_ms: u64) -> Vec<Effect> {
        let phase = self.record.update.as_ref().map(|update| update.phase.clone());
        match phase {
            Some(Phase::Trial { slot, .. }) if slot == self.running => {
                self.is_tried = true;
                self.watch = Some(Watch::begin(now_ms));
                vec![Effect::Tell, Effect::Report]
            }
            Some(Phase::Trial { .. }) => {
                self.record.revert("it could not be started");
                let mut effects = vec![Effect::Persist, Effect::Tell, Effect::Report];
                effects.extend(self.leave());
                effects
            }
            Some(Phase::Fetching { slot, .. }) => {
                let mut effects = vec![Effect::Tell];
                effects.extend(self.fetch_into(slot));
                effects
            }
            Some(Phase::Verified { slot, tries_left }) => self.rehearse(slot, tries_left),
            Some(Phase::Committed | Phase::Reverted { .. } | Phase::Failed { .. } | Phase::Unknown) | None => {
                vec![Effect::Tell]
            }
        }
    }

    /// Starts again where the program that runs was on trial and is not the committed one.
    fn leave(&self) -> Option<Effect> {
        let is_left = (self.running.is_some() || self.is_tried) && self.running != self.record.committed;
        is_left.then_some(Effect::Restart)
    }

    /// Whether the committed program could not be started, so that the package runs in its place. It is not tried in a circle, but brought
    /// up anew where it is asked for.
    fn is_committed_missing(&self) -> bool {
        self.running != self.record.committed && !self.is_tried
    }

    fn offered(&mut self, offer: Offer) -> Vec<Effect> {
        let assignment = &offer.assignment;
        let bundle = offer.program.as_ref().map(|program| program.content.bundle.clone());
        let admission = match admit(&self.record, &offer) {
            Ok(admission) => admission,
            Err(refusal) => {
                let generation = assignment.generation;
                return vec![Effect::Refuse { generation, bundle, reason: refusal.to_string() }];
            }
        };
        let epoch = self.record.director_epoch.max(offer.director_epoch);
        let begins = std::mem::replace(&mut self.record.director_epoch, epoch) < epoch;
        if admission == Admission::Refresh {
            return if begins { vec![Effect::Persist, Effect::Report] } else { vec![Effect::Report] };
        }
        self.watch = None;
        self.record.generation = assignment.generation;
        self.record.update = Some(Update {
            generation: assignment.generation,
            rollout: assignment.rollout.clone(),
            manifest: assignment.manifest,
            bundle,
            probation_ms: assignment.watch.probation_ms,
            delivery: assignment.delivery,
            phase: Phase::Committed,
        });
        if let Admission::Unsuitable(reason) = admission {
            return self.fail(&reason, true);
        }
        let Some(program) = offer.program else {
            return match self.record.committed {
                Some(_) => self.begin_trial(None),
                None => self.keep_committed(),
            };
        };
        let manifest = program.content.manifest;
        if self.record.committed.is_some() && self.record.committed == self.record.holding(&manifest) {
            if !self.is_committed_missing() {
                return self.keep_committed();
            }
            // What is there of its file is checked, and the rest fetched; meanwhile the package is what to fall back to.
            self.record.committed = None;
            self.record.committed_generation = 0;
        }
        let slot = target_slot(&self.record, &manifest);
        if self.record.slots.get(&slot).is_none_or(|content| content.manifest != manifest) {
            self.record.slots.insert(slot, program.content);
        }
        self.set_phase(Phase::Fetching { slot, repairs: 0 });
        self.record.note(DeviceEventKind::Assigned, "");
        let mut effects =
            vec![Effect::StopFetching, Effect::StoreManifest(slot), Effect::Persist, Effect::Tell, Effect::Report];
        match self.leave() {
            // The program that runs was on trial and is not any more; the committed one goes on with this.
            Some(restart) => effects.push(restart),
            None => effects.extend(self.fetch_into(slot)),
        }
        effects
    }

    /// What is asked for is committed: only the generation changes.
    fn keep_committed(&mut self) -> Vec<Effect> {
        self.record.committed_generation = self.generation();
        self.record.end(Phase::Committed, DeviceEventKind::Committed, "it was running already");
        let mut effects = vec![Effect::StopFetching, Effect::Persist, Effect::Tell, Effect::Report];
        effects.extend(self.leave());
        effects
    }

    fn fetch_into(&self, slot: Slot) -> [Effect; 2] {
        let fresh = self.record.slots.get(&slot).is_none_or(|content| content.have.count() == 0);
        [Effect::PrepareSlot { slot, fresh }, self.fetch_or_check(slot)]
    }

    fn fetch_or_check(&self, slot: Slot) -> Effect {
        let generation = self.generation();
        if self.record.holds_whole(slot) {
            Effect::CheckFile { slot, generation }
        } else {
            Effect::Fetch { slot, generation }
        }
    }

    fn chunks(&mut self, generation: u64, chunks: &[u32], are_there: bool) -> Vec<Effect> {
        let Some(Phase::Fetching { slot, .. }) = self.phase_of(generation).cloned() else { return Vec::new() };
        let Some(content) = self.record.slots.get_mut(&slot) else { return Vec::new() };
        for chunk in chunks {
            if are_there {
                content.have.insert(*chunk)
            } else {
                content.have.remove(*chunk)
            };
        }
        let full = content.have.is_full();
        match (are_there, full) {
            (true, false) => vec![Effect::Persist],
            (true, true) => {
                vec![Effect::Persist, Effect::StopFetching, Effect::Report, Effect::CheckFile { slot, generation }]
            }
            (false, _) => vec![Effect::Persist, self.fetch_or_check(slot)],
        }
    }

    fn checked(&mut self, generation: u64, result: Result<(), FileDamage>) -> Vec<Effect> {
        let Some(Phase::Fetching { slot, repairs }) = self.phase_of(generation).cloned() else { return Vec::new() };
        match result {
            Ok(()) => {
                self.record.note(DeviceEventKind::Verified, "");
                self.rehearse(slot, MAX_TRIES)
            }
            Err(damage) if damage.chunks.is_empty() || repairs >= MAX_REPAIRS => self.fail(&damage.reason, false),
            Err(damage) => {
                self.set_phase(Phase::Fetching { slot, repairs: repairs + 1 });
                self.chunks(generation, &damage.chunks, false)
            }
        }
    }

    /// Spends a try of running the program apart, durably, before it can do harm.
    fn rehearse(&mut self, slot: Slot, tries_left: u32) -> Vec<Effect> {
        let Some(tries_left) = tries_left.checked_sub(1) else {
            return self.fail(&format!("the agent did not survive trying this program {MAX_TRIES} times"), false);
        };
        self.set_phase(Phase::Verified { slot, tries_left });
        let generation = self.generation();
        vec![Effect::Persist, Effect::Tell, Effect::Report, Effect::Rehearse { slot, generation }]
    }

    fn rehearsed(&mut self, generation: u64, result: Result<(), String>) -> Vec<Effect> {
        let Some(Phase::Verified { slot, .. }) = self.phase_of(generation).cloned() else { return Vec::new() };
        match result {
            Ok(()) => self.begin_trial(Some(slot)),
            Err(reason) => self.fail(&reason, false),
        }
    }

    fn begin_trial(&mut self, slot: Option<Slot>) -> Vec<Effect> {
        self.set_phase(Phase::Trial { slot, starts_left: MAX_STARTS, waited_ms: 0 });
        self.record.note(DeviceEventKind::Trial, "the agent starts again with it");
        vec![Effect::StopFetching, Effect::Persist, Effect::Tell, Effect::Report, Effect::Restart]
    }

    fn fail(&mut self, reason: &str, refused: bool) -> Vec<Effect> {
        let reason = bounded_text(reason);
        self.record.end(Phase::Failed { reason: reason.clone(), refused }, DeviceEventKind::Failed, &reason);
        let mut effects = vec![Effect::StopFetching, Effect::Persist, Effect::Tell, Effect::Report];
        effects.extend(self.leave());
        effects
    }

    fn tick(&mut self, vitals: &Vitals, now_ms: u64) -> Vec<Effect> {
        let (Some(watch), Some(update)) = (&mut self.watch, &self.record.update) else { return Vec::new() };
        let Phase::Trial { slot, waited_ms, .. } = update.phase else { return Vec::new() };
        let most_bytes = slot.and_then(|slot| self.record.slots.get(&slot)).and_then(|c| c.max_memory_bytes);
        match watch.judge(vitals, update.probation_ms, waited_ms, most_bytes, now_ms) {
            Verdict::Wait => Vec::new(),
            Verdict::Passed => {
                self.watch = None;
                self.record.committed = slot;
                self.record.committed_generation = self.generation();
                let floor = slot.and_then(|slot| self.record.slots.get(&slot)).map_or(0, |c| c.security_floor);
                self.record.security_floor = self.record.security_floor.max(floor);
                self.record.end(Phase::Committed, DeviceEventKind::Committed, "after probation");
                vec![Effect::Persist, Effect::Tell, Effect::Report]
            }
            Verdict::Failed(reason) => {
                self.watch = None;
                self.record.revert(&reason);
                vec![Effect::Persist, Effect::Tell, Effect::Report, Effect::Restart]
            }
        }
    }

    /// A stop in order is no sign against the program: the start is given back, and the time waited counts.
    fn stopping(&mut self, now_ms: u64) -> Vec<Effect> {
        let since_ms = self.watch.take().map(|watch| watch.since_ms);
        let Some(update) = &mut self.record.update else { return Vec::new() };
        match &mut update.phase {
            Phase::Verified { tries_left, .. } => *tries_left = (*tries_left + 1).min(MAX_TRIES),
            Phase::Trial { starts_left, waited_ms, .. } => {
                let Some(since_ms) = since_ms else { return Vec::new() };
                *starts_left = (*starts_left + 1).min(MAX_STARTS);
                *waited_ms = waited_ms.saturating_add(now_ms.saturating_sub(since_ms));
            }
            Phase::Fetching { .. }
            | Phase::Committed
            | Phase::Reverted { .. }
            | Phase::Failed { .. }
            | Phase::Unknown => return Vec::new(),
        }
        vec![Effect::Persist]
    }

    /// The digest of the manifest of what `slot` holds.
    #[must_use]
    pub fn manifest(&self, slot: Slot) -> Option<Digest> {
        self.record.slots.get(&slot).map(|content| content.manifest)
    }
}

#[cfg(test)]
mod tests;
