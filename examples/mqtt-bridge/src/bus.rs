//! One connection to the sensors' broker, from its beginning to its end.
//!
//! Nothing is acknowledged before the broker has the answer, so the broker keeps what is under way, and gives it again after a
//! restart of either. It is asked to send no more than `max-in-flight` at once (the receive maximum of MQTT 5): what comes on top waits
//! there. Mosquitto 2.0.11 sends more all the same when many wait; at `max-held` the bridge answers what it has, lets the rest go
//! unacknowledged, and connects again, whereupon the broker sends that once more. A message that was answered right before a connection
//! broke may be answered twice; none is left without.
//! What was published with QoS 0 no broker keeps: it is answered like the rest, and is lost where more than `max-held` are here already.
//! After a connection nothing is kept, for the numbers of its messages mean nothing in the next.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use muster_example_client::ask::Agent;
use muster_example_client::backoff;
use muster_example_client::verdict::verdict;
use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAck, PubAckReason, Publish, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, ClientError, ConnectionError, Event, MqttOptions};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::decide::{Decision, decide, question, refuse};

/// Bytes of a packet around its payload, the topic among them, at most.
const AROUND_BYTES: u32 = 1024;
/// Events of the connection that may wait, for a moment, to be looked at.
const EVENTS: usize = 16;
/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusError {
    /// It broke, or did not come about.
    #[error("the connection to the broker: {0}")]
    Connection(#[from] Box<ConnectionError>),
    /// More is to be sent than there is room for: the broker does not take it off.
    #[error("the broker takes nothing off: {0}")]
    Client(#[from] Box<ClientError>),
    /// The broker does not let the bridge hear inputs.
    #[error("the broker does not let this client subscribe to {0:?}")]
    Subscription(String),
    /// The broker does not let the bridge publish.
    #[error("the broker does not take answers: {0:?}. May this client publish them?")]
    Refused(PubAckReason),
    /// The task that drives the connection ended.
    #[error("the connection ended")]
    Ended,
}

/// Says once when inputs have to wait, and once when they no longer have to.
#[derive(Debug, Default)]
pub(crate) struct HeldUp(Mutex<Option<Instant>>);

impl HeldUp {
    fn waits(&self, reason: &str) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_none() {
            *since = Some(Instant::now());
            eprintln!("held up, the broker keeps what comes: {reason}");
        }
    }

    fn goes_on(&self) {
        if let Some(since) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            eprintln!("goes on after {} s", since.elapsed().as_secs());
        }
    }
}

fn options(config: &Config) -> MqttOptions {
    let bus = &config.bus;
    let mut options = MqttOptions::new(&bus.client_id, &bus.host, bus.port);
    options
        .set_keep_alive(Duration::from_secs(bus.keep_alive_s.into()))
        .set_clean_start(false)
        .set_manual_acks(true)
        .set_session_expiry_interval(Some(bus.session_expiry_s))
        .set_receive_maximum(Some(config.agent.max_in_flight))
        .set_max_packet_size(Some(bus.max_input_bytes + AROUND_BYTES));
    options
}

/// An input whose answer can be published, or why there is none.
struct Settled {
    input: Publish,
    topic: String,
    payload: String,
}

/// Asks until it is known what to publish for the input.
async fn settle(config: &Config, agent: &Agent, held_up: &HeldUp, input: Publish) -> Settled {
    let from = String::from_utf8_lossy(&input.topic).into_owned();
    let asked = question(config, &input.payload);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let decision = match &asked {
            Ok(asked) => {
                let outcome = agent.ask(asked.body.clone()).await;
                decide(config, &from, asked.id.as_deref(), verdict(&outcome))
            }
            Err(reason) => refuse(config, &from, None, reason.clone()),
        };
        match decision {
            Decision::RetryLater { reason } => {
                held_up.waits(&reason);
                tokio::time::sleep(backoff::pause(attempt, backoff::chance())).await;
            }
            Decision::Publish { topic, payload } => {
                held_up.goes_on();
                return Settled { input, topic, payload };
            }
            Decision::Drop { topic, payload, reason } => {
                eprintln!("an input of {from} has no answer: {reason}");
                return Settled { input, topic, payload };
            }
        }
    }
}

/// The connection's own task: it has to turn whatever else is waited for. It ends with the connection or its aborted handle.
async fn drive(mut connection: rumqttc::v5::EventLoop, events: mpsc::Sender<Result<Event, Box<ConnectionError>>>) {
    loop {
        let event = connection.poll().await.map_err(Box::new);
        let is_over = event.is_err();
        if events.send(event).await.is_err() || is_over {
            return;
        }
    }
}

/// Whether the broker keeps this input until it is acknowledged.
fn is_kept_by_the_broker(input: &Publish) -> bool {
    input.qos != QoS::AtMostOnce
}

/// What is under way on one connection.
struct Session<'a> {
    config: &'a Config,
    client: AsyncClient,
    /// Inputs whose answers were handed over to be sent, in that order.
    handed_over: VecDeque<Publish>,
    /// Inputs whose answers were sent, by the number of the answer.
    sent: BTreeMap<u16, Publish>,
    /// Acknowledgements that were handed over and not sent yet.
    unsent_acks: usize,
}

/// How a connection ended that did not break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The bridge was told to stop.
    Stopped,
    /// The broker has more that it has to send again.
    Overflow,
}

impl Session<'_> {
    /// Takes note of `event`; gives the input that it brings.
    fn note(&mut self, event: Event) -> Result<Option<Publish>, BusError> {
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                self.client.try_subscribe(&self.config.bus.inputs, QoS::AtLeastOnce).map_err(Box::new)?;
            }
            Event::Incoming(Packet::SubAck(answer)) => {
                if answer.return_codes.iter().any(|code| !matches!(code, SubscribeReasonCode::Success(_))) {
                    return Err(BusError::Subscription(self.config.bus.inputs.clone()));
                }
                eprintln!("takes inputs from {}", self.config.bus.inputs);
            }
            Event::Incoming(Packet::Publish(input)) => return Ok(Some(input)),
            Event::Incoming(Packet::PubAck(PubAck { pkid, reason, .. })) => {
                if !matches!(reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) {
                    return Err(BusError::Refused(reason));
                }
                // What came with QoS 0 wants no acknowledgement, and none is sent for it.
                if let Some(input) = self.sent.remove(&pkid).filter(is_kept_by_the_broker) {
                    self.client.try_ack(&input).map_err(Box::new)?;
                    self.unsent_acks += 1;
                }
            }
            Event::Outgoing(Outgoing::PubAck(_)) => self.unsent_acks = self.unsent_acks.saturating_sub(1),
            Event::Outgoing(Outgoing::Publish(pkid)) => {
                if let Some(input) = self.handed_over.pop_front() {
                    self.sent.insert(pkid, input);
                }
            }
            Event::Incoming(_) | Event::Outgoing(_) => {}
        }
        Ok(None)
    }

    /// Hands over what is to be published for an input.
    fn publish(&mut self, settled: Settled) -> Result<(), BusError> {
        let Settled { input, topic, payload } = settled;
        self.client.try_publish(topic, QoS::AtLeastOnce, false, payload).map_err(Box::new)?;
        self.handed_over.push_back(input);
        Ok(())
    }

    /// Inputs whose answers, or whose acknowledgements, are under way to the broker.
    fn under_way(&self) -> usize {
        self.handed_over.len() + self.sent.len() + self.unsent_acks
    }
}

/// Answers inputs over one connection until it breaks, or until `stop`.
///
/// # Errors
/// [`BusError`] when the connection breaks or the broker refuses.
pub(crate) async fn serve(
    config: &Config,
    agent: &Agent,
    held_up: &HeldUp,
    stop: impl Future<Output = ()>,
) -> Result<End, BusError> {
    let (limit, most) = (usize::from(config.agent.max_in_flight), usize::from(config.agent.max_held));
    // An answer and an acknowledgement for each, and the subscription.
    let (client, connection) = AsyncClient::new(options(config), most * 2 + 2);
    let (sender, mut events) = mpsc::channel(EVENTS);
    // Its only member: it is aborted with this function.
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(drive(connection, sender));
    let mut session = Session { config, client, handed_over: VecDeque::new(), sent: BTreeMap::new(), unsent_acks: 0 };
    let mut waiting = VecDeque::new();
    let mut asking = FuturesOrdered::new();
    let (mut overflow, mut lost) = (false, 0_u64);
    let mut stop = std::pin::pin!(stop);
    let end = loop {
        tokio::select! {
            event = events.recv() => {
                let input = session.note(event.ok_or(BusError::Ended)??)?;
                if let Some(input) = input.filter(|_| !overflow) {
                    let is_full = waiting.len() + asking.len() + session.under_way() >= most;
                    if is_full && !is_kept_by_the_broker(&input) {
                        lost += 1;
                        if lost.is_power_of_two() {
                            eprintln!("{lost} lost so far of the inputs with QoS 0: {most} are here, and no broker keeps them");
                        }
                    } else if is_full {
                        overflow = true;
                        eprintln!("the broker sends more than was asked for; {most} are answered first, the rest again after that");
                    } else {
                        waiting.push_back(input);
                    }
                }
            }
            // In their order, so that acknowledgements are, too, as MQTT wants it.
            Some(settled) = asking.next(), if !asking.is_empty() => session.publish(settled)?,
            () = &mut stop => break End::Stopped,
        }
        while asking.len() < limit
            && let Some(input) = waiting.pop_front()
        {
            asking.push_back(settle(config, agent, held_up, input));
        }
        if overflow && asking.is_empty() && session.under_way() == 0 {
            break End::Overflow;
        }
    };
    // What is not acknowledged stays with the broker.
    if session.client.try_disconnect().is_ok() {
        let _ = tokio::time::timeout(GOODBYE, async { while events.recv().await.is_some_and(|e| e.is_ok()) {} }).await;
    }
    Ok(end)
}
