//! The message broker as the rest of the controller sees it: publish to a device, cut it off, hear what devices say.
//!
//! Who may connect is the caller's decision ([`Admit`]); who may publish and subscribe where is
//! [`muster_shared::acl::authorize`]'s. Everything that comes out of a broker has passed that check. Nothing the
//! broker remembers is needed for correctness: what a device should have is issued again whenever it subscribes.

mod embedded;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use muster_shared::ids::DeviceId;
use muster_shared::topics::Topic;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub(crate) use embedded::start_embedded;

/// Why the broker cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokerError {
    /// The listening address is taken or not ours.
    #[error("the broker cannot listen on {address}: choose another [broker] listen, or stop what uses it")]
    Bind {
        /// The address from the configuration.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// Certificate, key or CA do not load.
    #[error(
        "the broker's certificate {}, key {} or client CA {} cannot be used: {reason}",
        certificate.display(), key.display(), client_ca.display()
    )]
    Tls {
        /// Path of the certificate.
        certificate: PathBuf,
        /// Path of the key.
        key: PathBuf,
        /// Path of the client CA.
        client_ca: PathBuf,
        /// What the TLS library says.
        reason: String,
    },
    /// It does not listen any more.
    #[error("the broker has stopped")]
    Stopped,
    /// More bytes than a packet may have.
    #[error("the message for {topic} has {bytes} bytes, more than a packet may carry")]
    TooLarge {
        /// Where it was to go.
        topic: Topic,
        /// Its size.
        bytes: usize,
    },
    /// The device does not read what it has been sent.
    #[error("no more for {topic}: the device has not acknowledged {waiting_bytes} bytes yet")]
    Congested {
        /// Where it was to go.
        topic: Topic,
        /// Bytes on their way.
        waiting_bytes: usize,
    },
    /// The broker did not take the message.
    #[error("the broker did not take a message for {topic}: {reason}")]
    Publish {
        /// Where it was to go.
        topic: Topic,
        /// What the broker says.
        reason: String,
    },
}

/// Whether a device can take something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// It can.
    Free,
    /// So many bytes are on their way already.
    Full(usize),
    /// It is not connected.
    Away,
}

/// A way to reach devices. Publishing means handing over: a device that is away loses the message.
#[async_trait]
pub(crate) trait Broker: Send + Sync {
    /// Hands `payload` over for delivery on `topic`, at least once to a device that is connected.
    ///
    /// # Errors
    /// [`BrokerError`] when it is too large or the broker refuses it.
    async fn publish(&self, topic: &Topic, payload: Bytes) -> Result<(), BrokerError>;

    /// Whether `bytes` on `topic` would be taken now, before they are made.
    fn room(&self, topic: &Topic, bytes: usize) -> Room;

    /// Whether anything is on its way to the device that it has not acknowledged.
    fn is_sending(&self, device: &DeviceId) -> bool;

    /// Tells the device's connection and its session to end, as on revocation, and does not wait until they have: one that is busy
    /// ends when it has done what it is at. A connection that the device makes afterwards is left alone.
    async fn disconnect(&self, device: &DeviceId);

    /// As [`Self::disconnect`] for all devices, also of those that have said nothing yet. They come back if they are let in.
    async fn disconnect_all(&self);

    /// Listens with these files from now on. Devices that are connected stay so.
    ///
    /// # Errors
    /// [`BrokerError`] when they do not load; those before are used then.
    async fn reload(&self, files: TlsFiles) -> Result<(), BrokerError>;

    /// How many devices are connected.
    fn connected(&self) -> usize;
}

/// What a broker tells the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BrokerEvent {
    /// The device listens on its `down` topics and can be told things.
    Subscribed(DeviceId),
    /// The device's connection ended, in whatever way.
    Disconnected(DeviceId),
    /// A device said something it may say. Never from one device in another's name.
    Message {
        /// One of the sender's own `up` topics.
        topic: Topic,
        /// As the device sent it: not looked at yet.
        payload: Bytes,
    },
}

/// Who may connect, asked at every connect after the certificate's chain has been verified.
#[async_trait]
pub(crate) trait Admit: Send + Sync {
    /// Whether `device` is enrolled, not revoked, and `certificate_serial` is that of its certificate, in the form of
    /// [`serial_text`]. There is none in `insecure-dev` mode, where devices have no certificates.
    async fn device_allowed(&self, device: &DeviceId, certificate_serial: Option<&str>) -> bool;
}

/// A certificate's serial number (big endian) in the form in which [`Admit`] is asked: lower-case hexadecimal without
/// leading zeros.
pub(crate) fn serial_text(serial: &[u8]) -> String {
    let text = hex::encode(serial);
    let trimmed = text.trim_start_matches('0');
    if trimmed.is_empty() { "0".to_owned() } else { trimmed.to_owned() }
}

/// Files the broker needs for mutual TLS, in PEM.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    /// The server's certificate chain.
    pub(crate) certificate: PathBuf,
    /// Its key.
    pub(crate) key: PathBuf,
    /// The CA that signs device certificates.
    pub(crate) client_ca: PathBuf,
}

/// A broker that is listening.
pub(crate) struct Started {
    /// To reach devices.
    pub(crate) broker: Arc<dyn Broker>,
    /// What devices say. Bounded: a slow reader slows devices down and loses nothing.
    pub(crate) events: mpsc::Receiver<BrokerEvent>,
    /// Devices that have taken something that was on its way to them. Not all: what finds no room here is left out.
    pub(crate) room: mpsc::Receiver<DeviceId>,
    /// Where it listens, the port filled in.
    pub(crate) local_addr: SocketAddr,
    /// Runs until it is aborted; ends early only when the broker fails.
    pub(crate) task: JoinHandle<()>,
}
