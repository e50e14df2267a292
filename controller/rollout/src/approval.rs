//! Whether people let a rollout begin: `needed` of those who may approve must have, and whoever asked for it never suffices alone.
//!
//! Only the beginning waits for people: to pause, to end or to go back needs nobody's approval. Who has which role is the API's
//! matter; here names are counted.

use std::collections::BTreeSet;

use muster_shared::limits::bounded_text;
use muster_shared::rollout::{
    Approval, ApprovalError, ApprovalOutcome, ApprovalRecord, ApprovalSpec, RolloutStatus, Waiting,
};

use crate::rollout::Rollout;
use crate::wording::duration;

/// Why somebody's word about a rollout is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApprovalRefusal {
    /// It does not wait for approval.
    #[error("the rollout is {0} and waits for nobody's approval")]
    NotWaiting(RolloutStatus),
    /// Others are asked.
    #[error("{0} is not among the approvers that the rollout names")]
    NotAsked(String),
    /// Nobody counts twice.
    #[error("{0} has approved already, and nobody counts twice: somebody else must approve")]
    Again(String),
    /// It was waited for long enough.
    #[error("the time for approvals is over: make the rollout again")]
    TooLate,
}

impl ApprovalRefusal {
    /// Whether somebody else, in the same state, would not have been refused.
    #[must_use]
    pub fn is_about_the_person(&self) -> bool {
        match self {
            Self::NotAsked(_) => true,
            Self::NotWaiting(_) | Self::Again(_) | Self::TooLate => false,
        }
    }
}

/// A rollout that needs approvals, before anybody has said anything.
pub(crate) fn pending(needed: u32) -> ApprovalRecord {
    ApprovalRecord { needed, given: Vec::new(), rejected: None, outcome: ApprovalOutcome::Pending }
}

impl Rollout {
    /// The rollout as `creator` asks for it, at a controller that demands `least` approvals of every one: a wish can ask for more,
    /// and never for fewer.
    ///
    /// # Errors
    /// [`ApprovalError`] when so many could never be given.
    pub fn asked_for_by(mut self, creator: &str, least: u32) -> Result<Self, ApprovalError> {
        let wish = self.spec.approval.as_ref();
        // An emergency waits for nobody; who may ask for one is the API's matter.
        let least = if self.spec.emergency { 0 } else { least };
        let needed = wish.map_or(0, |wish| wish.needed).max(least);
        if let Some(wish) = wish {
            wish.suffices_for(needed)?;
            if matches!(&wish.approvers[..], [only] if only == creator) {
                return Err(ApprovalError::Alone(creator.to_owned()));
            }
        }
        self.created_by = Some(creator.to_owned());
        if needed > 0 {
            self.approval = Some(pending(needed));
            self.status = RolloutStatus::WaitingForApproval;
        }
        Ok(self)
    }

    /// The rollout after `actor` approved it: with enough approvals it begins.
    ///
    /// # Errors
    /// [`ApprovalRefusal`] when that does not count.
    pub fn approve(&self, actor: &str, reason: Option<&str>, now_ms: u64) -> Result<Self, ApprovalRefusal> {
        let mut next = self.clone();
        let record = next.record_for(actor, now_ms)?;
        if record.given.iter().any(|approval| approval.by == actor) {
            return Err(ApprovalRefusal::Again(actor.to_owned()));
        }
        record.given.push(said(actor, reason, now_ms));
        let (have, needed) = (record.given.len(), record.needed);
        if next.is_approved() {
            next.status = RolloutStatus::Ready;
            if let Some(record) = &mut next.approval {
                record.outcome = ApprovalOutcome::Approved;
            }
        }
        next.status_reason = because(&format!("approved by {actor} ({have} of {needed})"), reason);
        next.updated_at_ms = now_ms;
        Ok(next)
    }

    /// The rollout after `actor` rejected it: it has ended.
    ///
    /// # Errors
    /// [`ApprovalRefusal`] when that does not count.
    pub fn reject(&self, actor: &str, reason: Option<&str>, now_ms: u64) -> Result<Self, ApprovalRefusal> {
        let mut next = self.clone();
        let record = next.record_for(actor, now_ms)?;
        record.rejected = Some(said(actor, reason, now_ms));
        record.outcome = ApprovalOutcome::Rejected;
        next.status = RolloutStatus::Stopped;
        next.status_reason = because(&format!("rejected by {actor}"), reason);
        next.updated_at_ms = now_ms;
        Ok(next)
    }

    /// The record that `actor` may write into.
    fn record_for(&mut self, actor: &str, now_ms: u64) -> Result<&mut ApprovalRecord, ApprovalRefusal> {
        let (status, deadline_ms) = (self.status, deadline_ms(self));
        let asked = approvers(self).is_empty() || approvers(self).iter().any(|name| name == actor);
        match self.approval.as_mut().filter(|_| status == RolloutStatus::WaitingForApproval) {
            None => Err(ApprovalRefusal::NotWaiting(status)),
            Some(_) if !asked => Err(ApprovalRefusal::NotAsked(actor.to_owned())),
            Some(_) if deadline_ms.is_some_and(|deadline_ms| deadline_ms <= now_ms) => Err(ApprovalRefusal::TooLate),
            Some(record) => Ok(record),
        }
    }

    fn is_approved(&self) -> bool {
        self.approval.as_ref().is_none_or(|record| {
            let given = counted(self, record);
            let by_others = given.iter().any(|name| Some(*name) != self.created_by.as_deref());
            given.len() >= record.needed as usize && by_others
        })
    }
}

fn said(actor: &str, reason: Option<&str>, at_ms: u64) -> Approval {
    let reason = reason.map(str::trim).filter(|reason| !reason.is_empty()).map(bounded_text);
    Approval { by: actor.to_owned(), at_ms, reason }
}

fn because(what: &str, reason: Option<&str>) -> String {
    match reason.map(str::trim).filter(|reason| !reason.is_empty()) {
        Some(reason) => bounded_text(&format!("{what}: {reason}")),
        None => bounded_text(what),
    }
}

fn approvers(rollout: &Rollout) -> &[String] {
    rollout.spec.approval.as_ref().map_or(&[], |wish| &wish.approvers)
}

/// Whose approvals count, each name once.
fn counted<'r>(rollout: &'r Rollout, record: &'r ApprovalRecord) -> BTreeSet<&'r str> {
    let named = approvers(rollout);
    let given = record.given.iter().map(|approval| &approval.by);
    given.filter(|by| named.is_empty() || named.contains(by)).map(String::as_str).collect()
}

/// Until when approvals of a rollout that waits for them are waited for; none where that never ends.
pub(crate) fn deadline_ms(rollout: &Rollout) -> Option<u64> {
    let wish: &ApprovalSpec = rollout.spec.approval.as_ref()?;
    (rollout.status == RolloutStatus::WaitingForApproval)
        .then_some(rollout.created_at_ms.saturating_add(wish.within_ms?))
}

/// One look at a rollout that waits for approval: silence ends it. Says whose approvals it waits for.
pub(crate) fn wait(next: &mut Rollout, now_ms: u64) -> Option<Waiting> {
    let until_ms = deadline_ms(next);
    let record = next.approval.as_ref()?;
    let given = counted(next, record);
    let (have, need) = (u32::try_from(given.len()).unwrap_or(u32::MAX), record.needed);
    if until_ms.is_some_and(|until_ms| until_ms <= now_ms) {
        let waited_ms = now_ms.saturating_sub(next.created_at_ms);
        next.status_reason = format!("timed out: {have} of {need} approvals after {}", duration(waited_ms));
        next.status = RolloutStatus::Stopped;
        if let Some(record) = &mut next.approval {
            record.outcome = ApprovalOutcome::TimedOut;
        }
        return None;
    }
    let creator = next.created_by.as_deref();
    let missing = approvers(next).iter().filter(|name| !given.contains(name.as_str())).cloned().collect();
    let alone = given.iter().all(|name| Some(*name) == creator);
    let not_alone = creator.filter(|creator| alone && given.contains(creator)).map(ToOwned::to_owned);
    let given = given.into_iter().map(ToOwned::to_owned).collect();
    Some(Waiting::Approval { have, need, given, missing, not_alone, until_ms })
}
