//! Labels come one by one, in bulk and from the centre, some after the model was replaced, and the controller reports what was right.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use muster_shared::feedback::FeedbackCounts;
use muster_shared::quality::{Quality, QualityReport};
use muster_shared::rollout::RolloutStatus;
use muster_tests::fixtures::{self, Image};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;
use serde::Deserialize;
use serde_json::json;

use crate::stage::{self, EASY};

#[derive(Deserialize)]
struct Answer {
    id: String,
    model_version: String,
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Output {
    data: Vec<f32>,
}

#[derive(Deserialize)]
struct Joined {
    counts: FeedbackCounts,
}

/// An inference, as an application knows it.
#[derive(Clone)]
pub(crate) struct Inference {
    device: String,
    pub(crate) id: String,
    version: String,
    class: usize,
    pub(crate) label: usize,
    /// Whether the first pixel row is dark: the slice of the bundle.
    is_dark: bool,
}

/// What the controller must say of one version.
#[derive(Debug, Default, Clone, PartialEq)]
struct Truth {
    labels: u64,
    right: u64,
    /// By truth and answer.
    pairs: BTreeMap<(usize, usize), u64>,
    dark: (u64, u64),
}

impl Truth {
    fn of(inferences: &[Inference], version: &str) -> Self {
        let mut truth = Self::default();
        for inference in inferences.iter().filter(|inference| inference.version == version) {
            let right = u64::from(inference.class == inference.label);
            truth.labels += 1;
            truth.right += right;
            *truth.pairs.entry((inference.label, inference.class)).or_default() += 1;
            if inference.is_dark {
                truth.dark = (truth.dark.0 + 1, truth.dark.1 + right);
            }
        }
        truth
    }

    fn ensure(&self, quality: &Quality) -> anyhow::Result<()> {
        let classification = quality.classification.as_ref().context("there is an accuracy")?;
        let accuracy = self.right as f64 / self.labels as f64;
        ensure!(quality.labels == self.labels, "{quality:?} where {self:?} is expected");
        ensure!((classification.accuracy.value - accuracy).abs() < 1e-12, "{classification:?}, not {accuracy}");
        for class in &classification.classes {
            let at: usize = class.class.parse()?;
            let support: u64 = self.pairs.iter().filter(|((truth, _), _)| *truth == at).map(|(_, n)| n).sum();
            let predicted: u64 = self.pairs.iter().filter(|((_, class), _)| *class == at).map(|(_, n)| n).sum();
            ensure!((class.support, class.predicted) == (support, predicted), "{class:?}");
        }
        for (truth, answer, n) in &classification.confusions {
            let pair = (truth.parse()?, answer.parse()?);
            ensure!(self.pairs.get(&pair) == Some(n), "{truth} taken for {answer} {n} times: {self:?}");
        }
        Ok(())
    }
}

fn best(row: &[f32]) -> usize {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(class, _)| class)
}

fn is_dark(image: &Image) -> bool {
    image.pixels[20] >= 8.0
}

/// Where the device answers.
fn url_of<'f>(fleet: &'f Fleet, device: &str) -> anyhow::Result<&'f str> {
    let found = fleet.devices.iter().find(|known| known.id == device);
    found.map(|device| device.inference_url.as_str()).with_context(|| format!("there is no {device}"))
}

/// Asks a device about one image.
async fn infer(client: &reqwest::Client, fleet: &Fleet, device: &str, image: &Image) -> anyhow::Result<Inference> {
    let url = format!("{}/v2/models/digits/infer", url_of(fleet, device)?);
    let body = json!({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": image.pixels}]});
    let answer: Answer = client.post(url).json(&body).send().await?.error_for_status()?.json().await?;
    Ok(Inference {
        device: device.to_owned(),
        id: answer.id,
        version: answer.model_version,
        class: best(&answer.outputs[0].data),
        label: image.label,
        is_dark: is_dark(image),
    })
}

pub(crate) async fn infer_all(
    client: &reqwest::Client,
    fleet: &Fleet,
    device: &str,
    images: &[Image],
) -> anyhow::Result<Vec<Inference>> {
    let mut inferences = Vec::new();
    for image in images {
        inferences.push(infer(client, fleet, device, image).await?);
    }
    Ok(inferences)
}

pub(crate) async fn send(
    client: &reqwest::Client,
    fleet: &Fleet,
    device: &str,
    body: &serde_json::Value,
) -> anyhow::Result<FeedbackCounts> {
    let url = format!("{}/v2/models/digits/feedback", url_of(fleet, device)?);
    let joined: Joined = client.post(url).json(body).send().await?.error_for_status()?.json().await?;
    Ok(joined.counts)
}

/// Builds, signs and pushes `version` with labels and slices declared, the held-out images being the reference sample.
pub(crate) async fn release(fleet: &Fleet, folder: &Path, version: &str) -> anyhow::Result<()> {
    let digits = fixtures::digits();
    let copies = folder.join(format!("labelled-{version}"));
    std::fs::create_dir_all(&copies)?;
    for file in ["heldout.csv".to_owned(), format!("digits-{version}.onnx"), format!("golden-{version}.json")] {
        std::fs::copy(digits.join(&file), copies.join(&file))?;
    }
    let mut text = std::fs::read_to_string(digits.join(format!("bundle-{version}.toml")))?
        .replace("reference = \"reference.csv\"", "reference = \"heldout.csv\"");
    text.push_str(
        "\n[labels]\noutput = \"probabilities\"\nlabel-column = \"label\"\n\
         \n[[slices]]\nname = \"middle\"\nfeature = \"p20\"\nedges = [8.0]\n",
    );
    let description = copies.join("bundle.toml");
    std::fs::write(&description, text)?;
    fleet.release(&format!("labelled-{version}"), &description).await?;
    Ok(())
}

/// Brings `version` to every device; the rollout is over once they have been asked something ([`Fleet::wait_rollout`]).
pub(crate) async fn roll_out(fleet: &Fleet, version: &str) -> anyhow::Result<String> {
    let bundle = format!("digits@{version}");
    let create = [&["--bundle", &bundle, "--selector", "*"], &EASY[..]].concat();
    let id = fleet.roll_out(&create).await?;
    for device in &fleet.devices {
        wait::until("the device serves it", PATIENCE, async || {
            let reported = fleet.operator.device(&device.id).await?.reported;
            let running = reported.and_then(|reported| reported.running);
            Ok(running.filter(|running| running.bundle.to_string() == bundle).map(|_| ()))
        })
        .await?;
    }
    Ok(id)
}

async fn report(fleet: &Fleet, version: &str, labels: u64) -> anyhow::Result<QualityReport> {
    let bundle = format!("digits@{version}");
    wait::until(&format!("{labels} labels of {version} are reported"), PATIENCE, async || {
        let report: QualityReport = fleet.operator.json(&["quality", "show", &bundle]).await?;
        let arrived = report.groups.first().map_or(0, |group| group.quality.labels);
        Ok((arrived >= labels).then_some(report))
    })
    .await
}

#[test]
fn labels_of_every_way_and_time_are_reported_as_they_are() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 2).await?;
        release(&fleet, &folder, "1.0.0").await?;
        release(&fleet, &folder, "1.1.0").await?;
        let rollout = roll_out(&fleet, "1.0.0").await?;
        let (client, images) = (reqwest::Client::new(), fixtures::held_out()?);

        // On the device, one by one and as a batch, and wrongly.
        let singly = infer_all(&client, &fleet, "dev-1", &images[..30]).await?;
        for inference in &singly {
            let counts = send(&client, &fleet, "dev-1", &json!({"id": inference.id, "label": inference.label})).await?;
            ensure!((counts.joined, counts.total()) == (1, 1), "{counts:?}");
        }
        let wrong = json!({"feedback": [
            {"id": singly[0].id, "label": 1}, {"id": "nobody", "label": 1}, {"id": singly[0].id, "labels": [1, 2]},
        ]});
        let counts = send(&client, &fleet, "dev-1", &wrong).await?;
        ensure!(
            counts == FeedbackCounts { duplicate: 1, unknown: 1, invalid: 2, ..FeedbackCounts::default() },
            "{counts:?}"
        );
        let url = format!("{}/v2/models/digits/feedback", url_of(&fleet, "dev-1")?);
        for body in ["", "{\"feedback\": 3}", "[{\"label\": 1}]"] {
            let status = client.post(&url).body(body).send().await?.status();
            ensure!(status.as_u16() == 400, "{body}: {status}");
        }

        // What is labelled only when another model serves.
        let in_bulk = infer_all(&client, &fleet, "dev-1", &images[30..90]).await?;
        let by_centre = infer_all(&client, &fleet, "dev-2", &images[90..160]).await?;
        let unlabelled = infer_all(&client, &fleet, "dev-2", &images[160..165]).await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        roll_out(&fleet, "1.1.0").await?;
        let later = infer_all(&client, &fleet, "dev-2", &images[165..230]).await?;
        ensure!(later.iter().all(|inference| inference.version == "1.1.0"));

        // In bulk from a file on the device.
        let mut table = String::from("id,label\n");
        for inference in &in_bulk {
            writeln!(table, "{},{}", inference.id, inference.label)?;
        }
        let file = folder.join("truth.csv");
        std::fs::write(&file, &table)?;
        let config = folder.join("dev-1/agent.toml");
        let output = tokio::process::Command::new(&binaries.agent)
            .arg("feedback")
            .arg(&file)
            .arg("--config")
            .arg(&config)
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && said.contains("60 labels: 60 joined, 0 unknown"), "{said} {output:?}");

        // From the centre, of both models; a table that does not say whose is refused.
        let pushed: Vec<&Inference> = by_centre.iter().chain(&later).collect();
        let mut lines = String::new();
        for inference in &pushed {
            let line = json!({"device": inference.device, "id": inference.id, "label": inference.label.to_string()});
            writeln!(lines, "{line}")?;
        }
        let file_of = |name: &str| folder.join(name).to_string_lossy().into_owned();
        std::fs::write(folder.join("centre.jsonl"), &lines)?;
        std::fs::write(folder.join("whose.csv"), &table)?;
        let refused = fleet.operator.try_run(&["feedback", "push", &file_of("whose.csv")]).await?;
        ensure!(refused.status == Some(2) && refused.stderr.contains("names no device"), "{refused:?}");
        let centre = file_of("centre.jsonl");
        let push = ["feedback", "push", "--selector", "*", &centre, "--wait", "60s"];
        let outcome: serde_json::Value = fleet.operator.json(&push).await?;
        ensure!(outcome["accepted"] == 135 && outcome["standing"][0]["results"]["joined"] == 135, "{outcome}");

        let first: Vec<Inference> = [&singly[..], &in_bulk, &by_centre].concat();
        let truth = Truth::of(&first, "1.0.0");
        let found = report(&fleet, "1.0.0", truth.labels).await?;
        let [group] = &found.groups[..] else { anyhow::bail!("{found:?}") };
        truth.ensure(&group.quality)?;
        let standing = &group.standing;
        let predicted = first.len() as u64 + unlabelled.len() as u64;
        ensure!((standing.predictions, standing.results.joined) == (predicted, truth.labels), "{standing:?}");
        ensure!((standing.results.duplicate, standing.results.invalid) == (1, 2), "{standing:?}");
        let dark = group.slices.iter().find(|slice| slice.slice == "middle=>= 8").context("there is a slice")?;
        let accuracy = dark.quality.classification.as_ref().context("it has an accuracy")?.accuracy.value;
        ensure!(dark.quality.labels == truth.dark.0, "{dark:?} {truth:?}");
        ensure!((accuracy - truth.dark.1 as f64 / truth.dark.0 as f64).abs() < 1e-12, "{dark:?}");
        // The reference was the held-out images themselves, of which it knows 0.902.
        let concept = group.concept.first().context("there is a baseline")?;
        ensure!((concept.reference - 0.902).abs() < 1e-9 && !concept.drifted, "{concept:?}");

        let truth = Truth::of(&later, "1.1.0");
        let found = report(&fleet, "1.1.0", truth.labels).await?;
        truth.ensure(&found.groups[0].quality)?;
        let shown = fleet.operator.run(&["feedback", "show", "digits@1.1.0"]).await?;
        ensure!(shown.contains("macro f1") || shown.contains("MACRO F1"), "{shown}");
        for (result, expected) in [("joined", 90.0), ("duplicate", 1.0), ("unknown", 1.0), ("invalid", 2.0)] {
            let name = format!("muster_agent_feedback_total{{result=\"{result}\"}}");
            let text = client.get(format!("{}/metrics", url_of(&fleet, "dev-1")?)).send().await?.text().await?;
            let value = text.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse::<f64>().ok());
            ensure!(value == Some(expected), "{name}: {value:?}");
        }
        Ok(())
    });
}

#[test]
fn labels_for_a_device_that_is_away_wait_and_a_restart_forgets_predictions_openly() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 1).await?;
        release(&fleet, &folder, "1.1.0").await?;
        roll_out(&fleet, "1.1.0").await?;
        let (client, images) = (reqwest::Client::new(), fixtures::held_out()?);
        let made = infer_all(&client, &fleet, "dev-1", &images[..30]).await?;
        fleet.cut_off("dev-1").await?;
        let mut table = String::from("id,label\n");
        for inference in &made {
            writeln!(table, "{},{}", inference.id, inference.label)?;
        }
        let file = folder.join("truth.csv").to_string_lossy().into_owned();
        std::fs::write(&file, &table)?;
        fleet.operator.run(&["feedback", "push", "--device", "dev-1", &file]).await?;
        let waiting: serde_json::Value = fleet.operator.json(&["feedback", "status"]).await?;
        ensure!(waiting[0]["waiting"] == 30, "{waiting}");
        fleet.controller.crash_and_restart().await?;
        fleet.device("dev-1")?.link()?.mend();
        report(&fleet, "1.1.0", 30).await?;

        let lost = infer_all(&client, &fleet, "dev-1", &images[30..33]).await?;
        fleet.device("dev-1")?.kill()?;
        fleet.device("dev-1")?.restart().await?;
        let late: Vec<_> = lost.iter().map(|lost| json!({"id": lost.id, "label": lost.label})).collect();
        let counts = wait::until("the device answers", PATIENCE, async || {
            Ok(send(&client, &fleet, "dev-1", &json!(late)).await.ok())
        })
        .await?;
        ensure!(counts.unknown == 3 && counts.total() == 3, "{counts:?}");
        Ok(())
    });
}
