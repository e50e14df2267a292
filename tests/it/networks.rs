//! Bad networks: an update completes over them, fetches hardly anything twice, and no request is counted twice or lost.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_shared::api::DriftReport;
use muster_shared::limits::CHUNK_WINDOW;
use muster_tests::binaries::Binaries;
use muster_tests::device::{Device, DeviceSetup};
use muster_tests::fixtures;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::link::Faults;
use muster_tests::traffic::Traffic;
use muster_tests::wait;

use crate::meddler::Meddler;
use crate::stage::{self, EASY};

/// Devices on links over which megabytes come in a while.
const FAST: [&str; 6] = ["loss", "resets", "stalls", "half-open", "meddled", "away"];
/// Devices on links over which they do not, and what is wrong with these.
const SLOW: [(&str, Faults); 2] = [
    ("delayed", Faults { delay: Duration::from_secs(2), ..NO_FAULT }),
    ("narrow", Faults { rate_bits_per_s: Some(16_000), ..NO_FAULT }),
];
const NO_FAULT: Faults =
    Faults { delay: Duration::ZERO, rate_bits_per_s: None, loss_percent: 0, reset_every: None, stalls: None };
/// What makes a test quick; the slow devices have the defaults.
const QUICK: &str =
    "[broker]\nkeep-alive-s = 5\nreconnect-min-ms = 200\nreconnect-max-ms = 2000\nack-timeout-ms = 2000\n";
const NOISE_BYTES: usize = 9_000_000;
const BLOCK_BYTES: usize = 32 * 1024;
const RECORDS: usize = 220;
const PIECE_BYTES: usize = 42 * 1024;

/// Blocks of text of which each is like none before, and much shorter on the way.
fn write_records(path: &Path, blocks: usize) -> anyhow::Result<()> {
    let mut text = String::new();
    for block in 0..blocks {
        while text.len() < (block + 1) * BLOCK_BYTES {
            writeln!(text, "record of line {block}: {}", block * block)?;
        }
    }
    Ok(std::fs::write(path, text)?)
}

/// More of these, and one piece that nothing makes shorter: at 16 kbit/s it takes longer than brokers wait for an acknowledgement.
fn write_more_records(path: &Path) -> anyhow::Result<()> {
    write_records(path, RECORDS + 20)?;
    let records = std::fs::read(path)?;
    Ok(std::fs::write(path, [records, fixtures::noise(PIECE_BYTES)].concat())?)
}

fn fault_of(device: &str) -> Faults {
    match device {
        "loss" => Faults { loss_percent: 10, ..NO_FAULT },
        // Slow enough for several resets.
        "resets" => Faults { reset_every: Some(Duration::from_secs(3)), rate_bits_per_s: Some(8_000_000), ..NO_FAULT },
        "stalls" => Faults { stalls: Some((Duration::from_millis(1_500), Duration::from_millis(500))), ..NO_FAULT },
        slow => SLOW.iter().find(|(id, _)| *id == slow).map_or(NO_FAULT, |(_, faults)| *faults),
    }
}

struct Stage {
    fleet: Fleet,
    traffic: Traffic,
    meddler: Meddler,
    http: reqwest::Client,
}

impl Stage {
    /// Every device runs digits 1.0.0, which it got over a good link.
    async fn set(binaries: &Binaries, folder: &Path) -> anyhow::Result<Self> {
        let mut fleet = Fleet::found(binaries, folder, "[rollout]\ntick-ms = 200\n").await?;
        let meddler = Meddler::open(&fleet.controller, &folder.join("meddled")).await?;
        let token = fleet.enrolment_token(FAST.len() + SLOW.len()).await?;
        let through = format!("{QUICK}host = \"{}\"\nport = {}\n", meddler.address.ip(), meddler.address.port());
        for (id, line) in FAST.map(|id| (id, "fast")).into_iter().chain(SLOW.map(|(id, _)| (id, "slow"))) {
            let settings = match id {
                "meddled" => &through,
                _ if line == "fast" => QUICK,
                _ => "",
            };
            let window_ms = if line == "fast" { 500 } else { 5_000 };
            fleet.add_device(&DeviceSetup { id, token: &token, window_ms, settings }, id != "meddled").await?;
            fleet.operator.run(&["device", "label", id, &format!("line={line}"), &format!("name={id}")]).await?;
        }
        fleet.wait_online(FAST.len() + SLOW.len()).await?;
        let mut traffic = Traffic::new(fixtures::held_out()?, Duration::from_millis(50));
        fleet.release_digits_with("1.0.0", "records.txt", |path| write_records(path, RECORDS)).await?;
        fleet.roll_out(&[&["--bundle", "digits@1.0.0", "--selector", "*"], &EASY[..]].concat()).await?;
        for device in &fleet.devices {
            traffic.start(&device.id, &device.inference_url);
        }
        for device in &fleet.devices {
            fleet.wait_committed(&device.id, "1.0.0").await?;
            traffic.expect(&device.id, true);
        }
        Ok(Self { fleet, traffic, meddler, http: reqwest::Client::new() })
    }

    fn device(&self, id: &str) -> anyhow::Result<&Device> {
        self.fleet.devices.iter().find(|device| device.id == id).with_context(|| format!("no device {id}"))
    }

    async fn metric(&self, id: &str, name: &str) -> anyhow::Result<f64> {
        self.device(id)?.metric(&self.http, &format!("muster_agent_{name}")).await
    }

    /// Waits until a counter of the device has grown by `more`.
    async fn grown(&self, id: &str, name: &str, more: f64) -> anyhow::Result<()> {
        let before = self.metric(id, name).await?;
        wait::until(&format!("{name} of {id} has grown by {more}"), PATIENCE, async || {
            Ok((self.metric(id, name).await? >= before + more).then_some(()))
        })
        .await
    }

    /// Twice in its update, the connection stands and nothing arrives any more.
    async fn forget_connections(&self) -> anyhow::Result<()> {
        for _ in 0..2 {
            self.grown("half-open", "chunks_received_total", 40.0).await?;
            self.device("half-open")?.link()?.forget_connections();
        }
        Ok(())
    }

    /// In its update, the broker is away while windows close.
    async fn take_broker_away(&self) -> anyhow::Result<()> {
        self.grown("away", "chunks_received_total", 40.0).await?;
        self.device("away")?.link()?.cut();
        self.grown("away", "windows_closed_total", 8.0).await?;
        self.device("away")?.link()?.mend();
        Ok(())
    }

    async fn update(&self) -> anyhow::Result<()> {
        for device in self.fleet.devices.iter().filter(|device| device.link().is_ok()) {
            device.link()?.suffer(fault_of(&device.id));
        }
        for (version, line) in [("1.1.0", "line=fast"), ("1.2.0", "line=slow")] {
            let bundle = format!("digits@{version}");
            self.fleet.roll_out(&[&["--bundle", &bundle, "--selector", line], &EASY[..]].concat()).await?;
        }
        let committed = async {
            for id in FAST {
                self.fleet.wait_committed(id, "1.1.0").await?;
            }
            for (id, _) in SLOW {
                self.fleet.wait_committed(id, "1.2.0").await?;
            }
            anyhow::Ok(())
        };
        tokio::try_join!(committed, self.forget_connections(), self.take_broker_away())?;
        Ok(())
    }

    /// What each device has fetched, held against how often its connection broke.
    async fn ensure_little_came_twice(&self) -> anyhow::Result<()> {
        let (mut all_received, mut all_breaks) = (0.0, 0);
        for device in &self.fleet.devices {
            let id = &device.id;
            let received = self.metric(id, "chunks_received_total").await?;
            let copied = self.metric(id, "chunks_copied_total").await?;
            let repeated = self.metric(id, "chunks_repeated_total").await?;
            let (connections, meddled) = match device.link() {
                Ok(link) => (link.passed().connections, 0),
                Err(_) => (1, self.meddler.meddled().repeated_chunks),
            };
            let breaks = connections - 1;
            eprintln!("{id}: {received} chunks received, {copied} copied, {repeated} repeated, {breaks} breaks");
            ensure!(received + copied >= 200.0, "{id}: {received} and {copied} chunks");
            let most = (breaks * CHUNK_WINDOW as u64 + meddled) as f64;
            ensure!(repeated <= most, "{id}: {repeated} chunks came in vain, with {breaks} breaks");
            let must_break = ["resets", "half-open", "away"].contains(&id.as_str());
            ensure!(breaks > 0 || !must_break, "{id}: no break");
            // What is slow is not dead.
            let must_last = SLOW.iter().any(|(slow, _)| slow == id);
            ensure!(breaks == 0 || !must_last, "{id}: {breaks} breaks");
            all_received += received;
            all_breaks += breaks;
        }
        let sent = self.fleet.controller.metric("muster_controller_chunks_sent_total").await?;
        eprintln!(
            "{sent} chunks sent, {all_received} received, {all_breaks} breaks, {:?} meddled",
            self.meddler.meddled()
        );
        let most = all_received + (all_breaks * CHUNK_WINDOW as u64) as f64;
        ensure!(sent <= most, "{sent} chunks sent where {all_received} were received, with {all_breaks} breaks");
        let meddled = self.meddler.meddled();
        ensure!(meddled.repeated > 50 && meddled.overtaken > 50, "{meddled:?}");
        Ok(())
    }

    async fn restart_all(&mut self) -> anyhow::Result<()> {
        for (id, _) in SLOW {
            // They have shown that they get there; another start would bring them the whole manifest once more.
            self.device(id)?.link()?.suffer(NO_FAULT);
        }
        for at in 0..self.fleet.devices.len() {
            let device = &mut self.fleet.devices[at];
            self.traffic.expect(&device.id, false);
            let status = device.process_mut().stop().await?;
            ensure!(status.success(), "{} ended with {status}", device.id);
            device.restart().await?;
        }
        for device in &self.fleet.devices {
            let answered = self.traffic.seen_by(&device.id).answered;
            wait::until(&format!("{} answers again", device.id), PATIENCE, async || {
                Ok((self.traffic.seen_by(&device.id).answered > answered + 20).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Requests counted at the controller, as the telemetry of all devices says.
    async fn served(&self) -> anyhow::Result<String> {
        let served = "muster_controller_reported_requests_total{outcome=\"served\"}";
        Ok(self.fleet.controller.metric(served).await?.to_string())
    }

    /// Requests counted in the sketches of each device, by version of the model.
    async fn sketched(&self) -> anyhow::Result<BTreeMap<String, BTreeMap<String, u64>>> {
        let mut counted: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for version in ["1.0.0", "1.1.0", "1.2.0"] {
            let bundle = format!("digits@{version}");
            let show = ["drift", "show", &bundle, "--group-by", "name"];
            let report: DriftReport = self.fleet.operator.json(&show).await?;
            for group in report.groups {
                let classes = group.columns.iter().find(|column| column.prediction).context("no prediction")?;
                counted.entry(group.group).or_default().insert(version.to_owned(), classes.n);
            }
        }
        Ok(counted)
    }

    /// Everything that was answered arrives in the controller's sums, and nothing else.
    async fn ensure_sums(&mut self) -> anyhow::Result<()> {
        let mut answered: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for (device, seen) in self.traffic.finish().await {
            ensure!(seen.failed == 0, "{device}: {:?}", seen.last_failure);
            answered.insert(device, seen.by_version.into_iter().map(|(version, (n, _))| (version, n)).collect());
        }
        let total: u64 = answered.values().flat_map(BTreeMap::values).sum();
        wait::until_explained(
            "all that was answered is counted",
            PATIENCE,
            async || Ok((self.served().await? == total.to_string() && self.sketched().await? == answered).then_some(())),
            async || {
                format!("{:?} of {total} counted, {:?} of {answered:?}", self.served().await, self.sketched().await)
            },
        )
        .await?;
        // A message that was overtaken goes again after two seconds, with all behind it; where that befalls every fourth, no more gets through
        // than two windows a second bring.
        self.meddler.rest();
        for device in &self.fleet.devices {
            wait::until(&format!("{} has told everything", device.id), PATIENCE, async || {
                // A window closes twice a second, so one may be on its way at any time; behind one that is stuck they would pile up.
                Ok((self.metric(&device.id, "outbox_messages").await? <= 2.0).then_some(()))
            })
            .await?;
            ensure!(self.metric(&device.id, "outbox_dropped_total").await? == 0.0, "{} gave up messages", device.id);
        }
        eprintln!("{total} requests answered and counted");
        ensure!(self.sketched().await? == answered, "{:?} of {answered:?}", self.sketched().await);
        ensure!(self.served().await? == total.to_string(), "{:?} of {total}", self.served().await);
        Ok(())
    }
}

#[test]
fn updates_complete_over_bad_links_and_no_request_is_counted_twice_or_lost() {
    stage::run(async |binaries, folder| {
        let mut stage = Stage::set(&binaries, &folder).await?;
        stage.fleet.release_large_digits("1.1.0", NOISE_BYTES).await?;
        stage.fleet.release_digits_with("1.2.0", "records.txt", write_more_records).await?;
        stage.update().await?;
        stage.ensure_little_came_twice().await?;
        stage.restart_all().await?;
        stage.ensure_sums().await
    });
}

/// Set in the process inside the namespace.
const IN_NAMESPACE: &str = "MUSTER_TEST_LOSSY_NAMESPACE";
const LOSSY: [&str; 8] = ["qdisc", "add", "dev", "lo", "root", "netem", "loss", "10%"];

#[test]
fn an_update_completes_where_every_tenth_packet_is_lost() {
    const NAME: &str = "networks::an_update_completes_where_every_tenth_packet_is_lost";
    if std::env::var_os(IN_NAMESPACE).is_none() {
        let script = format!("ip link set lo up && tc {}", LOSSY.join(" "));
        let possible = Command::new("unshare").args(["-rn", "sh", "-c", &script]).output();
        if !possible.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!(
                "SKIPPED {NAME}: this system has no `tc netem` in a network namespace of this user's: {possible:?}"
            );
            return;
        }
        let own = std::env::current_exe().expect("the test knows itself");
        let output = Command::new("unshare")
            .args(["-rn", "sh", "-c", "ip link set lo up && exec \"$1\" --exact \"$2\" --nocapture", "sh"])
            .arg(own)
            .arg(NAME)
            .env(IN_NAMESPACE, "yes")
            .output()
            .expect("it could be started before");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 1).await?;
        fleet.release_large_digits("1.0.0", NOISE_BYTES).await?;
        ensure!(Command::new("tc").args(LOSSY).status()?.success(), "the network could not be made lossy");
        fleet.roll_out(&[&["--bundle", "digits@1.0.0", "--selector", "*"], &EASY[..]].concat()).await?;
        fleet.wait_committed("dev-1", "1.0.0").await?;
        let (http, device) = (reqwest::Client::new(), fleet.device("dev-1")?);
        let repeated = device.metric(&http, "muster_agent_chunks_repeated_total").await?;
        let breaks = device.link()?.passed().connections - 1;
        ensure!(repeated <= (breaks * CHUNK_WINDOW as u64) as f64, "{repeated} chunks came twice, {breaks} breaks");
        Ok(())
    });
}
