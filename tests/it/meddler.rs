//! A relay that reads along: it delivers messages twice, late and out of order, in both directions.
//!
//! It has the papers of both ends, so that it can end the encryption on either side. What it delivers a second time has a packet id
//! that neither end gives out, and the acknowledgement of it goes no further.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_tests::controller::Controller;
use rumqttc::tokio_rustls::{TlsAcceptor, TlsConnector};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
/// The first of the packet ids that neither end gives out.
const OWN_IDS: u16 = 0xF000;
/// How long a message is held back when nothing overtakes it.
const HELD: Duration = Duration::from_millis(200);
const LARGEST_PACKET_BYTES: usize = 2 * 1024 * 1024;

/// Where it listens, and what it has done.
pub(crate) struct Meddler {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
    task: tokio::task::JoinHandle<()>,
}

/// What was done to messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meddled {
    /// Delivered twice.
    pub(crate) repeated: u64,
    /// Of those, chunks.
    pub(crate) repeated_chunks: u64,
    /// Delivered after later ones.
    pub(crate) overtaken: u64,
}

#[derive(Debug, Default)]
struct Counts {
    repeated: AtomicU64,
    repeated_chunks: AtomicU64,
    overtaken: AtomicU64,
    is_resting: AtomicBool,
}

/// Papers and addresses of both ends.
struct Ends {
    pki: PathBuf,
    identity: PathBuf,
    broker: (String, u16),
}

impl Meddler {
    /// Stands between the broker of `controller` and the device whose data is in `device`.
    pub(crate) async fn open(controller: &Controller, device: &Path) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let broker = (controller.endpoints.broker_host.clone(), controller.endpoints.broker_port);
        let ends = Arc::new(Ends {
            pki: controller.folder().join("data/pki"),
            identity: device.join("data/identity"),
            broker,
        });
        let counts = Arc::<Counts>::default();
        let counting = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (ends, counts) = (Arc::clone(&ends), Arc::clone(&counting));
                tokio::spawn(async move {
                    if let Err(error) = relay(near, &ends, &counts).await {
                        eprintln!("the meddler's connection ended: {error:#}");
                    }
                });
            }
        });
        Ok(Self { address, counts, task })
    }

    /// What it has done to messages so far.
    pub(crate) fn meddled(&self) -> Meddled {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Meddled {
            repeated: read(&self.counts.repeated),
            repeated_chunks: read(&self.counts.repeated_chunks),
            overtaken: read(&self.counts.overtaken),
        }
    }

    /// Passes everything on as it comes from now on.
    pub(crate) fn rest(&self) {
        self.counts.is_resting.store(true, Ordering::Relaxed);
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn papers(certificate: &Path, key: &Path) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .with_context(|| format!("{}", certificate.display()))?
        .collect::<Result<_, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_file(key).with_context(|| format!("{}", key.display()))?))
}

async fn relay(near: TcpStream, ends: &Ends, counts: &Counts) -> anyhow::Result<()> {
    let (chain, key) = papers(&ends.pki.join("server.pem"), &ends.pki.join("server.key"))?;
    let server = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    let near = TlsAcceptor::from(Arc::new(server)).accept(near).await?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ends.pki.join("ca.pem"))?)?;
    let (chain, key) = papers(&ends.identity.join("device.pem"), &ends.identity.join("device.key"))?;
    let client = ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key)?;
    let far = TcpStream::connect((ends.broker.0.as_str(), ends.broker.1)).await?;
    let name = ServerName::try_from(ends.broker.0.clone())?;
    let far = TlsConnector::from(Arc::new(client)).connect(name, far).await?;
    let ((near_in, near_out), (far_in, far_out)) = (tokio::io::split(near), tokio::io::split(far));
    tokio::select! {
        ended = meddle(near_in, far_out, counts) => ended,
        ended = meddle(far_in, near_out, counts) => ended,
    }
}

/// Passes packets on; of messages every third is delivered a second time later on, and every fourth is overtaken by the next.
async fn meddle(
    mut from: impl AsyncRead + Unpin + Send + 'static,
    mut to: impl AsyncWrite + Unpin,
    counts: &Counts,
) -> anyhow::Result<()> {
    let (sender, mut packets) = mpsc::channel(16);
    // Read apart, as a wait that is given up must not lose half a packet.
    let reading = tokio::spawn(async move {
        while let Ok(packet) = read_packet(&mut from).await {
            if sender.send(packet).await.is_err() {
                return;
            }
        }
    });
    let (mut messages, mut own_id) = (0u64, OWN_IDS);
    let mut held: Option<Packet> = None;
    let mut copies: VecDeque<Packet> = VecDeque::new();
    loop {
        let idle = held.is_none() && copies.is_empty();
        let packet = tokio::select! {
            packet = packets.recv() => packet,
            () = tokio::time::sleep(HELD), if !idle => {
                for late in held.take().into_iter().chain(copies.drain(..)) {
                    to.write_all(&late.bytes).await?;
                }
                to.flush().await?;
                continue;
            }
        };
        let Some(packet) = packet else { break };
        match (packet.kind(), packet.packet_id()) {
            (PUBACK, Some(id)) if id >= OWN_IDS => continue,
            (PUBLISH, Some(_)) if !counts.is_resting.load(Ordering::Relaxed) => {
                messages += 1;
                if messages.is_multiple_of(3) {
                    own_id = own_id.checked_add(1).unwrap_or(OWN_IDS);
                    copies.push_back(packet.again(own_id));
                    counts.repeated.fetch_add(1, Ordering::Relaxed);
                    counts.repeated_chunks.fetch_add(u64::from(packet.is_chunk()), Ordering::Relaxed);
                }
                if messages.is_multiple_of(4) && held.is_none() {
                    held = Some(packet);
                    continue;
                }
                to.write_all(&packet.bytes).await?;
                if let Some(late) = held.take() {
                    to.write_all(&late.bytes).await?;
                    counts.overtaken.fetch_add(1, Ordering::Relaxed);
                }
                if copies.len() > 2
                    && let Some(late) = copies.pop_front()
                {
                    to.write_all(&late.bytes).await?;
                }
            }
            _ => to.write_all(&packet.bytes).await?,
        }
        to.flush().await?;
    }
    reading.abort();
    Ok(())
}

/// One packet of MQTT 3.1.1.
struct Packet {
    bytes: Vec<u8>,
    /// Where what follows the length begins.
    body_at: usize,
}

async fn read_packet(from: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<Packet> {
    let mut bytes = vec![from.read_u8().await?];
    let mut length = 0usize;
    for place in 0..4 {
        let byte = from.read_u8().await?;
        bytes.push(byte);
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            break;
        }
    }
    ensure!(length <= LARGEST_PACKET_BYTES, "a packet of {length} bytes");
    let body_at = bytes.len();
    bytes.resize(body_at + length, 0);
    from.read_exact(&mut bytes[body_at..]).await?;
    Ok(Packet { bytes, body_at })
}

impl Packet {
    fn kind(&self) -> u8 {
        self.bytes[0] >> 4
    }

    fn id_at(&self) -> Option<usize> {
        match self.kind() {
            PUBACK => Some(self.body_at),
            PUBLISH if self.bytes[0] & 0b110 != 0 => {
                let topic = self.bytes.get(self.body_at..self.body_at + 2)?;
                Some(self.body_at + 2 + usize::from(u16::from_be_bytes([topic[0], topic[1]])))
            }
            _ => None,
        }
    }

    fn packet_id(&self) -> Option<u16> {
        let at = self.id_at()?;
        self.bytes.get(at..at + 2).map(|id| u16::from_be_bytes([id[0], id[1]]))
    }

    /// Whether a chunk is published.
    fn is_chunk(&self) -> bool {
        let topic = self.id_at().and_then(|end| self.bytes.get(self.body_at..end));
        self.kind() == PUBLISH && topic.is_some_and(|topic| topic.ends_with(b"/down/chunk"))
    }

    /// The same message once more, as `id`.
    fn again(&self, id: u16) -> Self {
        let mut bytes = self.bytes.clone();
        if let Some(place) = self.id_at().and_then(|at| bytes.get_mut(at..at + 2)) {
            place.copy_from_slice(&id.to_be_bytes());
        }
        Self { bytes, body_at: self.body_at }
    }
}
