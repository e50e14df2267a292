//! Having devices renew their certificates once the authorities have changed.
//!
//! A device is told when that happens, whenever it connects, and now and then as long as it goes on as before: a message may be lost. Once it
//! has heard, it goes on trying by itself.

use bytes::Bytes;
use muster_shared::ids::DeviceId;
use muster_shared::messages::Command;
use muster_shared::topics::{Down, Topic};

use crate::clock;
use crate::pki::AuthoritiesVersion;
use crate::state::App;

/// Tells every connected device, as far as it was not told lately, whose certificate is from before the last change.
pub(super) async fn prompt_renewals(app: &App) {
    let version = app.pki.version();
    if version == AuthoritiesVersion::FIRST {
        return;
    }
    for device in app.fleet.online_with_authorities_before(version) {
        if app.schedule.may_prompt(&device, version.number(), clock::now_ms()) {
            prompt(app, &device).await;
        }
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
