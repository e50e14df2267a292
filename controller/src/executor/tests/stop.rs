//! The fleet-wide stop against everything that happens at the same time.

use super::*;

/// Brings `bundle` to `device`, which serves it; the rollout completes.
async fn settled(test: &TestApp, bundle: &Manifest, device: &DeviceId) {
    let id = create(&test.app, spec(bundle, &format!("id={device}"), &["100%"]), "alice", None).await.unwrap().id;
    let told = plan_until(test, &id, |view| !view.waves[0].devices.is_empty()).await;
    comply(test, &told[0], bundle, 5, 0);
    plan_until(test, &id, is(RolloutStatus::Completed)).await;
}

/// A plan is made and about to be stored when the fleet is stopped; the stop wins whichever of the two the store takes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_wins_over_a_plan_in_the_making() {
    for plan_first in [false, true] {
        let InTheMaking { test, device, id, mut pending, planner, plan } = plan_in_the_making().await;
        let operator = {
            let app = Arc::clone(&test.app);
            tokio::spawn(async move { stop_all(&app, "bob", Some("smoke")).await })
        };
        let stop = pending.recv().await.unwrap();
        assert!(stop.touches(Table::Meta) && !stop.touches(Table::Rollouts));
        stop.decide(Fate::Go);
        let end = pending.recv().await.unwrap();
        assert!(end.touches(Table::Rollouts));
        let stopped = if plan_first {
            plan.decide(Fate::Go);
            planner.await.unwrap();
            end.decide(Fate::Go);
            // It was overtaken and comes again.
            let again = pending.recv().await.unwrap();
            assert!(again.touches(Table::Rollouts));
            again.decide(Fate::Go);
            operator.await.unwrap().unwrap()
        } else {
            end.decide(Fate::Go);
            let stopped = operator.await.unwrap().unwrap();
            plan.decide(Fate::Go);
            planner.await.unwrap();
            stopped
        };
        drop(pending);
        assert_eq!(stopped.rollouts.len(), 1);
        assert_eq!((&stopped.rollouts[0].id, stopped.rollouts[0].status), (&id, RolloutStatus::Stopped));
        assert!(stopped.rollouts[0].status_reason.contains("bob"), "{:?}", stopped.rollouts);
        assert!(assignments(&test, &test.broker.take()).is_empty(), "a plan that was overtaken was acted upon");
        assert_eq!(desired(&test, &device).await.is_some(), plan_first);
        for _ in 0..3 {
            pass::pass(&test.app).await;
            reissue(&test.app, &device).await;
        }
        assert!(assignments(&test, &test.broker.take()).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_made_while_the_fleet_is_stopped_does_not_begin() {
    let (test, store) = observed().await;
    fleet(&test, &["a"]).await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let mut pending = store.hold();
    let creator = {
        let (app, wish) = (Arc::clone(&test.app), spec(&bundle, "*", &["100%"]));
        tokio::spawn(async move { create(&app, wish, "alice", None).await })
    };
    let creation = pending.recv().await.unwrap();
    let operator = {
        let app = Arc::clone(&test.app);
        tokio::spawn(async move { stop_all(&app, "bob", None).await })
    };
    let stop = pending.recv().await.unwrap();
    stop.decide(Fate::Go);
    operator.await.unwrap().unwrap();
    creation.decide(Fate::Go);
    let refused = creator.await.unwrap();
    assert!(matches!(&refused, Err(ExecutorError::Stopped(stop)) if stop.by == "bob"), "{refused:?}");
    // The other way round, the stop sees the rollout and ends it.
    drop(pending);
    lift_stop(&test.app, "bob", None).await.unwrap();
    let mut pending = store.hold();
    let operator = {
        let app = Arc::clone(&test.app);
        tokio::spawn(async move { stop_all(&app, "bob", None).await })
    };
    let stop = pending.recv().await.unwrap();
    let creator = {
        let (app, wish) = (Arc::clone(&test.app), spec(&bundle, "*", &["100%"]));
        tokio::spawn(async move { create(&app, wish, "alice", None).await })
    };
    pending.recv().await.unwrap().decide(Fate::Go);
    let created = creator.await.unwrap().unwrap();
    stop.decide(Fate::Go);
    drop(pending);
    let stopped = operator.await.unwrap().unwrap();
    assert_eq!(stopped.rollouts.iter().map(|rollout| &rollout.id).collect::<Vec<_>>(), [&created.id]);
    assert_eq!(view(&test.app, &created.id).await.unwrap().status, RolloutStatus::Stopped);
}

/// It dies after the stop was stored and before any rollout was ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_dies_in_the_middle_of_a_stop_ends_the_rest_when_it_is_back() {
    let (test, store) = observed().await;
    let devices = fleet(&test, &["a", "b"]).await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let mut ids = Vec::new();
    for device in &devices {
        let wish = spec(&bundle, &format!("id={device}"), &["100%"]);
        ids.push(create(&test.app, wish, "alice", None).await.unwrap().id);
    }
    let mut pending = store.hold();
    let operator = {
        let app = Arc::clone(&test.app);
        tokio::spawn(async move { stop_all(&app, "bob", Some("smoke")).await })
    };
    pending.recv().await.unwrap().decide(Fate::Go);
    pending.recv().await.unwrap().decide(Fate::Fail);
    assert!(matches!(operator.await.unwrap(), Err(ExecutorError::Store(_))));
    drop(pending);
    let broker = Arc::new(RecordingBroker::default());
    let again = open_over(test.app.config.clone(), Arc::clone(&broker), test.app.records.clone()).await;
    let again = TestApp { app: Arc::new(again), broker, folder: test.folder };
    again.app.fleet.set_online(&devices[0], true, clock::now_ms());
    requests::find_active(&again.app).await.unwrap();
    pass::pass(&again.app).await;
    for id in &ids {
        let view = view(&again.app, id).await.unwrap();
        assert_eq!(view.status, RolloutStatus::Stopped);
        assert_eq!(view.status_reason, "stopped by bob: fleet-wide stop: smoke");
    }
    assert!(again.broker.take().is_empty());
    let refused = create(&again.app, spec(&bundle, "*", &["100%"]), "alice", None).await;
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("by bob (smoke)") && said.contains("lift-stop"), "{said}");
}

/// What has completed brings its bundle to nobody else, what went back still reaches those who were away, and a way back can be ordered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_fleet_is_stopped_only_ways_back_go_on() {
    let test = app().await;
    let (here, away) = (test.enrol("a", &[]).await, test.enrol("b", &[]).await);
    connect(&test, &here);
    let (old, new) = (test.bundle("digits", "1.0.0", 10).await, test.bundle("digits", "1.1.0", 10).await);
    settled(&test, &old, &here).await;
    let id = create(&test.app, spec(&new, "*", &["100%"]), "alice", None).await.unwrap().id;
    let told = plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    comply(&test, &told[0], &new, 5, 0);
    plan_until(&test, &id, is(RolloutStatus::Completed)).await;
    assert_eq!(desired(&test, &away).await, Some((Some(digest_of(&new)), 1)));
    let stopped = stop_all(&test.app, "bob", None).await.unwrap();
    assert!(stopped.rollouts.is_empty(), "{stopped:?}");
    connect(&test, &away);
    reissue(&test.app, &away).await;
    for _ in 0..3 {
        pass::pass(&test.app).await;
    }
    assert!(assignments(&test, &test.broker.take()).is_empty(), "a completed rollout went on in a stop");
    act(&test.app, &id, OperatorAction::Rollback, "bob", None).await.unwrap();
    let told = plan_until(&test, &id, is(RolloutStatus::RollingBack)).await;
    let back = told.iter().find(|assignment| assignment.device == here).unwrap();
    assert_eq!(back.manifest, Some(digest_of(&old)));
    // A stop that comes later ends that, too.
    let stopped = stop_all(&test.app, "carol", None).await.unwrap();
    assert_eq!(stopped.rollouts.iter().map(|rollout| rollout.status).collect::<Vec<_>>(), [RolloutStatus::Stopped]);
    assert_eq!(stopped.stop.map(|stop| stop.by).as_deref(), Some("bob"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_held_back_goes_on_when_the_stop_is_lifted() {
    let test = app().await;
    let (here, away) = (test.enrol("a", &[]).await, test.enrol("b", &[]).await);
    connect(&test, &here);
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = create(&test.app, spec(&bundle, "*", &["100%"]), "alice", None).await.unwrap().id;
    let told = plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    comply(&test, &told[0], &bundle, 5, 0);
    plan_until(&test, &id, is(RolloutStatus::Completed)).await;
    stop_all(&test.app, "bob", None).await.unwrap();
    connect(&test, &away);
    pass::pass(&test.app).await;
    assert!(assignments(&test, &test.broker.take()).is_empty());
    lift_stop(&test.app, "bob", Some("all clear")).await.unwrap();
    pass::pass(&test.app).await;
    let told = assignments(&test, &test.broker.take());
    assert!(!told.is_empty() && told.iter().all(|assignment| assignment.device == away), "{told:?}");
    let events = test.app.events.list(0, None, None, 1_000).await.unwrap().events;
    let about: Vec<_> = events.iter().filter(|event| event.kind.starts_with("fleet.")).collect();
    assert_eq!(
        about.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>(),
        ["fleet.stopped", "fleet.stop-lifted"]
    );
    assert!(about.iter().all(|event| event.actor == "bob"));
    create(&test.app, spec(&bundle, "*", &["100%"]), "alice", None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_go_back_to_the_bundle_that_is_named() {
    let test = app().await;
    let device = fleet(&test, &["a"]).await.remove(0);
    let oldest = test.bundle("digits", "0.9.0", 10).await;
    let (old, new) = (test.bundle("digits", "1.0.0", 10).await, test.bundle("digits", "1.1.0", 10).await);
    settled(&test, &old, &device).await;
    let id = create(&test.app, spec(&new, "*", &["100%"]), "alice", None).await.unwrap().id;
    let told = plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    comply(&test, &told[0], &new, 5, 0);
    let unknown = "digits@7.7.7".parse().unwrap();
    let refused = roll_back_to(&test.app, &id, &unknown, "bob", None).await;
    assert!(matches!(refused, Err(ExecutorError::UnknownBundle(_))), "{refused:?}");
    let refused = roll_back_to(&test.app, &id, &new.bundle(), "bob", None).await;
    assert!(matches!(refused, Err(ExecutorError::Rollback(_))), "{refused:?}");
    roll_back_to(&test.app, &id, &oldest.bundle(), "bob", Some("smoke")).await.unwrap();
    let told = plan_until(&test, &id, |view| view.status_reason.contains("smoke")).await;
    assert_eq!(told.last().unwrap().manifest, Some(digest_of(&oldest)));
    comply(&test, told.last().unwrap(), &oldest, 0, 0);
    plan_until(&test, &id, is(RolloutStatus::RolledBack)).await;
}
