//! What the service manager is told (`Type=notify`); without one, nothing happens.

use std::convert::Infallible;

use sd_notify::NotifyState;

/// Tells that the start is over, with a line of status.
pub(crate) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells that the end has begun.
pub(crate) fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Tells that all is well for as long as it is, where the service manager watches; never ends.
pub(crate) async fn stay_alive(all_is_well: impl Fn() -> bool) -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        if all_is_well() {
            send(&[NotifyState::Watchdog]);
        }
        tokio::time::sleep(limit / 3).await;
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
