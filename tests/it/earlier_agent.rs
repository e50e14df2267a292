//! An agent of an earlier version under today's controller, and today's agent on what the earlier one has left, and back: as packages that are
//! installed over one another do. `MUSTER_EARLIER_AGENT` names the earlier agent's program, built from an earlier commit.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use muster_shared::rollout::RolloutStatus;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;

use crate::stage::{self, PACE};

/// Installs `agent` as the program of the device's package in `folder`, and says where that is.
fn install(folder: &Path, agent: &Path) -> anyhow::Result<PathBuf> {
    stage::agent_by(folder, &format!("exec {agent:?} \"$@\""))
}

/// What the device says it understands, and what it is known by.
async fn known_as(fleet: &Fleet) -> anyhow::Result<(u32, u64)> {
    let device = fleet.operator.device("dev-1").await?;
    Ok((device.protocol, device.enrolled_at_ms))
}

async fn brings(fleet: &Fleet, version: &str) -> anyhow::Result<()> {
    let bundle = format!("digits@{version}");
    let rollout = fleet.roll_out(&[&["--bundle", &bundle, "--selector", "*"], &PACE[..]].concat()).await?;
    fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
    fleet.wait_committed("dev-1", version).await
}

#[test]
#[ignore = "needs an agent of an earlier commit, named by MUSTER_EARLIER_AGENT"]
fn an_earlier_agent_does_the_main_job_and_todays_goes_on_with_its_data_and_back() {
    stage::run(async |binaries, folder| {
        let earlier = std::env::var_os("MUSTER_EARLIER_AGENT").context("MUSTER_EARLIER_AGENT names no program")?;
        let (earlier, todays) = (fs::canonicalize(earlier)?, binaries.agent.clone());
        let packaged = install(&folder, &earlier)?;
        let mut fleet = stage::fleet_of(binaries, &folder, packaged, 500, "").await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        fleet.release_digits("1.1.0").await?;
        fleet.release_digits("1.2.0").await?;
        let before = known_as(&fleet).await?;
        eprintln!("the earlier agent is of number {}", before.0);

        for (agent, version) in [(&todays, "1.1.0"), (&earlier, "1.2.0"), (&todays, "1.0.0")] {
            install(&folder, agent)?;
            // What is installed answers before anything new comes, and the device is who it was.
            stage::kill_and_restart(&mut fleet, &traffic).await?;
            let expected = if agent == &todays { muster_shared::protocol::PROTOCOL } else { before.0 };
            wait::until(&format!("the device says that it is of number {expected}"), PATIENCE, async || {
                Ok((known_as(&fleet).await? == (expected, before.1)).then_some(()))
            })
            .await?;
            brings(&fleet, version).await?;
        }
        let devices = fleet.operator.devices().await?;
        ensure!(devices.len() == 1, "{devices:?}");
        stage::ensure_all_answered(&traffic)
    });
}
