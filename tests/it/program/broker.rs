//! The controller as far as a device's program is concerned: mosquitto in its place, and a client behind it that acknowledges what the
//! device says, answers its requests for chunks, and assigns.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use muster_shared::bundle::Manifest;
use muster_shared::chunk::{ChunkEncoding, ChunkFrame};
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::messages::{Ack, ChunkRequest, DeviceEvent, Position, Sequenced, StateReport, Stream};
use muster_shared::topics::{Down, Kind, Topic, Up};
use muster_tests::fleet::PATIENCE;
use muster_tests::mosquitto::StandIn;
use muster_tests::process::Process;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, Publish, QoS, Transport};

/// A bundle that can be sent: what describes it, and its only file.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) manifest: Manifest,
    pub(super) file: Vec<u8>,
}

impl Content {
    fn chunk(&self, index: u32) -> Option<&[u8]> {
        let (_, start, chunk) = self.manifest.chunks().nth(usize::try_from(index).ok()?)?;
        let start = usize::try_from(start).ok()?;
        self.file.get(start..start + chunk.length as usize)
    }
}

/// What is known of the device, and what it may ask for.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) state: Option<StateReport>,
    pub(super) events: BTreeMap<(u64, u64), DeviceEvent>,
    pub(super) bundles: BTreeMap<Digest, Content>,
    /// Chunks that were sent, by bundle.
    pub(super) sent: BTreeMap<Digest, u64>,
}

/// A broker in the controller's place.
pub(super) struct Broker {
    polling: tokio::task::JoinHandle<()>,
    client: AsyncClient,
    known: Arc<Mutex<Known>>,
    _process: Process,
}

impl Broker {
    /// Starts mosquitto on the controller's `port` with the papers in its folder `pki`.
    ///
    /// # Errors
    /// When it does not come up.
    pub(super) async fn start(mosquitto: &Path, folder: &Path, pki: &Path, port: u16) -> anyhow::Result<Self> {
        let StandIn { process, socket } = StandIn::start(mosquitto, folder, pki, port).await?;
        let mut options = MqttOptions::new("controller", socket.display().to_string(), 0);
        options.set_transport(Transport::Unix).set_keep_alive(Duration::from_secs(60));
        options.set_max_packet_size(1 << 20, 1 << 20);
        let (client, mut connection) = AsyncClient::new(options, 64);
        client.subscribe("muster/v1/d/+/up/+", QoS::AtLeastOnce).await?;
        let known: Arc<Mutex<Known>> = Arc::default();
        let (heard, answers) = (Arc::clone(&known), client.clone());
        let (subscribed, is_subscribed) = tokio::sync::oneshot::channel();
        let polling = tokio::spawn(async move {
            let mut subscribed = Some(subscribed);
            while let Ok(event) = connection.poll().await {
                match event {
                    Event::Incoming(Packet::Publish(publish)) => {
                        for (topic, payload) in hear(&heard, &publish).unwrap_or_default() {
                            // Of what finds no room, the device asks again.
                            let _ = answers.try_publish(topic, QoS::AtLeastOnce, false, payload);
                        }
                    }
                    Event::Incoming(Packet::SubAck(_)) => _ = subscribed.take().map(|told| told.send(())),
                    Event::Incoming(_) | Event::Outgoing(_) => {}
                }
            }
        });
        tokio::time::timeout(PATIENCE, is_subscribed).await.context("mosquitto does not answer")??;
        Ok(Self { polling, client, known, _process: process })
    }

    /// What is known of the device.
    pub(super) fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `device` something.
    ///
    /// # Errors
    /// When mosquitto has ended.
    pub(super) async fn assign(&self, device: &DeviceId, payload: Vec<u8>) -> anyhow::Result<()> {
        let topic = Topic::down(device, Down::Assignment).to_string();
        Ok(self.client.publish(topic, QoS::AtLeastOnce, false, payload).await?)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.polling.abort();
    }
}

/// Takes what a device says; gives what it is answered.
fn hear(known: &Mutex<Known>, publish: &Publish) -> Option<Vec<(String, Vec<u8>)>> {
    let Topic { device, kind: Kind::Up(kind) } = publish.topic.parse().ok()? else { return None };
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let acknowledge = |stream, position: Position| {
        let ack = Ack { stream, epoch: position.epoch, sequence: position.sequence };
        vec![(Topic::down(&device, Down::Ack).to_string(), serde_json::to_vec(&ack).unwrap_or_default())]
    };
    match kind {
        Up::Event => {
            let Sequenced { position, body } = serde_json::from_slice(&publish.payload).ok()?;
            known.events.insert((position.epoch, position.sequence), body);
            Some(acknowledge(Stream::Event, position))
        }
        Up::State => {
            let Sequenced { position, body } = serde_json::from_slice(&publish.payload).ok()?;
            known.state = Some(body);
            Some(acknowledge(Stream::State, position))
        }
        Up::ChunkRequest => {
            let request: ChunkRequest = serde_json::from_slice(&publish.payload).ok()?;
            let manifest = request.manifest;
            let content = known.bundles.get(&manifest)?;
            let mut frames = Vec::new();
            for index in request.wanted.iter().filter_map(|offset| request.first.checked_add(offset)).take(8) {
                let bytes = content.chunk(index)?;
                let frame = ChunkFrame { manifest, index, encoding: ChunkEncoding::Plain, bytes };
                frames.push((Topic::down(&device, Down::Chunk).to_string(), frame.encode()));
            }
            *known.sent.entry(manifest).or_default() += frames.len() as u64;
            Some(frames)
        }
        // What nobody acknowledges stays with the device.
        Up::Presence | Up::Telemetry | Up::Sketch | Up::Feedback => None,
    }
}
