//! The attacker's broker: mosquitto in the controller's place, with its certificate and keys, and a client behind it that hears
//! everything the device says and says whatever the attack wants.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use muster_shared::chunk::{ChunkEncoding, ChunkFrame};
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::messages::{Ack, ChunkRequest, DeviceEvent, Position, Presence, Sequenced, StateReport, Stream};
use muster_shared::topics::{Down, Kind, Topic, Up};
use muster_tests::mosquitto::StandIn;
use muster_tests::process::Process;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS, Transport};
use tokio::sync::mpsc;

use crate::attack::Chunks;
use crate::forge::Content;
use crate::stage::DEVICE;

const PATIENCE: Duration = Duration::from_secs(30);
const LARGEST_PACKET_BYTES: usize = 16 * 1024 * 1024;
/// Where the encoding stands in a chunk frame.
const ENCODING_AT: usize = 1;

/// What the device has said since the attack began.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    /// How often it came online.
    pub(crate) arrivals: usize,
    /// Whether it was last heard to be online.
    pub(crate) online: bool,
    /// Its events, each once however often it was sent.
    pub(crate) events: BTreeMap<(u64, u64), DeviceEvent>,
    /// Its last state report.
    pub(crate) state: Option<(StateReport, serde_json::Value)>,
}

/// How chunk requests are answered.
#[derive(Default)]
pub(crate) struct Answers {
    /// Bundles by the digest of their manifest.
    pub(crate) bundles: BTreeMap<Digest, Content>,
    /// What the attack says.
    pub(crate) chunks: Option<Chunks>,
    /// The bundle whose files are sent; the one asked for when missing.
    pub(crate) source: Option<Content>,
    /// The bytes that are sent in place of every chunk.
    pub(crate) body: Option<Vec<u8>>,
}

impl Answers {
    /// The frames that answer `request`.
    fn frames(&self, request: &ChunkRequest) -> Vec<Vec<u8>> {
        let bundle = self.bundles.get(&request.manifest);
        let (Some(chunks), Some(bundle)) = (&self.chunks, bundle) else { return Vec::new() };
        let source = self.source.as_ref().unwrap_or(bundle);
        let mut frames = Vec::new();
        for index in request.wanted.iter().filter_map(|offset| request.first.checked_add(offset)) {
            let Some(bytes) = bundle.answer(index, source, chunks, self.body.as_deref()) else { continue };
            let frame = ChunkFrame { manifest: request.manifest, index, encoding: ChunkEncoding::Plain, bytes: &bytes };
            for encoding in &chunks.encodings {
                let mut frame = frame.encode();
                frame[ENCODING_AT] = *encoding;
                frames.extend(std::iter::repeat_n(frame, chunks.times));
            }
        }
        frames
    }
}

/// A broker in the controller's place.
pub(crate) struct Broker {
    // Dropped first, so that the client sees its end before the socket goes.
    tasks: Vec<tokio::task::JoinHandle<()>>,
    client: AsyncClient,
    heard: Arc<Mutex<Heard>>,
    answers: Arc<Mutex<Answers>>,
    process: Process,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broker {
    /// Starts mosquitto on the controller's `port` with the papers in its folder `pki`.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) async fn start(mosquitto: &Path, folder: &Path, pki: &Path, port: u16) -> anyhow::Result<Self> {
        let StandIn { process, socket } = StandIn::start(mosquitto, folder, pki, port).await?;
        let mut options = MqttOptions::new("attacker", socket.display().to_string(), 0);
        options.set_transport(Transport::Unix).set_keep_alive(Duration::from_secs(60));
        options.set_max_packet_size(LARGEST_PACKET_BYTES, LARGEST_PACKET_BYTES);
        let (client, mut connection) = AsyncClient::new(options, 64);
        client.subscribe("muster/v1/d/+/up/+", QoS::AtLeastOnce).await?;
        let (sender, mut messages) = mpsc::unbounded_channel();
        let (subscribed, is_subscribed) = tokio::sync::oneshot::channel();
        let polling = tokio::spawn(async move {
            let mut subscribed = Some(subscribed);
            while let Ok(event) = connection.poll().await {
                match event {
                    Event::Incoming(Packet::Publish(publish)) => _ = sender.send(publish),
                    Event::Incoming(Packet::SubAck(_)) => _ = subscribed.take().map(|told| told.send(())),
                    Event::Incoming(_) | Event::Outgoing(_) => {}
                }
            }
        });
        tokio::time::timeout(PATIENCE, is_subscribed).await.context("mosquitto does not answer")??;
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let answers: Arc<Mutex<Answers>> = Arc::default();
        let listener = Listener { client: client.clone(), heard: Arc::clone(&heard), answers: Arc::clone(&answers) };
        let listening = tokio::spawn(async move {
            while let Some(publish) = messages.recv().await {
                listener.hear(&publish.topic, &publish.payload).await;
            }
        });
        Ok(Self { tasks: vec![polling, listening], client, heard, answers, process })
    }

    /// Forgets what was heard, and answers requests for chunks with `answers` from now on.
    pub(crate) fn begin(&self, answers: Answers) {
        *lock(&self.heard) = Heard::default();
        *lock(&self.answers) = answers;
    }

    /// Knows what to send of the bundle whose manifest has this digest.
    pub(crate) fn offer(&self, manifest: Digest, content: Content) {
        lock(&self.answers).bundles.insert(manifest, content);
    }

    /// What has been heard since.
    pub(crate) fn heard(&self) -> Heard {
        lock(&self.heard).clone()
    }

    /// Says `payload` to the device under attack.
    ///
    /// # Errors
    /// When mosquitto has ended.
    pub(crate) async fn say(&mut self, kind: &str, payload: Vec<u8>) -> anyhow::Result<()> {
        self.process.ensure_running()?;
        let topic = format!("muster/v1/d/{DEVICE}/down/{kind}");
        Ok(self.client.publish(topic, QoS::AtLeastOnce, false, payload).await?)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// The client's ears.
struct Listener {
    client: AsyncClient,
    heard: Arc<Mutex<Heard>>,
    answers: Arc<Mutex<Answers>>,
}

impl Listener {
    async fn hear(&self, topic: &str, payload: &[u8]) {
        let Ok(Topic { device, kind: Kind::Up(kind) }) = topic.parse::<Topic>() else { return };
        if device.as_str() != DEVICE {
            return;
        }
        match kind {
            Up::Presence => {
                if let Ok(Presence { online }) = serde_json::from_slice(payload) {
                    let mut heard = lock(&self.heard);
                    heard.online = online;
                    heard.arrivals += usize::from(online);
                }
            }
            Up::Event => {
                let Ok(Sequenced { position, body }) = serde_json::from_slice::<Sequenced<DeviceEvent>>(payload) else {
                    return;
                };
                lock(&self.heard).events.insert((position.epoch, position.sequence), body);
                self.acknowledge(&device, Stream::Event, position).await;
            }
            Up::State => {
                let Ok(report) = serde_json::from_slice::<Sequenced<StateReport>>(payload) else { return };
                let raw = serde_json::from_slice::<serde_json::Value>(payload).unwrap_or_default();
                lock(&self.heard).state = Some((report.body, raw["body"].clone()));
                self.acknowledge(&device, Stream::State, report.position).await;
            }
            Up::ChunkRequest => {
                let Ok(request) = serde_json::from_slice::<ChunkRequest>(payload) else { return };
                let frames = lock(&self.answers).frames(&request);
                for frame in frames {
                    self.publish(&device, Down::Chunk, frame).await;
                }
            }
            // What nobody acknowledges stays with the device.
            Up::Telemetry | Up::Sketch | Up::Feedback => {}
        }
    }

    async fn acknowledge(&self, device: &DeviceId, stream: Stream, position: Position) {
        let ack = Ack { stream, epoch: position.epoch, sequence: position.sequence };
        self.publish(device, Down::Ack, serde_json::to_vec(&ack).unwrap_or_default()).await;
    }

    async fn publish(&self, device: &DeviceId, kind: Down, payload: Vec<u8>) {
        // Fails only once the test is over.
        let _ = self.client.publish(Topic::down(device, kind).to_string(), QoS::AtLeastOnce, false, payload).await;
    }
}
