//! What a rollout does next.

use muster_shared::ids::{DeviceId, Digest};
use muster_shared::rollout::{RolloutStatus, Waiting};

use crate::analysis::{self, Due};
use crate::approval;
use crate::beginning;
use crate::cohort::Survey;
use crate::deadline;
use crate::fleet::Fleet;
use crate::reach;
use crate::recall::recall;
use crate::rollback::go_back;
use crate::rollout::{Errand, Rollout, Target};
use crate::standing::{Standing, is_stored, standing};
use crate::updates::{self, Note};
use crate::{timing, wave};

/// Something the controller must bring about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Store as desired, sign and send.
    Assign {
        /// To whom.
        device: DeviceId,
        /// What to run; none for nothing.
        manifest: Option<Digest>,
        /// Under which generation.
        generation: u64,
    },
}

/// What a rollout is next, and what that takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The rollout to store, equal to the one planned when nothing changes.
    pub next: Rollout,
    /// What to bring about once it is stored.
    pub actions: Vec<Action>,
    /// How updates went on devices, as far as that is news: to be kept with each.
    pub notes: Vec<(DeviceId, Note)>,
    /// Why it is not further.
    pub waiting: Vec<Waiting>,
    /// What somebody must be asked now, for an analysis. It is wanted again until [`Rollout::record`] takes the answer.
    pub due: Vec<Due>,
    /// When the clock alone may change something.
    pub wake_at_ms: Option<u64>,
}

/// Decides what `rollout` does next. Planned again with the same fleet at the same time, the next rollout stays as it is
/// and wants the same.
#[must_use]
pub fn plan(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
    let mut next = rollout.clone();
    let mut waiting = Vec::new();
    if next.status == RolloutStatus::WaitingForApproval {
        waiting.extend(approval::wait(&mut next, now_ms));
    }
    let early = (next.status == RolloutStatus::Ready).then(|| beginning::wait(&next, fleet, now_ms)).flatten();
    if let Some(early) = early {
        waiting.push(early);
    } else if next.status == RolloutStatus::Ready {
        next.status = RolloutStatus::Running;
        next.status_reason = "started".to_owned();
        next.meant = reach::meant(&next.spec, fleet);
        wave::enter(&mut next, now_ms);
    }
    if next.status == RolloutStatus::Running {
        let survey = Survey::of(&next, fleet);
        waiting.extend(wave::step(&mut next, fleet, &survey, now_ms));
    }
    if next.status == RolloutStatus::RollingBack {
        waiting.extend(go_back(&mut next, fleet, now_ms));
    }
    if next.status == RolloutStatus::Stopped && next.outstanding {
        waiting.extend(recall(&mut next, fleet, now_ms));
    }
    if next.status == RolloutStatus::Paused {
        waiting.insert(0, Waiting::Paused { why: next.status_reason.clone() });
    }
    let (actions, away) = assignments(&next, fleet);
    if next.status.is_terminal() && !rollout.status.is_terminal() {
        next.outstanding = !away.is_empty() || !actions.is_empty();
    } else if next.status.is_terminal() && !away.is_empty() {
        waiting.push(Waiting::Offline { devices: away });
    }
    if next != *rollout {
        next.updated_at_ms = now_ms;
    }
    let wake_at_ms = match next.status {
        RolloutStatus::WaitingForApproval => approval::deadline_ms(&next).filter(|at_ms| *at_ms > now_ms),
        RolloutStatus::Ready => beginning::wake_at_ms(&next, now_ms),
        RolloutStatus::Running => {
            let ends = [
                wave::wake_at_ms(&next, now_ms),
                analysis::wake_at_ms(&next, now_ms),
                deadline::wake_at_ms(&next, now_ms),
                timing::wake_at_ms(&waiting, now_ms),
            ];
            ends.into_iter().flatten().min()
        }
        RolloutStatus::Draft
        | RolloutStatus::Paused
        | RolloutStatus::RollingBack
        | RolloutStatus::Completed
        | RolloutStatus::RolledBack
        | RolloutStatus::Stopped => None,
    };
    let notes = updates::notes(rollout, &next, fleet);
    Decision { due: analysis::due(&next, now_ms), next, actions, notes, waiting, wake_at_ms }
}

/// What devices must be told, by comparing what they shall do with what the store and they themselves say; and the
/// devices that are away and have yet to hear it. Nothing is sent to a device that is away and has its assignment in
/// the store: it gets it on return.
fn assignments(rollout: &Rollout, fleet: &Fleet) -> (Vec<Action>, Vec<DeviceId>) {
    let (errand, only_given) = match rollout.status {
        RolloutStatus::Running | RolloutStatus::Completed => (Errand::Forward, false),
        RolloutStatus::Paused => (Errand::Forward, true),
        RolloutStatus::RollingBack | RolloutStatus::RolledBack => (Errand::Back, false),
        RolloutStatus::Stopped if rollout.outstanding => (Errand::Back, false),
        RolloutStatus::Draft | RolloutStatus::WaitingForApproval | RolloutStatus::Ready | RolloutStatus::Stopped => {
            return (Vec::new(), Vec::new());
        }
    };
    let (mut actions, mut away) = (Vec::new(), Vec::new());
    for (id, target, facts) in rollout.governed_targets(fleet) {
        // On the way back, an earlier failure on the bundle is no reason to stop telling.
        if target.errand != errand || errand == Errand::Forward && target.failure.is_some() {
            continue;
        }
        if standing(target, facts) != Standing::Unheard {
            continue;
        }
        if !facts.online {
            away.push(id.clone());
        }
        let stored = is_stored(&rollout.id, target, facts.desired.as_ref());
        if if only_given { stored && facts.online } else { !stored || facts.online } {
            let Target { manifest, generation, .. } = *target;
            actions.push(Action::Assign { device: id.clone(), manifest, generation });
        }
    }
    (actions, away)
}
