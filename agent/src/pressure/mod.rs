//! Watches how hard pressed the device is, for those in the agent who can do without.
//!
//! What counts as pressed is `muster_agent_core::pressure`'s decision. Here it is looked every few seconds, and the level is put where a
//! shadow, downloads and uploads see it; each of them says what it does then. Whoever answers requests never looks.

mod signs;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_agent_core::pressure::{self as decision, Signs};
use muster_shared::messages::{Pressure, PressureLevel, Throttling};

use crate::metrics::Metrics;
use crate::system::System;
use crate::time::{Steady, millis};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(5);
/// In place of the time for which the processor was held back where nobody says.
const NEVER_SAID: u64 = u64::MAX;

/// How hard pressed the device is. Cloning gives another handle to the same.
#[derive(Debug, Clone)]
pub(crate) struct Pressed(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    now: Mutex<Pressure>,
    /// That of `now`, for threads that must not wait for each other.
    level: AtomicU8,
    throttled_ms: AtomicU64,
    /// What was read last.
    signs: Mutex<Signs>,
}

impl Default for Pressed {
    fn default() -> Self {
        Self(Arc::new(Shared {
            now: Mutex::default(),
            level: AtomicU8::new(0),
            throttled_ms: AtomicU64::new(NEVER_SAID),
            signs: Mutex::default(),
        }))
    }
}

impl Pressed {
    /// How hard, and by what.
    pub(crate) fn now(&self) -> Pressure {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How hard. Never waits.
    pub(crate) fn level(&self) -> PressureLevel {
        match self.0.level.load(Ordering::Relaxed) {
            0 => PressureLevel::None,
            1 => PressureLevel::Some,
            _ => PressureLevel::High,
        }
    }

    /// For how long the processor has been held back since the start, in milliseconds; none where the device does not say.
    pub(crate) fn throttled_ms(&self) -> Option<u64> {
        Some(self.0.throttled_ms.load(Ordering::Relaxed)).filter(|ms| *ms != NEVER_SAID)
    }

    /// What was read last of what presses.
    pub(crate) fn signs(&self) -> Signs {
        *self.0.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This was read just now.
    pub(crate) fn read(&self, signs: Signs) {
        *self.0.signs.lock().unwrap_or_else(PoisonError::into_inner) = signs;
    }

    /// The level is this from now on.
    pub(crate) fn set(&self, now: Pressure) {
        let level = match now.level {
            PressureLevel::None => 0,
            PressureLevel::Some => 1,
            PressureLevel::High | PressureLevel::Other => 2,
        };
        *self.0.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
        self.0.level.store(level, Ordering::Relaxed);
    }

    fn throttled(&self, for_ms: u64) {
        let before_ms = self.throttled_ms().unwrap_or(0);
        self.0.throttled_ms.store(before_ms.saturating_add(for_ms), Ordering::Relaxed);
    }
}

/// Looks at the device, and keeps [`Pressed`] up to date.
pub(crate) struct Watcher<T> {
    pub(crate) system: System,
    pub(crate) pressed: Pressed,
    pub(crate) metrics: Metrics,
    /// Called when the controller is to be told.
    pub(crate) tell: T,
}

impl<T: Fn()> Watcher<T> {
    /// Never ends.
    pub(crate) async fn run(self) {
        let clock = Steady::start();
        let mut state = decision::Pressure::default();
        let mut before_ms = clock.now_ms();
        loop {
            let signs = tokio::task::block_in_place(|| signs::read(&self.system));
            self.pressed.read(signs);
            let now_ms = clock.now_ms();
            // A device that was asleep was not held back meanwhile.
            let passed_ms = now_ms.saturating_sub(before_ms).min(2 * millis(LOOK));
            before_ms = now_ms;
            if let Some(throttling) = signs.throttling {
                let for_ms = if throttling == Throttling::None { 0 } else { passed_ms };
                self.pressed.throttled(for_ms);
                self.metrics.throttled(for_ms);
            }
            signs.temperature_mc.iter().for_each(|temperature_mc| self.metrics.temperature(*temperature_mc));
            self.metrics.pressed(state.level(), passed_ms);
            if state.observe(&signs, now_ms) {
                let reason = state.cause().map(|cause| cause.to_string()).unwrap_or_default();
                let now = Pressure { level: state.level(), reason };
                if now.is_none() {
                    tracing::info!("the device is not pressed any more");
                } else {
                    tracing::warn!(level = ?now.level, reason = %now.reason, "the device is pressed: no shadow runs meanwhile");
                }
                self.pressed.set(now);
                self.metrics.pressed(state.level(), 0);
            }
            if state.is_to_be_told(now_ms) {
                (self.tell)();
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
