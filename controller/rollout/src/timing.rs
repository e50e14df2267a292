//! Which devices may come in now: those that no freeze covers and whose maintenance windows are open.
//!
//! A wave takes those that may, in its usual order, until it is full; it waits for others only where they are too few. While it waits for
//! such, its soak does not begin, nobody is compared, and its longest duration does not run: time in which nothing may happen is nobody's
//! fault. What was told before goes on, and no way back is ever held.
//!
//! An emergency is held by nothing of this.
//!
//! A window opens and closes by the clock on the wall where the device is. On days on which clocks change, a time that is skipped means as
//! much later as clocks are put forward, and a time that comes twice means the first, as RFC 5545 section 3.3.5 has it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use jiff::civil::{Date, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan as _};
use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Day, Freeze, MaintenanceWindow, Waiting, WaveSpec, WindowError};

use crate::cohort::Survey;
use crate::fleet::{DeviceFacts, Fleet};
use crate::rollout::Rollout;
use crate::shadow_first::next_to_serve;

/// The label or attribute that names a device's time zone.
const ZONE_KEY: &str = "timezone";
/// Days after which an opening has been found, if there is any: a week, and those on either side.
const DAYS_AHEAD: i64 = 9;

/// Whether a device may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door<'f> {
    Open,
    Frozen(&'f Freeze),
    /// Until then, where that comes in the days ahead.
    Closed(Option<u64>),
}

/// What keeps devices of one rollout from coming in at one time.
pub(crate) struct Timing<'f> {
    freezes: Vec<&'f Freeze>,
    windows: &'f [MaintenanceWindow],
    /// The zone of devices that name none.
    zone: &'f str,
    now_ms: u64,
    /// When the windows are open next in each zone that was asked about; now, where they are.
    openings: RefCell<BTreeMap<String, Option<u64>>>,
}

/// Checks that the zone for devices that name none is known.
///
/// # Errors
/// [`WindowError::Zone`].
pub(crate) fn check_zone(timezone: Option<&str>) -> Result<(), WindowError> {
    match timezone.filter(|name| zone(name).is_none()) {
        Some(name) => Err(WindowError::Zone(name.chars().take(60).collect())),
        None => Ok(()),
    }
}

/// From the database that comes with the program: what a machine has of its own does not decide.
fn zone(name: &str) -> Option<TimeZone> {
    TimeZoneDatabase::bundled().get(name).ok()
}

impl<'f> Timing<'f> {
    /// What holds for `rollout`; nothing for an emergency.
    pub(crate) fn of(rollout: &'f Rollout, fleet: &'f Fleet, now_ms: u64) -> Self {
        let in_force = |freeze: &&Freeze| !rollout.spec.emergency && freeze.from_ms <= now_ms && now_ms < freeze.to_ms;
        Self {
            freezes: fleet.freezes.iter().filter(in_force).collect(),
            windows: &rollout.spec.windows,
            zone: rollout.spec.timezone.as_deref().unwrap_or("UTC"),
            now_ms,
            openings: RefCell::default(),
        }
    }

    /// Whether the device may come in.
    pub(crate) fn lets_in(&self, id: &DeviceId, facts: &DeviceFacts) -> bool {
        self.door(id, facts) == Door::Open
    }

    /// What keeps the device out, if anything does.
    pub(crate) fn keeps_out(&self, id: &DeviceId, facts: &DeviceFacts) -> Option<Waiting> {
        match self.door(id, facts) {
            Door::Open => None,
            Door::Frozen(freeze) => Some(Waiting::Frozen { until_ms: freeze.to_ms, why: freeze.reason.clone() }),
            Door::Closed(next_ms) => Some(Waiting::OutsideWindow { devices: vec![id.clone()], next_ms }),
        }
    }

    fn door(&self, id: &DeviceId, facts: &DeviceFacts) -> Door<'f> {
        let covers = |freeze: &&&Freeze| facts.is_meant_by(&freeze.selector, id);
        if let Some(freeze) = self.freezes.iter().filter(covers).max_by_key(|freeze| freeze.to_ms) {
            return Door::Frozen(freeze);
        }
        if self.windows.is_empty() {
            return Door::Open;
        }
        let named = facts.label_or_attribute(ZONE_KEY);
        match self.opening(named.map_or(self.zone, String::as_str)) {
            Some(at_ms) if at_ms <= self.now_ms => Door::Open,
            other => Door::Closed(other),
        }
    }

    /// When the windows are open next in the zone of this name; one that nobody knows is as though none were named.
    fn opening(&self, name: &str) -> Option<u64> {
        if let Some(known) = self.openings.borrow().get(name) {
            return *known;
        }
        let zone = zone(name).or_else(|| zone(self.zone)).unwrap_or(TimeZone::UTC);
        let opening = self.windows.iter().filter_map(|window| next_opening(window, &zone, self.now_ms)).min();
        self.openings.borrow_mut().insert(name.to_owned(), opening);
        opening
    }

    /// Why devices that the wave has room for are not let in; nothing where none is kept out.
    pub(crate) fn kept_out(&self, survey: &Survey<'_>, rollout: &Rollout, spec: &WaveSpec) -> Vec<Waiting> {
        if self.freezes.is_empty() && self.windows.is_empty() {
            return Vec::new();
        }
        let (mut frozen, mut outside, mut next_ms): (BTreeMap<&str, &Freeze>, Vec<DeviceId>, Option<u64>) =
            Default::default();
        let others = survey.additions(rollout.current_wave, spec, &rollout.targets, |_, _| true);
        for (id, facts) in next_to_serve(rollout, survey, spec, |_, _| true).into_iter().chain(others) {
            match self.door(id, facts) {
                Door::Open => {}
                Door::Frozen(freeze) => drop(frozen.insert(&freeze.id, freeze)),
                Door::Closed(at_ms) => {
                    outside.push(id.clone());
                    next_ms = [next_ms, at_ms].into_iter().flatten().min();
                }
            }
        }
        let freezes = frozen.into_values();
        let mut why: Vec<Waiting> =
            freezes.map(|freeze| Waiting::Frozen { until_ms: freeze.to_ms, why: freeze.reason.clone() }).collect();
        outside.sort();
        if !outside.is_empty() {
            why.push(Waiting::OutsideWindow { devices: outside, next_ms });
        }
        why
    }
}

/// Marks whether the current wave waits for devices that are kept out; when it does no longer, its longest duration begins anew.
pub(crate) fn mark(next: &mut Rollout, is_kept_out: bool, now_ms: u64) {
    if let Some(state) = next.waves.get_mut(next.current_wave as usize) {
        if state.is_kept_out && !is_kept_out {
            state.clock_from_ms = Some(now_ms);
        }
        state.is_kept_out = is_kept_out;
    }
}

/// When the clock alone lets in somebody who is waited for.
pub(crate) fn wake_at_ms(waiting: &[Waiting], now_ms: u64) -> Option<u64> {
    let ends = waiting.iter().filter_map(|waiting| {
        if let Waiting::Frozen { until_ms: at_ms, .. }
        | Waiting::OutsideWindow { next_ms: Some(at_ms), .. }
        | Waiting::Rate { next_ms: at_ms, .. } = waiting
        {
            Some(*at_ms)
        } else {
            None
        }
    });
    ends.filter(|at_ms| *at_ms > now_ms).min()
}

/// When the window is open next in `zone`: now, or when it opens; none where it does not in the days ahead.
fn next_opening(window: &MaintenanceWindow, zone: &TimeZone, now_ms: u64) -> Option<u64> {
    let now = Timestamp::from_millisecond(i64::try_from(now_ms).ok()?).ok()?;
    let today = now.to_zoned(zone.clone()).date();
    (-2..DAYS_AHEAD).find_map(|days| {
        let date = today.checked_add(days.days()).ok().filter(|date| window.begins_on(day(date.weekday())))?;
        let end = if window.ends_on_the_next_day() { date.tomorrow().ok()? } else { date };
        let (from, to) = (moment(date, window.from.minutes(), zone)?, moment(end, window.to.minutes(), zone)?);
        (from < to && now < to).then(|| u64::try_from(from.max(now).as_millisecond()).ok()).flatten()
    })
}

/// When the clock on the wall shows `minutes` after midnight of `date`.
fn moment(date: Date, minutes: u16, zone: &TimeZone) -> Option<Timestamp> {
    let date = if minutes == 1_440 { date.tomorrow().ok()? } else { date };
    let minutes = i8::try_from(minutes % 60).ok().zip(i8::try_from(minutes % 1_440 / 60).ok());
    let (minute, hour) = minutes?;
    zone.to_ambiguous_zoned(date.at(hour, minute, 0, 0)).compatible().ok().map(|zoned| zoned.timestamp())
}

fn day(weekday: Weekday) -> Day {
    match weekday {
        Weekday::Monday => Day::Mon,
        Weekday::Tuesday => Day::Tue,
        Weekday::Wednesday => Day::Wed,
        Weekday::Thursday => Day::Thu,
        Weekday::Friday => Day::Fri,
        Weekday::Saturday => Day::Sat,
        Weekday::Sunday => Day::Sun,
    }
}
