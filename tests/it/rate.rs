//! How fast real devices come in.

use anyhow::{Context as _, ensure};
use muster_shared::api::EventView;
use muster_shared::rollout::{DeviceProgress, RolloutView, Waiting};
use muster_tests::fleet::PATIENCE;
use muster_tests::wait;

use crate::stage;

const DEVICES: usize = 6;
const MINUTE_MS: u64 = 60_000;
/// Devices in a minute before the first has succeeded, and after that: 1 × 5, which is above the most.
const BASE: usize = 1;
const MOST: usize = 4;

/// When devices were told, and how many, by the rollout's history.
fn told(events: &[EventView], rollout: &str) -> anyhow::Result<Vec<(u64, usize)>> {
    let own = events.iter().filter(|event| event.rollout.as_ref().is_some_and(|id| id.as_str() == rollout));
    let assigned = own.filter(|event| event.kind == "rollout.assigned");
    assigned
        .map(|event| {
            let devices = event.detail.split(' ').next().and_then(|count| count.parse().ok());
            Ok((event.at_ms, devices.with_context(|| format!("{event:?} counts no devices"))?))
        })
        .collect()
}

/// Whom the rate keeps out, and until when.
fn kept_out(view: &RolloutView) -> Option<(u32, u32, u64)> {
    view.waiting.iter().find_map(|why| {
        let Waiting::Rate { per_minute, left, next_ms } = *why else { return None };
        Some((per_minute, left, next_ms))
    })
}

#[test]
fn devices_come_in_no_faster_than_the_rate_also_when_it_grows_and_the_controller_dies() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, DEVICES).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        fleet.release_digits("1.1.0").await?;
        let (most, base) = (MOST.to_string(), BASE.to_string());
        let rate = ["--maximum-per-minute", &most, "--base-rate-per-minute", &base, "--increment-factor", "5"];
        let grows = ["--increase-after-succeeded", "1"];
        let wish = ["--bundle", "digits@1.1.0", "--selector", "*", "--wave", "100%"];
        let id = fleet.roll_out(&[&wish[..], &rate, &grows, &stage::EASY].concat()).await?;

        let committed = |view: &RolloutView| {
            view.waves[0].devices.values().filter(|progress| **progress == DeviceProgress::Committed).count()
        };
        let full = async || {
            let view = fleet.operator.rollout(&id).await?;
            // Until it begins, a wave is shown with whom it would take in all in all.
            let begun = view.waves[0].started_at_ms.is_some();
            let within = !begun || view.waves[0].devices.len() <= MOST;
            ensure!(within && view.verdicts.is_empty(), "within a minute: {view:?}");
            Ok(Some(view).filter(|view| committed(view) == MOST))
        };
        let view = wait::until("a minute's worth has committed", PATIENCE, full).await?;
        let (per_minute, left, next_ms) = kept_out(&view).context("it waits for the rate")?;
        ensure!((per_minute as usize, left as usize) == (MOST, DEVICES - MOST), "{:?}", view.waiting);

        // A controller that begins anew does not begin the minute anew.
        fleet.controller.crash_and_restart().await?;
        fleet.wait_online(DEVICES).await?;
        let after = fleet.operator.rollout(&id).await?;
        ensure!(kept_out(&after) == Some((per_minute, left, next_ms)), "{:?}", after.waiting);

        let events = fleet.operator.events().await?;
        let told = told(&events, &id)?;
        let first_ms = told.first().context("somebody was told")?.0;
        // The first tells when the next may come in: with four in that minute, when it is over.
        ensure!(next_ms.abs_diff(first_ms + MINUTE_MS) < 1_000, "{next_ms} after {first_ms}");
        let succeeded = events.iter().find(|event| event.kind == "device.committed" && event.at_ms > first_ms);
        let succeeded_ms = succeeded.context("one has committed")?.at_ms;
        for (at_ms, _) in &told {
            let lately = told.iter().filter(|(told_ms, _)| told_ms <= at_ms && at_ms - told_ms < MINUTE_MS);
            let (lately, rate) =
                (lately.map(|(_, devices)| devices).sum::<usize>(), if *at_ms > succeeded_ms { MOST } else { BASE });
            ensure!(lately <= rate, "{lately} in the minute before {at_ms}, where {rate} may: {told:?}");
        }
        ensure!(told.iter().map(|(_, devices)| devices).sum::<usize>() == MOST, "{told:?}");
        stage::ensure_all_answered(&traffic)
    });
}
