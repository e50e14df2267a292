//! What each kind of message comes to, once it is its turn.

use muster_shared::ids::DeviceId;
use muster_shared::messages::{
    DeviceEvent, DeviceEventKind, Position, Sequenced, StateReport, Stream, TelemetryWindow, WindowKey,
};
use muster_shared::sketch::{Comparison, SketchWindow};
use muster_shared::topics::Up;

use super::parse::Unusable;
use super::worker::{Batch, Worker};
use crate::events::{ACTOR_DEVICE, NewEvent};
use crate::fleet::Observation;
use crate::store::records::{ReportRecord, WindowRecord, window_key};
use crate::store::{Expect, Records, StoreError, Table};

// In all of these, what can fail comes before the message takes its turn: a message whose turn was taken is stored
// with the batch.
impl Worker {
    pub(super) async fn state(
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

    pub(super) async fn telemetry(
        &mut self,
        batch: &mut Batch,
        device: &DeviceId,
        mut message: Sequenced<TelemetryWindow>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let (stream, position) = (Stream::Telemetry, message.position);
        if let Some(compared) = message.body.comparison.take() {
            message.body.comparison = self.comparable(&message.body.key, &compared).await?;
        }
        if !message.body.objectives.is_empty() {
            let listed = self.app.catalogue.get(&message.body.key.manifest).await?;
            let objectives = listed.as_ref().map(|listed| &listed.manifest.profile.objectives);
            if objectives.is_none_or(|objectives| !message.body.objectives.fits(objectives)) {
                let reason =
                    "the latency objectives are not those of the bundle it names, or there is no such bundle".into();
                let unusable = Unusable { reason, position: Some((stream, position)) };
                return self.refuse(batch, device, Up::Telemetry, unusable, now_ms).await;
            }
        }
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
            program: None,
        };
        self.app
            .metrics
            .window_arrived(now_ms.saturating_sub(record.key.start_ms.saturating_add(record.key.duration_ms)));
        if let Some(telemetry) = &record.telemetry {
            batch.observations.push((device.clone(), Observation::of_telemetry(telemetry, now_ms)));
        }
        self.window(batch, stream, &record)
    }

    /// What of `compared` is of the two bundles it names; none where one of them was never taken in.
    async fn comparable(&self, key: &WindowKey, compared: &Comparison) -> Result<Option<Comparison>, StoreError> {
        let Some(candidate) = self.app.catalogue.get(&key.manifest).await? else { return Ok(None) };
        let Some(incumbent) = self.app.catalogue.get(&compared.against).await? else { return Ok(None) };
        Ok(Some(compared.within(&incumbent.manifest.profile, &candidate.manifest.profile)))
    }

    fn window(&self, batch: &mut Batch, stream: Stream, record: &WindowRecord) -> Result<(), StoreError> {
        let key = window_key(record.received_at_ms, &record.device, stream, &record.position);
        batch.changes.push(Records::put(Table::Windows, key, Expect::Anything, record)?);
        Ok(())
    }

    pub(super) async fn sketch(
        &mut self,
        batch: &mut Batch,
        device: &DeviceId,
        message: Sequenced<SketchWindow>,
        bytes: &[u8],
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let Sequenced { position, body } = message;
        let listed = self.app.catalogue.get(&body.key.manifest).await?;
        let Some(listed) = listed.filter(|listed| listed.fits(&body)) else {
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
            program: None,
        };
        self.window(batch, Stream::Sketch, &record)
    }

    pub(super) async fn event(
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
        let desired =
            self.app.fleet.desired(device, body.track).filter(|desired| desired.generation == body.generation);
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
        let program = self.app.fleet.program_of(device);
        let key = WindowKey { manifest, generation: body.generation, start_ms: body.at_ms, duration_ms: 0 };
        let record = WindowRecord {
            device: device.clone(),
            received_at_ms: now_ms,
            position,
            key,
            telemetry: None,
            sketch: None,
            crash: true,
            program,
        };
        batch.observations.push((device.clone(), Observation::of_crash(&key, program, now_ms)));
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
        DeviceEventKind::Beside => "beside",
        DeviceEventKind::Trial => "trial",
        DeviceEventKind::Committed => "committed",
        DeviceEventKind::Reverted => "reverted",
        DeviceEventKind::Failed => "failed",
        DeviceEventKind::Withdrawn => "withdrawn",
        DeviceEventKind::StaleMetadata => "stale-metadata",
        DeviceEventKind::Alarm => "alarm",
        DeviceEventKind::Other => "other",
    }
}
