//! People who must say yes, against everything that happens at the same time.

use muster_shared::rollout::{ApprovalOutcome, ApprovalSpec, Conflict, CreateFreeze, Waiting};

use super::*;

/// A wish that `needed` people must approve.
fn careful(bundle: &Manifest, needed: u32, within_ms: Option<u64>) -> RolloutSpec {
    let approval = Some(ApprovalSpec { needed, approvers: Vec::new(), within_ms });
    RolloutSpec { approval, ..spec(bundle, "*", &["100%"]) }
}

fn outcome(view: &RolloutView) -> ApprovalOutcome {
    view.approval.as_ref().unwrap().outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_told_once_enough_people_approved() {
    let test = app().await;
    fleet(&test, &["a"]).await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let made = create(&test.app, careful(&bundle, 2, None), "ann", None).await.unwrap();
    assert_eq!((made.status, made.created_by.as_deref()), (RolloutStatus::WaitingForApproval, Some("ann")));
    approve(&test.app, &made.id, "ann", None).await.unwrap();
    for _ in 0..3 {
        pass::pass(&test.app).await;
    }
    assert!(assignments(&test, &test.broker.take()).is_empty());
    let again = approve(&test.app, &made.id, "ann", None).await;
    assert!(matches!(again, Err(ExecutorError::Approval(ApprovalRefusal::Again(_)))), "{again:?}");
    let approved = approve(&test.app, &made.id, "bob", Some("looks right")).await.unwrap();
    assert_eq!(outcome(&approved), ApprovalOutcome::Approved);
    let told = plan_until(&test, &made.id, |view| !view.waves[0].devices.is_empty()).await;
    assert_eq!(told.len(), 1);
    let kinds = kinds(&test, &made.id).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "rollout.approved").count(), 2, "{kinds:?}");
    assert!(kinds.contains(&"rollout.ready".to_owned()), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_ends_a_rollout_and_a_restart_does_not_forget_it() {
    let test = app().await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = create(&test.app, careful(&bundle, 1, Some(1)), "ann", None).await.unwrap().id;
    test.app.schedule.retire(&id);
    requests::find_active(&test.app).await.unwrap();
    plan_until(&test, &id, is(RolloutStatus::Stopped)).await;
    let ended = view(&test.app, &id).await.unwrap();
    assert_eq!(outcome(&ended), ApprovalOutcome::TimedOut);
    assert!(ended.status_reason.starts_with("timed out: 0 of 1 approvals after"), "{}", ended.status_reason);
    let kinds = kinds(&test, &id).await;
    assert!(kinds.contains(&"rollout.timed_out".to_owned()), "{kinds:?}");
}

/// The last approval is about to be stored when the fleet is stopped; the stop wins whichever of the two the store takes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_wins_over_an_approval() {
    for approval_first in [false, true] {
        let (test, store) = observed().await;
        fleet(&test, &["a"]).await;
        let bundle = test.bundle("digits", "1.0.0", 10).await;
        let id = create(&test.app, careful(&bundle, 1, None), "ann", None).await.unwrap().id;
        let mut pending = store.hold();
        let approver = {
            let (app, id) = (Arc::clone(&test.app), id.clone());
            tokio::spawn(async move { approve(&app, &id, "bob", None).await })
        };
        let approval = pending.recv().await.unwrap();
        let operator = {
            let app = Arc::clone(&test.app);
            tokio::spawn(async move { stop_all(&app, "cem", Some("smoke")).await })
        };
        pending.recv().await.unwrap().decide(Fate::Go);
        let end = pending.recv().await.unwrap();
        assert!(end.touches(Table::Rollouts));
        if approval_first {
            approval.decide(Fate::Go);
            assert_eq!(approver.await.unwrap().unwrap().status, RolloutStatus::Ready);
            end.decide(Fate::Go);
            // It was overtaken and comes again.
            pending.recv().await.unwrap().decide(Fate::Go);
            operator.await.unwrap().unwrap();
        } else {
            end.decide(Fate::Go);
            operator.await.unwrap().unwrap();
            approval.decide(Fate::Go);
            let refused = approver.await.unwrap();
            assert!(matches!(refused, Err(ExecutorError::Approval(ApprovalRefusal::NotWaiting(_)))), "{refused:?}");
        }
        drop(pending);
        assert_eq!(view(&test.app, &id).await.unwrap().status, RolloutStatus::Stopped);
        for _ in 0..3 {
            pass::pass(&test.app).await;
        }
        assert!(assignments(&test, &test.broker.take()).is_empty());
    }
}

/// Two people approve at the same moment: both are heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approvals_at_the_same_moment_both_count() {
    let (test, store) = observed().await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = create(&test.app, careful(&bundle, 2, None), "ann", None).await.unwrap().id;
    let mut pending = store.hold();
    let mut people = Vec::new();
    for name in ["bob", "cem"] {
        let (app, id) = (Arc::clone(&test.app), id.clone());
        people.push(tokio::spawn(async move { approve(&app, &id, name, None).await }));
    }
    let (one, other) = (pending.recv().await.unwrap(), pending.recv().await.unwrap());
    one.decide(Fate::Go);
    other.decide(Fate::Go);
    drop(pending);
    for person in people {
        person.await.unwrap().unwrap();
    }
    let approved = view(&test.app, &id).await.unwrap();
    assert_eq!((approved.status, outcome(&approved)), (RolloutStatus::Ready, ApprovalOutcome::Approved));
}

fn an_hour() -> CreateFreeze {
    CreateFreeze { from_ms: None, to_ms: clock::now_ms() + 3_600_000, reason: "the holidays".into(), selector: None }
}

/// A plan that takes a device in is about to be stored when the fleet is frozen: whoever is second is too late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_comes_in_by_a_plan_that_did_not_know_of_a_freeze() {
    let InTheMaking { test, device, id, mut pending, planner, plan } = plan_in_the_making().await;
    let operator = {
        let app = Arc::clone(&test.app);
        tokio::spawn(async move { freeze(&app, an_hour(), "bob").await })
    };
    pending.recv().await.unwrap().decide(Fate::Go);
    let freeze = operator.await.unwrap().unwrap();
    plan.decide(Fate::Go);
    planner.await.unwrap();
    drop(pending);
    for _ in 0..3 {
        pass::pass(&test.app).await;
    }
    assert!(assignments(&test, &test.broker.take()).is_empty(), "a plan that was overtaken was acted upon");
    assert_eq!(desired(&test, &device).await, None);
    let waiting = view(&test.app, &id).await.unwrap().waiting;
    assert!(waiting.iter().any(|waiting| waiting.to_string().contains("the holidays")), "{waiting:?}");
    assert_eq!(freezes(&test.app).await.unwrap(), std::slice::from_ref(&freeze));
    lift_freeze(&test.app, &freeze.id, "bob", Some("over early")).await.unwrap();
    assert!(matches!(lift_freeze(&test.app, &freeze.id, "bob", None).await, Err(ExecutorError::UnknownFreeze(_))));
    let told = plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    assert_eq!(told.len(), 1);
    let page = test.app.events.list(0, None, None, 1_000).await.unwrap();
    let kinds: Vec<_> = page.events.iter().map(|event| event.kind.as_str()).collect();
    assert!(kinds.contains(&"fleet.frozen") && kinds.contains(&"fleet.freeze-lifted"), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freezes_that_cannot_be_are_refused_and_there_are_so_many() {
    let test = app().await;
    for bad in [
        CreateFreeze { to_ms: 1, ..an_hour() },
        CreateFreeze { from_ms: Some(u64::MAX), ..an_hour() },
        CreateFreeze { reason: " ".into(), ..an_hour() },
    ] {
        let refused = freeze(&test.app, bad, "bob").await;
        assert!(matches!(refused, Err(ExecutorError::Freeze(_))), "{refused:?}");
    }
    for _ in 0..64 {
        freeze(&test.app, an_hour(), "bob").await.unwrap();
    }
    let refused = freeze(&test.app, an_hour(), "bob").await;
    assert!(matches!(&refused, Err(ExecutorError::Freeze(why)) if why.contains("64")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_that_refuses_conflicts_names_them_and_one_that_queues_takes_its_turn() {
    let test = app().await;
    fleet(&test, &["a", "b"]).await;
    let (one, two) = (test.bundle("digits", "1.0.0", 10).await, test.bundle("digits", "1.1.0", 10).await);
    let holder = create(&test.app, spec(&one, "id=a", &["100%"]), "ann", None).await.unwrap().id;
    plan_until(&test, &holder, |view| !view.waves[0].devices.is_empty()).await;
    let careful = RolloutSpec { conflict: Conflict::Refuse, ..spec(&two, "*", &["100%"]) };
    for refused in
        [create(&test.app, careful.clone(), "ann", None).await.err(), preview(&test.app, careful, "ann").await.err()]
    {
        assert!(matches!(&refused, Some(ExecutorError::Conflict(error)) if error.devices == 1), "{refused:?}");
    }
    let queueing = RolloutSpec { conflict: Conflict::Queue, ..spec(&two, "*", &["100%"]) };
    let low = create(&test.app, queueing.clone(), "ann", None).await.unwrap().id;
    let high = create(&test.app, RolloutSpec { priority: 90, ..queueing }, "ann", None).await.unwrap().id;
    pass::pass(&test.app).await;
    for (id, behind) in [(&low, vec![&holder, &high]), (&high, vec![&holder])] {
        let behind = behind.into_iter().cloned().collect();
        assert_eq!(view(&test.app, id).await.unwrap().waiting, [Waiting::Queued { behind }]);
    }
    act(&test.app, &holder, OperatorAction::Abort, "bob", None).await.unwrap();
    plan_until(&test, &high, is(RolloutStatus::Running)).await;
    assert_eq!(view(&test.app, &low).await.unwrap().status, RolloutStatus::Ready);
    act(&test.app, &high, OperatorAction::Abort, "bob", None).await.unwrap();
    plan_until(&test, &low, is(RolloutStatus::Running)).await;
}
