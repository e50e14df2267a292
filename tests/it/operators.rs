//! What operators see at the command line, in good and in bad moments.

use anyhow::ensure;
use muster_shared::api::BundleView;
use muster_shared::rollout::{FleetStopView, RolloutStatus};
use muster_tests::fixtures;

use crate::stage::{self, PACE};

#[test]
fn mistakes_get_a_clear_answer_and_a_stable_status() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 1).await?;
        fleet.release_digits("1.0.0").await?;
        let cases: [(&[&str], i32, &str); 8] = [
            (&["device", "show", "nobody"], 3, "nobody"),
            (&["device", "show", "Not A Name"], 2, "device id"),
            (&["device", "list", "--selector", "site=a=b"], 2, "selector"),
            (&["device", "label", "dev-1", "bad key=x"], 2, "label"),
            (&["rollout", "show", "r99"], 3, "r99"),
            (&["rollout", "create", "--bundle", "digits@9.9.9", "--selector", "*"], 3, "9.9.9"),
            (&["rollout", "create", "--bundle", "digits", "--selector", "*"], 2, "name@version"),
            (&["rollout", "create", "--bundle", "digits@1.0.0", "--selector", "*", "--wave", "10%"], 2, "last wave"),
        ];
        for (args, status, words) in cases {
            let ran = fleet.operator.try_run(args).await?;
            ensure!(ran.status == Some(status), "{args:?}: {ran:?}");
            ensure!(ran.stderr.contains(words), "{args:?} must say {words:?}: {ran:?}");
        }
        Ok(())
    });
}

#[test]
fn a_version_is_pushed_once_and_never_changes() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 0).await?;
        fleet.release_digits("1.0.0").await?;
        let built = folder.join("bundles/digits-1.0.0");
        let built = built.to_str().unwrap_or_default();
        fleet.operator.run(&["bundle", "push", built]).await?;
        let other = folder.join("descriptions");
        std::fs::create_dir_all(&other)?;
        let text = std::fs::read_to_string(fixtures::digits().join("bundle-1.0.0.toml"))?;
        for file in ["reference.csv", "golden-1.0.0.json", "digits-1.0.0.onnx"] {
            std::fs::copy(fixtures::digits().join(file), other.join(file))?;
        }
        let description = other.join("bundle.toml");
        std::fs::write(&description, text.replace("Handwritten digits", "Something else"))?;
        let refused = fleet.release("other", &description).await.unwrap_err().to_string();
        ensure!(refused.contains("digits@1.0.0") && refused.contains("Some(3)"), "{refused}");
        let bundles: Vec<BundleView> = fleet.operator.json(&["bundle", "list"]).await?;
        ensure!(bundles.len() == 1, "{bundles:?}");
        Ok(())
    });
}

#[test]
fn an_operator_pauses_resumes_and_rolls_back_by_hand() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 2).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        fleet.release_digits("1.1.0").await?;
        let long = [
            "--soak",
            "30s",
            "--max-duration",
            "10m",
            "--probation",
            "500ms",
            "--wave",
            "100%:id=dev-1",
            "--wave",
            "100%",
        ];
        let create = [&["--bundle", "digits@1.1.0", "--selector", "*"], &long[..]].concat();
        let id = fleet.roll_out(&create).await?;
        fleet.wait_committed("dev-1", "1.1.0").await?;
        fleet.operator.run(&["rollout", "pause", &id, "--reason", "lunch"]).await?;
        let view = fleet.wait_rollout(&id, RolloutStatus::Paused).await?;
        ensure!(view.status_reason.contains("lunch"), "{}", view.status_reason);
        // A second rollout must not touch devices that this one holds.
        let second = fleet
            .operator
            .try_run(&[&["rollout", "create", "--bundle", "digits@1.0.0", "--selector", "*"], &PACE[..]].concat())
            .await?;
        ensure!(second.status == Some(3) || second.status == Some(0), "{second:?}");
        fleet.operator.run(&["rollout", "resume", &id]).await?;
        fleet.operator.run(&["rollout", "rollback", &id, "--reason", "changed our minds"]).await?;
        fleet.wait_rollout(&id, RolloutStatus::RolledBack).await?;
        fleet.wait_committed("dev-1", "1.0.0").await?;
        stage::ensure_all_answered(&traffic)
    });
}

/// One call ends all there is, across a crash of the controller; devices keep what they have, and no rollout begins before it is lifted.
#[test]
fn a_fleet_wide_stop_ends_every_rollout_and_outlives_the_controller() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 2).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        fleet.release_digits("1.1.0").await?;
        let long = ["--soak", "5m", "--max-duration", "10m", "--probation", "500ms"];
        let serving = [&["--bundle", "digits@1.1.0", "--selector", "id=dev-1"], &long[..]].concat();
        let beside = [&["--bundle", "digits@1.1.0", "--selector", "id=dev-2", "--stage", "shadow"], &long[..]].concat();
        let (serving, beside) = (fleet.roll_out(&serving).await?, fleet.roll_out(&beside).await?);
        fleet.wait_committed("dev-1", "1.1.0").await?;
        let stopped: FleetStopView = fleet.operator.json(&["rollout", "stop-all", "--reason", "smoke"]).await?;
        ensure!(stopped.rollouts.len() == 2, "{stopped:?}");
        ensure!(fleet.operator.rollout(&serving).await?.status == RolloutStatus::Stopped, "it goes on");
        fleet.wait_rollout(&beside, RolloutStatus::RolledBack).await?;
        fleet.controller.crash_and_restart().await?;
        fleet.wait_online(2).await?;
        let refused =
            fleet.operator.try_run(&["rollout", "create", "--bundle", "digits@1.0.0", "--selector", "*"]).await?;
        ensure!(refused.status == Some(3), "{refused:?}");
        for words in ["the fleet is stopped since", "smoke", "lift-stop"] {
            ensure!(refused.stderr.contains(words), "{words:?} is not said: {refused:?}");
        }
        let listed = fleet.operator.try_run(&["rollout", "list"]).await?;
        ensure!(listed.stderr.contains("the fleet is stopped since"), "{listed:?}");
        fleet.wait_committed("dev-1", "1.1.0").await?;
        fleet.operator.run(&["rollout", "lift-stop"]).await?;
        let next =
            fleet.roll_out(&[&["--bundle", "digits@1.1.0", "--selector", "*"], &stage::EASY[..]].concat()).await?;
        fleet.wait_rollout(&next, RolloutStatus::Completed).await?;
        let kinds: Vec<String> = fleet.operator.events().await?.into_iter().map(|event| event.kind).collect();
        ensure!(kinds.iter().any(|kind| kind == "fleet.stopped"), "{kinds:?}");
        stage::ensure_all_answered(&traffic)
    });
}
