//! The broker inside the controller: rmqtt behind mutual TLS.
//!
//! What rmqtt's hooks can and cannot do decides the shape of this file:
//! - A publish reaches `MessagePublish` *before* `MessagePublishCheckAcl`, and the first one cannot drop it. So both ask the same
//!   question: the first hands on what is allowed, the second refuses what is not.
//! - A will passes only `MessagePublish`, so it is checked already when the device connects, and again when it fires.
//! - Subscriptions of a resumed session are not checked again. They were when they were made, by the same rule for the same device.
//! - When a device connects twice, the events of the older connection may come after those of the newer one; each is held
//!   against the connection that counts now.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_shared::acl::{Action, Identity, authorize};
use muster_shared::ids::DeviceId;
use muster_shared::limits::{CHUNK_BYTES, CHUNK_WINDOW, MAX_PACKET_BYTES};
use muster_shared::topics::Topic;
use rmqtt::codec::v5::SubscribeAckReason;
use rmqtt::context::ServerContext;
use rmqtt::hook::{Handler, HookResult, Parameter, ReturnType, Type};
use rmqtt::net::Builder;
use rmqtt::server::MqttServer;
use rmqtt::session::Session;
use rmqtt::types::{
    AuthResult, ClientId, CodecPublish, ConnectInfo, From, FromType, Id, LastWill, Publish, PublishAclResult, QoS,
    SubscribeAclResult,
};
use tokio::sync::mpsc;

use super::{Admit, Broker, BrokerError, BrokerEvent, Started, TlsFiles};
use crate::config::BrokerConfig;

/// Events waiting for the controller. When they are this many, devices wait.
const EVENT_QUEUE: usize = 1_024;
/// Messages waiting for one device inside the broker; the oldest is dropped beyond. Everything that is sent down is asked for or issued again.
const DEVICE_QUEUE: usize = 64;
/// Bytes on their way to one device that it has not acknowledged. A device that asks and does not read must not fill our memory.
const DEVICE_UNACKNOWLEDGED_BYTES: usize = 2 * MAX_PACKET_BYTES + 2 * CHUNK_WINDOW * CHUNK_BYTES;
/// QoS 1 messages to one device without an acknowledgement: a window of chunks and some control messages.
const DEVICE_INFLIGHT: NonZeroU16 = NonZeroU16::new(32).expect("not zero");
/// Time for the TLS handshake, and again for the MQTT CONNECT.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time a write to a device may block before its connection is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the session of a device that went away is kept. Short: nothing rests on it, see [`BrokerEvent::Subscribed`].
const SESSION_EXPIRY: Duration = Duration::from_secs(30);
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
    let address = config.listen;
    let max_sessions = isize::try_from(config.max_connections).unwrap_or(isize::MAX);
    // The processor check would refuse devices whenever the machine is busy with anything.
    let scx = ServerContext::new().busy_check_enable(false).mqtt_max_sessions(max_sessions).build().await;

    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let insecure = config.insecure_dev;
    let gate = Gate { admit, events: sender, connections: Arc::default(), insecure };
    let hooks = scx.extends.hook_mgr().register();
    for hook in [
        Type::ClientAuthenticate,
        Type::ClientConnected,
        Type::ClientDisconnected,
        Type::ClientSubscribeCheckAcl,
        Type::SessionSubscribed,
        Type::MessagePublish,
        Type::MessagePublishCheckAcl,
        Type::MessageAcked,
        Type::MessageDropped,
    ] {
        hooks.add(hook, Box::new(gate.clone())).await;
    }
    hooks.start().await;

    let path = |path: &std::path::Path| path.display().to_string();
    let listener = Builder::new()
        .name(if insecure { "mqtt" } else { "mqtts" })
        .laddr(address)
        // A restart must not wait for the sockets of the run before.
        .reuseaddr(Some(true))
        .nodelay(true)
        .allow_anonymous(false)
        .collect_cert_info(true)
        .tls_cross_certificate(true)
        .tls_cert(Some(path(&files.certificate)))
        .tls_key(Some(path(&files.key)))
        .tls_client_ca_certs(Some(path(&files.client_ca)))
        .max_connections(config.max_connections)
        .max_packet_size(config.max_packet_bytes)
        .max_mqueue_len(DEVICE_QUEUE)
        .max_inflight(DEVICE_INFLIGHT)
        .max_subscriptions(MAX_SUBSCRIPTIONS)
        .max_clientid_len(64)
        .max_topic_levels(8)
        .handshake_timeout(HANDSHAKE_TIMEOUT)
        .send_timeout(SEND_TIMEOUT)
        .session_expiry_interval(SESSION_EXPIRY)
        .max_session_expiry_interval(SESSION_EXPIRY)
        .message_expiry_interval(MESSAGE_EXPIRY)
        .bind()
        .map_err(|error| BrokerError::Bind { address, source: into_io(error) })?;
    let secured = if insecure { listener.tcp() } else { listener.tls() };
    let listener = secured.map_err(|error| BrokerError::Tls {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        client_ca: files.client_ca.clone(),
        reason: format!("{error:#}"),
    })?;
    let local_addr = listener.local_addr().map_err(|error| BrokerError::Bind { address, source: into_io(error) })?;

    let broker = Embedded { scx: scx.clone(), connections: Arc::clone(&gate.connections) };
    let server = MqttServer::new(scx).listener_by_id(listener, local_addr.port()).build();
    let task = tokio::spawn(async move {
        if let Err(error) = server.run().await {
            tracing::error!(reason = %format!("{error:#}"), "the broker stopped");
        }
    });
    Ok(Started { broker: Arc::new(broker), events, local_addr, task })
}

fn into_io(error: rmqtt::net::Error) -> std::io::Error {
    error.downcast::<std::io::Error>().unwrap_or_else(|other| std::io::Error::other(format!("{other:#}")))
}

/// The connection of a device that counts now.
struct Connection {
    id: Id,
    unacknowledged_bytes: usize,
}

type Connections = Arc<Mutex<HashMap<DeviceId, Connection>>>;

fn lock(connections: &Connections) -> MutexGuard<'_, HashMap<DeviceId, Connection>> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes `bytes` from what is on its way to a device: they arrived, or never will.
fn settle(connections: &Connections, client_id: &str, bytes: usize) {
    let Ok(device) = DeviceId::new(client_id) else { return };
    if let Some(connection) = lock(connections).get_mut(&device) {
        connection.unacknowledged_bytes = connection.unacknowledged_bytes.saturating_sub(bytes);
    }
}

struct Embedded {
    scx: ServerContext,
    connections: Connections,
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
        {
            let mut connections = lock(&self.connections);
            let Some(connection) = connections.get_mut(&topic.device) else { return Ok(()) };
            let waiting = connection.unacknowledged_bytes;
            if waiting > 0 && waiting + bytes > DEVICE_UNACKNOWLEDGED_BYTES {
                return Err(BrokerError::Congested { topic: topic.clone(), waiting_bytes: waiting });
            }
            connection.unacknowledged_bytes += bytes;
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
                    settle(&self.connections, topic.device.as_str(), bytes);
                }
                Ok(())
            }
            Err((_, failures)) => {
                settle(&self.connections, topic.device.as_str(), bytes);
                let reason = failures.first().map_or_else(String::new, |(_, _, _, reason)| reason.to_string());
                Err(BrokerError::Publish { topic: topic.clone(), reason })
            }
        }
    }

    async fn disconnect(&self, device: &DeviceId) {
        let id = Id::from(self.scx.node.id(), ClientId::from(device.to_string()));
        let mut entry = self.scx.extends.shared().await.entry(id);
        if let Err(error) = entry.kick(true, true, true).await {
            tracing::warn!(%device, reason = %format!("{error:#}"), "the device's connection could not be cut in order");
        }
    }

    fn connected(&self) -> usize {
        lock(&self.connections).len()
    }
}

/// What rmqtt asks at each step of a connection's life.
#[derive(Clone)]
struct Gate {
    admit: Arc<dyn Admit>,
    events: mpsc::Sender<BrokerEvent>,
    connections: Connections,
    /// There are no certificates: a device is who it says it is.
    insecure: bool,
}

/// The device behind a session: its client id, which equals its certificate's common name since [`Gate::authenticate`].
fn device_of(session: &Session) -> Option<DeviceId> {
    DeviceId::new(session.id.client_id.to_string()).ok()
}

/// Whether `device` may publish so. Retained messages are refused: there is nobody to keep them for.
fn may_publish(device: &DeviceId, topic: &str, retain: bool) -> bool {
    !retain && authorize(&Identity::Device(device.clone()), Action::Publish, topic)
}

impl Gate {
    async fn authenticate(&self, connect: &ConnectInfo) -> Result<DeviceId, &'static str> {
        let client_id = connect.client_id().to_string();
        let (device, serial) = if self.insecure {
            (DeviceId::new(client_id).map_err(|_| "the MQTT client id is not a device id")?, None)
        } else {
            let certificate = connect.cert().ok_or("no client certificate")?;
            let name = certificate.common_name.as_deref().ok_or("the certificate has no common name")?;
            if client_id != name {
                return Err("the MQTT client id is not the certificate's common name");
            }
            let device = DeviceId::new(name).map_err(|_| "the certificate's common name is not a device id")?;
            (device, Some(certificate.serial.as_deref().ok_or("the certificate has no serial number")?))
        };
        if let Some(will) = connect.last_will() {
            let topic = match &will {
                LastWill::V3(will) => &will.topic,
                LastWill::V5(will) => &will.topic,
            };
            if !may_publish(&device, topic, will.retain()) {
                return Err("the will is not on one of the device's own topics, or is to be retained");
            }
        }
        if !self.admit.device_allowed(&device, serial).await {
            return Err("the device is not enrolled, is revoked, or has a newer certificate");
        }
        Ok(device)
    }

    /// Waits for room, so that a slow controller slows devices down instead of losing what they say.
    async fn tell(&self, event: BrokerEvent) {
        // The receiver is gone only when the controller stops; the device repeats what was not acknowledged.
        let _ = self.events.send(event).await;
    }

    fn is_current(&self, device: &DeviceId, id: &Id) -> bool {
        lock(&self.connections).get(device).is_some_and(|connection| connection.id == *id)
    }

    async fn connected(&self, session: &Session) {
        let Some(device) = device_of(session) else { return };
        let connection = Connection { id: session.id.clone(), unacknowledged_bytes: 0 };
        lock(&self.connections).insert(device.clone(), connection);
        // A resumed session is subscribed without asking again.
        if session.session_present().await.unwrap_or(false) {
            self.tell(BrokerEvent::Subscribed(device)).await;
        }
    }

    async fn disconnected(&self, session: &Session) {
        let Some(device) = device_of(session) else { return };
        {
            let mut connections = lock(&self.connections);
            if connections.get(&device).is_none_or(|connection| connection.id != session.id) {
                return;
            }
            connections.remove(&device);
        }
        self.tell(BrokerEvent::Disconnected(device)).await;
    }

    async fn published(&self, session: &Session, from: &From, publish: &Publish) {
        let Some(device) = device_of(session) else { return };
        match from.typ() {
            FromType::Custom => {}
            // A device that is back already is not away, whatever the connection before it has to say.
            FromType::LastWill if self.is_current(&device, &session.id) => {}
            FromType::LastWill | FromType::Admin | FromType::System | FromType::Bridge => return,
        }
        if !may_publish(&device, &publish.topic, publish.retain) {
            return;
        }
        if let Ok(topic) = publish.topic.parse::<Topic>() {
            self.tell(BrokerEvent::Message { topic, payload: publish.payload.clone() }).await;
        }
    }
}

#[async_trait]
impl Handler for Gate {
    #[expect(clippy::wildcard_enum_match_arm, reason = "rmqtt's hooks that are not registered never come here")]
    #[expect(elided_lifetimes_in_paths, reason = "the trait has it so, and async_trait compares what is written")]
    async fn hook(&self, parameter: &Parameter, result: Option<HookResult>) -> ReturnType {
        match parameter {
            Parameter::ClientAuthenticate(connect) => {
                let answer = match self.authenticate(connect).await {
                    Ok(_) => AuthResult::Allow(false, None),
                    Err(reason) => {
                        let name = connect.cert().and_then(|certificate| certificate.common_name.as_deref());
                        tracing::warn!(certificate = name, client = %connect.client_id(), reason, "connection refused");
                        AuthResult::NotAuthorized
                    }
                };
                (false, Some(HookResult::AuthResult(answer)))
            }
            Parameter::ClientConnected(session) => {
                self.connected(session).await;
                (true, result)
            }
            Parameter::ClientDisconnected(session, _) => {
                self.disconnected(session).await;
                (true, result)
            }
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => {
                let device = device_of(session);
                let allowed = device.is_some_and(|device| {
                    authorize(&Identity::Device(device), Action::Subscribe, &subscribe.topic_filter)
                });
                let answer = if allowed {
                    SubscribeAclResult::new_success(subscribe.opts.qos(), None)
                } else {
                    tracing::warn!(device = %session.id.client_id, filter = %subscribe.topic_filter, "subscription refused");
                    SubscribeAclResult::new_failure(SubscribeAckReason::NotAuthorized)
                };
                (false, Some(HookResult::SubscribeAclResult(answer)))
            }
            Parameter::SessionSubscribed(session, _) => {
                if let Some(device) = device_of(session) {
                    self.tell(BrokerEvent::Subscribed(device)).await;
                }
                (true, result)
            }
            Parameter::MessagePublish(Some(session), from, publish) => {
                self.published(session, from, publish).await;
                (true, result)
            }
            Parameter::MessagePublishCheckAcl(session, publish) => {
                let device = device_of(session);
                let answer = if device.is_some_and(|device| may_publish(&device, &publish.topic, publish.retain)) {
                    PublishAclResult::allow()
                } else {
                    tracing::warn!(device = %session.id.client_id, topic = %publish.topic, retain = publish.retain, "publish refused");
                    // MQTT 3.1.1 has no way to say no but to hang up; a device with a fault would then reconnect for ever.
                    PublishAclResult::rejected(false, None)
                };
                (false, Some(HookResult::PublishAclResult(answer)))
            }
            Parameter::MessageAcked(session, _, publish) => {
                settle(&self.connections, &session.id.client_id, publish.payload.len());
                (true, result)
            }
            Parameter::MessageDropped(Some(to), from, publish, reason) => {
                if from.is_system() {
                    tracing::debug!(device = %to.client_id, topic = %publish.topic, %reason, "message to a device dropped");
                    settle(&self.connections, &to.client_id, publish.payload.len());
                }
                (true, result)
            }
            _ => (true, result),
        }
    }
}

#[cfg(test)]
mod tests;
