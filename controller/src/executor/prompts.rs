//! Having devices renew their certificates once the authorities have changed.
//!
//! A device is told once when that happens, and whenever it connects; it goes on trying by itself.

use bytes::Bytes;
use muster_shared::ids::DeviceId;
use muster_shared::messages::Command;
use muster_shared::topics::{Down, Topic};

use crate::state::App;

/// Tells every connected device whose certificate is from before the last change.
pub(crate) async fn prompt_renewals(app: &App) {
    for device in app.fleet.online_with_authorities_before(app.pki.version()) {
        prompt(app, &device).await;
    }
}

/// Tells `device`, which has just connected, if its certificate is from before the last change.
pub(super) async fn prompt_if_behind(app: &App, device: &DeviceId) {
    if app.fleet.authorities_of(device).is_some_and(|version| version < app.pki.version()) {
        prompt(app, device).await;
    }
}

async fn prompt(app: &App, device: &DeviceId) {
    let Ok(command) = serde_json::to_vec(&Command::Renew) else { return };
    let topic = Topic::down(device, Down::Command);
    if let Err(error) = app.broker.publish(&topic, Bytes::from(command)).await {
        tracing::warn!(%device, %error, "a device was not told to renew its certificate; it is when it connects again");
    }
}
