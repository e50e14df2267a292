//! The two clocks: one that says what time it is and may jump, one that only says how much has passed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use muster_agent_core::clock::{TimeFloor, certificate_time_ms};
use muster_agent_core::renewal::Validity;
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

/// The time to hold certificates against ([`certificate_time_ms`]), so that a device whose clock was never set can still connect.
#[derive(Debug, Clone, Default)]
pub(crate) struct EffectiveTime(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    floor: TimeFloor,
    own: Option<Validity>,
}

impl EffectiveTime {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The floor is `floor` from now on.
    pub(crate) fn set_floor(&self, floor: TimeFloor) {
        self.lock().floor = floor;
    }

    /// The device's own certificate is good for so long.
    pub(crate) fn set_own(&self, own: Validity) {
        self.lock().own = Some(own);
    }

    /// How long the device's own certificate is good, once it was looked at.
    pub(crate) fn own(&self) -> Option<Validity> {
        self.lock().own
    }

    /// The floor, in milliseconds since the Unix epoch: also the beginning of the device's own certificate, which is past.
    pub(crate) fn floor_ms(&self) -> u64 {
        let known = self.lock();
        known.floor.floor_ms().max(known.own.map_or(0, |own| own.not_before_ms))
    }
}

impl TimeProvider for EffectiveTime {
    fn current_time(&self) -> Option<UnixTime> {
        let known = self.lock();
        Some(UnixTime::since_unix_epoch(Duration::from_millis(certificate_time_ms(wall_ms(), known.floor, known.own))))
    }
}
