//! Whether the controller can work: its broker listens and its store takes writes.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Mutex;

use crate::store::{Expect, Records, StoreError, Table};

const PROBE_KEY: &str = "readiness-probe";
/// Anybody may ask, and each look costs a write: so it is not done more often than this, in milliseconds.
const LOOKED_AT_EVERY_MS: u64 = 1_000;

/// Why the controller cannot work.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum NotReady {
    /// The broker has ended, or is about to.
    #[error("the broker does not listen")]
    Broker,
    /// The store refuses.
    #[error("the store takes no writes; the controller's log says why")]
    Store(#[source] StoreError),
}

/// See the module.
pub(crate) struct Readiness {
    broker_listens: AtomicBool,
    /// When the store was looked at last, in milliseconds since the Unix epoch, and how it was.
    store: Mutex<Option<(u64, Result<(), NotReady>)>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { broker_listens: AtomicBool::new(true), store: Mutex::default() }
    }
}

impl Readiness {
    /// The broker takes no connections any more.
    pub(crate) fn broker_ended(&self) {
        self.broker_listens.store(false, Ordering::Relaxed);
    }

    /// Looks at the broker and the store.
    ///
    /// # Errors
    /// [`NotReady`] with what does not work.
    pub(crate) async fn check(&self, records: &Records, now_ms: u64) -> Result<(), NotReady> {
        if !self.broker_listens.load(Ordering::Relaxed) {
            return Err(NotReady::Broker);
        }
        let mut store = self.store.lock().await;
        if let Some((at_ms, found)) = &*store
            && now_ms.abs_diff(*at_ms) < LOOKED_AT_EVERY_MS
        {
            return found.clone();
        }
        let probe = async {
            let probe = Records::put(Table::Meta, PROBE_KEY, Expect::Anything, &now_ms)?;
            records.commit(vec![probe]).await
        };
        let found = probe.await.map_err(|error| {
            tracing::warn!(%error, "not ready: the store takes no writes");
            NotReady::Store(error)
        });
        *store = Some((now_ms, found.clone()));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::records;

    #[tokio::test]
    async fn many_questions_are_one_look() {
        let (records, _folder) = records();
        let readiness = Readiness::default();
        for now_ms in [10_000, 10_001, 10_999, 9_500, 12_000] {
            readiness.check(&records, now_ms).await.unwrap();
        }
        let probe = records.get::<u64>(Table::Meta, PROBE_KEY).await.unwrap().unwrap();
        assert_eq!((probe.version, probe.value), (2, 12_000));
        readiness.broker_ended();
        assert!(matches!(readiness.check(&records, 20_000).await, Err(NotReady::Broker)));
    }
}
