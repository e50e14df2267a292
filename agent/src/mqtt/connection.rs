//! One connection, from CONNECT to its end: what is subscribed, said and heard on it.
//!
//! Two loops share it. One polls the client and never waits for anything else, the other publishes; a publish waits for
//! a place in flight, of which there are fewer than the client has packet ids, so that ids never collide.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use muster_shared::ids::DeviceId;
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
use crate::causes::with_source;
use crate::metered::Metered;
use crate::outbox;
use crate::time::Steady;

/// Packet ids of the client.
const PACKET_IDS: u16 = 64;
/// Publishes that wait for the broker's acknowledgement.
const IN_FLIGHT: usize = 16;
/// How long to connect, and one write may block, in seconds.
const CONNECT_S: u64 = 30;
/// As much in milliseconds, twice: for names that are looked up, and for the rest.
pub(super) const CONNECT_MS: u64 = 2 * CONNECT_S * 1_000;
/// How long to wait for the broker's answer to anything, in seconds. On a slow line it waits behind a chunk.
const ANSWER_S: u64 = 60;
/// How long to go on delivering when the agent stops.
const FAREWELL: Duration = Duration::from_millis(1_500);
/// How long to look for a moment at which nothing is under way, once the device has another certificate.
const QUIET: Duration = Duration::from_secs(5);
/// How often to look whether what waits for a link that is not metered may go, in milliseconds.
const LOOK_AT_LINK_MS: u64 = 30_000;
/// The longest pause between two turns, in milliseconds, by which it shows that the link is not stuck.
const TURN_MS: u64 = 60_000;
/// Requests of the client waiting for its event loop.
const CLIENT_QUEUE: usize = 4;

/// How a connection ended.
pub(super) enum Ended {
    /// The agent stops.
    Stopped,
    /// The device has another certificate, and nothing was under way.
    Renewed,
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
    /// Messages from the controller that are no acknowledgements.
    told: AtomicU64,
    subscribed: Notify,
    is_renewing: AtomicBool,
}

/// What a message brings.
#[derive(Debug)]
enum Heard {
    /// Something is stored at the controller.
    Ack(Ack),
    /// Something for the updater.
    Told(Told),
}

/// Why a message is passed over.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    /// It is not for this device to hear.
    #[error("the broker sent {0:?}, which this device did not ask for: check the broker's access rules")]
    Topic(String),
    /// Its body is no acknowledgement.
    #[error("an acknowledgement does not parse: {0}")]
    Ack(serde_json::Error),
}

/// Reads a message that came in; what it tells the updater is that one's to parse.
fn heard(device: &DeviceId, topic: &str, payload: Bytes) -> Result<Heard, Unheard> {
    let parsed = topic.parse::<Topic>().ok().filter(|topic| topic.device == *device);
    match parsed.map(|topic| topic.kind) {
        Some(Kind::Down(Down::Ack)) => serde_json::from_slice(&payload).map(Heard::Ack).map_err(Unheard::Ack),
        Some(Kind::Down(
            kind @ (Down::Assignment | Down::Chunk | Down::Command | Down::Root | Down::Feedback | Down::Samples),
        )) => Ok(Heard::Told(Told { kind, payload })),
        Some(Kind::Up(_)) | None => Err(Unheard::Topic(topic.chars().take(100).collect())),
    }
}

/// Connects, and keeps the connection until it ends.
pub(super) async fn run(link: &mut Link, stop: &mut watch::Receiver<bool>) -> Ended {
    // What is changed from here on is not what this connection is made with.
    link.renewed.mark_unchanged();
    link.did_good = false;
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
    let shared = Shared {
        in_flight: Semaphore::new(IN_FLIGHT),
        acks: AtomicU64::new(0),
        told: AtomicU64::new(0),
        subscribed: Notify::new(),
        is_renewing: AtomicBool::new(false),
    };
    let Link {
        identity, config, outbox, metrics, inbox, requests, receipts, state, metered, settings, renewed, ..
    } = link;
    let device = &identity.device;
    let listen = async {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::Publish(publish))) => match heard(device, &publish.topic, publish.payload) {
                    Ok(Heard::Ack(ack)) => {
                        // Even one that brings no news shows that somebody listens.
                        shared.acks.fetch_add(1, Ordering::Relaxed);
                        outbox.acknowledged(&ack);
                    }
                    Ok(Heard::Told(told)) => {
                        shared.told.fetch_add(1, Ordering::Relaxed);
                        inbox.deliver(told);
                    }
                    Err(error) => {
                        if let Some(messages) = inbox.passed_over.count() {
                            tracing::warn!(%device, %error, messages, "a message was passed over");
                        }
                    }
                },
                Ok(Event::Incoming(Packet::PubAck(_))) => shared.in_flight.add_permits(1),
                Ok(Event::Incoming(Packet::SubAck(ack))) => {
                    if ack.return_codes.iter().any(|code| matches!(code, SubscribeReasonCode::Failure)) {
                        return Ended::because("the broker does not let this device hear its own topics");
                    }
                    shared.subscribed.notify_one();
                }
                // Our own goodbye is on the wire.
                Ok(Event::Outgoing(Outgoing::Disconnect)) => {
                    let is_renewing = shared.is_renewing.load(Ordering::Relaxed);
                    return if is_renewing { Ended::Renewed } else { Ended::Stopped };
                }
                Ok(Event::Incoming(_) | Event::Outgoing(_)) => {}
                Err(error) => return Ended::Lost(words(&error)),
            }
        }
    };
    let talk = async {
        let say = |kind: Up, payload: Vec<u8>| publish(&client, &shared, Topic::up(device, kind), payload);
        state.heartbeat().beat(2 * ANSWER_S * 1_000);
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
        let (mut answered, mut told) = (0, 0);
        let mut farewell_ms = None;
        let mut renew_by_ms = None;
        loop {
            let now_ms = clock.now_ms();
            state.heartbeat().beat(TURN_MS.max(ANSWER_S * 1_000));
            let acks = shared.acks.load(Ordering::Relaxed);
            if acks != answered {
                answered = acks;
                resend.answered(outbox, now_ms);
                resend.heard(now_ms);
            }
            let told_by_now = shared.told.load(Ordering::Relaxed);
            if told_by_now != told {
                told = told_by_now;
                resend.heard(now_ms);
            }
            if resend.is_deaf(now_ms) {
                return Ended::because(
                    "the broker takes what is sent, but nothing comes from the controller: is it running?",
                );
            }
            resend.silent(outbox, now_ms);
            if let Some(until_ms) = farewell_ms
                && (outbox.is_empty() || now_ms >= until_ms)
            {
                break;
            }
            if let Some(by_ms) = renew_by_ms
                && ((outbox.is_empty() && requests.is_empty()) || now_ms >= by_ms)
            {
                shared.is_renewing.store(true, Ordering::Relaxed);
                break;
            }
            // Chunks first: they are few, small and waited for.
            while let Ok(request) = requests.try_recv() {
                if let Err(ended) = say(Up::ChunkRequest, chunk_request(&request)).await {
                    return ended;
                }
            }
            let deferred = metered.deferred();
            if let Some(message) = resend.next(outbox, deferred, now_ms) {
                if let Err(ended) = say(outbox::topic(message.stream), message.payload).await {
                    return ended;
                }
                continue;
            }
            let look_ms = (!deferred.is_empty()).then(|| now_ms.saturating_add(LOOK_AT_LINK_MS));
            let wake_ms = [resend.deadline_ms(), farewell_ms, renew_by_ms, look_ms].into_iter().flatten().min();
            let wake_in = Duration::from_millis(wake_ms.map_or(TURN_MS, |at| at.saturating_sub(now_ms)).min(TURN_MS));
            tokio::select! {
                _ = stop.changed(), if farewell_ms.is_none() => {
                    farewell_ms = Some(now_ms + crate::time::millis(FAREWELL));
                    renew_by_ms = None;
                }
                Some(request) = requests.recv() => {
                    if let Err(ended) = say(Up::ChunkRequest, chunk_request(&request)).await {
                        return ended;
                    }
                }
                Some(receipt) = receipts.recv() => {
                    if let Err(ended) = say(Up::Feedback, serde_json::to_vec(&receipt).unwrap_or_default()).await {
                        return ended;
                    }
                }
                Ok(()) = renewed.changed(), if renew_by_ms.is_none() && farewell_ms.is_none() => {
                    renew_by_ms = Some(now_ms + crate::time::millis(QUIET));
                }
                Ok(()) = settings.changed(), if farewell_ms.is_none() => {
                    let next = Arc::clone(&settings.borrow_and_update());
                    *metered = Metered::new(&next.delivery);
                    if next.broker != *config {
                        *config = next.broker.clone();
                        renew_by_ms = renew_by_ms.or_else(|| Some(now_ms + crate::time::millis(QUIET)));
                    }
                }
                () = outbox.changed() => {}
                () = tokio::time::sleep(wake_in) => {}
            }
        }
        let is_renewing = shared.is_renewing.load(Ordering::Relaxed);
        // The broker sends the will only where this is missing.
        let goodbye = async {
            if !is_renewing {
                say(Up::Presence, presence(false)).await.ok();
            }
            let all = u32::try_from(IN_FLIGHT).unwrap_or_default();
            drop(shared.in_flight.acquire_many(all).await);
            client.disconnect().await.ok();
            // The other loop ends once that is on the wire.
            std::future::pending::<()>().await;
        };
        let _ = tokio::time::timeout(FAREWELL / 3, goodbye).await;
        if is_renewing { Ended::Renewed } else { Ended::Stopped }
    };
    let ended = tokio::select! {
        ended = listen => ended,
        ended = talk => ended,
    };
    link.did_good = shared.told.load(Ordering::Relaxed) > 0 || shared.acks.load(Ordering::Relaxed) > 0;
    if *stop.borrow() { Ended::Stopped } else { ended }
}

fn client(link: &Link) -> Result<(AsyncClient, EventLoop), String> {
    let Link { identity, store, time, config, .. } = link;
    // Read anew for every connection, so that a renewed certificate needs no restart.
    let tls = store.tls(identity, time).map_err(|error| with_source(&error))?;
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
    network.set_connection_timeout(CONNECT_S).set_tcp_nodelay(true);
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

#[cfg(test)]
mod tests {
    use muster_shared::messages::Stream;
    use proptest::prelude::*;

    use super::*;

    fn device() -> DeviceId {
        DeviceId::new("press-7").unwrap()
    }

    fn hear(topic: &str, payload: &[u8]) -> Result<Heard, Unheard> {
        heard(&device(), topic, Bytes::copy_from_slice(payload))
    }

    #[test]
    fn what_is_said_to_this_device_is_heard() {
        let ack = Ack { stream: Stream::Event, epoch: 3, sequence: 4 };
        let topic = |kind: Down| Topic::down(&device(), kind).to_string();
        let payload = serde_json::to_vec(&ack).unwrap();
        assert!(matches!(hear(&topic(Down::Ack), &payload), Ok(Heard::Ack(heard)) if heard == ack));
        for kind in [Down::Assignment, Down::Chunk, Down::Command, Down::Root, Down::Feedback, Down::Samples] {
            let heard = hear(&topic(kind), b"anything");
            assert!(matches!(heard, Ok(Heard::Told(told)) if told.kind == kind && &told.payload[..] == b"anything"));
        }
    }

    #[test]
    fn what_is_not_for_this_device_is_named() {
        let foreign = Topic::down(&DeviceId::new("press-8").unwrap(), Down::Command).to_string();
        let own_voice = Topic::up(&device(), Up::Presence).to_string();
        for topic in [foreign.as_str(), &own_voice, "", "$SYS/broker", "muster/v9/press-7/down/command"] {
            let text = hear(topic, b"{}").unwrap_err().to_string();
            assert!(text.contains(&format!("{topic:?}")), "{text}");
        }
        let long = hear(&"x".repeat(60_000), b"{}").unwrap_err().to_string();
        assert!(long.len() < 300, "{}", long.len());
    }

    #[test]
    fn an_acknowledgement_that_is_none_says_what_is_wrong() {
        let topic = Topic::down(&device(), Down::Ack).to_string();
        for payload in [&b""[..], b"{}", b"[1,2]", br#"{"stream":"event","epoch":-1,"sequence":1}"#, &[0xff; 8]] {
            let text = hear(&topic, payload).unwrap_err().to_string();
            assert!(text.contains("acknowledgement does not parse: "), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_topic_and_body_are_heard_or_passed_over(
            topic in "(muster/v1/)?(press-7|[a-z0-9/+#$-]{0,20})/(down|up)?/?[a-z-]{0,12}",
            payload: Vec<u8>,
        ) {
            match hear(&topic, &payload) {
                Ok(Heard::Told(told)) => prop_assert_eq!(&told.payload[..], &payload[..]),
                Ok(Heard::Ack(_)) => {}
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
