//! What is kept of updates that fail, and what follows from it.

use super::*;

/// The device gives up what it was told, and goes on with what it had.
fn give_up(test: &TestApp, assignment: &Assignment) {
    let before = test.app.fleet.view(&assignment.device).and_then(|view| view.reported).unwrap_or_default();
    let (generation, manifest) = (assignment.generation, assignment.manifest);
    let update = UpdateReport {
        state: UpdateState::Reverted,
        generation,
        manifest,
        reason: Some("smoke".into()),
        ..UpdateReport::default()
    };
    test.app.fleet.update_report(&assignment.device, StateReport { generation, update, ..before });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_fails_again_and_again_is_left_aside_until_it_is_released() {
    let test = app().await;
    let device = fleet(&test, &["a"]).await.remove(0);
    let (old, new) = (test.bundle("digits", "1.0.0", 10).await, test.bundle("digits", "1.1.0", 10).await);
    let id = create(&test.app, spec(&old, "*", &["100%"]), "alice", None).await.unwrap().id;
    let told = plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    comply(&test, &told[0], &old, 5, 0);
    plan_until(&test, &id, is(RolloutStatus::Completed)).await;
    let quarantined = |test: &TestApp| test.app.fleet.view(&device).unwrap().quarantined;
    for round in 0..2 {
        assert_eq!(quarantined(&test), None, "round {round}");
        let id = create(&test.app, spec(&new, "*", &["100%"]), "alice", None).await.unwrap().id;
        let told = plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
        give_up(&test, &told[0]);
        let back = plan_until(&test, &id, is(RolloutStatus::RollingBack)).await;
        comply(&test, back.last().unwrap(), &old, 0, 0);
        plan_until(&test, &id, is(RolloutStatus::RolledBack)).await;
    }
    let why = quarantined(&test).unwrap().why;
    assert_eq!(why, "after 2 failed updates of the same bundle, the last: digits@1.1.0 reverted: smoke");
    let record = test.app.records.get::<DeviceRecord>(Table::Devices, "a").await.unwrap().unwrap().value;
    assert_eq!(record.updates.quarantine().unwrap().why, why);
    let events = test.app.events.list(0, None, None, 1_000).await.unwrap().events;
    let quarantines: Vec<_> = events.iter().filter(|event| event.kind == "device.quarantined").collect();
    assert!(
        matches!(&quarantines[..], [one] if one.device.as_ref() == Some(&device) && one.detail == why),
        "{events:?}"
    );

    let third = test.bundle("digits", "1.2.0", 10).await;
    let id = create(&test.app, spec(&third, "*", &["100%"]), "alice", None).await.unwrap().id;
    for _ in 0..3 {
        pass::pass(&test.app).await;
    }
    let waiting: Vec<String> = view(&test.app, &id).await.unwrap().waiting.iter().map(ToString::to_string).collect();
    assert!(waiting.iter().any(|why| why.contains("quarantined since 20") && why.contains("smoke")), "{waiting:?}");
    assert!(assignments(&test, &test.broker.take()).is_empty());
}
