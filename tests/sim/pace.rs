//! What must hold of the rate at which devices come in, counted in true time, whatever clocks say.

use std::collections::BTreeMap;

use muster_rollout::{Errand, Rollout};
use muster_shared::ids::RolloutId;

use crate::rules::holds;

const MINUTE_MS: u64 = 60_000;

/// When devices came in, and how often clocks jumped.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// True times of events.
    times: BTreeMap<u64, u64>,
    /// Jumps so far: each is worth another minute.
    jumps: u64,
    /// True times at which plans took devices in, and how many.
    came: BTreeMap<RolloutId, Vec<(u64, u64)>>,
}

impl Pace {
    pub(crate) fn happens(&mut self, event: u64, true_ms: u64) {
        self.times.insert(event, true_ms);
    }

    pub(crate) fn jumps(&mut self) {
        self.jumps += 1;
    }

    /// In no minute are more told to go forward than the rate that what was achieved before allows.
    pub(crate) fn committed(&mut self, before: &Rollout, next: &Rollout, planned_at: u64) -> Result<(), String> {
        let Some(rate) = &next.spec.rate else { return Ok(()) };
        let told = next.targets.iter().filter(|(_, target)| target.errand == Errand::Forward);
        let new = told.filter(|(id, _)| !before.targets.contains_key(*id)).count() as u64;
        if new == 0 {
            return Ok(());
        }
        let true_ms = self.times.get(&planned_at).copied().unwrap_or_default();
        let came = self.came.entry(next.id.clone()).or_default();
        came.push((true_ms, new));
        let minute: u64 = came.iter().filter(|(at_ms, _)| true_ms < at_ms + MINUTE_MS).map(|(_, n)| n).sum();
        let most = f64::from(rate.maximum_per_minute);
        let allowed = rate.exponential_rate.map_or(most, |growing| {
            let criteria = growing.rate_increase_criteria;
            let were_in = u32::try_from(before.targets.len()).unwrap_or_default();
            let step = criteria.number_of_notified_things.or(criteria.number_of_succeeded_things).unwrap_or(u32::MAX);
            let rate = f64::from(growing.base_rate_per_minute)
                * growing.increment_factor.powi(i32::try_from(were_in / step).unwrap_or_default());
            rate.min(most)
        });
        holds(minute as f64 <= allowed * (1 + self.jumps) as f64 + 1e-6, || {
            format!(
                "{} took in {minute} devices within a minute, its rate is {allowed}, clocks jumped {} times",
                next.id, self.jumps
            )
        })
    }
}
