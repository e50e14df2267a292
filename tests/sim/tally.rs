//! What happened in many runs, counted: a simulation in which nothing ever happens proves nothing.

use muster_rollout::{Errand, Rollout};
use muster_shared::rollout::RolloutStatus;
use muster_shared::trust::Activation;

/// How often what happened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) runs: u64,
    pub(crate) events: u64,
    pub(crate) plans: u64,
    pub(crate) given: u64,
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) dropped_plans: u64,
    pub(crate) restarts: u64,
    pub(crate) promoted: u64,
    pub(crate) completed: u64,
    pub(crate) paced: u64,
    pub(crate) switched: u64,
    pub(crate) called_back: u64,
    pub(crate) served_after_shadow: u64,
    pub(crate) rolled_back: u64,
    pub(crate) turned_back: u64,
    pub(crate) paused: u64,
    pub(crate) operated: u64,
    pub(crate) overridden: u64,
    pub(crate) measured: u64,
    pub(crate) frozen: u64,
    pub(crate) approved: u64,
    pub(crate) timed_out: u64,
    pub(crate) aborted: u64,
    pub(crate) compared: u64,
    pub(crate) cancelled: u64,
    pub(crate) replayed: u64,
    /// Devices that did not come in at a plan, for what their agents do not know.
    pub(crate) left_out: u64,
    /// Assignments that were not sent, as their devices had said that they could not read them.
    pub(crate) untold: u64,
    /// Assignments that arrived at devices that could not read them.
    pub(crate) unread: u64,
    /// Devices of earlier versions that a rollout which completed has brought its bundle to.
    pub(crate) reached_old: u64,
    pub(crate) quiet_rounds: u64,
}

impl Tally {
    pub(crate) fn step(&mut self, before: &Rollout, next: &Rollout) {
        self.promoted += u64::from(next.current_wave > before.current_wave);
        let is_held = |rollout: &Rollout| {
            let wave = rollout.waves.get(rollout.current_wave as usize);
            rollout.spec.rate.is_some() && wave.is_some_and(|wave| wave.is_kept_out)
        };
        self.paced += u64::from(!is_held(before) && is_held(next));
        let waits = |rollout: &Rollout| rollout.targets.values().filter(|t| t.activation == Activation::Hold).count();
        self.switched += u64::from(before.status == next.status && waits(next) < waits(before));
        let back = |rollout: &Rollout| rollout.targets.values().filter(|t| t.errand == Errand::Back).count() as u64;
        if (before.status, next.status) == (RolloutStatus::Stopped, RolloutStatus::Stopped) {
            self.called_back += back(next) - back(before);
        }
        let serves = next.targets.iter().filter(|(id, new)| {
            let was_shadow = before.targets.get(id).is_some_and(|old| old.beside);
            was_shadow && !new.beside && new.errand == Errand::Forward
        });
        self.served_after_shadow += serves.count() as u64;
        if next.status == before.status {
            return;
        }
        match next.status {
            RolloutStatus::Completed => self.completed += 1,
            RolloutStatus::RolledBack => self.rolled_back += 1,
            RolloutStatus::RollingBack => self.turned_back += 1,
            RolloutStatus::Paused => self.paused += 1,
            RolloutStatus::Draft
            | RolloutStatus::WaitingForApproval
            | RolloutStatus::Ready
            | RolloutStatus::Running
            | RolloutStatus::Stopped => {}
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts_mut().into_iter().zip(other.clone().counts_mut()) {
            *mine += *theirs;
        }
    }

    fn counts_mut(&mut self) -> [&mut u64; 32] {
        [
            &mut self.runs,
            &mut self.events,
            &mut self.plans,
            &mut self.given,
            &mut self.sent,
            &mut self.lost,
            &mut self.dropped_plans,
            &mut self.restarts,
            &mut self.promoted,
            &mut self.completed,
            &mut self.paced,
            &mut self.switched,
            &mut self.called_back,
            &mut self.served_after_shadow,
            &mut self.rolled_back,
            &mut self.turned_back,
            &mut self.paused,
            &mut self.operated,
            &mut self.overridden,
            &mut self.measured,
            &mut self.frozen,
            &mut self.approved,
            &mut self.timed_out,
            &mut self.aborted,
            &mut self.compared,
            &mut self.cancelled,
            &mut self.replayed,
            &mut self.left_out,
            &mut self.untold,
            &mut self.unread,
            &mut self.reached_old,
            &mut self.quiet_rounds,
        ]
    }
}
