//! Which rollouts are to be planned, and what was sent to devices lately. Nothing here must last: it is found again
//! in the store and in what devices report.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use muster_rollout::{Due, Rollout};
use muster_shared::ids::{DeviceId, RolloutId};
use muster_shared::trust::Track;

use crate::store::Stored;

/// A device that does not answer is told again after this time, in milliseconds.
const REPEAT_AFTER_MS: u64 = 10_000;
/// A device that is still being sent something is told again only after this time, in milliseconds.
const REPEAT_AT_LATEST_MS: u64 = 300_000;
/// A device that goes on without the newest root documents is told of them again after this time, in milliseconds.
const REPEAT_ROOTS_AFTER_MS: u64 = 30_000;
/// A device that goes on with a certificate from before the authorities changed is prompted again after this time, in milliseconds.
const PROMPT_AGAIN_AFTER_MS: u64 = 300_000;
/// How often some more assignments are renewed, in milliseconds.
const RENEW_EVERY_MS: u64 = 1_000;
/// A broken plan that cannot be paused is written about again after this time, in milliseconds.
const COMPLAIN_EVERY_MS: u64 = 60_000;

/// Evidence is tidied up so often, in milliseconds.
const TIDY_EVERY_MS: u64 = 10_000;

/// Measurements that may be under way at once; what is due besides is begun at a later pass.
const MAX_MEASURING: usize = 32;

/// See the module.
#[derive(Default)]
pub(crate) struct Schedule {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By number, so that the older rollout comes first.
    active: BTreeSet<(u64, RolloutId)>,
    /// Those rollouts as the last pass left them.
    planned: HashMap<RolloutId, Stored<Rollout>>,
    /// The generations of assignments by track, the versions of root documents, and those of the authorities for whose sake certificates are to be
    /// renewed.
    issued: BTreeMap<Track, Told>,
    told_roots: Told,
    prompted: Told,
    complained_ms: HashMap<RolloutId, u64>,
    /// What is being measured now.
    measuring: BTreeSet<(RolloutId, Due)>,
    tidied_ms: u64,
    renewed_ms: u64,
    /// Whether the fleet is stopped, and the version of the record that says so.
    stop: (u64, bool),
}

/// The number in a rollout's name; names that others made up sort last.
pub(super) fn number(rollout: &RolloutId) -> u64 {
    rollout.as_str().strip_prefix('r').and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX)
}

/// Whether `after_ms` have passed since `last_ms`. A clock set back must not silence us.
fn has_passed(last_ms: u64, now_ms: u64, after_ms: u64) -> bool {
    now_ms < last_ms || now_ms - last_ms >= after_ms
}

/// Whether it is time for what is done every `every_ms`; if so, it counts as done.
fn may_again(last_ms: &mut u64, now_ms: u64, every_ms: u64) -> bool {
    let due = has_passed(*last_ms, now_ms, every_ms);
    if due {
        *last_ms = now_ms;
    }
    due
}

/// What devices were told of last, as a number that is another one for other news, and when.
#[derive(Default)]
struct Told(HashMap<DeviceId, (u64, u64)>);

impl Told {
    fn note(&mut self, device: &DeviceId, news: u64, now_ms: u64) {
        self.0.insert(device.clone(), (news, now_ms));
    }

    /// Whether the device was not told of `news` in the last `within_ms`.
    fn is_untold(&self, device: &DeviceId, news: u64, now_ms: u64, within_ms: u64) -> bool {
        self.0.get(device).is_none_or(|(told, at_ms)| *told != news || has_passed(*at_ms, now_ms, within_ms))
    }

    /// The same; if so, it is told now.
    fn may_tell(&mut self, device: &DeviceId, news: u64, now_ms: u64, within_ms: u64) -> bool {
        let due = self.is_untold(device, news, now_ms, within_ms);
        if due {
            self.note(device, news, now_ms);
        }
        due
    }
}

impl Schedule {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rollout is to be planned.
    pub(super) fn activate(&self, rollout: &RolloutId) {
        self.lock().active.insert((number(rollout), rollout.clone()));
    }

    /// The rollout needs no planning any more.
    pub(super) fn retire(&self, rollout: &RolloutId) {
        let mut inner = self.lock();
        inner.active.remove(&(number(rollout), rollout.clone()));
        inner.complained_ms.remove(rollout);
    }

    /// Notes whether the fleet is stopped, as the record of `version` says. What is older than what is known is left aside.
    pub(super) fn note_stop(&self, version: u64, is_stopped: bool) {
        let mut inner = self.lock();
        inner.stop = inner.stop.max((version, is_stopped));
    }

    /// Whether the fleet is stopped.
    pub(super) fn is_fleet_stopped(&self) -> bool {
        self.lock().stop.1
    }

    /// Rollouts to be planned, oldest first.
    pub(super) fn active(&self) -> Vec<RolloutId> {
        self.lock().active.iter().map(|(_, rollout)| rollout.clone()).collect()
    }

    /// Rollouts as the last pass left them, once. Others may have changed them since.
    pub(super) fn take_planned(&self) -> HashMap<RolloutId, Stored<Rollout>> {
        std::mem::take(&mut self.lock().planned)
    }

    /// Keeps rollouts as a pass leaves them, as far as they are to be planned again.
    pub(super) fn keep_planned(&self, rollouts: Vec<Stored<Rollout>>) {
        let again = rollouts.into_iter().filter(|rollout| rollout.value.needs_planning());
        self.lock().planned = again.map(|rollout| (rollout.value.id.clone(), rollout)).collect();
    }

    /// Notes that the device is told of `generation` of `track` now.
    pub(super) fn note_issued(&self, device: &DeviceId, (track, generation): (Track, u64), now_ms: u64) {
        self.lock().issued.entry(track).or_default().note(device, generation, now_ms);
    }

    /// Whether it is time to tell the device of root documents up to `version`; if so, it counts as done.
    pub(super) fn may_tell_roots(&self, device: &DeviceId, version: u64, now_ms: u64) -> bool {
        self.lock().told_roots.may_tell(device, version, now_ms, REPEAT_ROOTS_AFTER_MS)
    }

    /// Whether it is time to prompt the device to renew its certificate for the sake of `version` of the authorities; if so, it counts as done.
    pub(super) fn may_prompt(&self, device: &DeviceId, version: u64, now_ms: u64) -> bool {
        self.lock().prompted.may_tell(device, version, now_ms, PROMPT_AGAIN_AFTER_MS)
    }

    /// Nothing that was told counts any more.
    pub(crate) fn forget_issued(&self) {
        self.lock().issued.clear();
    }

    /// Whether the device was not told of `generation` of `track`, or long enough ago to be told again. While something is on its way to it
    /// (`is_sending`), that may be what it was told: on a slow line, repeats would keep everything else from it.
    pub(super) fn is_due(&self, device: &DeviceId, news: (Track, u64), is_sending: bool, now_ms: u64) -> bool {
        let after_ms = if is_sending { REPEAT_AT_LATEST_MS } else { REPEAT_AFTER_MS };
        self.is_untold_for(device, news, now_ms, after_ms)
    }

    /// Whether the device was not told of `generation` of `track` in the last `within_ms`.
    pub(super) fn is_untold_for(
        &self,
        device: &DeviceId,
        (track, generation): (Track, u64),
        now_ms: u64,
        within_ms: u64,
    ) -> bool {
        let inner = self.lock();
        inner.issued.get(&track).is_none_or(|told| told.is_untold(device, generation, now_ms, within_ms))
    }

    /// Whether a measurement may be begun; if so, it counts as under way.
    pub(super) fn may_measure(&self, what: &(RolloutId, Due)) -> bool {
        let mut inner = self.lock();
        inner.measuring.len() < MAX_MEASURING && inner.measuring.insert(what.clone())
    }

    /// A measurement is not under way any more.
    pub(super) fn end_measuring(&self, what: &(RolloutId, Due)) {
        self.lock().measuring.remove(what);
    }

    /// Whether it is time to renew some more assignments; if so, it counts as done.
    pub(super) fn may_renew(&self, now_ms: u64) -> bool {
        may_again(&mut self.lock().renewed_ms, now_ms, RENEW_EVERY_MS)
    }

    /// Whether it is time to tidy up evidence; if so, it counts as done.
    pub(super) fn may_tidy(&self, now_ms: u64) -> bool {
        may_again(&mut self.lock().tidied_ms, now_ms, TIDY_EVERY_MS)
    }

    /// Whether it is time to write about a broken plan of `rollout`; if so, it counts as done.
    pub(super) fn may_complain(&self, rollout: &RolloutId, now_ms: u64) -> bool {
        let mut inner = self.lock();
        let last = inner.complained_ms.get(rollout).copied();
        let due = last.is_none_or(|last_ms| has_passed(last_ms, now_ms, COMPLAIN_EVERY_MS));
        if due {
            inner.complained_ms.insert(rollout.clone(), now_ms);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_told_again_only_after_a_while() {
        let schedule = Schedule::default();
        let device = DeviceId::new("dev-1").unwrap();
        assert!(schedule.is_due(&device, (Track::Model, 1), false, 0));
        schedule.note_issued(&device, (Track::Model, 1), 1_000);
        assert!(!schedule.is_due(&device, (Track::Model, 1), false, 1_000 + REPEAT_AFTER_MS - 1));
        assert!(schedule.is_due(&device, (Track::Model, 1), false, 1_000 + REPEAT_AFTER_MS));
        assert!(schedule.is_due(&device, (Track::Model, 2), false, 1_000));
        assert!(schedule.is_due(&device, (Track::Model, 1), false, 999));
        // What was said may still be on its way, but not for ever.
        assert!(!schedule.is_due(&device, (Track::Model, 1), true, 1_000 + REPEAT_AT_LATEST_MS - 1));
        assert!(schedule.is_due(&device, (Track::Model, 1), true, 1_000 + REPEAT_AT_LATEST_MS));
        assert!(schedule.is_due(&device, (Track::Model, 2), true, 1_000));
        assert!(schedule.is_due(&device, (Track::Program, 1), false, 1_000), "each track is told of by itself");
    }

    #[test]
    fn what_may_have_been_lost_is_told_again_after_a_while_to_each() {
        let schedule = Schedule::default();
        let (one, two) = (DeviceId::new("dev-1").unwrap(), DeviceId::new("dev-2").unwrap());
        for (device, now_ms, due) in [
            (&one, 1_000, true),
            (&one, 1_000 + REPEAT_ROOTS_AFTER_MS - 1, false),
            (&two, 1_000 + REPEAT_ROOTS_AFTER_MS - 1, true),
            (&one, 1_000 + REPEAT_ROOTS_AFTER_MS, true),
            (&one, 0, true),
        ] {
            assert_eq!(schedule.may_tell_roots(device, 7, now_ms), due, "{device} at {now_ms}");
        }
        assert!(schedule.may_prompt(&one, 4, 0) && !schedule.may_prompt(&one, 4, 1));
        assert!(schedule.may_prompt(&one, 5, 2), "something else to be told");
    }

    #[test]
    fn older_rollouts_come_first() {
        let schedule = Schedule::default();
        for id in ["r10", "r2", "r1"] {
            schedule.activate(&RolloutId::new(id).unwrap());
        }
        schedule.retire(&RolloutId::new("r1").unwrap());
        assert_eq!(schedule.active().iter().map(RolloutId::as_str).collect::<Vec<_>>(), ["r2", "r10"]);
    }
}
