//! A network link that can be cut and made bad: a TCP relay on loopback.
//!
//! What passes through it stays encrypted end to end. A relay cannot lose a segment, so loss is played as TCP shows it to those above:
//! everything behind a lost segment waits until it has come again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// A TCP segment on Ethernet, in bytes.
const SEGMENT_BYTES: usize = 1_460;
/// Bytes read at once where nothing limits the rate.
const PIECE_BYTES: usize = 16 * 1024;
/// Pieces under way in each direction.
const PIECES: usize = 256;
/// How long a lost segment holds up what is behind it: a fast retransmission; and where that is lost as well, twice that and so on.
const RETRANSMISSION: Duration = Duration::from_millis(20);

/// What is wrong with a link, in both directions. Nothing, by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// How long everything takes on the way.
    pub delay: Duration,
    /// How much passes in a second, in bits.
    pub rate_bits_per_s: Option<u64>,
    /// The share of segments that are lost, in percent.
    pub loss_percent: u8,
    /// Connections are reset once they have lasted this long.
    pub reset_every: Option<Duration>,
    /// For how long nothing moves, and how long it moves before that.
    pub stalls: Option<(Duration, Duration)>,
}

/// What has passed through a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passed {
    /// Connections made.
    pub connections: u64,
    /// Bytes to the device.
    pub down_bytes: u64,
    /// Bytes from the device.
    pub up_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    down_bytes: AtomicU64,
    up_bytes: AtomicU64,
}

/// A relay to one address. While it is cut, connections break and new ones are closed at once.
#[derive(Debug)]
pub struct Link {
    /// Where to connect instead of the real address.
    pub address: SocketAddr,
    up: Arc<watch::Sender<bool>>,
    faults: Arc<watch::Sender<Faults>>,
    forgotten: Arc<watch::Sender<u64>>,
    counters: Arc<Counters>,
    task: tokio::task::JoinHandle<()>,
}

impl Link {
    /// Opens a relay to `target`, `host:port`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn open(target: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port for a link")?;
        let address = listener.local_addr()?;
        let (up, faults) = (Arc::new(watch::Sender::new(true)), Arc::new(watch::Sender::new(Faults::default())));
        let (forgotten, counters) = (Arc::new(watch::Sender::new(0)), Arc::<Counters>::default());
        let (is_up, now, forgetting, counting) =
            (Arc::clone(&up), Arc::clone(&faults), Arc::clone(&forgotten), Arc::clone(&counters));
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if !*is_up.borrow() {
                    continue;
                }
                let number = counting.connections.fetch_add(1, Ordering::Relaxed) + 1;
                let relay = Relay {
                    faults: now.subscribe(),
                    forgotten: forgetting.subscribe(),
                    number,
                    counters: Arc::clone(&counting),
                };
                tokio::spawn(relay.run(near, target.clone(), is_up.subscribe()));
            }
        });
        Ok(Self { address, up, faults, forgotten, counters, task })
    }

    /// Cuts the link.
    pub fn cut(&self) {
        self.up.send_replace(false);
    }

    /// Mends the link.
    pub fn mend(&self) {
        self.up.send_replace(true);
    }

    /// From now on this is wrong with it, for connections that stand as well.
    pub fn suffer(&self, faults: Faults) {
        self.faults.send_replace(faults);
    }

    /// Leaves every connection that stands half open, as a router does that forgot it: both ends may send, and nothing arrives.
    pub fn forget_connections(&self) {
        self.forgotten.send_replace(self.counters.connections.load(Ordering::Relaxed));
    }

    /// What has passed so far.
    #[must_use]
    pub fn passed(&self) -> Passed {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Passed {
            connections: read(&self.counters.connections),
            down_bytes: read(&self.counters.down_bytes),
            up_bytes: read(&self.counters.up_bytes),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection through the link.
struct Relay {
    faults: watch::Receiver<Faults>,
    forgotten: watch::Receiver<u64>,
    number: u64,
    counters: Arc<Counters>,
}

impl Relay {
    async fn run(self, mut near: TcpStream, target: String, mut up: watch::Receiver<bool>) {
        let Ok(mut far) = TcpStream::connect(target).await else { return };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let reset = {
            let ((near_in, near_out), (far_in, far_out)) = (near.split(), far.split());
            let both = async {
                tokio::join!(
                    self.carry(near_in, far_out, &self.counters.up_bytes),
                    self.carry(far_in, near_out, &self.counters.down_bytes),
                )
            };
            tokio::select! {
                _ = both => false,
                _ = up.wait_for(|up| !up) => false,
                () = reset_due(self.faults.clone()) => true,
            }
        };
        if reset {
            // Closed without waiting for anything, so that a reset is sent to both ends.
            let _ = (near.set_zero_linger(), far.set_zero_linger());
        }
    }

    async fn carry(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, passed: &AtomicU64) {
        let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
        let began = Instant::now();
        let reading = async move {
            loop {
                let faults = *self.faults.borrow();
                let mut piece = vec![0; faults.piece_bytes()];
                match from.read(&mut piece).await {
                    Ok(bytes) if bytes > 0 => piece.truncate(bytes),
                    Ok(_) | Err(_) => return,
                }
                if sender.send((Instant::now() + faults.delay, piece)).await.is_err() {
                    return;
                }
            }
        };
        let writing = async {
            let mut luck = self.number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            while let Some((at, piece)) = pieces.recv().await {
                tokio::time::sleep_until(at).await;
                let faults = *self.faults.borrow();
                tokio::time::sleep(faults.toll(piece.len(), began.elapsed(), &mut luck)).await;
                if *self.forgotten.borrow() >= self.number {
                    continue;
                }
                if to.write_all(&piece).await.is_err() {
                    return;
                }
                passed.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            if *self.forgotten.borrow() >= self.number {
                // Nobody tells the other end that this one has gone.
                std::future::pending::<()>().await;
            }
            let _ = to.shutdown().await;
        };
        tokio::join!(reading, writing);
    }
}

impl Faults {
    fn piece_bytes(&self) -> usize {
        match self.rate_bits_per_s {
            // A twentieth of a second.
            Some(rate) => usize::try_from(rate / 160).unwrap_or(PIECE_BYTES).clamp(64, PIECE_BYTES),
            None if self.loss_percent > 0 => SEGMENT_BYTES,
            None => PIECE_BYTES,
        }
    }

    /// How long a piece of `bytes` takes besides the delay, on a connection that has stood for `stood`.
    fn toll(&self, bytes: usize, stood: Duration, luck: &mut u64) -> Duration {
        let mut toll = Duration::ZERO;
        if let Some(rate) = self.rate_bits_per_s {
            toll += Duration::from_secs_f64(bytes as f64 * 8.0 / rate.max(1) as f64);
        }
        let mut wait = RETRANSMISSION;
        while self.loss_percent > 0 && next(luck) % 100 < u64::from(self.loss_percent) {
            toll += wait;
            wait *= 2;
        }
        if let Some((stalled, moving)) = self.stalls {
            let period_ms = (stalled + moving).as_millis().max(1);
            let at_ms = stood.as_millis() % period_ms;
            if at_ms >= moving.as_millis() {
                toll += Duration::from_millis(u64::try_from(period_ms - at_ms).unwrap_or_default());
            }
        }
        toll
    }
}

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33
}

async fn reset_due(mut faults: watch::Receiver<Faults>) {
    let began = Instant::now();
    loop {
        let every = faults.borrow_and_update().reset_every;
        let due = async {
            match every {
                Some(every) => tokio::time::sleep_until(began + every).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => return,
            changed = faults.changed() => if changed.is_err() {
                std::future::pending::<()>().await;
            },
        }
    }
}
