//! What a device holds already does not travel again.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use muster_shared::rollout::RolloutStatus;
use muster_tests::fixtures;
use muster_tests::fleet::Fleet;

use crate::stage::{self, EASY};

/// Images in the calibration set beside the model: some megabytes of them, of which neighbours differ a little.
const COPIES: usize = 24;

/// What one update cost a device.
#[derive(Debug, Default, Clone, Copy)]
struct Cost {
    received_bytes: f64,
    copied: f64,
}

async fn spent(fleet: &mut Fleet, http: &reqwest::Client) -> anyhow::Result<Cost> {
    let device = fleet.device("dev-1")?;
    Ok(Cost {
        received_bytes: device.metric(http, "muster_agent_chunk_received_bytes_total").await?,
        copied: device.metric(http, "muster_agent_chunks_copied_total").await?,
    })
}

/// Brings `version` to the device, and says what that cost.
async fn update(fleet: &mut Fleet, http: &reqwest::Client, version: &str) -> anyhow::Result<Cost> {
    let before = spent(fleet, http).await?;
    let write = |path: &Path| fixtures::write_calibration_set(path, COPIES);
    fleet.release_digits_with(version, "calibration.npy", write).await?;
    let bundle = format!("digits@{version}");
    let id = fleet.roll_out(&[&["--bundle", &bundle, "--selector", "*"], &EASY[..]].concat()).await?;
    fleet.wait_committed("dev-1", version).await?;
    fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
    let after = spent(fleet, http).await?;
    Ok(Cost { received_bytes: after.received_bytes - before.received_bytes, copied: after.copied - before.copied })
}

/// The calibration set in the slot that holds `model` too.
fn calibration_beside(data: &Path, model: &[u8]) -> anyhow::Result<PathBuf> {
    let found = ["a", "b"]
        .map(|slot| data.join("slots").join(slot).join("files"))
        .into_iter()
        .find(|folder| std::fs::read(folder.join("model.onnx")).is_ok_and(|there| there == model));
    Ok(found.context("no slot holds the model")?.join("calibration.npy"))
}

#[test]
fn a_device_fetches_what_is_new_and_takes_the_rest_from_the_version_before() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 1).await?;
        let traffic = stage::traffic(&fleet)?;
        let http = reqwest::Client::new();
        let first = update(&mut fleet, &http, "1.0.0").await?;
        traffic.expect("dev-1", true);
        let set = folder.join("descriptions/1.0.0/calibration.npy");
        let set_bytes = std::fs::metadata(&set)?.len() as f64;
        // Nothing is there to take from, and all of it is shorter on the way.
        ensure!(first.copied == 0.0 && first.received_bytes < set_bytes / 2.0, "{first:?} of {set_bytes}");

        let second = update(&mut fleet, &http, "1.1.0").await?;
        let model = std::fs::read(fixtures::digits().join("digits-1.1.0.onnx"))?;
        ensure!(second.received_bytes < 2.0 * model.len() as f64, "{second:?}");
        ensure!(second.copied >= set_bytes / 65_536.0, "{second:?}");

        // A piece of it rots: that one has to come again, although the version before claims to have it.
        let rotten = calibration_beside(&fleet.device("dev-1")?.folder().join("data"), &model)?;
        let mut content = std::fs::read(&rotten)?;
        ensure!(content == std::fs::read(&set)?);
        let middle = content.len() / 2;
        content[middle] ^= 1;
        std::fs::write(&rotten, &content)?;
        let third = update(&mut fleet, &http, "1.2.0").await?;
        ensure!((second.copied - third.copied - 1.0).abs() < 0.5, "{third:?} after {second:?}");
        let model = std::fs::read(fixtures::digits().join("digits-1.2.0.onnx"))?;
        let whole = calibration_beside(&fleet.device("dev-1")?.folder().join("data"), &model)?;
        ensure!(std::fs::read(whole)? == std::fs::read(&set)?);
        stage::ensure_all_answered(&traffic)
    });
}
