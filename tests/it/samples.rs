//! Samples for retraining, from the inference on a device to the file that whoever has the key exports.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use muster_shared::api::EventView;
use muster_shared::collection::{CollectionStage, CollectionStatus, CollectionView};
use muster_shared::comparison::{ColumnAgreement, ComparisonReport};
use muster_shared::messages::UpdateState;
use muster_shared::rollout::RolloutStatus;
use muster_tests::device::DeviceSetup;
use muster_tests::fixtures;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;
use serde_json::Value;

use crate::stage::{self, EASY};

const ALLOWED: &str = "[samples]\nallow = true\nflush-ms = 200\nreport-ms = 200\n";

/// Two devices whose owners allow samples, and one whose owner does not, all of them serving digits 1.0.0.
async fn fleet(binaries: &muster_tests::binaries::Binaries, folder: &Path) -> anyhow::Result<Fleet> {
    let mut fleet = Fleet::found(binaries, folder, "[rollout]\ntick-ms = 100\n").await?;
    let token = fleet.enrolment_token(3).await?;
    for (id, settings) in [("dev-1", ALLOWED), ("dev-2", ALLOWED), ("dev-3", "")] {
        fleet.add_device(&DeviceSetup { id, token: &token, window_ms: 500, settings }, true).await?;
    }
    fleet.wait_online(3).await?;
    fleet.release_digits("1.0.0").await?;
    let rollout = fleet.roll_out(&[&["--bundle", "digits@1.0.0", "--selector", "*"], &EASY[..]].concat()).await?;
    for id in ["dev-1", "dev-2", "dev-3"] {
        fleet.wait_committed(id, "1.0.0").await?;
    }
    fleet.operator.run(&["rollout", "abort", &rollout, "--reason", "they have it"]).await?;
    fleet.wait_rollout(&rollout, RolloutStatus::Stopped).await?;
    Ok(fleet)
}

/// Asks `device` about images `from` to `until`, each under an id of its own.
async fn ask(fleet: &mut Fleet, device: &str, from: usize, until: usize) -> anyhow::Result<()> {
    let images = fixtures::held_out()?;
    let url = format!("{}/v2/models/digits/infer", fleet.device(device)?.inference_url);
    let client = reqwest::Client::new();
    for (at, image) in images.iter().enumerate().take(until).skip(from) {
        let request = serde_json::json!({
            "id": format!("{device}-{at}"),
            "inputs": [{ "name": "image", "datatype": "FP32", "shape": [1, 64], "data": image.pixels }]
        });
        let response = client.post(&url).json(&request).send().await?;
        ensure!(response.status().is_success(), "{}", response.status());
    }
    Ok(())
}

async fn open(fleet: &Fleet, key: &str, more: &[&str]) -> anyhow::Result<CollectionView> {
    let always = ["samples", "open", "--bundle", "digits@1.0.0", "--selector", "*", "--recipient", key];
    fleet.operator.json(&[&always, more].concat()).await
}

/// Waits until `is` holds of the collection.
async fn until(
    fleet: &Fleet,
    what: &str,
    id: &str,
    is: impl Fn(&CollectionView, &BTreeMap<String, (CollectionStage, u64)>) -> bool,
) -> anyhow::Result<CollectionView> {
    wait::until(what, PATIENCE, async || {
        let view: CollectionView = fleet.operator.json(&["samples", "show", id]).await?;
        let said = view.devices.iter().filter_map(|device| {
            let progress = device.progress.as_ref()?;
            Some((device.device.to_string(), (progress.stage, progress.held)))
        });
        let said = said.collect();
        Ok(is(&view, &said).then_some(view))
    })
    .await
}

fn holds(folder: &Path, needle: &[u8]) -> anyhow::Result<bool> {
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read(&path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|part| part == needle)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[test]
fn samples_travel_sealed_to_whoever_has_the_key_and_to_nobody_else() {
    stage::run(async |binaries, folder| {
        let mut fleet = fleet(&binaries, &folder).await?;
        let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let (key, public) = (path("samples.key"), path("samples.key.pub"));
        fleet.operator.run(&["samples", "key", "create", "--out", &key]).await?;

        let opened = open(&fleet, &public, &["--random", "1", "--count", "40", "--purpose", "the night shift"]).await?;
        let id = opened.id.to_string();
        let sampling = |said: &BTreeMap<String, (CollectionStage, u64)>, device: &str| {
            said.get(device).is_some_and(|(stage, _)| *stage == CollectionStage::Sampling)
        };
        let view = until(&fleet, "the devices have heard of it", &id, |_, said| {
            sampling(said, "dev-1") && sampling(said, "dev-2") && said.contains_key("dev-3")
        })
        .await?;
        let refused = view.devices.iter().find(|device| device.device.as_str() == "dev-3").context("dev-3 is shown")?;
        let progress = refused.progress.as_ref().context("dev-3 has said something")?;
        ensure!(progress.stage == CollectionStage::Refused, "{progress:?}");
        ensure!(progress.reason.as_deref().is_some_and(|why| why.contains("[samples] allow")), "{progress:?}");

        for device in ["dev-1", "dev-2", "dev-3"] {
            ask(&mut fleet, device, 0, 30).await?;
        }
        until(&fleet, "both hold what they were asked", &id, |_, said| {
            ["dev-1", "dev-2"].iter().all(|device| said.get(*device).is_some_and(|(_, held)| *held == 30))
        })
        .await?;

        // A device that is away when it is closed uploads when it returns.
        fleet.cut_off("dev-2").await?;
        fleet.operator.run(&["samples", "close", &id, "--reason", "enough"]).await?;
        let view = until(&fleet, "dev-1 has uploaded", &id, |view, _| view.samples == 30).await?;
        ensure!(view.status == CollectionStatus::Uploading && view.closing.is_some(), "{view:?}");
        fleet.device("dev-2")?.link()?.mend();
        until(&fleet, "dev-2 has uploaded as well", &id, |view, said| {
            view.samples == 60
                && ["dev-1", "dev-2"]
                    .iter()
                    .all(|device| said.get(*device).is_some_and(|(stage, _)| *stage == CollectionStage::Uploaded))
        })
        .await?;
        // Closed is closed.
        ask(&mut fleet, "dev-1", 30, 40).await?;

        let out = path("samples.parquet");
        let exported: Value = fleet.operator.json(&["samples", "export", &id, "--key", &key, "--out", &out]).await?;
        ensure!(exported["samples"] == 60 && exported["rows"] == 60 && exported["unreadable"] == 0, "{exported}");
        ensure!(exported["devices"] == 2, "{exported}");
        let columns = exported["columns"].as_array().context("columns")?;
        ensure!(
            columns.iter().any(|column| column == "input.p7") && columns.iter().any(|column| column == "label"),
            "{columns:?}"
        );
        let bytes = std::fs::read(&out)?;
        ensure!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"), "it is no Parquet file");

        // Nothing of it lies in the clear anywhere but in that file.
        let images = fixtures::held_out()?;
        let pixels = &images.get(3).context("an image")?.pixels;
        let raw: Vec<u8> = pixels.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
        for place in ["controller", "dev-1/data", "dev-2/data", "dev-3/data"] {
            ensure!(!holds(&folder.join(place), &raw)?, "an input lies in the clear below {place}");
            ensure!(!holds(&folder.join(place), b"dev-1-3\"")?, "an inference's id lies in the clear below {place}");
        }

        // Labels that arrive later are joined by the inferences' ids.
        let labels = path("labels.csv");
        let mut text = String::from("id,label,device\n");
        for (at, image) in images.iter().enumerate().take(30) {
            text.push_str(&format!("dev-1-{at},{},\n", image.label));
        }
        text.push_str("nobody,3,\nnobody,4,\n");
        std::fs::write(&labels, text)?;
        let labelled: Value = fleet.operator.json(&["samples", "label", &id, &labels, "--key", &key]).await?;
        ensure!(labelled["in_file"] == 32 && labelled["duplicates"] == 1 && labelled["stored"] == 31, "{labelled}");
        let joined = &labelled["joined"];
        ensure!(joined["labelled"] == 30 && joined["unknown_ids"] == 1 && joined["samples"] == 60, "{labelled}");
        ensure!(joined["accuracy"].as_f64().is_some_and(|share| share > 0.8), "{labelled}");
        let exported: Value =
            fleet.operator.json(&["samples", "export", &id, "--key", &key, "--out", &out, "--force"]).await?;
        ensure!(exported["labelled"] == 30, "{exported}");

        // Another key opens nothing, and is told apart before anything is fetched.
        let other = path("other.key");
        fleet.operator.run(&["samples", "key", "create", "--out", &other]).await?;
        let refused =
            fleet.operator.run(&["samples", "export", &id, "--key", &other, "--out", &path("no.parquet")]).await;
        ensure!(refused.is_err_and(|error| format!("{error:#}").contains("are sealed to")), "another key was taken");

        let events: Vec<EventView> = fleet.operator.events().await?;
        for (kind, words) in [
            ("collection.opened", "the night shift"),
            ("collection.closed", "enough"),
            ("collection.received", "30 samples"),
            ("collection.exported", "60 samples"),
            ("collection.labelled", "31 labels"),
        ] {
            let found = events.iter().find(|event| event.kind == kind && event.detail.contains(words));
            ensure!(found.is_some(), "no {kind} with {words:?} among the events");
        }
        fleet.operator.run(&["samples", "delete", &id]).await?;
        ensure!(
            !folder.join("controller/data/collections").join(&id).exists(),
            "deleted samples stay at the controller"
        );
        wait::until("dev-1 forgets it", PATIENCE, async || {
            let report = fleet.operator.device("dev-1").await?.reported.unwrap_or_default();
            Ok(report.samples.collections.is_empty().then_some(()))
        })
        .await
    });
}

#[test]
fn a_collection_ends_by_itself_and_what_is_discarded_reaches_nobody() {
    stage::run(async |binaries, folder| {
        let mut fleet = fleet(&binaries, &folder).await?;
        let key = folder.join("samples.key").to_string_lossy().into_owned();
        fleet.operator.run(&["samples", "key", "create", "--out", &key]).await?;
        let public = format!("{key}.pub");

        // As many as it may have altogether: the controller stops it.
        let opened = open(&fleet, &public, &["--random", "1", "--total-count", "10"]).await?;
        let id = opened.id.to_string();
        until(&fleet, "dev-1 samples", &id, |_, said| {
            said.get("dev-1").is_some_and(|(stage, _)| *stage == CollectionStage::Sampling)
        })
        .await?;
        ask(&mut fleet, "dev-1", 0, 10).await?;
        let view =
            until(&fleet, "it is closed at its limit", &id, |view, _| view.closing.is_some() && view.samples == 10)
                .await?;
        let closing = view.closing.context("it was closed")?;
        ensure!(closing.by == "controller" && closing.reason.contains("as many as it may have"), "{closing:?}");

        // Its time is up.
        let opened = open(&fleet, &public, &["--random", "1", "--for", "1s"]).await?;
        let id = opened.id.to_string();
        let view = until(&fleet, "it ends with its time", &id, |view, _| view.closing.is_some()).await?;
        ensure!(view.closing.is_some_and(|closing| closing.reason.contains("its time is up")));

        // What is discarded is deleted on the device, across a restart.
        let opened = open(&fleet, &public, &["--random", "1"]).await?;
        let id = opened.id.to_string();
        until(&fleet, "dev-1 samples", &id, |_, said| {
            said.get("dev-1").is_some_and(|(stage, _)| *stage == CollectionStage::Sampling)
        })
        .await?;
        ask(&mut fleet, "dev-1", 0, 5).await?;
        until(&fleet, "dev-1 holds some", &id, |_, said| said.get("dev-1").is_some_and(|(_, held)| *held == 5)).await?;
        let kept = folder.join("dev-1/data/samples").join(&id);
        wait::until("they are written", PATIENCE, async || {
            Ok(std::fs::read_dir(&kept).is_ok_and(|files| files.count() > 0).then_some(()))
        })
        .await?;
        fleet.device("dev-1")?.kill()?;
        fleet.device("dev-1")?.restart().await?;
        until(&fleet, "dev-1 holds them still", &id, |_, said| {
            said.get("dev-1") == Some(&(CollectionStage::Sampling, 5))
        })
        .await?;
        fleet.operator.run(&["samples", "close", &id, "--discard"]).await?;
        wait::until("they are deleted", PATIENCE, async || Ok((!kept.exists()).then_some(()))).await?;
        let view: CollectionView = fleet.operator.json(&["samples", "show", &id]).await?;
        ensure!(view.samples == 0 && view.status == CollectionStatus::Closed, "{view:?}");

        // What a shadow disagrees with is kept, and nothing else.
        fleet.release_digits("1.1.0").await?;
        let opened = open(&fleet, &public, &["--shadow-disagreement", "--count", "500"]).await?;
        let id = opened.id.to_string();
        until(&fleet, "dev-1 takes samples", &id, |_, said| {
            said.get("dev-1").is_some_and(|(stage, _)| *stage == CollectionStage::Sampling)
        })
        .await?;
        let shadow = ["--bundle", "digits@1.1.0", "--selector", "id=dev-1", "--stage", "shadow"];
        let rollout = fleet.roll_out(&[&shadow[..], &EASY[..]].concat()).await?;
        wait::until("the shadow runs", PATIENCE, async || {
            let reported = fleet.operator.device("dev-1").await?.reported;
            Ok(reported.is_some_and(|report| report.update.state == UpdateState::Beside).then_some(()))
        })
        .await?;
        ask(&mut fleet, "dev-1", 0, 150).await?;
        let disagreed = wait::until("both are compared", PATIENCE, async || {
            let report: ComparisonReport = fleet.operator.json(&["rollout", "compare", &rollout]).await?;
            let group = report.groups.into_iter().find(|group| group.compared + group.skipped >= 150);
            Ok(group.and_then(|group| {
                group.columns.iter().find_map(|column| match column {
                    ColumnAgreement::Classes { pairs, .. } => Some(
                        pairs
                            .iter()
                            .flat_map(|(old, row)| row.iter().filter(move |(new, _)| *new != old).map(|(_, n)| *n))
                            .sum::<u64>(),
                    ),
                    ColumnAgreement::Numbers { .. } => None,
                })
            }))
        })
        .await?;
        ensure!(disagreed > 0);
        until(&fleet, "dev-1 holds what the two disagree on", &id, |_, said| {
            said.get("dev-1") == Some(&(CollectionStage::Sampling, disagreed))
        })
        .await?;
        Ok(())
    });
}
