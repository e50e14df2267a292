//! What the parts start from: a controller, and one device that has digits 1.1.0 committed and is left alone.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_tests::binaries::Binaries;
use muster_tests::device::{Device, DeviceSetup};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;

use crate::http::{Connection, Request};

/// The version of digits that is measured.
pub(crate) const VERSION: &str = "1.1.0";
const DEVICE: &str = "bench";
/// As the agent has it by default.
const WINDOW_MS: u64 = 3_600_000;

/// A fleet of one device that runs nothing yet.
///
/// # Errors
/// When it does not come up.
pub(crate) async fn one_device(binaries: &Binaries, folder: &Path) -> anyhow::Result<Fleet> {
    one_device_with(binaries, folder, WINDOW_MS).await
}

/// [`one_device`] with monitoring windows of this length.
///
/// # Errors
/// When it does not come up.
pub(crate) async fn one_device_with(binaries: &Binaries, folder: &Path, window_ms: u64) -> anyhow::Result<Fleet> {
    let mut fleet = Fleet::found(binaries, folder, "").await?;
    let token = fleet.enrolment_token(1).await?;
    let setup = DeviceSetup { id: DEVICE, token: &token, window_ms, settings: "" };
    fleet.add_device(&setup, false).await?;
    fleet.wait_online(1).await?;
    Ok(fleet)
}

/// The device of [`one_device`].
///
/// # Errors
/// When there is none.
pub(crate) fn device(fleet: &mut Fleet) -> anyhow::Result<&mut Device> {
    fleet.device(DEVICE)
}

/// Brings digits to the device, waits until it has committed, and ends the rollout so that nothing further happens.
///
/// # Errors
/// When it does not get there.
pub(crate) async fn commit_digits(fleet: &Fleet) -> anyhow::Result<()> {
    fleet.release_digits(VERSION).await?;
    commit(fleet, VERSION).await
}

/// Brings a version that was released to the device, as [`commit_digits`] does.
///
/// # Errors
/// When it does not get there.
pub(crate) async fn commit(fleet: &Fleet, version: &str) -> anyhow::Result<()> {
    let bundle = format!("digits@{version}");
    let pace = ["--soak", "100ms", "--max-duration", "10m", "--probation", "100ms"];
    let id = fleet.roll_out(&[&["--bundle", &bundle, "--selector", "*"], &pace[..]].concat()).await?;
    fleet.wait_committed(DEVICE, version).await?;
    fleet.operator.run(&["rollout", "abort", &id, "--reason", "the device is measured now"]).await?;
    Ok(())
}

/// Stops the device in order and starts it again; returns once it serves digits, where it has them.
///
/// # Errors
/// When it does not come back.
pub(crate) async fn restart(device: &mut Device, with_model: bool) -> anyhow::Result<()> {
    device.process_mut().stop().await?;
    device.restart().await?;
    if with_model {
        wait_ready(device).await?;
    }
    Ok(())
}

/// Waits until the device answers requests for digits.
///
/// # Errors
/// When it does not.
pub(crate) async fn wait_ready(device: &Device) -> anyhow::Result<()> {
    let address = address(device)?;
    wait::until("the device serves digits", PATIENCE, async || {
        let mut connection = Connection::open(address, Duration::from_secs(5))?;
        let answer = connection.exchange(&Request::get("/v2/models/digits/ready"))?;
        Ok((answer.status == 200).then_some(()))
    })
    .await
}

/// Where the device serves.
///
/// # Errors
/// When its URL is of another form than `http://address:port`.
pub(crate) fn address(device: &Device) -> anyhow::Result<SocketAddr> {
    let address = device.inference_url.strip_prefix("http://").unwrap_or_default();
    ensure!(!address.is_empty(), "{} is not a plain URL", device.inference_url);
    address.parse().with_context(|| device.inference_url.clone())
}
