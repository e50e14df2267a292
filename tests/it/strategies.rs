//! How bundles reach a fleet: emergencies, and ways back to a version by name.

use anyhow::{Context, ensure};
use muster_shared::rollout::{RolloutPreview, RolloutStatus};

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
