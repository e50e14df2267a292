//! Guardrails of what the model's requests do not tell: numbers that applications send.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_shared::rollout::{Metric, Outcome, RolloutEvidence, RolloutStatus};
use muster_tests::device::Device;
use muster_tests::fixtures;
use muster_tests::traffic::Traffic;
use serde_json::{Value, json};

use crate::stage::{self, EASY};

const DEVICES: usize = 14;

/// The application of one device, which counts how often its line stops: hardly ever under the old version, all the time under the new one.
async fn application(url: String, over: Arc<AtomicBool>) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    for at in 0u32.. {
        ticks.tick().await;
        if over.load(Ordering::Relaxed) {
            break;
        }
        let Ok(answer) = client.get(format!("{url}/v2/models/digits")).send().await else { continue };
        let model: Value = answer.json().await?;
        let stops = if model["versions"][0] == "1.1.0" { 7 } else { 1 } + at % 3;
        // While nothing serves there is nobody to send it to.
        drop(
            client
                .post(format!("{url}/v2/models/digits/metrics"))
                .json(&json!({"metrics": {"line_stops": stops}}))
                .send()
                .await,
        );
    }
    Ok(())
}

async fn shown(device: &Device) -> anyhow::Result<String> {
    Ok(reqwest::get(format!("{}/metrics", device.inference_url)).await?.text().await?)
}

#[test]
fn canaries_that_are_worse_by_what_their_application_counts_are_taken_back() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, DEVICES).await?;
        let mut traffic = Traffic::new(fixtures::held_out()?, Duration::from_millis(100));
        let over = Arc::new(AtomicBool::new(false));
        let mut applications = Vec::new();
        for device in &fleet.devices {
            traffic.start(&device.id, &device.inference_url);
            applications.push(tokio::spawn(application(device.inference_url.clone(), Arc::clone(&over))));
        }
        stage::first_version(&fleet, &traffic).await?;

        fleet.release_digits("1.1.0").await?;
        let gate = [
            "--guardrail",
            "metric:line_stops:0..10=5%",
            "--guardrail",
            "memory:0MB..4GB=50%",
            "--guardrail",
            "confidence",
        ];
        let waves = ["--wave", "50%", "--wave", "100%", "--controls", "1"];
        let create = [&["--bundle", "digits@1.1.0", "--selector", "*"], &waves[..], &gate[..], &EASY[..]].concat();
        let id = fleet.roll_out(&create).await?;
        let view = fleet.wait_rollout(&id, RolloutStatus::RolledBack).await?;
        let verdict = view.verdicts.last().context("it was judged")?;
        let report = verdict.gate.as_ref().context("it was compared")?;
        ensure!(report.outcome == Outcome::Failed, "{report:?}");
        ensure!(verdict.summary.contains("line_stops from 0 to 10 +"), "{}", verdict.summary);
        let [stops, memory, confidence] = &report.guardrails[..] else { anyhow::bail!("{report:?}") };
        ensure!((stops.guardrail.metric, stops.outcome) == (Metric::Custom, Outcome::Failed), "{stops:?}");
        ensure!(stops.mean_difference.is_some_and(|share| (0.4..0.8).contains(&share)), "{stops:?}");
        // The agents' memory and the models' confidence are there too, and are as they were.
        for other in [memory, confidence] {
            ensure!(other.blocks == 7 && other.outcome != Outcome::Failed, "{other:?}");
            ensure!(other.mean_difference.is_some_and(|share| share.abs() < 0.3), "{other:?}");
        }
        for device in &fleet.devices {
            fleet.wait_committed(&device.id, "1.0.0").await?;
        }
        let page = shown(&fleet.devices[0]).await?;
        ensure!(page.contains("muster_agent_application_metric{name=\"line_stops\"} "), "{page}");

        let evidence: Vec<RolloutEvidence> = fleet.operator.json(&["rollout", "evidence", &id]).await?;
        let compared = evidence[0].gate().context("the verdict keeps its scores")?;
        ensure!(
            compared.blocks.iter().all(|block| block.canary.scores[0] > block.controls[0].scores[0]),
            "{evidence:?}"
        );
        let file = folder.join("evidence.json");
        let path = file.to_str().context("a path in words")?;
        fleet.operator.run(&["rollout", "evidence", &id, "--out", path]).await?;
        fleet.operator.run(&["rollout", "replay", path]).await?;
        over.store(true, Ordering::Relaxed);
        for application in applications {
            application.await??;
        }
        traffic.finish().await;
        stage::ensure_all_answered(&traffic)
    });
}
