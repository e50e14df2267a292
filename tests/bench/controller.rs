//! The controller with many devices: real enrolments, real mTLS connections, and one rollout command to all of them.
//!
//! The devices share the machine with the controller, so what they cost is printed too.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Limits, RolloutSpec, RolloutView, WaveSize, WaveSpec};
use muster_shared::selector::Selector;
use muster_shared::token::EnrolmentToken;
use muster_shared::trust::WatchPolicy;
use muster_tests::binaries::Binaries;
use muster_tests::fleet::{Fleet, PATIENCE};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::report::{Table, mebibytes};
use crate::samples::Samples;
use crate::simulated::{self, Note, Papers};
use crate::stage;
use crate::usage::{self, Memory, Use};

const GOAL_GROWTH_MIB: f64 = 100.0;
const GOAL_REACHED_S: f64 = 2.0;
/// Requests to enrol that are under way at once.
const ENROLLING: usize = 8;
/// Devices that connect at once.
const CONNECTING: usize = 64;

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
    let papers = enrol(&fleet, &client, devices).await?;
    let enrolling = usage::since(controller, &before)?;
    let enrolled = usage::memory(controller)?;

    let (mut crowd, before, bench_before) = (Crowd::gather(papers), usage::spent(controller)?, usage::spent(bench)?);
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
fn client(fleet: &Fleet) -> anyhow::Result<reqwest::Client> {
    let path = &fleet.controller.endpoints.ca_file;
    let pem = std::fs::read(path).with_context(|| format!("{}", path.display()))?;
    let ca = reqwest::Certificate::from_pem(&pem)?;
    Ok(reqwest::Client::builder().tls_certs_only([ca]).timeout(PATIENCE).build()?)
}

async fn enrol(fleet: &Fleet, client: &reqwest::Client, devices: u32) -> anyhow::Result<Vec<Papers>> {
    let token: EnrolmentToken = fleet.enrolment_token(usize::try_from(devices)?).await?.parse()?;
    stream::iter(1..=devices)
        .map(|number| {
            let token = &token;
            async move { simulated::enrol(client, token, DeviceId::new(format!("sim-{number:06}"))?).await }
        })
        .buffer_unordered(ENROLLING)
        .try_collect()
        .await
}

/// A rollout that was asked for.
struct Command {
    id: String,
    started: Instant,
    /// From the request to the answer.
    answered: Duration,
}

/// Asks for a rollout to everybody in one wave, by the API itself: a program's start is not to be measured with it.
async fn roll_out(fleet: &Fleet, client: &reqwest::Client) -> anyhow::Result<Command> {
    let wave = WaveSpec { size: WaveSize::Percent(100), selector: None, soak_ms: 60_000, max_duration_ms: 3_600_000 };
    let spec = RolloutSpec {
        bundle: format!("digits@{}", stage::VERSION).parse()?,
        selector: Selector::all(),
        waves: vec![wave],
        limits: Limits::default(),
        watch: WatchPolicy::default(),
    };
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

/// When assignments came, and how large they were together.
struct Reached {
    times: Samples,
    payload_bytes: u64,
}

/// All simulated devices. They end when it is dropped.
struct Crowd {
    notes: mpsc::UnboundedReceiver<Note>,
    repeated: u32,
    lost: u32,
    last_lost: Option<String>,
    /// Holds the devices; a dropped set ends its tasks.
    _devices: JoinSet<()>,
}

impl Crowd {
    fn gather(papers: Vec<Papers>) -> Self {
        let (sender, notes) = mpsc::unbounded_channel();
        let connecting = Arc::new(Semaphore::new(CONNECTING));
        let mut devices = JoinSet::new();
        for one in papers {
            devices.spawn(simulated::live(one, Arc::clone(&connecting), sender.clone()));
        }
        Self { notes, repeated: 0, lost: 0, last_lost: None, _devices: devices }
    }

    /// The next note that `pick` takes; notes that only count are counted.
    async fn next<T>(&mut self, what: &str, pick: impl Fn(&Note) -> Option<T>) -> anyhow::Result<T> {
        loop {
            let note = tokio::time::timeout(PATIENCE, self.notes.recv())
                .await
                .with_context(|| {
                    let lost = self.last_lost.as_deref().unwrap_or("none lost its connection");
                    format!(
                        "no simulated device {what} for {} s; {} connections were lost: {lost}",
                        PATIENCE.as_secs(),
                        self.lost
                    )
                })?
                .context("every simulated device has ended")?;
            if let Some(picked) = pick(&note) {
                return Ok(picked);
            }
            match note {
                Note::Known | Note::Assigned { .. } => {}
                Note::AssignedAgain => self.repeated += 1,
                Note::Lost { reason } => {
                    self.lost += 1;
                    self.last_lost = Some(reason);
                }
                Note::GaveUp { reason } => bail!("a simulated device gave up: {reason}"),
            }
        }
    }

    /// Waits until the controller has stored the state of each.
    async fn wait_known(&mut self, devices: u32) -> anyhow::Result<()> {
        for _ in 0..devices {
            self.next("became known", |note| matches!(note, Note::Known).then_some(())).await?;
        }
        Ok(())
    }

    /// Waits until each has an assignment, and gives the times since `started`.
    async fn wait_assigned(&mut self, devices: u32, started: Instant) -> anyhow::Result<Reached> {
        let mut reached = Reached { times: Samples::default(), payload_bytes: 0 };
        for _ in 0..devices {
            let (at, bytes) = self
                .next("got an assignment", |note| {
                    if let Note::Assigned { at, payload_bytes } = note { Some((*at, *payload_bytes)) } else { None }
                })
                .await?;
            reached.times.push(at.saturating_duration_since(started));
            reached.payload_bytes += u64::try_from(bytes)?;
        }
        Ok(reached)
    }
}
