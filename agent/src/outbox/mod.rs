//! What waits to be delivered, kept until the controller has stored it.
//!
//! A message is durable before anybody is told that it exists, and stays until the controller acknowledges it. What is
//! given up when there is no room is decided by [`muster_agent_core::outbox::Ledger`].

mod backlog;
mod error;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_agent_core::outbox::{Bounds, Ledger, NUMBERS_PER_OPENING};
use muster_shared::ids::Digest;
use muster_shared::limits::{MAX_PACKET_BYTES, bounded_text};
use muster_shared::messages::{Ack, DeviceEvent, DeviceEventKind, Position, Sequenced, StateReport, Stream};
use muster_shared::sketch::SketchWindow;
use muster_shared::topics::Up;
use serde::Serialize;
use tokio::sync::Notify;

use self::backlog::Backlog;
pub(crate) use self::error::OutboxError;
use self::store::{Condemned, Store};
use crate::causes::with_source;
use crate::metrics::Metrics;
use crate::monitor::ClosedWindow;
use crate::status::OutboxStatus;
use crate::time::{Steady, wall_ms};

/// Room for the topic, the position and the packet's header.
const PACKET_MARGIN_BYTES: usize = 1_024;
/// Events that are shown to people at the device.
const SHOWN_EVENTS: usize = 8;
/// Pause between attempts to open a store that does not open, in milliseconds: each may read all of it.
const OPEN_AGAIN_MS: u64 = 2_000;
/// How far the controller may be ahead of a stream. More is no acknowledgement of anything.
const MAX_AHEAD: u64 = NUMBERS_PER_OPENING << 20;

/// The outbox. Cloning gives another handle to the same one.
#[derive(Clone)]
pub(crate) struct Outbox {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    changed: Notify,
    metrics: Metrics,
    data_dir: PathBuf,
    bounds: Bounds,
    clock: Steady,
}

struct State {
    /// `None` while it does not open.
    open: Option<Open>,
    /// How often a store has been opened.
    openings: u64,
    open_again_ms: u64,
    /// Why the store that was closed is not to be opened again.
    condemned: Option<Condemned>,
    /// Why nothing is taken; said once, and once more when it is over.
    trouble: Option<String>,
    /// The message whose write failed: it may have been stored all the same.
    doubtful: Option<Doubtful>,
    backlog: Backlog,
    last_state: Option<StateReport>,
    /// What happened last, for people at the device.
    last_events: VecDeque<DeviceEvent>,
}

struct Doubtful {
    stream: Stream,
    sequence: u64,
    digest: Digest,
}

struct Open {
    ledger: Ledger,
    store: Store,
    /// The first sequence each stream has given out since the store was opened. A stream that has caught up has none.
    begun: BTreeMap<Stream, u64>,
    /// The last message of each stream that an acknowledgement removed.
    taken: BTreeMap<Stream, u64>,
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
    /// Opens the outbox below `data_dir`. One that does not open takes messages all the same, into memory, and is tried again:
    /// a device whose disk is full has to go on serving. What had to be repaired is told as an event.
    pub(crate) fn open(data_dir: &Path, bounds: Bounds, metrics: Metrics) -> Self {
        let state = State {
            open: None,
            openings: 0,
            open_again_ms: 0,
            condemned: None,
            trouble: None,
            doubtful: None,
            backlog: Backlog::new(),
            last_state: None,
            last_events: VecDeque::new(),
        };
        let outbox = Self {
            inner: Arc::new(Inner {
                state: Mutex::new(state),
                changed: Notify::new(),
                metrics,
                data_dir: data_dir.to_owned(),
                bounds,
                clock: Steady::start(),
            }),
        };
        outbox.retry();
        outbox
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, state: &State) {
        let (messages, bytes) = state.waiting();
        self.inner.metrics.set_outbox(u64::try_from(messages).unwrap_or(u64::MAX), bytes, state.given_up());
    }

    /// Keeps an event; it is durable when this returns. After an error the caller still has it, and may bring it again; it is
    /// then told twice if the error came after the writing.
    pub(crate) fn event(&self, event: &DeviceEvent) -> Result<(), OutboxError> {
        let state = &mut *self.lock();
        self.drain(state).and_then(|()| self.append(state, Stream::Event, &json(event))).inspect_err(|error| {
            self.say(state, error);
        })?;
        state.remember(event);
        Ok(())
    }

    /// Keeps an event, in memory while it cannot be stored.
    pub(crate) fn note(&self, event: &DeviceEvent) {
        let state = &mut *self.lock();
        state.remember(event);
        self.keep(state, Stream::Event, json(event));
    }

    /// Keeps an alarm, in memory while it cannot be stored.
    pub(crate) fn alarm(&self, text: &str) {
        tracing::error!("{text}");
        self.note(&alarm(text));
    }

    /// Keeps the state in place of the one before, unless that says the same and still waits; in memory while it cannot be
    /// stored.
    pub(crate) fn state(&self, report: &StateReport) {
        let state = &mut *self.lock();
        let waits = state.open.as_ref().is_some_and(|open| open.ledger.count(Stream::State) > 0);
        let same = state
            .last_state
            .as_ref()
            .is_some_and(|last| *last == StateReport { reported_at_ms: last.reported_at_ms, ..report.clone() });
        if waits && same {
            return;
        }
        state.last_state = Some(report.clone());
        self.keep(state, Stream::State, json(report));
    }

    /// Keeps a closed window's counts, in memory while they cannot be stored.
    pub(crate) fn window(&self, window: &ClosedWindow) {
        let state = &mut *self.lock();
        self.keep(state, Stream::Telemetry, json(&window.telemetry));
        passing!(TelemetryKept);
        if let Some(sketch) = &window.sketch {
            let unplaced = Position { epoch: 0, sequence: 0, oldest: 0 };
            let body = Sequenced { position: unplaced, body: sketch.clone() }.encode();
            self.keep(state, Stream::Sketch, body);
        }
    }

    /// Stores what waits in memory, if that is possible by now. To be called now and then.
    pub(crate) fn retry(&self) {
        let state = &mut *self.lock();
        if let Err(error) = self.drain(state) {
            self.say(state, &error);
        }
    }

    fn keep(&self, state: &mut State, stream: Stream, body: Vec<u8>) {
        let Err(error) = self.drain(state).and_then(|()| self.append(state, stream, &body)) else { return };
        if error.is_about_the_message() {
            return self.turn_away(state, stream, &error);
        }
        if let Err(error) = state.backlog.add(stream, body) {
            tracing::error!(?stream, %error, "a message could not be kept");
        }
        self.say(state, &error);
        self.show(state);
    }

    /// Counts a message that no outbox takes as given up.
    fn turn_away(&self, state: &mut State, stream: Stream, error: &OutboxError) {
        tracing::error!(?stream, %error, "a message could not be kept");
        if let Some(open) = &mut state.open {
            open.store.count_given_up(1);
        }
        self.show(state);
    }

    /// Says why nothing can be stored, when that is news; the controller learns of it as soon as something can be.
    fn say(&self, state: &mut State, error: &OutboxError) {
        if state.trouble.is_some() || error.is_about_the_message() {
            return;
        }
        let text = format!("messages to the controller cannot be stored, and wait in memory: {}", with_source(error));
        tracing::error!("{text}");
        // The body is small: it fits.
        let _ = state.backlog.add(Stream::Event, json(&alarm(&text)));
        state.trouble = Some(text);
    }

    /// Opens the store where it is closed, and stores what waits in memory.
    fn drain(&self, state: &mut State) -> Result<(), OutboxError> {
        self.ensure_open(state)?;
        while let Some((stream, sequence, body)) = state.backlog.next() {
            let body = body.to_vec();
            match self.append(state, stream, &body) {
                Ok(()) => {}
                Err(error) if error.is_about_the_message() => self.turn_away(state, stream, &error),
                Err(error) => return Err(error),
            }
            state.backlog.stored(stream, sequence);
        }
        if state.trouble.take().is_some() {
            tracing::info!("messages to the controller can be stored again");
        }
        Ok(())
    }

    fn ensure_open(&self, state: &mut State) -> Result<(), OutboxError> {
        if state.open.is_some() {
            return Ok(());
        }
        let now_ms = self.inner.clock.now_ms();
        if now_ms < state.open_again_ms {
            return Err(OutboxError::Closed(state.trouble.clone().unwrap_or_default()));
        }
        state.open_again_ms = now_ms.saturating_add(OPEN_AGAIN_MS);
        let (store, ledger, alarms) = Store::open(&self.inner.data_dir, self.inner.bounds, state.condemned.as_ref())?;
        state.condemned = None;
        if let Some(Doubtful { stream, sequence, digest }) = state.doubtful.take()
            && store.get(stream, sequence).is_ok_and(|body| Digest::of(&body) == digest)
        {
            state.backlog.forget_stored(stream, digest);
        }
        let begun = Stream::ALL.into_iter().map(|stream| (stream, ledger.next_sequence(stream))).collect();
        state.open = Some(Open { ledger, store, begun, taken: BTreeMap::new() });
        state.openings += 1;
        for text in alarms {
            tracing::error!("{text}");
            let _ = state.backlog.add(Stream::Event, json(&alarm(&text)));
        }
        self.show(state);
        self.inner.changed.notify_one();
        Ok(())
    }

    fn append(&self, state: &mut State, stream: Stream, body: &[u8]) -> Result<(), OutboxError> {
        if body.len() + PACKET_MARGIN_BYTES > MAX_PACKET_BYTES {
            return Err(OutboxError::Packet { bytes: body.len() });
        }
        let Some(open) = &mut state.open else { return Err(OutboxError::Closed(String::new())) };
        // The ledger is changed on a copy: if there is no room, nothing has happened.
        let mut ledger = open.ledger.clone();
        let added = ledger.add(stream, body.len() as u64)?;
        let given_up = added.given_up.saturating_add(state.backlog.given_up());
        if let Err(error) = open.store.put(stream, added.held, body, &added.removed, given_up) {
            if !matches!(error, OutboxError::Full { .. }) {
                // What has been written is only known once it is read again.
                let (sequence, digest) = (added.held.sequence, Digest::of(body));
                state.doubtful = Some(Doubtful { stream, sequence, digest });
                state.close(&error);
            }
            return Err(error);
        }
        open.ledger = ledger;
        state.backlog.note_given_up();
        self.show(state);
        self.inner.changed.notify_one();
        Ok(())
    }

    /// The first message of `stream` after `sequence` that is not behind a gap, as it goes on the wire. One that cannot be read back is
    /// given up once it is the oldest: until then nothing behind it would be taken, and it would hold the stream up for ever.
    pub(crate) fn next_after(&self, stream: Stream, sequence: u64) -> Option<Outgoing> {
        let state = &mut *self.lock();
        let mut unreadable = 0u64;
        let next = loop {
            let Some(open) = &mut state.open else { break None };
            let Some(sequence) = open.ledger.next_in_turn(stream, sequence) else { break None };
            match open.on_the_wire(stream, sequence) {
                Ok(Some(payload)) => break Some(Outgoing { stream, sequence, payload }),
                Ok(None) => {}
                Err(error) => {
                    // The disk may refuse for a moment, which is no reason to give anything up: opening it again tells.
                    tracing::error!(?stream, sequence, %error, "a message of the outbox cannot be read; it is opened again");
                    state.let_go();
                    break None;
                }
            }
            if open.ledger.oldest(stream) != sequence {
                break None;
            }
            let removed = open.ledger.acknowledged(stream, sequence);
            open.store.count_given_up(removed.len() as u64);
            unreadable += 1;
            state.forget(stream, &removed);
        };
        if unreadable > 0 {
            let text =
                format!("the outbox was damaged: {unreadable} messages ({stream:?}) cannot be read and are given up");
            tracing::error!("{text}");
            self.keep(state, Stream::Event, json(&alarm(&text)));
        }
        next
    }

    /// All messages of `stream` that wait and can be read, also those whose turn has not come.
    #[cfg(test)]
    pub(crate) fn waiting(&self, stream: Stream) -> Vec<Outgoing> {
        let state = self.lock();
        let Some(open) = &state.open else { return Vec::new() };
        let sequences =
            std::iter::successors(open.ledger.next_after(stream, 0), |last| open.ledger.next_after(stream, *last));
        let read = |sequence| {
            let payload = open.on_the_wire(stream, sequence).ok()??;
            Some(Outgoing { stream, sequence, payload })
        };
        sequences.filter_map(read).collect()
    }

    /// Which opening of the store it is that messages come from; `None` while it is closed. Another one may be of another store.
    pub(crate) fn opening(&self) -> Option<u64> {
        let state = self.lock();
        state.open.as_ref().map(|_| state.openings)
    }

    /// The oldest message of `stream` that waits.
    pub(crate) fn oldest(&self, stream: Stream) -> Option<u64> {
        self.lock().open.as_ref()?.ledger.next_after(stream, 0)
    }

    /// The last message of `stream` that an acknowledgement took since the store was opened; 0 where none did.
    pub(crate) fn taken(&self, stream: Stream) -> u64 {
        self.lock().open.as_ref().and_then(|open| open.taken.get(&stream).copied()).unwrap_or_default()
    }

    /// Whether the controller has acknowledged a message of `stream` that came since the outbox was opened.
    pub(crate) fn is_own_acknowledged(&self, stream: Stream) -> bool {
        let state = self.lock();
        let Some(open) = &state.open else { return false };
        open.taken.get(&stream).zip(open.begun.get(&stream)).is_some_and(|(taken, begun)| taken >= begun)
    }

    /// Forgets what the controller has stored; true when that was news.
    pub(crate) fn acknowledged(&self, ack: &Ack) -> bool {
        let mut state = self.lock();
        let Some(open) = &mut state.open else { return false };
        if ack.epoch != open.store.epoch() {
            return false;
        }
        if ack.sequence >= open.ledger.next_sequence(ack.stream) {
            return self.catch_up(&mut state, ack.stream, ack.sequence);
        }
        let removed = open.ledger.acknowledged(ack.stream, ack.sequence);
        let Some(last) = removed.last() else { return false };
        open.taken.insert(ack.stream, *last);
        passing!(AckTaken);
        state.forget(ack.stream, &removed);
        passing!(AckForgotten);
        self.show(&state);
        self.inner.changed.notify_one();
        true
    }

    /// The controller has messages of `stream` up to `sequence` that neither this store nor the note beside it knows of: the whole data
    /// folder is an older one, put back. What it held when it was opened has been delivered, then. What came since bears numbers under
    /// which the controller would pass it over, so it goes on behind. True when that was so; once for each stream, as it cannot happen
    /// again before the next start, and nobody shall wear the disk out with it.
    fn catch_up(&self, state: &mut State, stream: Stream, sequence: u64) -> bool {
        let Some(open) = &mut state.open else { return false };
        let next = open.ledger.next_sequence(stream);
        if sequence - next > MAX_AHEAD {
            return false;
        }
        let Some(begun) = open.begun.remove(&stream) else { return false };
        let mut after = begun.saturating_sub(1);
        let mut since = Vec::new();
        while let Some(waiting) = open.ledger.next_after(stream, after) {
            since.extend(open.store.get(stream, waiting));
            after = waiting;
        }
        open.ledger.continue_at(stream, (sequence / NUMBERS_PER_OPENING + 1) * NUMBERS_PER_OPENING);
        for body in since {
            self.keep(state, stream, body);
        }
        if let Some(open) = &mut state.open {
            let delivered = open.ledger.acknowledged(stream, sequence);
            open.taken.insert(stream, sequence);
            state.forget(stream, &delivered);
        }
        let text =
            format!("the outbox is an older one: messages ({stream:?}) that the controller has were unknown to it");
        tracing::error!("{text}");
        self.keep(state, Stream::Event, json(&alarm(&text)));
        self.show(state);
        self.inner.changed.notify_one();
        true
    }

    /// Whether nothing waits to be sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().open.as_ref().is_none_or(|open| open.ledger.total() == 0)
    }

    /// What waits, for people at the device.
    pub(crate) fn status(&self) -> OutboxStatus {
        let state = self.lock();
        let (messages, bytes) = state.waiting();
        OutboxStatus {
            messages: u64::try_from(messages).unwrap_or(u64::MAX),
            bytes,
            given_up: state.given_up(),
            trouble: state.trouble.clone(),
        }
    }

    /// The state that was last reported since the start.
    pub(crate) fn last_state(&self) -> Option<StateReport> {
        self.lock().last_state.clone()
    }

    /// What happened last since the start, the oldest first.
    pub(crate) fn last_events(&self) -> Vec<DeviceEvent> {
        self.lock().last_events.iter().cloned().collect()
    }

    /// Messages given up for want of space since the outbox was made.
    pub(crate) fn given_up(&self) -> u64 {
        self.lock().given_up()
    }

    /// Waits until something was added or removed.
    pub(crate) async fn changed(&self) {
        self.inner.changed.notified().await;
    }
}

impl Open {
    /// A message with its place; `None` when its body is damaged.
    fn on_the_wire(&self, stream: Stream, sequence: u64) -> Result<Option<Vec<u8>>, OutboxError> {
        let position = Position { epoch: self.store.epoch(), sequence, oldest: self.ledger.oldest(stream) };
        self.store.get(stream, sequence).map(|body| on_the_wire(stream, position, &body))
    }
}

impl State {
    /// Lets the store go after `error`; one that is damaged would only fail again.
    fn close(&mut self, error: &OutboxError) {
        let is_empty = self.open.as_ref().is_some_and(|open| open.ledger.total() == 0);
        self.condemned = error.is_damage().then(|| Condemned { why: error.to_string(), is_empty });
        self.let_go();
    }

    /// Closes the store, to be opened again.
    fn let_go(&mut self) {
        if let Some(open) = self.open.take() {
            open.store.close();
        }
    }

    /// Removes from the store what is no longer listed. Not made durable: a message that comes back after a crash is sent once more, which
    /// harms nothing.
    fn forget(&mut self, stream: Stream, sequences: &[u64]) {
        let Some(open) = &mut self.open else { return };
        match open.store.forget(stream, sequences) {
            Ok(()) | Err(OutboxError::Full { .. }) => {}
            Err(error) => {
                tracing::error!(%error, "messages could not be removed from the outbox; they come back");
                self.close(&error);
            }
        }
    }

    /// Messages that wait, and the bytes they take on disk.
    fn waiting(&self) -> (usize, u64) {
        self.open.as_ref().map_or((0, 0), |open| (open.ledger.total() + self.backlog.len(), open.ledger.bytes()))
    }

    fn remember(&mut self, event: &DeviceEvent) {
        if self.last_events.len() == SHOWN_EVENTS {
            self.last_events.pop_front();
        }
        self.last_events.push_back(event.clone());
    }

    fn given_up(&self) -> u64 {
        let stored = self.open.as_ref().map_or(0, |open| open.store.given_up());
        stored.saturating_add(self.backlog.given_up())
    }
}

fn alarm(text: &str) -> DeviceEvent {
    DeviceEvent {
        at_ms: wall_ms(),
        kind: DeviceEventKind::Alarm,
        generation: 0,
        bundle: None,
        detail: bounded_text(text),
        track: Default::default(),
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
