//! From the first chunk to files that are all there and right.

use muster_shared::chunk::ChunkSet;
use muster_shared::messages::DeviceEventKind;

use super::{Effect, FileDamage, Machine};
use crate::record::{MAX_REPAIRS, MAX_TRIES, Phase};
use crate::slots::Slot;

impl Machine {
    pub(super) fn fetch_or_check(&self, slot: Slot, generation: u64) -> Effect {
        if self.record.slots.get(slot).is_some_and(|c| c.have.is_full()) {
            Effect::CheckFiles { slot, generation }
        } else {
            Effect::Fetch { slot, generation }
        }
    }

    pub(super) fn chunks_durable(&mut self, generation: u64, chunks: &[u32]) -> Vec<Effect> {
        let Some((slot, _)) = self.fetching(generation) else { return Vec::new() };
        let Some(content) = self.record.slots.get_mut(slot) else { return Vec::new() };
        let tenth = |have: &ChunkSet| u64::from(have.count()) * 10 / u64::from(have.length().max(1));
        let before = tenth(&content.have);
        for chunk in chunks {
            content.have.insert(*chunk);
        }
        let (after, full) = (tenth(&content.have), content.have.is_full());
        let mut effects = vec![Effect::Persist];
        if full {
            effects.extend([Effect::StopFetching, Effect::Report, Effect::CheckFiles { slot, generation }]);
        } else if after > before {
            effects.push(Effect::Report);
        }
        effects
    }

    pub(super) fn chunks_lost(&mut self, generation: u64, chunks: &[u32]) -> Vec<Effect> {
        let Some((slot, _)) = self.fetching(generation) else { return Vec::new() };
        self.lose_chunks(slot, chunks);
        vec![Effect::Persist, self.fetch_or_check(slot, generation)]
    }

    pub(super) fn lose_chunks(&mut self, slot: Slot, chunks: &[u32]) {
        if let Some(content) = self.record.slots.get_mut(slot) {
            for chunk in chunks {
                content.have.remove(*chunk);
            }
        }
    }

    pub(super) fn files_checked(&mut self, generation: u64, result: Result<(), FileDamage>) -> Vec<Effect> {
        let Some((slot, repairs)) = self.fetching(generation) else { return Vec::new() };
        match result {
            Ok(()) => {
                if let Some(content) = self.record.slots.get_mut(slot) {
                    for chunk in 0..content.have.length() {
                        content.have.insert(chunk);
                    }
                }
                self.set_phase(Phase::Verified { slot, tries_left: MAX_TRIES });
                self.note_update(DeviceEventKind::Verified, "");
                let mut effects = self.try_again(Phase::Verified { slot, tries_left: MAX_TRIES });
                effects.splice(1..1, [Effect::Tell, Effect::Report]);
                effects
            }
            Err(damage) if damage.chunks.is_empty() || repairs >= MAX_REPAIRS => self.fail(damage.reason),
            Err(damage) => {
                self.lose_chunks(slot, &damage.chunks);
                self.set_phase(Phase::Fetching { slot, repairs: repairs + 1 });
                vec![Effect::Persist, Effect::Report, self.fetch_or_check(slot, generation)]
            }
        }
    }

    /// The slot and the repairs of the update of `generation`, while it is being fetched.
    pub(super) fn fetching(&self, generation: u64) -> Option<(Slot, u32)> {
        let update = self.record.update.as_ref().filter(|u| u.generation == generation)?;
        match update.phase {
            Phase::Fetching { slot, repairs } => Some((slot, repairs)),
            Phase::Withdrawn
            | Phase::Verified { .. }
            | Phase::Beside { .. }
            | Phase::Trial { .. }
            | Phase::Committed
            | Phase::Reverted { .. }
            | Phase::Failed { .. } => None,
        }
    }
}
