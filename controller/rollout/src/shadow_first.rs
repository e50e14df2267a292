//! Devices that run the bundle as shadow first, and serve it when their turn comes.
//!
//! Waves that run as shadow come before those that serve. A wave that serves first tells devices that ran the bundle as shadow, in the
//! order in which waves take devices, and takes others in only where it has room for more. Each gets a new generation and counts as of
//! the wave that told it to serve. For whom there is no room goes on as shadow, and is neither waited for nor counted until its turn comes,
//! but for its failures. Who failed as shadow does not get to serve.

use muster_shared::ids::DeviceId;
use muster_shared::rollout::WaveSpec;
use muster_shared::trust::Stage;

use crate::cohort::{Survey, hash};
use crate::fleet::DeviceFacts;
use crate::rollout::{Errand, Rollout, Target};
use crate::standing::{fresh_generation, past};
use crate::walk::side_by_side;
use crate::wave::take_note;

impl Rollout {
    /// In which part the devices of the current wave run the bundle.
    pub(crate) fn wave_stage(&self) -> &Stage {
        self.spec.stage_of(self.current_wave)
    }

    /// Whether the current wave is about the device: not while it serves and the device still runs as shadow.
    pub(crate) fn is_watched(&self, target: &Target) -> bool {
        !(target.beside && self.wave_stage().is_serve())
    }

    /// Whether devices have come in since `before`, or were told to serve what they ran as shadow.
    #[must_use]
    pub fn lets_in_since(&self, before: &Self) -> bool {
        let serves_now =
            |old: &Target, target: &Target| old.beside && !target.beside && target.errand == Errand::Forward;
        side_by_side(&self.targets, &before.targets)
            .any(|(_, target, old)| old.is_none_or(|old| serves_now(old, target)))
    }
}

/// The devices that the current wave tells to serve what they run as shadow, of those that `may` be told now.
pub(crate) fn next_to_serve<'f>(
    rollout: &Rollout,
    survey: &Survey<'f>,
    spec: &WaveSpec,
    may: impl Fn(&DeviceId, &DeviceFacts) -> bool,
) -> Vec<(&'f DeviceId, &'f DeviceFacts)> {
    if !rollout.wave_stage().is_serve() || !rollout.targets.values().any(|target| target.beside) {
        return Vec::new();
    }
    let (mut all, mut serving, mut shadows) = (0, 0, Vec::new());
    for (id, facts, target) in side_by_side(survey.wave_candidates(rollout.current_wave, spec), &rollout.targets) {
        all += 1;
        match target {
            Some(target) if !target.beside => serving += 1,
            Some(target) if target.failure.is_none() => {
                shadows.push((hash(&survey.rollout, id.as_str()), id, facts));
            }
            Some(_) | None => {}
        }
    }
    shadows.sort_unstable_by_key(|(hash, ..)| *hash);
    let room = spec.size.of(all).saturating_sub(serving);
    shadows.into_iter().map(|(_, id, facts)| (id, facts)).filter(|(id, facts)| may(id, facts)).take(room).collect()
}

/// Tells them.
pub(crate) fn promote(
    next: &mut Rollout,
    survey: &Survey<'_>,
    spec: &WaveSpec,
    may: impl Fn(&DeviceId, &DeviceFacts) -> bool,
    now_ms: u64,
) {
    let (wave, deadlines) = (next.current_wave, next.spec.deadlines);
    for (id, facts) in next_to_serve(next, survey, spec, may) {
        let Some(target) = next.targets.get_mut(id) else { continue };
        let Some(generation) = fresh_generation(facts, target.generation) else { continue };
        (target.generation, target.attempts) = (generation, 1);
        (target.beside, target.wave) = (false, wave);
        (target.assigned_at_ms, target.done_at_ms) = (now_ms, None);
        target.previous = past(target, facts);
        take_note(target, facts, deadlines, now_ms);
    }
}
