//! Chunks for devices: who may have which, how fast, and from where.
//!
//! A device gets chunks of the one bundle it shall run and of no other. What it asks for beyond a window is not
//! answered; what all devices get together stays within a budget of bytes per second; what one device does not read
//! stays within the broker's bound. A request that cannot be served is forgotten: the device asks again. Whether the
//! bytes are right is the device's to decide; a damaged file is noticed here all the same, so that an operator hears
//! of it.

mod budget;
mod cache;
mod catalogue;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use muster_shared::chunk::{ChunkEncoding, ChunkFrame};
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::limits::CHUNK_WINDOW;
use muster_shared::messages::ChunkRequest;
use muster_shared::topics::{Down, Topic};
use tokio::sync::{mpsc, watch};

pub(crate) use catalogue::{Catalogue, Listed};

use crate::broker::BrokerError;
use crate::clock;
use crate::state::App;
use crate::store::StoreError;
use budget::Budget;
use cache::ChunkCache;

/// Requests served at once.
const WORKERS: usize = 4;
/// Requests waiting for one worker; more are forgotten.
const QUEUE: usize = 256;
/// Chunks kept in memory, in bytes: a rollout sends the same ones to many devices.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError {
    /// The device shall run something else.
    #[error("the device asks for chunks of {asked}, which it has not been assigned")]
    NotAssigned {
        /// What it asks for.
        asked: Digest,
    },
    /// No such bundle.
    #[error("there is no bundle with manifest {0}")]
    UnknownManifest(Digest),
    /// The bundle's file cannot be read.
    #[error("chunk {index} of {manifest} cannot be read from file {file}: {reason}")]
    File {
        /// The bundle.
        manifest: Digest,
        /// The chunk's number.
        index: u32,
        /// The file's digest.
        file: Digest,
        /// What went wrong.
        reason: String,
    },
    /// The bundle's file has changed on the disk.
    #[error("chunk {index} of {manifest} in file {file} is damaged: push the bundle's files again")]
    Damaged {
        /// The bundle.
        manifest: Digest,
        /// The chunk's number.
        index: u32,
        /// The file's digest.
        file: Digest,
    },
    /// The store failed.
    #[error("the bundle's record cannot be read")]
    Store(#[from] StoreError),
    /// The device cannot be reached.
    #[error("the chunk cannot be sent")]
    Broker(#[from] BrokerError),
}

/// Where requests go. Clones go to the same place.
#[derive(Clone)]
pub(crate) struct Requests {
    workers: Vec<mpsc::Sender<(DeviceId, ChunkRequest)>>,
}

impl Requests {
    /// Queues a request; false when it is forgotten because too many wait.
    pub(crate) fn submit(&self, device: DeviceId, request: ChunkRequest) -> bool {
        let mut hasher = DefaultHasher::new();
        device.hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % WORKERS as u64).unwrap_or(0);
        self.workers.get(at).is_some_and(|worker| worker.try_send((device, request)).is_ok())
    }
}

/// Starts answering requests.
pub(crate) fn spawn(app: &Arc<App>, shutdown: &watch::Receiver<bool>) -> Requests {
    let content = Arc::new(Content::new(app));
    let workers = (0..WORKERS)
        .map(|_| {
            let (sender, mut requests) = mpsc::channel::<(DeviceId, ChunkRequest)>(QUEUE);
            let (app, content, mut shutdown) = (Arc::clone(app), Arc::clone(&content), shutdown.clone());
            tokio::spawn(async move {
                loop {
                    let next = tokio::select! {
                        next = requests.recv() => next,
                        _ = shutdown.wait_for(|stop| *stop) => None,
                    };
                    let Some((device, request)) = next else { return };
                    report(&device, &content.serve(&app, &device, &request).await);
                }
            });
            sender
        })
        .collect();
    Requests { workers }
}

fn report(device: &DeviceId, outcome: &Result<usize, ContentError>) {
    match outcome {
        Ok(_) => {}
        Err(error @ (ContentError::File { .. } | ContentError::Damaged { .. } | ContentError::Store(_))) => {
            tracing::error!(%device, %error, "chunks cannot be served");
        }
        Err(
            error @ (ContentError::NotAssigned { .. } | ContentError::UnknownManifest(_) | ContentError::Broker(_)),
        ) => {
            tracing::debug!(%device, %error, "chunks not served");
        }
    }
}

/// What answering needs besides the app.
struct Content {
    cache: Mutex<ChunkCache>,
    budget: tokio::sync::Mutex<Budget>,
}

impl Content {
    fn new(app: &App) -> Self {
        let config = &app.config.content;
        let budget = Budget::new(config.send_bytes_per_s, config.burst_bytes, clock::now_ms());
        Self { cache: Mutex::new(ChunkCache::new(CACHE_BYTES)), budget: tokio::sync::Mutex::new(budget) }
    }

    /// Sends what is asked for, at most a window of it. Returns how many chunks were sent.
    async fn serve(&self, app: &App, device: &DeviceId, request: &ChunkRequest) -> Result<usize, ContentError> {
        let manifest = request.manifest;
        if app.fleet.desired(device).and_then(|desired| desired.manifest) != Some(manifest) {
            return Err(ContentError::NotAssigned { asked: manifest });
        }
        let listed = app.catalogue.get(&manifest).await?.ok_or(ContentError::UnknownManifest(manifest))?;
        let topic = Topic::down(device, Down::Chunk);
        let wanted = request.wanted.iter().filter_map(|offset| request.first.checked_add(offset));
        let mut sent = 0;
        for index in wanted.take(CHUNK_WINDOW) {
            let Some(bytes) = self.chunk(app, &listed, index).await? else { continue };
            self.pay(bytes.len()).await;
            let frame = ChunkFrame { manifest, index, encoding: ChunkEncoding::Plain, bytes: &bytes };
            app.broker.publish(&topic, Bytes::from(frame.encode())).await?;
            app.metrics.chunk_sent(bytes.len());
            sent += 1;
        }
        Ok(sent)
    }

    /// Waits until `bytes` are within the budget. Those who wait are served in turn.
    async fn pay(&self, bytes: usize) {
        let mut budget = self.budget.lock().await;
        loop {
            match budget.take(bytes as u64, clock::now_ms()) {
                Ok(()) => return,
                Err(wait_ms) => tokio::time::sleep(Duration::from_millis(wait_ms)).await,
            }
        }
    }

    /// The bytes of chunk `index`; none when the bundle has no such chunk.
    async fn chunk(&self, app: &App, listed: &Listed, index: u32) -> Result<Option<Bytes>, ContentError> {
        let Some(piece) = listed.piece(index) else { return Ok(None) };
        let key = piece.sha256;
        if let Some(bytes) = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Some(bytes));
        }
        let (manifest, file) = (listed.digest, piece.file);
        let bytes = app
            .blobs
            .read_at(&file, piece.start_bytes, piece.length_bytes)
            .await
            .map_err(|error| ContentError::File { manifest, index, file, reason: format!("{error:#}") })?;
        if Digest::of(&bytes) != key {
            return Err(ContentError::Damaged { manifest, index, file });
        }
        let bytes = Bytes::from(bytes);
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).put(key, bytes.clone());
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests;
