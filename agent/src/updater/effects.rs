//! How each effect of the update machine is carried out. Every one may be carried out twice.

use std::time::Duration;

use muster_agent_core::admit;
use muster_agent_core::fetch::FetchPlan;
use muster_agent_core::record::Untold;
use muster_agent_core::slots::{Pointer, Slot};
use muster_agent_core::update::{Effect, Event};
use muster_shared::bundle::Manifest;
use muster_shared::chunk::Accepts;
use muster_shared::ids::Digest;
use muster_shared::messages::{DeviceEvent, DeviceEventKind, StateReport, UpdateState};
use muster_shared::protocol::PROTOCOL;
use muster_shared::trust::Track;

use super::base::Base;
use super::download::Download;
use super::{Done, Updater, guarded, model};
use crate::causes::with_source;
use crate::resources;
use crate::time::wall_ms;

/// Pause between attempts to write the record, in milliseconds.
const WRITE_AGAIN_MS: u64 = 500;

impl Updater {
    /// Carries `effect` out; what follows from it comes back.
    ///
    /// # Errors
    /// Why the update cannot go on.
    pub(super) fn carry_out(&mut self, effect: Effect) -> Result<Option<Event>, String> {
        match effect {
            Effect::StoreManifest(digest) => match &self.offered {
                Some((offered, envelope)) if *offered == digest => {
                    self.records.store_manifest(&digest, envelope).map_err(|error| with_source(&error))?;
                    passing!(ManifestStored);
                }
                Some(_) | None => return Err("the manifest did not come with the assignment".to_owned()),
            },
            Effect::Persist => self.persist()?,
            Effect::Tell => self.tell_untold()?,
            Effect::Report => self.report(),
            Effect::Refuse { generation, bundle, reason } => self.refuse(generation, bundle, &reason),
            Effect::PrepareSlot { slot, fresh } => return self.prepare(slot, fresh),
            Effect::Fetch { slot, generation } => self.fetch(slot, generation)?,
            Effect::StopFetching => {
                self.download = None;
                self.parts.gate.close();
            }
            Effect::CheckFiles { slot, generation } => self.check_files(slot, generation)?,
            Effect::Test { slot, generation } => {
                passing!(TrySpent);
                self.test(slot, generation)?;
            }
            Effect::LoadCommitted(pointer) => return Ok(Some(self.load_committed(pointer))),
            Effect::Serve(pointer) => self.serve(pointer)?,
            Effect::RunBeside(pointer) => self.run_beside(pointer)?,
            Effect::EndBeside => self.parts.host.end_beside(wall_ms()),
            Effect::ServeNothing => self.parts.host.deactivate(wall_ms()),
            Effect::Tidy { keep } => {
                self.loaded.retain(|slot, _| Some(*slot) == keep);
                self.clear_slots();
                passing!(Tidied);
            }
        }
        Ok(None)
    }

    /// Writes the record, for as long as it takes: nothing may go on that is not written down. Serving does, meanwhile: whatever
    /// can serve does so before this is asked for at a start.
    fn persist(&mut self) -> Result<(), String> {
        self.write_until_done("the record of installed bundles", |updater| {
            updater.records.save(updater.machine.record()).map_err(|error| with_source(&error))
        })?;
        passing!(record self.machine.record());
        Ok(())
    }

    /// Has `write` write `what`, again and again until it does or the agent stops.
    pub(super) fn write_until_done(
        &mut self,
        what: &str,
        mut write: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut said = None;
        loop {
            let error = match write(self) {
                Ok(()) => {
                    if said.is_some() {
                        tracing::info!(device = %self.parts.device, "{what} is written");
                    }
                    return Ok(());
                }
                Err(error) => error,
            };
            if said.as_ref() != Some(&error) {
                tracing::error!(device = %self.parts.device, %error, "updates stand still: {what} cannot be written; trying again");
                said = Some(error);
            }
            self.is_ready();
            self.heartbeat.beat(WRITE_AGAIN_MS);
            if self.stopping() {
                return Err(format!("the agent stopped before {what} could be written"));
            }
            std::thread::sleep(Duration::from_millis(WRITE_AGAIN_MS));
        }
    }

    /// Puts what a record of `track` has to tell into the outbox; where that takes nothing, it stays in the record and is told next time.
    pub(super) fn keep_untold(&self, untold: &Untold, track: Track) -> bool {
        let event = DeviceEvent {
            at_ms: wall_ms(),
            kind: untold.kind,
            generation: untold.generation,
            bundle: untold.bundle.clone(),
            detail: untold.detail.clone(),
            track,
        };
        self.parts
            .outbox
            .event(&event)
            .inspect_err(|error| tracing::debug!(error = %with_source(error), "an event waits to be told"))
            .is_ok()
    }

    pub(super) fn tell_untold(&mut self) -> Result<(), String> {
        let update = self.machine.record().update.as_ref();
        let rollout =
            |generation| update.filter(|update| update.generation == generation).map(|update| &update.rollout);
        let mut told = 0;
        for untold in &self.machine.record().untold {
            tracing::info!(
                device = %self.parts.device,
                kind = ?untold.kind,
                generation = untold.generation,
                rollout = rollout(untold.generation).map(tracing::field::display),
                bundle = untold.bundle.as_ref().map(tracing::field::display),
                detail = %untold.detail,
                "update"
            );
            if !self.keep_untold(untold, Track::Model) {
                break;
            }
            passing!(EventKept);
            told += 1;
            let finished = match untold.kind {
                DeviceEventKind::Committed => Some(UpdateState::Committed),
                DeviceEventKind::Reverted => Some(UpdateState::Reverted),
                DeviceEventKind::Failed => Some(UpdateState::Failed),
                DeviceEventKind::Started
                | DeviceEventKind::Crashed
                | DeviceEventKind::Assigned
                | DeviceEventKind::Refused
                | DeviceEventKind::Verified
                | DeviceEventKind::Beside
                | DeviceEventKind::Trial
                | DeviceEventKind::Withdrawn
                | DeviceEventKind::StaleMetadata
                | DeviceEventKind::Alarm
                | DeviceEventKind::Other => None,
            };
            if let Some(state) = finished {
                self.parts.metrics.update_finished(state);
            }
        }
        if told == 0 {
            return Ok(());
        }
        self.machine.told(told);
        self.persist()
    }

    /// Puts the state into the outbox.
    pub(super) fn report(&self) {
        let (record, root) = (self.machine.record(), self.parts.trust.root());
        let mut update = record.update_report();
        if let Some(held_back) = self.parts.gate.held_back().filter(|_| update.state == UpdateState::Fetching) {
            update.reason = Some(format!("waiting: {held_back}"));
            update.held_back = Some(held_back);
        }
        if let Some(held_back) = self.machine.held_back() {
            update.reason = Some(format!("waiting: {held_back}"));
            update.held_back = Some(held_back);
        }
        let program = self.program.machine.report();
        self.parts.program.known_as.set(program.running.as_ref());
        let report = StateReport {
            reported_at_ms: wall_ms(),
            generation: record.generation,
            update,
            running: self.parts.host.current().map(|model| model.installed()),
            committed: record.committed_bundle(),
            security_floor: record.security_floor,
            freeze_protection: self.parts.trust.protection(),
            stale_since_ms: self.parts.trust.stale_since_ms(),
            root_version: root.root().version,
            awaits_director: record.awaits_director(root.director_epoch()),
            attributes: self.attributes(),
            dropped_messages: self.parts.outbox.given_up(),
            starts: self.parts.starts,
            can_hold: true,
            samples: self.parts.samples.report(),
            pressure: self.parts.host.pressed().now(),
            program: Some(program),
            protocol: PROTOCOL,
        };
        self.parts.outbox.state(&report);
        passing!(Reported);
    }

    /// The manifest of what `slot` holds, with its digest.
    fn manifest_of(&self, slot: Slot) -> Result<(Digest, Manifest), String> {
        let content = self.machine.record().slots.get(slot).ok_or("the slot is empty")?;
        let stored = self.records.manifest(&content.manifest).map_err(|error| with_source(&error))?;
        let (_, manifest) =
            stored.ok_or_else(|| format!("the manifest of {} is missing or damaged", content.bundle))?;
        Ok((content.manifest, manifest))
    }

    fn prepare(&mut self, slot: Slot, fresh: bool) -> Result<Option<Event>, String> {
        let (_, manifest) = self.manifest_of(slot)?;
        if fresh {
            self.slots.prepare(slot, &manifest).map_err(|error| with_source(&error))?;
            passing!(SlotPrepared);
            return Ok(None);
        }
        let record = self.machine.record();
        let (Some(content), Some(update)) = (record.slots.get(slot), &record.update) else { return Ok(None) };
        let chunks = self.slots.missing(slot, &manifest, &content.have).map_err(|error| with_source(&error))?;
        let generation = update.generation;
        Ok((!chunks.is_empty()).then_some(Event::ChunksLost { generation, chunks }))
    }

    fn fetch(&mut self, slot: Slot, generation: u64) -> Result<(), String> {
        let (digest, manifest) = self.manifest_of(slot)?;
        let content = self.machine.record().slots.get(slot).ok_or("the slot is empty")?;
        let (have, total) = (content.have.count(), content.have.length());
        tracing::info!(device = %self.parts.device, bundle = %content.bundle, generation, have, total, "fetching");
        let connected = self.link_epoch % 2 == 1;
        let base = self.base(slot.other());
        let accepts = Accepts::Packed { base: base.as_ref().map(Base::manifest) };
        let plan = FetchPlan::new(content.have.clone(), accepts, self.parts.chunk_timeout_ms, connected);
        self.download = Some(Download::new(&self.slots, slot, generation, digest, &manifest, plan, base));
        Ok(())
    }

    /// The bundle in `slot`, if it is there whole.
    fn base(&self, slot: Slot) -> Option<Base> {
        self.machine.record().slots.get(slot).filter(|content| content.have.is_full())?;
        let (digest, manifest) = self.manifest_of(slot).ok()?;
        Some(Base::open(&self.slots, slot, digest, &manifest))
    }

    fn check_files(&mut self, slot: Slot, generation: u64) -> Result<(), String> {
        let (_, manifest) = self.manifest_of(slot)?;
        let slots = self.slots.clone();
        self.apart("check-files", move || Done::Checked { generation, result: slots.check(slot, &manifest) });
        Ok(())
    }

    fn test(&mut self, slot: Slot, generation: u64) -> Result<(), String> {
        let content = self.machine.record().slots.get(slot).ok_or("the slot is empty")?;
        let digest = content.manifest;
        let (envelope, _) = self
            .records
            .manifest(&digest)
            .map_err(|error| with_source(&error))?
            .ok_or_else(|| format!("the manifest of {} is missing or damaged", content.bundle))?;
        // Held against what is trusted now: keys and dates may have changed since it was assigned.
        let trust = &self.parts.trust;
        let verified = trust.root().verify_manifest(&envelope, trust.now_ms()).map_err(|error| error.to_string())?;
        let slots = self.slots.clone();
        let is_beside = self.machine.record().update.as_ref().is_some_and(|update| !update.stage.is_serve());
        let system = self.parts.system.clone();
        let is_running = self.test_apart("test-model", move || {
            let result = guarded(|| {
                if is_beside {
                    enough_memory(&verified.manifest, resources::memory_available_bytes(&system))?;
                }
                let manifest = &verified.manifest;
                model::load(&slots, slot, digest, manifest, Some(manifest.budgets))
                    .map(|(loaded, report)| (Box::new(loaded), report))
                    .map_err(|damage| damage.reason)
            });
            Done::Tested { slot, generation, result }
        });
        self.testing = is_running.then(|| (generation, self.clock.now_ms()));
        Ok(())
    }

    fn load_committed(&mut self, pointer: Pointer) -> Event {
        let unusable = |reason: String, damaged: Vec<u32>| {
            tracing::error!(%reason, "the committed bundle cannot be loaded");
            Event::CommittedUnusable { reason, damaged }
        };
        let (digest, manifest) = match self.manifest_of(pointer.slot) {
            Ok(found) => found,
            Err(reason) => {
                tracing::error!(%reason, "the committed bundle cannot be loaded before its manifest comes again");
                return Event::CommittedManifestLost { reason };
            }
        };
        if let Ok(Some((envelope, _))) = self.records.manifest(&digest)
            && let Err(error) = self.parts.trust.root().verify_undated_manifest(&envelope, Track::Model)
        {
            // It was verified when it was installed, and its bytes are the same. Serving goes on; the operator is told.
            let reason = format!("{} serves on, but would not be trusted today: {error}", manifest.bundle());
            if self.refusals.tell(&reason, self.clock.now_ms()) {
                self.put(DeviceEventKind::StaleMetadata, pointer.generation, Some(manifest.bundle()), &reason);
            }
        }
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            model::load(&self.slots, pointer.slot, digest, &manifest, None)
        }));
        match loaded {
            Ok(Ok((loaded, _))) => {
                self.loaded.insert(pointer.slot, loaded);
                passing!(CommittedLoaded);
                Event::CommittedLoaded
            }
            Ok(Err(damage)) => unusable(damage.reason, damage.chunks),
            Err(_) => unusable("loading it ended with a panic".to_owned(), Vec::new()),
        }
    }

    fn run_beside(&mut self, pointer: Pointer) -> Result<(), String> {
        let loaded = self.loaded.get(&pointer.slot).ok_or("the model is not loaded")?;
        let served = loaded.served(pointer.generation);
        let stage = self.machine.record().update.as_ref().map(|update| update.stage.clone()).unwrap_or_default();
        tracing::info!(
            device = %self.parts.device, bundle = %served.bundle, generation = pointer.generation, %stage, "running beside"
        );
        self.parts.host.run_beside(served, stage, wall_ms()).map_err(|error| with_source(&error))?;
        Ok(())
    }

    fn serve(&mut self, pointer: Pointer) -> Result<(), String> {
        let loaded = self.loaded.get(&pointer.slot).ok_or("the model is not loaded")?;
        let served = loaded.served(pointer.generation);
        tracing::info!(device = %self.parts.device, bundle = %served.bundle, generation = pointer.generation, "serving");
        self.parts.host.activate(served, wall_ms());
        passing!(PointerMoved);
        Ok(())
    }
}

/// Whether a model that is to run beside another still finds room: the incumbent must not be the one whom the kernel ends for want of
/// memory.
fn enough_memory(manifest: &Manifest, available_bytes: Option<u64>) -> Result<(), String> {
    let Some(available) = available_bytes else { return Ok(()) };
    let need = admit::needed_memory_bytes(manifest);
    if need <= available {
        return Ok(());
    }
    Err(format!("it needs {need} bytes of memory beside the bundle in service, {available} are available"))
}
