//! A bundle reaches devices, serves, is watched, and goes back when it fails.

use anyhow::{Context as _, ensure};
use muster_shared::api::{DriftReport, EventView};
use muster_shared::rollout::{Outcome, RolloutStatus, Rule};
use muster_tests::fleet::PATIENCE;
use muster_tests::wait;

use crate::stage::{self, PACE};

#[test]
fn a_good_bundle_is_promoted_and_a_bad_one_goes_back() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 4).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;

        // Cut off before the next rollout begins: it joins when it returns.
        fleet.cut_off("dev-4").await?;
        fleet.release_digits("1.1.0").await?;
        let waves = ["--wave", "100%:id=dev-1", "--wave", "100%"];
        let create = [&["--bundle", "digits@1.1.0", "--selector", "*"], &waves[..], &PACE[..]].concat();
        let good = fleet.roll_out(&create).await?;
        let view = fleet.wait_rollout(&good, RolloutStatus::Completed).await?;
        ensure!(view.verdicts.len() == 2, "{:?}", view.verdicts);
        ensure!(view.verdicts.iter().all(|verdict| verdict.outcome == Outcome::Successful));
        ensure!(view.verdicts[0].canary.devices == 1, "{:?}", view.verdicts[0].canary);
        fleet.device("dev-4")?.link()?.mend();
        fleet.wait_committed("dev-4", "1.1.0").await?;

        fleet.release_digits("1.2.0").await?;
        let create = [&["--bundle", "digits@1.2.0", "--selector", "*"], &waves[..], &PACE[..]].concat();
        let bad = fleet.roll_out(&create).await?;
        let view = fleet.wait_rollout(&bad, RolloutStatus::RolledBack).await?;
        let verdict = view.verdicts.last().context("there is a verdict")?;
        let failed: Vec<Rule> =
            verdict.checks.iter().filter(|c| c.outcome == Outcome::Failed).map(|c| c.rule).collect();
        ensure!(failed == [Rule::PredictionPsi], "{verdict:?}");
        ensure!(verdict.control.devices > 0 && verdict.control.predictions > 0, "{verdict:?}");
        fleet.wait_committed("dev-1", "1.1.0").await?;
        stage::ensure_all_answered(&traffic)?;
        let seen = traffic.seen();
        ensure!(seen["dev-1"].by_version.contains_key("1.2.0"), "{seen:?}");
        ensure!(seen.iter().all(|(id, s)| id == "dev-1" || !s.by_version.contains_key("1.2.0")), "{seen:?}");

        let drift: DriftReport = fleet.operator.json(&["drift", "show", "digits@1.1.0"]).await?;
        ensure!(drift.groups.len() == 1 && drift.groups[0].devices >= 3, "{drift:?}");
        let columns: Vec<&str> = drift.groups[0].columns.iter().map(|column| column.name.as_str()).collect();
        ensure!(columns.len() == 68 && columns.contains(&"probabilities.class"), "{columns:?}");
        ensure!(drift.groups[0].columns.iter().all(|column| column.n > 0 && column.psi.is_some()), "{drift:?}");

        let events: Vec<EventView> = fleet.operator.events().await?;
        for kind in ["device.enrolled", "device.committed", "rollout.completed", "rollout.rolled_back"] {
            ensure!(events.iter().any(|event| event.kind == kind), "no {kind} among the events");
        }
        ensure!(events.windows(2).all(|pair| pair[0].sequence < pair[1].sequence), "events are out of order");
        Ok(())
    });
}

#[test]
fn without_requests_a_rollout_pauses_and_people_decide() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 1).await?;
        fleet.release_digits("1.0.0").await?;
        let quick = ["--soak", "100ms", "--max-duration", "3s", "--probation", "100ms"];
        let create = [&["--bundle", "digits@1.0.0", "--selector", "*"], &quick[..]].concat();
        let id = fleet.roll_out(&create).await?;
        let view = fleet.wait_rollout(&id, RolloutStatus::Paused).await?;
        let verdict = view.verdicts.last().context("there is a verdict")?;
        ensure!(verdict.outcome == Outcome::Inconclusive, "{verdict:?}");
        ensure!(verdict.canary.requests == 0, "{verdict:?}");
        fleet.operator.run(&["rollout", "resume", &id]).await?;
        fleet.wait_rollout(&id, RolloutStatus::Paused).await?;
        fleet.operator.run(&["rollout", "abort", &id, "--reason", "nobody asks this device"]).await?;
        let view = fleet.wait_rollout(&id, RolloutStatus::Stopped).await?;
        ensure!(view.status_reason.contains("nobody asks this device"), "{}", view.status_reason);
        // Stopped is not undone: the device keeps what it has committed.
        fleet.wait_committed("dev-1", "1.0.0").await?;
        fleet.operator.run(&["rollout", "rollback", &id]).await?;
        fleet.wait_rollout(&id, RolloutStatus::RolledBack).await?;
        wait::until("the device runs nothing, as before", PATIENCE, async || {
            let reported = fleet.operator.device("dev-1").await?.reported;
            Ok(reported.filter(|r| r.running.is_none() && r.committed.is_none()).map(|_| ()))
        })
        .await
    });
}
