//! Who a device is: it can be shut out and let in again, and it renews its certificate by itself.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_shared::api::DeviceView;
use muster_shared::rollout::RolloutStatus;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::traffic::Traffic;
use muster_tests::wait;

use crate::stage::{self, PACE};

/// Waits until the device's log says `what` after its first `from` bytes, and gives where the log ends.
async fn logged(fleet: &mut Fleet, device: &str, what: &str, from: usize) -> anyhow::Result<usize> {
    let path = fleet.device(device)?.folder().join("agent.log");
    wait::until(&format!("{device} says {what:?}"), PATIENCE, async || {
        let log = std::fs::read(&path)?;
        let said = String::from_utf8_lossy(log.get(from..).unwrap_or_default()).contains(what);
        Ok(said.then_some(log.len()))
    })
    .await
}

fn log_length(fleet: &mut Fleet, device: &str) -> anyhow::Result<usize> {
    Ok(std::fs::read(fleet.device(device)?.folder().join("agent.log"))?.len())
}

/// Waits until the application of `device` has been answered `more` times from now on.
async fn answered(traffic: &Traffic, device: &str, more: u64) -> anyhow::Result<()> {
    let before = traffic.seen_by(device).answered;
    wait::until(&format!("{device} answers"), PATIENCE, async || {
        Ok((traffic.seen_by(device).answered >= before + more).then_some(()))
    })
    .await
}

async fn kinds(fleet: &Fleet, device: &str) -> anyhow::Result<Vec<String>> {
    let events = fleet.operator.events().await?;
    let of_device = events.into_iter().filter(|event| event.device.as_ref().is_some_and(|id| id.as_str() == device));
    Ok(of_device.map(|event| event.kind).collect())
}

#[test]
fn a_revoked_device_is_cut_off_at_once_serves_on_and_comes_back_when_it_is_reinstated() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 2).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        let (from, other) = (log_length(&mut fleet, "dev-1")?, log_length(&mut fleet, "dev-2")?);

        let revoke = ["device", "revoke", "dev-1", "--reason", "stolen"];
        let revoked: DeviceView = fleet.operator.json(&revoke).await?;
        let revocation = revoked.revoked.context("it is revoked")?;
        ensure!(revocation.reason.as_deref() == Some("stolen") && revocation.by == "admin", "{revocation:?}");
        // The limit is a tenth of what a lost connection would take to be noticed, and far above what the cut takes.
        wait::until("dev-1 is cut off", Duration::from_secs(1), async || {
            Ok((!fleet.operator.device("dev-1").await?.online).then_some(()))
        })
        .await?;
        let from = logged(&mut fleet, "dev-1", "no connection to the broker", from).await?;
        ensure!(kinds(&fleet, "dev-1").await?.last().is_some_and(|kind| kind == "device.revoked"));

        // It tries to come back and is refused, which is no matter of its application's.
        let refused = async |fleet: &Fleet, from: usize| {
            let log = fleet.controller.folder().join("controller.log");
            wait::until("dev-1 is refused", PATIENCE, async || {
                let text = std::fs::read(&log)?;
                let said = String::from_utf8_lossy(text.get(from..).unwrap_or_default()).contains("connection refused");
                Ok(said.then_some(text.len()))
            })
            .await
        };
        let controller_log = refused(&fleet, 0).await?;
        answered(&traffic, "dev-1", 20).await?;

        // A rollout passes it over: neither waited for nor counted.
        fleet.release_digits("1.1.0").await?;
        let create = [&["--bundle", "digits@1.1.0", "--selector", "*", "--wave", "100%"], &PACE[..]].concat();
        let rollout = fleet.roll_out(&create).await?;
        let view = fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        let reached: Vec<&str> = view.waves[0].devices.keys().map(|id| id.as_str()).collect();
        ensure!(reached == ["dev-2"] && view.waiting.is_empty(), "{view:?}");

        // Nor does it come back to a controller that was killed and knows nothing but its store.
        fleet.controller.crash_and_restart().await?;
        refused(&fleet, controller_log).await?;
        fleet.wait_online(1).await?;
        let shown = fleet.operator.device("dev-1").await?;
        ensure!(!shown.online && shown.revoked == Some(revocation), "{shown:?}");
        ensure!(fleet.operator.run(&["device", "list"]).await?.contains("revoked"));
        // Started anew it serves all the same.
        traffic.expect("dev-1", false);
        fleet.device("dev-1")?.kill()?;
        fleet.device("dev-1")?.restart().await?;
        answered(&traffic, "dev-1", 1).await?;
        traffic.expect("dev-1", true);
        ensure!(!fleet.operator.device("dev-1").await?.online);

        fleet.operator.run(&["device", "reinstate", "dev-1"]).await?;
        fleet.wait_online(2).await?;
        logged(&mut fleet, "dev-1", "connected to the broker", from).await?;
        let rollout = fleet.roll_out(&create).await?;
        fleet.wait_committed("dev-1", "1.1.0").await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        ensure!(kinds(&fleet, "dev-1").await?.iter().any(|kind| kind == "device.reinstated"));
        let log = std::fs::read(fleet.device("dev-2")?.folder().join("agent.log"))?;
        let lost = String::from_utf8_lossy(&log[other..]).matches("no connection to the broker").count();
        ensure!(lost <= 2, "dev-2 lost its connection for more than the controller's crash: {lost} times");
        stage::ensure_all_answered(&traffic)
    });
}
