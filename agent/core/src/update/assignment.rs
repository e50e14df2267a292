//! What a verified assignment sets going.

use muster_shared::chunk::ChunkSet;
use muster_shared::ids::Digest;
use muster_shared::limits::bounded_text;
use muster_shared::messages::DeviceEventKind;
use muster_shared::trust::Activation;

use super::{Effect, Machine};
use crate::admit::{Admission, Offer, admit, needs_both_slots};
use crate::record::{Phase, Record, Update};
use crate::slots::{Pointer, Slot, SlotContent};

/// The slot a bundle goes to: never the committed one, and the one that holds it already where there is one.
pub(crate) fn target_slot(record: &Record, manifest: &Digest) -> Slot {
    match (record.committed, record.slots.holding(manifest)) {
        (Some(committed), _) => committed.slot.other(),
        (None, Some(slot)) => slot,
        (None, None) => Slot::ALL.into_iter().find(|slot| record.slots.get(*slot).is_none()).unwrap_or(Slot::A),
    }
}

impl Machine {
    pub(super) fn offered(&mut self, offer: &Offer, now_ms: u64) -> Vec<Effect> {
        let assignment = &offer.assignment;
        let bundle = offer.manifest.as_ref().map(|m| m.bundle.clone());
        let admission = match admit(&self.record, offer) {
            Ok(admission) => admission,
            Err(refusal) => {
                let generation = assignment.generation;
                return vec![Effect::Refuse { generation, bundle, reason: refusal.to_string() }];
            }
        };
        let epoch = self.record.director_epoch.max(offer.director_epoch);
        let begins = std::mem::replace(&mut self.record.director_epoch, epoch) < epoch;
        if admission == Admission::Refresh {
            let mut effects = self.refresh(offer);
            if begins {
                effects.insert(0, Effect::Persist);
            }
            return effects;
        }
        let on_trial = self.slot_on_trial();
        let ran_beside = self.run.beside_since_ms.is_some();
        let ready_since_ms = self.run.ready_since_ms.take();
        let before = self.record.update.take();
        let same_part = before.as_ref().is_some_and(|before| before.stage == assignment.stage);
        let before = before.map(|before| before.phase);
        self.record.generation = assignment.generation;
        let mut update = Update {
            generation: assignment.generation,
            rollout: assignment.rollout.clone(),
            manifest: assignment.manifest,
            bundle,
            watch: assignment.watch,
            delivery: assignment.delivery,
            stage: assignment.stage.clone(),
            activation: assignment.activation,
            phase: Phase::Withdrawn,
        };
        let manifest = offer.manifest.as_ref();
        if let (true, Some(manifest), Some(Phase::Beside { slot, tries_left })) = (ran_beside, manifest, &before)
            && admission == Admission::Accept
            && update.activation.is_at_once()
            && self.record.slots.get(*slot).is_some_and(|c| c.manifest == manifest.digest)
        {
            return self.assigned_beside(update, *slot, *tries_left, now_ms);
        }
        if let (Some(since_ms), true, Some(manifest), Some(Phase::Verified { slot, tries_left })) =
            (ready_since_ms, same_part, manifest, &before)
            && admission == Admission::Accept
            && self.record.slots.get(*slot).is_some_and(|c| c.manifest == manifest.digest)
        {
            return self.assigned_ready(update, *slot, *tries_left, since_ms, now_ms);
        }
        self.run.beside_since_ms = None;
        let impossible = match &admission {
            Admission::Unsuitable(why) => Some(why.to_string()),
            Admission::Accept | Admission::Refresh => manifest.and_then(|_| self.lacks_incumbent(&assignment.stage)),
        };
        if let Some(reason) = impossible {
            let reason = bounded_text(&reason);
            update.phase = Phase::Failed { reason: reason.clone(), refused: true };
            self.record.update = Some(update);
            self.drop_unfinished();
            self.note_update(DeviceEventKind::Failed, &reason);
            let mut effects = vec![Effect::StopFetching, Effect::Persist];
            effects.extend(self.leave_trial(on_trial));
            effects.extend(self.leave_beside(ran_beside));
            effects.extend([Effect::Tell, Effect::Report, Effect::Tidy { keep: self.kept() }]);
            return effects;
        }
        let Some(manifest) = manifest else { return self.withdraw(update, ran_beside) };
        if let Some(pointer) = self.record.committed
            && self.record.slots.get(pointer.slot).is_some_and(|c| c.manifest == manifest.digest)
        {
            if self.run.manifest_lost && !assignment.stage.is_serve() {
                return self.load_again(update, pointer, manifest.digest);
            }
            if !std::mem::take(&mut self.run.manifest_lost) {
                return self.keep_committed(update, pointer, ran_beside);
            }
            // It cannot serve without the manifest that has just come, so it is brought up like any other.
            self.record.committed = None;
        }
        if let (Some(slot), Some(Phase::Trial { tries_left, .. }), true) = (on_trial, before, update.stage.is_serve())
            && update.activation != Activation::Hold
            && self.record.slots.get(slot).is_some_and(|c| c.manifest == manifest.digest)
        {
            update.phase = Phase::Trial { slot, tries_left, watched_ms: 0 };
            // It serves already, so there is nothing left to wait with.
            update.activation = Activation::AtOnce;
            self.record.update = Some(update);
            self.run.trial_since_ms = Some(now_ms);
            self.note_update(DeviceEventKind::Assigned, "");
            self.note_update(DeviceEventKind::Trial, "it was on trial already; its probation starts anew");
            let serve = Effect::Serve(Pointer { slot, generation: assignment.generation });
            return vec![Effect::Persist, serve, Effect::Tell, Effect::Report];
        }
        let slot = target_slot(&self.record, &manifest.digest);
        let kept = self.record.slots.get(slot).is_some_and(|content| content.manifest == manifest.digest);
        let emptied = !kept && needs_both_slots(&self.record, manifest, &offer.device);
        if emptied {
            self.record.slots.set(slot.other(), None);
        }
        if !kept {
            self.record.slots.set(
                slot,
                Some(SlotContent {
                    manifest: manifest.digest,
                    bundle: manifest.bundle.clone(),
                    release_counter: manifest.release_counter,
                    security_floor: manifest.security_floor,
                    total_bytes: manifest.total_bytes,
                    have: ChunkSet::empty(manifest.chunks),
                    never_served: !update.stage.is_serve() || !update.activation.is_at_once(),
                }),
            );
        }
        let mut effects = self.stage(update, manifest.digest, slot);
        effects.extend(self.leave_trial(on_trial));
        effects.extend(self.leave_beside(ran_beside));
        effects.extend(ready_since_ms.map(|_| Effect::Tidy { keep: self.kept() }));
        effects.extend([Effect::Tell, Effect::Report]);
        if emptied {
            effects.push(Effect::Tidy { keep: None });
        }
        effects.extend(self.fetch_into(slot, assignment.generation));
        effects
    }

    /// What is known already changes nothing, but it may bring what was lost.
    fn refresh(&self, offer: &Offer) -> Vec<Effect> {
        let committed = self.record.committed.filter(|_| self.run.manifest_lost);
        match (committed, &offer.manifest) {
            (Some(pointer), Some(manifest))
                if self.record.slots.get(pointer.slot).is_some_and(|c| c.manifest == manifest.digest) =>
            {
                vec![Effect::StoreManifest(manifest.digest), Effect::LoadCommitted(pointer)]
            }
            (Some(_) | None, _) => vec![Effect::Report],
        }
    }

    fn withdraw(&mut self, update: Update, ran_beside: bool) -> Vec<Effect> {
        self.record.update = Some(update);
        self.record.committed = None;
        self.drop_unfinished();
        self.run.trial_since_ms = None;
        self.run.committed_loaded = false;
        self.note_update(DeviceEventKind::Assigned, "to run nothing");
        self.note_update(DeviceEventKind::Withdrawn, "");
        let mut effects = vec![Effect::StopFetching, Effect::Persist];
        effects.extend(ran_beside.then_some(Effect::EndBeside));
        effects.extend([Effect::ServeNothing, Effect::Tell, Effect::Report, Effect::Tidy { keep: None }]);
        effects
    }

    /// The bundle asked for is the incumbent: only the generation changes.
    fn keep_committed(&mut self, mut update: Update, pointer: Pointer, ran_beside: bool) -> Vec<Effect> {
        let pointer = Pointer { generation: update.generation, ..pointer };
        if !self.run.committed_loaded {
            let reason = "the bundle is installed and cannot be loaded".to_owned();
            update.phase = Phase::Failed { reason, refused: false };
            self.record.update = Some(update);
            self.note_update(DeviceEventKind::Failed, "the bundle is installed and cannot be loaded");
            return vec![Effect::StopFetching, Effect::Persist, Effect::Tell, Effect::Report];
        }
        update.phase = Phase::Committed;
        update.activation = Activation::AtOnce;
        self.record.committed = Some(pointer);
        self.record.update = Some(update);
        self.drop_unfinished();
        self.run.trial_since_ms = None;
        self.note_update(DeviceEventKind::Assigned, "");
        self.note_update(DeviceEventKind::Committed, "it was running already");
        let mut effects = vec![Effect::StopFetching, Effect::Persist];
        effects.extend(ran_beside.then_some(Effect::EndBeside));
        effects.extend([Effect::Serve(pointer), Effect::Tell, Effect::Report]);
        effects.push(Effect::Tidy { keep: Some(pointer.slot) });
        effects
    }

    /// The bundle that was to run beside the incumbent is the incumbent, which lacked just the manifest that has come.
    fn load_again(&mut self, mut update: Update, pointer: Pointer, manifest: Digest) -> Vec<Effect> {
        let pointer = Pointer { generation: update.generation, ..pointer };
        update.phase = Phase::Committed;
        self.record.update = Some(update);
        self.record.committed = Some(pointer);
        self.drop_unfinished();
        self.note_update(DeviceEventKind::Assigned, "");
        let load = [Effect::Persist, Effect::LoadCommitted(pointer), Effect::Tell];
        [Effect::StopFetching, Effect::StoreManifest(manifest)].into_iter().chain(load).collect()
    }

    /// Begins with `update`, whose bundle `slot` is to hold.
    fn stage(&mut self, mut update: Update, manifest: Digest, slot: Slot) -> Vec<Effect> {
        self.run.unusable.remove(&slot);
        update.phase = Phase::Fetching { slot, repairs: 0 };
        self.record.update = Some(update);
        self.note_update(DeviceEventKind::Assigned, "");
        vec![Effect::StopFetching, Effect::StoreManifest(manifest), Effect::Persist]
    }

    /// Makes `slot` ready for its bundle and fetches what it lacks.
    pub(super) fn fetch_into(&self, slot: Slot, generation: u64) -> [Effect; 2] {
        let fresh = self.record.slots.get(slot).is_none_or(|content| content.have.count() == 0);
        [Effect::PrepareSlot { slot, fresh }, self.fetch_or_check(slot, generation)]
    }
}
