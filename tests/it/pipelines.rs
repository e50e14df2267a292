//! Bundles that take what applications have: raw measurements, words and PNG files, held against a schema.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_shared::api::{DriftExplanation, DriftKind, DriftReport, FaultCause, OutlierCause};
use muster_shared::data_schema::Handling;
use muster_shared::rollout::RolloutStatus;
use muster_tests::fixtures::{self, Image};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::{png, wait};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::stage::{self, EASY};

/// A golden example, with every value, of the bundle described in `file`: its inputs and outputs.
fn example(file: &str) -> anyhow::Result<(Value, Value)> {
    let text = std::fs::read_to_string(fixtures::pipelines().join(file))?;
    let golden: Value = serde_json::from_str(&text.replace("NaN", "null"))?;
    let example = &golden["examples"][1];
    Ok((example["inputs"].clone(), example["outputs"].clone()))
}

/// Brings `bundle` to `dev-1` while somebody keeps asking it with `body`, behind a JSON head of `head_bytes` if there is one.
async fn bring(
    fleet: &Fleet,
    bundle: &str,
    model: &str,
    body: Vec<u8>,
    head_bytes: Option<usize>,
) -> anyhow::Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    let url = format!("{}/v2/models/{model}/infer", fleet.devices[0].inference_url);
    let asking = tokio::spawn({
        let over = Arc::clone(&over);
        async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            while !over.load(Ordering::Relaxed) {
                ticks.tick().await;
                drop(ask(&url, body.clone(), head_bytes).await);
            }
        }
    });
    let id = fleet.roll_out(&[&["--bundle", bundle, "--selector", "*"], &EASY[..]].concat()).await?;
    fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
    over.store(true, Ordering::Relaxed);
    asking.await?;
    Ok(())
}

async fn ask(url: &str, body: Vec<u8>, head_bytes: Option<usize>) -> anyhow::Result<(StatusCode, Value)> {
    let mut request = Client::new().post(url).body(body);
    if let Some(bytes) = head_bytes {
        request = request.header("Inference-Header-Content-Length", bytes);
    }
    let response = request.send().await?;
    Ok((response.status(), response.json().await?))
}

/// A copy of the fixtures whose bundle `diabetes` has the schema that its sample suggests, strict about age.
async fn with_schema(fleet: &Fleet, folder: &Path) -> anyhow::Result<std::path::PathBuf> {
    std::fs::create_dir_all(folder)?;
    for file in ["diabetes.onnx", "diabetes.csv", "diabetes-golden.json", "diabetes.toml"] {
        std::fs::copy(fixtures::pipelines().join(file), folder.join(file))?;
    }
    let (description, schema) = (folder.join("diabetes.toml"), folder.join("schema.toml"));
    let path = |path: &Path| path.to_str().map(str::to_owned).context("a path that is text");
    fleet.operator.run(&["bundle", "schema", "infer", &path(&description)?, "--out", &path(&schema)?]).await?;
    let inferred = std::fs::read_to_string(&schema)?;
    // Ages are 19 to 79 in the sample. A golden example has none, so it may be missing.
    let (before, after) = inferred.split_once("name = \"age\"").context("age has rules")?;
    let strict = after.replacen("on-violation = \"flag\"", "on-violation = \"reject\"", 1);
    let strict = strict.replacen("may-be-missing = false", "may-be-missing = true", 1);
    std::fs::write(&schema, format!("{before}name = \"age\"{strict}"))?;
    let text = std::fs::read_to_string(&description)?;
    std::fs::write(&description, format!("schema = \"schema.toml\"\n{text}"))?;
    Ok(description)
}

#[test]
fn raw_measurements_and_words_are_answered_and_held_against_the_schema() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 1).await?;
        let description = with_schema(&fleet, &folder.join("diabetes")).await?;
        fleet.release("diabetes", &description).await?;
        let (inputs, outputs) = example("diabetes-golden.json")?;
        let body = |inputs: &Value| json!({ "inputs": inputs }).to_string().into_bytes();
        bring(&fleet, "diabetes@1.0.0", "diabetes", body(&inputs), None).await?;

        let url = format!("{}/v2/models/diabetes/infer", fleet.devices[0].inference_url);
        let (status, answer) = ask(&url, body(&inputs), None).await?;
        ensure!(status == StatusCode::OK, "{answer}");
        let score = |tensors: &Value| tensors[0]["data"][0].as_f64().context("a score");
        ensure!((score(&answer["outputs"])? - score(&outputs)?).abs() < 0.01, "{answer} for {outputs}");
        ensure!(answer["outputs"][1]["data"] == outputs[1]["data"], "{answer} for {outputs}");

        let with = |name: &str, value: Value| {
            let mut changed = inputs.clone();
            let input = changed.as_array_mut().and_then(|all| all.iter_mut().find(|input| input["name"] == name));
            if let Some(input) = input {
                input["data"][0] = value;
            }
            changed
        };
        let (status, answer) = ask(&url, body(&with("age", json!(230.0))), None).await?;
        ensure!(status == StatusCode::BAD_REQUEST, "{answer}");
        ensure!(
            answer["error"].as_str().is_some_and(|error| error.contains("feature \"age\" of row 1, is 230")),
            "{answer}"
        );
        let (status, answer) = ask(&url, body(&with("sex", json!("unknown"))), None).await?;
        ensure!(status == StatusCode::OK, "{answer}");
        ensure!(
            answer["parameters"]["quality_flags"].as_str().is_some_and(|f| f.contains("sex unknown-category")),
            "{answer}"
        );
        let (status, answer) = ask(&url, body(&with("bmi", json!("NaN"))), None).await?;
        ensure!(status == StatusCode::OK, "a missing value is imputed by the pipeline: {answer}");
        Ok(())
    });
}

/// `inputs` of one row as `rows` rows that are all alike, the input `name` holding `value`.
fn many(inputs: &Value, rows: usize, name: &str, value: &Value) -> Value {
    let mut all = inputs.clone();
    for input in all.as_array_mut().into_iter().flatten() {
        let held = if input["name"] == name { value.clone() } else { input["data"][0].clone() };
        input["data"] = vec![held; rows].into();
        input["shape"] = json!([rows, 1]);
    }
    all
}

#[test]
fn what_was_wrong_or_odd_with_inputs_stands_in_the_drift_report() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 1).await?;
        let description = with_schema(&fleet, &folder.join("diabetes")).await?;
        fleet.release("diabetes", &description).await?;
        let (inputs, _) = example("diabetes-golden.json")?;
        let body = |inputs: &Value| json!({ "inputs": inputs }).to_string().into_bytes();
        bring(&fleet, "diabetes@1.0.0", "diabetes", body(&inputs), None).await?;

        let url = format!("{}/v2/models/diabetes/infer", fleet.devices[0].inference_url);
        // So much is missing that what was asked meanwhile does not matter: the sample suggests 15.8 % at most.
        let (refused, missing, answered) = (StatusCode::BAD_REQUEST, json!("NaN"), StatusCode::OK);
        for (rows, name, value, expected) in [
            (30, "age", json!(230.0), refused),
            (20, "sex", json!("unknown"), answered),
            (10, "bmi", json!(500.0), answered),
            (1_000, "bmi", missing.clone(), answered),
            (1_000, "bmi", missing.clone(), answered),
            (1_000, "bmi", missing, answered),
        ] {
            let (status, answer) = ask(&url, body(&many(&inputs, rows, name, &value)), None).await?;
            ensure!(status == expected, "{name} {value}: {answer}");
        }
        let mut misshapen = inputs.clone();
        misshapen[0]["shape"] = json!([1, 1, 1]);
        let (status, answer) = ask(&url, body(&misshapen), None).await?;
        ensure!(status == refused, "{answer}");

        let show = ["drift", "show", "diabetes@1.0.0"];
        let (quality, outliers) = wait::until("every fault is in the report", PATIENCE, async || {
            let mut report: DriftReport = fleet.operator.json(&show).await?;
            let group = report.groups.pop().context("a group")?;
            let told = group.quality.zip(group.outliers);
            Ok(told.filter(|(quality, _)| quality.faults.iter().any(|fault| fault.cause == FaultCause::Malformed)))
        })
        .await?;
        let told: Vec<_> = quality
            .faults
            .iter()
            .map(|fault| (fault.feature.as_deref(), fault.cause, fault.count, fault.handling))
            .collect();
        let expected = [
            (Some("bmi"), FaultCause::Missing, 3_000, Handling::Counted),
            (Some("age"), FaultCause::AboveMax, 30, Handling::Rejected),
            (Some("sex"), FaultCause::UnknownCategory, 20, Handling::Flagged),
            (Some("bmi"), FaultCause::AboveMax, 10, Handling::Flagged),
            (None, FaultCause::Malformed, 1, Handling::Rejected),
        ];
        ensure!(told == expected, "{told:?}");
        ensure!((quality.rejected, quality.flagged) == (1, 2), "{quality:?}");
        ensure!(quality.rows > 3_060, "{quality:?}");
        let limit = quality.exceeded("bmi").context("more is missing than may be")?;
        let off = (limit.share - 3_000.0 / quality.rows as f64).abs().max((limit.limit - 0.158).abs());
        ensure!(off < 1e-12, "{limit:?}");
        let of = |cause: OutlierCause| outliers.rates.iter().find(|rate| rate.cause == cause).map(|rate| rate.count);
        // The reference has rows without bmi, so that they are nothing odd.
        ensure!(of(OutlierCause::Range) == Some(10) && of(OutlierCause::Missing) == Some(0), "{outliers:?}");

        let table = fleet.operator.run(&show).await?;
        for line in ["unknown-category", "max-missing-share", "outliers of the reference"] {
            ensure!(table.contains(line), "{table}");
        }
        let explained: Vec<DriftExplanation> =
            fleet.operator.json(&["drift", "explain", "diabetes@1.0.0", "--column", "bmi"]).await?;
        ensure!(explained.iter().all(|found| found.kind == DriftKind::Quality), "{explained:?}");
        Ok(())
    });
}

/// Digits as PNG files, of so many parts in sixteen of their brightness.
fn photos(images: &[Image], sixteenths: f32) -> Vec<Vec<u8>> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "pixels are 0 to 16")]
    let byte = |pixel: &f32| (pixel * 15.0 * sixteenths / 16.0) as u8;
    images.iter().map(|image| png::gray(8, &image.pixels.iter().map(byte).collect::<Vec<_>>())).collect()
}

/// A request for all `files` as tritonclient writes BYTES in the binary extension, each with its length before it, and the length of the JSON at its start.
fn binary_request(files: &[Vec<u8>]) -> anyhow::Result<(Vec<u8>, usize)> {
    let mut binary = Vec::new();
    for file in files {
        binary.extend(u32::try_from(file.len())?.to_le_bytes());
        binary.extend(file);
    }
    let parameters = json!({"binary_data_size": binary.len()});
    let input = json!({"name": "png", "datatype": "BYTES", "shape": [files.len()], "parameters": parameters});
    let head = json!({"inputs": [input]}).to_string();
    Ok(([head.as_bytes(), &binary].concat(), head.len()))
}

#[test]
fn photos_that_become_darker_stand_in_the_drift_report() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 1).await?;
        let described = folder.join("digit-images");
        std::fs::create_dir_all(described.join("photos"))?;
        for file in ["digits-bare.onnx", "digits-golden.json"] {
            std::fs::copy(fixtures::pipelines().join(file), described.join(file))?;
        }
        let images = fixtures::held_out()?;
        let (reference, usual) = images.split_at(images.len() / 2);
        for (at, photo) in photos(reference, 16.0).iter().enumerate() {
            std::fs::write(described.join(format!("photos/{at}.png")), photo)?;
        }
        let text = std::fs::read_to_string(fixtures::pipelines().join("digits.toml"))?;
        let description = described.join("digits.toml");
        let inputs = "[[inputs]]\nname = \"png\"\nfeatures = [\"file\"]\n";
        std::fs::write(&description, format!("reference = \"photos\"\n{text}\n{inputs}"))?;
        fleet.release("digit-images", &description).await?;
        let (body, head_bytes) = binary_request(&photos(usual, 16.0))?;
        bring(&fleet, "digit-images@1.0.0", "digit-images", body, Some(head_bytes)).await?;

        let show = ["drift", "show", "digit-images@1.0.0"];
        let brightness = async || -> anyhow::Result<Option<(f64, bool, u64)>> {
            let mut report: DriftReport = fleet.operator.json(&show).await?;
            let Some(group) = report.groups.pop() else { return Ok(None) };
            let mean = group.columns.iter().find(|column| column.name == "png.mean");
            let mean = mean.context("images are watched by their mean")?;
            Ok(mean.psi.map(|psi| (psi, mean.drifted, mean.n)))
        };
        let before = wait::until("usual photos are in the report", PATIENCE, brightness).await?;
        ensure!(before.0 < 0.25, "photos as in the reference: {before:?}");
        let url = format!("{}/v2/models/digit-images/infer", fleet.devices[0].inference_url);
        let (body, head_bytes) = binary_request(&photos(usual, 8.0))?;
        let after = wait::until("dark photos stand out", PATIENCE, async || {
            let (status, answer) = ask(&url, body.clone(), Some(head_bytes)).await?;
            ensure!(status == StatusCode::OK, "{answer}");
            Ok(brightness().await?.filter(|(psi, drifted, _)| *drifted && *psi > 1.0))
        })
        .await?;
        ensure!(after.2 > before.2, "{before:?}, then {after:?}");
        let table = fleet.operator.run(&show).await?;
        let line = table.lines().find(|line| line.contains("png.mean")).context("the column is shown")?;
        ensure!(line.contains("drifted"), "{table}");

        // What is no image is turned away as ever, and no column counts it.
        let (body, head_bytes) = binary_request(&[b"no PNG!".to_vec()])?;
        let (status, answer) = ask(&url, body, Some(head_bytes)).await?;
        ensure!(status == StatusCode::BAD_REQUEST, "{answer}");
        Ok(())
    });
}

#[test]
fn a_png_is_answered_with_its_digit() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 1).await?;
        fleet.release("digit-images", &fixtures::pipelines().join("digits.toml")).await?;
        let png = std::fs::read(fixtures::pipelines().join("digit.png"))?;
        let digit = std::fs::read_to_string(fixtures::pipelines().join("digit.txt"))?;
        let (body, head_bytes) = binary_request(&[png])?;
        bring(&fleet, "digit-images@1.0.0", "digit-images", body.clone(), Some(head_bytes)).await?;

        let url = format!("{}/v2/models/digit-images/infer", fleet.devices[0].inference_url);
        let (status, answer) = ask(&url, body, Some(head_bytes)).await?;
        ensure!(status == StatusCode::OK && answer["outputs"][1]["data"][0] == digit.trim(), "{answer}");
        // Scaling and softmax were carried out inside the model; callers see neither its input nor its output.
        let shown = fleet.operator.run(&["bundle", "show", "digit-images@1.0.0"]).await?;
        ensure!(shown.contains("6 steps, 2 folded into the model (pre 3 scale, post 1 softmax)"), "{shown}");
        let probabilities = answer["outputs"][0]["data"].as_array().context("probabilities")?;
        let sum: f64 = probabilities.iter().filter_map(Value::as_f64).sum();
        ensure!(probabilities.len() == 10 && (sum - 1.0).abs() < 1e-5, "{answer}");
        let metadata: Value = Client::new().get(url.trim_end_matches("/infer")).send().await?.json().await?;
        ensure!(
            metadata["inputs"][0]["name"] == "png" && metadata["outputs"][0]["name"] == "probabilities",
            "{metadata}"
        );
        let (body, head_bytes) = binary_request(&[b"no PNG!".to_vec()])?;
        let (status, answer) = ask(&url, body, Some(head_bytes)).await?;
        ensure!(status == StatusCode::BAD_REQUEST, "{answer}");
        ensure!(answer["error"].as_str().is_some_and(|error| error.contains("neither PNG nor JPEG")), "{answer}");
        Ok(())
    });
}
