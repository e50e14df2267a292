//! Sites that switch together: two of them, with real agents, under a real controller.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use muster_shared::api::{DeviceView, EventView};
use muster_shared::messages::{HeldBack, UpdateState};
use muster_shared::rollout::{DeviceProgress, Prepared, RolloutStatus, Waiting};
use muster_shared::trust::Activation;
use muster_tests::device::DeviceSetup;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::traffic::Traffic;
use muster_tests::wait;

use crate::delivery::quiet_now;
use crate::stage;

const LYON: [&str; 3] = ["dev-1", "dev-2", "dev-3"];
const NICE: [&str; 2] = ["dev-4", "dev-5"];

/// Devices that serve digits 1.0.0, each with its site, further settings, and a link of its own.
async fn sites(
    binaries: &muster_tests::binaries::Binaries,
    folder: &std::path::Path,
    devices: &[(&str, &str, &str)],
) -> anyhow::Result<(Fleet, Traffic)> {
    let mut fleet = stage::fleet(binaries, folder, 0).await?;
    let token = fleet.enrolment_token(devices.len()).await?;
    for (id, site, settings) in devices {
        fleet.add_device(&DeviceSetup { id, token: &token, window_ms: 500, settings }, true).await?;
        fleet.operator.run(&["device", "label", id, site]).await?;
    }
    fleet.wait_online(devices.len()).await?;
    let traffic = stage::traffic(&fleet)?;
    stage::first_version(&fleet, &traffic).await?;
    Ok((fleet, traffic))
}

/// Lyon first, then everywhere.
async fn begin(fleet: &Fleet, version: &str) -> anyhow::Result<String> {
    let bundle = format!("digits@{version}");
    let own = ["--bundle", &bundle, "--selector", "*", "--wave", "1:site=lyon", "--wave", "100%"];
    fleet.roll_out(&[&own[..], &["--switch-by", "site", "--switch-lead", "3s"], stage::STRICT].concat()).await
}

async fn views(fleet: &Fleet) -> anyhow::Result<BTreeMap<String, DeviceView>> {
    Ok(fleet.operator.devices().await?.into_iter().map(|device| (device.id.to_string(), device)).collect())
}

fn serves(device: &DeviceView) -> Option<String> {
    device.reported.as_ref()?.running.as_ref().map(|bundle| bundle.bundle.version.to_string())
}

fn is_ready(device: &DeviceView) -> bool {
    let update = device.reported.as_ref().map(|reported| &reported.update);
    update.is_some_and(|update| {
        update.state == UpdateState::Verified && matches!(update.held_back, Some(HeldBack::Switch { .. }))
    })
}

/// When each of `devices` began to serve its last update, by its own clock.
async fn switched_at(fleet: &Fleet, devices: &[&str], version: &str) -> anyhow::Result<Vec<u64>> {
    let events = fleet.operator.events().await?;
    devices
        .iter()
        .map(|id| {
            let of_it = |event: &&EventView| event.device.as_ref().is_some_and(|device| device.as_str() == *id);
            let began = events.iter().filter(of_it).filter(|event| {
                event.kind == "device.trial" && event.bundle.as_ref().is_some_and(|b| b.version.to_string() == version)
            });
            began.map(|event| event.at_ms).next_back().with_context(|| format!("{id} never began to serve {version}"))
        })
        .collect()
}

#[test]
fn a_site_switches_together_once_all_of_it_are_ready_and_the_other_follows() {
    stage::run(async |binaries, folder| {
        let lyon = LYON.map(|id| (id, "site=lyon", ""));
        let nice = NICE.map(|id| (id, "site=nice", ""));
        let (mut fleet, traffic) = sites(&binaries, &folder, &[&lyon[..], &nice[..]].concat()).await?;
        fleet.release_digits("1.2.0").await?;
        fleet.cut_off("dev-3").await?;
        let id = begin(&fleet, "1.2.0").await?;
        wait::until("two of Lyon have switched without the one that is away", PATIENCE, async || {
            let views = views(&fleet).await?;
            ensure!(serves(&views["dev-4"]).as_deref() == Some("1.0.0"), "Nice is not meant yet");
            Ok(LYON[..2].iter().all(|id| serves(&views[*id]).as_deref() == Some("1.2.0")).then_some(()))
        })
        .await?;
        let at = switched_at(&fleet, &LYON[..2], "1.2.0").await?;
        println!("Lyon began to serve it {} ms apart", at[0].abs_diff(at[1]));
        let told = fleet.operator.device("dev-3").await?.desired.context("dev-3 is told nothing")?;
        let Activation::At { at_ms } = told.activation else { anyhow::bail!("{told:?}") };
        ensure!(at.iter().all(|at| *at >= at_ms), "{at:?} is before {at_ms}");
        // Who returns later switches at once.
        fleet.device("dev-3")?.link()?.mend();
        fleet.wait_committed("dev-3", "1.2.0").await?;
        fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
        let at = switched_at(&fleet, &NICE, "1.2.0").await?;
        println!("Nice began to serve it {} ms apart", at[0].abs_diff(at[1]));
        let told = views(&fleet).await?;
        let times = NICE.map(|id| told[id].desired.as_ref().map(|desired| desired.activation));
        ensure!(times[0] == times[1] && matches!(times[0], Some(Activation::At { .. })), "{times:?}");
        stage::ensure_all_answered(&traffic)
    });
}

#[test]
fn a_site_holds_until_its_last_device_is_ready_across_restarts_and_a_bad_device_takes_it_back() {
    stage::run(async |binaries, folder| {
        let quiet = quiet_now()?;
        let slow = format!("[delivery]\ntime-zone = \"UTC\"\n{quiet}\n");
        let devices = [
            ("dev-1", "site=lyon", ""),
            ("dev-2", "site=lyon", ""),
            ("dev-3", "site=lyon", slow.as_str()),
            ("dev-4", "site=nice", ""),
        ];
        let (mut fleet, traffic) = sites(&binaries, &folder, &devices).await?;
        fleet.release_digits("1.2.0").await?;
        let before = fleet.operator.device("dev-4").await?.desired;
        let id = begin(&fleet, "1.2.0").await?;
        let two_ready = || async {
            let views = views(&fleet).await?;
            ensure!(views.values().all(|device| serves(device).as_deref() == Some("1.0.0")), "nobody may switch yet");
            anyhow::Ok((is_ready(&views["dev-1"]) && is_ready(&views["dev-2"])).then_some(()))
        };
        wait::until("two of three are ready", PATIENCE, &two_ready).await?;
        wait::until("operators read what the site waits for", PATIENCE, async || {
            let view = fleet.operator.rollout(&id).await?;
            let prepared = [("lyon".to_owned(), Prepared { ready: 2, of: 3 })].into();
            let is_said = view.waiting.contains(&Waiting::Preparing { groups: prepared });
            let progress = view.waves[0].devices.get(&"dev-1".parse()?).copied();
            Ok((is_said && progress == Some(DeviceProgress::Ready)).then_some(()))
        })
        .await?;
        let shown = fleet.operator.run(&["rollout", "show", &id]).await?;
        ensure!(shown.contains("preparing: lyon 2 of 3 ready"), "{shown}");

        // One that dies meanwhile is ready again without fetching, and still waits.
        stage::kill_and_restart(&mut fleet, &traffic).await?;
        wait::until("the controller has heard that it died", PATIENCE, async || {
            let events = fleet.operator.events().await?;
            Ok(events.iter().any(|event| event.kind == "device.crashed").then_some(()))
        })
        .await?;
        let two_ready = || async {
            let views = views(&fleet).await?;
            ensure!(views.values().all(|device| serves(device).as_deref() == Some("1.0.0")), "nobody may switch yet");
            anyhow::Ok((is_ready(&views["dev-1"]) && is_ready(&views["dev-2"])).then_some(()))
        };
        wait::until("it is ready again", PATIENCE, &two_ready).await?;
        let fetched =
            fleet.device("dev-1")?.metric(&reqwest::Client::new(), "muster_agent_chunks_received_total").await?;
        ensure!(fetched == 0.0, "{fetched} chunks were fetched again");

        // The last of the site may fetch at last.
        let slow = fleet.device("dev-3")?;
        let path = slow.folder().join("agent.toml");
        std::fs::write(&path, std::fs::read_to_string(&path)?.replace(&quiet, "quiet-hours = []"))?;
        traffic.expect("dev-3", false);
        slow.process_mut().stop().await?;
        slow.restart().await?;
        // All of it switch, and one dies of what is on trial.
        wait::until("dev-2 has switched", PATIENCE, async || {
            let reported = fleet.operator.device("dev-2").await?.reported;
            Ok(reported.is_some_and(|reported| reported.update.state == UpdateState::Trial).then_some(()))
        })
        .await?;
        traffic.expect("dev-2", false);
        fleet.device("dev-2")?.kill()?;
        fleet.device("dev-2")?.restart().await?;
        let view = fleet.wait_rollout(&id, RolloutStatus::RolledBack).await?;
        // Held against it, and not against the one that had died while it waited.
        let summary = view.verdicts.last().map(|verdict| verdict.summary.clone()).unwrap_or_default();
        ensure!(summary.contains("1 device failed") && summary.contains("dev-2"), "{summary}");
        for device in LYON {
            fleet.wait_committed(device, "1.0.0").await?;
        }
        let views = views(&fleet).await?;
        ensure!(views.values().all(|device| serves(device).as_deref() == Some("1.0.0")), "{views:?}");
        ensure!(views["dev-4"].desired == before && view.waves[1].devices.is_empty(), "the other site is untouched");
        ensure!(traffic.seen_by("dev-4").by_version.keys().all(|version| version == "1.0.0"));
        Ok(())
    });
}
