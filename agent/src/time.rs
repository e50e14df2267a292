//! The two clocks: one that says what time it is and may jump, one that only says how much has passed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// The clock of the wall, in milliseconds since the Unix epoch; 0 when it stands before that.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

/// A duration in whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A clock that never jumps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steady(Instant);

impl Steady {
    /// A clock that starts now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Milliseconds since it started.
    pub(crate) fn now_ms(self) -> u64 {
        millis(self.0.elapsed())
    }
}

/// A random number up to 1,000, to spread pauses.
pub(crate) fn jitter() -> u16 {
    let random = getrandom::u32().unwrap_or_default() % 1_001;
    u16::try_from(random).unwrap_or_default()
}

/// The time to hold certificates against: the wall's, but never before the verified floor or the beginning of the device's own
/// certificate, so that a device whose clock was never set can still connect.
#[derive(Debug, Clone, Default)]
pub(crate) struct EffectiveTime(Arc<AtomicU64>);

impl EffectiveTime {
    /// Raises the floor to `floor_ms`.
    pub(crate) fn raise(&self, floor_ms: u64) {
        self.0.fetch_max(floor_ms, Ordering::Relaxed);
    }

    /// The floor, in milliseconds since the Unix epoch.
    pub(crate) fn floor_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TimeProvider for EffectiveTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(wall_ms().max(self.floor_ms()))))
    }
}
