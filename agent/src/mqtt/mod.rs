//! The link to the controller: one MQTT connection after another, none of which anything depends on.
//!
//! Every connection starts from nothing: a fresh client, a clean session, everything unacknowledged sent again. So what a
//! client library or a broker forgets or confuses ends with the connection. What is said on it is [`connection`]'s
//! matter; here it is decided when the next one is tried.

mod connection;
mod resend;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use bytes::Bytes;
use muster_agent_core::backoff::{Backoff, Pauses};
use muster_shared::feedback::FeedbackReceipt;
use muster_shared::messages::ChunkRequest;
use muster_shared::topics::Down;
use tokio::sync::{mpsc, watch};

use self::connection::Ended;
pub(crate) use self::state::{LinkNews, LinkState};
use crate::config::{BrokerConfig, Config};
use crate::identity::{Identity, IdentityStore};
use crate::metered::Metered;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::time::{EffectiveTime, Steady, jitter};

/// A connection on which the controller was heard and that lasted this long was a good one: the next pause is short again.
const GOOD_MS: u64 = 10_000;
/// One that lasted this long was of use: the next pause is not longer than it was. One that was shorter was not: a controller that
/// fails as soon as it is reached must not have its whole fleet at its door.
const USEFUL_MS: u64 = 2_000;

/// Something the device was told, besides acknowledgements.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) kind: Down,
    pub(crate) payload: Bytes,
}

/// Everything a link needs.
pub(crate) struct Link {
    pub(crate) identity: Identity,
    pub(crate) store: IdentityStore,
    pub(crate) time: EffectiveTime,
    /// What the next connection is made with.
    pub(crate) config: BrokerConfig,
    /// Where its settings come from, and those of what waits for a link that is not metered.
    pub(crate) settings: watch::Receiver<Arc<Config>>,
    pub(crate) outbox: Outbox,
    pub(crate) metrics: Metrics,
    /// Where what the device is told goes. It must never make the link wait.
    pub(crate) inbox: Inbox,
    /// Chunks wanted.
    pub(crate) requests: mpsc::Receiver<ChunkRequest>,
    /// What came of labels from the centre.
    pub(crate) receipts: mpsc::Receiver<FeedbackReceipt>,
    pub(crate) state: LinkState,
    pub(crate) metered: Metered,
    /// Whether the controller was heard on the last connection.
    pub(crate) did_good: bool,
    /// Changes whenever the identity has another certificate.
    pub(crate) renewed: watch::Receiver<u64>,
}

/// The way into the updater.
pub(crate) struct Inbox {
    offer: Box<dyn Fn(Option<Told>) -> bool + Send + Sync>,
    passed_over: PassedOver,
}

/// Messages nobody took. Whoever is at the broker can send any number of them, and a log is kept on flash.
#[derive(Debug, Default)]
struct PassedOver(AtomicU64);

impl PassedOver {
    /// Counts one more. Gives the count whenever it has doubled, which is worth a line in the log.
    fn count(&self) -> Option<u64> {
        let messages = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        messages.is_power_of_two().then_some(messages)
    }
}

impl Inbox {
    /// An inbox that turns what comes into `T` and puts it into a bounded channel; nothing stands for "look again".
    pub(crate) fn new<T: Send + 'static>(
        sender: SyncSender<T>,
        wrap: impl Fn(Option<Told>) -> T + Send + Sync + 'static,
    ) -> Self {
        let offer = move |told| match sender.try_send(wrap(told)) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        };
        Self { offer: Box::new(offer), passed_over: PassedOver::default() }
    }

    fn deliver(&self, told: Told) {
        let kind = told.kind;
        if (self.offer)(Some(told)) {
            return;
        }
        if let Some(messages) = self.passed_over.count() {
            // Whatever it was comes again: chunks are asked for again, assignments are re-issued.
            tracing::warn!(kind = kind.as_str(), messages, "the agent is busy: a message was passed over");
        }
    }

    fn wake(&self) {
        let _ = (self.offer)(None);
    }
}

/// Keeps the link up until `stop` becomes true; then sends what waits, says goodbye and returns.
pub(crate) async fn run(mut link: Link, mut stop: watch::Receiver<bool>) {
    let mut backoff = backoff(&link.config);
    let mut told = None;
    while !*stop.borrow() {
        if link.settings.has_changed().is_ok_and(|changed| changed) {
            let next = Arc::clone(&link.settings.borrow_and_update());
            link.metered = Metered::new(&next.delivery);
            if next.broker != link.config {
                link.config = next.broker.clone();
                backoff = self::backoff(&link.config);
            }
        }
        link.state.heartbeat().beat(connection::CONNECT_MS);
        let started = Steady::start();
        let ended = connection::run(&mut link, &mut stop).await;
        link.state.set(false);
        link.metrics.set_broker_connected(false);
        link.state.heartbeat().beat(0);
        link.inbox.wake();
        let reason = match ended {
            Ended::Stopped => break,
            // The controller is there, so there is nothing to wait for.
            Ended::Renewed => continue,
            Ended::Lost(reason) => reason,
        };
        let pause_ms = match started.now_ms() {
            // However long it took to fail, it did nobody good.
            _ if !link.did_good => backoff.failed(jitter()),
            GOOD_MS.. => {
                backoff.succeeded();
                backoff.failed(jitter())
            }
            lasted_ms @ USEFUL_MS.. => backoff.cut_off(lasted_ms, jitter()),
            _ => backoff.failed(jitter()),
        };
        link.state.lost(&reason, pause_ms);
        let device = &link.identity.device;
        // Weeks without a network are one thing that happened, not thousands.
        if told.as_ref() == Some(&reason) {
            tracing::debug!(%device, %reason, pause_ms, "still no connection to the broker");
        } else {
            tracing::warn!(%device, %reason, pause_ms, "no connection to the broker");
            told = Some(reason);
        }
        // A handle of its own leaves the change to be seen above.
        let mut settings = link.settings.clone();
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(pause_ms)) => {}
            _ = stop.changed() => {}
            // Whoever corrects an address shall not wait for the old one's turn.
            Ok(()) = settings.changed() => {}
        }
    }
    link.state.heartbeat().end();
}

fn backoff(config: &BrokerConfig) -> Backoff {
    Backoff::new(Pauses { first_ms: config.reconnect_min_ms, longest_ms: config.reconnect_max_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_nobody_takes_are_told_more_and_more_seldom() {
        let passed_over = PassedOver::default();
        let told: Vec<u64> = (0..1_000).filter_map(|_| passed_over.count()).collect();
        assert_eq!(told, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
    }
}
