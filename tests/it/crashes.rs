//! Processes die at bad moments; nothing is lost.

use std::time::Duration;

use anyhow::ensure;
use muster_shared::rollout::RolloutStatus;
use muster_tests::fleet::PATIENCE;
use muster_tests::wait;

use crate::stage::{self, PACE};

/// Kills the agent again and again while it updates, each time a little later.
#[test]
fn an_agent_killed_at_any_moment_ends_with_the_new_version() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 1).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        fleet.release_large_digits("1.1.0", 24).await?;
        let tolerant = [&["--bundle", "digits@1.1.0", "--selector", "*"], &PACE[..], &["--max-failures", "100"]];
        let id = fleet.roll_out(&tolerant.concat()).await?;
        for round in 0u64..8 {
            let began = std::time::Instant::now();
            wait::until("the moment has come", PATIENCE, async || {
                Ok((began.elapsed() >= Duration::from_millis(round * 60)).then_some(()))
            })
            .await?;
            traffic.expect("dev-1", false);
            fleet.device("dev-1")?.kill()?;
            fleet.device("dev-1")?.restart().await?;
            let answered = traffic.seen_by("dev-1").answered;
            wait::until("the device answers again", PATIENCE, async || {
                Ok((traffic.seen_by("dev-1").answered > answered).then_some(()))
            })
            .await?;
            traffic.expect("dev-1", true);
        }
        fleet.wait_committed("dev-1", "1.1.0").await?;
        fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
        stage::ensure_all_answered(&traffic)?;
        let versions = traffic.seen_by("dev-1").by_version;
        ensure!(versions.contains_key("1.0.0") && versions.contains_key("1.1.0"), "{versions:?}");
        Ok(())
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
