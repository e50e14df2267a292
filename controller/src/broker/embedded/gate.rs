//! What rmqtt asks at each step of a connection's life, and the answers.
//!
//! What its hooks can and cannot do decides the shape of this file:
//! - A publish reaches `MessagePublish` *before* `MessagePublishCheckAcl`, and the first one cannot drop it. So both
//!   ask the same question: the first hands on what is allowed, the second refuses what is not.
//! - A will passes only `MessagePublish`, so it is checked already when the device connects, and again when it fires.
//! - Subscriptions of a resumed session are not checked again, and what waits in a session counts nowhere once its connection is
//!   over. So no session outlives its connection: who asks for that is refused.
//! - The subscriptions of a connection that has ended are cleared away after everybody has been told of the end, in steps between which
//!   one that the device makes anew can be lost. `super` finds that out when it has something to tell the device.
//! - When a device connects twice, the events of the older connection may come after those of the newer one; each is
//!   held against the connection that counts now.

use std::sync::Arc;

use async_trait::async_trait;
use muster_shared::acl::{Action, Identity, authorize};
use muster_shared::ids::DeviceId;
use muster_shared::topics::Topic;
use rmqtt::codec::v5::SubscribeAckReason;
use rmqtt::hook::{Handler, HookResult, Parameter, ReturnType, Type};
use rmqtt::session::Session;
use rmqtt::types::{
    AuthResult, ConnectInfo, From, FromType, LastWill, Publish, PublishAclResult, Subscribe, SubscribeAclResult,
};
use tokio::sync::mpsc;

use super::connections::Connections;
use crate::broker::{Admit, BrokerEvent};

/// The hooks that [`Gate`] answers.
pub(super) const HOOKS: [Type; 9] = [
    Type::ClientAuthenticate,
    Type::ClientConnected,
    Type::ClientDisconnected,
    Type::ClientSubscribeCheckAcl,
    Type::SessionSubscribed,
    Type::MessagePublish,
    Type::MessagePublishCheckAcl,
    Type::MessageAcked,
    Type::MessageDropped,
];

/// Decides who comes in, and hands on what may be said.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) admit: Arc<dyn Admit>,
    pub(super) events: mpsc::Sender<BrokerEvent>,
    pub(super) connections: Connections,
    /// There are no certificates: a device is who it says it is.
    pub(super) insecure: bool,
}

/// The device behind a session: its client id, which equals its certificate's common name since [`Gate::authenticate`].
fn device_of(session: &Session) -> Option<DeviceId> {
    DeviceId::new(&session.id.client_id).ok()
}

/// Whether `device` may publish so.
fn may_publish(device: &DeviceId, topic: &str, retain: bool) -> bool {
    let action = if retain { Action::PublishRetained } else { Action::Publish };
    authorize(&Identity::Device(device.clone()), action, topic)
}

/// Whether the session is to outlive the connection, or to go on where one did.
fn wants_lasting_session(connect: &ConnectInfo) -> bool {
    let lasts = match connect {
        ConnectInfo::V3(..) => false,
        ConnectInfo::V5(_, connect) => connect.session_expiry_interval_secs > 0,
    };
    lasts || !connect.clean_start()
}

impl Gate {
    async fn authenticate(&self, connect: &ConnectInfo) -> Result<DeviceId, &'static str> {
        let client_id = connect.client_id().to_string();
        let (device, serial) = if self.insecure {
            (DeviceId::new(client_id).map_err(|_| "the MQTT client id is not a device id")?, None)
        } else {
            let certificate = connect.cert().ok_or("no client certificate")?;
            let name = certificate.common_name.as_deref().ok_or("the certificate has no common name")?;
            let identity = Identity::named(name).ok_or("the certificate's common name is not a device id")?;
            if !authorize(&identity, Action::Connect, &client_id) {
                return Err("the MQTT client id is not the certificate's common name");
            }
            let Identity::Device(device) = identity else {
                return Err("the controller needs no connection to its own broker");
            };
            (device, Some(certificate.serial.as_deref().ok_or("the certificate has no serial number")?))
        };
        if wants_lasting_session(connect) {
            return Err("the device asks for a session that outlives the connection, and none is kept");
        }
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

    fn connected(&self, session: &Session) {
        let Some(device) = device_of(session) else { return };
        self.connections.begin(device, session.id.clone());
    }

    async fn disconnected(&self, session: &Session) {
        let Some(device) = device_of(session) else { return };
        if self.connections.end(&device, &session.id) {
            self.tell(BrokerEvent::Disconnected(device)).await;
        }
    }

    async fn published(&self, session: &Session, from: &From, publish: &Publish) {
        let Some(device) = device_of(session) else { return };
        match from.typ() {
            FromType::Custom => {}
            // A device that is back already is not away, whatever the connection before it has to say.
            FromType::LastWill if self.connections.is_current(&device, &session.id) => {}
            FromType::LastWill | FromType::Admin | FromType::System | FromType::Bridge => return,
        }
        if !may_publish(&device, &publish.topic, publish.retain) {
            return;
        }
        if let Ok(topic) = publish.topic.parse::<Topic>() {
            self.tell(BrokerEvent::Message { topic, payload: publish.payload.clone() }).await;
        }
    }

    fn may_subscribe(&self, session: &Session, subscribe: &Subscribe) -> SubscribeAclResult {
        let filter = &subscribe.topic_filter;
        let device = device_of(session);
        let allowed = |device: &DeviceId| authorize(&Identity::Device(device.clone()), Action::Subscribe, filter);
        if device.as_ref().is_some_and(allowed) {
            return SubscribeAclResult::new_success(subscribe.opts.qos(), None);
        }
        if let Some(refusals) = device.and_then(|device| self.connections.count_refusal(&device)) {
            tracing::warn!(device = %session.id.client_id, %filter, refusals, "subscription refused");
        }
        SubscribeAclResult::new_failure(SubscribeAckReason::NotAuthorized)
    }

    fn may_pass(&self, session: &Session, publish: &Publish) -> PublishAclResult {
        let (topic, retain) = (&publish.topic, publish.retain);
        let device = device_of(session);
        if device.as_ref().is_some_and(|device| may_publish(device, topic, retain)) {
            return PublishAclResult::allow();
        }
        if let Some(refusals) = device.and_then(|device| self.connections.count_refusal(&device)) {
            tracing::warn!(%topic, device = %session.id.client_id, retain, refusals, "publish refused");
        }
        // MQTT 3.1.1 has no way to say no but to hang up; a device with a fault would then reconnect for ever.
        PublishAclResult::rejected(false, None)
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
                self.connected(session);
                (true, result)
            }
            Parameter::ClientDisconnected(session, _) => {
                self.disconnected(session).await;
                (true, result)
            }
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => {
                (false, Some(HookResult::SubscribeAclResult(self.may_subscribe(session, subscribe))))
            }
            Parameter::SessionSubscribed(session, subscribe) => {
                if let Some(device) = device_of(session) {
                    if *subscribe.topic_filter == *Topic::down_filter(&device) {
                        self.connections.set_listens(&device, &session.id);
                    }
                    self.tell(BrokerEvent::Subscribed(device)).await;
                }
                (true, result)
            }
            Parameter::MessagePublish(Some(session), from, publish) => {
                self.published(session, from, publish).await;
                (true, result)
            }
            Parameter::MessagePublishCheckAcl(session, publish) => {
                (false, Some(HookResult::PublishAclResult(self.may_pass(session, publish))))
            }
            Parameter::MessageAcked(session, _, publish) => {
                self.connections.release(&session.id.client_id, publish.payload.len());
                (true, result)
            }
            Parameter::MessageDropped(Some(to), from, publish, reason) => {
                if from.is_system() {
                    tracing::debug!(device = %to.client_id, topic = %publish.topic, %reason, "message to a device dropped");
                    self.connections.release(&to.client_id, publish.payload.len());
                }
                (true, result)
            }
            _ => (true, result),
        }
    }
}
