//! A second model beside the one in service, on a real device under a real controller.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_shared::comparison::{ColumnAgreement, ComparisonGroup, ComparisonReport, LabelReport};
use muster_shared::messages::UpdateState;
use muster_shared::rollout::RolloutStatus;
use muster_shared::trust::Stage;
use muster_tests::device::DeviceSetup;
use muster_tests::fixtures::{self, Image};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::traffic::InferResponse;
use muster_tests::wait;

use crate::stage::{self, EASY};

/// A shadow with room for whatever a test sends it.
const ROOM: &str = "[beside]\nmax-cpu-percent = 100\nmax-queue = 4096\n";

struct Asked {
    version: String,
    class: usize,
}

async fn ask(http: &reqwest::Client, url: &str, id: &str, image: &Image) -> anyhow::Result<Asked> {
    let request = serde_json::json!({
        "id": id,
        "inputs": [{ "name": "image", "datatype": "FP32", "shape": [1, 64], "data": image.pixels }]
    });
    let url = format!("{url}/v2/models/digits/infer");
    let response = http.post(url).json(&request).send().await?.error_for_status()?;
    let answer: InferResponse = response.json().await?;
    let probabilities = &answer.outputs.first().context("no output")?.data;
    let best = probabilities.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).context("no class")?;
    Ok(Asked { version: answer.model_version, class: best.0 })
}

async fn ask_all(fleet: &Fleet, prefix: &str, images: &[Image]) -> anyhow::Result<Vec<Asked>> {
    let (http, url) = (reqwest::Client::new(), &fleet.devices[0].inference_url);
    let mut asked = Vec::new();
    for (at, image) in images.iter().enumerate() {
        asked.push(ask(&http, url, &format!("{prefix}-{at}"), image).await?);
    }
    Ok(asked)
}

/// One device that has committed digits 1.0.0, which nobody asks anything.
async fn device_on_the_first_version(
    binaries: &muster_tests::binaries::Binaries,
    folder: &std::path::Path,
) -> anyhow::Result<Fleet> {
    let mut fleet = stage::fleet_with(binaries, folder, 0, "[rollout]\ntick-ms = 100\n").await?;
    let token = fleet.enrolment_token(1).await?;
    fleet.add_device(&DeviceSetup { id: "dev-1", token: &token, window_ms: 500, settings: ROOM }, false).await?;
    fleet.wait_online(1).await?;
    let mut traffic = stage::traffic(&fleet)?;
    stage::first_version(&fleet, &traffic).await?;
    traffic.finish().await;
    Ok(fleet)
}

/// Starts a rollout and waits until the device runs its bundle beside the other, under that rollout's generation.
async fn begin_beside(fleet: &Fleet, args: &[&str]) -> anyhow::Result<String> {
    let easy: Vec<&str> = EASY.chunks(2).filter(|pair| !args.contains(&pair[0])).flatten().copied().collect();
    let id = fleet.roll_out(&[args, &easy[..]].concat()).await?;
    wait::until(&format!("the bundle of {id} runs beside the other"), PATIENCE, async || {
        let device = fleet.operator.device("dev-1").await?;
        let (Some(desired), Some(reported)) = (device.desired, device.reported) else { return Ok(None) };
        let is_there = desired.rollout.as_str() == id
            && (reported.update.generation, reported.update.state) == (desired.generation, UpdateState::Beside);
        let version = |bundle: Option<muster_shared::messages::InstalledBundle>| {
            bundle.map(|bundle| bundle.bundle.version.to_string())
        };
        if is_there {
            ensure!(version(reported.committed).as_deref() == Some("1.0.0"), "it is not committed");
            ensure!(version(reported.running).as_deref() == Some("1.0.0"), "the incumbent answers");
        }
        Ok(is_there.then_some(()))
    })
    .await?;
    Ok(id)
}

/// The report on `what`, once `is_complete` says so of its only group.
async fn comparison(
    fleet: &Fleet,
    what: &str,
    is_complete: impl Fn(&ComparisonGroup) -> bool,
) -> anyhow::Result<ComparisonGroup> {
    wait::until(&format!("every window of {what} has come"), PATIENCE, async || {
        let mut report: ComparisonReport = fleet.operator.json(&["rollout", "compare", what]).await?;
        ensure!(report.groups.len() <= 1, "{report:?}");
        Ok(report.groups.pop().filter(&is_complete))
    })
    .await
}

async fn chunks(fleet: &mut Fleet) -> anyhow::Result<f64> {
    let http = reqwest::Client::new();
    fleet.device("dev-1")?.metric(&http, "muster_agent_chunks_received_total").await
}

#[test]
fn a_shadow_is_compared_with_the_incumbent_and_promoted_without_fetching() {
    stage::run(async |binaries, folder| {
        let mut fleet = device_on_the_first_version(&binaries, &folder).await?;
        let images: Vec<Image> = fixtures::held_out()?.into_iter().take(200).collect();
        fleet.release_digits("1.2.0").await?;

        // All of the requests.
        let bundle = ["--bundle", "digits@1.2.0", "--selector", "*"];
        let all = begin_beside(&fleet, &[&bundle[..], &["--stage", "shadow"]].concat()).await?;
        let fetched = chunks(&mut fleet).await?;
        let by_old = ask_all(&fleet, "a", &images).await?;
        ensure!(by_old.iter().all(|asked| asked.version == "1.0.0"), "nobody gets a shadow's answer");
        let view = fleet.wait_rollout(&all, RolloutStatus::Completed).await?;
        let n = images.len() as u64;
        let first = comparison(&fleet, &all, |group| {
            group.compared + group.skipped >= n && group.incumbent_figures.requests >= n
        })
        .await?;
        ensure!((first.compared, first.skipped, first.candidate_failed) == (n, 0, 0), "{first:?}");
        ensure!(first.incumbent.as_ref().is_some_and(|b| b.version.to_string() == "1.0.0"), "{first:?}");
        ensure!((first.candidate_figures.requests, first.candidate_figures.errors) == (n, 0), "{first:?}");
        ensure!(
            first.incumbent_figures.requests >= n && first.incumbent_figures.latency_p99_us > Some(0.0),
            "{first:?}"
        );

        // A fifth of them: which, is known beforehand.
        begin_beside(&fleet, &[&bundle[..], &["--stage", "shadow", "--share", "20%"]].concat()).await?;
        let by_old_again = ask_all(&fleet, "b", &images).await?;
        ensure!(by_old_again.iter().zip(&by_old).all(|(b, a)| (b.class, &b.version) == (a.class, &a.version)));
        let fifth = Stage::Shadow { share_bp: 2_000 };
        let fell = (0..images.len()).filter(|at| fifth.falls_to(&view.manifest, &format!("b-{at}"))).count() as u64;
        ensure!((10..=70).contains(&fell), "{fell} of {n}");
        let both = comparison(&fleet, "digits@1.2.0", |group| group.compared + group.skipped >= n + fell).await?;
        ensure!((both.compared, both.skipped) == (n + fell, 0), "{both:?}");

        // It takes the incumbent's place, with what it has already.
        let id = fleet.roll_out(&[&bundle[..], &EASY[..]].concat()).await?;
        fleet.wait_committed("dev-1", "1.2.0").await?;
        let by_new = ask_all(&fleet, "c", &images).await?;
        ensure!(by_new.iter().all(|asked| asked.version == "1.2.0"));
        fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
        ensure!((chunks(&mut fleet).await? - fetched).abs() < 0.5, "chunks were fetched again");

        // What was compared is what the two say when each is asked alone.
        let classes = first.columns.iter().find_map(|column| match column {
            ColumnAgreement::Classes { rows, agreement, pairs, .. } => Some((rows, agreement, pairs)),
            ColumnAgreement::Numbers { .. } => None,
        });
        let (rows, agreement, pairs) = classes.context("no classes were compared")?;
        let both = || by_old.iter().zip(&by_new);
        let agreed = both().filter(|(old, new)| old.class == new.class).count();
        ensure!(*rows == n && agreed < images.len(), "{first:?}");
        let share = agreement.context("there is no agreement")?;
        ensure!((share.value - agreed as f64 / n as f64).abs() < 1e-12, "{share:?} of {agreed}");
        for (old, row) in pairs {
            for (new, count) in row {
                let (old, new): (usize, usize) = (old.parse()?, new.parse()?);
                let expected = both().filter(|(a, b)| (a.class, b.class) == (old, new)).count() as u64;
                ensure!(*count == expected, "{old} and {new}: {count} in place of {expected}");
            }
        }
        ensure!(pairs.values().flat_map(|row| row.values()).sum::<u64>() == n);
        Ok(())
    });
}

#[test]
fn a_bundle_serves_once_its_shadow_agrees_and_one_that_does_not_never_does() {
    stage::run(async |binaries, folder| {
        let mut fleet = device_on_the_first_version(&binaries, &folder).await?;
        let images: Vec<Image> = fixtures::held_out()?.into_iter().take(200).collect();
        fleet.release_digits("1.1.0").await?;
        fleet.release_digits("1.2.0").await?;
        let first = ["--selector", "*", "--shadow-first", "1", "--min-requests", "100", "--max-disagreement", "0.3"];

        // It says what is wrong of most images, as its golden examples do not.
        let bad = begin_beside(&fleet, &[&["--bundle", "digits@1.2.0"][..], &first].concat()).await?;
        ask_all(&fleet, "a", &images).await?;
        let view = fleet.wait_rollout(&bad, RolloutStatus::RolledBack).await?;
        ensure!(view.status_reason.contains("disagreement with the incumbent"), "{}", view.status_reason);
        let asked = ask_all(&fleet, "b", &images).await?;
        ensure!(asked.iter().all(|asked| asked.version == "1.0.0"), "the bad one answered");

        // Those that agree often enough serve, with what they have.
        let good = begin_beside(&fleet, &[&["--bundle", "digits@1.1.0"][..], &first].concat()).await?;
        let fetched = chunks(&mut fleet).await?;
        ask_all(&fleet, "c", &images).await?;
        fleet.wait_committed("dev-1", "1.1.0").await?;
        let view = wait::until("the wave that serves is watched", PATIENCE, async || {
            ask_all(&fleet, "d", &images[..20]).await?;
            let view = fleet.operator.rollout(&good).await?;
            Ok((view.status == RolloutStatus::Completed).then_some(view))
        })
        .await?;
        let said: Vec<&str> = view.verdicts.iter().map(|verdict| verdict.summary.as_str()).collect();
        ensure!(said.len() == 2 && view.waves[1].devices.len() == 1, "{said:?}");
        ensure!((chunks(&mut fleet).await? - fetched).abs() < 0.5, "chunks were fetched again");
        ensure!(ask_all(&fleet, "e", &images[..5]).await?.iter().all(|asked| asked.version == "1.1.0"));
        Ok(())
    });
}

#[test]
fn a_split_answers_each_key_with_the_same_model_also_after_a_restart_and_ends_with_the_rollback() {
    stage::run(async |binaries, folder| {
        let mut fleet = device_on_the_first_version(&binaries, &folder).await?;
        let images: Vec<Image> = fixtures::held_out()?.into_iter().take(200).collect();
        fleet.release_digits("1.1.0").await?;
        let split = ["--stage", "split", "--share", "30%", "--experiment", "warm"];
        let bundle = ["--bundle", "digits@1.1.0", "--selector", "*"];
        let id = begin_beside(&fleet, &[&bundle[..], &split[..]].concat()).await?;
        let stage = Stage::Split { share_bp: 3_000, experiment: "warm".into() };
        let manifest = fleet.operator.rollout(&id).await?.manifest;
        let falls: Vec<bool> = (0..images.len()).map(|at| stage.falls_to(&manifest, &format!("k-{at}"))).collect();
        let check = |asked: &[Asked]| {
            let right = asked.iter().zip(&falls).all(|(asked, falls)| (asked.version == "1.1.0") == *falls);
            ensure!(right && asked.iter().all(|asked| asked.version != "1.2.0"), "a key fell to another model");
            Ok(())
        };
        check(&ask_all(&fleet, "k", &images).await?)?;
        fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
        let fell = falls.iter().filter(|falls| **falls).count() as u64;
        // 200 at 30 %: 60, give or take five standard deviations.
        ensure!((28..=92).contains(&fell), "{fell}");
        let group = comparison(&fleet, &id, |group| {
            group.candidate_figures.requests + group.incumbent_figures.requests >= images.len() as u64
        })
        .await?;
        ensure!((group.candidate_figures.requests, group.candidate_failed) == (fell, 0), "{group:?}");

        let device = fleet.device("dev-1")?;
        device.kill()?;
        device.restart().await?;
        let (http, url) = (reqwest::Client::new(), format!("{}/status", fleet.devices[0].inference_url));
        let has_beside = async || {
            let status: serde_json::Value = http.get(&url).send().await?.json().await?;
            anyhow::Ok(status.get("beside").is_some())
        };
        wait::until("it runs beside again", PATIENCE, async || Ok(has_beside().await?.then_some(()))).await?;
        check(&ask_all(&fleet, "k", &images).await?)?;

        fleet.operator.run(&["rollout", "rollback", &id]).await?;
        fleet.wait_rollout(&id, RolloutStatus::RolledBack).await?;
        ensure!(!has_beside().await?, "it runs on");
        ensure!(ask_all(&fleet, "k", &images).await?.iter().all(|asked| asked.version == "1.0.0"));
        fleet.wait_committed("dev-1", "1.0.0").await
    });
}

#[test]
fn a_device_that_serves_nothing_is_left_out_of_a_shadow() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 1).await?;
        fleet.release_digits("1.0.0").await?;
        let create = [&["--bundle", "digits@1.0.0", "--selector", "*", "--stage", "shadow"][..], &EASY[..]].concat();
        let id = fleet.roll_out(&create).await?;
        wait::until("the operator is told why", Duration::from_secs(60), async || {
            let view = fleet.operator.rollout(&id).await?;
            let why = view.waiting.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            Ok(why.contains("no bundle of its own").then_some(()))
        })
        .await
    });
}

/// Sends labels for answers `prefix-0` and on of `dev-1`.
async fn label_all(fleet: &Fleet, prefix: &str, images: &[(usize, &Image)]) -> anyhow::Result<()> {
    let items: Vec<serde_json::Value> = images
        .iter()
        .map(|(at, image)| serde_json::json!({ "id": format!("{prefix}-{at}"), "label": image.label.to_string() }))
        .collect();
    let url = format!("{}/v2/models/digits/feedback", fleet.devices[0].inference_url);
    let body = serde_json::json!({ "feedback": items });
    let answer = reqwest::Client::new().post(url).json(&body).send().await?.error_for_status()?;
    let answer: serde_json::Value = answer.json().await?;
    ensure!(answer["counts"]["joined"] == images.len(), "{answer}");
    Ok(())
}

/// Rows by who was right: both, only the first, only the second, neither.
fn pairs_of(images: &[Image], old: &[Asked], new: &[Asked]) -> [u64; 4] {
    let mut pairs = [0; 4];
    for ((image, old), new) in images.iter().zip(old).zip(new) {
        let at = match (old.class == image.label, new.class == image.label) {
            (true, true) => 0,
            (true, false) => 1,
            (false, true) => 2,
            (false, false) => 3,
        };
        pairs[at] += 1;
    }
    pairs
}

#[test]
fn labels_say_which_of_two_models_was_right() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet_with(&binaries, &folder, 0, "[rollout]\ntick-ms = 100\n").await?;
        let token = fleet.enrolment_token(1).await?;
        fleet.add_device(&DeviceSetup { id: "dev-1", token: &token, window_ms: 500, settings: ROOM }, false).await?;
        fleet.wait_online(1).await?;
        for version in ["1.0.0", "1.1.0", "1.2.0"] {
            crate::feedback::release(&fleet, &folder, version).await?;
        }
        let of = |version: &'static str| [format!("digits@{version}"), "*".to_owned()];
        let first = of("1.0.0");
        let serve = ["--bundle", &first[0], "--selector", &first[1]];
        let id = fleet.roll_out(&[&serve[..], &EASY[..]].concat()).await?;
        fleet.wait_committed("dev-1", "1.0.0").await?;
        fleet.operator.run(&["rollout", "abort", &id]).await?;
        let images: Vec<Image> = fixtures::held_out()?.into_iter().take(200).collect();

        // A shadow: every label says something of both.
        let second = of("1.1.0");
        let candidate = ["--bundle", &second[0], "--selector", &second[1]];
        let shadow = begin_beside(&fleet, &[&candidate[..], &["--stage", "shadow"]].concat()).await?;
        let http = reqwest::Client::new();
        let mut by_old = Vec::new();
        for (at, image) in images.iter().enumerate() {
            by_old.push(ask(&http, &fleet.devices[0].inference_url, &format!("a-{at}"), image).await?);
            if at % 2 == 0 {
                // It may well be there before the shadow is.
                label_all(&fleet, "a", &[(at, image)]).await?;
            }
        }
        let odd: Vec<(usize, &Image)> = images.iter().enumerate().filter(|(at, _)| at % 2 == 1).collect();
        label_all(&fleet, "a", &odd).await?;
        let n = images.len() as u64;
        let labelled = |group: &ComparisonGroup| match &group.labels {
            Some(LabelReport::Classes { incumbent, candidate, .. }) => incumbent.labels + candidate.labels,
            Some(LabelReport::Numbers { .. } | LabelReport::TooFew { .. }) | None => 0,
        };
        let group = comparison(&fleet, &shadow, |group| labelled(group) >= 2 * n).await?;
        println!("{}", fleet.operator.run(&["rollout", "compare", &shadow]).await?);
        let Some(LabelReport::Classes { paired: Some(paired), incumbent, candidate: own, difference }) = &group.labels
        else {
            anyhow::bail!("{group:?}");
        };
        let (incumbent, own, paired, difference) = (*incumbent, *own, *paired, difference.context("a difference")?);

        // The candidate's own quality is told like any other's.
        let quality: muster_shared::quality::QualityReport =
            fleet.operator.json(&["quality", "show", "digits@1.1.0"]).await?;
        ensure!(quality.groups.first().is_some_and(|group| group.quality.labels == n), "{quality:?}");

        // It is taken off by an abort while its rollout runs, and by no pause.
        let held = ["--stage", "shadow", "--min-requests", "1000000"];
        let easy: Vec<&str> = EASY.chunks(2).filter(|pair| pair[0] != "--min-requests").flatten().copied().collect();
        let running = fleet.roll_out(&[&candidate[..], &held[..], &easy[..]].concat()).await?;
        let url = format!("{}/status", fleet.devices[0].inference_url);
        let beside = async || {
            let status: serde_json::Value = http.get(&url).send().await?.json().await?;
            anyhow::Ok(status.get("beside").map(|_| ()))
        };
        let before = beside().await?;
        wait::until("it runs beside under the new rollout", PATIENCE, async || {
            let device = fleet.operator.device("dev-1").await?;
            let there = device.reported.is_some_and(|report| {
                report.update.state == UpdateState::Beside
                    && device.desired.as_ref().is_some_and(|desired| {
                        desired.rollout.as_str() == running && desired.generation == report.update.generation
                    })
            });
            Ok(there.then_some(()))
        })
        .await?;
        ensure!(before.is_some() && beside().await?.is_some(), "{before:?}");
        fleet.operator.run(&["rollout", "pause", &running]).await?;
        fleet.wait_rollout(&running, RolloutStatus::Paused).await?;
        ensure!(beside().await?.is_some(), "a pause leaves it as it is");
        fleet.operator.run(&["rollout", "abort", &running]).await?;
        let view = fleet.wait_rollout(&running, RolloutStatus::RolledBack).await?;
        ensure!(view.status_reason.contains("stopped by"), "{}", view.status_reason);
        ensure!(beside().await?.is_none(), "it runs on");

        // What the labels said is what both say alone.
        let id = fleet.roll_out(&[&candidate[..], &EASY[..]].concat()).await?;
        fleet.wait_committed("dev-1", "1.1.0").await?;
        let by_new = ask_all(&fleet, "b", &images).await?;
        fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
        let [both, old_only, new_only, neither] = pairs_of(&images, &by_old, &by_new);
        ensure!(
            [paired.both_right, paired.incumbent_right, paired.candidate_right, paired.both_wrong]
                == [both, old_only, new_only, neither],
            "{paired:?} where {both}, {old_only}, {new_only}, {neither} were right"
        );
        ensure!((incumbent.right, own.right) == (both + old_only, both + new_only), "{incumbent:?} {own:?}");
        let expected = (new_only as f64 - old_only as f64) / n as f64;
        ensure!((difference.value - expected).abs() < 1e-12 && new_only > old_only, "{difference:?}");

        // A split with a model that is bad in the field: each arm has its own labels.
        let third = of("1.2.0");
        let bad = ["--bundle", &third[0], "--selector", &third[1]];
        let split = ["--stage", "split", "--share", "40%", "--experiment", "labels"];
        let id = fleet.roll_out(&[&bad[..], &split[..], &EASY[..]].concat()).await?;
        wait::until("the two share the requests", PATIENCE, &beside).await?;
        let answers = ask_all(&fleet, "c", &images).await?;
        let all: Vec<(usize, &Image)> = images.iter().enumerate().collect();
        label_all(&fleet, "c", &all).await?;
        let group = comparison(&fleet, &id, |group| labelled(group) >= n).await?;
        println!("{}", fleet.operator.run(&["rollout", "compare", &id]).await?);
        let Some(LabelReport::Classes { paired: None, incumbent, candidate, difference: Some(difference) }) =
            &group.labels
        else {
            anyhow::bail!("{group:?}");
        };
        for (arm, version) in [(incumbent, "1.1.0"), (candidate, "1.2.0")] {
            let own = || images.iter().zip(&answers).filter(|(_, asked)| asked.version == version);
            let right = own().filter(|(image, asked)| image.label == asked.class).count() as u64;
            ensure!((arm.labels, arm.right) == (own().count() as u64, right), "{version}: {arm:?}, {right} right");
        }
        ensure!(difference.high < Some(-0.5), "{difference:?}");
        Ok(())
    });
}
