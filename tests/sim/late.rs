//! What must hold of devices that are late, written from what deadlines promise.

use muster_rollout::{Errand, Fleet, Rollout};
use muster_shared::messages::UpdateState;

use crate::rules::holds;

/// Nobody is late before the shorter of its deadlines is over, nobody who has said that it committed is, and late alone is no failure.
pub(crate) fn late(before: &Rollout, next: &Rollout, fleet: &Fleet, now_ms: u64) -> Result<u64, String> {
    let mut found = 0;
    for (id, target) in &next.targets {
        let told_before = before.targets.get(id).filter(|old| old.generation == target.generation);
        let was_late = told_before.is_some_and(|old| old.deadline.timed_out_at_ms.is_some());
        if target.deadline.timed_out_at_ms.is_none() || was_late || told_before.is_none() {
            continue;
        }
        let given =
            next.spec.deadlines.ok_or_else(|| format!("{}: {id} is late, and nobody asked for that", next.id))?;
        let shortest_ms = [given.in_progress_ms, given.offline_ms].into_iter().flatten().min().unwrap_or(u64::MAX);
        // Clocks jump: one that was set back has seen the device before it was told.
        let from_ms = target.deadline.reached_at_ms.map_or(target.assigned_at_ms, |ms| ms.min(target.assigned_at_ms));
        let waited_ms = now_ms.saturating_sub(from_ms);
        holds(waited_ms >= shortest_ms, || format!("{}: {id} is late after {waited_ms} of {shortest_ms} ms", next.id))?;
        let update = fleet.devices.get(id).and_then(|facts| facts.reported.as_ref()).map(|report| &report.update);
        let has_committed = update.is_some_and(|update| {
            (update.state, update.generation) == (UpdateState::Committed, target.generation)
                && update.manifest == target.manifest
        });
        let says_so = fleet.devices.get(id).and_then(|facts| facts.reported.as_ref()?.committed.as_ref());
        let has_committed = has_committed && says_so.map(|own| own.manifest) == target.manifest;
        holds(!has_committed, || format!("{}: {id} has committed, and is late", next.id))?;
        found += 1;
    }
    silent(before, next, fleet)?;
    Ok(found)
}

/// Silence is no success: whoever was told to run the bundle has it from when the device said so, under the generation it was given.
fn silent(before: &Rollout, next: &Rollout, fleet: &Fleet) -> Result<(), String> {
    let told = next.targets.iter().filter(|(_, target)| target.errand == Errand::Forward && !target.beside);
    for (id, target) in told.filter(|(_, target)| target.done_at_ms.is_some()) {
        let old = before.targets.get(id).filter(|old| old.generation == target.generation);
        if old.is_some_and(|old| old.done_at_ms.is_some()) {
            continue;
        }
        let report = fleet.devices.get(id).and_then(|facts| facts.reported.as_ref());
        let said = report.is_some_and(|report| {
            let own = report.committed.as_ref().map(|own| own.manifest);
            (own, report.update.generation) == (target.manifest, target.generation)
        });
        holds(said, || format!("{}: {id} has succeeded and has not said that it has committed", next.id))?;
    }
    Ok(())
}
