//! What the service manager is told (`Type=notify`); without one, nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// Tells that the start is over, with a line of status.
pub(crate) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells that the end has begun.
pub(crate) fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Tells that the configuration is read again; [`ready`] ends that.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(_) => send(&[NotifyState::Reloading]),
    }
}

/// After how long without [`alive`] the service manager takes the agent for dead; none where it does not watch.
pub(crate) fn watchdog_limit() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Tells that all is well.
pub(crate) fn alive() {
    send(&[NotifyState::Watchdog]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
