//! Rules about people: nothing begins without the approvals it needs, counted anew from the record, and silence ends what waits.

use muster_shared::rollout::{ApprovalOutcome, ApprovalRecord, RolloutStatus, Waiting};

use super::{Case, Violation};
use crate::rollout::Rollout;

/// Whether what stands in the record lets the rollout begin.
fn may_begin(rollout: &Rollout, record: &ApprovalRecord) -> bool {
    let wish = rollout.spec.approval.as_ref();
    let mut names: Vec<&str> = Vec::new();
    for approval in &record.given {
        let asked = wish.is_none_or(|wish| wish.approvers.is_empty() || wish.approvers.contains(&approval.by));
        if asked && !names.contains(&approval.by.as_str()) {
            names.push(&approval.by);
        }
    }
    let enough = names.len() as u64 >= u64::from(record.needed.max(wish.map_or(0, |wish| wish.needed)));
    let others = names.iter().filter(|name| Some(**name) != rollout.created_by.as_deref()).count();
    enough && others > 0
}

impl Case<'_> {
    pub(super) fn approval(&mut self) {
        let (before, next) = (self.before, self.next);
        let wrong = Violation::Approval;
        self.expect(before.created_by == next.created_by, || Violation::Changed { what: "who asked for it" });
        let said = |rollout: &Rollout| {
            let record = rollout.approval.as_ref();
            record.map(|record| (record.needed, record.given.clone(), record.rejected.clone()))
        };
        self.expect(said(before) == said(next), || wrong("what people said changed without them"));
        let outcome = |rollout: &Rollout| rollout.approval.as_ref().map(|record| record.outcome);
        let ends = before.status == RolloutStatus::WaitingForApproval && next.status == RolloutStatus::Stopped;
        let right =
            if ends { outcome(next) == Some(ApprovalOutcome::TimedOut) } else { outcome(before) == outcome(next) };
        self.expect(right, || wrong("what came of it is not what happened"));
        let within_ms = before.spec.approval.as_ref().and_then(|wish| wish.within_ms);
        let waited_ms = self.now_ms.saturating_sub(before.created_at_ms);
        let silent_for_too_long = within_ms.is_some_and(|within_ms| waited_ms >= within_ms);
        match (before.status, next.status) {
            (RolloutStatus::WaitingForApproval, RolloutStatus::Stopped) => {
                self.expect(silent_for_too_long, || wrong("it ended before the time for approvals was over"));
            }
            (RolloutStatus::WaitingForApproval, RolloutStatus::WaitingForApproval) if next.approval.is_some() => {
                self.expect(!silent_for_too_long, || wrong("the time for approvals is over, and it waits"));
                let says = |waiting: &Waiting| matches!(waiting, Waiting::Approval { .. });
                self.expect(self.decision.waiting.iter().any(says), || Violation::Silent);
            }
            (_, RolloutStatus::Running | RolloutStatus::Completed) => {
                let asked = next.spec.approval.is_none() || next.approval.is_some();
                let founded = next.approval.as_ref().is_none_or(|record| may_begin(next, record));
                self.expect(asked && founded, || wrong("it goes on without the approvals it needs"));
            }
            (_, _) => {}
        }
    }
}
