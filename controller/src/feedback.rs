//! Labels that are known only at the centre, on their way to the devices that made the predictions.
//!
//! What was pushed is stored, cut into batches a device can take, and sent one batch after another until the device says what came of it,
//! or the batch expires. Joining is the device's: what it predicted never leaves it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use muster_shared::feedback::{
    DeviceFeedback, FeedbackCounts, FeedbackDelivery, FeedbackItem, FeedbackLine, FeedbackReceipt, PushedFeedback,
    RefusedFeedback,
};
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::limits::{MAX_DELIVERED_FEEDBACK_BYTES, MAX_FEEDBACK_ITEMS};
use muster_shared::selector::Selector;
use muster_shared::topics::{Down, Topic};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock;
use crate::events::NewEvent;
use crate::state::App;
use crate::store::{Expect, Records, StoreError, Table};

/// Labels that may wait for one device.
const MAX_WAITING_OF_DEVICE: u64 = 200_000;
/// Labels that may wait for all.
const MAX_WAITING: u64 = 2_000_000;
/// How long a device may take for a batch before it is sent again, in milliseconds.
const SEND_AGAIN_MS: u64 = 30_000;
/// How often is looked for batches to be sent again, or that have expired.
const LOOK: Duration = Duration::from_secs(5);
/// About what the JSON around the items needs, in bytes.
const FRAME_BYTES: usize = 256;

/// A batch that waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FeedbackBatchRecord {
    /// For whom.
    device: DeviceId,
    /// Names the batch.
    batch: Digest,
    /// In milliseconds since the Unix epoch.
    expires_ms: u64,
    /// Its labels.
    items: Vec<FeedbackItem>,
}

/// What is known of a batch at the start.
#[derive(Deserialize)]
struct Head {
    device: DeviceId,
    expires_ms: u64,
    items: Vec<IgnoredAny>,
}

/// What became of a device's labels so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Totals {
    /// What the device said of those it was sent.
    #[serde(default)]
    results: FeedbackCounts,
    /// Labels that expired before the device took them.
    #[serde(default)]
    expired: u64,
}

/// What is known of a batch without reading it.
#[derive(Debug, Clone, Copy)]
struct WaitingBatch {
    labels: u64,
    /// In milliseconds since the Unix epoch.
    expires_ms: u64,
}

#[derive(Default)]
struct Waiting {
    /// Batches by their keys: the oldest first.
    batches: BTreeMap<String, WaitingBatch>,
    /// When the first was sent last, in milliseconds since the Unix epoch.
    sent_ms: Option<u64>,
}

impl Waiting {
    fn labels(&self) -> u64 {
        self.batches.values().map(|batch| batch.labels).sum()
    }
}

/// What waits for which device, in memory. Everything in it is stored.
#[derive(Default)]
pub(crate) struct FeedbackQueue {
    waiting: Mutex<BTreeMap<DeviceId, Waiting>>,
}

/// Why labels are not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedbackError {
    /// A label does not say whose prediction it is about.
    #[error(
        "label {0} names no device: an inference's id is known to the device that made it, so that every label needs one; \
         add a column device, or push them with --device"
    )]
    NoDevice(usize),
    /// A label would hold up the line.
    #[error(
        "label {0} is longer than {MAX_DELIVERED_FEEDBACK_BYTES} bytes: send the labels of an inference of many rows in parts, with row"
    )]
    TooLong(usize),
    /// Too many wait already.
    #[error(
        "{waiting} labels wait to be delivered already, of {limit} that may: try again when devices have taken some"
    )]
    Full {
        /// Labels that wait.
        waiting: u64,
        /// How many may.
        limit: u64,
    },
    /// The store failed.
    #[error("the labels cannot be stored")]
    Store(#[from] StoreError),
}

fn totals_key(device: &DeviceId) -> String {
    format!("feedback/{device}")
}

impl FeedbackQueue {
    /// Finds out what waits.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn load(records: &Records) -> Result<Self, StoreError> {
        let mut waiting: BTreeMap<DeviceId, Waiting> = BTreeMap::new();
        for (key, head) in records.all::<Head>(Table::Feedback, "").await? {
            let Head { device, expires_ms, items } = head.value;
            let batch = WaitingBatch { labels: items.len() as u64, expires_ms };
            waiting.entry(device).or_default().batches.insert(key, batch);
        }
        Ok(Self { waiting: Mutex::new(waiting) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Labels that wait for the device, and the batches they are in.
    fn of(&self, device: &DeviceId) -> (u64, u64) {
        self.lock().get(device).map_or((0, 0), |waiting| (waiting.labels(), waiting.batches.len() as u64))
    }

    fn room(&self, device: &DeviceId, more: u64) -> Result<(), FeedbackError> {
        let waiting = self.lock();
        let all: u64 = waiting.values().map(Waiting::labels).sum();
        let own = waiting.get(device).map_or(0, Waiting::labels);
        for (waiting, limit) in [(own, MAX_WAITING_OF_DEVICE), (all, MAX_WAITING)] {
            if waiting.saturating_add(more) > limit {
                return Err(FeedbackError::Full { waiting, limit });
            }
        }
        Ok(())
    }

    fn add(&self, device: &DeviceId, key: String, batch: WaitingBatch) {
        self.lock().entry(device.clone()).or_default().batches.insert(key, batch);
    }

    /// The batch whose turn it is, if it was not sent lately; it counts as sent from now on.
    fn take_turn(&self, device: &DeviceId, now_ms: u64) -> Option<String> {
        let mut all = self.lock();
        let waiting = all.get_mut(device)?;
        // A clock set back must not hold it back for long.
        if waiting.sent_ms.is_some_and(|sent_ms| now_ms.abs_diff(sent_ms) < SEND_AGAIN_MS) {
            return None;
        }
        let key = waiting.batches.keys().next().cloned()?;
        waiting.sent_ms = Some(now_ms);
        Some(key)
    }

    /// The batch whose turn it is, whether it was sent or not.
    fn first(&self, device: &DeviceId) -> Option<String> {
        self.lock().get(device).and_then(|waiting| waiting.batches.keys().next().cloned())
    }

    /// The batch whose turn it is, if it has expired.
    fn first_expired(&self, device: &DeviceId, now_ms: u64) -> Option<String> {
        let all = self.lock();
        let (key, batch) = all.get(device)?.batches.first_key_value()?;
        (batch.expires_ms <= now_ms).then(|| key.clone())
    }

    fn done(&self, device: &DeviceId, key: &str) {
        let mut all = self.lock();
        if let Some(waiting) = all.get_mut(device) {
            waiting.batches.remove(key);
            waiting.sent_ms = None;
            if waiting.batches.is_empty() {
                all.remove(device);
            }
        }
    }

    /// Whatever was sent on an earlier connection may be lost.
    pub(crate) fn connected(&self, device: &DeviceId) {
        if let Some(waiting) = self.lock().get_mut(device) {
            waiting.sent_ms = None;
        }
    }

    fn devices(&self) -> Vec<DeviceId> {
        self.lock().keys().cloned().collect()
    }
}

/// Starts to send again what devices have not taken, and to let go of what has expired.
pub(crate) fn spawn(app: Arc<App>, mut shutdown: watch::Receiver<bool>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            for device in app.feedback.devices() {
                if let Err(error) = expire(&app, &device, clock::now_ms()).await {
                    tracing::error!(%device, %error, "labels that have expired cannot be removed");
                }
                deliver(&app, &device).await;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    })
}

/// What an item takes in a delivery, in bytes.
fn size_of(item: &FeedbackItem) -> usize {
    serde_json::to_vec(item).map_or(0, |json| json.len()) + 1
}

/// Cuts labels of one device into batches it can take.
fn batches(items: Vec<FeedbackItem>) -> Vec<Vec<FeedbackItem>> {
    let mut batches: Vec<Vec<FeedbackItem>> = Vec::new();
    let mut bytes = usize::MAX;
    for item in items {
        let size = size_of(&item);
        match batches.last_mut() {
            Some(batch)
                if batch.len() < MAX_FEEDBACK_ITEMS && bytes.saturating_add(size) <= MAX_DELIVERED_FEEDBACK_BYTES =>
            {
                bytes += size;
                batch.push(item);
            }
            Some(_) | None => {
                bytes = FRAME_BYTES + size;
                batches.push(vec![item]);
            }
        }
    }
    batches
}

/// Stores labels and sends them on. Those of devices that are not there, or not selected, are refused; the others are taken.
///
/// # Errors
/// [`FeedbackError`]; nothing is taken then.
pub(crate) async fn push(
    app: &App,
    labels: Vec<FeedbackLine>,
    selector: Option<&Selector>,
    actor: &str,
) -> Result<PushedFeedback, FeedbackError> {
    let now_ms = clock::now_ms();
    let mut by_device: BTreeMap<DeviceId, Vec<FeedbackItem>> = BTreeMap::new();
    for (at, FeedbackLine { device, item }) in labels.into_iter().enumerate() {
        if size_of(&item).saturating_add(FRAME_BYTES) > MAX_DELIVERED_FEEDBACK_BYTES {
            return Err(FeedbackError::TooLong(at + 1));
        }
        by_device.entry(device.ok_or(FeedbackError::NoDevice(at + 1))?).or_default().push(item);
    }
    let mut pushed = PushedFeedback::default();
    let mut changes = Vec::new();
    let mut added = Vec::new();
    for (device, items) in by_device {
        let labels = items.len() as u64;
        let reason = if !app.fleet.is_member(&device) {
            Some("there is no such device, or it is revoked")
        } else if selector.is_some_and(|selector| !app.fleet.is_selected(&device, selector)) {
            Some("the selector does not select it")
        } else {
            None
        };
        if let Some(reason) = reason {
            pushed.refused.push(RefusedFeedback { device, labels, reason: reason.to_owned() });
            continue;
        }
        app.feedback.room(&device, labels)?;
        pushed.accepted += labels;
        pushed.devices += 1;
        for (number, items) in batches(items).into_iter().enumerate() {
            let labels = items.len() as u64;
            let name = (&device, now_ms, number, &items);
            let batch = Digest::of(&serde_json::to_vec(&name).unwrap_or_default());
            // The digest keeps two pushes of one moment apart.
            let key = format!("{device}/{now_ms:020}/{number:06}/{}", batch.short());
            let expires_ms = now_ms.saturating_add(app.config.feedback.valid_for_ms);
            let record = FeedbackBatchRecord { device: device.clone(), batch, expires_ms, items };
            changes.push(Records::put(Table::Feedback, key.clone(), Expect::Anything, &record)?);
            added.push((device.clone(), key, WaitingBatch { labels, expires_ms }));
        }
    }
    if changes.is_empty() {
        return Ok(pushed);
    }
    let (event, _held) = app.events.prepare(NewEvent {
        kind: "feedback.pushed".into(),
        actor: actor.into(),
        detail: format!("{} labels for {} devices", pushed.accepted, pushed.devices),
        ..NewEvent::default()
    })?;
    changes.push(event);
    app.records.commit(changes).await?;
    for (device, key, batch) in &added {
        app.feedback.add(device, key.clone(), *batch);
    }
    for (device, _, _) in added {
        deliver(app, &device).await;
    }
    Ok(pushed)
}

/// Sends the device what is next, if it is connected and was not sent it lately.
pub(crate) async fn deliver(app: &App, device: &DeviceId) {
    if !app.fleet.is_online(device) {
        return;
    }
    let Some(key) = app.feedback.take_turn(device, clock::now_ms()) else { return };
    let record = match app.records.get::<FeedbackBatchRecord>(Table::Feedback, &key).await {
        Ok(Some(record)) => record.value,
        Ok(None) => return app.feedback.done(device, &key),
        Err(error) => return tracing::error!(%device, %error, "labels for a device cannot be read; it is tried again"),
    };
    let delivery = FeedbackDelivery { batch: record.batch, items: record.items };
    let Ok(payload) = serde_json::to_vec(&delivery) else { return };
    if let Err(error) = app.broker.publish(&Topic::down(device, Down::Feedback), Bytes::from(payload)).await {
        tracing::warn!(%device, %error, "labels were not sent; it is tried again");
    }
}

async fn totals(app: &App, device: &DeviceId) -> Result<Totals, StoreError> {
    let stored = app.records.get::<Totals>(Table::Meta, &totals_key(device)).await?;
    Ok(stored.map(|totals| totals.value).unwrap_or_default())
}

/// Takes in what a device says of the batch it was sent: that one is done, and the next is sent. False when it waits for no such word.
///
/// # Errors
/// [`StoreError`]; the batch is sent again then.
pub(crate) async fn received(app: &App, device: &DeviceId, receipt: &FeedbackReceipt) -> Result<bool, StoreError> {
    let Some(key) = app.feedback.first(device) else { return Ok(false) };
    let record = app.records.get::<FeedbackBatchRecord>(Table::Feedback, &key).await?;
    if record.is_none_or(|record| record.value.batch != receipt.batch) {
        return Ok(false);
    }
    let mut sum = totals(app, device).await?;
    sum.results.merge(&receipt.counts);
    let changes = vec![
        Records::delete(Table::Feedback, key.clone(), Expect::Anything),
        Records::put(Table::Meta, totals_key(device), Expect::Anything, &sum)?,
    ];
    app.records.commit(changes).await?;
    app.feedback.done(device, &key);
    app.metrics.feedback_delivered(&receipt.counts);
    deliver(app, device).await;
    Ok(true)
}

/// Lets go of the device's batches that have expired.
async fn expire(app: &App, device: &DeviceId, now_ms: u64) -> Result<(), StoreError> {
    while let Some(key) = app.feedback.first_expired(device, now_ms) {
        let record = app.records.get::<FeedbackBatchRecord>(Table::Feedback, &key).await?;
        let Some(record) = record else {
            app.feedback.done(device, &key);
            continue;
        };
        let labels = record.value.items.len() as u64;
        let mut sum = totals(app, device).await?;
        sum.expired = sum.expired.saturating_add(labels);
        let (event, _held) = app.events.prepare(NewEvent {
            kind: "feedback.expired".into(),
            actor: crate::events::ACTOR_CONTROLLER.into(),
            device: Some(device.clone()),
            detail: format!("{labels} labels were not taken in time"),
            ..NewEvent::default()
        })?;
        let changes = vec![
            Records::delete(Table::Feedback, key.clone(), Expect::Anything),
            Records::put(Table::Meta, totals_key(device), Expect::Anything, &sum)?,
            event,
        ];
        app.records.commit(changes).await?;
        app.feedback.done(device, &key);
        app.metrics.feedback_expired(labels);
    }
    Ok(())
}

/// How the labels of up to `limit` devices after `after` stand, in order of their names.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn standing(
    app: &App,
    after: Option<&DeviceId>,
    limit: usize,
) -> Result<Vec<DeviceFeedback>, StoreError> {
    let mut found = Vec::new();
    let mut after = after.cloned();
    while found.len() < limit {
        let devices = app.fleet.views(&Selector::all(), after.as_ref(), limit);
        let Some(last) = devices.last().map(|device| device.id.clone()) else { break };
        after = Some(last);
        for device in devices.into_iter().map(|device| device.id) {
            let Totals { results, expired } = totals(app, &device).await?;
            let (waiting, waiting_batches) = app.feedback.of(&device);
            if (waiting > 0 || expired > 0 || results.total() > 0) && found.len() < limit {
                found.push(DeviceFeedback { device, waiting, waiting_batches, results, expired });
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
