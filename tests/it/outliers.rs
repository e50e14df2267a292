//! An answer that tells its caller that what was asked is unlike the reference.

use anyhow::{Context as _, ensure};
use muster_shared::rollout::RolloutStatus;
use muster_tests::fixtures;
use reqwest::Client;
use serde_json::{Value, json};

use crate::stage::{self, EASY};

#[test]
fn an_image_unlike_the_reference_is_answered_and_flagged() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 1).await?;
        let described = folder.join("with-distance");
        std::fs::create_dir_all(&described)?;
        for file in ["digits-1.1.0.onnx", "golden-1.1.0.json", "reference.csv"] {
            std::fs::copy(fixtures::digits().join(file), described.join(file))?;
        }
        let text = std::fs::read_to_string(fixtures::digits().join("bundle-1.1.0.toml"))?;
        let description = described.join("bundle.toml");
        std::fs::write(&description, format!("{text}\n[outliers]\ndistance = true\n"))?;
        fleet.release("digits", &description).await?;
        let traffic = stage::traffic(&fleet)?;
        let id = fleet.roll_out(&[&["--bundle", "digits@1.1.0", "--selector", "*"], &EASY[..]].concat()).await?;
        fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
        drop(traffic);

        let odd = std::fs::read(fixtures::digits().join("../outliers/digits.json"))?;
        let odd: Value = serde_json::from_slice(&odd)?;
        let url = format!("{}/v2/models/digits/infer", fleet.devices[0].inference_url);
        let ask = async |row: &Value| -> anyhow::Result<(Value, Option<String>)> {
            let input = json!({"name": "image", "datatype": "FP32", "shape": [1, 64], "data": row});
            let answer: Value = Client::new()
                .post(&url)
                .json(&json!({"inputs": [input]}))
                .send()
                .await?
                .error_for_status()?
                .json()
                .await?;
            let flag = answer["parameters"]["muster_outlier"].as_str().map(str::to_owned);
            Ok((answer, flag))
        };
        let rows = |kind: &Value| kind.as_array().cloned().context("rows");
        let mut flagged = 0;
        for row in rows(&odd["odd"]["turned by 90 degrees"])? {
            let (answer, flag) = ask(&row).await?;
            // It is answered all the same.
            ensure!(answer["outputs"][0]["shape"] == json!([1, 10]), "{answer}");
            flagged += usize::from(flag.is_some_and(|flag| flag.split(", ").any(|cause| cause == "distance")));
        }
        ensure!(flagged >= 55, "of 60 images that lie on their side, {flagged} were flagged");
        let usual = rows(&odd["heldout"])?;
        let mut far = 0;
        for row in usual.iter().take(100) {
            far += usize::from(ask(row).await?.1.is_some_and(|flag| flag.contains("distance")));
        }
        // 1 % is declared; 7 or more of 100 have a chance below one in ten thousand.
        ensure!(far <= 6, "of 100 images as they should be, {far} were flagged");
        Ok(())
    });
}
