//! One batch of events: read, put in order, stored in one commit, then acknowledged and made known.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use muster_shared::ids::DeviceId;
use muster_shared::messages::{
    Ack, DeviceEvent, DeviceEventKind, Position, Sequenced, StateReport, Stream, TelemetryWindow, WindowKey,
};
use muster_shared::sketch::SketchWindow;
use muster_shared::topics::{Down, Kind, Topic, Up};

use super::parse::{Said, Unusable, parse};
use super::sequence::{Turn, turn};
use crate::broker::BrokerEvent;
use crate::clock;
use crate::content::Requests;
use crate::events::{ACTOR_CONTROLLER, ACTOR_DEVICE, Held, NewEvent};
use crate::executor;
use crate::fleet::Observation;
use crate::metrics::Ingested;
use crate::state::App;
use crate::store::records::{ReportRecord, StreamPosition, WindowRecord, position_key, window_key};
use crate::store::{Change, Expect, Records, StoreError, Table};

/// A device that sends rubbish is written about once in this time, in milliseconds.
const COMPLAIN_EVERY_MS: u64 = 60_000;

/// Takes in the messages of some of the devices.
pub(super) struct Worker {
    app: Arc<App>,
    chunks: Requests,
    /// How streams stand, as stored. Filled when needed; emptied of what a failed commit makes doubtful.
    positions: HashMap<(DeviceId, Stream), Option<StreamPosition>>,
    complained_ms: HashMap<DeviceId, u64>,
}

/// What a batch comes to.
#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    held: Vec<Held>,
    reports: BTreeMap<DeviceId, ReportRecord>,
    positions: BTreeMap<(DeviceId, Stream), StreamPosition>,
    acks: BTreeMap<(DeviceId, Stream), StreamPosition>,
    observations: Vec<(DeviceId, Observation)>,
    subscribed: BTreeSet<DeviceId>,
    /// Counted as stored or failed once the commit is through.
    counted: Vec<Up>,
    /// Something changed that plans may rest on.
    news: bool,
}

impl Worker {
    pub(super) fn new(app: Arc<App>, chunks: Requests) -> Self {
        Self { app, chunks, positions: HashMap::new(), complained_ms: HashMap::new() }
    }

    pub(super) async fn take_in(&mut self, events: Vec<BrokerEvent>) {
        let now_ms = clock::now_ms();
        let mut batch = Batch::default();
        for event in events {
            match event {
                BrokerEvent::Subscribed(device) => {
                    batch.news |= self.app.fleet.set_online(&device, true, now_ms);
                    batch.subscribed.insert(device);
                }
                BrokerEvent::Disconnected(device) => {
                    batch.news |= self.app.fleet.set_online(&device, false, now_ms);
                    batch.subscribed.remove(&device);
                }
                BrokerEvent::Message { topic, payload } => {
                    let Kind::Up(kind) = topic.kind else { continue };
                    if let Err(error) = self.message(&mut batch, &topic.device, kind, &payload, now_ms).await {
                        tracing::error!(device = %topic.device, %error, "a message cannot be taken in");
                        self.app.metrics.ingested(kind, Ingested::Failed);
                    }
                }
            }
        }
        self.finish(batch).await;
    }

    async fn finish(&mut self, mut batch: Batch) {
        let stored = self.store(&mut batch).await;
        if let Err(error) = stored {
            tracing::error!(%error, messages = batch.counted.len(), "messages cannot be stored; devices will repeat them");
            for key in batch.positions.keys().chain(batch.acks.keys()) {
                self.positions.remove(key);
            }
            batch.counted.iter().for_each(|kind| self.app.metrics.ingested(*kind, Ingested::Failed));
        } else {
            batch.counted.iter().for_each(|kind| self.app.metrics.ingested(*kind, Ingested::Stored));
            batch.news |= !batch.reports.is_empty() || !batch.observations.is_empty();
            for (device, report) in batch.reports {
                self.app.fleet.update_report(&device, report.reported);
            }
            for (device, observation) in batch.observations {
                self.app.fleet.observe(&device, observation);
            }
            for ((device, stream), standing) in batch.acks {
                self.acknowledge(&device, stream, standing).await;
            }
        }
        for device in &batch.subscribed {
            executor::reissue(&self.app, device).await;
        }
        if batch.news {
            self.app.nudge.notify_one();
        }
    }

    async fn store(&self, batch: &mut Batch) -> Result<(), StoreError> {
        let mut changes = std::mem::take(&mut batch.changes);
        for (device, report) in &batch.reports {
            changes.push(Records::put(Table::Reports, device.as_str(), Expect::Anything, report)?);
        }
        for ((device, stream), standing) in &batch.positions {
            changes.push(Records::put(Table::Positions, position_key(device, *stream), Expect::Anything, standing)?);
        }
        if changes.is_empty() {
            return Ok(());
        }
        let stored = self.app.records.commit(changes).await;
        batch.held.clear();
        stored
    }

    async fn acknowledge(&self, device: &DeviceId, stream: Stream, standing: StreamPosition) {
        let ack = Ack { stream, epoch: standing.epoch, sequence: standing.contiguous };
        let Ok(payload) = serde_json::to_vec(&ack) else { return };
        if let Err(error) = self.app.broker.publish(&Topic::down(device, Down::Ack), payload.into()).await {
            tracing::debug!(%device, %error, "an acknowledgement was not sent; the device will repeat itself");
        }
    }

    async fn message(
        &mut self,
        batch: &mut Batch,
        device: &DeviceId,
        kind: Up,
        payload: &Bytes,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        if !self.app.fleet.is_member(device) {
            self.app.metrics.ingested(kind, Ingested::Refused);
            // Revoked while it was connected. Cutting it off may take a while, and others should not wait for that.
            let (app, device) = (Arc::clone(&self.app), device.clone());
            tokio::spawn(async move { app.broker.disconnect(&device).await });
            return Ok(());
        }
        let said = match parse(kind, payload) {
            Ok(said) => said,
            Err(unusable) => return self.refuse(batch, device, kind, unusable, now_ms).await,
        };
        if let Said::Presence(presence) = said {
            batch.news |= self.app.fleet.set_online(device, presence.online, now_ms);
            self.app.metrics.ingested(kind, Ingested::Stored);
            return Ok(());
        }
        batch.news |= self.app.fleet.set_online(device, true, now_ms);
        match said {
            Said::State(message) => self.state(batch, device, message, now_ms).await,
            Said::Telemetry(message) => self.telemetry(batch, device, message, now_ms).await,
            Said::Sketch(message, bytes) => self.sketch(batch, device, message, &bytes, now_ms).await,
            Said::Event(message) => self.event(batch, device, message, now_ms).await,
            Said::Chunks(request) => {
                let taken = self.chunks.submit(device.clone(), request);
                self.app.metrics.ingested(kind, if taken { Ingested::Stored } else { Ingested::Failed });
                Ok(())
            }
            Said::Presence(_) => Ok(()),
        }
    }

    /// Whether it is the message's turn. Notes where the stream stands either way.
    async fn is_next(
        &mut self,
        batch: &mut Batch,
        device: &DeviceId,
        stream: Stream,
        position: &Position,
    ) -> Result<Option<bool>, StoreError> {
        let key = (device.clone(), stream);
        let stored = match self.positions.get(&key) {
            Some(stored) => *stored,
            None => self
                .app
                .records
                .get::<StreamPosition>(Table::Positions, &position_key(device, stream))
                .await?
                .map(|found| found.value),
        };
        let (standing, next) = match turn(stream, stored, position) {
            Turn::Next(standing) => (standing, true),
            Turn::OutOfTurn(standing) => (standing, false),
            Turn::Impossible => return Ok(None),
        };
        self.positions.insert(key.clone(), Some(standing));
        if stored != Some(standing) {
            batch.positions.insert(key.clone(), standing);
        }
        batch.acks.insert(key, standing);
        Ok(Some(next))
    }

    /// As [`Self::is_next`], with a message that contradicts itself refused and one that is known already counted.
    async fn take_turn(
        &mut self,
        batch: &mut Batch,
        device: &DeviceId,
        (kind, stream): (Up, Stream),
        position: &Position,
        now_ms: u64,
    ) -> Result<bool, StoreError> {
        match self.is_next(batch, device, stream, position).await? {
            Some(true) => {
                batch.counted.push(kind);
                Ok(true)
            }
            Some(false) => {
                self.app.metrics.ingested(kind, Ingested::Duplicate);
                Ok(false)
            }
            None => {
                let reason = "its sequence number is zero, or below the oldest it says it holds".to_owned();
                self.refuse(batch, device, kind, Unusable { reason, position: None }, now_ms).await?;
                Ok(false)
            }
        }
    }

    async fn refuse(
        &mut self,
        batch: &mut Batch,
        device: &DeviceId,
        kind: Up,
        unusable: Unusable,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        self.app.metrics.ingested(kind, Ingested::Refused);
        if let Some((stream, position)) = unusable.position {
            // Acknowledged in its turn, or the device would send it for ever and nothing after it.
            self.is_next(batch, device, stream, &position).await?;
        }
        self.complain(batch, device, &format!("a {} message was refused: {}", kind.as_str(), unusable.reason), now_ms)
    }

    fn complain(&mut self, batch: &mut Batch, device: &DeviceId, detail: &str, now_ms: u64) -> Result<(), StoreError> {
        let last = self.complained_ms.get(device).copied();
        if last.is_some_and(|last| now_ms.saturating_sub(last) < COMPLAIN_EVERY_MS) {
            return Ok(());
        }
        self.complained_ms.insert(device.clone(), now_ms);
        tracing::warn!(%device, detail, "bad message from a device");
        self.note(
            batch,
            NewEvent {
                kind: "device.bad-message".into(),
                actor: ACTOR_CONTROLLER.into(),
                device: Some(device.clone()),
                detail: detail.to_owned(),
                ..NewEvent::default()
            },
        )
    }

    fn note(&self, batch: &mut Batch, event: NewEvent) -> Result<(), StoreError> {
        let (change, held) = self.app.events.prepare(event)?;
        batch.changes.push(change);
        batch.held.push(held);
        Ok(())
    }

    async fn state(
        &mut self,
        batch: &mut Batch,
        device: &DeviceId,
        message: Sequenced<StateReport>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        if self.take_turn(batch, device, (Up::State, Stream::State), &message.position, now_ms).await? {
            let record = ReportRecord { reported: message.body, received_at_ms: now_ms };
            batch.reports.insert(device.clone(), record);
        }
        Ok(())
    }

    async fn telemetry(
        &mut self,
        batch: &mut Batch,
        device: &DeviceId,
        message: Sequenced<TelemetryWindow>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let (stream, position) = (Stream::Telemetry, message.position);
        if !self.take_turn(batch, device, (Up::Telemetry, stream), &position, now_ms).await? {
            return Ok(());
        }
        let record = WindowRecord {
            device: device.clone(),
            received_at_ms: now_ms,
            position,
            key: message.body.key,
            telemetry: Some(message.body),
            sketch: None,
            crash: false,
        };
        if let Some(telemetry) = &record.telemetry {
            batch.observations.push((device.clone(), Observation::of_telemetry(telemetry, now_ms)));
        }
        self.window(batch, stream, &record)
    }

    fn window(&self, batch: &mut Batch, stream: Stream, record: &WindowRecord) -> Result<(), StoreError> {
        let key = window_key(record.received_at_ms, &record.device, stream, &record.position);
        batch.changes.push(Records::put(Table::Windows, key, Expect::Anything, record)?);
        Ok(())
    }

    async fn sketch(
        &mut self,
        batch: &mut Batch,
        device: &DeviceId,
        message: Sequenced<SketchWindow>,
        bytes: &[u8],
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let Sequenced { position, body } = message;
        let listed = self.app.catalogue.get(&body.key.manifest).await?;
        let Some(listed) = listed.filter(|listed| body.fits(&listed.manifest.profile)) else {
            let reason =
                "the sketch does not fit the profile of the bundle it names, or there is no such bundle".into();
            let unusable = Unusable { reason, position: Some((Stream::Sketch, position)) };
            return self.refuse(batch, device, Up::Sketch, unusable, now_ms).await;
        };
        if !self.take_turn(batch, device, (Up::Sketch, Stream::Sketch), &position, now_ms).await? {
            return Ok(());
        }
        let observation = Observation::of_sketch(&body, &listed.manifest.profile, now_ms);
        batch.observations.push((device.clone(), observation));
        let record = WindowRecord {
            device: device.clone(),
            received_at_ms: now_ms,
            position,
            key: body.key,
            telemetry: None,
            sketch: Some(bytes.to_vec()),
            crash: false,
        };
        self.window(batch, Stream::Sketch, &record)
    }

    async fn event(
        &mut self,
        batch: &mut Batch,
        device: &DeviceId,
        message: Sequenced<DeviceEvent>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let Sequenced { position, body } = message;
        if !self.take_turn(batch, device, (Up::Event, Stream::Event), &position, now_ms).await? {
            return Ok(());
        }
        if body.kind == DeviceEventKind::Crashed {
            self.crash(batch, device, &body, position, now_ms)?;
        }
        let desired = self.app.fleet.desired(device).filter(|desired| desired.generation == body.generation);
        let event = NewEvent {
            kind: format!("device.{}", event_name(body.kind)),
            actor: ACTOR_DEVICE.into(),
            device: Some(device.clone()),
            rollout: desired.map(|desired| desired.rollout),
            bundle: body.bundle,
            detail: body.detail,
        };
        self.note(batch, event)
    }

    /// A crash tells about the bundle that ran. It is kept like a window, so that it is still known after a restart.
    fn crash(
        &self,
        batch: &mut Batch,
        device: &DeviceId,
        body: &DeviceEvent,
        position: Position,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let Some(manifest) = self.app.fleet.manifest_of(device, body.generation) else { return Ok(()) };
        let key = WindowKey { manifest, generation: body.generation, start_ms: body.at_ms, duration_ms: 0 };
        let record = WindowRecord {
            device: device.clone(),
            received_at_ms: now_ms,
            position,
            key,
            telemetry: None,
            sketch: None,
            crash: true,
        };
        batch.observations.push((device.clone(), Observation::of_crash(&key, now_ms)));
        self.window(batch, Stream::Event, &record)
    }
}

/// The kind as the history spells it.
const fn event_name(kind: DeviceEventKind) -> &'static str {
    match kind {
        DeviceEventKind::Started => "started",
        DeviceEventKind::Crashed => "crashed",
        DeviceEventKind::Assigned => "assigned",
        DeviceEventKind::Refused => "refused",
        DeviceEventKind::Verified => "verified",
        DeviceEventKind::Trial => "trial",
        DeviceEventKind::Committed => "committed",
        DeviceEventKind::Reverted => "reverted",
        DeviceEventKind::Failed => "failed",
        DeviceEventKind::Withdrawn => "withdrawn",
        DeviceEventKind::StaleMetadata => "stale-metadata",
        DeviceEventKind::Alarm => "alarm",
    }
}
