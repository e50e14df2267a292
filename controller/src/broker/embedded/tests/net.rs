//! A broker with an authority of its own, and clients that tell what they see.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_shared::ids::DeviceId;
use muster_shared::limits::MAX_PACKET_BYTES;
use muster_shared::topics::{Down, Topic, Up};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rmqtt::context::ServerContext;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, MqttOptions, Outgoing, Packet, QoS as ClientQoS,
    SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::broker::embedded::start;
use crate::broker::{Admit, BrokerEvent, Started, TlsFiles};
use crate::config::BrokerConfig;

/// Far more than anything here takes: only a hang gets there.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

pub(super) fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

/// Admits everybody but the revoked.
#[derive(Default)]
pub(super) struct Everybody {
    pub(super) revoked: Mutex<BTreeSet<DeviceId>>,
    pub(super) asked_without_certificate: AtomicBool,
}

#[async_trait]
impl Admit for Everybody {
    async fn device_allowed(&self, device: &DeviceId, certificate_serial: Option<&str>) -> bool {
        if certificate_serial.is_none() {
            self.asked_without_certificate.store(true, Ordering::Relaxed);
        }
        !self.revoked.lock().unwrap().contains(device)
    }
}

/// A broker, its authority, and what it tells.
pub(super) struct Net {
    pub(super) started: Started,
    pub(super) admit: Arc<Everybody>,
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) ca_pem: String,
    pub(super) scx: ServerContext,
    pub(super) _folder: TempDir,
}

pub(super) fn authority() -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test authority");
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

pub(super) fn config(listen: SocketAddr) -> BrokerConfig {
    BrokerConfig { listen, ..BrokerConfig::default() }
}

pub(super) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

pub(super) fn server_files(folder: &TempDir, issuer: &Issuer<'static, KeyPair>, ca_pem: &str) -> TlsFiles {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let files = TlsFiles {
        certificate: folder.path().join("server.pem"),
        key: folder.path().join("server.key"),
        client_ca: folder.path().join("ca.pem"),
    };
    std::fs::write(&files.certificate, params.signed_by(&key, issuer).unwrap().pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    std::fs::write(&files.client_ca, ca_pem).unwrap();
    files
}

impl Net {
    pub(super) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(super) async fn start_with(change: impl FnOnce(&mut BrokerConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (issuer, ca_pem) = authority();
        let files = server_files(&folder, &issuer, &ca_pem);
        let admit = Arc::new(Everybody::default());
        let mut config = config(loopback(0));
        change(&mut config);
        let (started, scx) = start(&config, files, Arc::clone(&admit) as Arc<dyn Admit>).await.unwrap();
        Self { started, admit, issuer, ca_pem, scx, _folder: folder }
    }

    pub(super) fn tls(&self, common_name: Option<&str>) -> Transport {
        self.tls_with(common_name, |_| {})
    }

    /// As [`Self::tls`], with a certificate that is changed before it is signed.
    pub(super) fn tls_with(&self, common_name: Option<&str>, change: impl FnOnce(&mut CertificateParams)) -> Transport {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match common_name {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let key = KeyPair::generate().unwrap();
                let mut params = CertificateParams::new(Vec::new()).unwrap();
                params.distinguished_name.push(DnType::CommonName, name);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                change(&mut params);
                let certificate = params.signed_by(&key, &self.issuer).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
            }
        };
        Transport::Tls(TlsConfiguration::Rustls(Arc::new(config)))
    }

    pub(super) fn options(&self, client_id: &str) -> MqttOptions {
        let mut options = MqttOptions::new(client_id, "127.0.0.1", self.started.local_addr.port());
        options.set_transport(self.tls(Some(client_id)));
        options.set_max_packet_size(4 * MAX_PACKET_BYTES, 4 * MAX_PACKET_BYTES);
        options
    }

    pub(super) fn connect(&self, client_id: &str) -> Client {
        Client::start(self.options(client_id))
    }

    /// Connects although a connection of the same name may still be on its way out, which the broker answers with "not
    /// now".
    pub(super) async fn connect_again(&self, options: impl Fn() -> MqttOptions) -> Client {
        loop {
            let mut client = Client::start(options());
            let seen = client.next().await;
            if matches!(seen, Seen::Accepted) {
                return client;
            }
            assert!(matches!(seen, Seen::Refused(ConnectReturnCode::ServiceUnavailable)), "{seen:?}");
        }
    }

    /// A client that is connected and hears what it is told.
    pub(super) async fn join(&mut self, name: &str) -> Client {
        let mut client = self.connect(name);
        client.accepted().await;
        assert_eq!(client.subscribe(&Topic::down_filter(&device(name))).await, [true]);
        assert_eq!(self.event().await, BrokerEvent::Subscribed(device(name)));
        client
    }

    pub(super) async fn event(&mut self) -> BrokerEvent {
        within("an event", self.started.events.recv()).await.expect("the broker runs")
    }

    pub(super) async fn tell(&self, name: &str, payload: &str) {
        let topic = Topic::down(&device(name), Down::Ack);
        self.started.broker.publish(&topic, Bytes::from(payload.to_owned())).await.unwrap();
    }
}

/// What a client sees.
#[derive(Debug)]
pub(super) enum Seen {
    Accepted,
    Refused(ConnectReturnCode),
    Subscribed(Vec<bool>),
    Published,
    Message(String, Bytes),
    Lost,
}

pub(super) struct Client {
    pub(super) client: AsyncClient,
    pub(super) seen: mpsc::UnboundedReceiver<Seen>,
    pub(super) task: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    /// Connects once: a lost connection is told and not made again.
    pub(super) fn start(options: MqttOptions) -> Self {
        let (client, mut connection) = AsyncClient::new(options, 64);
        let (sender, seen) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                let seen = match connection.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => Seen::Accepted,
                    Ok(Event::Incoming(Packet::SubAck(ack))) => Seen::Subscribed(
                        ack.return_codes.iter().map(|code| matches!(code, SubscribeReasonCode::Success(_))).collect(),
                    ),
                    Ok(Event::Incoming(Packet::PubAck(_))) => Seen::Published,
                    Ok(Event::Incoming(Packet::Publish(message))) => Seen::Message(message.topic, message.payload),
                    // The broker leaves it to the client to hang up after its goodbye.
                    Ok(Event::Outgoing(Outgoing::Disconnect)) => return,
                    Ok(_) => continue,
                    Err(ConnectionError::ConnectionRefused(code)) => Seen::Refused(code),
                    Err(_) => Seen::Lost,
                };
                let over = matches!(seen, Seen::Refused(_) | Seen::Lost);
                if sender.send(seen).is_err() || over {
                    return;
                }
            }
        });
        Self { client, seen, task }
    }

    pub(super) async fn next(&mut self) -> Seen {
        within("an answer of the broker", self.seen.recv()).await.expect("the client runs")
    }

    pub(super) async fn accepted(&mut self) {
        let seen = self.next().await;
        assert!(matches!(seen, Seen::Accepted), "{seen:?}");
    }

    pub(super) async fn refused(&mut self) {
        let seen = self.next().await;
        assert!(matches!(seen, Seen::Refused(ConnectReturnCode::NotAuthorized)), "{seen:?}");
    }

    pub(super) async fn lost(&mut self) {
        loop {
            if let Seen::Lost = self.next().await {
                return;
            }
        }
    }

    pub(super) async fn subscribe(&mut self, filter: &str) -> Vec<bool> {
        self.client.subscribe(filter, ClientQoS::AtLeastOnce).await.unwrap();
        let seen = self.next().await;
        let Seen::Subscribed(granted) = seen else { panic!("{seen:?}") };
        granted
    }

    pub(super) async fn publish(&self, topic: &str, retain: bool, payload: &str) {
        self.client.publish(topic, ClientQoS::AtLeastOnce, retain, payload.to_owned()).await.unwrap();
    }

    pub(super) async fn say(&self, name: &str, payload: &str) {
        self.publish(&Topic::up(&device(name), Up::Event).to_string(), false, payload).await;
    }

    pub(super) async fn message(&mut self) -> (String, Bytes) {
        loop {
            let seen = self.next().await;
            if let Seen::Message(topic, payload) = seen {
                return (topic, payload);
            }
            assert!(matches!(seen, Seen::Published), "{seen:?}");
        }
    }
}
