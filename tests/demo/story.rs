//! The story: three versions of a model come to a fleet; one of them must go back.
//!
//! Every step ends with something that was observed from outside, through the command line or a device's own inference
//! endpoint; what was not observed fails the story.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_shared::rollout::{DeviceProgress, Outcome, RolloutStatus, RolloutView, Verdict};
use muster_tests::binaries::Binaries;
use muster_tests::device::DeviceSetup;
use muster_tests::fixtures;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::traffic::Traffic;
use muster_tests::wait;

use crate::stage::Stage;

/// Owners of the demo's devices let samples be collected, so that anybody can try it.
const SAMPLES: &str = "[samples]\nallow = true\nflush-ms = 1000\nreport-ms = 1000\n";
const SITES: [&str; 3] = ["lyon", "osaka", "quito"];
/// A window closes often, so that the story takes minutes where a real fleet takes hours.
const WINDOW_MS: u64 = 1_000;
/// What the controller may send per second, so that a download lasts long enough to be interrupted.
const SEND_BYTES_PER_S: u64 = 3_000_000;
/// Enough to be interrupted.
const BUNDLE_BYTES: usize = 3_000_000;
const PACE: [&str; 14] = [
    "--soak",
    "3s",
    "--max-duration",
    "90s",
    "--probation",
    "2s",
    "--min-reports",
    "6",
    "--min-requests",
    "150",
    "--max-latency-p99-ratio",
    "50",
    "--max-failures",
    "0",
];

/// Who is on stage when the story is told.
pub(crate) struct Cast {
    pub(crate) fleet: Fleet,
    /// The rollout that was rolled back.
    pub(crate) bad_rollout: String,
    /// Keeps the applications sending.
    _traffic: Traffic,
}

pub(crate) async fn tell(stage: &Stage, binaries: &Binaries, folder: &Path, devices: usize) -> anyhow::Result<Cast> {
    let mut fleet = found_and_enrol(stage, binaries, folder, devices).await?;
    let mut traffic = Traffic::new(fixtures::held_out()?, Duration::from_millis(40));
    for device in &fleet.devices {
        traffic.start(&device.id, &device.inference_url);
    }
    first_version(stage, &fleet, &traffic).await?;
    better_version(stage, &mut fleet, &traffic).await?;
    let bad_rollout = bad_version(stage, &fleet, &traffic).await?;
    nobody_waited(stage, &traffic, devices)?;
    Ok(Cast { fleet, bad_rollout, _traffic: traffic })
}

async fn found_and_enrol(stage: &Stage, binaries: &Binaries, folder: &Path, devices: usize) -> anyhow::Result<Fleet> {
    stage.step("A controller starts; root and release keys are made offline, and devices enrol");
    let settings = format!(
        "[content]\nsend-bytes-per-s = {SEND_BYTES_PER_S}\n[rollout]\ntick-ms = 250\n[alerts]\ninterval-ms = 5000"
    );
    let mut fleet = Fleet::found(binaries, folder, &settings).await?;
    stage.observed(&format!("controller at {}, its own CA made", fleet.controller.endpoints.api_url));
    let token = fleet.enrolment_token(devices).await?;
    let bar = stage.bar(devices as u64, "devices enrolled");
    for index in 0..devices {
        let id = format!("{}-{}", SITES[index % SITES.len()], index / SITES.len() + 1);
        let setup = DeviceSetup { id: &id, token: &token, window_ms: WINDOW_MS, settings: SAMPLES };
        let cuttable = id == "quito-2";
        fleet.add_device(&setup, cuttable).await?;
        let site = format!("site={}", SITES[index % SITES.len()]);
        wait::until(&format!("{id} is enrolled"), PATIENCE, async || {
            Ok(fleet.operator.try_run(&["device", "label", &id, &site]).await?.status.filter(|status| *status == 0))
        })
        .await?;
        bar.inc(1);
    }
    fleet.wait_online(devices).await?;
    bar.finish_and_clear();
    stage
        .observed(&format!("{devices} agents, each a process with a key and certificate of its own, online over mTLS"));
    Ok(fleet)
}

/// Shows how far the devices are until the rollout stands at `status`.
async fn follow(stage: &Stage, fleet: &Fleet, id: &str, status: RolloutStatus) -> anyhow::Result<RolloutView> {
    let bar = stage.bar(fleet.devices.len() as u64, "");
    let watching = async {
        loop {
            if let Ok(view) = fleet.operator.rollout(id).await {
                let wanted = if view.status == RolloutStatus::RollingBack {
                    DeviceProgress::Back
                } else {
                    DeviceProgress::Committed
                };
                let done = view.waves.iter().flat_map(|w| w.devices.values()).filter(|p| **p == wanted).count();
                let waiting = view.waiting.first().map(ToString::to_string).unwrap_or_default();
                bar.set_position(done as u64);
                bar.set_message(format!("{} wave {}: {waiting}", view.status, view.current_wave + 1));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let view = tokio::select! {
        view = fleet.wait_rollout(id, status) => view,
        () = watching => anyhow::bail!("watching {id} ended"),
    };
    bar.finish_and_clear();
    view
}

fn show_verdict(stage: &Stage, verdict: &Verdict) {
    stage.detail(&format!("wave {} {}: {}", verdict.wave + 1, verdict.outcome, verdict.summary));
    for check in &verdict.checks {
        stage.detail(&format!("  {:<12} {}", check.outcome.to_string(), check.sentence));
    }
}

/// Waits until every device of `traffic` answers with `version`.
async fn all_answer(traffic: &Traffic, devices: &[&str], version: &str) -> anyhow::Result<()> {
    wait::until(&format!("applications are answered by {version}"), PATIENCE, async || {
        let seen = traffic.seen();
        let all = devices.iter().all(|id| seen.get(*id).and_then(|s| s.last_version.as_deref()) == Some(version));
        Ok(all.then_some(()))
    })
    .await
}

fn accuracy(traffic: &Traffic, version: &str) -> f64 {
    let (answers, right) = traffic
        .seen()
        .values()
        .filter_map(|seen| seen.by_version.get(version))
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    right as f64 / answers.max(1) as f64
}

async fn first_version(stage: &Stage, fleet: &Fleet, traffic: &Traffic) -> anyhow::Result<()> {
    stage.step("digits 1.0.0 is built, signed offline, pushed, and rolled out to all");
    fleet.release_digits("1.0.0").await?;
    let id = fleet
        .roll_out(&[&["--bundle", "digits@1.0.0", "--selector", "*", "--wave", "100%"], &PACE[..]].concat())
        .await?;
    let view = follow(stage, fleet, &id, RolloutStatus::Completed).await?;
    let ids: Vec<&str> = fleet.devices.iter().map(|device| device.id.as_str()).collect();
    all_answer(traffic, &ids, "1.0.0").await?;
    for id in ids {
        traffic.expect(id, true);
    }
    view.verdicts.iter().for_each(|verdict| show_verdict(stage, verdict));
    stage.observed(&format!(
        "every device committed 1.0.0 after its own health check and answers real images, {:.0} % of them rightly",
        100.0 * accuracy(traffic, "1.0.0")
    ));
    Ok(())
}

async fn better_version(stage: &Stage, fleet: &mut Fleet, traffic: &Traffic) -> anyhow::Result<()> {
    stage.step(
        "digits 1.1.0, a better model, goes to one site first, then in waves; one device is cut off, one is killed",
    );
    fleet.release_large_digits("1.1.0", BUNDLE_BYTES).await?;
    fleet.device("quito-2")?.link()?.cut();
    wait::until("quito-2 is offline", PATIENCE, async || {
        Ok((!fleet.operator.device("quito-2").await?.online).then_some(()))
    })
    .await?;
    stage.observed("quito-2 is cut off from the network; its application is still answered");
    let client = reqwest::Client::new();
    let chunks_before = fleet.device("lyon-2")?.metric(&client, CHUNKS_RECEIVED).await?;
    let waves = ["--wave", "100%:site=lyon", "--wave", "60%", "--wave", "100%"];
    let id =
        fleet.roll_out(&[&["--bundle", "digits@1.1.0", "--selector", "*"], &waves[..], &PACE[..]].concat()).await?;
    kill_in_mid_download(stage, fleet, traffic, "lyon-2", chunks_before).await?;
    let view = follow(stage, fleet, &id, RolloutStatus::Completed).await?;
    view.verdicts.iter().for_each(|verdict| show_verdict(stage, verdict));
    ensure!(
        view.verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Successful).count() == 3,
        "three waves were to pass their gates"
    );
    stage.observed("lyon passed its gate, then two more waves: 1.1.0 is promoted");

    let waiting = fleet.operator.device("quito-2").await?;
    let behind = waiting.reported.and_then(|reported| reported.committed).context("quito-2 has a model")?;
    ensure!(behind.bundle.version.to_string() == "1.0.0", "quito-2 cannot have got 1.1.0 while it was cut off");
    fleet.device("quito-2")?.link()?.mend();
    fleet.wait_committed("quito-2", "1.1.0").await?;
    stage.observed("quito-2 is back on the network and caught up by itself");
    let ids: Vec<&str> = fleet.devices.iter().map(|device| device.id.as_str()).collect();
    all_answer(traffic, &ids, "1.1.0").await?;
    let (old, new) = (accuracy(traffic, "1.0.0"), accuracy(traffic, "1.1.0"));
    ensure!(new > old, "1.1.0 answers {new} rightly, 1.0.0 answered {old}");
    stage.observed(&format!("live accuracy went from {:.1} % to {:.1} %", 100.0 * old, 100.0 * new));
    Ok(())
}

const CHUNKS_RECEIVED: &str = "muster_agent_chunks_received_total";
const CHUNKS_REPEATED: u32 = 8;

async fn kill_in_mid_download(
    stage: &Stage,
    fleet: &mut Fleet,
    traffic: &Traffic,
    id: &str,
    before: f64,
) -> anyhow::Result<()> {
    let client = reqwest::Client::new();
    let device = fleet.device(id)?;
    // A good part is there, and a good part is missing.
    let first_life = wait::until("a download is under way", PATIENCE, async || {
        let fetched = device.metric(&client, CHUNKS_RECEIVED).await? - before;
        Ok((fetched >= 9.0).then_some(fetched))
    })
    .await?;
    traffic.expect(id, false);
    fleet.device(id)?.kill()?;
    fleet.device(id)?.restart().await?;
    traffic_returns(traffic, id).await?;
    fleet.wait_committed(id, "1.1.0").await?;
    let second_life = fleet.device(id)?.metric(&client, CHUNKS_RECEIVED).await?;
    let update = fleet.operator.device(id).await?.reported.context("the device has reported")?.update;
    let total = update.chunks_total;
    ensure!(
        first_life < f64::from(total),
        "{id} had fetched {first_life} of {total} chunks: it was not killed in mid-download"
    );
    ensure!(
        first_life + second_life <= f64::from(total + CHUNKS_REPEATED),
        "{id} fetched {first_life} and then {second_life} of {total} chunks: more than those in flight came twice"
    );
    stage.observed(&format!(
        "{id} got SIGKILL after {first_life} of {total} chunks; it came back serving, fetched {second_life} more, and committed"
    ));
    Ok(())
}

async fn traffic_returns(traffic: &Traffic, id: &str) -> anyhow::Result<()> {
    let answered = traffic.seen_by(id).answered;
    wait::until(&format!("{id} answers again"), PATIENCE, async || {
        Ok((traffic.seen_by(id).answered > answered).then_some(()))
    })
    .await?;
    traffic.expect(id, true);
    Ok(())
}

async fn bad_version(stage: &Stage, fleet: &Fleet, traffic: &Traffic) -> anyhow::Result<String> {
    stage.step("digits 1.2.0 passes its golden examples, and is bad in the field");
    fleet.release_digits("1.2.0").await?;
    let waves = ["--wave", "100%:site=lyon", "--wave", "60%", "--wave", "100%"];
    let id =
        fleet.roll_out(&[&["--bundle", "digits@1.2.0", "--selector", "*"], &waves[..], &PACE[..]].concat()).await?;
    let view = follow(stage, fleet, &id, RolloutStatus::RolledBack).await?;
    let verdict = view.verdicts.last().context("a rollback rests on a verdict")?;
    ensure!(verdict.outcome == Outcome::Failed, "the last verdict is {}", verdict.outcome);
    show_verdict(stage, verdict);
    let reached: BTreeMap<String, u64> = traffic
        .seen()
        .into_iter()
        .filter_map(|(device, seen)| Some((device, seen.by_version.get("1.2.0")?.0)))
        .collect();
    ensure!(!reached.is_empty(), "no application was answered by 1.2.0");
    ensure!(reached.keys().all(|device| device.starts_with("lyon-")), "1.2.0 got past its canary: {reached:?}");
    let ids: Vec<&str> = fleet.devices.iter().map(|device| device.id.as_str()).collect();
    all_answer(traffic, &ids, "1.1.0").await?;
    stage.observed(&format!(
        "the gate stopped 1.2.0 at {} devices of lyon ({:.0} % of its answers there were right); the rest of the fleet never saw it",
        reached.len(),
        100.0 * accuracy(traffic, "1.2.0")
    ));
    stage.observed("every canary went back to 1.1.0 without anybody at the keyboard");
    Ok(id)
}

fn nobody_waited(stage: &Stage, traffic: &Traffic, devices: usize) -> anyhow::Result<()> {
    stage.step("What the applications saw");
    let seen = traffic.seen();
    ensure!(seen.len() == devices, "{} of {devices} devices were asked", seen.len());
    let failures: Vec<String> = seen
        .iter()
        .filter(|(_, seen)| seen.failed > 0)
        .map(|(id, seen)| format!("{id}: {} ({})", seen.failed, seen.last_failure.as_deref().unwrap_or("")))
        .collect();
    ensure!(failures.is_empty(), "requests were not answered: {}", failures.join("; "));
    let answered: u64 = seen.values().map(|seen| seen.answered).sum();
    stage.observed(&format!(
        "{answered} requests on {devices} devices through three updates, and none without an answer"
    ));
    Ok(())
}
