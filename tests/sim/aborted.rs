//! What must hold of rollouts with abort criteria, written from what criteria promise.

use muster_rollout::{Errand, Rollout};
use muster_shared::rollout::{AbortAction, AbortCriterion, FailureKind, FailureType, Outcome, RolloutStatus, Rule};

use crate::rules::holds;

/// How many devices that were told to run the bundle have ended, and how many of them in the way that is counted.
fn ended(rollout: &Rollout, criterion: &AbortCriterion) -> (u32, u32) {
    let (mut executed, mut matching) = (0, 0);
    for target in rollout.targets.values().filter(|target| target.errand == Errand::Forward) {
        let late = target.deadline.timed_out_at_ms.is_some();
        let end = match (&target.failure, target.done_at_ms) {
            (Some(_), _) => Some(target.failure_kind),
            (None, Some(_)) => None,
            (None, None) if late => Some(FailureKind::TimedOut),
            (None, None) => continue,
        };
        executed += 1;
        let counts = match criterion.failure_type {
            FailureType::Failed => end == Some(FailureKind::Failed),
            FailureType::Rejected => end == Some(FailureKind::Rejected),
            FailureType::TimedOut => end == Some(FailureKind::TimedOut),
            FailureType::All => end.is_some(),
        };
        matching += u32::from(counts);
    }
    (matching, executed)
}

/// A criterion that is met takes effect at the next look; and no rollout stops by itself without one that cancels. Gives whether one ended it, and
/// whether it stopped.
pub(crate) fn aborted(before: &Rollout, next: &Rollout, now_ms: u64) -> Result<(bool, bool), String> {
    let stopped = before.status() == RolloutStatus::Running && next.status() == RolloutStatus::Stopped;
    let cancels = before.spec.abort_criteria.iter().any(|criterion| criterion.action == AbortAction::Cancel);
    holds(!stopped || cancels, || format!("{} stopped by itself", next.id))?;
    let entered_ms = before.waves.get(before.current_wave as usize).and_then(|wave| wave.started_at_ms);
    let is_looked_at =
        before.status() == RolloutStatus::Running && entered_ms.is_some_and(|entered_ms| entered_ms < now_ms);
    let goes_on = matches!(next.status(), RolloutStatus::Running | RolloutStatus::Completed | RolloutStatus::Paused);
    for criterion in next.spec.abort_criteria.iter().filter(|_| is_looked_at && goes_on) {
        let (matching, executed) = ended(next, criterion);
        let met = executed >= criterion.min_number_of_executed_things
            && 100.0 * f64::from(matching) / f64::from(executed.max(1)) >= criterion.threshold_percentage;
        holds(!met, || format!("{}: {matching} of {executed} ended so ({criterion}), and it goes on", next.id))?;
    }
    let verdict = next.verdicts.last().filter(|_| before.status() == RolloutStatus::Running && !goes_on);
    let by_criterion = verdict.is_some_and(|verdict| {
        verdict.checks.iter().any(|check| check.rule == Rule::AbortCriterion && check.outcome == Outcome::Failed)
    });
    Ok((by_criterion, stopped))
}
