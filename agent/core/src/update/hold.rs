//! A bundle that is ready and waits: for a time, or for another word.
//!
//! It is checked, tested and loaded, and answers nothing: the update stays [`Phase::Verified`], so a death at any point leads back to
//! testing it and waiting on. The time of an assignment is the wall's; whether a clock can be believed is for whoever sends
//! [`super::Event::Due`].

use muster_shared::messages::{DeviceEventKind, HeldBack};
use muster_shared::trust::Activation;

use super::{Effect, Machine};
use crate::record::{Phase, Update};
use crate::slots::{Pointer, Slot};

impl Machine {
    /// What keeps a bundle that is ready from taking its part; none where none waits.
    #[must_use]
    pub fn held_back(&self) -> Option<HeldBack> {
        self.run.ready_since_ms?;
        match self.record.update.as_ref()?.activation {
            Activation::AtOnce => None,
            Activation::Hold => Some(HeldBack::Switch { at_ms: None }),
            Activation::At { at_ms } => Some(HeldBack::Switch { at_ms: Some(at_ms) }),
        }
    }

    /// The generation that is ready and the time for which it waits, in milliseconds since the Unix epoch: [`super::Event::Due`] is wanted then.
    #[must_use]
    pub fn switch_at(&self) -> Option<(u64, u64)> {
        self.run.ready_since_ms?;
        let update = self.record.update.as_ref()?;
        match update.activation {
            Activation::At { at_ms } => Some((update.generation, at_ms)),
            Activation::AtOnce | Activation::Hold => None,
        }
    }

    /// The model of `slot` has passed its test: it takes its part, or waits until it may.
    pub(super) fn passed(&mut self, slot: Slot, tries_left: u32, now_ms: u64) -> Vec<Effect> {
        if self.record.update.as_ref().is_some_and(|update| !update.activation.is_at_once()) {
            self.run.ready_since_ms = Some(now_ms);
            return vec![Effect::Report];
        }
        self.take_part(slot, tries_left, now_ms)
    }

    /// The time has come for the update of `generation`.
    pub(super) fn due(&mut self, generation: u64, now_ms: u64) -> Vec<Effect> {
        let waits = self.switch_at().is_some_and(|(ready, _)| ready == generation);
        match self.record.update.as_ref().map(|update| &update.phase) {
            Some(Phase::Verified { slot, tries_left }) if waits => {
                let (slot, tries_left) = (*slot, *tries_left);
                self.take_part(slot, tries_left, now_ms)
            }
            Some(_) | None => Vec::new(),
        }
    }

    /// The bundle that is ready is assigned again: it waits on, or takes its part at once. Nothing is fetched, and the model stays loaded.
    pub(super) fn assigned_ready(
        &mut self,
        mut update: Update,
        slot: Slot,
        tries_left: u32,
        ready_since_ms: u64,
        now_ms: u64,
    ) -> Vec<Effect> {
        update.phase = Phase::Verified { slot, tries_left };
        let waits = !update.activation.is_at_once();
        self.record.update = Some(update);
        self.note_update(DeviceEventKind::Assigned, "");
        if waits {
            self.run.ready_since_ms = Some(ready_since_ms);
            return vec![Effect::Persist, Effect::Tell, Effect::Report];
        }
        self.take_part(slot, tries_left, now_ms)
    }

    fn take_part(&mut self, slot: Slot, tries_left: u32, now_ms: u64) -> Vec<Effect> {
        self.run.ready_since_ms = None;
        if let Some(update) = &mut self.record.update {
            // It has waited; should its files rot one day, they come back without waiting again.
            update.activation = Activation::AtOnce;
        }
        if self.is_for_beside() {
            return self.begin_beside(slot, tries_left, now_ms);
        }
        let serve = Effect::Serve(Pointer { slot, generation: self.generation() });
        self.set_phase(Phase::Trial { slot, tries_left, watched_ms: 0 });
        self.note_update(DeviceEventKind::Trial, "");
        self.run.trial_since_ms = Some(now_ms);
        vec![Effect::Persist, serve, Effect::Tell, Effect::Report]
    }
}
