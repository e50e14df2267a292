//! Rules about when devices come in: none in a freeze, none outside its windows, and nobody is forgotten because it was kept out.

use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use muster_shared::ids::DeviceId;
use muster_shared::rollout::RolloutStatus;

use super::reading::{can_take_part, is_admitted, is_kept_out, runs_beside};
use super::{Case, Violation};
use crate::fleet::DeviceFacts;
use crate::rollout::Errand;

impl Case<'_> {
    pub(super) fn timing(&mut self) {
        let (before, next) = (self.before, self.next);
        if next.spec.emergency {
            return;
        }
        // Those who are told to serve what they ran as shadow come in anew.
        let new = |id: &DeviceId, wave| before.targets.get(id).is_none_or(|old| old.wave < wave);
        let came = next.targets.iter().filter(|(id, target)| new(id, target.wave));
        for (id, _) in came.filter(|(_, target)| target.errand == Errand::Forward) {
            let Some(facts) = self.fleet.devices.get(id) else { continue };
            let refuse = |why| Violation::TakenIn { device: id.clone(), why };
            let (frozen, open) = (self.is_frozen(id, facts), self.is_open(facts));
            self.expect(!frozen, || refuse("a freeze covers it"));
            self.expect(open, || refuse("it is outside its windows"));
        }
        if before.status == RolloutStatus::Running && next.status == RolloutStatus::Completed {
            for (id, facts) in &self.fleet.devices {
                let kept_out = self.is_shut(id, facts);
                if kept_out && self.is_still_meant(id, facts) {
                    self.found.push(Violation::Forgotten(id.clone()));
                }
            }
        }
    }

    pub(super) fn is_still_meant(&self, id: &DeviceId, facts: &DeviceFacts) -> bool {
        let next = self.next;
        let has_reported = facts.reported.as_ref().is_some_and(|report| report.generation < u64::MAX);
        let has_incumbent = facts.reported.as_ref().is_some_and(|report| report.committed.is_some());
        !next.targets.contains_key(id)
            && !facts.revoked
            && facts.held_by.is_none()
            && has_reported
            && facts.desired.as_ref().is_none_or(|desired| desired.generation < u64::MAX)
            && (!runs_beside(next, next.current_wave) || has_incumbent)
            && can_take_part(next, facts)
            && is_admitted(next, facts)
            && !is_kept_out(next, id)
            && facts.is_meant_by(&next.spec.selector, id)
    }

    /// Whether a freeze or its windows keep the device out.
    pub(super) fn is_shut(&self, id: &DeviceId, facts: &DeviceFacts) -> bool {
        self.is_frozen(id, facts) || !self.is_open(facts)
    }

    fn is_frozen(&self, id: &DeviceId, facts: &DeviceFacts) -> bool {
        self.fleet.freezes.iter().any(|freeze| {
            (freeze.from_ms..freeze.to_ms).contains(&self.now_ms) && facts.is_meant_by(&freeze.selector, id)
        })
    }

    /// Looks for a window that began today or on one of the two days before, where the device is, and has not ended.
    fn is_open(&self, facts: &DeviceFacts) -> bool {
        let spec = &self.next.spec;
        let named = [facts.label_or_attribute("timezone"), spec.timezone.as_ref()];
        let zone = named.into_iter().flatten().find_map(|name| TimeZoneDatabase::bundled().get(name).ok());
        let zone = zone.unwrap_or(TimeZone::UTC);
        let Ok(now) = Timestamp::from_millisecond(i64::try_from(self.now_ms).unwrap_or(i64::MAX)) else { return false };
        let begins =
            [0, 1, 2].map(|days| now.to_zoned(zone.clone()).date().saturating_sub(jiff::Span::new().days(days)));
        spec.windows.is_empty()
            || spec.windows.iter().any(|window| {
                begins.iter().any(|date| {
                    let day = muster_shared::rollout::Day::ALL
                        [usize::from(date.weekday().to_monday_zero_offset().unsigned_abs())];
                    let at = |minutes: i64| {
                        let wall = date.at(0, 0, 0, 0).saturating_add(jiff::Span::new().minutes(minutes));
                        wall.to_zoned(zone.clone()).map(|zoned| zoned.timestamp())
                    };
                    let (from, to) = (i64::from(window.from.minutes()), i64::from(window.to.minutes()));
                    let to = if to <= from { to + 1_440 } else { to };
                    let listed = window.days.is_empty() || window.days.contains(&day);
                    listed && matches!((at(from), at(to)), (Ok(from), Ok(to)) if from <= now && now < to)
                })
            })
    }
}
