//! Chunks for devices: who may have which, how fast, and from where.
//!
//! A device gets chunks of the one bundle it shall run and of no other, packed against what it was assigned before where it says
//! that it holds that: a difference would tell it of any other bundle. What it asks for beyond a window is not answered; all get
//! one chunk in turn ([`queue`]); what they get together stays within a budget of bytes per second, and what is on its way within
//! the broker's bound. A request that cannot be served is forgotten: the device asks again. Whether the bytes are right is the
//! device's to decide; a damaged file is noticed here all the same, so that an operator hears of it.

mod budget;
mod catalogue;
mod forms;
mod queue;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_shared::chunk::Accepts;
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::messages::ChunkRequest;
use muster_shared::topics::{Down, Topic};
use tokio::sync::{Notify, mpsc, watch};

pub(crate) use catalogue::{Catalogue, Listed};

use crate::broker::{BrokerError, Room};
use crate::clock;
use crate::state::App;
use crate::store::StoreError;
use budget::Budget;
use forms::{For, FormError, Forms};
use queue::{Outcome, Queue, Turn};

/// Chunks under way to the broker at once; packing one takes a core.
const WORKERS: usize = 4;
/// Frames kept in memory, in bytes: a rollout sends the same ones to many devices.
const CACHE_BYTES: usize = 32 * 1024 * 1024;
/// How often those who wait for room are tried again even if nobody has told of any.
const RETRY_EVERY: Duration = Duration::from_secs(1);

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
    /// The device is not connected.
    #[error("the device is away")]
    Away,
    /// The device cannot be reached.
    #[error("the chunk cannot be sent")]
    Broker(#[from] BrokerError),
}

/// Where requests go. Clones go to the same place.
#[derive(Clone, Default)]
pub(crate) struct Requests {
    inner: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting {
    queue: Mutex<Queue>,
    /// Somebody is in line.
    ready: Notify,
}

impl Requests {
    /// Queues a request, in place of the device's last one.
    pub(crate) fn submit(&self, device: DeviceId, request: &ChunkRequest) {
        self.inner.lock().submit(device, request);
        self.inner.ready.notify_one();
    }

    /// `device` has a new connection, on which it counts its requests anew.
    pub(crate) fn begin(&self, device: &DeviceId) {
        self.inner.lock().begin(device);
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn next(&self) -> Turn {
        loop {
            if let Some(turn) = self.lock().next() {
                // There may be work for another one.
                self.ready.notify_one();
                return turn;
            }
            self.ready.notified().await;
        }
    }
}

/// Starts answering requests. `room` tells which devices have taken something.
pub(crate) fn spawn(
    app: &Arc<App>,
    mut room: mpsc::Receiver<DeviceId>,
    mut shutdown: watch::Receiver<bool>,
) -> Requests {
    let requests = Requests::default();
    let content = Arc::new(Content::new(app));
    for _ in 0..WORKERS {
        let (app, content, waiting) = (Arc::clone(app), Arc::clone(&content), Arc::clone(&requests.inner));
        let mut shutdown = shutdown.clone();
        tokio::spawn(async move {
            loop {
                let turn = tokio::select! {
                    turn = waiting.next() => turn,
                    _ = shutdown.wait_for(|stop| *stop) => return,
                };
                let outcome = outcome(&turn, &content.serve(&app, &turn).await);
                waiting.lock().done(turn, outcome);
            }
        });
    }
    let waiting = Arc::clone(&requests.inner);
    tokio::spawn(async move {
        let mut retry = tokio::time::interval(RETRY_EVERY);
        loop {
            tokio::select! {
                device = room.recv() => match device {
                    Some(device) => waiting.lock().room(&device),
                    None => return,
                },
                _ = retry.tick() => waiting.lock().retry(),
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
            waiting.ready.notify_one();
        }
    });
    requests
}

/// What `served` means for the request, after what is to be said of it.
fn outcome(turn: &Turn, served: &Result<usize, ContentError>) -> Outcome {
    let device = &turn.device;
    match served {
        Ok(_) => Outcome::Over,
        Err(ContentError::Broker(BrokerError::Congested { .. })) => Outcome::Full,
        Err(error @ (ContentError::File { .. } | ContentError::Damaged { .. } | ContentError::Store(_))) => {
            tracing::error!(%device, %error, "chunks cannot be served");
            Outcome::Refused
        }
        Err(
            error @ (ContentError::NotAssigned { .. }
            | ContentError::UnknownManifest(_)
            | ContentError::Away
            | ContentError::Broker(_)),
        ) => {
            tracing::debug!(%device, %error, "chunks not served");
            Outcome::Refused
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

    /// Sends what `turn` asks for. Returns how many bytes that were, none when the bundle has no such chunk.
    async fn serve(&self, app: &App, turn: &Turn) -> Result<usize, ContentError> {
        let Turn { device, manifest, accepts, index, .. } = turn;
        if !app.fleet.is_to_run(device, manifest) {
            return Err(ContentError::NotAssigned { asked: *manifest });
        }
        let listed = app.catalogue.get(manifest).await?.ok_or(ContentError::UnknownManifest(*manifest))?;
        let Some(piece) = listed.piece(*index) else { return Ok(0) };
        let topic = Topic::down(device, Down::Chunk);
        // Asked before the frame is made, so that who cannot take it costs nothing. A packed one is shorter.
        match app.broker.room(&topic, piece.length_bytes as usize) {
            Room::Free => {}
            Room::Full(waiting_bytes) => return Err(BrokerError::Congested { topic, waiting_bytes }.into()),
            Room::Away => return Err(ContentError::Away),
        }
        let reader = match accepts {
            Accepts::Plain => For::All,
            Accepts::Packed { base } => {
                let path = listed.manifest.files.get(piece.file_number).map(|file| &file.path);
                let base = held(app, device, base.as_ref()).await?;
                let old = path.zip(base.as_deref()).and_then(|(path, base)| base.manifest.file(path));
                For::Unpacking(old.map(|file| file.sha256))
            }
        };
        let frame = self.forms.frame(&listed, *index, piece, reader).await.map_err(|error| {
            let (manifest, index, file) = (*manifest, *index, piece.file);
            match error {
                FormError::File(error) => ContentError::File { manifest, index, file, reason: format!("{error:#}") },
                FormError::Damaged => ContentError::Damaged { manifest, index, file },
            }
        })?;
        let bytes = frame.len();
        app.broker.publish(&topic, frame).await?;
        app.metrics.chunk_sent(bytes);
        // Only now: what finds no room has cost nothing.
        self.pay(bytes).await;
        Ok(bytes)
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
}

/// The bundle that `device` says it holds, if it was ever told to run it.
async fn held(app: &App, device: &DeviceId, base: Option<&Digest>) -> Result<Option<Arc<Listed>>, StoreError> {
    match base {
        Some(base) if app.fleet.was_assigned(device, base) => app.catalogue.get(base).await,
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
