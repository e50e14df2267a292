//! An emergency: everybody at once, held against nothing.
//!
//! It ends the rollouts that have devices it wants, and only those. What is on its way back is not ended: the devices that the emergency
//! does not mean must get there. It lets go of the others to the emergency, which takes them wherever they are.

use std::collections::BTreeSet;

use muster_shared::ids::RolloutId;
use muster_shared::limits::bounded_text;
use muster_shared::rollout::{Check, LimitsInputs, Outcome, RolloutStatus, Rule};

use crate::actions::OperatorAction;
use crate::cohort::is_wanted;
use crate::fleet::Fleet;
use crate::limits::Held;
use crate::rollout::Rollout;
use crate::wording::{count, counted};

impl Rollout {
    /// Whether it is an emergency that takes devices.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.spec.emergency && matches!(self.status, RolloutStatus::Ready | RolloutStatus::Running)
    }

    /// The rollouts that hold devices which this emergency wants; none where it is no emergency, or takes no devices.
    #[must_use]
    pub fn in_the_way(&self, fleet: &Fleet) -> BTreeSet<RolloutId> {
        if !self.is_urgent() {
            return BTreeSet::new();
        }
        let wanted = fleet.devices.iter().filter(|(id, facts)| {
            let is_ours = facts.desired.as_ref().is_some_and(|desired| desired.rollout == self.id);
            facts.held_by.is_some() && !(self.takes_part(id) && is_ours) && is_wanted(self, id, facts)
        });
        wanted.filter_map(|(_, facts)| facts.held_by.clone()).collect()
    }

    /// Whether it keeps its devices from `other`. Who goes back lets an emergency have them.
    #[must_use]
    pub fn holds_against(&self, other: &Self) -> bool {
        let lets_go = self.status == RolloutStatus::RollingBack && other.is_urgent();
        !self.status.is_terminal() && !lets_go
    }

    /// The rollout as the emergency `other` leaves it, by the hand of `actor`; none where it stays: it has ended or goes back, `other` is
    /// no emergency, or both are and this one is the later.
    #[must_use]
    pub fn overridden(&self, other: &Self, actor: &str, now_ms: u64) -> Option<Self> {
        let age = |rollout: &Self| (rollout.created_at_ms, rollout.id.clone());
        let is_later = self.spec.emergency && age(self) > age(other);
        if !other.is_urgent() || is_later || self.id == other.id || self.status == RolloutStatus::RollingBack {
            return None;
        }
        let why = format!("the emergency {} of {} takes its devices", other.id, other.bundle.bundle);
        self.apply(OperatorAction::Abort, actor, Some(&bounded_text(&why)), now_ms).ok()
    }
}

/// How an emergency is judged: failures are counted, and nothing follows from them.
pub(crate) fn hold(inputs: &LimitsInputs) -> Held {
    let (devices, failures) = (u64::from(inputs.canary.devices), u64::from(inputs.canary.failures));
    let check = Check {
        rule: Rule::Failures,
        outcome: Outcome::Successful,
        measured: Some(failures as f64),
        limit: devices as f64,
        canary_samples: devices,
        control_samples: 0,
        sentence: format!(
            "an emergency is held against no limit: {} of {} failed, reverted or crashed",
            count(failures),
            counted(devices, "device"),
        ),
    };
    Held { checks: vec![check], decisive: None, predictions_needed: None, compared_needed: None }
}
