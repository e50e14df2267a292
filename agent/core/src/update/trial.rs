//! From the test of a new model to its probation's end, good or bad.

use muster_shared::limits::bounded_text;
use muster_shared::messages::{DeviceEventKind, RequestCounts};

use super::{Effect, Machine};
use crate::record::{MAX_TRIES, Phase};
use crate::slots::{Pointer, Slot};

impl Machine {
    pub(super) fn tested(&mut self, generation: u64, result: Result<(), String>, now_ms: u64) -> Vec<Effect> {
        let Some(update) = self.record.update.as_ref().filter(|u| u.generation == generation) else {
            return Vec::new();
        };
        match (update.phase.clone(), result) {
            (Phase::Verified { .. }, _) if self.run.ready_since_ms.is_some() => Vec::new(),
            (Phase::Verified { slot, tries_left }, Ok(())) => self.passed(slot, tries_left, now_ms),
            (Phase::Beside { slot, .. }, Ok(())) if self.run.beside_since_ms.is_none() => {
                self.take_beside_up(slot, now_ms)
            }
            (Phase::Beside { .. }, Err(reason)) if self.run.beside_since_ms.is_none() => self.fail(reason),
            (Phase::Trial { slot, .. }, Ok(())) if self.run.trial_since_ms.is_none() => {
                self.run.trial_since_ms = Some(now_ms);
                vec![Effect::Serve(Pointer { slot, generation }), Effect::Report]
            }
            (Phase::Verified { .. }, Err(reason)) => self.fail(reason),
            (Phase::Trial { .. }, Err(reason)) if self.run.trial_since_ms.is_none() => self.revert(reason),
            (
                Phase::Withdrawn
                | Phase::Fetching { .. }
                | Phase::Beside { .. }
                | Phase::Trial { .. }
                | Phase::Committed
                | Phase::Reverted { .. }
                | Phase::Failed { .. },
                _,
            ) => Vec::new(),
        }
    }

    pub(super) fn tick(&mut self, counts: RequestCounts, now_ms: u64) -> Vec<Effect> {
        let (Some(since_ms), Some(update)) = (self.run.trial_since_ms, &self.record.update) else {
            return self.return_tries(now_ms);
        };
        let Phase::Trial { slot, watched_ms, .. } = update.phase else { return Vec::new() };
        let watch = update.watch;
        if counts.served > 0 && counts.served >= watch.min_requests {
            let rate = counts.errors() as f64 / counts.served as f64;
            // A limit that is no number is not kept, so it reverts rather than passes.
            let kept = rate <= watch.max_error_rate;
            if !kept {
                return self.revert(format!(
                    "error rate {rate:.3} > {:.3} ({} of {} requests failed on trial)",
                    watch.max_error_rate,
                    counts.errors(),
                    counts.served
                ));
            }
        }
        if watched_ms.saturating_add(now_ms.saturating_sub(since_ms)) < watch.probation_ms {
            return Vec::new();
        }
        self.commit(slot, &format!("after probation with {} requests, {} failed", counts.served, counts.errors()))
    }

    pub(super) fn commit(&mut self, slot: Slot, detail: &str) -> Vec<Effect> {
        let pointer = Pointer { slot, generation: self.generation() };
        if let Some(content) = self.record.slots.get_mut(slot) {
            content.never_served = false;
        }
        let floor = self.record.slots.get(slot).map_or(0, |c| c.security_floor);
        self.record.security_floor = self.record.security_floor.max(floor);
        self.record.committed = Some(pointer);
        self.run.trial_since_ms = None;
        self.run.committed_loaded = true;
        self.set_phase(Phase::Committed);
        self.drop_unfinished();
        self.note_update(DeviceEventKind::Committed, detail);
        vec![Effect::Persist, Effect::Tell, Effect::Report, Effect::Tidy { keep: Some(slot) }]
    }

    pub(super) fn revert(&mut self, reason: String) -> Vec<Effect> {
        let on_trial = self.slot_on_trial();
        let reason = bounded_text(&reason);
        self.set_phase(Phase::Reverted { reason: reason.clone() });
        self.note_update(DeviceEventKind::Reverted, &reason);
        let mut effects = vec![Effect::Persist];
        effects.extend(self.leave_trial(on_trial));
        effects.extend([Effect::Tell, Effect::Report]);
        effects
    }

    pub(super) fn stopping(&mut self, now_ms: u64) -> Vec<Effect> {
        let since_ms = self.run.trial_since_ms.take();
        let Some(update) = &mut self.record.update else { return Vec::new() };
        match &mut update.phase {
            // A stop in order is no sign against the bundle: the try is given back, and the time watched counts.
            Phase::Verified { tries_left, .. } | Phase::Beside { tries_left, .. } => {
                *tries_left = (*tries_left + 1).min(MAX_TRIES)
            }
            Phase::Trial { tries_left, watched_ms, .. } => {
                *tries_left = (*tries_left + 1).min(MAX_TRIES);
                if let Some(since_ms) = since_ms {
                    *watched_ms = watched_ms.saturating_add(now_ms.saturating_sub(since_ms));
                }
            }
            Phase::Withdrawn
            | Phase::Fetching { .. }
            | Phase::Committed
            | Phase::Reverted { .. }
            | Phase::Failed { .. } => return Vec::new(),
        }
        vec![Effect::Persist]
    }

    /// The slot whose model serves on trial.
    pub(super) fn slot_on_trial(&self) -> Option<Slot> {
        self.run.trial_since_ms.and(self.record.update.as_ref()).and_then(|u| u.phase.working_slot())
    }

    pub(super) fn kept(&self) -> Option<Slot> {
        self.record.committed.filter(|_| self.run.committed_loaded).map(|p| p.slot)
    }

    /// Lets the incumbent answer again, where a model on trial did.
    pub(super) fn leave_trial(&mut self, on_trial: Option<Slot>) -> Vec<Effect> {
        self.run.trial_since_ms = None;
        if on_trial.is_none() {
            return Vec::new();
        }
        let serve =
            self.record.committed.filter(|_| self.run.committed_loaded).map_or(Effect::ServeNothing, Effect::Serve);
        vec![serve, Effect::Tidy { keep: self.kept() }]
    }
}
