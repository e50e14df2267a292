//! The messages that wait, one bounded queue a receiver, in the store and in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_alerts::Notice;
use muster_shared::alert::{Alert, AlertState};
use muster_shared::ids::Digest;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::Receiver;
use crate::config::AlertsConfig;
use crate::store::{Change, Expect, Records, StoreError, Table};

/// Alerts one message tells of.
const MAX_ALERTS: usize = 100;

/// A message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Delivery {
    /// By which a receiver knows a message that comes twice.
    pub(crate) dedup_key: String,
    /// Whom it is for.
    pub(crate) receiver: String,
    /// When it was written, in milliseconds since the Unix epoch.
    pub(crate) created_ms: u64,
    /// Whether its alerts fire or are over.
    pub(crate) state: AlertState,
    /// Alerts of one rule and bundle.
    pub(crate) alerts: Vec<Alert>,
}

/// The key of the same alerts in the same state for the same receiver is the same, whenever the message is made.
pub(super) fn dedup_key(receiver: &str, state: AlertState, alerts: &[Alert]) -> String {
    let mut names: Vec<String> =
        alerts.iter().map(|a| format!("{}/{}/{}", a.fingerprint, a.began_ms, a.fired_ms.unwrap_or(0))).collect();
    names.sort_unstable();
    let mut digest = Digest::of(format!("{receiver}\n{}\n{}", state.as_str(), names.join("\n")).as_bytes()).to_string();
    digest.truncate(32);
    digest
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(String, Delivery)>,
    news: Arc<Notify>,
}

/// See the module.
pub(crate) struct Queues {
    inner: Mutex<Inner>,
}

struct Inner {
    queues: BTreeMap<String, Queue>,
    next: u64,
}

/// Messages to be stored with what they tell, then published.
pub(crate) struct Pending {
    puts: Vec<(String, Delivery)>,
    /// What has to go to make room: receiver and key.
    drops: Vec<(String, String)>,
    changes: Vec<Change>,
}

impl Pending {
    /// What to commit.
    pub(crate) fn changes(&self) -> Vec<Change> {
        self.changes.clone()
    }
}

fn key(receiver: &str, number: u64) -> String {
    format!("{receiver}/{number:020}")
}

impl Queues {
    /// The messages that were stored. Those of receivers that are in the configuration no more are removed.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read or written.
    pub(crate) async fn load(records: &Records, config: &AlertsConfig) -> Result<Self, StoreError> {
        let mut queues: BTreeMap<String, Queue> =
            config.receivers.iter().map(|receiver| (receiver.name.to_string(), Queue::default())).collect();
        let (mut next, mut strays) = (1, Vec::new());
        for (key, delivery) in records.all::<Delivery>(Table::AlertDeliveries, "").await? {
            let number = key.rsplit('/').next().and_then(|digits| digits.parse::<u64>().ok());
            next = next.max(number.unwrap_or(0).saturating_add(1));
            match queues.get_mut(&delivery.value.receiver) {
                Some(queue) => queue.waiting.push_back((key, delivery.value)),
                None => strays.push(Records::delete(Table::AlertDeliveries, key, Expect::Anything)),
            }
        }
        if !strays.is_empty() {
            tracing::warn!(
                count = strays.len(),
                "messages about alerts wait for receivers that are configured no more, and are removed"
            );
            records.commit(strays).await?;
        }
        Ok(Self { inner: Mutex::new(Inner { queues, next }) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The messages that `notices` come to: for each receiver that wants them, one for each state, rule and bundle.
    ///
    /// # Errors
    /// [`StoreError`] when one cannot be written as JSON.
    pub(crate) fn prepare(
        &self,
        receivers: &[Arc<Receiver>],
        notices: &[Notice],
        config: &AlertsConfig,
        now_ms: u64,
    ) -> Result<Pending, StoreError> {
        let mut inner = self.lock();
        let mut pending = Pending { puts: Vec::new(), drops: Vec::new(), changes: Vec::new() };
        for receiver in receivers {
            let mut groups: BTreeMap<(AlertState, String, Option<String>), Vec<Alert>> = BTreeMap::new();
            for alert in notices.iter().map(|notice| &notice.alert).filter(|alert| receiver.wants(alert)) {
                let group = (alert.state, alert.rule.to_string(), alert.labels.get("bundle").cloned());
                groups.entry(group).or_default().push(alert.clone());
            }
            let before = pending.puts.len();
            for ((state, _, _), alerts) in groups {
                for part in alerts.chunks(MAX_ALERTS) {
                    let delivery = Delivery {
                        dedup_key: dedup_key(receiver.name(), state, part),
                        receiver: receiver.name().to_owned(),
                        created_ms: now_ms,
                        state,
                        alerts: part.to_vec(),
                    };
                    let key = key(receiver.name(), inner.next);
                    inner.next += 1;
                    pending.changes.push(Records::put(
                        Table::AlertDeliveries,
                        key.as_str(),
                        Expect::Absent,
                        &delivery,
                    )?);
                    pending.puts.push((key, delivery));
                }
            }
            let queue = inner.queues.get(receiver.name());
            let waiting = queue.map_or(0, |queue| queue.waiting.len());
            let over = (waiting + pending.puts.len() - before).saturating_sub(config.max_queued).min(waiting);
            for (key, _) in queue.into_iter().flat_map(|queue| queue.waiting.iter().take(over)) {
                pending.changes.push(Records::delete(Table::AlertDeliveries, key.as_str(), Expect::Anything));
                pending.drops.push((receiver.name().to_owned(), key.clone()));
            }
        }
        Ok(pending)
    }

    /// Lets receivers see what has been stored. Gives the receiver of each message that was given up.
    pub(crate) fn publish(&self, pending: Pending) -> Vec<String> {
        let mut inner = self.lock();
        for (receiver, key) in &pending.drops {
            if let Some(queue) = inner.queues.get_mut(receiver) {
                queue.waiting.retain(|(known, _)| known != key);
            }
        }
        for (key, delivery) in pending.puts {
            if let Some(queue) = inner.queues.get_mut(&delivery.receiver) {
                queue.waiting.push_back((key, delivery));
                queue.news.notify_one();
            }
        }
        pending.drops.into_iter().map(|(receiver, _)| receiver).collect()
    }

    /// The message that has waited longest.
    pub(crate) fn first(&self, receiver: &str) -> Option<(String, Delivery)> {
        self.lock().queues.get(receiver).and_then(|queue| queue.waiting.front().cloned())
    }

    /// Takes a message out.
    pub(crate) fn remove(&self, receiver: &str, key: &str) {
        if let Some(queue) = self.lock().queues.get_mut(receiver) {
            queue.waiting.retain(|(known, _)| known != key);
        }
    }

    /// How many wait.
    pub(crate) fn len(&self, receiver: &str) -> usize {
        self.lock().queues.get(receiver).map_or(0, |queue| queue.waiting.len())
    }

    /// Waits until a message was added.
    pub(crate) async fn wait(&self, receiver: &str) {
        let news = self.lock().queues.get(receiver).map(|queue| Arc::clone(&queue.news));
        match news {
            Some(news) => news.notified().await,
            None => std::future::pending().await,
        }
    }
}
