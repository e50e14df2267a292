//! The program's track: carries out what [`muster_agent_core::program::Machine`] decides, on the updater's thread.
//!
//! The road of chunks is the models' own, and theirs goes first. A program is tried apart from this process before it may take its place: one
//! that cannot say its version or take the present configuration is refused while the present one still runs.

mod rehearsal;

use std::collections::VecDeque;

use muster_agent_core::fetch::FetchPlan;
use muster_agent_core::program::{Effect, Event, Machine, Offer, OfferedProgram, Vitals};
use muster_agent_core::slots::Slot;
use muster_shared::bundle::Manifest;
use muster_shared::chunk::{Accepts, ChunkFrame};
use muster_shared::messages::{DeviceEventKind, Stream};
use muster_shared::trust::{Assignment, Envelope, Track};

use super::base::Base;
use super::download::{Download, Taken};
use super::slot_files::SlotFiles;
use super::{Done, Updater};
use crate::causes::with_source;
use crate::program::{ProgramStore, Running};
use crate::resources;

/// What the updater keeps of the program's track.
pub(super) struct ProgramTrack {
    pub(super) machine: Machine,
    pub(super) download: Option<Download>,
    store: ProgramStore,
    slots: SlotFiles,
    /// The manifest that came with the offer being handled.
    offered: Option<Envelope>,
    /// This process is about to end: nothing more is begun.
    restarting: bool,
}

impl ProgramTrack {
    /// Reads what is stored, and what has to be said of that.
    pub(super) fn open(data_dir: &std::path::Path, running: &Running) -> (Self, Option<String>) {
        let store = ProgramStore::new(data_dir);
        let (record, alarm) = store.recover(&running.package);
        let track = Self {
            machine: Machine::new(record, running.slot),
            download: None,
            slots: SlotFiles::of_programs(store.dir()),
            store,
            offered: None,
            restarting: false,
        };
        running.known_as.set(track.machine.report().running.as_ref());
        (track, alarm)
    }
}

impl Updater {
    pub(super) fn program_event(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            if self.program.restarting && event != Event::Stopping {
                return;
            }
            for effect in self.program.machine.handle(event, self.clock.now_ms()) {
                match self.carry_out_for_program(effect) {
                    Ok(follows) => events.extend(follows),
                    Err(_) if self.stopping() => return,
                    Err(reason) => {
                        let generation = self.program.machine.record().generation;
                        events.push_back(Event::Obstructed { generation, reason });
                        break;
                    }
                }
            }
        }
    }

    fn carry_out_for_program(&mut self, effect: Effect) -> Result<Option<Event>, String> {
        let in_words = |error: crate::files::FileError| with_source(&error);
        match effect {
            Effect::StoreManifest(slot) => {
                let envelope = self.program.offered.as_ref().ok_or("the manifest did not come with the assignment")?;
                self.program.store.store_manifest(slot, envelope).map_err(in_words)?;
                passing!(ProgramManifestStored);
            }
            Effect::Persist => self.persist_program()?,
            Effect::Tell => self.tell_of_program()?,
            Effect::Report => self.report(),
            Effect::Refuse { generation, bundle, reason } => self.refuse(generation, bundle, &reason),
            Effect::PrepareSlot { slot, fresh } => return self.prepare_program(slot, fresh),
            Effect::Fetch { slot, generation } => self.fetch_program(slot, generation)?,
            Effect::StopFetching => {
                if self.program.download.take().is_some() && self.download.is_none() {
                    self.parts.gate.close();
                }
            }
            Effect::CheckFile { slot, generation } => {
                let manifest = self.program_manifest(slot)?;
                let (slots, store) = (self.program.slots.clone(), self.program.store.clone());
                self.apart("check-program", move || {
                    let result = slots.check(slot, &manifest).and_then(|()| {
                        store.make_executable(slot).map_err(|error| muster_agent_core::update::FileDamage {
                            chunks: Vec::new(),
                            reason: with_source(&error),
                        })
                    });
                    Done::Program(Event::FileChecked { generation, result })
                });
            }
            Effect::Rehearse { slot, generation } => {
                let manifest = self.trusted_program_manifest(slot)?;
                let (program, config) = (self.program.store.program(slot), self.parts.config_file.clone());
                self.apart("rehearse", move || {
                    let result = rehearsal::rehearse(&program, &manifest.version, config.as_deref());
                    Done::Program(Event::Rehearsed { generation, result })
                });
            }
            Effect::Restart => {
                tracing::info!(device = %self.parts.device, "starting again with another program");
                self.program.restarting = true;
                self.parts.restart.notify_one();
            }
        }
        Ok(None)
    }

    /// Writes the record, for as long as it takes, and removes what it names no more.
    fn persist_program(&mut self) -> Result<(), String> {
        self.write_until_done("the record of agent programs", |updater| {
            let ProgramTrack { machine, store, .. } = &updater.program;
            store.save(machine.record()).map_err(|error| with_source(&error))
        })?;
        let ProgramTrack { machine, store, .. } = &self.program;
        let is_of_use = |slot: &Slot| machine.record().slots.contains_key(slot) || machine.running() == Some(*slot);
        for slot in Slot::ALL.into_iter().filter(|slot| !is_of_use(slot)) {
            if let Err(error) = store.clear(slot) {
                tracing::warn!(error = %with_source(&error), "a program that is of no use any more stays");
            }
        }
        Ok(())
    }

    fn tell_of_program(&mut self) -> Result<(), String> {
        let mut told = 0;
        for untold in &self.program.machine.record().untold {
            tracing::info!(
                device = %self.parts.device,
                kind = ?untold.kind,
                generation = untold.generation,
                bundle = untold.bundle.as_ref().map(tracing::field::display),
                detail = %untold.detail,
                "agent program"
            );
            if !self.keep_untold(untold, Track::Program) {
                break;
            }
            told += 1;
        }
        if told == 0 {
            return Ok(());
        }
        self.program.machine.told(told);
        self.persist_program()
    }

    fn program_manifest(&self, slot: Slot) -> Result<Manifest, String> {
        self.program_document(slot).map(|(_, manifest)| manifest)
    }

    fn program_document(&self, slot: Slot) -> Result<(Envelope, Manifest), String> {
        let digest = self.program.machine.manifest(slot).ok_or("the slot is empty")?;
        let found = self.program.store.manifest(slot, &digest).map_err(|error| with_source(&error))?;
        found.ok_or_else(|| "its manifest is missing or damaged".to_owned())
    }

    /// The manifest of what `slot` holds, held against what is trusted now: keys may have changed since it was assigned.
    fn trusted_program_manifest(&self, slot: Slot) -> Result<Manifest, String> {
        let (envelope, _) = self.program_document(slot)?;
        let root = self.parts.trust.root();
        root.verify_undated_manifest(&envelope, Track::Program)
            .map(|verified| verified.manifest)
            .map_err(|error| error.to_string())
    }

    fn prepare_program(&mut self, slot: Slot, fresh: bool) -> Result<Option<Event>, String> {
        let manifest = self.program_manifest(slot)?;
        if fresh {
            self.program.slots.prepare(slot, &manifest).map_err(|error| with_source(&error))?;
            passing!(ProgramSlotPrepared);
            return Ok(None);
        }
        let record = self.program.machine.record();
        let content = record.slots.get(&slot).ok_or("the slot is empty")?;
        let (have, generation) = (content.have.clone(), record.generation);
        let chunks = self.program.slots.missing(slot, &manifest, &have).map_err(|error| with_source(&error))?;
        Ok((!chunks.is_empty()).then_some(Event::ChunksLost { generation, chunks }))
    }

    fn fetch_program(&mut self, slot: Slot, generation: u64) -> Result<(), String> {
        let manifest = self.program_manifest(slot)?;
        let record = self.program.machine.record();
        let content = record.slots.get(&slot).ok_or("the slot is empty")?;
        tracing::info!(device = %self.parts.device, bundle = %content.bundle, generation, "fetching a program");
        let (digest, have) = (content.manifest, content.have.clone());
        let other = slot.other();
        let base = record.holds_whole(other).then(|| self.program_manifest(other).ok()).flatten();
        let base = base.zip(self.program.machine.manifest(other));
        let base = base.map(|(manifest, digest)| Base::open(&self.program.slots, other, digest, &manifest));
        let accepts = Accepts::Packed { base: base.as_ref().map(Base::manifest) };
        let plan = FetchPlan::new(have, accepts, self.parts.chunk_timeout_ms, self.link_epoch % 2 == 1);
        self.program.download =
            Some(Download::new(&self.program.slots, slot, generation, digest, &manifest, plan, base));
        Ok(())
    }

    /// Takes a frame of the program that is being fetched; false when it belongs to another bundle.
    pub(super) fn program_chunk(&mut self, frame: &ChunkFrame<'_>) -> bool {
        let Some(download) = self.program.download.as_mut().filter(|d| d.manifest == frame.manifest) else {
            return false;
        };
        let generation = download.generation;
        match download.take(frame, self.clock.now_ms()) {
            Ok(Taken::Written) => {
                self.parts.gate.came(frame.index, frame.bytes.len());
                self.parts.metrics.chunk_received(frame.bytes.len());
            }
            Ok(Taken::Unwanted) => self.parts.metrics.chunk_repeated(),
            Ok(Taken::Wrong(reason)) => self.refuse(generation, None, &reason),
            Err(error) => self.program_event(Event::Obstructed { generation, reason: with_source(&error) }),
        }
        true
    }

    /// A verified assignment of the program's track.
    pub(super) fn program_assignment(&mut self, assignment: Assignment, envelope: Option<Envelope>) {
        let root = self.parts.trust.root();
        let verified = envelope.as_ref().map(|envelope| root.verify_undated_manifest(envelope, Track::Program));
        let verified = match verified.transpose() {
            Ok(verified) => verified,
            Err(error) => {
                let reason = format!("the manifest of an assignment is not trusted: {error}");
                return self.refuse(assignment.generation, None, &reason);
            }
        };
        let director_epoch = root.director_epoch();
        let made_at_ms = verified.as_ref().map_or(0, |v| v.manifest.created_at_ms).max(assignment.issued_at_ms);
        if let Err(error) = self.parts.trust.learn_time(made_at_ms) {
            tracing::error!(error = %with_source(&error), "the time floor could not be raised");
        }
        let device = self.device_facts(self.parts.trust.now_ms());
        let program = verified.as_ref().and_then(OfferedProgram::of);
        self.program.offered = envelope;
        self.program_event(Event::Offered(Box::new(Offer { assignment, program, director_epoch, device })));
        self.program.offered = None;
    }

    /// Looks how the program on trial does.
    pub(super) fn watch_program(&mut self) {
        if !self.program.machine.is_watching() {
            return;
        }
        let heard = |stream| self.parts.outbox.is_own_acknowledged(stream);
        let vitals = Vitals {
            serves: self.machine.record().committed.is_none() || self.parts.host.current().is_some(),
            linked: self.parts.link.epoch() % 2 == 1,
            acknowledged: [Stream::State, Stream::Event, Stream::Telemetry, Stream::Sketch].into_iter().any(heard),
            memory_bytes: Some(resources::resident_bytes(&self.parts.system)).filter(|bytes| *bytes > 0),
        };
        self.program_event(Event::Tick(vitals));
    }

    /// Says what was found when the track was opened.
    pub(super) fn begin_program(&mut self, alarm: Option<String>) {
        if let Some(alarm) = alarm {
            tracing::error!("{alarm}");
            self.put(DeviceEventKind::Alarm, 0, None, &alarm);
        }
        self.program_event(Event::Started);
    }
}
