//! One batch of events: read, put in order, stored in one commit, then acknowledged and made known.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use muster_shared::ids::DeviceId;
use muster_shared::messages::{Ack, Position, Stream};
use muster_shared::topics::{Down, Kind, Topic, Up};

use super::parse::{Said, Unusable, parse};
use super::sequence::{Turn, turn};
use crate::broker::BrokerEvent;
use crate::clock;
use crate::content::Requests;
use crate::events::{ACTOR_CONTROLLER, Held, NewEvent};
use crate::executor;
use crate::feedback;
use crate::fleet::Observation;
use crate::metrics::Ingested;
use crate::state::App;
use crate::store::records::{ReportRecord, StreamPosition, position_key};
use crate::store::{Change, Expect, Records, StoreError, Table};

/// A device that sends rubbish is written about once in this time, in milliseconds.
const COMPLAIN_EVERY_MS: u64 = 60_000;

/// Takes in the messages of some of the devices.
pub(super) struct Worker {
    pub(super) app: Arc<App>,
    chunks: Requests,
    /// How streams stand, as stored. Filled when needed; emptied of what a failed commit makes doubtful.
    positions: HashMap<(DeviceId, Stream), Option<StreamPosition>>,
    complained_ms: HashMap<DeviceId, u64>,
}

/// What a batch comes to.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    /// Numbers of entries in the history, held until they are stored.
    held: Vec<Held>,
    pub(super) reports: BTreeMap<DeviceId, ReportRecord>,
    positions: BTreeMap<(DeviceId, Stream), StreamPosition>,
    acks: BTreeMap<(DeviceId, Stream), StreamPosition>,
    pub(super) observations: Vec<(DeviceId, Observation)>,
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
                BrokerEvent::Subscribed(device) if !self.app.fleet.is_member(&device) => {
                    self.app.broker.disconnect(&device).await;
                }
                BrokerEvent::Subscribed(device) => {
                    self.chunks.begin(&device);
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
                let bundle = self.app.fleet.bundle_of(observation.manifest()).map(|bundle| bundle.to_string());
                let bundle = bundle.as_deref().unwrap_or("unknown");
                self.app.metrics.requests_reported(bundle, observation.requests(), observation.latency_us());
                self.app.metrics.objectives_reported(bundle, observation.objectives());
                self.app.fleet.observe(&device, observation);
            }
            for ((device, stream), standing) in batch.acks {
                self.acknowledge(&device, stream, standing).await;
            }
        }
        for device in &batch.subscribed {
            executor::reissue(&self.app, device).await;
            self.app.feedback.connected(device);
            feedback::deliver(&self.app, device).await;
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
            self.app.broker.disconnect(device).await;
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
            Said::State(message) => self.state(batch, device, *message, now_ms).await,
            Said::Telemetry(message) => self.telemetry(batch, device, *message, now_ms).await,
            Said::Sketch(message, bytes) => self.sketch(batch, device, *message, &bytes, now_ms).await,
            Said::Event(message) => self.event(batch, device, message, now_ms).await,
            Said::Chunks(request) => {
                self.chunks.submit(device.clone(), &request);
                self.app.metrics.ingested(kind, Ingested::Stored);
                Ok(())
            }
            Said::Feedback(receipt) => {
                let known = feedback::received(&self.app, device, &receipt).await?;
                self.app.metrics.ingested(kind, if known { Ingested::Stored } else { Ingested::Duplicate });
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
            Turn::NotNext(standing) => (standing, false),
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
    pub(super) async fn take_turn(
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

    pub(super) async fn refuse(
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

    pub(super) fn note(&self, batch: &mut Batch, event: NewEvent) -> Result<(), StoreError> {
        let (change, held) = self.app.events.prepare(event)?;
        batch.changes.push(change);
        batch.held.push(held);
        Ok(())
    }
}
