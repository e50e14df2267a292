//! Abort criteria: so many devices fail that a running rollout ends by itself.
//!
//! They are looked at whenever a running wave is judged: before its soak, and beside its limits, its gate and its analyses. Counted are all
//! devices that were told to run the bundle, of every wave so far; those that had it before were told nothing, and do not count. What else
//! asks for a way back wins over a criterion that cancels.

use muster_shared::rollout::{
    AbortAction, AbortCriterion, Check, CriteriaInputs, DeviceEnds, FailureKind, Outcome, RolloutStatus, Rule, Verdict,
};

use crate::actions::OperatorAction;
use crate::analysis;
use crate::judgement::Judgement;
use crate::rollout::{Errand, Rollout, Target};
use crate::wording::{count, counted};

/// What the criteria of `rollout` are held against; none where it has none.
pub(crate) fn inputs(rollout: &Rollout) -> Option<CriteriaInputs> {
    let criteria = &rollout.spec.abort_criteria;
    (!criteria.is_empty()).then(|| CriteriaInputs { criteria: criteria.clone(), ends: ends(rollout.targets.values()) })
}

/// How devices that were told to run the bundle have ended.
fn ends<'t>(targets: impl Iterator<Item = &'t Target>) -> DeviceEnds {
    let mut ends = DeviceEnds::default();
    for target in targets.filter(|target| target.errand == Errand::Forward) {
        let kind = target.failed_as();
        ends.executed += u32::from(kind.is_some() || target.done_at_ms.is_some());
        match kind {
            Some(FailureKind::Failed) => ends.failed += 1,
            Some(FailureKind::Rejected) => ends.rejected += 1,
            Some(FailureKind::TimedOut) => ends.timed_out += 1,
            None => {}
        }
    }
    ends
}

fn matching(ends: &DeviceEnds, criterion: &AbortCriterion) -> u32 {
    let kinds = [
        (ends.failed, FailureKind::Failed),
        (ends.rejected, FailureKind::Rejected),
        (ends.timed_out, FailureKind::TimedOut),
    ];
    let counted = kinds.iter().filter(|(_, kind)| criterion.failure_type.counts(*kind));
    counted.fold(0u32, |sum, (n, _)| sum.saturating_add(*n))
}

/// Every criterion held against how devices have ended, in order.
pub(crate) fn checks(inputs: &CriteriaInputs) -> Vec<Check> {
    let CriteriaInputs { criteria, ends } = inputs;
    criteria.iter().map(|criterion| check(criterion, matching(ends, criterion), ends.executed)).collect()
}

fn check(criterion: &AbortCriterion, matching: u32, executed: u32) -> Check {
    let share = (executed > 0).then(|| 100.0 * f64::from(matching) / f64::from(executed));
    let ended = counted(u64::from(executed), "device");
    let (outcome, sentence) = match share {
        Some(share) if executed >= criterion.min_number_of_executed_things => {
            let met = criterion.is_met(matching, executed);
            let sign = if met { '≥' } else { '<' };
            let seen = format!("{} of {ended} that ended {}", count(u64::from(matching)), criterion.did());
            let outcome = if met { Outcome::Failed } else { Outcome::Successful };
            (outcome, format!("{seen}, {share:.2} % {sign} {} % ({criterion})", criterion.threshold_percentage))
        }
        _ => (Outcome::Inconclusive, format!("not looked at yet, {ended} ended ({criterion})")),
    };
    Check {
        rule: Rule::AbortCriterion,
        outcome,
        measured: share,
        limit: criterion.threshold_percentage,
        canary_samples: u64::from(executed),
        control_samples: 0,
        sentence,
    }
}

/// Ends a rollout whose wave has failed: it goes back, unless all that failed are criteria that cancel.
pub(crate) fn end(next: &mut Rollout, judgement: Judgement, now_ms: u64) {
    let wave = next.current_wave;
    // An analysis that has failed counts here, too.
    let judgement = if next.spec.abort_criteria.is_empty() { judgement } else { analysis::held(next, judgement) };
    let verdict = judgement.failed(wave, now_ms);
    // As when an operator aborts: what runs beside another is ended, on the way back.
    let stops = next.after(OperatorAction::Abort).filter(|_| is_cancelled(next, &verdict));
    next.status = stops.unwrap_or(RolloutStatus::RollingBack);
    next.conclude(verdict);
}

fn is_cancelled(rollout: &Rollout, verdict: &Verdict) -> bool {
    let mut criteria = rollout.spec.abort_criteria.iter();
    let mut actions = verdict.checks.iter().map(|check| {
        let criterion = if check.rule == Rule::AbortCriterion { criteria.next() } else { None };
        (check.outcome, criterion.map_or(AbortAction::RollBack, |criterion| criterion.action))
    });
    actions.all(|(outcome, action)| outcome != Outcome::Failed || action == AbortAction::Cancel)
}
