//! The broker's socket, and how it comes to other certificates while devices stay connected.
//!
//! rmqtt reads certificates when it binds, so another listener takes the place of the one before: connections that are there go on, and
//! a device that comes in the moment between tries again, as it would after any other refusal.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use rmqtt::context::ServerContext;
use rmqtt::net::{Builder, Listener};
use rmqtt::server::MqttServer;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{
    DEVICE_INFLIGHT, DEVICE_QUEUE, HANDSHAKE_TIMEOUT, MAX_SUBSCRIPTIONS, MESSAGE_EXPIRY, SEND_TIMEOUT, SESSION_EXPIRY,
    into_io,
};
use crate::broker::{BrokerError, TlsFiles};
use crate::config::BrokerConfig;

/// Other certificates to listen with.
pub(super) struct Reload {
    pub(super) files: TlsFiles,
    pub(super) answer: oneshot::Sender<Result<(), BrokerError>>,
}

/// Makes listeners.
pub(super) struct Listening {
    pub(super) scx: ServerContext,
    pub(super) config: BrokerConfig,
}

impl Listening {
    /// A listener on `address`.
    ///
    /// # Errors
    /// [`BrokerError::Bind`] when the address is taken, [`BrokerError::Tls`] when the files do not load.
    pub(super) fn listener(&self, address: SocketAddr, files: &TlsFiles) -> Result<Listener, BrokerError> {
        let insecure = self.config.insecure_dev;
        let path = |path: &Path| path.display().to_string();
        let listener = Builder::new()
            .name(if insecure { "mqtt" } else { "mqtts" })
            .laddr(address)
            // A restart must not wait for the sockets of the run before.
            .reuseaddr(Some(true))
            .nodelay(true)
            .allow_anonymous(false)
            // Without keep-alive a dead device would be taken for a silent one for ever.
            .allow_zero_keepalive(false)
            .collect_cert_info(true)
            .tls_cross_certificate(true)
            .tls_cert(Some(path(&files.certificate)))
            .tls_key(Some(path(&files.key)))
            .tls_client_ca_certs(Some(path(&files.client_ca)))
            .max_connections(self.config.max_connections)
            .max_packet_size(self.config.max_packet_bytes)
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
            // While a connection stands, TCP delivers; what is slow to arrive must not be sent a second time on top.
            .message_retry_interval(Duration::ZERO)
            .bind()
            .map_err(|error| BrokerError::Bind { address, source: into_io(error) })?;
        let secured = if insecure { listener.tcp() } else { listener.tls() };
        secured.map_err(|error| BrokerError::Tls {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            client_ca: files.client_ca.clone(),
            reason: format!("{error:#}"),
        })
    }

    fn serve(&self, listener: Listener, id: u16) -> JoinHandle<()> {
        let server = MqttServer::new(self.scx.clone()).listener_by_id(listener, id).build();
        tokio::spawn(async move {
            if let Err(error) = server.run().await {
                tracing::error!(reason = %format!("{error:#}"), "the broker stopped");
            }
        })
    }

    /// A number that no listener has yet: sessions go on asking for the settings of theirs.
    fn next_id(&self, after: u16) -> u16 {
        let mut id = after.wrapping_add(1);
        while self.scx.listen_cfgs.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        id
    }

    /// Listens until the broker fails, or this is dropped.
    pub(super) async fn run(
        self,
        listener: Listener,
        address: SocketAddr,
        mut files: TlsFiles,
        mut reloads: mpsc::Receiver<Reload>,
    ) {
        let mut id = address.port();
        let mut server = AbortOnDrop(self.serve(listener, id));
        loop {
            let Reload { files: others, answer } = tokio::select! {
                _ = &mut server.0 => return,
                Some(reload) = reloads.recv() => reload,
            };
            // Whether they load can be seen without giving up what there is.
            let checked = self.listener((Ipv4Addr::LOCALHOST, 0).into(), &others);
            let outcome = match checked {
                Err(error) => Err(error),
                Ok(_) => {
                    server.0.abort();
                    // Its socket is closed once it has ended.
                    let _ = (&mut server.0).await;
                    let (next, outcome) = match self.listener(address, &others) {
                        Ok(next) => (Ok(next), Ok(())),
                        Err(error) => (self.listener(address, &files), Err(error)),
                    };
                    let Ok(next) = next else {
                        let _ = answer.send(outcome);
                        tracing::error!("the broker stopped: its address cannot be bound again");
                        return;
                    };
                    id = self.next_id(id);
                    server = AbortOnDrop(self.serve(next, id));
                    outcome
                }
            };
            if outcome.is_ok() {
                files = others;
            }
            let _ = answer.send(outcome);
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
