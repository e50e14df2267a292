//! When, how fast and over which links a device fetches: as it is configured, and as a rollout says.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use muster_shared::messages::{HeldBack, UpdateState};
use muster_shared::rollout::{RolloutStatus, Waiting};
use muster_tests::device::DeviceSetup;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::traffic::Traffic;
use muster_tests::wait;

use crate::stage::{self, EASY};

const CAP_BYTES_PER_S: u64 = 150_000;

/// One device with these lines in its section `[delivery]`.
async fn fleet(
    binaries: &muster_tests::binaries::Binaries,
    folder: &std::path::Path,
    delivery: &str,
) -> anyhow::Result<Fleet> {
    let mut fleet = Fleet::found(binaries, folder, "[rollout]\ntick-ms = 100\n").await?;
    let token = fleet.enrolment_token(1).await?;
    let settings = format!("[delivery]\n{delivery}\n");
    fleet.add_device(&DeviceSetup { id: "dev-1", token: &token, window_ms: 500, settings: &settings }, true).await?;
    fleet.wait_online(1).await?;
    Ok(fleet)
}

/// Starts the device's agent again after `before` has become `after` in its configuration.
async fn reconfigure(fleet: &mut Fleet, traffic: &Traffic, before: &str, after: &str) -> anyhow::Result<()> {
    let device = fleet.device("dev-1")?;
    let path = device.folder().join("agent.toml");
    let config = std::fs::read_to_string(&path)?;
    ensure!(config.contains(before), "{before:?} is not in {config}");
    std::fs::write(&path, config.replace(before, after))?;
    traffic.expect("dev-1", false);
    device.process_mut().stop().await?;
    device.restart().await?;
    Ok(())
}

async fn received(fleet: &mut Fleet) -> anyhow::Result<f64> {
    fleet.device("dev-1")?.metric(&reqwest::Client::new(), "muster_agent_chunks_received_total").await
}

/// A rollout of `bundle` with `more` flags.
async fn roll_out(fleet: &Fleet, bundle: &str, more: &[&str]) -> anyhow::Result<String> {
    fleet.roll_out(&[&["--bundle", bundle, "--selector", "*"], &EASY[..], more].concat()).await
}

/// Waits until the device says that it is held back by `expected`, and makes sure that operators read it everywhere.
async fn ensure_held(fleet: &mut Fleet, id: &str, expected: HeldBack) -> anyhow::Result<()> {
    wait::until(&format!("dev-1 says {expected}"), PATIENCE, async || {
        let report = fleet.operator.device("dev-1").await?.reported;
        Ok(report.filter(|report| report.update.held_back == Some(expected)).map(|_| ()))
    })
    .await?;
    let view = fleet.operator.rollout(id).await?;
    ensure!(view.status == RolloutStatus::Running, "{}", view.status_reason);
    let devices = [("dev-1".parse()?, expected)].into();
    ensure!(view.waiting.contains(&Waiting::HeldBack { devices }), "{:?}", view.waiting);
    let shown = fleet.operator.run(&["rollout", "show", id]).await?;
    ensure!(shown.contains(&format!("not fetching now: dev-1 ({expected})")), "{shown}");
    let listed = fleet.operator.run(&["device", "list"]).await?;
    ensure!(listed.contains(", held back"), "{listed}");
    let shown = fleet.operator.run(&["device", "show", "dev-1"]).await?;
    ensure!(shown.contains(&format!("waiting: {expected}")), "{shown}");
    ensure!(received(fleet).await? == 0.0, "something was fetched all the same");
    Ok(())
}

/// Quiet hours from an hour ago until in five hours, wherever midnight is, as a line of configuration.
pub(crate) fn quiet_now() -> anyhow::Result<String> {
    let now = minutes_of_day()?;
    Ok(format!("quiet-hours = [\"{}-{}\"]", hour(now + 1_380), hour(now + 300)))
}

fn minutes_of_day() -> anyhow::Result<u16> {
    let minutes = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 60 % 1_440;
    Ok(u16::try_from(minutes)?)
}

fn hour(minute: u16) -> String {
    format!("{:02}:{:02}", minute / 60 % 24, minute % 60)
}

#[test]
fn a_device_in_quiet_hours_says_so_fetches_when_it_may_and_goes_back_at_any_hour() {
    stage::run(async |binaries, folder| {
        let now = minutes_of_day()?;
        let quiet = quiet_now()?;
        let held = HeldBack::QuietHours { until_minute: (now + 300) % 1_440 };
        let mut fleet = fleet(&binaries, &folder, &format!("time-zone = \"UTC\"\n{quiet}")).await?;
        let traffic = stage::traffic(&fleet)?;
        // A device that serves nothing does not wait for its first bundle.
        fleet.release_digits("1.0.0").await?;
        let first = roll_out(&fleet, "digits@1.0.0", &[]).await?;
        fleet.wait_rollout(&first, RolloutStatus::Completed).await?;
        reconfigure(&mut fleet, &traffic, &quiet, &quiet).await?;
        fleet.release_large_digits("1.1.0", 500_000).await?;
        let waits = roll_out(&fleet, "digits@1.1.0", &[]).await?;
        ensure_held(&mut fleet, &waits, held).await?;

        // Overridden by a rollout that cannot wait.
        fleet.operator.run(&["rollout", "abort", &waits]).await?;
        let urgent = roll_out(&fleet, "digits@1.1.0", &["--ignore-quiet-hours"]).await?;
        fleet.wait_rollout(&urgent, RolloutStatus::Completed).await?;

        // Held back again, until the hours are over.
        reconfigure(&mut fleet, &traffic, &quiet, &quiet).await?;
        fleet.release_digits("1.2.0").await?;
        let next = roll_out(&fleet, "digits@1.2.0", &[]).await?;
        ensure_held(&mut fleet, &next, held).await?;
        reconfigure(&mut fleet, &traffic, &quiet, "quiet-hours = []").await?;
        fleet.wait_rollout(&next, RolloutStatus::Completed).await?;
        fleet.wait_committed("dev-1", "1.2.0").await?;
        let report = fleet.operator.device("dev-1").await?.reported.context("no report")?;
        ensure!((report.update.state, report.update.held_back) == (UpdateState::Committed, None), "{report:?}");

        // The bundle before is on the device: nothing holds it back.
        reconfigure(&mut fleet, &traffic, "quiet-hours = []", &format!("{quiet}\nmetered = \"yes\"")).await?;
        fleet.operator.run(&["rollout", "rollback", &next]).await?;
        fleet.wait_rollout(&next, RolloutStatus::RolledBack).await?;
        fleet.wait_committed("dev-1", "1.1.0").await?;
        ensure!(received(&mut fleet).await? == 0.0, "going back fetched something");
        Ok(())
    });
}

#[test]
fn a_metered_link_carries_what_is_configured_and_what_a_rollout_says() {
    stage::run(async |binaries, folder| {
        let metered = "metered = \"yes\"\nmetered-telemetry = \"none\"";
        let mut fleet = fleet(&binaries, &folder, metered).await?;
        let traffic = stage::traffic(&fleet)?;
        fleet.release_digits("1.0.0").await?;
        let waits = roll_out(&fleet, "digits@1.0.0", &[]).await?;
        ensure_held(&mut fleet, &waits, HeldBack::MeteredLink).await?;
        fleet.operator.run(&["rollout", "abort", &waits]).await?;
        let pays = roll_out(&fleet, "digits@1.0.0", &["--metered", "allowed"]).await?;
        fleet.wait_committed("dev-1", "1.0.0").await?;

        // Telemetry waits for another link; what the device does is known all the same.
        let http = reqwest::Client::new();
        wait::until("windows wait", PATIENCE, async || {
            let waiting = fleet.devices[0].metric(&http, "muster_agent_outbox_messages").await?;
            Ok((waiting >= 6.0).then_some(()))
        })
        .await?;
        let stored = "muster_controller_ingest_messages_total{kind=\"telemetry\",outcome=\"stored\"}";
        ensure!(fleet.controller.metric(stored).await? == 0.0, "telemetry travelled on a metered link");
        ensure!(fleet.operator.rollout(&pays).await?.status == RolloutStatus::Running);
        reconfigure(&mut fleet, &traffic, metered, "metered = \"no\"").await?;
        fleet.wait_rollout(&pays, RolloutStatus::Completed).await?;

        // A rollout that must not cost anything waits where the device itself would not.
        let configured = "metered = \"yes\"\nmetered-chunks = true";
        reconfigure(&mut fleet, &traffic, "metered = \"no\"", configured).await?;
        fleet.release_digits("1.1.0").await?;
        let free = roll_out(&fleet, "digits@1.1.0", &["--metered", "never"]).await?;
        ensure_held(&mut fleet, &free, HeldBack::MeteredLink).await
    });
}

#[test]
fn a_cap_on_bytes_per_second_is_kept_by_what_passes_the_link() {
    stage::run(async |binaries, folder| {
        let mut fleet = fleet(&binaries, &folder, "max-download-bytes-per-s = 10000000").await?;
        // Nothing makes noise less on the way.
        fleet.release_large_digits("1.0.0", 1_200_000).await?;
        let before = fleet.devices[0].link()?.passed().down_bytes;
        let began = Instant::now();
        let cap = CAP_BYTES_PER_S.to_string();
        roll_out(&fleet, "digits@1.0.0", &["--max-download-bytes-per-s", &cap]).await?;
        // Besides chunks: the assignment with its manifest, acknowledgements, and what encryption adds.
        let (burst, besides) = (CAP_BYTES_PER_S as f64, 120_000.0);
        let passed = wait::until("the bundle is there", PATIENCE, async || {
            let passed = fleet.devices[0].link()?.passed().down_bytes - before;
            // Looked at afterwards: whatever came late makes the bound wider and never narrower.
            let most = burst + besides + began.elapsed().as_secs_f64() * CAP_BYTES_PER_S as f64;
            ensure!(passed as f64 <= most, "{passed} bytes have passed, where {most} may");
            let report = fleet.operator.device("dev-1").await?.reported;
            let done = report.is_some_and(|report| report.update.state.is_final() && report.committed.is_some());
            Ok(done.then_some(passed))
        })
        .await?;
        ensure!(passed > 1_200_000, "{passed} bytes are no bundle");
        ensure!(received(&mut fleet).await? > 20.0);
        Ok(())
    });
}
