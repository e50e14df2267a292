//! Calls devices of a stopped rollout back from a switch that they were told of and that has not come.
//!
//! A stop leaves devices with what they have. One that has prepared the bundle and holds it, or has a time to switch at, would change that by
//! itself later; so it is told, under a new generation, to keep what it runs. Who has switched is left alone, and so is who failed. What was
//! told before, on a way back that was stopped, stands: those of one group must not end in two halves.
//!
//! A device that is away and has a time switches at it, since nobody can tell it; it is called back when it returns.

use muster_shared::rollout::Waiting;
use muster_shared::trust::Activation;

use crate::fleet::{DeviceFacts, Fleet};
use crate::rollout::{Errand, MAX_ATTEMPTS, Rollout, Target};
use crate::standing::{Standing, fresh_generation, past, standing};

/// Whether the end of the rollout leaves devices that may have a switch ahead.
pub(crate) fn is_needed(rollout: &Rollout) -> bool {
    let may_switch = |target: &Target| target.errand == Errand::Back || target.activation != Activation::AtOnce;
    let mut open = rollout.targets.values().filter(|target| target.done_at_ms.is_none());
    rollout.spec.blue_green.is_some() && open.any(may_switch)
}

/// One look at a stopped rollout. Says whom it waits for, of those that can be reached.
pub(crate) fn recall(next: &mut Rollout, fleet: &Fleet, now_ms: u64) -> Option<Waiting> {
    let (mut done, mut going) = (0u32, 0u32);
    next.change_governed(fleet, |_, _, target, facts| {
        let attempts = match (target.errand, standing(target, facts)) {
            (Errand::Forward, Standing::Unheard | Standing::Working | Standing::Astray) => {
                (has_switch_ahead(target, facts)).then_some(1)
            }
            (Errand::Back, Standing::Astray) => Some(target.attempts + 1),
            (Errand::Back, Standing::Done) => {
                target.done_at_ms = target.done_at_ms.or(Some(now_ms));
                None
            }
            (Errand::Forward, Standing::Trial | Standing::Done | Standing::Failed(_))
            | (Errand::Back, Standing::Unheard | Standing::Working | Standing::Trial | Standing::Failed(_))
            | (Errand::Keep, _) => None,
        };
        let fresh = attempts.filter(|attempts| *attempts <= MAX_ATTEMPTS);
        if let Some((attempts, generation)) = fresh.zip(fresh_generation(facts, target.generation)) {
            target.previous = past(target, facts);
            target.turn_back(target.previous, generation, attempts, now_ms);
        }
        if target.errand == Errand::Back {
            let is_done = target.done_at_ms.is_some();
            done += u32::from(is_done);
            going += u32::from(!is_done && facts.online);
        }
    });
    (going > 0).then(|| Waiting::GoingBack { done, of: done.saturating_add(going) })
}

/// Whether a device that has not arrived would switch to the bundle later.
fn has_switch_ahead(target: &Target, facts: &DeviceFacts) -> bool {
    let runs = facts.reported.as_ref().and_then(|report| report.running.as_ref()).map(|bundle| bundle.manifest);
    target.activation != Activation::AtOnce && target.failure.is_none() && runs != target.manifest
}
