//! A simulated device: real papers and a real mTLS connection, and of an agent only as much as a rollout needs to count on it.
//!
//! It enrols, subscribes, says that it is there and how it is, and reports every assignment as accepted. Where it is told to, it
//! fetches the bundle's chunks as an agent does, a window at a time, and throws them away.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use muster_shared::api::{EnrolRequest, EnrolResponse};
use muster_shared::bundle::Manifest;
use muster_shared::chunk::{Accepts, ChunkFrame, ChunkSet};
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::limits::{CHUNK_WINDOW, MAX_PACKET_BYTES};
use muster_shared::messages::{
    Ack, AssignmentDelivery, ChunkRequest, Position, Presence, Sequenced, StateReport, Stream, UpdateReport,
    UpdateState,
};
use muster_shared::token::EnrolmentToken;
use muster_shared::topics::{Down, Kind, Topic, Up};
use muster_shared::trust::Assignment;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rumqttc::{
    AsyncClient, Event, LastWill, MqttOptions, NetworkOptions, Packet, Publish, QoS, SubscribeReasonCode,
    TlsConfiguration, Transport,
};
use tokio::sync::{Semaphore, mpsc};

const KEEP_ALIVE: Duration = Duration::from_secs(60);
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);
/// After so many failures in a row a device gives up.
const MAX_FAILURES: u32 = 10;
const MEMORY_BYTES: u64 = 1024 * 1024 * 1024;

/// What a device needs to connect.
#[derive(Debug, Clone)]
pub(crate) struct Papers {
    device: DeviceId,
    key_pem: String,
    response: EnrolResponse,
}

/// What a simulated device has seen.
#[derive(Debug)]
pub(crate) enum Note {
    /// Its first state report has been stored: the controller knows it.
    Known,
    /// It got an assignment that it had not got before.
    Assigned {
        /// When its bytes were there.
        at: Instant,
        /// How many there were.
        payload_bytes: usize,
    },
    /// It got an assignment once more.
    AssignedAgain,
    /// It has all chunks of the bundle.
    Fetched {
        /// When the last one was there.
        at: Instant,
        /// Bytes of the frames.
        bytes: u64,
    },
    /// Its connection broke; it tries again.
    Lost {
        /// Why.
        reason: String,
    },
    /// It does not try any more.
    GaveUp {
        /// Which device, and why.
        reason: String,
    },
}

/// What a device does about bundles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fetching {
    /// Nothing.
    Never,
    /// Fetches what it is assigned.
    Assigned,
    /// Fetches so many chunks of this bundle as soon as it is connected.
    AtOnce(Digest, u32),
}

/// Makes a key and gets a certificate for it.
///
/// # Errors
/// When the controller refuses.
pub(crate) async fn enrol(
    client: &reqwest::Client,
    token: &EnrolmentToken,
    device: DeviceId,
) -> anyhow::Result<Papers> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, device.as_str());
    let request = EnrolRequest {
        secret: token.secret.clone(),
        device: Some(device.clone()),
        csr_pem: params.serialize_request(&key)?.pem()?,
    };
    let url = format!("{}/api/v1/enrol", token.url);
    let mut attempts = 0;
    let body = loop {
        let answer = client.post(&url).json(&request).send().await?;
        let status = answer.status();
        let body = answer.text().await?;
        if status.is_success() {
            break body;
        }
        // Many devices share one token, and the controller asks some of them to come again.
        attempts += 1;
        let again = status == reqwest::StatusCode::SERVICE_UNAVAILABLE && attempts < MAX_FAILURES;
        ensure!(again, "{device} cannot enrol: {status}: {body}");
        tokio::time::sleep(RECONNECT_PAUSE).await;
    };
    let response: EnrolResponse = serde_json::from_str(&body).with_context(|| format!("enrol answered {body}"))?;
    ensure!(response.device == device, "{device} was enrolled as {}", response.device);
    Ok(Papers { device, key_pem: key.serialize_pem(), response })
}

impl Papers {
    /// The same papers for another broker on this machine.
    pub(crate) fn at_port(mut self, port: u16) -> Self {
        self.response.broker_port = port;
        self
    }
}

/// Connects with `papers` and stays, telling `notes` what happens. Only so many devices connect at once as `connecting` lets.
pub(crate) async fn live(
    papers: Papers,
    fetching: Fetching,
    connecting: Arc<Semaphore>,
    notes: mpsc::UnboundedSender<Note>,
) {
    let mut failures = 0;
    let mut device = Simulated::new(&papers, fetching, notes.clone());
    let (client, mut connection) = AsyncClient::new(options(&papers), 16);
    // As agents do: an acknowledgement shall not wait for another.
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    connection.set_network_options(network);
    // A closed semaphore would only mean that nothing limits us.
    let mut turn = connecting.acquire().await.ok();
    loop {
        let outcome = match connection.poll().await {
            Ok(Event::Incoming(packet)) => {
                if matches!(packet, Packet::SubAck(_)) {
                    failures = 0;
                    turn = None;
                }
                device.handle(&client, packet)
            }
            Ok(Event::Outgoing(_)) => Ok(()),
            Err(error) => Err(error.into()),
        };
        let Err(error) = outcome else {
            continue;
        };
        failures += 1;
        let reason = format!("{}: {error:#}", papers.device);
        if failures >= MAX_FAILURES {
            // There is nobody to tell once the bench has ended.
            drop(notes.send(Note::GaveUp { reason }));
            return;
        }
        if turn.is_none() {
            drop(notes.send(Note::Lost { reason }));
            turn = connecting.acquire().await.ok();
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

fn options(papers: &Papers) -> MqttOptions {
    let Papers { device, key_pem, response } = papers;
    let mut options = MqttOptions::new(device.as_str(), response.broker_host.clone(), response.broker_port);
    options.set_keep_alive(KEEP_ALIVE);
    options.set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES);
    let will = json(&Presence { online: false });
    options.set_last_will(LastWill::new(Topic::up(device, Up::Presence).to_string(), will, QoS::AtLeastOnce, false));
    options.set_transport(Transport::Tls(TlsConfiguration::Simple {
        ca: response.ca_pem.clone().into_bytes(),
        alpn: None,
        client_auth: Some((response.certificate_pem.clone().into_bytes(), key_pem.clone().into_bytes())),
    }));
    options
}

fn json<T: serde::Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_default()
}

/// What a device knows of itself.
struct Simulated {
    device: DeviceId,
    epoch: u64,
    known: bool,
    sequence: u64,
    generation: u64,
    update: UpdateReport,
    attributes: BTreeMap<String, String>,
    fetching: Fetching,
    fetch: Option<Fetch>,
    notes: mpsc::UnboundedSender<Note>,
}

/// A download under way: windows come whole and in order, or are asked for again.
struct Fetch {
    manifest: Digest,
    chunks: u32,
    /// The first chunk of the window.
    first: u32,
    outstanding: ChunkSet,
    bytes: u64,
}

impl Fetch {
    fn new(manifest: Digest, chunks: u32) -> Self {
        let mut fetch = Self { manifest, chunks, first: 0, outstanding: ChunkSet::empty(0), bytes: 0 };
        fetch.open_window(0);
        fetch
    }

    fn open_window(&mut self, first: u32) {
        self.first = first;
        let length = (self.chunks - first).min(u32::try_from(CHUNK_WINDOW).unwrap_or(u32::MAX));
        self.outstanding = ChunkSet::empty(length);
        for offset in 0..length {
            self.outstanding.insert(offset);
        }
    }

    fn request(&self) -> ChunkRequest {
        let accepts = Accepts::Packed { base: None };
        ChunkRequest {
            manifest: self.manifest,
            first: self.first,
            wanted: self.outstanding.clone(),
            accepts,
            number: 0,
        }
    }

    /// Takes a chunk; true when that was the last of a window.
    fn take(&mut self, frame: &ChunkFrame<'_>, frame_bytes: usize) -> bool {
        let offset = frame.index.wrapping_sub(self.first);
        if frame.manifest != self.manifest || !self.outstanding.remove(offset) {
            return false;
        }
        self.bytes += frame_bytes as u64;
        self.outstanding.count() == 0
    }
}

impl Simulated {
    fn new(papers: &Papers, fetching: Fetching, notes: mpsc::UnboundedSender<Note>) -> Self {
        let attributes = [
            ("arch", std::env::consts::ARCH.to_owned()),
            ("os", std::env::consts::OS.to_owned()),
            ("agent-version", env!("CARGO_PKG_VERSION").to_owned()),
            ("memory-bytes", MEMORY_BYTES.to_string()),
        ];
        Self {
            device: papers.device.clone(),
            epoch: RandomState::new().build_hasher().finish(),
            known: false,
            sequence: 0,
            generation: 0,
            update: UpdateReport::default(),
            attributes: attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            fetching,
            fetch: None,
            notes,
        }
    }

    fn handle(&mut self, client: &AsyncClient, packet: Packet) -> anyhow::Result<()> {
        if let Packet::ConnAck(_) = packet {
            client.try_subscribe(Topic::down_filter(&self.device), QoS::AtLeastOnce)?;
        } else if let Packet::SubAck(ack) = packet {
            let granted = ack.return_codes.iter().all(|code| matches!(code, SubscribeReasonCode::Success(_)));
            ensure!(granted, "the broker refused the device's own topics");
            self.publish(client, Up::Presence, json(&Presence { online: true }))?;
            self.report(client)?;
            if let (Fetching::AtOnce(manifest, chunks), None) = (self.fetching, &self.fetch) {
                self.fetch = Some(Fetch::new(manifest, chunks));
            }
            self.ask(client)?;
        } else if let Packet::Publish(message) = packet {
            self.hear(client, &message)?;
        }
        Ok(())
    }

    fn hear(&mut self, client: &AsyncClient, message: &Publish) -> anyhow::Result<()> {
        let at = Instant::now();
        let kind = message.topic.parse::<Topic>()?.kind;
        if kind == Kind::Down(Down::Ack) {
            let ack: Ack = serde_json::from_slice(&message.payload)?;
            if ack.stream == Stream::State && ack.epoch == self.epoch && ack.sequence >= 1 && !self.known {
                self.known = true;
                self.tell(Note::Known);
            }
        } else if kind == Kind::Down(Down::Chunk) {
            let frame = ChunkFrame::decode(&message.payload)?;
            let Some(fetch) = &mut self.fetch else { return Ok(()) };
            if !fetch.take(&frame, message.payload.len()) {
                return Ok(());
            }
            let next = fetch.first + fetch.outstanding.length();
            if next < fetch.chunks {
                fetch.open_window(next);
                self.ask(client)?;
            } else {
                let bytes = fetch.bytes;
                self.fetch = None;
                self.tell(Note::Fetched { at, bytes });
            }
        } else if kind == Kind::Down(Down::Assignment) {
            let delivery: AssignmentDelivery = serde_json::from_slice(&message.payload)?;
            let assignment: Assignment = serde_json::from_slice(&delivery.assignment.payload_bytes()?)?;
            ensure!(assignment.device == self.device, "an assignment for {} came here", assignment.device);
            if assignment.generation <= self.generation {
                self.tell(Note::AssignedAgain);
                return Ok(());
            }
            self.tell(Note::Assigned { at, payload_bytes: message.payload.len() });
            self.generation = assignment.generation;
            self.update = UpdateReport {
                state: UpdateState::Fetching,
                generation: assignment.generation,
                manifest: assignment.manifest,
                ..UpdateReport::default()
            };
            self.report(client)?;
            if let (Fetching::Assigned, Some(digest), Some(envelope)) =
                (self.fetching, assignment.manifest, &delivery.manifest)
            {
                let manifest: Manifest = serde_json::from_slice(&envelope.payload_bytes()?)?;
                self.fetch = Some(Fetch::new(digest, manifest.chunk_count()));
                self.ask(client)?;
            }
        }
        Ok(())
    }

    /// Asks for the window that is outstanding, if there is one.
    fn ask(&self, client: &AsyncClient) -> anyhow::Result<()> {
        let Some(fetch) = &self.fetch else { return Ok(()) };
        self.publish(client, Up::ChunkRequest, json(&fetch.request()))
    }

    /// Reports the state, as a new message each time: only the last one counts.
    fn report(&mut self, client: &AsyncClient) -> anyhow::Result<()> {
        self.sequence += 1;
        let report = Sequenced {
            position: Position { epoch: self.epoch, sequence: self.sequence, oldest: self.sequence },
            body: StateReport {
                reported_at_ms: now_ms(),
                generation: self.generation,
                update: self.update.clone(),
                attributes: self.attributes.clone(),
                starts: 1,
                protocol: muster_shared::protocol::PROTOCOL,
                ..StateReport::default()
            },
        };
        self.publish(client, Up::State, json(&report))
    }

    fn publish(&self, client: &AsyncClient, kind: Up, payload: Vec<u8>) -> anyhow::Result<()> {
        Ok(client.try_publish(Topic::up(&self.device, kind).to_string(), QoS::AtLeastOnce, false, payload)?)
    }

    fn tell(&self, note: Note) {
        // There is nobody to tell once the bench has ended.
        drop(self.notes.send(note));
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
