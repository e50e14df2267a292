//! Who a device is: it can be shut out and let in again, and it renews its certificate by itself.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_shared::api::DeviceView;
use muster_shared::messages::UpdateState;
use muster_shared::rollout::RolloutStatus;
use muster_tests::binaries::Binaries;
use muster_tests::device::DeviceSetup;
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

/// Waits until the controller has signed `more` further certificates for `device`.
async fn renewed(fleet: &Fleet, device: &str, more: usize) -> anyhow::Result<()> {
    let count = async || {
        anyhow::Ok(kinds(fleet, device).await?.iter().filter(|kind| kind.as_str() == "device.renewed").count())
    };
    let before = count().await?;
    wait::until(&format!("{device} renews {more} times"), PATIENCE, async || {
        Ok((count().await? >= before + more).then_some(()))
    })
    .await
}

/// The certificate in force on `device`, as it lies there.
fn certificate(fleet: &mut Fleet, device: &str) -> anyhow::Result<Vec<u8>> {
    let folder = fleet.device(device)?.folder().join("data/identity");
    let renewed = folder.join("renewed.pem");
    Ok(std::fs::read(if renewed.exists() { renewed } else { folder.join("device.pem") })?)
}

/// A fleet whose certificates last for seconds.
async fn short_lived(binaries: &Binaries, folder: &Path, devices: usize) -> anyhow::Result<Fleet> {
    let settings = "[rollout]\ntick-ms = 100\n[pki]\ndevice-certificate-valid-for-ms = 6000\n[content]\nsend-bytes-per-s = 400000\nburst-bytes = 131072\n";
    let mut fleet = Fleet::found(binaries, folder, settings).await?;
    let token = fleet.enrolment_token(devices).await?;
    for index in 1..=devices {
        let id = format!("dev-{index}");
        let setup = DeviceSetup { id: &id, token: &token, window_ms: 500, settings: "" };
        fleet.add_device(&setup, true).await?;
    }
    fleet.wait_online(devices).await?;
    Ok(fleet)
}

#[test]
fn certificates_are_renewed_again_and_again_while_a_bundle_comes_and_requests_are_answered() {
    stage::run(async |binaries, folder| {
        let mut fleet = short_lived(&binaries, &folder, 2).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        let process = fleet.device("dev-1")?.process_id();
        let first = certificate(&mut fleet, "dev-1")?;
        let from = log_length(&mut fleet, "dev-1")?;
        // Slow enough to be under way for several lives of a certificate.
        fleet.release_large_digits("1.1.0", 96).await?;
        let pace = ["--soak", "1s", "--max-duration", "120s", "--probation", "1s", "--max-latency-p99-ratio", "100"];
        let create = [&["--bundle", "digits@1.1.0", "--selector", "*", "--wave", "100%"], &pace[..]].concat();
        let rollout = fleet.roll_out(&create).await?;
        wait::until("the bundle is on its way", PATIENCE, async || {
            let reported = fleet.operator.device("dev-1").await?.reported;
            Ok(reported.filter(|reported| reported.update.state == UpdateState::Fetching).map(|_| ()))
        })
        .await?;
        renewed(&fleet, "dev-1", 2).await?;
        fleet.wait_committed("dev-1", "1.1.0").await?;
        fleet.wait_committed("dev-2", "1.1.0").await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        renewed(&fleet, "dev-1", 1).await?;
        // The connection was made anew with the new certificate, and by nobody but the agent that was there all the time.
        logged(&mut fleet, "dev-1", "connected to the broker", from).await?;
        ensure!(certificate(&mut fleet, "dev-1")? != first);
        let device = fleet.device("dev-1")?;
        device.process_mut().ensure_running()?;
        ensure!(device.process_id() == process);
        ensure!(fleet.operator.device("dev-1").await?.reported.is_some_and(|reported| reported.dropped_messages == 0));
        let log = std::fs::read(fleet.device("dev-1")?.folder().join("agent.log"))?;
        let lost = String::from_utf8_lossy(&log[from..]).matches("no connection to the broker").count();
        ensure!(lost == 0, "the connection was lost {lost} times");

        // Revoked, it gets no other, although it goes on asking; reinstated, it does.
        let from = log_length(&mut fleet, "dev-2")?;
        fleet.operator.run(&["device", "revoke", "dev-2"]).await?;
        logged(&mut fleet, "dev-2", "the device is revoked", from).await?;
        let before = certificate(&mut fleet, "dev-2")?;
        ensure!(kinds(&fleet, "dev-2").await?.last().is_some_and(|kind| kind == "device.revoked"));
        ensure!(certificate(&mut fleet, "dev-2")? == before);
        fleet.operator.run(&["device", "reinstate", "dev-2"]).await?;
        renewed(&fleet, "dev-2", 1).await?;
        fleet.wait_online(2).await?;
        stage::ensure_all_answered(&traffic)
    });
}

#[test]
fn an_agent_killed_while_it_renews_comes_back_as_itself() {
    stage::run(async |binaries, folder| {
        let mut fleet = short_lived(&binaries, &folder, 1).await?;
        for round in 0u64..6 {
            // Killed when the controller has signed, which the agent may or may not have heard and stored, each time a little later.
            renewed(&fleet, "dev-1", 1).await?;
            let began = std::time::Instant::now();
            wait::until("the moment has come", PATIENCE, async || {
                Ok((began.elapsed() >= Duration::from_millis(round * 15)).then_some(()))
            })
            .await?;
            fleet.device("dev-1")?.kill()?;
            fleet.wait_online(0).await?;
            fleet.device("dev-1")?.restart().await?;
            fleet.wait_online(1).await?;
        }
        renewed(&fleet, "dev-1", 2).await
    });
}
