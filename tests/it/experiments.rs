//! Experiments on real devices: a bundle goes on only when what its applications count is shown to be better.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_shared::rollout::{GateReport, Metric, Outcome, RolloutStatus, RolloutView};
use muster_tests::fixtures;
use muster_tests::fleet::Fleet;
use muster_tests::traffic::Traffic;

use crate::guardrails::Applications;
use crate::stage::{self, EASY};

/// Two arms of twelve: a margin is shown from ten pairs on.
const DEVICES: usize = 24;

/// How often the line stops, at least, of ten times that count as worst: 1.1.0 is better than 1.0.0, and 1.2.0 worse.
fn stops(version: &str) -> u32 {
    match version {
        "1.1.0" => 1,
        "1.2.0" => 8,
        _ => 5,
    }
}

/// The rollout of `bundle` as an experiment on half of the devices, once it stands at `status`.
async fn experiment(fleet: &Fleet, bundle: &str, status: RolloutStatus) -> anyhow::Result<RolloutView> {
    let waves = ["--wave", "50%", "--wave", "100%", "--controls", "1"];
    let gate = ["--guardrail", "metric:line_stops:0..10=0%", "--guardrail", "error-rate=50%"];
    let wish = [&["--bundle", bundle, "--selector", "*"], &waves[..], &gate[..], &EASY[..]].concat();
    let planned = fleet.operator.run(&[&["rollout", "plan"], &wish[..]].concat()).await?;
    ensure!(planned.contains("Wave 1 must show that canaries are better"), "{planned}");
    let id = fleet.roll_out(&wish).await?;
    fleet.wait_rollout(&id, status).await
}

/// What came of the comparison of the first wave.
fn first_wave(view: &RolloutView) -> anyhow::Result<&GateReport> {
    let verdict = view.verdicts.first().context("it was judged")?;
    let report = verdict.gate.as_ref().context("it was compared")?;
    ensure!((verdict.wave, report.blocks as usize) == (0, DEVICES / 2), "{verdict:?}");
    ensure!(report.guardrails[0].guardrail.metric == Metric::Custom, "{report:?}");
    Ok(report)
}

#[test]
fn a_bundle_goes_on_when_it_is_shown_to_be_better_and_back_when_it_is_worse() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, DEVICES).await?;
        let mut traffic = Traffic::new(fixtures::held_out()?, Duration::from_millis(200));
        fleet.devices.iter().for_each(|device| traffic.start(&device.id, &device.inference_url));
        let applications = Applications::start(&fleet, stops);
        stage::first_version(&fleet, &traffic).await?;

        fleet.release_digits("1.1.0").await?;
        let better = experiment(&fleet, "digits@1.1.0", RolloutStatus::Completed).await?;
        let report = first_wave(&better)?;
        let line_stops = &report.guardrails[0];
        ensure!((report.outcome, line_stops.outcome) == (Outcome::Successful, Outcome::Successful), "{report:?}");
        // Four stops of ten fewer.
        ensure!(line_stops.mean_difference.is_some_and(|mean| (-0.5..-0.3).contains(&mean)), "{line_stops:?}");
        ensure!(line_stops.upper_bound.is_some_and(|bound| bound < 0.0), "{line_stops:?}");
        ensure!(report.sentence.contains("better: at most -"), "{}", report.sentence);
        ensure!(better.verdicts.len() == 2, "the rest got it too: {:?}", better.verdicts);

        fleet.release_digits("1.2.0").await?;
        let worse = experiment(&fleet, "digits@1.2.0", RolloutStatus::RolledBack).await?;
        let report = first_wave(&worse)?;
        let line_stops = &report.guardrails[0];
        ensure!((report.outcome, line_stops.outcome) == (Outcome::Failed, Outcome::Failed), "{report:?}");
        // Seven of ten more.
        ensure!(line_stops.mean_difference.is_some_and(|mean| (0.6..0.8).contains(&mean)), "{line_stops:?}");
        ensure!(report.log_e >= report.log_threshold, "{report:?}");
        for device in &fleet.devices {
            fleet.wait_committed(&device.id, "1.1.0").await?;
        }

        applications.finish().await?;
        let seen = traffic.finish().await;
        let arms = seen.values().filter(|seen| seen.by_version.contains_key("1.2.0")).count();
        ensure!(arms == DEVICES / 2, "the other arm never ran it: {seen:?}");
        for view in [&better, &worse] {
            let file = folder.join(format!("{}.json", view.id));
            let path = file.to_str().context("a path in words")?;
            fleet.operator.run(&["rollout", "evidence", view.id.as_str(), "--out", path]).await?;
            fleet.operator.run(&["rollout", "replay", path]).await?;
        }
        stage::ensure_all_answered(&traffic)
    });
}
