//! A model beside the incumbent: how it comes to run there, stays, and leaves.
//!
//! The incumbent is committed and answers throughout; nothing here touches the pointer. What the second model is for (a shadow, a share
//! of the requests) is in the update's stage; how it runs is for whoever carries [`Effect::RunBeside`] out.

use muster_shared::messages::DeviceEventKind;
use muster_shared::trust::Stage;

use super::{Effect, Machine};
use crate::record::{MAX_TRIES, Phase, Update};
use crate::slots::{Pointer, Slot};

/// Why a bundle cannot run beside another.
const NO_INCUMBENT: &str = "it was to run beside a bundle, and none serves here";

impl Machine {
    /// Whether the bundle of the update is to run beside the incumbent.
    pub(super) fn is_for_beside(&self) -> bool {
        self.record.update.as_ref().is_some_and(|update| !update.stage.is_serve())
    }

    /// The model of `slot` has passed its test.
    pub(super) fn begin_beside(&mut self, slot: Slot, tries_left: u32, now_ms: u64) -> Vec<Effect> {
        if !self.is_serving() {
            return self.fail(NO_INCUMBENT.to_owned());
        }
        self.set_phase(Phase::Beside { slot, tries_left });
        self.note_update(DeviceEventKind::Beside, &self.stage_in_words());
        self.run.beside_since_ms = Some(now_ms);
        vec![Effect::Persist, self.run_beside(slot), Effect::Tell, Effect::Report]
    }

    /// After a restart the model of `slot` has passed its test again.
    pub(super) fn take_beside_up(&mut self, slot: Slot, now_ms: u64) -> Vec<Effect> {
        if !self.is_serving() {
            return self.fail(NO_INCUMBENT.to_owned());
        }
        self.run.beside_since_ms = Some(now_ms);
        vec![self.run_beside(slot), Effect::Report]
    }

    /// Having lived as long as a trial lasts, a model that runs beside another or waits has its tries back, once.
    pub(super) fn return_tries(&mut self, now_ms: u64) -> Vec<Effect> {
        let (Some(since_ms), Some(update)) = (self.living_since_ms(), &mut self.record.update) else {
            return Vec::new();
        };
        let (Phase::Beside { tries_left, .. } | Phase::Verified { tries_left, .. }) = &mut update.phase else {
            return Vec::new();
        };
        if *tries_left >= MAX_TRIES || now_ms.saturating_sub(since_ms) < update.watch.probation_ms {
            return Vec::new();
        }
        *tries_left = MAX_TRIES;
        vec![Effect::Persist]
    }

    /// Since when a model is loaded that neither serves nor is tested.
    fn living_since_ms(&self) -> Option<u64> {
        self.run.beside_since_ms.or(self.run.ready_since_ms)
    }

    /// Whether [`Self::return_tries`] has something to wait for.
    pub(super) fn awaits_tries(&self) -> bool {
        let phase = self.record.update.as_ref().map(|update| &update.phase);
        let is_short = |phase: &Phase| matches!(phase, Phase::Beside { tries_left, .. } | Phase::Verified { tries_left, .. } if *tries_left < MAX_TRIES);
        self.living_since_ms().is_some() && phase.is_some_and(is_short)
    }

    /// The bundle that runs beside the incumbent is assigned again: to run there otherwise, or to serve. Nothing is fetched, and the model
    /// stays loaded.
    pub(super) fn assigned_beside(
        &mut self,
        mut update: Update,
        slot: Slot,
        tries_left: u32,
        now_ms: u64,
    ) -> Vec<Effect> {
        let is_to_serve = update.stage.is_serve();
        let pointer = Pointer { slot, generation: update.generation };
        update.phase = if is_to_serve {
            Phase::Trial { slot, tries_left, watched_ms: 0 }
        } else {
            Phase::Beside { slot, tries_left }
        };
        self.record.update = Some(update);
        self.note_update(DeviceEventKind::Assigned, "");
        if is_to_serve {
            self.run.beside_since_ms = None;
            self.run.trial_since_ms = Some(now_ms);
            self.note_update(DeviceEventKind::Trial, "it ran beside the incumbent before");
            return vec![Effect::Persist, Effect::EndBeside, Effect::Serve(pointer), Effect::Tell, Effect::Report];
        }
        self.note_update(DeviceEventKind::Beside, &self.stage_in_words());
        vec![Effect::Persist, self.run_beside(slot), Effect::Tell, Effect::Report]
    }

    /// What an assignment that can only fail is answered with, where it has a bundle run beside none.
    pub(super) fn lacks_incumbent(&self, stage: &Stage) -> Option<String> {
        (!stage.is_serve() && self.record.committed.is_none()).then(|| NO_INCUMBENT.to_owned())
    }

    /// Ends the model beside the incumbent, where one ran; the record must say so already.
    pub(super) fn leave_beside(&mut self, ran: bool) -> Vec<Effect> {
        if ran { vec![Effect::EndBeside, Effect::Tidy { keep: self.kept() }] } else { Vec::new() }
    }

    fn run_beside(&self, slot: Slot) -> Effect {
        Effect::RunBeside(Pointer { slot, generation: self.generation() })
    }

    fn stage_in_words(&self) -> String {
        self.record.update.as_ref().map(|update| update.stage.to_string()).unwrap_or_default()
    }
}
