//! Agent programs brought to a fleet by a controller, as models are.

use anyhow::ensure;
use muster_shared::messages::{StateReport, UpdateState};
use muster_shared::rollout::RolloutStatus;
use muster_shared::trust::{DocumentKind, sign_document};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::traffic::Traffic;
use muster_tests::{keys, wait};

use super::supervisor::Supervisor;
use super::{GOOD, program};
use crate::stage::{self, STRICT_OF_PROGRAMS};

const DEVICES: [&str; 3] = ["dev-1", "dev-2", "dev-3"];

/// Gives the controller a program of `version` that does `what`, as `muster bundle push` would one that was built.
async fn release(fleet: &Fleet, version: &str, what: &str) -> anyhow::Result<()> {
    let (script, manifest) = program(&fleet.binaries.agent, version, what)?;
    let key = keys::read(&fleet.folder.join("keys/release.key"))?;
    let envelope = sign_document(DocumentKind::Manifest, &manifest, [&key])?;
    let folder = fleet.folder.join(format!("program-{version}"));
    std::fs::create_dir_all(folder.join("files"))?;
    std::fs::write(folder.join("files/muster-agent"), script)?;
    std::fs::write(folder.join("manifest.json"), serde_json::to_vec(&envelope)?)?;
    let folder = folder.display().to_string();
    let pushed: muster_shared::api::BundleView = fleet.operator.json(&["bundle", "push", &folder]).await?;
    ensure!(!pushed.track.is_model(), "{pushed:?}");
    Ok(())
}

/// Begins the rollout of `version` to one device, then to all.
async fn roll_out(fleet: &Fleet, version: &str) -> anyhow::Result<String> {
    let bundle = format!("muster-agent@{version}");
    let what = ["--bundle", &bundle, "--selector", "*", "--wave", "1", "--wave", "100%"];
    fleet.roll_out(&[&what, STRICT_OF_PROGRAMS].concat()).await
}

async fn report(fleet: &Fleet, id: &str) -> anyhow::Result<StateReport> {
    Ok(fleet.operator.device(id).await?.reported.unwrap_or_default())
}

/// Waits until every device runs the program of `version` for good, and answers by the model that it always had.
async fn all_run(fleet: &Fleet, traffic: &Traffic, version: &str) -> anyhow::Result<()> {
    for id in DEVICES {
        wait::until(&format!("{id} runs {version}"), PATIENCE, async || {
            let program = report(fleet, id).await?.program.unwrap_or_default();
            let is = |bundle: &Option<muster_shared::messages::InstalledBundle>| {
                bundle.as_ref().is_some_and(|bundle| bundle.bundle.version.to_string() == version)
            };
            Ok((is(&program.running) && is(&program.committed)).then_some(()))
        })
        .await?;
        let answered = traffic.seen_by(id).answered;
        wait::until(&format!("{id} answers"), PATIENCE, async || {
            Ok((traffic.seen_by(id).answered > answered).then_some(()))
        })
        .await?;
        let model = report(fleet, id).await?.committed.map(|bundle| bundle.bundle.to_string());
        ensure!(model.as_deref() == Some("digits@1.0.0"), "{id} has {model:?}");
    }
    Ok(())
}

#[test]
fn a_fleet_takes_a_program_in_waves_and_a_bad_one_stops_at_the_first() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, DEVICES.len()).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        let mut supervisors = Vec::new();
        for id in DEVICES {
            // Each change of program is a restart, in which nobody answers.
            traffic.expect(id, false);
            let device = fleet.device(id)?;
            device.process_mut().stop().await?;
            supervisors.push(Supervisor::start(&binaries.agent, device.folder(), true)?);
        }
        fleet.wait_online(DEVICES.len()).await?;

        release(&fleet, "0.2.0", GOOD).await?;
        let id = roll_out(&fleet, "0.2.0").await?;
        let view = fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
        ensure!((view.waves[0].devices.len(), view.waves[1].devices.len()) == (1, 2), "{view:?}");
        all_run(&fleet, &traffic, "0.2.0").await?;

        release(&fleet, "0.3.0", "exit 1").await?;
        let id = roll_out(&fleet, "0.3.0").await?;
        let view = fleet.wait_rollout(&id, RolloutStatus::RolledBack).await?;
        ensure!((view.waves[0].devices.len(), view.waves[1].devices.len()) == (1, 0), "{view:?}");
        all_run(&fleet, &traffic, "0.2.0").await?;
        for id in DEVICES {
            let update = report(&fleet, id).await?.program.unwrap_or_default().update;
            ensure!(update.state == UpdateState::Committed, "{id}: {update:?}");
        }
        drop(supervisors);
        Ok(())
    });
}
