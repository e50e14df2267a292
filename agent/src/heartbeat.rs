//! Signs of life of the agent's parts, and the thread that passes them on to the service manager.
//!
//! What they mean is decided by [`muster_agent_core::liveness`]. The thread is none of the runtime's: a runtime that stands still
//! must still be found out, and named in the log before the service manager ends it. It keeps the runtime from standing still, too,
//! where one of its threads is held up and another could go on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use muster_agent_core::liveness::{Beat, Inference, Stuck, stuck};
use tokio::runtime::Handle;

use crate::config::ServeConfig;
use crate::host::ModelHost;
use crate::notify;
use crate::time::Steady;

/// What all beats are measured by.
static CLOCK: LazyLock<Steady> = LazyLock::new(Steady::start);
/// Stands for a part of which nothing is expected.
const NEVER: u64 = u64::MAX;
/// Tests of models that are counted at once: of a new one, of the one that runs, and of one before that has been given up.
const MAX_TESTS: usize = 3;
/// How often the event loop shows that it turns.
const TURN: Duration = Duration::from_secs(10);
/// How often the runtime is given something to do.
const NUDGE: Duration = Duration::from_secs(1);
/// How often the threads for blocking work are given something to do, in turns of the event loop: each costs a thread for a while.
const PROBE_EVERY: u32 = 6;

/// Now, by the clock of heartbeats, in milliseconds.
pub(crate) fn now_ms() -> u64 {
    CLOCK.now_ms()
}

/// When a part last showed a sign of life, and by when it said to show the next. Cloning gives another handle to the same.
#[derive(Debug, Clone)]
pub(crate) struct Heartbeat {
    part: &'static str,
    at_and_by_ms: Arc<Mutex<(u64, u64)>>,
}

impl Heartbeat {
    /// Of the part with this name, of which nothing is expected yet.
    pub(crate) fn new(part: &'static str) -> Self {
        Self { part, at_and_by_ms: Arc::new(Mutex::new((now_ms(), NEVER))) }
    }

    /// The part lives, and will be heard of again within `again_in_ms`.
    pub(crate) fn beat(&self, again_in_ms: u64) {
        let now_ms = now_ms();
        *self.at_and_by_ms.lock().unwrap_or_else(PoisonError::into_inner) =
            (now_ms, now_ms.saturating_add(again_in_ms).min(NEVER - 1));
    }

    /// Nothing more is expected of the part.
    pub(crate) fn end(&self) {
        self.at_and_by_ms.lock().unwrap_or_else(PoisonError::into_inner).1 = NEVER;
    }

    fn read(&self) -> Beat {
        let (at_ms, by_ms) = *self.at_and_by_ms.lock().unwrap_or_else(PoisonError::into_inner);
        Beat { part: self.part, at_ms, again_by_ms: (by_ms != NEVER).then_some(by_ms) }
    }
}

/// All signs of life. Cloning gives another handle to the same.
#[derive(Clone)]
pub(crate) struct Vitals {
    parts: Arc<Mutex<Vec<Heartbeat>>>,
    tests: Begun,
    host: ModelHost,
    stuck_after_ms: u64,
    load_within_ms: u64,
}

impl Vitals {
    /// Of no part yet but the model that `host` holds, and as `config` has it how long what it is asked, and tests of models, may take.
    pub(crate) fn new(host: ModelHost, config: &ServeConfig) -> Self {
        let ServeConfig { stuck_after_ms, load_within_ms, .. } = *config;
        Self { parts: Arc::default(), tests: Begun::new(MAX_TESTS), host, stuck_after_ms, load_within_ms }
    }

    /// What tests of models are counted in.
    pub(crate) fn tests(&self) -> Begun {
        self.tests.clone()
    }

    /// Watches another part.
    pub(crate) fn watch(&self, heartbeat: Heartbeat) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push(heartbeat);
    }

    /// What has come to a standstill.
    pub(crate) fn stuck(&self) -> Option<Stuck> {
        let test = self.tests.oldest_ms().map(|begun_ms| Beat {
            part: "the test of a model",
            at_ms: begun_ms,
            again_by_ms: Some(begun_ms.saturating_add(self.load_within_ms)),
        });
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let beats: Vec<Beat> = parts.iter().map(Heartbeat::read).chain(test).collect();
        drop(parts);
        let allowed_ms = self.stuck_after_ms;
        let oldest = self.host.oldest_turn_ms().map(|begun_ms| Inference { begun_ms, allowed_ms });
        stuck(&beats, oldest, now_ms())
    }

    /// Shows that the event loop turns and that the threads for blocking work take work, for as long as both do; never ends.
    pub(crate) async fn show_turns(self) {
        let (turns, workers) = (Heartbeat::new("the event loop"), Heartbeat::new("the worker threads"));
        self.watch(turns.clone());
        self.watch(workers.clone());
        let again_in_ms = crate::time::millis(TURN * PROBE_EVERY);
        loop {
            let workers = workers.clone();
            // Not awaited: work that is never begun must not keep the event loop from showing that it turns.
            drop(tokio::task::spawn_blocking(move || workers.beat(again_in_ms)));
            for _ in 0..PROBE_EVERY {
                turns.beat(crate::time::millis(TURN));
                tokio::time::sleep(TURN).await;
            }
        }
    }
}

/// The thread that watches over the runtime; it ends when this is dropped.
pub(crate) struct Watchdog {
    feeds: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    thread: Thread,
}

impl Watchdog {
    /// Keeps one of the threads of `runtime` at its sockets, and feeds the service manager's watchdog, where there is one, for as long as
    /// nothing has come to a standstill.
    pub(crate) fn start(vitals: Vitals, runtime: Handle) -> Option<Self> {
        let (feeds, ends) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let (goes_on, told) = (Arc::clone(&feeds), Arc::clone(&ends));
        let mut feeder = notify::watchdog_limit().map(|limit| Feeder::new(vitals, limit));
        let every = feeder.as_ref().map_or(NUDGE, |feeder| NUDGE.min(feeder.every));
        let watch = move || {
            while !told.load(Ordering::Acquire) {
                // A thread that leaves the sockets to do what came by them wakes no other to go there in its place, and if it is held up,
                // nobody is: https://github.com/tokio-rs/tokio/issues/4730. Whoever is woken for a task goes there after it.
                runtime.spawn(std::future::ready(()));
                if let Some(feeder) = feeder.as_mut().filter(|_| goes_on.load(Ordering::Acquire)) {
                    feeder.feed_when_due();
                }
                std::thread::park_timeout(every);
            }
        };
        match std::thread::Builder::new().name("watchdog".to_owned()).spawn(watch) {
            Ok(handle) => Some(Self { feeds, ends, thread: handle.thread().clone() }),
            Err(error) => {
                tracing::error!(%error, "no thread for the watchdog: the service manager will start the agent again");
                None
            }
        }
    }

    /// Leaves the service manager's watchdog without food: an end that takes too long is ended.
    pub(crate) fn feed_no_more(&self) {
        self.feeds.store(false, Ordering::Release);
    }
}

/// Feeds the service manager's watchdog.
struct Feeder {
    vitals: Vitals,
    every: Duration,
    due_ms: u64,
    has_said: bool,
}

impl Feeder {
    /// Of a service manager that takes the agent for dead after `limit`.
    fn new(vitals: Vitals, limit: Duration) -> Self {
        Self { vitals, every: limit / 3, due_ms: 0, has_said: false }
    }

    fn feed_when_due(&mut self) {
        let now_ms = now_ms();
        if now_ms < self.due_ms {
            return;
        }
        self.due_ms = now_ms.saturating_add(crate::time::millis(self.every));
        match self.vitals.stuck() {
            None => {
                self.has_said = false;
                notify::alive();
            }
            Some(stuck) if !self.has_said => {
                self.has_said = true;
                tracing::error!(%stuck, "the agent is stuck: its service manager is left to start it again");
            }
            Some(_) => {}
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// When each of so many things began; none for those that are not under way. Cloning gives another handle to the same.
#[derive(Debug, Clone)]
pub(crate) struct Begun(Arc<[AtomicU64]>);

impl Begun {
    /// Room for `places` at once.
    pub(crate) fn new(places: usize) -> Self {
        Self((0..places).map(|_| AtomicU64::new(NEVER)).collect())
    }

    /// Something begins now; it is over when the result is dropped. None where there is no place, which nobody counts then.
    pub(crate) fn begin(&self) -> Option<UnderWay> {
        let now_ms = now_ms();
        let place = self
            .0
            .iter()
            .position(|place| place.compare_exchange(NEVER, now_ms, Ordering::AcqRel, Ordering::Relaxed).is_ok())?;
        Some(UnderWay { all: self.clone(), place })
    }

    /// When the oldest began that is under way, in milliseconds of [`now_ms`].
    pub(crate) fn oldest_ms(&self) -> Option<u64> {
        self.0.iter().map(|place| place.load(Ordering::Acquire)).min().filter(|at_ms| *at_ms != NEVER)
    }
}

/// Something that is under way.
#[derive(Debug)]
pub(crate) struct UnderWay {
    all: Begun,
    place: usize,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(place) = self.all.0.get(self.place) {
            place.store(NEVER, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_is_under_way_counts() {
        let begun = Begun::new(2);
        assert_eq!(begun.oldest_ms(), None);
        let first = begun.begin().unwrap();
        let begun_ms = begun.oldest_ms().unwrap();
        let second = begun.begin().unwrap();
        assert!(begun.begin().is_none());
        assert_eq!(begun.oldest_ms(), Some(begun_ms));
        drop(first);
        assert!(begun.oldest_ms().is_some_and(|at_ms| at_ms >= begun_ms));
        drop(second);
        assert_eq!(begun.oldest_ms(), None);
    }

    #[test]
    fn nothing_is_expected_of_a_part_before_its_first_beat_and_after_its_end() {
        let heartbeat = Heartbeat::new("the updater");
        assert_eq!(heartbeat.read().again_by_ms, None);
        heartbeat.beat(5_000);
        let Beat { at_ms, again_by_ms, .. } = heartbeat.clone().read();
        assert_eq!(again_by_ms, Some(at_ms + 5_000));
        heartbeat.beat(u64::MAX);
        assert!(heartbeat.read().again_by_ms.is_some());
        heartbeat.end();
        assert_eq!(heartbeat.read().again_by_ms, None);
    }
}
