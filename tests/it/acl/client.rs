//! An MQTT client that does what it is told, one packet after the other, and tells what came of it.
//!
//! It sends what clients of libraries refuse to send, and reads only when asked: what a broker had to say before an answer stands
//! before it in the stream.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use muster_tests::fleet::PATIENCE;
use rumqttc::mqttbytes::v4::{Connect, LastWill, Packet, PubAck, Publish, Subscribe};
use rumqttc::mqttbytes::{Error as CodecError, QoS};
use rumqttc::{ConnectReturnCode, SubscribeReasonCode};
use rustls::pki_types::ServerName;

const MAX_PACKET_BYTES: usize = 1024 * 1024;
/// Longer than a test, so that no client has to say that it is there.
const KEEP_ALIVE_S: u16 = 600;

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: String,
}

/// How a connection is asked for.
#[derive(Debug, Clone)]
pub(super) struct Hello<'a> {
    pub(super) client_id: &'a str,
    pub(super) clean_session: bool,
    pub(super) will: Option<(&'a str, &'a str, bool)>,
}

impl<'a> Hello<'a> {
    pub(super) fn of(client_id: &'a str) -> Self {
        Self { client_id, clean_session: true, will: None }
    }
}

/// What became of a wish to connect.
pub(super) enum Door {
    Open(Client),
    /// Refused with a code of MQTT.
    Refused(ConnectReturnCode),
    /// The connection was closed.
    Closed(String),
}

/// What became of a wish to subscribe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subscription {
    Granted,
    Denied,
    Closed,
}

pub(super) struct Client {
    stream: Box<dyn Stream>,
    received: Vec<u8>,
    messages: VecDeque<Message>,
    last_id: u16,
}

impl Client {
    /// Connects over TLS with `papers`.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub(super) fn connect(port: u16, papers: &Arc<rustls::ClientConfig>, hello: &Hello<'_>) -> anyhow::Result<Door> {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let session = rustls::ClientConnection::new(Arc::clone(papers), ServerName::try_from("127.0.0.1")?)?;
        Self::greet(Box::new(rustls::StreamOwned::new(session, socket)), hello)
    }

    /// Connects over the socket `path`.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub(super) fn connect_locally(path: &Path, hello: &Hello<'_>) -> anyhow::Result<Door> {
        let socket = UnixStream::connect(path).with_context(|| format!("{}", path.display()))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Self::greet(Box::new(socket), hello)
    }

    fn greet(stream: Box<dyn Stream>, hello: &Hello<'_>) -> anyhow::Result<Door> {
        let mut this = Self { stream, received: Vec::new(), messages: VecDeque::new(), last_id: 0 };
        let mut connect = Connect::new(hello.client_id);
        connect.keep_alive = KEEP_ALIVE_S;
        connect.clean_session = hello.clean_session;
        connect.last_will =
            hello.will.map(|(topic, message, retain)| LastWill::new(topic, message, QoS::AtLeastOnce, retain));
        let answer = match this.send(&Packet::Connect(connect)) {
            Ok(()) => this.next_packet()?,
            Err(error) => Err(error),
        };
        match answer {
            Ok(Packet::ConnAck(answer)) if answer.code == ConnectReturnCode::Success => Ok(Door::Open(this)),
            Ok(Packet::ConnAck(answer)) => Ok(Door::Refused(answer.code)),
            Ok(other) => bail!("{other:?} in answer to CONNECT"),
            Err(error) => Ok(Door::Closed(error.to_string())),
        }
    }

    fn send(&mut self, packet: &Packet) -> std::io::Result<()> {
        let mut bytes = Default::default();
        packet.write(&mut bytes, MAX_PACKET_BYTES).map_err(std::io::Error::other)?;
        self.stream.write_all(&bytes)?;
        self.stream.flush()
    }

    /// The next packet, or why there will be none.
    ///
    /// # Errors
    /// When the broker neither speaks nor hangs up, or what it says is no MQTT.
    fn next_packet(&mut self) -> anyhow::Result<std::io::Result<Packet>> {
        loop {
            let mut bytes = From::from(&self.received[..]);
            match Packet::read(&mut bytes, MAX_PACKET_BYTES) {
                Ok(packet) => {
                    self.received = bytes.to_vec();
                    return Ok(Ok(packet));
                }
                Err(CodecError::InsufficientBytes(_)) => {}
                Err(error) => bail!("the broker says what is no MQTT: {error}"),
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return Ok(Err(ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.received.extend_from_slice(&piece[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    bail!("the broker is silent")
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// The next packet; a message is acknowledged and kept besides. None once the connection is closed.
    fn take(&mut self) -> anyhow::Result<Option<Packet>> {
        let Ok(packet) = self.next_packet()? else { return Ok(None) };
        if let Packet::Publish(message) = &packet {
            if message.qos == QoS::AtLeastOnce {
                // Whoever has hung up needs no acknowledgement.
                let _ = self.send(&Packet::PubAck(PubAck::new(message.pkid)));
            }
            let payload = String::from_utf8_lossy(&message.payload).into_owned();
            self.messages.push_back(Message { topic: message.topic.clone(), payload });
        }
        Ok(Some(packet))
    }

    fn next_id(&mut self) -> u16 {
        self.last_id += 1;
        self.last_id
    }

    /// Publishes and waits until the broker has dealt with it. False when it hung up.
    ///
    /// # Errors
    /// When it does neither.
    pub(super) fn publish(&mut self, topic: &str, payload: &str, retain: bool) -> anyhow::Result<bool> {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload);
        publish.retain = retain;
        publish.pkid = self.next_id();
        if self.send(&Packet::Publish(publish)).is_err() {
            return Ok(false);
        }
        loop {
            match self.take()? {
                Some(Packet::PubAck(_)) => return Ok(true),
                Some(_) => {}
                None => return Ok(false),
            }
        }
    }

    /// Subscribes, and waits for the answer.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn subscribe(&mut self, filter: &str) -> anyhow::Result<Subscription> {
        let mut subscribe = Subscribe::new(filter, QoS::AtLeastOnce);
        subscribe.pkid = self.next_id();
        if self.send(&Packet::Subscribe(subscribe)).is_err() {
            return Ok(Subscription::Closed);
        }
        loop {
            match self.take()? {
                Some(Packet::SubAck(answer)) => {
                    let granted =
                        answer.return_codes.iter().all(|code| matches!(code, SubscribeReasonCode::Success(_)));
                    return Ok(if granted { Subscription::Granted } else { Subscription::Denied });
                }
                Some(_) => {}
                None => return Ok(Subscription::Closed),
            }
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// When none comes, or the broker hangs up.
    pub(super) fn message(&mut self) -> anyhow::Result<Message> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(message);
            }
            self.take()?.context("the broker hung up")?;
        }
    }

    /// Every message before the first that is the fence, which came after them.
    ///
    /// # Errors
    /// When it does not come.
    pub(super) fn heard_before(&mut self, is_fence: impl Fn(&Message) -> bool) -> anyhow::Result<Vec<Message>> {
        let mut heard = Vec::new();
        loop {
            let message = self.message()?;
            if is_fence(&message) {
                return Ok(heard);
            }
            heard.push(message);
        }
    }
}
