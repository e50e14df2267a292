//! Rules about how fast devices come in: in no minute more than the rate that counts then, and no wave soaks without those it held.

use std::collections::BTreeMap;

use muster_shared::ids::DeviceId;

use super::reading::{is_meant, says_arrived};
use super::{Case, Violation};
use crate::rate::Intake;
use crate::rollout::{Errand, Target};

const MINUTE_MS: u64 = 60_000;

impl Case<'_> {
    pub(super) fn rate(&mut self) {
        let (before, next) = (self.before, self.next);
        if next.spec.rate.is_none() {
            return self.expect(next.intake.is_empty(), || Violation::Rate("nobody asked for one"));
        }
        let is_new = |id: &DeviceId| !before.targets.contains_key(id);
        let told = next.targets.iter().filter(|(_, target)| target.errand == Errand::Forward);
        let came = told.filter(|(id, _)| is_new(id)).count() as u64;
        let mut minute = self.of_this_minute(&before.intake);
        let earlier: u64 = minute.values().sum();
        if came > 0 {
            *minute.entry(self.now_ms).or_default() += came;
        }
        let kept = self.of_this_minute(&next.intake) == minute;
        self.expect(kept, || Violation::Rate("what came in within the last minute is not remembered"));
        if came > 0 {
            let (came, allowed) = (earlier + came, self.allowed(earlier));
            self.expect(came as f64 <= allowed, || Violation::TooFast { came, allowed });
        }
        self.soaks_with_all();
    }

    /// Devices that came in less than a minute ago, by when. What lies ahead was drawn to now.
    fn of_this_minute(&self, intake: &[Intake]) -> BTreeMap<u64, u64> {
        let mut minute = BTreeMap::new();
        for Intake { at_ms, devices } in intake {
            let at_ms = (*at_ms).min(self.now_ms);
            if self.now_ms - at_ms < MINUTE_MS {
                *minute.entry(at_ms).or_default() += u64::from(*devices);
            }
        }
        minute
    }

    /// Devices that may come in within the minute that ends now; `earlier` of those that were in came within it.
    fn allowed(&self, earlier: u64) -> f64 {
        let Some(rate) = &self.next.spec.rate else { return f64::INFINITY };
        let most = f64::from(rate.maximum_per_minute);
        let Some(growing) = &rate.exponential_rate else { return most };
        let were_in = || {
            let told = self.next.targets.iter().filter(|(_, target)| target.errand == Errand::Forward);
            told.filter_map(|(id, target)| Some((id, self.before.targets.get(id)?, target)))
        };
        let criteria = growing.rate_increase_criteria;
        let (reached, step) = match criteria.number_of_notified_things {
            Some(step) => ((were_in().count() as u64).saturating_sub(earlier), step),
            None => {
                let done = were_in().filter(|(id, old, new)| self.has_succeeded(id, old, new)).count();
                (done as u64, criteria.number_of_succeeded_things.unwrap_or(u32::MAX))
            }
        };
        let increases = i32::try_from(reached / u64::from(step.max(1))).unwrap_or(i32::MAX);
        let rate = f64::from(growing.base_rate_per_minute) * growing.increment_factor.powi(increases);
        // What is lost where powers are rounded is less than this.
        rate.min(most) + 1e-6
    }

    fn has_succeeded(&self, id: &DeviceId, old: &Target, new: &Target) -> bool {
        let says = self.fleet.devices.get(id).is_some_and(|facts| says_arrived(new, facts));
        new.done_at_ms.is_some() && new.failure.is_none() && (old.done_at_ms.is_some() || says)
    }

    /// A soak that begins now begins with every device that the wave has room for and can have.
    fn soaks_with_all(&mut self) {
        let (before, next) = (self.before, self.next);
        let states = (0u32..).zip(before.waves.iter().zip(&next.waves));
        for (wave, _) in states.filter(|(_, (old, new))| old.soak_from_ms.is_none() && new.soak_from_ms.is_some()) {
            let (Some((have, allowed)), Some(spec)) = (self.places(wave), next.spec.waves.get(wave as usize)) else {
                continue;
            };
            let mut devices = self.fleet.devices.iter();
            let waits = devices.any(|(id, facts)| self.is_still_meant(id, facts) && is_meant(next, spec, id, facts));
            self.expect(have >= allowed || !waits, || Violation::Rate("a wave soaks before it is complete"));
        }
    }
}
