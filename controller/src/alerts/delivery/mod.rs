//! Messages about alerts, on their way to receivers.
//!
//! A message is stored in the batch that changes its alerts, and removed once its receiver has taken it: it arrives at least once,
//! and carries a key by which a receiver knows one that comes twice. One receiver gets its messages in order, so that an end never
//! overtakes its beginning. How long a receiver is away costs its own messages only.

mod forms;
mod queues;
mod receiver;

use std::sync::Arc;
use std::time::Duration;

use muster_alerts::retry_wait_ms;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;
use crate::config::ReceiverKind;
use crate::events::{ACTOR_CONTROLLER, NewEvent};
use crate::state::App;
use crate::store::{Expect, Records, Table};

use queues::Delivery;
pub(super) use queues::Queues;
pub(super) use receiver::Receiver;
pub(crate) use receiver::ReceiverError;

use receiver::SendError;

/// Brings one receiver its messages until the controller stops.
pub(super) async fn serve(app: Arc<App>, receiver: Arc<Receiver>, mut shutdown: watch::Receiver<bool>) {
    let looking_after = async {
        let mut failures = 0_u32;
        // Alertmanager forgets what it is not told again, whatever else there is to tell.
        let every =
            (receiver.kind() == ReceiverKind::Alertmanager).then(|| Duration::from_millis(receiver.resend_ms()));
        let mut repeat_at = every.map(|every| Instant::now() + every);
        let mut try_at = Instant::now();
        loop {
            if let (Some(at), Some(every)) = (repeat_at, every)
                && at <= Instant::now()
            {
                tell_again(&app, &receiver).await;
                repeat_at = Some(Instant::now() + every);
            }
            let Some((key, delivery)) = app.alerts.queues.first(receiver.name()) else {
                until(repeat_at, app.alerts.queues.wait(receiver.name())).await;
                continue;
            };
            if try_at > Instant::now() {
                until(repeat_at, tokio::time::sleep_until(try_at)).await;
                continue;
            }
            let wait_ms = match receiver.send(&app, &delivery, clock::now_ms()).await {
                Ok(()) => {
                    failures = 0;
                    app.metrics.alert_delivered(receiver.name(), "delivered");
                    remove(&app, &receiver, &key, None).await
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    after_failure(&app, &receiver, (&key, &delivery), &error, failures).await
                }
            };
            try_at = Instant::now() + Duration::from_millis(wait_ms);
        }
    };
    tokio::select! {
        () = looking_after => {}
        _ = shutdown.wait_for(|stop| *stop) => {}
    }
}

/// Waits for `event`, though not beyond `at`.
async fn until(at: Option<Instant>, event: impl Future<Output = ()>) {
    match at {
        Some(at) => _ = tokio::time::timeout_at(at, event).await,
        None => event.await,
    }
}

/// Tells what fires.
async fn tell_again(app: &App, receiver: &Receiver) {
    let firing = app.alerts.list(|alert| receiver.repeats(alert)).await;
    if let Err(error) = receiver.send_firing(app, &firing, clock::now_ms()).await {
        tracing::debug!(receiver = receiver.name(), %error, "what fires was not told again");
    }
}

/// How long to wait before the next try, in milliseconds.
async fn after_failure(
    app: &App,
    receiver: &Receiver,
    (key, delivery): (&str, &Delivery),
    error: &SendError,
    failures: u32,
) -> u64 {
    let config = &app.config.alerts;
    let age_ms = clock::now_ms().saturating_sub(delivery.created_ms);
    if error.is_final() || age_ms >= config.give_up_after_ms {
        app.metrics.alert_delivered(receiver.name(), "given-up");
        tracing::error!(receiver = receiver.name(), %error, "a message about alerts is given up");
        let why = format!("{}: a message of {} alert(s) was given up: {error}", receiver.name(), delivery.alerts.len());
        return remove(app, receiver, key, Some(why)).await;
    }
    app.metrics.alert_delivered(receiver.name(), "failed");
    // A receiver that is away for a day is not worth a line every five minutes; the API shows it.
    if failures == 1 {
        tracing::warn!(receiver = receiver.name(), %error, "a message about alerts was not taken; trying again");
    }
    let mut random = [0; 8];
    // Without chance the wait is only less spread out.
    let _ = getrandom::fill(&mut random);
    let wait_ms = retry_wait_ms(failures, config.retry_after_ms, config.retry_at_most_ms, u64::from_le_bytes(random));
    error.retry_after_ms().map_or(wait_ms, |asked_ms| asked_ms.clamp(wait_ms, config.retry_at_most_ms.max(wait_ms)))
}

/// Forgets a message. Where the store does not take that, it is tried again after the wait that is given, and the receiver may hear
/// it twice.
async fn remove(app: &App, receiver: &Receiver, key: &str, given_up: Option<String>) -> u64 {
    let mut changes = vec![Records::delete(Table::AlertDeliveries, key, Expect::Anything)];
    let mut held = None;
    if let Some(detail) = given_up {
        let event = NewEvent {
            kind: "alert.delivery-given-up".into(),
            actor: ACTOR_CONTROLLER.into(),
            detail,
            ..NewEvent::default()
        };
        match app.events.prepare(event) {
            Ok((change, hold)) => {
                changes.push(change);
                held = Some(hold);
            }
            Err(error) => tracing::error!(%error, "an event cannot be written"),
        }
    }
    let removed = app.records.commit(changes).await;
    drop(held);
    match removed {
        Ok(()) => {
            app.alerts.queues.remove(receiver.name(), key);
            0
        }
        Err(error) => {
            tracing::error!(receiver = receiver.name(), %error, "a message that was delivered cannot be removed");
            app.config.alerts.retry_after_ms
        }
    }
}
