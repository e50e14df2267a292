//! Rollouts that want the same devices: who is refused, who waits for whom, and who is left out.
//!
//! A device belongs to the rollout that took it in first, until that has ended; nothing here takes one away. Among those that wait
//! in the queue for the same devices, the higher priority goes first, then the older one. Waiting ends by itself: the order is a
//! total one, so no two wait for each other.

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::ids::{DeviceId, RolloutId};
use muster_shared::rollout::{Conflict, RolloutStatus, Waiting};
use muster_shared::selector::Selector;

use crate::cohort::Survey;
use crate::fleet::{DeviceFacts, Fleet};
use crate::rollout::Rollout;
use crate::wording::{counted, listed, names};

/// A rollout that waits in the queue, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedRollout {
    /// Its name.
    pub id: RolloutId,
    /// Its priority.
    pub priority: u8,
    /// When it was created.
    pub created_at_ms: u64,
    /// The devices it means.
    pub selector: Selector,
}

/// Other rollouts that want devices of one that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} belong to other rollouts that have not ended: {}. Wait for them, leave them out with conflict skip, or queue behind them",
    counted(*devices as u64, "device"),
    listed(rollouts.iter().map(|(id, devices)| format!("{id} ({})", counted(*devices as u64, "device"))))
)]
pub struct ConflictError {
    /// Each of them, and how many devices it shares.
    pub rollouts: BTreeMap<RolloutId, usize>,
    /// Devices that are shared with any.
    pub devices: usize,
}

fn means(selector: &Selector, id: &DeviceId, facts: &DeviceFacts) -> bool {
    !facts.revoked && facts.is_meant_by(selector, id)
}

impl Rollout {
    /// Whether it may be made beside the `others`: one that refuses conflicts shares no device that another unfinished one has or means.
    ///
    /// # Errors
    /// [`ConflictError`] names them.
    pub fn check_conflicts<'r>(
        &self,
        fleet: &Fleet,
        others: impl IntoIterator<Item = &'r Self>,
    ) -> Result<(), ConflictError> {
        if self.spec.conflict != Conflict::Refuse {
            return Ok(());
        }
        let (mut rollouts, mut shared) = (BTreeMap::new(), BTreeSet::new());
        for other in others.into_iter().filter(|other| other.id != self.id && !other.status.is_terminal()) {
            let wants = |id: &DeviceId, facts| other.takes_part(id) || means(&other.spec.selector, id, facts);
            let both =
                fleet.devices.iter().filter(|(id, facts)| means(&self.spec.selector, id, facts) && wants(id, facts));
            let both: Vec<&DeviceId> = both.map(|(id, _)| id).collect();
            if !both.is_empty() {
                rollouts.insert(other.id.clone(), both.len());
                shared.extend(both);
            }
        }
        if rollouts.is_empty() { Ok(()) } else { Err(ConflictError { rollouts, devices: shared.len() }) }
    }

    /// What others must know of the rollout while it waits in the queue; none where it does not.
    #[must_use]
    pub fn queued(&self) -> Option<QueuedRollout> {
        (self.status == RolloutStatus::Ready && self.spec.conflict == Conflict::Queue).then(|| QueuedRollout {
            id: self.id.clone(),
            priority: self.spec.priority,
            created_at_ms: self.created_at_ms,
            selector: self.spec.selector.clone(),
        })
    }
}

/// Whom a rollout that is ready waits for in the queue; none where it asks for no queue, or it is its turn.
pub(crate) fn queue(rollout: &Rollout, fleet: &Fleet) -> Option<Waiting> {
    let own = rollout.queued()?;
    let meant = || fleet.devices.iter().filter(|(id, facts)| means(&own.selector, id, facts));
    let mut behind: BTreeSet<&RolloutId> = meant().filter_map(|(_, facts)| facts.held_by.as_ref()).collect();
    let rank = |of: &QueuedRollout| (std::cmp::Reverse(of.priority), of.created_at_ms, of.id.clone());
    let ahead = fleet.queue.iter().filter(|other| other.id != own.id && rank(other) < rank(&own));
    behind.extend(
        ahead.filter(|other| meant().any(|(id, facts)| means(&other.selector, id, facts))).map(|other| &other.id),
    );
    (!behind.is_empty()).then(|| Waiting::Queued { behind: behind.into_iter().cloned().collect() })
}

/// Whom a rollout that completes leaves out because they are another's, in words to follow what it has reached.
pub(crate) fn left_out(survey: &Survey<'_>, fleet: &Fleet) -> String {
    if survey.held.is_empty() {
        return String::new();
    }
    let holder = |id| fleet.devices.get(id).and_then(|facts| facts.held_by.as_ref());
    let holders: BTreeSet<&RolloutId> = survey.held.iter().filter_map(holder).collect();
    let by = match holders.is_empty() {
        true => "another rollout".to_owned(),
        false => listed(holders),
    };
    format!("; without {} of {by}: {}", counted(survey.held.len() as u64, "device"), names(&survey.held))
}
