//! How bundles reach a fleet: emergencies, ways back to a version by name, and devices that are left aside.

use anyhow::{Context, ensure};
use muster_shared::rollout::{RolloutPreview, RolloutStatus, Waiting};
use muster_tests::device::DeviceSetup;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;

use crate::stage;

/// Long enough that nothing passes while a test looks at it.
const LONG: [&str; 6] = ["--soak", "5m", "--max-duration", "10m", "--probation", "500ms"];

/// One device is away; the fleet runs 1.1.0, and an emergency brings 1.0.0 back while a rollout is under way.
#[test]
fn an_emergency_goes_everywhere_at_once_and_waits_for_who_is_away() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 3).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        fleet.release_digits("1.1.0").await?;
        let careful =
            [&["--bundle", "digits@1.1.0", "--selector", "id!=dev-3", "--wave", "1", "--wave", "100%"], &LONG[..]];
        let careful = fleet.roll_out(&careful.concat()).await?;
        fleet.cut_off("dev-3").await?;
        let refused = fleet
            .operator
            .try_run(&[
                "rollout",
                "create",
                "--emergency",
                "--bundle",
                "digits@1.1.0",
                "-l",
                "*",
                "--max-failures",
                "1",
            ])
            .await?;
        ensure!(refused.status == Some(2) && refused.stderr.contains("leave out the limits"), "{refused:?}");
        let wish = ["--emergency", "--bundle", "digits@1.1.0", "--selector", "*", "--probation", "500ms"];
        let planned: RolloutPreview = fleet.operator.json(&[&["rollout", "plan"], &wish[..]].concat()).await?;
        ensure!(planned.ends.iter().map(|id| id.as_str()).eq([careful.as_str()]), "{planned:?}");
        let urgent = fleet.roll_out(&wish).await?;
        let done = fleet.wait_rollout(&urgent, RolloutStatus::Completed).await?;
        ensure!(done.status_reason.contains("held against no limit"), "{}", done.status_reason);
        let ended = fleet.operator.rollout(&careful).await?;
        ensure!(ended.status == RolloutStatus::Stopped, "{}", ended.status);
        ensure!(ended.status_reason.contains(&format!("the emergency {urgent} of")), "{}", ended.status_reason);
        for device in ["dev-1", "dev-2"] {
            fleet.wait_committed(device, "1.1.0").await?;
        }
        fleet.device("dev-3")?.link()?.mend();
        fleet.wait_committed("dev-3", "1.1.0").await?;
        stage::ensure_all_answered(&traffic)
    });
}

/// Every device goes to the version that is named; one that was shut out meanwhile does so when it is let in again.
#[test]
fn a_rollback_goes_to_the_version_that_is_named() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 3).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        for version in ["1.1.0", "1.2.0"] {
            fleet.release_digits(version).await?;
        }
        // dev-1 has been on 1.1.0 for long, the others come to it now.
        let first = [&["--bundle", "digits@1.1.0", "--selector", "id=dev-1"], &stage::EASY[..]].concat();
        let first = fleet.roll_out(&first).await?;
        fleet.wait_rollout(&first, RolloutStatus::Completed).await?;
        let id = fleet.roll_out(&[&["--bundle", "digits@1.1.0", "--selector", "*"], &stage::EASY[..]].concat()).await?;
        fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
        let itself = fleet.operator.try_run(&["rollout", "rollback", &id, "--to", "digits@1.1.0"]).await?;
        ensure!(itself.status == Some(3) && itself.stderr.contains("name the bundle"), "{itself:?}");
        fleet.operator.run(&["device", "revoke", "dev-3"]).await?;
        fleet.operator.run(&["rollout", "rollback", &id, "--to", "digits@1.2.0", "--reason", "drift"]).await?;
        let back = fleet.wait_rollout(&id, RolloutStatus::RolledBack).await?;
        ensure!(back.status_reason.contains("to digits@1.2.0"), "{}", back.status_reason);
        for device in ["dev-1", "dev-2"] {
            fleet.wait_committed(device, "1.2.0").await.context(device)?;
        }
        let shut_out = fleet.operator.device("dev-3").await?;
        let committed = shut_out.reported.and_then(|reported| reported.committed).map(|has| has.bundle.to_string());
        ensure!(committed.as_deref() == Some("digits@1.1.0"), "{committed:?}");
        fleet.operator.run(&["device", "reinstate", "dev-3"]).await?;
        fleet.wait_committed("dev-3", "1.2.0").await?;
        stage::ensure_all_answered(&traffic)
    });
}

/// A device that does not survive a bundle is left aside from then on, and so is one that is pinned; both are said, and can be lifted.
#[test]
fn devices_are_left_aside_until_they_are_released_or_unpinned() {
    stage::run(async |binaries, folder| {
        let settings = "[rollout]\ntick-ms = 100\nquarantine-after = 1\n";
        let mut fleet = stage::fleet_with(&binaries, &folder, 3, settings).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        fleet.release_digits("1.1.0").await?;
        let trial = ["--bundle", "digits@1.1.0", "--selector", "id=dev-1", "--soak", "1s", "--max-duration", "30m"];
        let id = fleet.roll_out(&[&trial[..], &["--probation", "10m"]].concat()).await?;
        wait::until("1.1.0 answers", PATIENCE, async || {
            Ok(traffic.seen_by("dev-1").last_version.filter(|last| last == "1.1.0").map(|_| ()))
        })
        .await?;
        stage::kill_and_restart(&mut fleet, &traffic).await?;
        fleet.wait_rollout(&id, RolloutStatus::RolledBack).await?;
        fleet.wait_committed("dev-1", "1.0.0").await?;
        fleet.operator.run(&["device", "pin", "dev-2", "--reason", "demo"]).await?;
        let quarantine = fleet.operator.device("dev-1").await?.quarantined.context("it is not quarantined")?;
        ensure!(
            quarantine.why.contains("1 failed update") && quarantine.why.contains("digits@1.1.0"),
            "{quarantine:?}"
        );
        let everybody = [&["--bundle", "digits@1.1.0", "--selector", "*"], &stage::EASY[..]].concat();
        let next = fleet.roll_out(&everybody).await?;
        fleet.wait_rollout(&next, RolloutStatus::Completed).await?;
        fleet.wait_committed("dev-3", "1.1.0").await?;
        let planned: RolloutPreview = fleet.operator.json(&[&["rollout", "plan"], &everybody[..]].concat()).await?;
        let left_out: Vec<&str> = planned.unsuitable.values().map(String::as_str).collect();
        ensure!(left_out.len() == 2, "{left_out:?}");
        ensure!(left_out[0].starts_with("quarantined since") && left_out[1].starts_with("pinned by"), "{left_out:?}");
        let shown = fleet.operator.try_run(&["device", "show", "dev-2"]).await?;
        ensure!(shown.stdout.contains("pinned") && shown.stdout.contains("demo"), "{shown:?}");
        fleet.operator.run(&["device", "release", "dev-1", "--reason", "new power supply"]).await?;
        fleet.operator.run(&["device", "unpin", "dev-2"]).await?;
        let last = fleet.roll_out(&everybody).await?;
        fleet.wait_rollout(&last, RolloutStatus::Completed).await?;
        for device in ["dev-1", "dev-2"] {
            fleet.wait_committed(device, "1.1.0").await?;
        }
        let kinds: Vec<String> = fleet.operator.events().await?.into_iter().map(|event| event.kind).collect();
        for kind in ["device.quarantined", "device.released", "device.pinned", "device.unpinned"] {
            ensure!(kinds.iter().filter(|known| *known == kind).count() == 1, "{kind} in {kinds:?}");
        }
        stage::ensure_all_answered(&traffic)
    });
}

/// Brings a further device to the fleet.
async fn add(fleet: &mut Fleet, id: &str) -> anyhow::Result<()> {
    let token = fleet.enrolment_token(1).await?;
    fleet.add_device(&DeviceSetup { id, token: &token, window_ms: 500, settings: "" }, false).await
}

/// The group that is held back keeps what it has, and who comes later is left out; both are said.
#[test]
fn a_rollout_leaves_out_whom_it_is_to() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 2).await?;
        // By the hash of its name, this one is among the first tenth.
        add(&mut fleet, "dev-5").await?;
        fleet.wait_online(3).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        fleet.release_digits("1.1.0").await?;
        let wish = ["--bundle", "digits@1.1.0", "-l", "*", "--holdback", "10%", "--joining", "exclude"];
        let slow = [&wish[..], &["--soak", "5m", "--max-duration", "10m", "--probation", "500ms"]].concat();
        let planned: RolloutPreview = fleet.operator.json(&[&["rollout", "plan"], &slow[..]].concat()).await?;
        ensure!(planned.group.iter().map(|id| id.as_str()).eq(["dev-5"]), "{planned:?}");
        let id = fleet.roll_out(&slow).await?;
        wait::until("it has begun", PATIENCE, async || {
            Ok((fleet.operator.rollout(&id).await?.status == RolloutStatus::Running).then_some(()))
        })
        .await?;
        add(&mut fleet, "dev-3").await?;
        fleet.wait_online(4).await?;
        let view = wait::until("who came later is named", PATIENCE, async || {
            let view = fleet.operator.rollout(&id).await?;
            let later =
                view.waiting.iter().any(|why| matches!(why, Waiting::CameLater { devices } if devices.len() == 1));
            Ok(later.then_some(view))
        })
        .await?;
        let says = |is: &dyn Fn(&Waiting) -> bool| view.waiting.iter().any(is);
        ensure!(
            says(&|why| matches!(why, Waiting::HoldbackGroup { devices } if devices.len() == 1)),
            "{:?}",
            view.waiting
        );
        ensure!(view.waves[0].devices.len() == 2, "{:?}", view.waves);
        fleet.operator.run(&["rollout", "abort", &id]).await?;
        let id = fleet.roll_out(&[&wish[..], &stage::EASY[..]].concat()).await?;
        fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
        for device in &planned.group {
            let committed =
                fleet.operator.device(device.as_str()).await?.reported.and_then(|reported| reported.committed);
            ensure!(committed.is_some_and(|has| has.bundle.version.to_string() == "1.0.0"), "{device}");
        }
        fleet.wait_committed("dev-3", "1.1.0").await?;
        stage::ensure_all_answered(&traffic)
    });
}
