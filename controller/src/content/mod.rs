//! Chunks for devices: who may have which, how fast, and from where.
//!
//! A device gets chunks of the one bundle it shall run and of no other, packed against what it was assigned before where it says
//! that it holds that: a difference would tell it of any other bundle. What it asks for beyond a window is not answered; what all devices get together stays within a budget of bytes per second; what one device does not read
//! stays within the broker's bound. A request that cannot be served is forgotten: the device asks again. Whether the
//! bytes are right is the device's to decide; a damaged file is noticed here all the same, so that an operator hears
//! of it.

mod budget;
mod catalogue;
mod forms;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use muster_shared::chunk::{Accepts, ChunkFrame};
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
use forms::{FormError, Forms, Written};

/// Requests served at once.
const WORKERS: usize = 4;
/// Requests waiting for one worker; more are forgotten.
const QUEUE: usize = 256;
/// Chunks kept in memory as they are sent, in bytes: a rollout sends the same ones to many devices.
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
    forms: Forms,
    budget: tokio::sync::Mutex<Budget>,
}

impl Content {
    fn new(app: &App) -> Self {
        let config = &app.config.content;
        let budget = Budget::new(config.send_bytes_per_s, config.burst_bytes, clock::now_ms());
        Self { forms: Forms::new(app.blobs.clone(), CACHE_BYTES), budget: tokio::sync::Mutex::new(budget) }
    }

    /// Sends what is asked for, at most a window of it. Returns how many chunks were sent.
    async fn serve(&self, app: &App, device: &DeviceId, request: &ChunkRequest) -> Result<usize, ContentError> {
        let manifest = request.manifest;
        if app.fleet.desired(device).and_then(|desired| desired.manifest) != Some(manifest) {
            return Err(ContentError::NotAssigned { asked: manifest });
        }
        let listed = app.catalogue.get(&manifest).await?.ok_or(ContentError::UnknownManifest(manifest))?;
        let base = base(app, device, request.accepts).await?;
        let topic = Topic::down(device, Down::Chunk);
        let wanted = request.wanted.iter().filter_map(|offset| request.first.checked_add(offset));
        let mut sent = 0;
        for index in wanted.take(CHUNK_WINDOW) {
            let written = self.written(&listed, index, request.accepts, base.as_deref()).await?;
            let Some(Written { encoding, bytes }) = written else { continue };
            self.pay(bytes.len()).await;
            let frame = ChunkFrame { manifest, index, encoding, bytes: &bytes };
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

    /// Chunk `index` for a device that holds `base`; none when the bundle has no such chunk.
    async fn written(
        &self,
        listed: &Listed,
        index: u32,
        accepts: Accepts,
        base: Option<&Listed>,
    ) -> Result<Option<Written>, ContentError> {
        let Some(piece) = listed.piece(index) else { return Ok(None) };
        let written = match accepts {
            Accepts::Plain => self.forms.plain(piece).await,
            Accepts::Packed { .. } => {
                let path = listed.manifest.files.get(piece.file_number).map(|file| &file.path);
                let old = path.zip(base).and_then(|(path, base)| base.manifest.file(path));
                self.forms.packed(piece, old.map(|file| file.sha256)).await
            }
        };
        let (manifest, file) = (listed.digest, piece.file);
        written.map(Some).map_err(|error| match error {
            FormError::File(error) => ContentError::File { manifest, index, file, reason: format!("{error:#}") },
            FormError::Damaged => ContentError::Damaged { manifest, index, file },
        })
    }
}

/// The bundle that `device` says it holds, if it was ever told to run it.
async fn base(app: &App, device: &DeviceId, accepts: Accepts) -> Result<Option<Arc<Listed>>, StoreError> {
    match accepts {
        Accepts::Packed { base: Some(base) } if app.fleet.was_assigned(device, &base) => app.catalogue.get(&base).await,
        Accepts::Packed { .. } | Accepts::Plain => Ok(None),
    }
}

#[cfg(test)]
mod tests;
