//! A store whose commits a test can hold up, overtake or make fail.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::{Change, Store, StoreError, Table, Versioned};

/// What is to become of a commit.
#[derive(Debug)]
pub(crate) enum Fate {
    /// It is made.
    Go,
    /// Nothing of it is made, as when the disk fails.
    Fail,
}

/// A commit that waits for its fate.
pub(crate) struct Pending {
    /// What it would change.
    pub(crate) changes: Vec<Change>,
    fate: oneshot::Sender<Fate>,
}

impl Pending {
    /// Whether it changes anything in `table`.
    pub(crate) fn touches(&self, table: Table) -> bool {
        self.changes.iter().any(|change| match change {
            Change::Put { table: t, .. } | Change::Delete { table: t, .. } => *t == table,
        })
    }

    /// Lets it go, or not.
    pub(crate) fn decide(self, fate: Fate) {
        self.fate.send(fate).expect("the one who commits waits");
    }
}

/// A store over another one.
pub(crate) struct ObservedStore {
    inner: Arc<dyn Store>,
    watcher: Mutex<Option<mpsc::UnboundedSender<Pending>>>,
}

impl ObservedStore {
    /// Lets everything through until told otherwise.
    pub(crate) fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, watcher: Mutex::new(None) }
    }

    /// From now on every commit waits until it is decided upon. Dropping the receiver lets everything through again.
    pub(crate) fn hold(&self) -> mpsc::UnboundedReceiver<Pending> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.watcher.lock().unwrap() = Some(sender);
        receiver
    }
}

#[async_trait]
impl Store for ObservedStore {
    async fn get(&self, table: Table, key: &str) -> Result<Option<Versioned>, StoreError> {
        self.inner.get(table, key).await
    }

    async fn scan(
        &self,
        table: Table,
        after: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(String, Versioned)>, StoreError> {
        self.inner.scan(table, after, prefix, limit).await
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let watcher = self.watcher.lock().unwrap().clone();
        if let Some(watcher) = watcher {
            let (fate, decided) = oneshot::channel();
            if watcher.send(Pending { changes: changes.clone(), fate }).is_ok()
                && let Ok(Fate::Fail) = decided.await
            {
                return Err(StoreError::Io { folder: "test".into(), reason: "made to fail".into() });
            }
        }
        self.inner.commit(changes).await
    }
}
