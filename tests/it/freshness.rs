//! An assignment holds for a while, and is renewed before it ends; a device that is kept from hearing of it says so.

use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;

use crate::stage;

/// When the last assignment of `device` ends, as a restart would know.
fn ends_ms(fleet: &mut Fleet, device: &str) -> anyhow::Result<u64> {
    let file = fleet.device(device)?.folder().join("data/trust/assignment-ends");
    Ok(std::fs::read_to_string(file)?.lines().next().unwrap_or_default().parse()?)
}

#[test]
fn an_assignment_that_is_not_renewed_is_told_and_served_on() {
    stage::run(async |binaries, folder| {
        // The shortest that is allowed.
        let settings = "[rollout]\ntick-ms = 100\nassignment-valid-for-ms = 10000\n";
        let mut fleet = stage::fleet_with(&binaries, &folder, 1, settings).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        let first_ms = ends_ms(&mut fleet, "dev-1")?;
        wait::until("the assignment is renewed", PATIENCE, async || {
            Ok((ends_ms(&mut fleet, "dev-1")? > first_ms).then_some(()))
        })
        .await?;
        let told = async |fleet: &Fleet| {
            let events = fleet.operator.events().await?;
            anyhow::Ok(
                events
                    .iter()
                    .any(|event| event.kind == "device.stale-metadata" && event.detail.contains("not renewed")),
            )
        };
        anyhow::ensure!(!told(&fleet).await?, "it was renewed, and told all the same");

        fleet.device("dev-1")?.link()?.cut();
        let log = fleet.device("dev-1")?.folder().join("agent.log");
        wait::until("the assignment has ended", PATIENCE, async || {
            Ok(std::fs::read_to_string(&log)?.contains("the assignment ended at").then_some(()))
        })
        .await?;
        // Cut off at that moment or not, a start knows what has ended, and serves.
        stage::kill_and_restart(&mut fleet, &traffic).await?;

        fleet.device("dev-1")?.link()?.mend();
        wait::until("the controller hears of it", PATIENCE, async || Ok(told(&fleet).await?.then_some(()))).await?;
        wait::until("the assignment is in date again", PATIENCE, async || {
            let report = fleet.operator.device("dev-1").await?.reported;
            Ok(report.is_some_and(|report| report.stale_since_ms.is_none()).then_some(()))
        })
        .await?;
        stage::ensure_all_answered(&traffic)
    });
}
