//! How hard pressed the device is, and so what the agent does without for a while.
//!
//! The kernel says how much of its time work stood still for want of memory (PSI), sensors say how hot it is, and firmware whether it holds
//! the processor back. That work waits for a processor is no sign: a shadow has the lowest priority, so that nobody waits for it, while its
//! own waiting counts. From [`Level::Some`] on no shadow runs; at [`Level::High`] downloads and uploads are slowed
//! as well. Serving knows nothing of this. A level rises at once and falls by one only after [`HOLD_MS`] of calm, so that it does not flap.

use muster_shared::messages::{PressureLevel as Level, Throttling};
use muster_shared::trust::DeliveryPolicy;

/// How long the signs must have been calm before a level falls by one, in milliseconds.
pub const HOLD_MS: u64 = 60_000;
/// The least time between two reports of it to the controller, in milliseconds.
pub const TELL_MS: u64 = 600_000;
/// How much warmer or colder a device has become before the controller is told, in thousandths of a degree.
pub const NEWS_MC: u32 = 5_000;
/// At [`Level::High`] no more bytes of chunks than this are fetched in a second.
pub const SLOW_BYTES_PER_S: u64 = 32 * 1024;

/// From which sign on a level is reached. It is left below half of a share, or five degrees below a temperature.
struct Threshold {
    some: u32,
    high: u32,
}

/// Share of the last ten seconds in which something waited for memory, in basis points.
const MEMORY_SOME_BP: Threshold = Threshold { some: 1_000, high: 4_000 };
/// The same, in which everything did.
const MEMORY_FULL_BP: Threshold = Threshold { some: 500, high: 2_000 };
/// Share of the memory that is gone, in basis points, where the kernel does not say what waits for it.
const USED_BP: Threshold = Threshold { some: 9_500, high: 9_800 };
/// Temperature of the hottest zone, in thousandths of a degree Celsius.
const HEAT_MC: Threshold = Threshold { some: 80_000, high: 90_000 };
/// How far below a temperature has to fall, in thousandths of a degree.
const COOLER_MC: u32 = 5_000;

/// What a rollout says of its delivery, as far as a device at `level` follows it.
#[must_use]
pub fn slowed(rollout: DeliveryPolicy, level: Level) -> DeliveryPolicy {
    if level < Level::High {
        return rollout;
    }
    let cap = rollout.max_download_bytes_per_s.map_or(SLOW_BYTES_PER_S, |cap| cap.min(SLOW_BYTES_PER_S));
    DeliveryPolicy { max_download_bytes_per_s: Some(cap), ..rollout }
}

/// Shares of the last ten seconds, in basis points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall {
    /// In which something stood still.
    pub some_bp: u32,
    /// In which everything did.
    pub full_bp: u32,
}

/// What was read. None where the device does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Signs {
    /// Waiting for memory: the worse of the whole device and of the agent's own control group.
    pub memory: Option<Stall>,
    /// Memory that nothing could get any more, in basis points of all.
    pub memory_used_bp: Option<u32>,
    /// Temperature of the hottest zone, in thousandths of a degree Celsius.
    pub temperature_mc: Option<i32>,
    /// Whether the processor is held back.
    pub throttling: Option<Throttling>,
}

/// What presses most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Work waits for memory, so large a share of the time.
    Memory(Stall),
    /// So large a share of the memory is gone.
    MemoryUsed(u32),
    /// It is so hot, in thousandths of a degree Celsius.
    Heat(i32),
    /// The processor is held back.
    Throttled(Throttling),
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory(Stall { some_bp, full_bp }) => {
                write!(
                    f,
                    "short of memory: work waits for it {} % of the time, all of it {} %",
                    some_bp / 100,
                    full_bp / 100
                )
            }
            Self::MemoryUsed(used_bp) => write!(f, "short of memory: {} % of it is gone", used_bp / 100),
            Self::Heat(mc) => write!(f, "hot: {} °C", mc / 1_000),
            Self::Throttled(Throttling::UnderVoltage) => {
                f.write_str("held back by its power supply: the voltage is too low")
            }
            Self::Throttled(_) => f.write_str("held back for heat"),
        }
    }
}

impl Threshold {
    /// The level that `sign` stands for; below `less` less, one that is held already is left.
    fn level(&self, sign: u32, held: Level, less: impl Fn(u32) -> u32) -> Level {
        let from = |level: Level, at: u32| sign >= if held >= level { less(at) } else { at };
        if from(Level::High, self.high) {
            Level::High
        } else if from(Level::Some, self.some) {
            Level::Some
        } else {
            Level::None
        }
    }
}

impl Signs {
    /// The level they stand for where `held` is in force, and what presses most.
    fn level(&self, held: Level) -> (Level, Option<Cause>) {
        let half = |at: u32| at / 2;
        let share = |threshold: &Threshold, bp: u32| threshold.level(bp, held, half);
        let memory = self.memory.map(|stall| {
            let level = share(&MEMORY_SOME_BP, stall.some_bp).max(share(&MEMORY_FULL_BP, stall.full_bp));
            (level, Cause::Memory(stall))
        });
        let used = self.memory_used_bp.filter(|_| self.memory.is_none()).map(|used_bp| {
            // Half of what was left is not where calm begins, but half as much again free.
            let level = USED_BP.level(used_bp, held, |at| at.saturating_sub((10_000 - at) / 2));
            (level, Cause::MemoryUsed(used_bp))
        });
        let throttled =
            self.throttling.filter(|is| *is != Throttling::None).map(|is| (Level::Some, Cause::Throttled(is)));
        let heat = self.temperature_mc.map(|mc| {
            let level = HEAT_MC.level(u32::try_from(mc).unwrap_or(0), held, |at| at - COOLER_MC);
            (level, Cause::Heat(mc))
        });
        // Of causes that press alike, the one named first is told.
        let mut worst = (Level::None, None);
        for (level, cause) in [memory, used, throttled, heat].into_iter().flatten() {
            if level > worst.0 {
                worst = (level, Some(cause));
            }
        }
        worst
    }
}

/// The level in force, and what the controller was told of it.
#[derive(Debug, Clone, Default)]
pub struct Pressure {
    level: Level,
    cause: Option<Cause>,
    /// Since when the signs have stood for less than the level in force.
    calm_since_ms: Option<u64>,
    /// What was observed last.
    seen: Condition,
    /// What the controller was told.
    told: (Level, Condition),
    /// When it was told of another level.
    told_level_ms: Option<u64>,
    /// When it was told of anything.
    told_ms: Option<u64>,
}

/// What beside the level the controller is told.
#[derive(Debug, Clone, Copy, Default)]
struct Condition {
    temperature_mc: Option<i32>,
    throttling: Option<Throttling>,
}

impl Condition {
    /// Whether it is so much warmer or colder than at `told`, or held back by something else, that who knows that should hear of it.
    fn is_another(&self, told: &Self) -> bool {
        let is_warmer_or_colder = match (self.temperature_mc, told.temperature_mc) {
            (Some(now), Some(then)) => now.abs_diff(then) >= NEWS_MC,
            (now, then) => now.is_some() != then.is_some(),
        };
        self.throttling != told.throttling || is_warmer_or_colder
    }
}

impl Pressure {
    /// The level in force.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// What pressed most when the signs last stood for the level in force; none at [`Level::None`].
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// Takes in what was read at `now_ms`, by a clock that does not jump. Whether the level has changed.
    pub fn observe(&mut self, signs: &Signs, now_ms: u64) -> bool {
        let changes = self.follow(signs, now_ms);
        let Signs { temperature_mc, throttling, .. } = *signs;
        self.seen = Condition { temperature_mc, throttling };
        changes
    }

    fn follow(&mut self, signs: &Signs, now_ms: u64) -> bool {
        let (level, cause) = signs.level(self.level);
        if level >= self.level {
            let changes = level > self.level;
            (self.level, self.cause, self.calm_since_ms) = (level, cause, None);
            return changes;
        }
        if now_ms.saturating_sub(*self.calm_since_ms.get_or_insert(now_ms)) < HOLD_MS {
            return false;
        }
        // One step at a time, and calm has to last anew for the next: so a device that is worse off is never let go of sooner.
        self.level = if self.level > Level::Some { Level::Some } else { Level::None };
        self.calm_since_ms = None;
        self.cause = if self.level == Level::None { None } else { cause.or(self.cause) };
        true
    }

    /// Whether the controller is to be told at `now_ms`: the level is another than it knows, and it was not told of one just now; or what holds
    /// the processor back or the temperature is, and it was not told of anything just now. It counts as told then.
    pub fn is_to_be_told(&mut self, now_ms: u64) -> bool {
        let is_long_ago =
            |told_ms: Option<u64>| told_ms.is_none_or(|told_ms| now_ms.saturating_sub(told_ms) >= TELL_MS);
        let (told_level, told) = self.told;
        let is_another_level = self.level != told_level;
        let is_to_be = is_another_level && is_long_ago(self.told_level_ms)
            || self.seen.is_another(&told) && is_long_ago(self.told_ms);
        if is_to_be {
            (self.told, self.told_ms) = ((self.level, self.seen), Some(now_ms));
            if is_another_level {
                self.told_level_ms = Some(now_ms);
            }
        }
        is_to_be
    }
}

#[cfg(test)]
mod tests;
