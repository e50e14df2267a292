//! When a rollout that is ready begins.

use muster_shared::rollout::Waiting;

use crate::conflict;
use crate::fleet::Fleet;
use crate::rollout::Rollout;

/// What keeps a rollout that is ready from beginning; none where it begins now.
pub(crate) fn wait(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Option<Waiting> {
    scheduled(rollout, now_ms).or_else(|| conflict::queue(rollout, fleet))
}

/// A rollout before its time waits for that alone, and in nobody's queue.
fn scheduled(rollout: &Rollout, now_ms: u64) -> Option<Waiting> {
    wake_at_ms(rollout, now_ms).map(|at_ms| Waiting::Scheduled { at_ms })
}

/// When the clock alone may let a rollout that is ready begin.
pub(crate) fn wake_at_ms(rollout: &Rollout, now_ms: u64) -> Option<u64> {
    rollout.spec.start_at_ms.filter(|at_ms| *at_ms > now_ms)
}
