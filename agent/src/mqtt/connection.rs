//! One connection, from CONNECT to its end: what is subscribed, said and heard on it.
//!
//! Two loops share it. One polls the client and never waits for anything else, the other publishes; a publish waits for
//! a place in flight, of which there are fewer than the client has packet ids, so that ids never collide.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_shared::limits::{CHUNK_WINDOW, MAX_PACKET_BYTES};
use muster_shared::messages::{Ack, ChunkRequest, Presence};
use muster_shared::topics::{Down, Kind, Topic, Up};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, LastWill, MqttOptions, NetworkOptions, Outgoing, Packet, QoS,
    SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::sync::{Notify, Semaphore, watch};

use super::resend::Resend;
use super::{Link, Told};
use crate::outbox;
use crate::time::Steady;

/// Packet ids of the client.
const PACKET_IDS: u16 = 64;
/// Publishes that wait for the broker's acknowledgement.
const IN_FLIGHT: usize = 16;
/// How long to connect, and to wait for the broker's answer to anything, in seconds.
const ANSWER_S: u64 = 20;
/// How long to go on delivering when the agent stops.
const FAREWELL: Duration = Duration::from_millis(1_500);
/// Requests of the client waiting for its event loop.
const CLIENT_QUEUE: usize = 4;

/// How a connection ended.
pub(super) enum Ended {
    /// The agent stops.
    Stopped,
    /// It broke, or never came about.
    Lost(String),
}

impl Ended {
    fn because(reason: impl ToString) -> Self {
        Self::Lost(reason.to_string())
    }
}

/// What both loops share.
struct Shared {
    in_flight: Semaphore,
    acks: AtomicU64,
    subscribed: Notify,
}

/// Connects, and keeps the connection until it ends.
pub(super) async fn run(link: &mut Link, stop: &mut watch::Receiver<bool>) -> Ended {
    let (client, mut events) = match client(link) {
        Ok(client) => client,
        Err(reason) => return Ended::Lost(reason),
    };
    tokio::select! {
        connected = events.poll() => match connected {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {}
            Ok(other) => return Ended::Lost(format!("the broker began with {other:?}")),
            Err(error) => return Ended::Lost(words(&error)),
        },
        _ = stop.changed() => return Ended::Stopped,
    }
    let shared = Shared { in_flight: Semaphore::new(IN_FLIGHT), acks: AtomicU64::new(0), subscribed: Notify::new() };
    let Link { identity, config, outbox, metrics, inbox, requests, state, .. } = link;
    let device = &identity.device;
    let listen = async {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    let topic = publish.topic.parse::<Topic>().ok().filter(|t| t.device == *device);
                    match topic.map(|t| t.kind) {
                        Some(Kind::Down(Down::Ack)) => match serde_json::from_slice::<Ack>(&publish.payload) {
                            Ok(ack) => {
                                // Even one that brings no news shows that somebody listens.
                                shared.acks.fetch_add(1, Ordering::Relaxed);
                                outbox.acknowledged(&ack);
                            }
                            Err(error) => tracing::warn!(%error, "an acknowledgement does not parse"),
                        },
                        Some(Kind::Down(kind @ (Down::Assignment | Down::Chunk | Down::Command | Down::Root))) => {
                            inbox.deliver(Told { kind, payload: publish.payload })
                        }
                        Some(Kind::Up(_)) | None => tracing::warn!("a message on a topic that is not ours"),
                    }
                }
                Ok(Event::Incoming(Packet::PubAck(_))) => shared.in_flight.add_permits(1),
                Ok(Event::Incoming(Packet::SubAck(ack))) => {
                    if ack.return_codes.iter().any(|code| matches!(code, SubscribeReasonCode::Failure)) {
                        return Ended::because("the broker does not let this device hear its own topics");
                    }
                    shared.subscribed.notify_one();
                }
                // Our own goodbye is on the wire.
                Ok(Event::Outgoing(Outgoing::Disconnect)) => return Ended::Stopped,
                Ok(Event::Incoming(_) | Event::Outgoing(_)) => {}
                Err(error) => return Ended::Lost(words(&error)),
            }
        }
    };
    let talk = async {
        let say = |kind: Up, payload: Vec<u8>| publish(&client, &shared, Topic::up(device, kind), payload);
        // Subscribed before anything is said: the first word makes the controller answer.
        if let Err(error) = client.subscribe(Topic::down_filter(device), QoS::AtLeastOnce).await {
            return Ended::because(error);
        }
        if tokio::time::timeout(Duration::from_secs(ANSWER_S), shared.subscribed.notified()).await.is_err() {
            return Ended::because("the broker does not answer the subscription");
        }
        if let Err(ended) = say(Up::Presence, presence(true)).await {
            return ended;
        }
        // What was asked for on an earlier connection is asked for again by the updater.
        while requests.try_recv().is_ok() {}
        state.set(true);
        metrics.set_broker_connected(true);
        inbox.wake();
        tracing::info!(%device, "connected to the broker");

        let clock = Steady::start();
        let mut resend = Resend::new(config.ack_timeout_ms);
        let mut answered = 0;
        let mut farewell_ms = None;
        loop {
            let now_ms = clock.now_ms();
            let acks = shared.acks.load(Ordering::Relaxed);
            if acks != answered {
                answered = acks;
                resend.answered(outbox, now_ms);
            }
            if let Some(until_ms) = farewell_ms
                && (outbox.is_empty() || now_ms >= until_ms)
            {
                break;
            }
            // Chunks first: they are few, small and waited for.
            while let Ok(request) = requests.try_recv() {
                if let Err(ended) = say(Up::ChunkRequest, chunk_request(&request)).await {
                    return ended;
                }
            }
            if let Some(message) = resend.next(outbox, now_ms) {
                if let Err(ended) = say(outbox::topic(message.stream), message.payload).await {
                    return ended;
                }
                continue;
            }
            let wake_ms = [resend.deadline_ms(), farewell_ms].into_iter().flatten().min();
            let wake_in = Duration::from_millis(wake_ms.map_or(3_600_000, |at| at.saturating_sub(now_ms)));
            tokio::select! {
                _ = stop.changed(), if farewell_ms.is_none() => {
                    farewell_ms = Some(now_ms + crate::time::millis(FAREWELL));
                }
                Some(request) = requests.recv() => {
                    if let Err(ended) = say(Up::ChunkRequest, chunk_request(&request)).await {
                        return ended;
                    }
                }
                () = outbox.changed() => {}
                () = tokio::time::sleep(wake_in) => {
                    if resend.deadline_ms().is_some_and(|at| at <= clock.now_ms()) {
                        resend.silent(outbox);
                    }
                }
            }
        }
        // The broker sends the will only where this is missing.
        let goodbye = async {
            say(Up::Presence, presence(false)).await.ok();
            let all = u32::try_from(IN_FLIGHT).unwrap_or_default();
            drop(shared.in_flight.acquire_many(all).await);
            client.disconnect().await.ok();
            // The other loop ends once that is on the wire.
            std::future::pending::<()>().await;
        };
        let _ = tokio::time::timeout(FAREWELL / 3, goodbye).await;
        Ended::Stopped
    };
    let ended = tokio::select! {
        ended = listen => ended,
        ended = talk => ended,
    };
    if *stop.borrow() { Ended::Stopped } else { ended }
}

fn client(link: &Link) -> Result<(AsyncClient, EventLoop), String> {
    let Link { identity, store, time, config, .. } = link;
    // Read anew for every connection, so that a renewed certificate needs no restart.
    let tls = store.tls(identity, time).map_err(|error| error.to_string())?;
    let host = config.host.clone().unwrap_or_else(|| identity.broker_host.clone());
    let port = config.port.unwrap_or(identity.broker_port);
    let device = &identity.device;
    let mut options = MqttOptions::new(device.as_str(), host, port);
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)))
        .set_keep_alive(Duration::from_secs(config.keep_alive_s))
        .set_clean_session(true)
        .set_inflight(PACKET_IDS)
        .set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES)
        .set_last_will(LastWill::new(
            Topic::up(device, Up::Presence).to_string(),
            presence(false),
            QoS::AtLeastOnce,
            false,
        ));
    let (client, mut events) = AsyncClient::new(options, CLIENT_QUEUE);
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(ANSWER_S).set_tcp_nodelay(true);
    events.set_network_options(network);
    Ok((client, events))
}

/// Publishes once there is a place in flight. A broker that acknowledges nothing for long is left.
async fn publish(client: &AsyncClient, shared: &Shared, topic: Topic, payload: Vec<u8>) -> Result<(), Ended> {
    match tokio::time::timeout(Duration::from_secs(ANSWER_S), shared.in_flight.acquire()).await {
        Ok(Ok(place)) => place.forget(),
        Ok(Err(_)) | Err(_) => return Err(Ended::because("the broker acknowledges nothing")),
    }
    client.publish(topic.to_string(), QoS::AtLeastOnce, false, payload).await.map_err(Ended::because)
}

fn presence(online: bool) -> Vec<u8> {
    serde_json::to_vec(&Presence { online }).unwrap_or_default()
}

fn chunk_request(request: &ChunkRequest) -> Vec<u8> {
    let chunks: Vec<String> =
        request.wanted.iter().take(CHUNK_WINDOW).map(|i| (request.first + i).to_string()).collect();
    tracing::info!(bundle = %request.manifest.short(), chunks = %chunks.join(","), "chunks are asked for");
    serde_json::to_vec(request).unwrap_or_default()
}

/// An error with what caused it: the client's own words often leave that out.
fn words(error: &ConnectionError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = inner.source();
    }
    text
}
