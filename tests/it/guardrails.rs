//! Guardrails that are no limits: numbers that applications send, and what models predict.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_shared::rollout::{Metric, Outcome, RolloutEvidence, RolloutStatus, Rule};
use muster_tests::device::Device;
use muster_tests::fixtures;
use muster_tests::fleet::Fleet;
use muster_tests::traffic::Traffic;
use serde_json::{Value, json};

use crate::stage::{self, EASY};

const DEVICES: usize = 14;

/// Applications that tell the agents of all devices how often their lines stop, until they are finished.
pub(crate) struct Applications {
    over: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

impl Applications {
    /// Starts one for each device of `fleet`; under a version its line stops as often as `stops` says, or up to two times more.
    pub(crate) fn start(fleet: &Fleet, stops: fn(&str) -> u32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let start = |device: &Device| tokio::spawn(application(device.inference_url.clone(), stops, Arc::clone(&over)));
        Self { tasks: fleet.devices.iter().map(start).collect(), over }
    }

    /// Lets them end.
    pub(crate) async fn finish(self) -> anyhow::Result<()> {
        self.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        Ok(())
    }
}

async fn application(url: String, stops: fn(&str) -> u32, over: Arc<AtomicBool>) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    for at in 0u32.. {
        ticks.tick().await;
        if over.load(Ordering::Relaxed) {
            break;
        }
        let Ok(answer) = client.get(format!("{url}/v2/models/digits")).send().await else { continue };
        let model: Value = answer.json().await?;
        let stops = stops(model["versions"][0].as_str().unwrap_or_default()) + at % 3;
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

/// In the field, digits 1.2.0 takes nearly every image for a 4; its errors, latencies and golden examples are as they should be.
async fn predictions_that_move_are_taken_back(fleet: &Fleet) -> anyhow::Result<()> {
    fleet.release_digits("1.2.0").await?;
    let gate = ["--wave", "50%", "--wave", "100%", "--controls", "1", "--guardrail", "prediction-drift"];
    // Every gate has something to be proven.
    let proof = ["--guardrail", "error-rate=50%"];
    let id = fleet
        .roll_out(&[&["--bundle", "digits@1.2.0", "--selector", "*"], &gate[..], &proof[..], &EASY[..]].concat())
        .await?;
    let view = fleet.wait_rollout(&id, RolloutStatus::RolledBack).await?;
    let verdict = view.verdicts.last().context("it was judged")?;
    let failed: Vec<Rule> =
        verdict.checks.iter().filter(|check| check.outcome == Outcome::Failed).map(|check| check.rule).collect();
    ensure!(failed == [Rule::Gate], "only the comparison took it back: {verdict:?}");
    let report = verdict.gate.as_ref().context("it was compared")?;
    let [predictions, errors] = &report.guardrails[..] else { anyhow::bail!("{report:?}") };
    let drift = predictions.drift.as_ref().context("predictions were compared")?;
    ensure!(predictions.guardrail.metric == Metric::PredictionDrift && drift.p_value <= drift.level, "{report:?}");
    ensure!(errors.mean_difference.is_some_and(|share| share.abs() < 1e-9), "{errors:?}");
    // The class that moved most, and by how much: on the same images, 1.0.0 says a tenth of each.
    ensure!(drift.class.as_deref() == Some("4") && drift.difference > 0.5, "{drift:?}");
    ensure!(verdict.summary.contains("predictions: \"4\""), "{}", verdict.summary);
    for device in &fleet.devices {
        fleet.wait_committed(&device.id, "1.0.0").await?;
    }
    Ok(())
}

#[test]
fn canaries_that_are_worse_by_what_their_application_counts_or_predict_otherwise_are_taken_back() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, DEVICES).await?;
        let mut traffic = Traffic::new(fixtures::held_out()?, Duration::from_millis(100));
        fleet.devices.iter().for_each(|device| traffic.start(&device.id, &device.inference_url));
        let applications = Applications::start(&fleet, |version| if version == "1.1.0" { 7 } else { 1 });
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
        applications.finish().await?;
        predictions_that_move_are_taken_back(&fleet).await?;
        let seen = traffic.finish().await;
        let answered_by_it = seen.values().filter(|seen| seen.by_version.contains_key("1.2.0")).count();
        ensure!(answered_by_it == DEVICES / 2, "{seen:?}");
        stage::ensure_all_answered(&traffic)
    });
}
