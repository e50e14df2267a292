//! How many devices may come in now, where a rollout asks for a rate.
//!
//! What came in is remembered with the rollout for a minute: when, and how many. In any minute there are never more than the rate that counts
//! at its end. Devices that had the bundle before are told nothing and come in beside it. The rate is a function of what is stored: of how many
//! devices have been told, a minute ago or longer, or have succeeded. So planning again lets nobody in, and a restart changes nothing. A clock
//! that is set forward lets in a minute's worth, and one that is set back nobody for a minute.
//!
//! A wave that is not complete because of the rate waits as it does for devices that a freeze keeps out (see [`crate::timing`]).

use muster_shared::rollout::{IntakePreview, Rate, Waiting};
use serde::{Deserialize, Serialize};

use crate::rollout::{Errand, Rollout, Target};

const MINUTE_MS: u64 = 60_000;

/// Devices that came in at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intake {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// How many.
    pub devices: u32,
}

/// Takes times that lie ahead, because the clock was set back, to be now: what came in counts for another minute, but not for ever.
pub(crate) fn rewind(next: &mut Rollout, now_ms: u64) {
    next.intake.iter_mut().for_each(|intake| intake.at_ms = intake.at_ms.min(now_ms));
}

/// How many more devices may be told now; none where the rollout asks for no rate.
pub(crate) fn room(rollout: &Rollout, now_ms: u64) -> Option<u32> {
    let rate = rollout.spec.rate.as_ref()?;
    Some(per_minute(rollout, rate, now_ms).saturating_sub(recent(rollout, now_ms)))
}

/// Remembers that `devices` came in now, and forgets what is longer ago than a minute.
pub(crate) fn remember(next: &mut Rollout, devices: u32, now_ms: u64) {
    if devices > 0 {
        next.intake.retain(|intake| is_recent(intake, now_ms));
        next.intake.push(Intake { at_ms: now_ms, devices });
    }
}

/// What the wave waits for while it has room for `left` devices more than the rate lets in.
pub(crate) fn waiting(rollout: &Rollout, left: u32, now_ms: u64) -> Option<Waiting> {
    let rate = rollout.spec.rate.as_ref().filter(|_| left > 0)?;
    let (per_minute, mut counted) = (per_minute(rollout, rate, now_ms), recent(rollout, now_ms));
    let frees = rollout.intake.iter().filter(|intake| is_recent(intake, now_ms)).find(|intake| {
        counted = counted.saturating_sub(intake.devices);
        counted < per_minute
    });
    let next_ms = frees.map_or(now_ms, |intake| intake.at_ms).saturating_add(MINUTE_MS);
    Some(Waiting::Rate { per_minute, left, next_ms })
}

/// How long `devices` take to come in, after `before` others have come in and succeeded.
pub(crate) fn preview(rate: &Rate, before: u64, devices: u64) -> IntakePreview {
    let takes_ms = |grows: bool| {
        let (mut came, mut minutes) = (0, 0u64);
        while came < devices {
            came += u64::from(after(rate, before + if grows { came } else { 0 }));
            minutes += 1;
        }
        minutes.saturating_sub(1).saturating_mul(MINUTE_MS)
    };
    IntakePreview { least_ms: takes_ms(true), most_ms: takes_ms(rate.grows_by_telling()) }
}

/// The rate that counts now, in devices a minute.
fn per_minute(rollout: &Rollout, rate: &Rate, now_ms: u64) -> u32 {
    let count = |is: &dyn Fn(&&Target) -> bool| {
        let told = rollout.targets.values().filter(|target| target.errand == Errand::Forward);
        told.filter(is).count() as u64
    };
    let reached = if rate.grows_by_telling() {
        count(&|_| true).saturating_sub(u64::from(recent(rollout, now_ms)))
    } else {
        count(&|target| target.done_at_ms.is_some() && target.failure.is_none())
    };
    after(rate, reached)
}

/// The rate after so many devices have been told, or have succeeded, in devices a minute.
fn after(rate: &Rate, reached: u64) -> u32 {
    let Some(growing) = &rate.exponential_rate else { return rate.maximum_per_minute };
    let criteria = growing.rate_increase_criteria;
    let step = criteria.number_of_notified_things.or(criteria.number_of_succeeded_things).unwrap_or(u32::MAX);
    // In thousandths of a device, so that small rates grow by small factors.
    let most = u64::from(rate.maximum_per_minute) * 1_000;
    let tenths = u64::from(growing.factor_tenths().unwrap_or(10));
    let mut thousandths = u64::from(growing.base_rate_per_minute) * 1_000;
    for _ in 0..reached / u64::from(step.max(1)) {
        if thousandths >= most {
            break;
        }
        thousandths = thousandths * tenths / 10;
    }
    u32::try_from(thousandths.min(most) / 1_000).unwrap_or(rate.maximum_per_minute)
}

/// Devices that came in within the last minute.
fn recent(rollout: &Rollout, now_ms: u64) -> u32 {
    let recent = rollout.intake.iter().filter(|intake| is_recent(intake, now_ms));
    recent.fold(0, |sum, intake| sum.saturating_add(intake.devices))
}

fn is_recent(intake: &Intake, now_ms: u64) -> bool {
    now_ms < intake.at_ms.saturating_add(MINUTE_MS)
}

#[cfg(test)]
mod tests {
    use muster_shared::rollout::{ExponentialRate, RateIncreaseCriteria};

    use super::*;

    fn growing(base: u32, factor: f64, every: u32, most: u32, by_telling: bool) -> Rate {
        let every = Some(every);
        let rate_increase_criteria = RateIncreaseCriteria {
            number_of_notified_things: every.filter(|_| by_telling),
            number_of_succeeded_things: every.filter(|_| !by_telling),
        };
        let exponential_rate =
            ExponentialRate { base_rate_per_minute: base, increment_factor: factor, rate_increase_criteria };
        Rate { maximum_per_minute: most, exponential_rate: Some(exponential_rate) }
    }

    #[test]
    fn a_rate_grows_with_every_so_many_devices_up_to_the_most() {
        let rate = growing(50, 2.0, 1_000, 300, false);
        let at = [0, 999, 1_000, 1_999, 2_000, 3_000, 1_000_000].map(|reached| after(&rate, reached));
        assert_eq!(at, [50, 50, 100, 100, 200, 300, 300]);
        // 1 × 1.1⁷ = 1.948…, × 1.1⁸ = 2.143….
        let slow = growing(1, 1.1, 10, 1_000, false);
        assert_eq!([70, 79, 80].map(|reached| after(&slow, reached)), [1, 1, 2]);
        assert_eq!(after(&Rate { maximum_per_minute: 7, exponential_rate: None }, 1_000), 7);
    }

    #[test]
    fn a_preview_says_how_long_a_wave_comes_in() {
        let minutes = |rate: &Rate, before, devices| {
            let IntakePreview { least_ms, most_ms } = preview(rate, before, devices);
            (least_ms / MINUTE_MS, most_ms / MINUTE_MS)
        };
        let constant = Rate { maximum_per_minute: 10, exponential_rate: None };
        assert_eq!([0, 1, 10, 11, 100].map(|n| minutes(&constant, 0, n).0), [0, 0, 0, 1, 9]);
        // 10 at once, then 20 (10 came), 80 (30 came).
        assert_eq!(minutes(&growing(10, 2.0, 10, 1_000, true), 0, 110), (2, 2));
        assert_eq!(minutes(&growing(10, 2.0, 10, 1_000, false), 0, 110), (2, 10));
        assert_eq!(minutes(&growing(10, 2.0, 10, 1_000, false), 20, 110), (1, 2));
    }
}
