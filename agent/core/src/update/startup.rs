//! How the machine starts: the committed bundle first, then the update where the record left it.

use muster_shared::limits::bounded_text;
use muster_shared::messages::DeviceEventKind;
use muster_shared::trust::{Activation, Stage, WatchPolicy};

use super::{Effect, Machine};
use crate::record::{MAX_TRIES, Phase, Update};
use crate::slots::Pointer;

impl Machine {
    pub(super) fn start(&mut self) -> Vec<Effect> {
        match self.record.committed {
            // Before anything is written or told: a disk that takes nothing must not keep the bundle from serving.
            Some(pointer) => vec![Effect::LoadCommitted(pointer)],
            None => self.tell_and_resume(),
        }
    }

    pub(super) fn committed_loaded(&mut self) -> Vec<Effect> {
        let Some(pointer) = self.record.committed else { return self.tell_and_resume() };
        self.run.committed_loaded = true;
        let mut effects = vec![Effect::Serve(pointer)];
        if std::mem::take(&mut self.run.fell_back) {
            effects.push(Effect::Persist);
        }
        if std::mem::take(&mut self.run.manifest_lost) {
            effects.push(Effect::Report);
        }
        effects.extend(self.tell_and_resume());
        // A death between a commit and what it tidies must not leave that lying until the next one.
        effects.push(Effect::Tidy { keep: Some(pointer.slot) });
        effects
    }

    /// What resuming noted is told after it is written, and everything left from before along with it.
    fn tell_and_resume(&mut self) -> Vec<Effect> {
        let next = self.resume();
        let tell = (!self.record.untold.is_empty() && !next.contains(&Effect::Tell)).then_some(Effect::Tell);
        tell.into_iter().chain(next).collect()
    }

    /// The manifest comes with every delivery of the assignment, so nothing is given up for good.
    pub(super) fn committed_manifest_lost(&mut self, reason: &str) -> Vec<Effect> {
        let lost = self.record.committed;
        let effects = self.committed_unusable(reason, &[]);
        self.run.manifest_lost = lost.is_some() && self.record.committed == lost;
        effects
    }

    pub(super) fn committed_unusable(&mut self, reason: &str, damaged: &[u32]) -> Vec<Effect> {
        let Some(pointer) = self.record.committed else { return self.resume() };
        let bundle = self.record.committed_bundle();
        if damaged.is_empty() {
            self.run.unusable.insert(pointer.slot);
        }
        self.lose_chunks(pointer.slot, damaged);
        self.run.fell_back = false;
        let other = pointer.slot.other();
        // A bundle that is to run beside this one never takes its place, and without this one it has none itself.
        let beside = self.record.update.as_ref().filter(|u| !u.stage.is_serve()).and_then(|u| u.phase.working_slot());
        let working = self.record.update.as_ref().and_then(|u| u.phase.working_slot());
        let fallback = self.record.slots.get(other).is_some_and(|content| {
            content.have.is_full()
                && !content.never_served
                && content.release_counter >= self.record.security_floor
                && working != Some(other)
                && !self.run.unusable.contains(&other)
        });
        let kind = if fallback { DeviceEventKind::Reverted } else { DeviceEventKind::Alarm };
        self.note(kind, pointer.generation, bundle.as_ref().map(|b| b.bundle.clone()), reason);
        if fallback {
            self.record.committed = Some(Pointer { slot: other, generation: pointer.generation });
            if working.is_none() {
                self.set_phase(Phase::Reverted { reason: bounded_text(reason) });
            }
            self.run.fell_back = true;
            return self.record.committed.map(Effect::LoadCommitted).into_iter().collect();
        }
        if !damaged.is_empty() {
            // What is left cannot serve, so there is nothing to lose by fetching it again in its own place.
            self.record.committed = None;
            if (working.is_none() || beside.is_some())
                && let Some(bundle) = bundle
            {
                let phase = Phase::Fetching { slot: pointer.slot, repairs: 0 };
                self.record.update = self.record.update.take().map(|update| Update {
                    manifest: Some(bundle.manifest),
                    bundle: Some(bundle.bundle),
                    // A bundle that had been fallen back to was not the one this policy came with.
                    watch: if update.manifest == Some(bundle.manifest) { update.watch } else { WatchPolicy::default() },
                    stage: Stage::Serve,
                    activation: Activation::AtOnce,
                    phase,
                    ..update
                });
            }
        }
        let mut effects = vec![Effect::Persist, Effect::Tell, Effect::Report];
        effects.extend(self.resume());
        effects
    }

    /// Takes the update up where the record left it.
    pub(super) fn resume(&mut self) -> Vec<Effect> {
        let Some(update) = &self.record.update else { return Vec::new() };
        let generation = update.generation;
        match update.phase.clone() {
            Phase::Fetching { slot, .. } => {
                if self.record.slots.get(slot).is_none() {
                    return Vec::new();
                }
                // The other slot may have been emptied to make room for this one, and the process have died before its files went.
                let emptied = self.record.committed.is_none() && self.record.slots.get(slot.other()).is_none();
                let tidy = emptied.then_some(Effect::Tidy { keep: None });
                tidy.into_iter().chain(self.fetch_into(slot, generation)).collect()
            }
            phase @ (Phase::Verified { .. } | Phase::Beside { .. } | Phase::Trial { .. }) => self.try_again(phase),
            Phase::Withdrawn | Phase::Committed | Phase::Reverted { .. } | Phase::Failed { .. } => Vec::new(),
        }
    }

    /// Spends a try of `phase` and tests the model; the try is gone, durably, before the model can do harm.
    pub(super) fn try_again(&mut self, mut phase: Phase) -> Vec<Effect> {
        let (Phase::Verified { slot, tries_left }
        | Phase::Beside { slot, tries_left }
        | Phase::Trial { slot, tries_left, .. }) = &mut phase
        else {
            return Vec::new();
        };
        let slot = *slot;
        let Some(left) = tries_left.checked_sub(1) else {
            let reason = format!("the agent did not survive this bundle {MAX_TRIES} times");
            return if matches!(phase, Phase::Trial { .. }) { self.revert(reason) } else { self.fail(reason) };
        };
        *tries_left = left;
        self.set_phase(phase);
        vec![Effect::Persist, Effect::Test { slot, generation: self.generation() }]
    }
}
