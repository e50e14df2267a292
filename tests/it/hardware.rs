//! Boards as they are: without a clock until the network sets it, with nothing to write to but the agent's own folder, and too hot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use muster_shared::limits::CHUNK_BYTES;
use muster_shared::messages::FreezeProtection;
use muster_shared::rollout::{RolloutStatus, Waiting};
use muster_tests::binaries::Binaries;
use muster_tests::device::{Device, DeviceSetup};
use muster_tests::fixtures;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;

use crate::stage::{self, PACE};

/// What lies beside a model that a hot device fetches, and how fast it may do that (docs/hardware.md).
const NOISE_BYTES: usize = 300_000;
const SLOW_BYTES_PER_S: f64 = 32.0 * 1024.0;

/// Where Debian puts the library that fakes the clock, by architecture.
const FAKETIME: [&str; 2] =
    ["/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"];

/// The clock of a board: what the agent takes for the time of day, while time that only passes is the real one.
struct Clock {
    file: PathBuf,
}

impl Clock {
    /// As a board without a battery has it after its start: ten minutes into 1970.
    fn never_set(&self) -> anyhow::Result<()> {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(fs::write(&self.file, format!("-{}\n", now_s - 600))?)
    }

    /// As the network sets it.
    fn set(&self) -> anyhow::Result<()> {
        Ok(fs::write(&self.file, "+0\n")?)
    }
}

async fn protection(fleet: &Fleet) -> anyhow::Result<Option<FreezeProtection>> {
    let device = fleet.operator.devices().await?.into_iter().next();
    Ok(device.and_then(|device| device.reported).map(|report| report.freeze_protection))
}

/// Skipped, with a line that says so, where libfaketime is not installed.
#[test]
fn a_board_without_a_clock_joins_once_it_is_set_and_works_without_from_then_on() {
    stage::run(async |binaries, folder| {
        let Some(library) = FAKETIME.iter().find(|path| Path::new(path).exists()) else {
            eprintln!("SKIPPED: there is no libfaketime here (on Debian: apt install faketime)");
            return Ok(());
        };
        let clock = Clock { file: folder.join("clock") };
        clock.never_set()?;
        let script = format!(
            "export LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={:?} FAKETIME_NO_CACHE=1 DONT_FAKE_MONOTONIC=1\nexec {:?} \"$@\"",
            clock.file, binaries.agent
        );
        let agent = stage::agent_by(&folder, &script)?;
        let mut fleet = stage::fleet(&binaries, &folder, 0).await?;
        let token = fleet.enrolment_token(1).await?;
        let setup = DeviceSetup { id: "dev-1", token: &token, window_ms: 500, settings: "" };
        let home = folder.join("dev-1");
        let without_clock = Binaries { agent, ..binaries };
        // It says what it waits for, and goes on by itself when that comes.
        let (device, waited) = tokio::join!(Device::start(&without_clock, &home, &setup, None), async {
            wait::until("the device says that it waits for its clock", PATIENCE, async || {
                let said = fs::read_to_string(home.join("agent.log")).unwrap_or_default();
                Ok(said.contains("this device's clock says 1970").then_some(()))
            })
            .await?;
            clock.set()
        });
        waited?;
        fleet.devices.push(device?);
        fleet.wait_online(1).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;

        // After a power cut it is 1970 again. What is signed still counts, held against the latest time it has seen.
        traffic.expect("dev-1", false);
        fleet.device("dev-1")?.kill()?;
        clock.never_set()?;
        fleet.device("dev-1")?.restart().await?;
        wait::until("the device is back and says what its clock is worth", PATIENCE, async || {
            Ok((protection(&fleet).await? == Some(FreezeProtection::Degraded)).then_some(()))
        })
        .await?;
        let answered = traffic.seen_by("dev-1").answered;
        wait::until("the device answers again", PATIENCE, async || {
            Ok((traffic.seen_by("dev-1").answered > answered).then_some(()))
        })
        .await?;
        traffic.expect("dev-1", true);
        fleet.release_digits("1.1.0").await?;
        let rollout = fleet.roll_out(&[&["--bundle", "digits@1.1.0", "--selector", "*"], &PACE[..]].concat()).await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;

        // The network sets it while requests come: 50 years pass at once, windows go on closing, and nobody is left without an answer.
        let client = reqwest::Client::new();
        clock.set()?;
        let closed = fleet.devices[0].metric(&client, "muster_agent_windows_closed_total").await?;
        wait::until("windows close by the new clock", PATIENCE, async || {
            let now = fleet.devices[0].metric(&client, "muster_agent_windows_closed_total").await?;
            Ok((now > closed + 3.0).then_some(()))
        })
        .await?;
        fleet.roll_out(&[&["--bundle", "digits@1.0.0", "--selector", "*"], &PACE[..]].concat()).await?;
        fleet.wait_committed("dev-1", "1.0.0").await?;
        ensure!(protection(&fleet).await? == Some(FreezeProtection::Full), "its clock counts again");
        stage::ensure_all_answered(&traffic)
    });
}

/// Whether this user may have mounts of their own. Where not, it is said that the test is skipped.
fn may_mount() -> bool {
    let may = Command::new("unshare").args(["-rm", "true"]).output().is_ok_and(|output| output.status.success());
    if !may {
        eprintln!("SKIPPED: this system does not let this user have mounts of its own (unshare -rm)");
    }
    may
}

/// Skipped, with a line that says so, where `unshare -rm` is not allowed.
#[test]
fn an_agent_that_may_write_to_its_own_folder_alone_does_its_whole_work() {
    stage::run(async |binaries, folder| {
        if !may_mount() {
            return Ok(());
        }
        let data = folder.join("dev-1/data");
        fs::create_dir_all(&data)?;
        // Every mount is read-only but that of the data, the deepest ones first; a device's own nodes stay what they are.
        let inside = format!(
            "mount --bind {data:?} {data:?}\n\
             findmnt --raw --noheadings --output TARGET | tac | while read -r target; do\n\
             [ \"$target\" = {data:?} ] || mount -o remount,bind,ro \"$target\" 2>/dev/null || true\n\
             done\n\
             if touch {probe:?} 2>/dev/null; then echo 'the probe was written'; exit 1; fi\n\
             exec {agent:?} \"$@\"",
            probe = folder.join("probe"),
            agent = binaries.agent,
        );
        let inner = folder.join("inside");
        fs::write(&inner, format!("set -euo pipefail\n{inside}\n"))?;
        let agent = stage::agent_by(&folder, &format!("exec unshare -rm --propagation private bash {inner:?} \"$@\""))?;
        let mut fleet = stage::fleet_of(binaries, &folder, agent, 500, "").await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        stage::kill_and_restart(&mut fleet, &traffic).await?;
        fleet.release_digits("1.1.0").await?;
        let rollout = fleet.roll_out(&[&["--bundle", "digits@1.1.0", "--selector", "*"], &PACE[..]].concat()).await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        let said = fs::read_to_string(folder.join("dev-1/agent.log"))?;
        // Whatever it had tried to write elsewhere would have been refused.
        ensure!(!said.contains("Read-only file system"), "{said}");
        ensure!(!folder.join("probe").exists(), "the agent could write elsewhere, so this test shows nothing");
        stage::ensure_all_answered(&traffic)
    });
}

/// The sensors of a board, as its kernel shows them.
struct Sensors {
    folder: PathBuf,
}

impl Sensors {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        for device in ["thermal_zone0", "cooling_device0"] {
            fs::create_dir_all(folder.join(device))?;
        }
        fs::write(folder.join("cooling_device0/type"), "cpufreq-cpu0\n")?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// It is so hot, and the processor is slowed by so many steps.
    fn show(&self, temperature_mc: i32, steps: u32) -> anyhow::Result<()> {
        fs::write(self.folder.join("cooling_device0/cur_state"), format!("{steps}\n"))?;
        Ok(fs::write(self.folder.join("thermal_zone0/temp"), format!("{temperature_mc}\n"))?)
    }
}

/// Skipped, with a line that says so, where `unshare -rm` is not allowed.
#[test]
fn a_device_that_is_too_hot_says_so_and_is_left_out_until_it_is_not() {
    stage::run(async |binaries, folder| {
        if !may_mount() {
            return Ok(());
        }
        let sensors = Sensors::new(&folder.join("sensors"))?;
        sensors.show(45_000, 0)?;
        let inner = folder.join("inside");
        let inside = format!("mount --bind {:?} /sys/class/thermal\nexec {:?} \"$@\"", sensors.folder, binaries.agent);
        fs::write(&inner, format!("set -euo pipefail\n{inside}\n"))?;
        let agent = stage::agent_by(&folder, &format!("exec unshare -rm --propagation private bash {inner:?} \"$@\""))?;
        let mut fleet = stage::fleet_of(binaries, &folder, agent, 500, "").await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        let condition = async |fleet: &Fleet| {
            let reported = fleet.operator.device("dev-1").await?.reported.unwrap_or_default();
            let says = |key: &str| reported.attributes.get(key).cloned().unwrap_or_default();
            anyhow::Ok([says("temperature-c"), says("throttling"), says("pressure")])
        };
        let becomes = async |fleet: &Fleet, expected: [&str; 3]| {
            wait::until(&format!("the device says {expected:?}"), PATIENCE, async || {
                Ok((condition(fleet).await? == expected).then_some(()))
            })
            .await
        };
        becomes(&fleet, ["45", "none", "none"]).await?;

        sensors.show(93_000, 3)?;
        becomes(&fleet, ["93", "heat", "high"]).await?;
        let reported = fleet.operator.device("dev-1").await?.reported.unwrap_or_default();
        ensure!(reported.pressure.reason == "hot: 93 °C", "{:?}", reported.pressure);
        let count = async |selector: &str| {
            let devices = ["--output", "json", "device", "list", "--selector", selector];
            anyhow::Ok(fleet.operator.run(&devices).await?.matches("\"dev-1\"").count())
        };
        ensure!(count("temperature-c<=70").await? == 0 && count("temperature-c>=70,throttling=heat").await? > 0);

        // It fetches slowly then, as it has something that serves.
        let client = reqwest::Client::new();
        let received = "muster_agent_chunk_received_bytes_total";
        let before = fleet.devices[0].metric(&client, received).await?;
        fleet.release_large_digits("1.1.0", NOISE_BYTES).await?;
        let began = Instant::now();
        fleet.roll_out(&[&["--bundle", "digits@1.1.0", "--selector", "*"], &PACE[..]].concat()).await?;
        let bytes = wait::until("digits 1.1.0 is there", PATIENCE, async || {
            let bytes = fleet.devices[0].metric(&client, received).await? - before;
            // Looked at afterwards: whatever came late makes the bound wider and never narrower.
            let most = (1.0 + began.elapsed().as_secs_f64()) * SLOW_BYTES_PER_S + CHUNK_BYTES as f64;
            ensure!(bytes <= most, "{bytes} bytes have come, where {most} may");
            Ok(Some(bytes).filter(|bytes| *bytes > NOISE_BYTES as f64))
        })
        .await?;
        ensure!(bytes < 2.0 * NOISE_BYTES as f64, "{bytes} bytes");
        fleet.wait_committed("dev-1", "1.1.0").await?;

        // What is not for a device so hot waits until it is cooler.
        let description = fs::read_to_string(fixtures::digits().join("bundle-1.2.0.toml"))?;
        let wish = "[requirements]\nattributes = \"temperature-c<=70,throttling!=heat\"";
        fleet.release_digits_as("1.2.0", &description.replace("[requirements]", wish)).await?;
        let rollout = fleet.roll_out(&[&["--bundle", "digits@1.2.0", "--selector", "*"], &PACE[..]].concat()).await?;
        let why = wait::until("the device is left out", PATIENCE, async || {
            let view = fleet.operator.rollout(&rollout).await?;
            Ok(view.waiting.iter().find_map(|waiting| {
                let Waiting::Unsuitable { devices } = waiting else { return None };
                devices.values().next().cloned()
            }))
        })
        .await?;
        ensure!(
            why == "the bundle needs a device with temperature-c<=70 (it is 93), throttling!=heat (it is heat)",
            "{why}"
        );
        sensors.show(46_000, 0)?;
        stage::kill_and_restart(&mut fleet, &traffic).await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        fleet.wait_committed("dev-1", "1.2.0").await?;
        stage::ensure_all_answered(&traffic)
    });
}
