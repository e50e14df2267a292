//! The controller with many devices: real enrolments, real mTLS connections, and one rollout command to all of them.
//!
//! The devices share the machine with the controller, so what they cost is printed too.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use muster_shared::rollout::{RolloutSpec, RolloutView, WaveSize, WaveSpec};
use muster_shared::selector::Selector;
use muster_tests::binaries::Binaries;
use muster_tests::fleet::{Fleet, PATIENCE};

use crate::crowd::{self, Crowd};
use crate::report::{Table, mebibytes};
use crate::samples::Samples;
use crate::simulated::Fetching;
use crate::stage;
use crate::usage::{self, Memory, Use};

const GOAL_GROWTH_MIB: f64 = 100.0;
const GOAL_REACHED_S: f64 = 2.0;

pub(crate) async fn measure(
    binaries: &Binaries,
    folder: &Path,
    devices: u32,
    window: Duration,
) -> anyhow::Result<Vec<Table>> {
    let fleet = Fleet::found(binaries, folder, "").await?;
    let controller = fleet.controller.process_id();
    let bench = std::process::id();
    let at_start = usage::memory(controller)?;
    fleet.release_digits(stage::VERSION).await?;
    let client = client(&fleet)?;

    let before = usage::spent(controller)?;
    let papers = crowd::enrol(&fleet, &client, devices).await?;
    let enrolling = usage::since(controller, &before)?;
    let enrolled = usage::memory(controller)?;

    let (mut crowd, before, bench_before) =
        (Crowd::gather(papers, Fetching::Never), usage::spent(controller)?, usage::spent(bench)?);
    crowd.wait_known(devices).await?;
    let connecting = usage::since(controller, &before)?;
    let bench_connecting = usage::since(bench, &bench_before)?;
    fleet.wait_online(usize::try_from(devices)?).await?;
    let at_rest = usage::over(controller, window).await?;
    let connected = usage::memory(controller)?;

    let (before, bench_before) = (usage::spent(controller)?, usage::spent(bench)?);
    let command = roll_out(&fleet, &client).await?;
    let reached = crowd.wait_assigned(devices, command.started).await?;
    let rollout = usage::since(controller, &before)?;
    let bench_rollout = usage::since(bench, &bench_before)?;
    let after_rollout = usage::memory(controller)?;
    fleet.operator.run(&["rollout", "abort", &command.id, "--reason", "everything is measured"]).await?;

    let mut memory = Table::new(format!("Controller with {devices} simulated devices over mTLS: memory"));
    memory_rows(&mut memory, "at its start", &at_start, None);
    memory_rows(&mut memory, "a bundle pushed, all enrolled, none connected", &enrolled, Some(&at_start));
    memory_rows(&mut memory, "all connected", &connected, Some(&at_start));
    memory_rows(&mut memory, "all assigned", &after_rollout, Some(&at_start));
    let each = connected.resident_bytes.saturating_sub(enrolled.resident_bytes) / u64::from(devices);
    memory.figure("resident for each connection", each as f64 / 1024.0, "KiB");

    let mut time = Table::new(format!("Controller with {devices} simulated devices over mTLS: time"));
    time.figure("enrolment of all", enrolling.wall.as_secs_f64(), "s");
    time.figure("  enrolments per second", f64::from(devices) / enrolling.wall.as_secs_f64(), "");
    time.figure("connecting all, until the state of each is stored", connecting.wall.as_secs_f64(), "s");
    time.figure("rollout command answered", command.answered.as_secs_f64(), "s");
    time.figure("assignment received by the first", seconds(&reached.times, 0), "s");
    time.figure("assignment received by half", seconds(&reached.times, 50), "s");
    time.figure("assignment received by 99 %", seconds(&reached.times, 99), "s");
    time.goal("assignment received by all", seconds(&reached.times, 100), GOAL_REACHED_S, "s");
    time.figure("assignment with its manifest", reached.payload_bytes as f64 / 1024.0 / f64::from(devices), "KiB");
    time.figure("  of all devices together", mebibytes(reached.payload_bytes), "MiB");
    time.figure("assignments that came more than once", f64::from(crowd.repeated), "");
    time.figure("connections lost on the way", f64::from(crowd.lost), "");
    if let Some(reason) = &crowd.last_lost {
        time.text("  the last one", reason);
    }

    let mut spent = Table::new("Controller: processor and disk".to_owned());
    spent_rows(&mut spent, "enrolment", &enrolling);
    spent_rows(&mut spent, "connecting", &connecting);
    spent.figure("  the simulated devices' own", bench_connecting.cpu.as_secs_f64(), "CPU s");
    spent_rows(&mut spent, &format!("{:.0} s at rest, all connected", at_rest.wall.as_secs_f64()), &at_rest);
    spent.figure("  share of one core", at_rest.cpu_percent(), "%");
    spent_rows(&mut spent, "rollout, until all are reached", &rollout);
    spent.figure("  the simulated devices' own", bench_rollout.cpu.as_secs_f64(), "CPU s");
    let data = usage::folder_bytes(&fleet.controller.folder().join("data"))?;
    spent.figure("data folder afterwards", mebibytes(data), "MiB");
    Ok(vec![memory, time, spent])
}

fn memory_rows(table: &mut Table, when: &str, memory: &Memory, start: Option<&Memory>) {
    table.figure(&format!("resident, {when}"), mebibytes(memory.resident_bytes), "MiB");
    if let Some(start) = start {
        let growth = mebibytes(memory.resident_bytes) - mebibytes(start.resident_bytes);
        table.goal("  above its start", growth, GOAL_GROWTH_MIB, "MiB");
    }
    table.figure(&format!("PSS, {when}"), mebibytes(memory.pss_bytes), "MiB");
}

fn spent_rows(table: &mut Table, when: &str, used: &Use) {
    table.figure(when, used.cpu.as_secs_f64(), "CPU s");
    table.figure("  written to disk", mebibytes(used.written_bytes), "MiB");
}

fn seconds(times: &Samples, percent: usize) -> f64 {
    times.percentile(percent).as_secs_f64()
}

/// A client that trusts this controller's CA alone and has the administrator's token.
///
/// # Errors
/// When the CA's certificate cannot be read.
pub(crate) fn client(fleet: &Fleet) -> anyhow::Result<reqwest::Client> {
    let path = &fleet.controller.endpoints.ca_file;
    let pem = std::fs::read(path).with_context(|| format!("{}", path.display()))?;
    let ca = reqwest::Certificate::from_pem(&pem)?;
    Ok(reqwest::Client::builder().tls_certs_only([ca]).timeout(PATIENCE).build()?)
}

/// A rollout that was asked for.
pub(crate) struct Command {
    pub(crate) id: String,
    pub(crate) started: Instant,
    /// From the request to the answer.
    pub(crate) answered: Duration,
}

/// Asks for a rollout to everybody in one wave, by the API itself: a program's start is not to be measured with it.
///
/// # Errors
/// When the controller refuses.
pub(crate) async fn roll_out(fleet: &Fleet, client: &reqwest::Client) -> anyhow::Result<Command> {
    let wave = WaveSpec::of(WaveSize::Percent(100), 60_000, 3_600_000);
    let spec = RolloutSpec::of(format!("digits@{}", stage::VERSION).parse()?, Selector::all(), vec![wave]);
    let request = client
        .post(format!("{}/api/v1/rollouts", fleet.controller.endpoints.api_url))
        .bearer_auth(&fleet.controller.token)
        .json(&spec);
    let started = Instant::now();
    let answer = request.send().await?;
    let answered = started.elapsed();
    let status = answer.status();
    let body = answer.text().await?;
    ensure!(status.is_success(), "the rollout was refused: {status}: {body}");
    let view: RolloutView = serde_json::from_str(&body).with_context(|| format!("rollouts answered {body}"))?;
    Ok(Command { id: view.id.to_string(), started, answered })
}
