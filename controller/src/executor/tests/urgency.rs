//! Emergencies against what holds the devices they want.

use super::*;

fn emergency(bundle: &Manifest, selector: &str) -> RolloutSpec {
    let waves = vec![WaveSpec::of("100%".parse().unwrap(), 0, 3_600_000)];
    let watch = WatchPolicy { probation_ms: 7, ..WatchPolicy::default() };
    RolloutSpec { emergency: true, watch, ..RolloutSpec::of(bundle.bundle(), selector.parse().unwrap(), waves) }
}

/// A rollout that holds `device`.
async fn holding(test: &TestApp, bundle: &Manifest, device: &DeviceId) -> RolloutId {
    let id = create(&test.app, spec(bundle, &format!("id={device}"), &["100%"]), "alice", None).await.unwrap().id;
    plan_until(test, &id, |view| !view.waves[0].devices.is_empty()).await;
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emergency_ends_what_is_in_its_way_and_takes_its_devices() {
    let test = app().await;
    let devices = fleet(&test, &["a", "b", "c"]).await;
    let (old, new) = (test.bundle("digits", "1.0.0", 10).await, test.bundle("digits", "1.1.0", 10).await);
    let (in_the_way, beside) = (holding(&test, &new, &devices[0]).await, holding(&test, &new, &devices[2]).await);
    let urgent = emergency(&old, "id!=c");
    let shown = preview(&test.app, urgent.clone(), "ann").await.unwrap();
    assert_eq!((shown.waves[0].devices.len(), shown.held.len()), (2, 0), "{shown:?}");
    assert_eq!(shown.ends, std::slice::from_ref(&in_the_way));
    let id = create(&test.app, urgent, "bob", None).await.unwrap().id;
    let told = plan_until(&test, &id, |view| view.waves[0].devices.len() == 2).await;
    assert_eq!(told.len(), 2);
    for assignment in &told {
        assert_eq!((assignment.manifest, assignment.delivery), (Some(digest_of(&old)), DeliveryPolicy::at_once()));
        comply(&test, assignment, &old, 0, 0);
    }
    let ended = view(&test.app, &in_the_way).await.unwrap();
    assert_eq!(ended.status, RolloutStatus::Stopped);
    assert!(ended.status_reason.contains(&format!("the emergency {id} of digits@1.0.0")), "{}", ended.status_reason);
    assert!(kinds(&test, &in_the_way).await.contains(&"rollout.stopped".to_owned()));
    assert_eq!(view(&test.app, &beside).await.unwrap().status, RolloutStatus::Running, "it has nothing that is wanted");
    plan_until(&test, &id, is(RolloutStatus::Completed)).await;
}

/// The controller dies when what is in the way was ended and the emergency was not planned.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emergency_goes_on_where_a_controller_died() {
    let (test, store) = observed().await;
    let devices = fleet(&test, &["a"]).await;
    let (old, new) = (test.bundle("digits", "1.0.0", 10).await, test.bundle("digits", "1.1.0", 10).await);
    let in_the_way = holding(&test, &new, &devices[0]).await;
    let id = create(&test.app, emergency(&old, "*"), "bob", None).await.unwrap().id;
    let mut pending = store.hold();
    let planner = {
        let app = Arc::clone(&test.app);
        tokio::spawn(async move { pass::pass(&app).await })
    };
    // An operator is faster: the end is tried again with what has become of the rollout.
    let end = pending.recv().await.unwrap();
    let operator = {
        let (app, id) = (Arc::clone(&test.app), in_the_way.clone());
        tokio::spawn(async move { act(&app, &id, OperatorAction::Pause, "alice", None).await })
    };
    pending.recv().await.unwrap().decide(Fate::Go);
    operator.await.unwrap().unwrap();
    end.decide(Fate::Go);
    pending.recv().await.unwrap().decide(Fate::Go);
    pending.recv().await.unwrap().decide(Fate::Fail);
    drop(pending);
    planner.await.unwrap();
    assert_eq!(view(&test.app, &in_the_way).await.unwrap().status, RolloutStatus::Stopped);
    let broker = Arc::new(RecordingBroker::default());
    let again = open_over(test.app.config.clone(), Arc::clone(&broker), test.app.records.clone()).await;
    let again = TestApp { app: Arc::new(again), broker, folder: test.folder };
    requests::find_active(&again.app).await.unwrap();
    connect(&again, &devices[0]);
    let told = plan_until(&again, &id, |view| !view.waves[0].devices.is_empty()).await;
    assert_eq!(told.last().unwrap().manifest, Some(digest_of(&old)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_emergency_begins_while_the_fleet_is_stopped() {
    let test = app().await;
    fleet(&test, &["a"]).await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    stop_all(&test.app, "bob", None).await.unwrap();
    let refused = create(&test.app, emergency(&bundle, "*"), "alice", None).await;
    assert!(matches!(refused, Err(ExecutorError::Stopped(_))), "{refused:?}");
}
