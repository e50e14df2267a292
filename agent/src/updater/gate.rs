//! Asks [`muster_agent_core::delivery`] before chunks are asked for, and keeps account of what was.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use muster_agent_core::delivery::{Decision, Moment, QuietHours, Rules, Spent, WIRE_BYTES, decide};
use muster_shared::messages::HeldBack;
use muster_shared::trust::DeliveryPolicy;

use crate::config::DeliveryConfig;
use crate::metered::Metered;
use crate::time::wall_ms;

/// A chunk that is wanted: its number, and how many bytes it has.
pub(super) type Wanted = (u32, u64);

/// What stands between a download and the network.
#[derive(Debug)]
pub(crate) struct Gate {
    rules: Rules,
    zone: TimeZone,
    metered: Metered,
    spent: Spent,
    /// What was accounted for chunks that have not come.
    under_way: BTreeMap<u32, u64>,
    held_back: Option<HeldBack>,
}

/// Where and when a chunk is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking {
    /// What the rollout says.
    pub(super) rollout: DeliveryPolicy,
    /// By the updater's clock, in milliseconds.
    pub(super) now_ms: u64,
    /// Whether the wall's clock can be right.
    pub(super) is_clock_believed: bool,
    /// Whether a bundle serves meanwhile.
    pub(super) is_serving: bool,
}

impl Gate {
    /// A gate as configured, and what an operator should know of that.
    pub(crate) fn new(config: &DeliveryConfig) -> (Self, Option<String>) {
        let rules = config.rules();
        let has_hours = rules.quiet_hours != QuietHours::default();
        let (zone, alarm) = zone(config.time_zone.as_deref(), has_hours, TimeZone::try_system);
        let gate = Self {
            rules,
            zone,
            metered: Metered::new(config),
            spent: Spent::nothing(0),
            under_way: BTreeMap::new(),
            held_back: None,
        };
        (gate, alarm)
    }

    /// Goes by other settings from now on, what was spent staying so; gives what an operator should know of that.
    pub(super) fn change(&mut self, config: &DeliveryConfig) -> Option<String> {
        let (next, alarm) = Self::new(config);
        (self.rules, self.zone, self.metered) = (next.rules, next.zone, next.metered);
        alarm
    }

    /// How many of `wanted`, which are not none, may be asked for now: they are accounted for. Otherwise, when to look again.
    pub(super) fn admit(&mut self, wanted: &[Wanted], asking: &Asking) -> Result<usize, u64> {
        let Asking { rollout, now_ms, is_clock_believed, is_serving } = asking;
        let moment = Moment {
            now_ms: *now_ms,
            local_minute: is_clock_believed.then(|| minute_of_day(&self.zone)).flatten(),
            is_metered: self.metered.is_metered(),
            is_serving: *is_serving,
        };
        let next_bytes = wanted.first().map_or(0, |(_, bytes)| bytes + WIRE_BYTES);
        match decide(&self.rules, rollout, &self.spent, &moment, next_bytes) {
            Decision::Wait { until_ms, why } => {
                // At the cap's pace it goes on.
                self.held_back = why;
                Err(until_ms)
            }
            Decision::Ask { most_bytes } => {
                self.held_back = None;
                let mut left = most_bytes;
                let mut asked = 0;
                for (index, bytes) in wanted {
                    let bytes = bytes + WIRE_BYTES;
                    if bytes > left && asked > 0 {
                        break;
                    }
                    left = left.saturating_sub(bytes);
                    self.spent.spend(bytes, &self.rules, rollout, *now_ms);
                    self.under_way.insert(*index, bytes);
                    asked += 1;
                }
                Ok(asked)
            }
        }
    }

    /// Chunk `index` came as so many bytes.
    pub(super) fn came(&mut self, index: u32, bytes: usize) {
        if let Some(accounted) = self.under_way.remove(&index) {
            self.spent.give_back(accounted.saturating_sub(bytes as u64 + WIRE_BYTES));
        }
    }

    /// What was asked for does not come any more, or nothing more is wanted.
    pub(super) fn nothing_under_way(&mut self) {
        self.under_way.clear();
    }

    /// Nothing more is wanted.
    pub(super) fn close(&mut self) {
        self.nothing_under_way();
        self.held_back = None;
    }

    /// What keeps the download from going on.
    pub(super) fn held_back(&self) -> Option<HeldBack> {
        self.held_back
    }
}

/// The zone named, or else the device's own. One that is not known here is taken for UTC: a device without tables of zones has to
/// serve all the same. Of its own an operator need not hear where there are no hours to take in it.
pub(crate) fn zone(
    name: Option<&str>,
    has_hours: bool,
    own: impl FnOnce() -> Result<TimeZone, jiff::Error>,
) -> (TimeZone, Option<String>) {
    let Some(name) = name else {
        return own().map_or_else(
            |error| {
                let alarm = format!(
                    "the device's own time zone cannot be found: quiet hours are taken in UTC; set delivery.time-zone or put /etc/localtime right ({error})"
                );
                (TimeZone::UTC, has_hours.then_some(alarm))
            },
            |zone| (zone, None),
        );
    };
    match TimeZone::get(name) {
        Ok(zone) => (zone, None),
        Err(error) => {
            let alarm =
                format!("delivery.time-zone {name:?} is not known here: quiet hours are taken in UTC ({error})");
            (TimeZone::UTC, Some(alarm))
        }
    }
}

/// The minute of the day in `zone`, by the wall's clock.
pub(crate) fn minute_of_day(zone: &TimeZone) -> Option<u16> {
    let now = Timestamp::from_millisecond(i64::try_from(wall_ms()).ok()?).ok()?;
    let local = zone.to_datetime(now);
    u16::try_from(i32::from(local.hour()) * 60 + i32::from(local.minute())).ok()
}

#[cfg(test)]
mod tests {
    use muster_shared::limits::CHUNK_BYTES;

    use super::*;

    fn gate(rules: Rules) -> Gate {
        Gate { rules, zone: TimeZone::UTC, ..Gate::new(&DeliveryConfig::default()).0 }
    }

    fn asking(now_ms: u64) -> Asking {
        Asking { rollout: DeliveryPolicy::default(), now_ms, is_clock_believed: true, is_serving: true }
    }

    #[test]
    fn what_came_shorter_makes_room_for_more() {
        let mut gate = gate(Rules { max_download_bytes_per_s: Some(1_000), ..Rules::default() });
        let chunk = CHUNK_BYTES as u64;
        assert_eq!(gate.admit(&[(0, chunk / 2), (1, chunk / 4), (2, chunk)], &asking(0)), Ok(2));
        assert!(gate.admit(&[(2, chunk)], &asking(0)).is_err());
        assert_eq!(gate.held_back(), None, "it goes on at its pace");
        gate.came(0, 0);
        gate.came(0, 0);
        gate.came(1, 0);
        gate.came(7, 0);
        assert_eq!(gate.admit(&[(2, chunk - 2 * WIRE_BYTES)], &asking(0)), Ok(1));
        assert_eq!(gate.admit(&[(3, 10)], &asking(0)), Err(266));
    }

    #[test]
    fn hours_are_those_of_the_zone_and_of_a_clock_that_can_be_right() {
        let now = minute_of_day(&TimeZone::UTC).unwrap();
        let text = |minute: u16| format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
        // Long enough for the test, and not all day.
        let quiet = QuietHours::try_from(vec![format!("{}-{}", text(now + 1_380), text(now + 120))]).unwrap();
        let mut gate = gate(Rules { quiet_hours: quiet, ..Rules::default() });
        assert!(gate.admit(&[(0, 10)], &asking(0)).is_err());
        assert_eq!(gate.held_back(), Some(HeldBack::QuietHours { until_minute: (now + 120) % 1_440 }));
        let lost = Asking { is_clock_believed: false, ..asking(0) };
        assert_eq!((gate.admit(&[(0, 10)], &lost), gate.held_back()), (Ok(1), None));
        gate.zone = TimeZone::fixed(jiff::tz::offset(12));
        assert_eq!(gate.admit(&[(1, 10)], &asking(0)), Ok(1));

        let config = DeliveryConfig { time_zone: Some("Nowhere/Land".into()), ..DeliveryConfig::default() };
        let (gate, alarm) = Gate::new(&config);
        assert!(gate.zone == TimeZone::UTC && alarm.is_some_and(|text| text.contains("\"Nowhere/Land\"")));

        let unknown = || TimeZone::get("Nowhere/Land");
        let (own, alarm) = zone(None, true, unknown);
        assert!(own == TimeZone::UTC && alarm.is_some_and(|text| text.contains("delivery.time-zone")));
        assert_eq!(zone(None, false, unknown), (TimeZone::UTC, None));
        let there = TimeZone::fixed(jiff::tz::offset(3));
        assert_eq!(zone(None, true, || Ok(there.clone())), (there.clone(), None));
    }
}
