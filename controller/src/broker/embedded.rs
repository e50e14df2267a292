//! The broker inside the controller: rmqtt behind mutual TLS.
//!
//! Sessions end with their connections and queues are small: whatever is lost on the way to a device is asked for again, or issued
//! again.

mod connections;
mod gate;
mod listening;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_shared::acl::{Action, Identity, authorize};
use muster_shared::ids::DeviceId;
use muster_shared::limits::{CHUNK_BYTES, CHUNK_WINDOW, MAX_PACKET_BYTES};
use muster_shared::topics::{Down, Kind, Topic};
use rmqtt::context::ServerContext;
use rmqtt::types::{ClientId, CodecPublish, From, Id, Message, Publish, QoS, Reason};
use tokio::sync::{mpsc, oneshot};

use super::{Admit, Broker, BrokerError, Room, Started, TlsFiles};
use crate::config::BrokerConfig;
use connections::{Bound, Connections};
use gate::{Gate, HOOKS};
use listening::{Listening, Reload};

/// Events waiting for the controller. When they are this many, devices wait.
const EVENT_QUEUE: usize = 1_024;
/// Messages waiting for one device inside the broker; the oldest is dropped beyond. Everything that is sent down is
/// asked for or issued again.
const DEVICE_QUEUE: usize = 64;
/// Bytes on their way to one device that it has not acknowledged. A device that asks and does not read must not fill
/// our memory.
const DEVICE_UNACKNOWLEDGED_BYTES: usize = 2 * MAX_PACKET_BYTES + 2 * CHUNK_WINDOW * CHUNK_BYTES;
/// Bytes of chunks on their way to all devices, that none has acknowledged, and one chunk more for each device. Devices that
/// take the same bundle at the same time share the bytes.
const CHUNKS_UNACKNOWLEDGED_BYTES: usize = 64 * 1024 * 1024;
/// Devices that have taken something, and nobody has looked at it.
const ROOM_QUEUE: usize = 4_096;
/// QoS 1 messages to one device without an acknowledgement: a window of chunks and some control messages.
const DEVICE_INFLIGHT: NonZeroU16 = NonZeroU16::new(32).expect("not zero");
/// Time for the TLS handshake, and again for the MQTT CONNECT.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time a write to a device may block before its connection is given up. One chunk at 16 kbit/s takes more than half of it.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a session may outlive its connection. The gate refuses those who ask for it when they connect; a client of version 5 can ask
/// once more when it leaves, and zero would be no bound.
const SESSION_EXPIRY: Duration = Duration::from_secs(1);
/// After this an undelivered message is worthless: it has been issued again meanwhile.
const MESSAGE_EXPIRY: Duration = Duration::from_secs(60);
/// Subscriptions one device may hold.
const MAX_SUBSCRIPTIONS: usize = 16;
/// The broker's own name as a sender.
const CONTROLLER_CLIENT: &str = "muster-controller";

/// Starts the broker and returns once it listens.
///
/// # Errors
/// [`BrokerError::Bind`] when the address is taken, [`BrokerError::Tls`] when the files do not load.
pub(crate) async fn start_embedded(
    config: &BrokerConfig,
    files: TlsFiles,
    admit: Arc<dyn Admit>,
) -> Result<Started, BrokerError> {
    start(config, files, admit).await.map(|(started, _)| started)
}

async fn start(
    config: &BrokerConfig,
    files: TlsFiles,
    admit: Arc<dyn Admit>,
) -> Result<(Started, ServerContext), BrokerError> {
    let address = config.listen;
    let max_sessions = isize::try_from(config.max_connections).unwrap_or(isize::MAX);
    // The processor check would refuse devices whenever the machine is busy with anything.
    let scx = ServerContext::new().busy_check_enable(false).mqtt_max_sessions(max_sessions).build().await;

    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let (room_sender, room) = mpsc::channel(ROOM_QUEUE);
    let insecure = config.insecure_dev;
    let gate = Gate { admit, events: sender, connections: Connections::new(room_sender), insecure };
    let hooks = scx.extends.hook_mgr().register();
    for hook in HOOKS {
        hooks.add(hook, Box::new(gate.clone())).await;
    }
    hooks.start().await;

    let listening = Listening { scx: scx.clone(), config: config.clone() };
    let listener = listening.listener(address, &files)?;
    let local_addr = listener.local_addr().map_err(|error| BrokerError::Bind { address, source: into_io(error) })?;
    let (reload, reloads) = mpsc::channel(1);
    let broker = Embedded { scx: scx.clone(), connections: gate.connections.clone(), reload };
    let task = tokio::spawn(listening.run(listener, local_addr, files, reloads));
    Ok((Started { broker: Arc::new(broker), events, room, local_addr, task }, scx))
}

fn into_io(error: rmqtt::net::Error) -> std::io::Error {
    error.downcast::<std::io::Error>().unwrap_or_else(|other| std::io::Error::other(format!("{other:#}")))
}

/// How much may be on its way on `topic`.
fn bound(topic: &Topic) -> Bound {
    match topic.kind {
        Kind::Down(Down::Chunk) => {
            Bound::Shared { device: DEVICE_UNACKNOWLEDGED_BYTES, all: CHUNKS_UNACKNOWLEDGED_BYTES }
        }
        Kind::Down(Down::Assignment | Down::Ack | Down::Command | Down::Root | Down::Feedback | Down::Samples)
        | Kind::Up(_) => Bound::Device(DEVICE_UNACKNOWLEDGED_BYTES),
    }
}

#[derive(Clone)]
struct Embedded {
    scx: ServerContext,
    connections: Connections,
    reload: mpsc::Sender<Reload>,
}

impl Embedded {
    /// Cuts off a device that has subscribed to everything and was not found among those who hear it: rmqtt has lost the subscription, see
    /// [`gate`]. It comes back and subscribes again.
    async fn wake_up_the_deaf(&self, device: &DeviceId) {
        if self.connections.listens(device) {
            tracing::warn!(%device, "the device's subscription was lost: it is cut off, to make it again");
            self.disconnect(device).await;
        }
    }
}

#[async_trait]
impl Broker for Embedded {
    async fn publish(&self, topic: &Topic, payload: Bytes) -> Result<(), BrokerError> {
        let bytes = payload.len();
        let name = topic.to_string();
        // A packet holds the topic and a few bytes of header besides.
        if bytes + name.len() + 16 > MAX_PACKET_BYTES {
            return Err(BrokerError::TooLarge { topic: topic.clone(), bytes });
        }
        if !authorize(&Identity::Controller, Action::Publish, &name) {
            return Err(BrokerError::Publish { topic: topic.clone(), reason: "not one of our topics".into() });
        }
        match self.connections.reserve(&topic.device, bytes, bound(topic)) {
            Room::Free => {}
            Room::Away => return Ok(()),
            Room::Full(waiting_bytes) => return Err(BrokerError::Congested { topic: topic.clone(), waiting_bytes }),
        }
        let publish = CodecPublish {
            dup: false,
            retain: false,
            qos: QoS::AtLeastOnce,
            topic: name.into(),
            packet_id: None,
            payload,
            properties: None,
        };
        let publish = Publish::from(publish).create_time(rmqtt::utils::timestamp_millis());
        let from = From::from_system(Id::from(self.scx.node.id(), ClientId::from_static(CONTROLLER_CLIENT)));
        match self.scx.extends.shared().await.forwards(None, from, publish).await {
            Ok(receivers) => {
                if receivers == 0 {
                    self.connections.release(topic.device.as_str(), bytes);
                    self.wake_up_the_deaf(&topic.device).await;
                }
                Ok(())
            }
            Err((_, failures)) => {
                self.connections.release(topic.device.as_str(), bytes);
                let reason = failures.first().map_or_else(String::new, |(_, _, _, reason)| reason.to_string());
                Err(BrokerError::Publish { topic: topic.clone(), reason })
            }
        }
    }

    fn room(&self, topic: &Topic, bytes: usize) -> Room {
        self.connections.room(&topic.device, bytes, bound(topic))
    }

    fn is_sending(&self, device: &DeviceId) -> bool {
        self.connections.is_sending(device)
    }

    async fn disconnect(&self, device: &DeviceId) {
        let id = Id::from(self.scx.node.id(), ClientId::from(device.to_string()));
        // rmqtt's own kick waits for the session and then forgets whichever the device has by then: where it has made its next connection
        // meanwhile, that one would live on without hearing anything, where nobody finds it. A session that is told so ends as soon as it
        // has time, and clears away nothing but itself.
        if let Some(session) = self.scx.extends.shared().await.entry(id).tx() {
            // It fails where the session has ended by itself.
            let _ = session.unbounded_send(Message::Closed(Reason::ConnectKicked(true)));
        }
    }

    async fn disconnect_all(&self) {
        for device in self.connections.devices() {
            self.disconnect(&device).await;
        }
    }

    async fn reload(&self, files: TlsFiles) -> Result<(), BrokerError> {
        let (answer, answered) = oneshot::channel();
        self.reload.send(Reload { files, answer }).await.map_err(|_| BrokerError::Stopped)?;
        answered.await.map_err(|_| BrokerError::Stopped)?
    }

    fn connected(&self) -> usize {
        self.connections.count()
    }
}

#[cfg(test)]
mod tests;
