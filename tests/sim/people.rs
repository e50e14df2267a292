//! What must hold of freezes, maintenance windows and approvals, written from what they promise.

use std::collections::{BTreeMap, BTreeSet};

use muster_rollout::{Errand, Fleet, Rollout};
use muster_shared::ids::RolloutId;
use muster_shared::rollout::{MaintenanceWindow, RolloutStatus};

use crate::rules::holds;

const MINUTE_MS: u64 = 60_000;
const DAY_MINUTES: u64 = 1_440;

/// Nobody is told to go forward for the first time whom a freeze covers, or outside the windows; devices here keep UTC.
pub(crate) fn in_time(before: &Rollout, next: &Rollout, fleet: &Fleet, now_ms: u64) -> Result<(), String> {
    if next.spec.emergency {
        return Ok(());
    }
    let minute = now_ms / MINUTE_MS % DAY_MINUTES;
    let is_open = |window: &MaintenanceWindow| {
        (u64::from(window.from.minutes())..u64::from(window.to.minutes())).contains(&minute)
    };
    let open = next.spec.windows.is_empty() || next.spec.windows.iter().any(is_open);
    let came = next.targets.iter().filter(|(id, _)| !before.targets.contains_key(*id));
    for (id, _) in came.filter(|(_, target)| target.errand == Errand::Forward) {
        let Some(facts) = fleet.devices.get(id) else { continue };
        let frozen = fleet.freezes.iter().any(|freeze| {
            freeze.from_ms <= now_ms
                && now_ms < freeze.to_ms
                && freeze.selector.matches(id.as_str(), &facts.labels, &facts.attributes)
        });
        holds(!frozen, || format!("{}: {id} came in during a freeze", next.id))?;
        holds(open, || format!("{}: {id} came in outside the windows", next.id))?;
    }
    Ok(())
}

/// Who approved what, as far as that was taken.
#[derive(Debug, Default)]
pub(crate) struct Approvals {
    given: BTreeMap<RolloutId, BTreeSet<String>>,
}

impl Approvals {
    /// Somebody's approval was taken.
    pub(crate) fn gave(&mut self, rollout: &RolloutId, who: &str) {
        self.given.entry(rollout.clone()).or_default().insert(who.to_owned());
    }

    /// Nothing begins before enough people who were asked approved it, one of them another than who made it.
    pub(crate) fn suffice(&self, before: &Rollout, next: &Rollout) -> Result<(), String> {
        let begins = before.status == RolloutStatus::Ready && next.status == RolloutStatus::Running;
        let Some(wish) = next.spec.approval.as_ref().filter(|_| begins) else { return Ok(()) };
        let nobody = BTreeSet::new();
        let given = self.given.get(&next.id).unwrap_or(&nobody);
        let counted: Vec<&String> =
            given.iter().filter(|who| wish.approvers.is_empty() || wish.approvers.contains(who)).collect();
        let by_others = counted.iter().any(|who| Some(who.as_str()) != next.created_by.as_deref());
        holds(counted.len() >= wish.needed as usize && by_others, || {
            format!("{} began on the approvals of {counted:?}, {} were needed", next.id, wish.needed)
        })
    }
}
