//! The update machine: `idle → fetching → verified → trial → committed | reverted | failed`, or `verified → beside` for a bundle that is
//! to run beside the incumbent. Where the assignment says so, what is verified waits before it takes its part.
//!
//! [`Machine::handle`] takes what happened and answers with effects, to be carried out in order; an effect that fails
//! ends its list. [`Effect::Persist`] stands before everything that rests on what was decided, so at whatever point the
//! process dies, starting again from the last record written leads on: every effect may be carried out twice. Only the bundle
//! a start serves comes before that, so that a disk that takes nothing does not keep it from serving: the next start would
//! decide the same.
//!
//! Times given here are of a clock that does not jump, as durations are all that is asked of it. Whether a document is
//! in date is decided by [`crate::admit`], and whether bytes and signatures are right by whoever carries effects out.

mod assignment;
mod beside;
mod fetching;
mod hold;
mod startup;
mod trial;

use std::collections::BTreeSet;

use muster_shared::ids::{BundleRef, Digest};
use muster_shared::limits::bounded_text;
use muster_shared::messages::{DeviceEventKind, RequestCounts};

pub(crate) use self::assignment::target_slot;
use crate::admit::Offer;
use crate::record::{Phase, Record, Untold};
use crate::slots::{Pointer, Slot};

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The process started with this record.
    Started,
    /// The committed bundle was loaded: the answer to [`Effect::LoadCommitted`].
    CommittedLoaded,
    /// The committed bundle cannot be loaded: the other answer.
    CommittedUnusable {
        /// Why.
        reason: String,
        /// Chunks whose bytes are no longer right; empty when the bytes are not to blame.
        damaged: Vec<u32>,
    },
    /// The manifest of the committed bundle is not there, or not what it was: a third answer.
    CommittedManifestLost {
        /// What is the matter with it.
        reason: String,
    },
    /// A verified assignment came.
    Offered(Box<Offer>),
    /// Chunks of the update are durable.
    ChunksDurable {
        /// The update's generation.
        generation: u64,
        /// Which chunks.
        chunks: Vec<u32>,
    },
    /// Chunks the record counts as durable are not there.
    ChunksLost {
        /// The update's generation.
        generation: u64,
        /// Which chunks.
        chunks: Vec<u32>,
    },
    /// The update's files were checked against the manifest: the answer to [`Effect::CheckFiles`].
    FilesChecked {
        /// The update's generation.
        generation: u64,
        /// Fine, or the damage found.
        result: Result<(), FileDamage>,
    },
    /// The update's model was loaded and tested: the answer to [`Effect::Test`].
    Tested {
        /// The update's generation.
        generation: u64,
        /// Fine, or why it must not serve.
        result: Result<(), String>,
    },
    /// The time that [`Machine::switch_at`] gave has come, by a clock that can be believed.
    Due {
        /// The update's generation.
        generation: u64,
    },
    /// The update cannot go on: a disk that is full, a source that sends rubbish.
    Obstructed {
        /// The update's generation.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// Time has passed; what the model on trial has done since it was activated.
    Tick {
        /// Its requests.
        counts: RequestCounts,
    },
    /// The process is about to end in order.
    Stopping,
}

/// What is wrong with files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDamage {
    /// Chunks whose bytes are not right; empty when fetching again would not help.
    pub chunks: Vec<u32>,
    /// What was found.
    pub reason: String,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make the manifest that came with the offer durable, by its digest.
    StoreManifest(Digest),
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
        /// Why it is refused.
        reason: String,
    },
    /// Make the slot's folder ready for its bundle: empty and reserved when `fresh`, and otherwise as it is, answering
    /// with [`Event::ChunksLost`] for what is missing.
    PrepareSlot {
        /// Which.
        slot: Slot,
        /// Whether nothing in it counts.
        fresh: bool,
    },
    /// Fetch what [`crate::slots::SlotContent::have`] lacks.
    Fetch {
        /// Into which slot.
        slot: Slot,
        /// The update's generation.
        generation: u64,
    },
    /// Fetch no more.
    StopFetching,
    /// Hold the slot's files against its manifest; [`Event::FilesChecked`] answers.
    CheckFiles {
        /// Which.
        slot: Slot,
        /// The update's generation.
        generation: u64,
    },
    /// Load the slot's model and run its golden examples; [`Event::Tested`] answers.
    Test {
        /// Which.
        slot: Slot,
        /// The update's generation.
        generation: u64,
    },
    /// Load the committed bundle; [`Event::CommittedLoaded`], [`Event::CommittedUnusable`] or [`Event::CommittedManifestLost`]
    /// answers.
    LoadCommitted(Pointer),
    /// Let the loaded model of a slot answer requests.
    Serve(Pointer),
    /// Let the loaded model of a slot run beside the one that answers, as the update's stage says; in place of one that does already.
    RunBeside(Pointer),
    /// Let no model run beside the one that answers.
    EndBeside,
    /// Let nothing answer requests.
    ServeNothing,
    /// Loaded models but that of this slot may go, and what on the disk [`crate::garbage`] says belongs to no bundle.
    Tidy {
        /// The slot whose model stays.
        keep: Option<Slot>,
    },
}

/// The update machine.
#[derive(Debug, Clone)]
pub struct Machine {
    record: Record,
    run: Run,
}

/// What lasts as long as the process does.
#[derive(Debug, Clone, Default)]
struct Run {
    /// When the model on trial began to serve.
    trial_since_ms: Option<u64>,
    /// Since when a model that has passed its test waits to take its part.
    ready_since_ms: Option<u64>,
    /// When the model beside the incumbent began to run.
    beside_since_ms: Option<u64>,
    /// Slots whose bundle could not be loaded, the bytes being right.
    unusable: BTreeSet<Slot>,
    /// Whether the committed bundle is loaded.
    committed_loaded: bool,
    /// Whether the record does not say yet that the bundle before is the committed one again.
    fell_back: bool,
    /// Whether the committed bundle's manifest has to come once more.
    manifest_lost: bool,
}

impl Machine {
    /// The machine as the record left it. [`Event::Started`] must be the first event.
    #[must_use]
    pub fn new(record: Record) -> Self {
        Self { record, run: Run::default() }
    }

    /// What has to survive a crash.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The first `count` of what [`Record::untold`] lists have reached the outbox.
    pub fn told(&mut self, count: usize) {
        self.record.untold.drain(..count.min(self.record.untold.len()));
    }

    /// Whether [`Event::Tick`] is wanted.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.run.trial_since_ms.is_some() || self.awaits_tries()
    }

    /// Whether a bundle serves while the next one is fetched.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.record.committed.is_some() && self.run.committed_loaded
    }

    /// Takes what happened at `now_ms` (of a clock that does not jump) and says what is to be done.
    #[must_use]
    pub fn handle(&mut self, event: Event, now_ms: u64) -> Vec<Effect> {
        match event {
            Event::Started => self.start(),
            Event::CommittedLoaded => self.committed_loaded(),
            Event::CommittedUnusable { reason, damaged } => self.committed_unusable(&reason, &damaged),
            Event::CommittedManifestLost { reason } => self.committed_manifest_lost(&reason),
            Event::Offered(offer) => self.offered(&offer, now_ms),
            Event::ChunksDurable { generation, chunks } => self.chunks_durable(generation, &chunks),
            Event::ChunksLost { generation, chunks } => self.chunks_lost(generation, &chunks),
            Event::FilesChecked { generation, result } => self.files_checked(generation, result),
            Event::Tested { generation, result } => self.tested(generation, result, now_ms),
            Event::Due { generation } => self.due(generation, now_ms),
            Event::Obstructed { generation, reason } => self.obstructed(generation, reason),
            Event::Tick { counts } => self.tick(counts, now_ms),
            Event::Stopping => self.stopping(now_ms),
        }
    }

    fn obstructed(&mut self, generation: u64, reason: String) -> Vec<Effect> {
        let phase = self.record.update.as_ref().filter(|u| u.generation == generation).map(|u| &u.phase);
        match phase {
            Some(Phase::Fetching { .. } | Phase::Verified { .. } | Phase::Beside { .. }) => self.fail(reason),
            Some(Phase::Trial { .. }) => self.revert(reason),
            Some(Phase::Withdrawn | Phase::Committed | Phase::Reverted { .. } | Phase::Failed { .. }) | None => {
                Vec::new()
            }
        }
    }

    fn fail(&mut self, reason: String) -> Vec<Effect> {
        let reason = bounded_text(&reason);
        let ran_beside = self.run.beside_since_ms.take().is_some();
        self.run.ready_since_ms = None;
        self.set_phase(Phase::Failed { reason: reason.clone(), refused: false });
        self.drop_unfinished();
        self.note_update(DeviceEventKind::Failed, &reason);
        let mut effects = vec![Effect::StopFetching, Effect::Persist];
        effects.extend(ran_beside.then_some(Effect::EndBeside));
        effects.extend([Effect::Tell, Effect::Report, Effect::Tidy { keep: self.kept() }]);
        effects
    }

    /// An update has ended: of bundles that are not whole only the incumbent is of use, and its pieces are fetched again.
    fn drop_unfinished(&mut self) {
        for slot in Slot::ALL {
            let whole = self.record.slots.get(slot).is_none_or(|content| content.have.is_full());
            if !whole && self.record.committed.is_none_or(|pointer| pointer.slot != slot) {
                self.record.slots.set(slot, None);
            }
        }
    }

    fn generation(&self) -> u64 {
        self.record.update.as_ref().map_or(0, |u| u.generation)
    }

    fn set_phase(&mut self, phase: Phase) {
        if let Some(update) = &mut self.record.update {
            update.phase = phase;
        }
    }

    fn note_update(&mut self, kind: DeviceEventKind, detail: &str) {
        let (generation, bundle) = self.record.update.as_ref().map_or((0, None), |u| (u.generation, u.bundle.clone()));
        self.note(kind, generation, bundle, detail);
    }

    fn note(&mut self, kind: DeviceEventKind, generation: u64, bundle: Option<BundleRef>, detail: &str) {
        self.record.note(Untold { kind, generation, bundle, detail: bounded_text(detail) });
    }
}
