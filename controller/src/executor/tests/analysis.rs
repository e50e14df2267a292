//! Rollouts whose waves must stand what others say.

use muster_shared::rollout::{AnalysisTemplate, AnalysisUse, ApprovalSpec, Outcome, Rule};

use super::*;
use crate::analysis::{self, Service};
use crate::testing::app_with;

/// A controller that may ask `service`, and a template that does: its share must be 0.9 at least, three times.
async fn controller(service: &Service) -> TestApp {
    let host = service.host();
    let test = app_with(|config| config.rollout.analysis.allowed_hosts = vec![host]).await;
    analysis::push(&test.app, template(service, 0.9), "ana").await.unwrap();
    test
}

fn template(service: &Service, least: f64) -> AnalysisTemplate {
    serde_json::from_value(serde_json::json!({
        "name": "share",
        "metrics": [{
            "name": "share", "interval": "100ms", "count": 3, "successCondition": format!("result >= {least}"),
            "consecutiveErrorLimit": 1, "provider": {"web": {"url": service.url, "jsonPath": "$.share"}},
        }],
    }))
    .unwrap()
}

fn analysed(bundle: &Manifest, selector: &str, waves: &[&str]) -> RolloutSpec {
    let asked = AnalysisUse { template: "share".parse().unwrap(), args: Default::default(), waves: vec![] };
    RolloutSpec { analyses: vec![asked], ..spec(bundle, selector, waves) }
}

/// A rollout of `spec` whose devices have done as they were told.
async fn begun(test: &TestApp, bundle: &Manifest, spec: RolloutSpec) -> RolloutId {
    let id = create(&test.app, spec, "alice", None).await.unwrap().id;
    let told = plan_until(test, &id, |view| !view.waves[0].devices.is_empty()).await;
    told.iter().for_each(|assignment| comply(test, assignment, bundle, 5, 0));
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_says_what_waves_must_stand_and_who_must_approve() {
    let test = controller(&Service::open().await).await;
    fleet(&test, &["a"]).await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let approval = Some(ApprovalSpec { needed: 2, approvers: Vec::new(), within_ms: None });
    let wish = RolloutSpec { approval, ..analysed(&bundle, "*", &["100%"]) };
    let planned = preview(&test.app, wish, "alice").await.unwrap();
    assert_eq!(planned.approval.map(|approval| approval.needed), Some(2));
    let [analysis] = planned.analyses.as_slice() else { panic!("{:?}", planned.analyses) };
    assert_eq!((analysis.template.to_string().as_str(), analysis.metrics[0].needed()), ("share@1", 3));
    assert_eq!(views(&test.app, None, 10).await.unwrap(), [], "nothing is made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wave_passes_when_a_service_has_said_so_often_enough() {
    let service = Service::open().await;
    service.answers(200, r#"{"share": 0.97}"#);
    let test = controller(&service).await;
    fleet(&test, &["a"]).await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = begun(&test, &bundle, analysed(&bundle, "*", &["100%"])).await;
    // What becomes of the template is nothing to a rollout that has begun.
    analysis::push(&test.app, template(&service, 2.0), "ana").await.unwrap();
    analysis::delete(&test.app, &"share".parse().unwrap(), "ana").await.unwrap();
    plan_until(&test, &id, is(RolloutStatus::Completed)).await;
    assert_eq!(service.asked(), 3);
    let view = view(&test.app, &id).await.unwrap();
    let verdict = &view.verdicts[0];
    let rule = verdict.checks.iter().find(|check| check.rule == Rule::Analysis).unwrap();
    assert_eq!((rule.outcome, rule.canary_samples), (Outcome::Successful, 3));
    assert_eq!(verdict.analyses[0].template.to_string(), "share@1");
    assert_eq!(verdict.analyses[0].metrics[0].measurements[2].value.as_deref(), Some("0.97"));
    let error = create(&test.app, analysed(&bundle, "*", &["100%"]), "alice", None).await.unwrap_err();
    assert!(error.to_string().contains("no analysis template share"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wave_goes_back_when_a_service_says_otherwise() {
    let service = Service::open().await;
    service.answers(200, r#"{"share": 0.5}"#);
    let test = controller(&service).await;
    fleet(&test, &["a"]).await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = begun(&test, &bundle, analysed(&bundle, "*", &["100%"])).await;
    let gone_back = |view: &RolloutView| matches!(view.status, RolloutStatus::RollingBack | RolloutStatus::RolledBack);
    plan_until(&test, &id, gone_back).await;
    assert_eq!(service.asked(), 1);
    let view = view(&test.app, &id).await.unwrap();
    assert!(view.verdicts[0].summary.contains("share@1/share: 1 of 1 failed, 0 may"), "{}", view.verdicts[0].summary);
}

/// One service that never answers, and one that is not there, hold up the rollouts that ask them and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_does_not_answer_holds_up_nobody_else() {
    let service = Service::open().await;
    let test = controller(&service).await;
    fleet(&test, &["a", "b"]).await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let waits = begun(&test, &bundle, analysed(&bundle, "id=a", &["100%"])).await;
    plan_until(&test, &waits, |_| service.asked() > 0).await;
    let other = begun(&test, &bundle, spec(&bundle, "id=b", &["100%"])).await;
    plan_until(&test, &other, is(RolloutStatus::Completed)).await;
    let held = view(&test.app, &waits).await.unwrap();
    assert_eq!((held.status, service.asked()), (RolloutStatus::Running, 1), "it is asked once at a time");
    assert!(
        held.waiting.iter().any(|reason| reason.to_string().contains("share@1/share: 0 of 3")),
        "{:?}",
        held.waiting
    );
    // A controller that may ask nobody: two errors in a row are one too many.
    let test = app().await;
    analysis::push(&test.app, template(&service, 0.9), "ana").await.unwrap();
    fleet(&test, &["a"]).await;
    let bundle = test.bundle("digits", "1.0.0", 10).await;
    let id = begun(&test, &bundle, analysed(&bundle, "*", &["100%"])).await;
    plan_until(&test, &id, is(RolloutStatus::Paused)).await;
    let paused = view(&test.app, &id).await.unwrap();
    assert!(paused.status_reason.contains("2 errors in a row"), "{}", paused.status_reason);
    assert!(paused.status_reason.contains("allowed-hosts"), "{}", paused.status_reason);
    assert_eq!(service.asked(), 1);
}
