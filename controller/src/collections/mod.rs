//! Collections of samples: opened and closed by people, told to devices as signed statements, and what devices brought for them.
//!
//! The controller cannot read a sample: it is sealed to the collection's recipient. It holds the batches as they came, counts them, bounds
//! them, and writes down who opened, closed, listed, exported and deleted what. Which devices take part is found out anew whenever a
//! device connects and every now and then, as labels change; a statement is stored before it is sent, under a number that grows.

mod index;
mod receive;
mod requests;
mod tell;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use muster_shared::collection::{Closing, CollectionStatus, CreateCollection, SampleBatch, Wanted};
use muster_shared::ids::{CollectionId, DeviceId, Digest};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) use index::CollectionIndex;
pub(crate) use receive::receive;
pub(crate) use requests::{
    batches, clear_left_over, close, delete, labels, note_access, open, put_labels, view, views,
};
pub(crate) use tell::tell;

use crate::clock;
use crate::durable::FileError;
use crate::events::ACTOR_CONTROLLER;
use crate::state::App;
use crate::store::StoreError;

/// How often old collections are looked for, in milliseconds.
const TIDY_EVERY_MS: u64 = 60_000;
/// How often it is found out anew which devices take part, in milliseconds.
const RESOLVE_EVERY_MS: u64 = 30_000;

/// A collection in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CollectionRecord {
    /// Its name.
    pub(crate) id: CollectionId,
    /// What was asked for.
    pub(crate) spec: CreateCollection,
    /// Digests of the bundles' manifests.
    pub(crate) manifests: Vec<Digest>,
    /// In milliseconds since the Unix epoch.
    pub(crate) opened_at_ms: u64,
    /// A token's name.
    pub(crate) opened_by: String,
    /// No sample is taken from then on, in milliseconds since the Unix epoch.
    pub(crate) ends_ms: u64,
    /// None is taken in from then on, in milliseconds since the Unix epoch.
    pub(crate) upload_by_ms: u64,
    /// How it ended.
    pub(crate) closing: Option<Closing>,
}

/// What a device was told last.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct OrderRecord {
    /// The number of the statement.
    pub(crate) generation: u64,
    /// What it says.
    pub(crate) wanted: Vec<Wanted>,
}

/// Why something is not done with a collection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectionError {
    /// No such collection.
    #[error("there is no collection {0}")]
    Unknown(CollectionId),
    /// No such bundle.
    #[error("there is no bundle {0}: push it first with `muster bundle push`")]
    UnknownBundle(muster_shared::ids::BundleRef),
    /// The wish is not valid.
    #[error("the collection as asked for is not valid: {0}")]
    Spec(String),
    /// Too many at once.
    #[error("{0}")]
    TooMany(String),
    /// It is not open any more.
    #[error("the collection {0} is closed already")]
    Closed(CollectionId),
    /// The device takes no part in it, or no longer.
    #[error("the collection {collection} takes nothing in from {device}: {why}")]
    NotWanted {
        /// The collection.
        collection: CollectionId,
        /// The device.
        device: DeviceId,
        /// Why.
        why: &'static str,
    },
    /// What was sent is no batch.
    #[error("this is no batch of samples: {0}")]
    Batch(String),
    /// Another batch came under the same number.
    #[error("another batch {0} of this device is there already")]
    Changed(u32),
    /// There is no more room.
    #[error("{0}")]
    Full(String),
    /// Others kept changing the records.
    #[error("the collection's record is being changed by others all the time: try again")]
    Busy,
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store failed.
    #[error("the collection's record cannot be read or written")]
    Store(#[from] StoreError),
}

impl CollectionRecord {
    /// How it stands at `now_ms`.
    pub(crate) fn status(&self, now_ms: u64) -> CollectionStatus {
        match &self.closing {
            Some(closing) if closing.discard => CollectionStatus::Closed,
            None if now_ms < self.ends_ms => CollectionStatus::Open,
            Some(_) | None if now_ms < self.upload_by_ms => CollectionStatus::Uploading,
            Some(_) | None => CollectionStatus::Closed,
        }
    }
}

/// Where the samples of a collection lie.
pub(crate) fn folder(app: &App, id: &CollectionId) -> PathBuf {
    app.config.data_dir.join("collections").join(id.as_str())
}

/// Where a batch lies.
pub(crate) fn batch_path(app: &App, id: &CollectionId, batch: &SampleBatch) -> PathBuf {
    folder(app, id).join(format!("{}-{:06}.batch", batch.device, batch.number))
}

/// Key of a [`SampleBatch`] in its table.
fn batch_key(id: &CollectionId, device: &DeviceId, number: u32) -> String {
    format!("{id}/{device}/{number:06}")
}

/// Starts looking after collections: they end by themselves, devices are told, and what was kept long enough goes.
pub(crate) fn spawn(app: Arc<App>, mut shutdown: watch::Receiver<bool>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let tick = Duration::from_millis(app.config.rollout.tick_ms);
        let (mut resolved_ms, mut tidied_ms) = (0_u64, 0_u64);
        loop {
            let now_ms = clock::now_ms();
            end_what_is_over(&app, now_ms).await;
            if app.collections.take_dirty() || now_ms.saturating_sub(resolved_ms) >= RESOLVE_EVERY_MS {
                resolved_ms = now_ms;
                tell::resolve(&app).await;
            }
            tell::remind(&app, now_ms).await;
            if now_ms.saturating_sub(tidied_ms) >= TIDY_EVERY_MS {
                tidied_ms = now_ms;
                tidy(&app, now_ms).await;
            }
            tokio::select! {
                () = tokio::time::sleep(tick) => {}
                () = app.collections.nudge.notified() => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    })
}

/// Closes collections whose time is up, or of which enough has come or is held.
async fn end_what_is_over(app: &App, now_ms: u64) {
    for entry in app.collections.all() {
        if entry.record.closing.is_some() {
            continue;
        }
        let spec = &entry.record.spec;
        let held = requests::held(app, &entry.record);
        let reason = if now_ms >= entry.record.ends_ms {
            "its time is up".to_owned()
        } else if entry.samples.saturating_add(held.samples) >= spec.max_total_count {
            format!("{} samples are held or here, which is as many as it may have", entry.samples + held.samples)
        } else if entry.bytes.saturating_add(held.bytes) >= spec.max_total_bytes {
            format!("{} bytes are held or here, which is as many as it may have", entry.bytes + held.bytes)
        } else {
            continue;
        };
        let wish = muster_shared::collection::CloseCollection { discard: false, reason: Some(reason) };
        if let Err(error) = close(app, &entry.record.id, &wish, ACTOR_CONTROLLER).await {
            tracing::error!(collection = %entry.record.id, %error, "a collection cannot be closed; it is tried again");
        }
    }
}

/// Deletes collections that have been closed for long enough.
async fn tidy(app: &App, now_ms: u64) {
    let retention_ms = app.config.samples.retention_ms;
    for entry in app.collections.all() {
        let record = &entry.record;
        let since_ms = record
            .closing
            .as_ref()
            .filter(|closing| closing.discard)
            .map_or(record.upload_by_ms, |closing| closing.at_ms);
        if record.status(now_ms) == CollectionStatus::Closed && now_ms.saturating_sub(since_ms) >= retention_ms {
            let why = "it was kept as long as samples.retention-ms says";
            if let Err(error) = delete(app, &record.id, ACTOR_CONTROLLER, why).await {
                tracing::error!(collection = %record.id, %error, "an old collection cannot be deleted; it is tried again");
            }
        }
    }
}

#[cfg(test)]
mod tests;
