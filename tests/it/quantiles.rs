//! Quantiles and latency objectives, from the description of a bundle to what people and programs read.

use anyhow::{Context as _, ensure};
use muster_shared::api::DriftReport;
use muster_shared::rollout::RolloutStatus;
use muster_shared::sketch::QuantileSketch;
use muster_tests::fixtures;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;
use serde_json::Value;

use crate::stage::{self, EASY};

/// Two pixels with quantiles, and objectives that every request exceeds and none does.
async fn release(fleet: &Fleet) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(fixtures::digits().join("bundle-1.1.0.toml"))?;
    let text = text.replacen("features = [", "quantiles = [\"p20\", \"p36\"]\nfeatures = [", 1);
    let text = text.replacen("[lineage]", "[objectives]\nlatency-ms = [0.001, 3600000]\n\n[lineage]", 1);
    let folder = fleet.folder.join("described");
    std::fs::create_dir_all(&folder)?;
    for file in ["reference.csv", "golden-1.1.0.json", "digits-1.1.0.onnx"] {
        std::fs::copy(fixtures::digits().join(file), folder.join(file))?;
    }
    let description = folder.join("bundle.toml");
    std::fs::write(&description, text)?;
    fleet.release("with-quantiles", &description).await?;
    fleet.operator.run(&["bundle", "show", "digits@1.1.0"]).await
}

async fn ask(fleet: &Fleet, pixels: &[Vec<f32>]) -> anyhow::Result<()> {
    let url = format!("{}/v2/models/digits/infer", fleet.devices[0].inference_url);
    let client = reqwest::Client::new();
    for rows in pixels.chunks(25) {
        let input = serde_json::json!({
            "name": "image", "datatype": "FP32", "shape": [rows.len(), 64], "data": rows.concat()
        });
        let response = client.post(&url).json(&serde_json::json!({ "inputs": [input] })).send().await?;
        ensure!(response.status().is_success(), "{}", response.status());
    }
    Ok(())
}

#[test]
fn raw_values_are_kept_where_the_bundle_asks_and_slow_requests_counted() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 1).await?;
        let shown = release(&fleet).await?;
        ensure!(shown.contains("p20, p36 (contains raw values)") && shown.contains("0.001 ms, 3600000 ms"), "{shown}");
        let rollout = fleet.roll_out(&[&["--bundle", "digits@1.1.0", "--selector", "*"], &EASY[..]].concat()).await?;
        fleet.wait_committed("dev-1", "1.1.0").await?;
        fleet.operator.run(&["rollout", "abort", &rollout, "--reason", "they have it"]).await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Stopped).await?;

        let pixels: Vec<Vec<f32>> = fixtures::held_out()?.into_iter().map(|image| image.pixels).collect();
        ask(&fleet, &pixels).await?;
        let report = wait::until("everything has been reported", PATIENCE, async || {
            let report: DriftReport = fleet.operator.json(&["drift", "show", "digits@1.1.0"]).await?;
            let group = report.groups.first();
            let counted = group.and_then(|group| Some((group.quantiles.first()?.n, group.objectives.first()?.served)));
            Ok((counted == Some((pixels.len() as u64, 20))).then_some(report))
        })
        .await?;
        let group = &report.groups[0];
        let above: Vec<u64> = group.objectives.iter().map(|count| count.above).collect();
        ensure!(above == [20, 0], "{above:?}");
        let names: Vec<&str> = group.quantiles.iter().map(|column| column.column.as_str()).collect();
        ensure!(names == ["p20", "p36"], "{names:?}");

        let text = fleet.operator.run(&["drift", "show", "digits@1.1.0"]).await?;
        ensure!(text.contains("quantiles (contains raw values), rank error 2.5 %"), "{text}");
        ensure!(
            text.contains("latency of 20 requests: 100.0 % (20) above 0.001 ms, 0.0 % (0) above 3600000 ms"),
            "{text}"
        );

        let out = folder.join("exported");
        let path = out.to_str().context("a path that is text")?;
        let export = ["drift", "export", "digits@1.1.0", "--quantiles", path];
        let written: Value = fleet.operator.json(&export).await?;
        ensure!(written["contains_raw_values"] == true && written["files"][0] == "p20.kll", "{written}");
        // What is asked of a quantile is the exact share of the very values that were sent.
        let sketch = QuantileSketch::from_bytes(&std::fs::read(out.join("p36.kll"))?)?;
        let values: Vec<f64> = pixels.iter().map(|pixels| f64::from(pixels[36])).collect();
        let share = |is: &dyn Fn(f64) -> bool| values.iter().filter(|x| is(**x)).count() as f64 / values.len() as f64;
        for (rank, x) in [0.25, 0.5, 0.75].into_iter().zip(sketch.quantiles(&[0.25, 0.5, 0.75]).context("quantiles")?) {
            let (below, at_most) = (share(&|value| value < x), share(&|value| value <= x));
            let allowed = 2.0 * sketch.rank_error();
            ensure!(below - allowed <= rank && rank <= at_most + allowed, "{rank}: {x}, {below} to {at_most}");
        }
        ensure!(std::fs::read_to_string(out.join("index.csv"))?.lines().count() == 3);
        let again = fleet.operator.run(&export).await;
        ensure!(again.is_err(), "files that are there are kept");
        fleet.operator.run(&[&export[..], &["--force"]].concat()).await?;

        for (base, line) in [
            (
                &fleet.controller.endpoints.api_url,
                "muster_controller_reported_requests_above_objective_total{bundle=\"digits@1.1.0\",latency_ms=\"0.001\"} 20",
            ),
            (&fleet.devices[0].inference_url, "muster_agent_requests_above_objective_total{latency_ms=\"0.001\"} 20"),
        ] {
            let pem = std::fs::read(&fleet.controller.endpoints.ca_file)?;
            let client = reqwest::Client::builder().tls_certs_merge([reqwest::Certificate::from_pem(&pem)?]).build()?;
            let page = client.get(format!("{}/metrics", base.trim_end_matches('/'))).send().await?.text().await?;
            ensure!(page.lines().any(|shown| shown == line), "{line} is not in\n{page}");
        }
        Ok(())
    });
}
