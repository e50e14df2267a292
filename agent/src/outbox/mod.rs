//! What waits to be delivered, kept until the controller has stored it.
//!
//! A message is durable before anybody is told that it exists, and stays until the controller acknowledges it. What is
//! given up when there is no room is decided by [`muster_agent_core::outbox::Ledger`].

mod store;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_agent_core::outbox::{Bounds, Ledger, TooLarge};
use muster_shared::limits::MAX_PACKET_BYTES;
use muster_shared::messages::{Ack, DeviceEvent, Position, Sequenced, StateReport, Stream};
use muster_shared::sketch::SketchWindow;
use muster_shared::topics::Up;
use serde::Serialize;
use tokio::sync::Notify;

use self::store::Store;
use crate::files::FileError;
use crate::metrics::Metrics;
use crate::monitor::ClosedWindow;

/// Room for the topic, the position and the packet's header.
const PACKET_MARGIN_BYTES: usize = 1_024;

/// Why a message could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboxError {
    /// Its folder cannot be used.
    #[error("the outbox cannot be used")]
    File(#[from] FileError),
    /// The store refuses.
    #[error("the outbox cannot store a message: {0}")]
    Store(#[from] sled::Error),
    /// The message is larger than anything that can be sent.
    #[error("a message of {bytes} bytes is larger than a packet may be")]
    Packet {
        /// Its size, in bytes.
        bytes: usize,
    },
    /// The message is larger than the whole outbox.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The store has forgotten what it held.
    #[error("it is empty and should not be")]
    Emptied,
    /// No random number for a new outbox.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

impl OutboxError {
    /// Whether the store itself is to blame, and a new one would do.
    fn is_damage(&self) -> bool {
        match self {
            Self::Emptied => true,
            Self::Store(sled::Error::Io(error)) => {
                let in_use = error.to_string().contains("could not acquire lock");
                !in_use && !matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::StorageFull)
            }
            Self::Store(
                sled::Error::CollectionNotFound(_)
                | sled::Error::Unsupported(_)
                | sled::Error::ReportableBug(_)
                | sled::Error::Corruption { .. },
            ) => true,
            Self::File(_) | Self::Packet { .. } | Self::TooLarge(_) | Self::Random(_) => false,
        }
    }
}

/// The outbox. Cloning gives another handle to the same one.
#[derive(Clone)]
pub(crate) struct Outbox {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    changed: Notify,
    metrics: Metrics,
}

struct State {
    ledger: Ledger,
    store: Store,
    last_state: Option<StateReport>,
}

/// A message on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) stream: Stream,
    pub(crate) sequence: u64,
    pub(crate) payload: Vec<u8>,
}

/// The topic a stream is published on.
pub(crate) fn topic(stream: Stream) -> Up {
    match stream {
        Stream::State => Up::State,
        Stream::Telemetry => Up::Telemetry,
        Stream::Sketch => Up::Sketch,
        Stream::Event => Up::Event,
    }
}

impl Outbox {
    /// Opens the outbox below `data_dir`, and says what had to be repaired.
    pub(crate) fn open(data_dir: &Path, bounds: Bounds, metrics: Metrics) -> Result<(Self, Vec<String>), OutboxError> {
        let (store, mut alarms) = Store::open(data_dir)?;
        let (ledger, missing) = store.ledger(bounds)?;
        if missing > 0 {
            alarms.push(format!("the outbox was damaged: {missing} undelivered messages are lost"));
        }
        let state = State { ledger, store, last_state: None };
        let outbox = Self { inner: Arc::new(Inner { state: Mutex::new(state), changed: Notify::new(), metrics }) };
        outbox.show(&outbox.lock());
        Ok((outbox, alarms))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, state: &State) {
        let messages = u64::try_from(state.ledger.total()).unwrap_or(u64::MAX);
        self.inner.metrics.set_outbox(messages, state.ledger.bytes(), state.store.given_up());
    }

    /// Keeps an event; it is durable when this returns.
    pub(crate) fn event(&self, event: &DeviceEvent) -> Result<(), OutboxError> {
        self.append(&mut self.lock(), Stream::Event, &json(event))
    }

    /// Keeps the state in place of the one before, unless that says the same and still waits.
    pub(crate) fn state(&self, report: &StateReport) -> Result<(), OutboxError> {
        let mut state = self.lock();
        let waits = state.ledger.count(Stream::State) > 0;
        let same = state
            .last_state
            .as_ref()
            .is_some_and(|last| *last == StateReport { reported_at_ms: last.reported_at_ms, ..report.clone() });
        if waits && same {
            return Ok(());
        }
        self.append(&mut state, Stream::State, &json(report))?;
        state.last_state = Some(report.clone());
        Ok(())
    }

    /// Keeps a closed window's counts.
    pub(crate) fn window(&self, window: &ClosedWindow) -> Result<(), OutboxError> {
        let mut state = self.lock();
        self.append(&mut state, Stream::Telemetry, &json(&window.telemetry))?;
        if let Some(sketch) = &window.sketch {
            let unplaced = Position { epoch: 0, sequence: 0, oldest: 0 };
            let body = Sequenced { position: unplaced, body: sketch.clone() }.encode();
            self.append(&mut state, Stream::Sketch, &body)?;
        }
        Ok(())
    }

    fn append(&self, state: &mut State, stream: Stream, body: &[u8]) -> Result<(), OutboxError> {
        if body.len() + PACKET_MARGIN_BYTES > MAX_PACKET_BYTES {
            return Err(OutboxError::Packet { bytes: body.len() });
        }
        // The ledger is changed on a copy: if the store refuses, nothing has happened.
        let mut ledger = state.ledger.clone();
        let added = ledger.add(stream, body.len() as u64)?;
        state.store.put(stream, added.held, body, &added.removed, added.given_up)?;
        state.ledger = ledger;
        self.show(state);
        self.inner.changed.notify_one();
        Ok(())
    }

    /// The first message of `stream` after `sequence`, as it goes on the wire. One that cannot be read back is dropped.
    pub(crate) fn next_after(&self, stream: Stream, sequence: u64) -> Option<Outgoing> {
        let state = self.lock();
        let mut after = sequence;
        loop {
            let sequence = state.ledger.next_after(stream, after)?;
            let position = Position { epoch: state.store.epoch(), sequence, oldest: state.ledger.oldest(stream) };
            match state.store.get(stream, sequence).map(|body| on_the_wire(stream, position, &body)) {
                Ok(Some(payload)) => return Some(Outgoing { stream, sequence, payload }),
                Ok(None) => {
                    tracing::error!(?stream, sequence, "a message of the outbox is damaged and was passed over")
                }
                Err(error) => tracing::error!(?stream, sequence, %error, "a message of the outbox cannot be read"),
            }
            after = sequence;
        }
    }

    /// Forgets what the controller has stored; true when that was news.
    pub(crate) fn acknowledged(&self, ack: &Ack) -> bool {
        let mut state = self.lock();
        if ack.epoch != state.store.epoch() || ack.sequence >= state.ledger.next_sequence(ack.stream) {
            return false;
        }
        let removed = state.ledger.acknowledged(ack.stream, ack.sequence);
        if removed.is_empty() {
            return false;
        }
        // Not made durable: a message that comes back after a crash is sent once more, which harms nothing.
        if let Err(error) = state.store.forget(ack.stream, &removed) {
            tracing::error!(%error, "acknowledged messages could not be removed from the outbox");
        }
        self.show(&state);
        self.inner.changed.notify_one();
        true
    }

    /// Whether anything waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().ledger.total() == 0
    }

    /// Messages given up for want of space since the outbox was made.
    pub(crate) fn given_up(&self) -> u64 {
        self.lock().store.given_up()
    }

    /// Waits until something was added or removed.
    pub(crate) async fn changed(&self) {
        self.inner.changed.notified().await;
    }
}

fn json<T: Serialize>(body: &T) -> Vec<u8> {
    serde_json::to_vec(body).unwrap_or_default()
}

/// A stored body with its position, which is only known when it is sent; `None` when the body is damaged.
fn on_the_wire(stream: Stream, position: Position, body: &[u8]) -> Option<Vec<u8>> {
    match stream {
        Stream::Sketch => {
            let stored = Sequenced::<SketchWindow>::decode(body).ok()?;
            Some(Sequenced { position, body: stored.body }.encode())
        }
        Stream::State | Stream::Telemetry | Stream::Event => {
            let body: &serde_json::value::RawValue = serde_json::from_slice(body).ok()?;
            serde_json::to_vec(&Sequenced { position, body }).ok()
        }
    }
}

#[cfg(test)]
mod tests;
