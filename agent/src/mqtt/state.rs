//! What the link says of itself to the rest of the agent, and to people.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_shared::limits::bounded_text;
use serde::Serialize;

use crate::heartbeat::Heartbeat;
use crate::time::wall_ms;

/// Whether the link is up, and how often that has changed. Cloning gives another handle to the same.
#[derive(Debug, Clone)]
pub(crate) struct LinkState(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    epoch: AtomicU64,
    news: Mutex<LinkNews>,
    heartbeat: Heartbeat,
}

/// How the link does, for people. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct LinkNews {
    /// Since when it is up; none while it is not.
    pub(crate) connected_since_ms: Option<u64>,
    /// Why it was last lost, or did not come about.
    pub(crate) last_error: Option<String>,
    /// When that was.
    pub(crate) last_error_at_ms: Option<u64>,
    /// When it is tried again; none while it is up or being tried.
    pub(crate) next_try_at_ms: Option<u64>,
}

impl Default for LinkState {
    fn default() -> Self {
        let heartbeat = Heartbeat::new("the broker link");
        Self(Arc::new(Inner { epoch: AtomicU64::new(0), news: Mutex::default(), heartbeat }))
    }
}

impl LinkState {
    /// Grows with every change; odd while the link is up.
    pub(crate) fn epoch(&self) -> u64 {
        self.0.epoch.load(Ordering::Acquire)
    }

    /// A link that is up, for tests of what rests on it.
    #[cfg(test)]
    pub(crate) fn up() -> Self {
        let state = Self::default();
        state.set(true);
        state
    }

    /// Shows that the link's task turns, whatever the network does.
    pub(crate) fn heartbeat(&self) -> &Heartbeat {
        &self.0.heartbeat
    }

    /// How the link does.
    pub(crate) fn news(&self) -> LinkNews {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, LinkNews> {
        self.0.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, up: bool) {
        let epoch = self.epoch();
        if (epoch % 2 == 1) != up {
            let mut news = self.lock();
            news.connected_since_ms = up.then(wall_ms);
            news.next_try_at_ms = None;
            drop(news);
            self.0.epoch.store(epoch + 1, Ordering::Release);
        }
    }

    /// There is no connection, because of `reason`; the next one is tried in `pause_ms`, until when nothing is heard of the task.
    pub(super) fn lost(&self, reason: &str, pause_ms: u64) {
        self.0.heartbeat.beat(pause_ms);
        let now_ms = wall_ms();
        let mut news = self.lock();
        news.last_error = Some(bounded_text(reason));
        news.last_error_at_ms = Some(now_ms);
        news.next_try_at_ms = Some(now_ms.saturating_add(pause_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_since_when_it_is_up_or_why_it_is_not() {
        let state = LinkState::default();
        assert_eq!(state.news(), LinkNews::default());
        state.lost("connection refused", 5_000);
        let news = state.news();
        assert_eq!((news.connected_since_ms, news.last_error.as_deref()), (None, Some("connection refused")));
        assert_eq!(news.next_try_at_ms, news.last_error_at_ms.map(|at_ms| at_ms + 5_000));
        state.set(true);
        let news = state.news();
        assert!(news.connected_since_ms.is_some() && news.next_try_at_ms.is_none());
        assert_eq!(news.last_error.as_deref(), Some("connection refused"), "the last one is still worth knowing");
        assert_eq!(state.epoch(), 1);
        state.lost(&"x".repeat(1_000_000), u64::MAX);
        assert!(state.news().last_error.unwrap().len() < 2_000);
    }
}
