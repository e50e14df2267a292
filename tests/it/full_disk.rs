//! A device whose disk is full to the last byte, or whose own files are damaged, goes on answering, and is itself again once that
//! is over.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use anyhow::ensure;
use muster_tests::device::DeviceSetup;
use muster_tests::fleet::PATIENCE;
use muster_tests::process::Process;
use muster_tests::small_disk::SmallDisk;
use muster_tests::traffic::Traffic;
use muster_tests::wait;

use crate::stage::{self, PACE};

async fn answers_again(traffic: &Traffic, agent: &mut Process) -> anyhow::Result<()> {
    let answered = traffic.seen_by("dev-1").answered;
    wait::until("the device answers again", PATIENCE, async || {
        agent.ensure_running()?;
        Ok((traffic.seen_by("dev-1").answered > answered).then_some(()))
    })
    .await
}

/// Skipped, with a line that says so, where `unshare -Urm` is not allowed: then there is no way to a disk that can be filled.
#[test]
fn a_device_with_a_full_disk_answers_after_a_restart_and_updates_once_there_is_room() {
    stage::run(async |binaries, folder| {
        let Some(disk) = SmallDisk::mount(&folder.join("disk"), 32)? else {
            eprintln!("SKIPPED: this system does not let this user mount a file system in a namespace (unshare -Urm)");
            return Ok(());
        };
        let mut fleet = stage::fleet(&binaries, &folder, 0).await?;
        let home = folder.join("dev-1");
        fs::create_dir_all(&home)?;
        symlink(disk.dir(), home.join("data"))?;
        let token = fleet.enrolment_token(1).await?;
        let setup = DeviceSetup { id: "dev-1", token: &token, window_ms: 500, settings: "" };
        fleet.add_device(&setup, false).await?;
        fleet.wait_online(1).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;

        disk.fill()?;
        // Full under its feet first, then at its start.
        answers_again(&traffic, fleet.device("dev-1")?.process_mut()).await?;
        traffic.expect("dev-1", false);
        fleet.device("dev-1")?.kill()?;
        // A start removes this file, and a few bytes are room for much.
        fs::remove_file(home.join("data/endpoints.json"))?;
        disk.fill()?;
        let log = home.join("agent.log");
        let start = || -> anyhow::Result<Process> {
            let mut command = Command::new(&binaries.agent);
            Process::start("dev-1", command.arg("--config").arg(home.join("agent.toml")), &log)
        };
        let mut agent = start()?;
        answers_again(&traffic, &mut agent).await?;
        ensure!(!home.join("data/endpoints.json").exists(), "there is room after all");
        let status = agent.stop().await?;
        ensure!(status.success(), "a stop in order ended with {status}: {}", agent.log_tail());
        let mut agent = start()?;
        answers_again(&traffic, &mut agent).await?;
        traffic.expect("dev-1", true);
        fleet.wait_online(1).await?;
        agent.ensure_running()?;
        let said = fs::read_to_string(&log)?;
        ensure!(!said.contains("panicked"), "{said}");
        for words in ["the disk of", "/data is full", "starts.json", "No space left on device"] {
            ensure!(said.contains(words), "the log must say {words:?}: {said}");
        }

        disk.empty()?;
        wait::until("the controller hears of the full disk", PATIENCE, async || {
            let told = fleet.operator.events().await?;
            Ok(told.iter().any(|event| format!("{event:?}").contains("is full")).then_some(()))
        })
        .await?;
        wait::until("the device can be found again", PATIENCE, async || {
            Ok(home.join("data/endpoints.json").exists().then_some(()))
        })
        .await?;
        fleet.release_digits("1.1.0").await?;
        fleet.roll_out(&[&["--bundle", "digits@1.1.0", "--selector", "*"], &PACE[..]].concat()).await?;
        fleet.wait_committed("dev-1", "1.1.0").await?;
        stage::ensure_all_answered(&traffic)
    });
}

#[test]
fn a_bundle_beyond_a_devices_quota_fails_its_rollout_with_the_numbers_and_nothing_is_fetched() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 0).await?;
        let token = fleet.enrolment_token(1).await?;
        let settings = "[storage]\nmax-bytes = 1048576\n";
        fleet.add_device(&DeviceSetup { id: "dev-1", token: &token, window_ms: 500, settings }, false).await?;
        fleet.wait_online(1).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;

        fleet.release_large_digits("1.1.0", 1024 * 1024).await?;
        fleet.roll_out(&[&["--bundle", "digits@1.1.0", "--selector", "*"], &PACE[..]].concat()).await?;
        // The state itself is gone as soon as the rollout goes back, within milliseconds.
        let told = wait::until("the controller hears of the refusal", PATIENCE, async || {
            let told = fleet.operator.events().await?;
            Ok(told.iter().map(|event| format!("{event:?}")).find(|event| event.contains("storage.max-bytes")))
        })
        .await?;
        ensure!(told.contains("storage.max-bytes allows 1048576") && told.contains("are free"), "{told}");
        let manifests = fs::read_dir(folder.join("dev-1/data/slots/manifests"))?.count();
        ensure!(manifests == 1 && !folder.join("dev-1/data/slots/b").exists(), "something of it is there");
        stage::ensure_all_answered(&traffic)
    });
}

#[test]
fn a_device_that_has_lost_its_identity_or_its_trust_answers_and_names_the_file() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 1).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        traffic.expect("dev-1", false);
        fleet.device("dev-1")?.kill()?;
        let home = folder.join("dev-1");
        let log = home.join("agent.log");
        for name in ["identity/identity.json", "trust/root-1.json"] {
            let path = home.join("data").join(name);
            let good = fs::read(&path)?;
            fs::write(&path, "rubbish")?;
            let mut command = Command::new(&binaries.agent);
            let mut agent = Process::start("dev-1", command.arg("--config").arg(home.join("agent.toml")), &log)?;
            answers_again(&traffic, &mut agent).await?;
            let status = agent.stop().await?;
            ensure!(!status.success(), "what is damaged is no success: {status}");
            let said = fs::read_to_string(&log)?;
            ensure!(
                said.contains(name) && said.contains("serves on") && said.contains("enrol again"),
                "{name}: {said}"
            );
            fs::write(&path, good)?;
        }
        fleet.device("dev-1")?.restart().await?;
        fleet.wait_online(1).await?;
        traffic.expect("dev-1", true);
        answers_again(&traffic, fleet.device("dev-1")?.process_mut()).await?;
        stage::ensure_all_answered(&traffic)
    });
}
