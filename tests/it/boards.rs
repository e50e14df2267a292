//! Agents for other processors, beside one for this: enrolment, download, checks, inference and commitment through the same program,
//! under emulation. `cross/run.sh` builds such an agent and runs this.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use muster_shared::rollout::RolloutStatus;
use muster_tests::device::DeviceSetup;
use muster_tests::fixtures::{self, Image};
use muster_tests::fleet::{Fleet, PACE};
use muster_tests::traffic::InferResponse;

use crate::stage;

/// By how much an output may differ from that of the same model on another processor.
const TOLERANCE: f32 = 1e-4;

/// The program that the environment names: it takes what `muster-agent` takes.
fn board_agent() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("MUSTER_BOARD_AGENT");
    named
        .map(PathBuf::from)
        .context("MUSTER_BOARD_AGENT must name the agent to try: start this with cross/run.sh TARGET")
}

async fn outputs(http: &reqwest::Client, url: &str, image: &Image) -> anyhow::Result<Vec<f32>> {
    let request = serde_json::json!({
        "inputs": [{ "name": "image", "datatype": "FP32", "shape": [1, 64], "data": image.pixels }]
    });
    let response = http.post(format!("{url}/v2/models/digits/infer")).json(&request).send().await?;
    let answer: InferResponse = response.error_for_status()?.json().await?;
    Ok(answer.outputs.into_iter().flat_map(|output| output.data).collect())
}

/// The largest difference between what the board and the machine answer to the same images.
async fn largest_difference(fleet: &mut Fleet) -> anyhow::Result<f32> {
    let here = fleet.device("here")?.inference_url.clone();
    let board = fleet.device("board")?.inference_url.clone();
    let http = reqwest::Client::new();
    let mut largest = 0.0f32;
    for image in &fixtures::held_out()? {
        let (ours, theirs) = (outputs(&http, &here, image).await?, outputs(&http, &board, image).await?);
        ensure!(ours.len() == 10 && theirs.len() == 10, "{} and {} numbers for ten classes", ours.len(), theirs.len());
        largest = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(largest, f32::max);
    }
    Ok(largest)
}

#[test]
#[ignore = "needs an agent for another processor and its emulator: cross/run.sh TARGET"]
fn a_board_does_the_main_job() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 0).await?;
        let token = fleet.enrolment_token(2).await?;
        let setup = |id| DeviceSetup { id, token: &token, window_ms: 500, settings: "" };
        fleet.add_device(&setup("here"), false).await?;
        fleet.binaries.agent = board_agent()?;
        fleet.add_device(&setup("board"), false).await?;
        fleet.wait_online(2).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;

        fleet.release_digits("1.1.0").await?;
        let waves = ["--wave", "100%:id=board", "--wave", "100%"];
        let create = [&["--bundle", "digits@1.1.0", "--selector", "*"], &waves[..], &PACE[..]].concat();
        let good = fleet.roll_out(&create).await?;
        fleet.wait_rollout(&good, RolloutStatus::Completed).await?;
        for id in ["here", "board"] {
            fleet.wait_committed(id, "1.1.0").await?;
        }
        let largest = largest_difference(&mut fleet).await?;
        ensure!(largest <= TOLERANCE, "outputs differ by {largest}, {TOLERANCE} is put up with");
        eprintln!("outputs differ by {largest:e} at most");

        // A bundle that is worse goes back on the board, too, and its application is answered all the time.
        fleet.release_digits("1.2.0").await?;
        let create = [&["--bundle", "digits@1.2.0", "--selector", "*"], &waves[..], &PACE[..]].concat();
        let bad = fleet.roll_out(&create).await?;
        fleet.wait_rollout(&bad, RolloutStatus::RolledBack).await?;
        fleet.wait_committed("board", "1.1.0").await?;
        ensure!(traffic.seen()["board"].by_version.contains_key("1.2.0"), "{:?}", traffic.seen());
        stage::ensure_all_answered(&traffic)
    });
}
