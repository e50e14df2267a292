//! People who must say yes, against everything that happens at the same time.

use muster_shared::rollout::{ApprovalOutcome, ApprovalSpec};

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
