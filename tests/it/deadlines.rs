//! Devices that do not get anywhere in time: one that is away, and one that dies after it was told.

use anyhow::{Context as _, ensure};
use muster_shared::messages::UpdateState;
use muster_shared::rollout::{DeviceOutcomes, DeviceProgress, Outcome, RolloutStatus, RolloutView, Rule};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::link::Faults;
use muster_tests::wait;

use crate::stage;

/// Nothing is judged, and the soak outlasts both deadlines, so that the wave sees them pass.
const WISH: [&str; 20] = [
    "--selector",
    "*",
    "--in-progress-timeout",
    "3s",
    "--offline-timeout",
    "1s",
    "--soak",
    "5s",
    "--max-duration",
    "10m",
    "--probation",
    "500ms",
    "--min-reports",
    "1",
    "--min-requests",
    "1",
    "--max-latency-p99-ratio",
    "100000",
    "--max-prediction-psi",
    "1000",
];

/// Is switched off when it is told.
const AWAY: &str = "dev-3";
/// Dies while it fetches.
const DEAD: &str = "dev-4";

/// Begins the rollout of `version` with `more` options, and lets one device be away and one die over it.
async fn begin(fleet: &mut Fleet, version: &str, more: &[&str]) -> anyhow::Result<String> {
    fleet.release_large_digits(version, 300_000).await?;
    fleet.device(AWAY)?.process_mut().stop().await?;
    wait::until(&format!("{AWAY} is away"), PATIENCE, async || {
        Ok((!fleet.operator.device(AWAY).await?.online).then_some(()))
    })
    .await?;
    // Some six seconds for the whole bundle.
    fleet.device(DEAD)?.link()?.suffer(Faults { rate_bits_per_s: Some(400_000), ..Faults::default() });
    let bundle = format!("digits@{version}");
    let id = fleet.roll_out(&[&["--bundle", &bundle], &WISH[..], more].concat()).await?;
    wait::until(&format!("{DEAD} fetches {version}"), PATIENCE, async || {
        let view = fleet.operator.device(DEAD).await?;
        let fetches = |generation| {
            view.reported.as_ref().is_some_and(|report| {
                (report.update.generation, report.update.state) == (generation, UpdateState::Fetching)
            })
        };
        let desired = view.desired.as_ref().filter(|desired| desired.rollout.as_str() == id);
        Ok(desired.filter(|desired| fetches(desired.generation)).map(|_| ()))
    })
    .await?;
    fleet.device(DEAD)?.kill()?;
    Ok(id)
}

/// Both come back.
async fn return_to(fleet: &mut Fleet) -> anyhow::Result<()> {
    fleet.device(AWAY)?.restart().await?;
    fleet.device(DEAD)?.link()?.suffer(Faults::default());
    fleet.device(DEAD)?.restart().await
}

/// Waits until the rollout explains the device by `what`.
async fn says(fleet: &Fleet, rollout: &str, device: &str, what: &str) -> anyhow::Result<()> {
    let explain = async || fleet.operator.run(&["rollout", "explain", rollout, "--device", device]).await;
    wait::until_explained(
        &format!("{device} is said to be: {what}"),
        PATIENCE / 4,
        async || Ok(explain().await?.contains(what).then_some(())),
        async || explain().await.unwrap_or_else(|error| format!("{error:#}")),
    )
    .await
}

async fn gauge(fleet: &Fleet, what: &str, rollout: &str) -> anyhow::Result<f64> {
    let name = format!("muster_controller_rollout_devices_{what}{{rollout=\"{rollout}\",wave=\"1\"}}");
    fleet.controller.metric(&name).await
}

/// The gauges say the same as `outcomes`, in numbers.
async fn ensure_shown(fleet: &Fleet, rollout: &str, outcomes: DeviceOutcomes) -> anyhow::Result<()> {
    let DeviceOutcomes { targeted, succeeded, reported, erring, .. } = outcomes;
    for (what, count) in [("targeted", targeted), ("succeeded", succeeded), ("reported", reported), ("erring", erring)]
    {
        let shown = gauge(fleet, what, rollout).await?;
        ensure!((shown - f64::from(count)).abs() < 0.5, "{shown} {what}, where {outcomes:?}");
    }
    Ok(())
}

fn timed_out(view: &RolloutView) -> Vec<&str> {
    let late = view.waves[0].devices.iter().filter(|(_, progress)| **progress == DeviceProgress::TimedOut);
    late.map(|(id, _)| id.as_str()).collect()
}

/// Nobody waits for them, and whoever comes back has what it was told.
async fn a_rollout_goes_on_without_them(fleet: &mut Fleet) -> anyhow::Result<()> {
    let id = begin(fleet, "1.1.0", &[]).await?;
    let view = wait::until("both are timed out", PATIENCE, async || {
        let view = fleet.operator.rollout(&id).await?;
        ensure!(!view.status.is_terminal(), "{}: {}", view.status, view.status_reason);
        Ok(Some(view).filter(|view| timed_out(view) == [AWAY, DEAD]))
    })
    .await?;
    ensure!((view.outcomes.targeted, view.outcomes.succeeded) == (4, 2), "{:?}", view.outcomes);
    ensure!((view.outcomes.timed_out, view.outcomes.failed) == (2, 0), "{:?}", view.outcomes);
    says(fleet, &id, AWAY, "it timed out on digits@1.1.0, and is not waited for").await?;
    says(fleet, &id, AWAY, "not reached within 1000 ms of being told").await?;
    says(fleet, &id, DEAD, "nothing committed within 3 s").await?;
    let both = wait::until("those that came in have reported", PATIENCE, async || {
        let view = fleet.operator.rollout(&id).await?;
        Ok(Some(view.outcomes).filter(|outcomes| outcomes.reported == 2))
    })
    .await?;
    ensure_shown(fleet, &id, both).await?;
    let done = fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
    ensure!(done.verdicts.iter().all(|verdict| verdict.canary.timed_out == 2), "{:?}", done.verdicts);
    wait::until("a rollout that has ended is shown no more", PATIENCE, async || {
        Ok((gauge(fleet, "targeted", &id).await? < 0.5).then_some(()))
    })
    .await?;
    return_to(fleet).await?;
    for device in [AWAY, DEAD] {
        fleet.wait_committed(device, "1.1.0").await?;
        says(fleet, &id, device, "it has committed digits@1.1.0").await?;
    }
    Ok(())
}

/// A criterion on silence takes it back, and whoever comes back keeps what it had.
async fn a_criterion_takes_the_rollout_back(fleet: &mut Fleet) -> anyhow::Result<()> {
    let id = begin(fleet, "1.2.0", &["--abort-when", "timed_out:50%:4"]).await?;
    let view = fleet.wait_rollout(&id, RolloutStatus::RolledBack).await?;
    let verdict = view.verdicts.last().context("it was judged")?;
    let failed: Vec<Rule> =
        verdict.checks.iter().filter(|check| check.outcome == Outcome::Failed).map(|check| check.rule).collect();
    ensure!(failed == [Rule::AbortCriterion], "{verdict:?}");
    let outcomes = verdict.canary.outcomes();
    ensure!((outcomes.targeted, outcomes.succeeded, outcomes.timed_out) == (4, 2, 2), "{outcomes:?}");
    for device in ["dev-1", "dev-2"] {
        fleet.wait_committed(device, "1.1.0").await?;
    }
    for device in [AWAY, DEAD] {
        says(fleet, &id, device, "it is away, and is told on return to run what it ran before").await?;
    }
    return_to(fleet).await?;
    for device in [AWAY, DEAD] {
        wait::until(&format!("{device} is back"), PATIENCE, async || {
            let view = fleet.operator.rollout(&id).await?;
            Ok(view.waves[0]
                .devices
                .iter()
                .any(|(id, p)| id.as_str() == device && *p == DeviceProgress::Back)
                .then_some(()))
        })
        .await?;
        fleet.wait_committed(device, "1.1.0").await?;
        says(fleet, &id, device, "it is back: it runs what it ran before").await?;
    }
    Ok(())
}

#[test]
fn devices_that_time_out_hold_nothing_up_unless_a_criterion_says_so_and_come_back_to_where_they_belong() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 4).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        // Nobody answers for a device that is off.
        [AWAY, DEAD].iter().for_each(|device| traffic.expect(device, false));
        a_rollout_goes_on_without_them(&mut fleet).await?;
        a_criterion_takes_the_rollout_back(&mut fleet).await?;
        let seen = traffic.seen();
        ensure!(seen[AWAY].by_version.keys().eq(["1.0.0", "1.1.0"]), "{seen:?}");
        stage::ensure_all_answered(&traffic)
    });
}
