//! Processes die at bad moments; nothing is lost.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use muster_shared::messages::UpdateState;
use muster_shared::rollout::RolloutStatus;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::traffic::Traffic;
use muster_tests::wait;

use crate::stage::{self, PACE};

/// Kills the agent again and again while it updates, each time a little later, until the new version has begun to answer.
#[test]
fn an_agent_killed_at_any_moment_ends_with_the_new_version() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 1).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        fleet.release_large_digits("1.1.0", 6_000_000).await?;
        let tolerant = [&["--bundle", "digits@1.1.0", "--selector", "*"], &PACE[..], &["--max-failures", "100"]];
        fleet.roll_out(&tolerant.concat()).await?;
        for round in 0u64..8 {
            let began = Instant::now();
            wait::until("the moment has come", PATIENCE, async || {
                Ok((began.elapsed() >= Duration::from_millis(round * 40)).then_some(()))
            })
            .await?;
            stage::kill_and_restart(&mut fleet, &traffic).await?;
            // A model under which the agent dies three times is given up, which is another test's matter.
            if traffic.seen_by("dev-1").by_version.contains_key("1.1.0") {
                break;
            }
        }
        fleet.wait_committed("dev-1", "1.1.0").await?;
        stage::ensure_all_answered(&traffic)?;
        let versions = traffic.seen_by("dev-1").by_version;
        ensure!(versions.contains_key("1.0.0") && versions.contains_key("1.1.0"), "{versions:?}");
        Ok(())
    });
}

/// Waits until the application of the only device is answered by `version`.
async fn answered_by(traffic: &Traffic, version: &str) -> anyhow::Result<()> {
    wait::until(&format!("{version} answers"), PATIENCE, async || {
        Ok(traffic.seen_by("dev-1").last_version.filter(|last| last == version).map(|_| ()))
    })
    .await
}

/// Brings digits 1.1.0 on trial for longer than the test lasts, with `max_failures` allowed.
async fn long_trial(fleet: &Fleet, traffic: &Traffic, max_failures: &str) -> anyhow::Result<String> {
    stage::first_version(fleet, traffic).await?;
    fleet.release_digits("1.1.0").await?;
    let long = ["--soak", "1s", "--max-duration", "30m", "--probation", "10m", "--max-failures", max_failures];
    let id = fleet.roll_out(&[&["--bundle", "digits@1.1.0", "--selector", "*"], &long[..]].concat()).await?;
    answered_by(traffic, "1.1.0").await?;
    Ok(id)
}

#[test]
fn one_crash_on_a_new_bundle_is_a_failure_that_takes_it_back() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 1).await?;
        let traffic = stage::traffic(&fleet)?;
        let id = long_trial(&fleet, &traffic, "0").await?;
        stage::kill_and_restart(&mut fleet, &traffic).await?;
        let view = fleet.wait_rollout(&id, RolloutStatus::RolledBack).await?;
        let verdict = view.verdicts.last().context("there is a verdict")?;
        ensure!(verdict.canary.failures == 1, "{verdict:?}");
        fleet.wait_committed("dev-1", "1.0.0").await?;
        answered_by(&traffic, "1.0.0").await?;
        stage::ensure_all_answered(&traffic)
    });
}

#[test]
fn a_device_gives_up_a_bundle_it_does_not_survive_three_times() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 1).await?;
        let traffic = stage::traffic(&fleet)?;
        long_trial(&fleet, &traffic, "5").await?;
        for _ in 0..3 {
            answered_by(&traffic, "1.1.0").await?;
            stage::kill_and_restart(&mut fleet, &traffic).await?;
        }
        wait::until("dev-1 has reverted", PATIENCE, async || {
            let reported = fleet.operator.device("dev-1").await?.reported;
            Ok(reported.filter(|reported| reported.update.state == UpdateState::Reverted).map(|_| ()))
        })
        .await?;
        answered_by(&traffic, "1.0.0").await?;
        stage::ensure_all_answered(&traffic)
    });
}

#[test]
fn a_controller_killed_in_mid_rollout_goes_on_where_it_was() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 2).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        fleet.release_digits("1.1.0").await?;
        let waves = ["--wave", "100%:id=dev-2", "--wave", "100%"];
        let create = [&["--bundle", "digits@1.1.0", "--selector", "*"], &waves[..], &PACE[..]].concat();
        let id = fleet.roll_out(&create).await?;
        fleet.controller.crash_and_restart().await?;
        fleet.wait_committed("dev-2", "1.1.0").await?;
        fleet.controller.crash_and_restart().await?;
        let view = fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
        ensure!(view.verdicts.len() == 2, "{:?}", view.verdicts);
        fleet.wait_online(2).await?;
        stage::ensure_all_answered(&traffic)
    });
}
