//! What every integration test starts from.

use std::fs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use muster_tests::binaries::Binaries;
use muster_tests::device::{Device, DeviceSetup};
use muster_tests::fixtures::{self, Image};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::traffic::Traffic;
use muster_tests::wait;

pub(crate) use muster_tests::fleet::PACE;

/// Of a rollout in which nothing is judged: it only has to arrive.
pub(crate) const EASY: [&str; 18] = [
    "--max-prediction-psi",
    "1000",
    "--soak",
    "1s",
    "--max-duration",
    "20m",
    "--probation",
    "1s",
    "--min-reports",
    "1",
    "--min-requests",
    "1",
    "--max-latency-p99-ratio",
    "100000",
    "--max-error-rate",
    "1",
    "--max-failures",
    "100",
];

/// The same, but it tolerates no failure.
pub(crate) const STRICT: &[&str] = EASY.split_at(EASY.len() - 2).0;

/// The same of an agent program, which is held against no predictions.
pub(crate) const STRICT_OF_PROGRAMS: &[&str] = STRICT.split_at(2).1;

/// Runs `test` in a folder of its own with a runtime of its own.
pub(crate) fn run<F: Future<Output = anyhow::Result<()>>>(test: impl FnOnce(Binaries, PathBuf) -> F) {
    // Tests share the process; the first one installs the provider for all.
    drop(rustls::crypto::ring::default_provider().install_default());
    let folder = tempfile::Builder::new().prefix("muster-it-").tempdir().expect("a folder for the test");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime
        .expect("a runtime for the test")
        .block_on(async { test(Binaries::beside_this_one()?, folder.path().to_path_buf()).await });
    if let Err(error) = outcome {
        let kept = folder.keep();
        panic!("{error:#}\nThe processes' logs are in {}", kept.display());
    }
}

/// A controller with `devices` devices, `dev-1` and on, each behind a link of its own.
pub(crate) async fn fleet(binaries: &Binaries, folder: &Path, devices: usize) -> anyhow::Result<Fleet> {
    fleet_with(binaries, folder, devices, "[rollout]\ntick-ms = 100\n").await
}

/// [`fleet`] under a controller with these settings.
pub(crate) async fn fleet_with(
    binaries: &Binaries,
    folder: &Path,
    devices: usize,
    settings: &str,
) -> anyhow::Result<Fleet> {
    let mut fleet = Fleet::found(binaries, folder, settings).await?;
    if devices > 0 {
        let token = fleet.enrolment_token(devices).await?;
        for index in 1..=devices {
            let id = format!("dev-{index}");
            let setup = DeviceSetup { id: &id, token: &token, window_ms: 500, settings: "" };
            fleet.add_device(&setup, true).await?;
        }
        fleet.wait_online(devices).await?;
    }
    Ok(fleet)
}

/// A script in `folder` that ends in running an agent, in place of the one that was there before.
pub(crate) fn agent_by(folder: &Path, script: &str) -> anyhow::Result<PathBuf> {
    let path = folder.join("agent-in-its-surroundings");
    let next = path.with_extension("next");
    fs::write(&next, format!("#!/bin/bash\nset -euo pipefail\n{script}\n"))?;
    fs::set_permissions(&next, fs::Permissions::from_mode(0o755))?;
    fs::rename(&next, &path)?;
    Ok(path)
}

/// A library in `folder`, of this C source, whose functions take the place of those of the C library (`LD_PRELOAD`).
pub(crate) fn library(folder: &Path, source: &str) -> anyhow::Result<PathBuf> {
    let (file, library) = (folder.join("instead.c"), folder.join("instead.so"));
    fs::write(&file, source)?;
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &file]).output()?;
    anyhow::ensure!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    Ok(library)
}

/// A controller with `dev-1`, which is `agent` with these settings and closes a window after `window_ms` milliseconds.
pub(crate) async fn fleet_of(
    binaries: Binaries,
    folder: &Path,
    agent: PathBuf,
    window_ms: u64,
    settings: &str,
) -> anyhow::Result<Fleet> {
    let mut fleet = fleet(&binaries, folder, 0).await?;
    let token = fleet.enrolment_token(1).await?;
    let setup = DeviceSetup { id: "dev-1", token: &token, window_ms, settings };
    let by_agent = Binaries { agent, ..binaries };
    fleet.devices.push(Device::start(&by_agent, &folder.join("dev-1"), &setup, None).await?);
    fleet.wait_online(1).await?;
    Ok(fleet)
}

/// Applications that send held-out images to every device of `fleet`.
pub(crate) fn traffic(fleet: &Fleet) -> anyhow::Result<Traffic> {
    Ok(traffic_of(fleet, fixtures::held_out()?))
}

/// Applications that send these images to every device.
pub(crate) fn traffic_of(fleet: &Fleet, images: Vec<Image>) -> Traffic {
    let mut traffic = Traffic::new(images, Duration::from_millis(10));
    for device in &fleet.devices {
        traffic.start(&device.id, &device.inference_url);
    }
    traffic
}

/// Brings digits 1.0.0 to every device, traffic flowing, and expects answers from then on.
pub(crate) async fn first_version(fleet: &Fleet, traffic: &Traffic) -> anyhow::Result<()> {
    fleet.release_digits("1.0.0").await?;
    let id = fleet.roll_out(&[&["--bundle", "digits@1.0.0", "--selector", "*"], &PACE[..]].concat()).await?;
    fleet.wait_rollout(&id, muster_shared::rollout::RolloutStatus::Completed).await?;
    for device in &fleet.devices {
        traffic.expect(&device.id, true);
    }
    Ok(())
}

/// Kills the agent of `dev-1` and starts it again; its application is answered before this returns.
pub(crate) async fn kill_and_restart(fleet: &mut Fleet, traffic: &Traffic) -> anyhow::Result<()> {
    traffic.expect("dev-1", false);
    fleet.device("dev-1")?.kill()?;
    fleet.device("dev-1")?.restart().await?;
    let answered = traffic.seen_by("dev-1").answered;
    wait::until("the device answers again", PATIENCE, async || {
        Ok((traffic.seen_by("dev-1").answered > answered).then_some(()))
    })
    .await?;
    traffic.expect("dev-1", true);
    Ok(())
}

/// Fails when an application was left without an answer.
pub(crate) fn ensure_all_answered(traffic: &Traffic) -> anyhow::Result<()> {
    for (device, seen) in traffic.seen() {
        anyhow::ensure!(
            seen.failed == 0 && seen.answered > 0,
            "{device}: {} requests of {} were not answered: {:?}",
            seen.failed,
            seen.answered + seen.failed,
            seen.last_failure
        );
    }
    Ok(())
}
