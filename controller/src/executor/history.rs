//! What a step of a rollout adds to the fleet's history.

use muster_rollout::Rollout;
use muster_shared::ids::DeviceId;
use muster_shared::rollout::ApprovalOutcome;

use crate::events::{ACTOR_CONTROLLER, NewEvent};

/// An entry about `rollout`.
pub(super) fn entry(rollout: &Rollout, kind: &str, actor: &str, detail: String) -> NewEvent {
    NewEvent {
        kind: format!("rollout.{kind}"),
        actor: actor.to_owned(),
        device: None,
        rollout: Some(rollout.id.clone()),
        bundle: Some(rollout.bundle.bundle.clone()),
        detail,
    }
}

/// Everything worth writing down between `before` and `next`, in the order in which it happened. `told`: devices whose
/// assignment changes with this step.
pub(super) fn entries(before: &Rollout, next: &Rollout, told: &[DeviceId]) -> Vec<NewEvent> {
    let controller = |kind: &str, detail: String| entry(next, kind, ACTOR_CONTROLLER, detail);
    let mut entries = Vec::new();
    for (device, target) in &next.targets {
        let known = before.targets.get(device).and_then(|target| target.failure.as_ref());
        if let (None, Some(failure)) = (known, &target.failure) {
            let event = controller("device-failed", failure.clone());
            entries.push(NewEvent { device: Some(device.clone()), ..event });
        }
        let was_late = before.targets.get(device).is_some_and(|target| target.deadline.timed_out_at_ms.is_some());
        if let Some(why) = next.timed_out(device).filter(|_| !was_late) {
            let event = controller("device-timed-out", why);
            entries.push(NewEvent { device: Some(device.clone()), ..event });
        }
    }
    let last = before.verdicts.last();
    let known = last.and_then(|last| next.verdicts.iter().rposition(|verdict| verdict == last)).map_or(0, |at| at + 1);
    for verdict in next.verdicts.iter().skip(known) {
        let (wave, of) = (verdict.wave + 1, next.waves.len());
        entries.push(controller("verdict", format!("wave {wave} of {of}: {}: {}", verdict.outcome, verdict.summary)));
    }
    let timed_out =
        |rollout: &Rollout| rollout.approval.as_ref().is_some_and(|r| r.outcome == ApprovalOutcome::TimedOut);
    if timed_out(next) && !timed_out(before) {
        entries.push(controller("timed_out", next.status_reason.clone()));
    }
    if next.status != before.status {
        entries.push(controller(next.status.as_str(), next.status_reason.clone()));
    }
    let begun = |rollout: &Rollout, at: usize| rollout.waves.get(at).is_some_and(|wave| wave.started_at_ms.is_some());
    for at in (0..next.waves.len()).filter(|at| begun(next, *at) && !begun(before, *at)) {
        entries.push(controller("wave", format!("wave {} of {} begins", at + 1, next.waves.len())));
    }
    if !told.is_empty() {
        let shown: Vec<_> = told.iter().take(5).map(DeviceId::as_str).collect();
        let more =
            if told.len() > shown.len() { format!(" and {} more", told.len() - shown.len()) } else { String::new() };
        entries.push(controller("assigned", format!("{} devices: {}{more}", told.len(), shown.join(", "))));
    }
    entries
}
