//! Rollouts as callers see them. How they decide is tested where it is decided.

use muster_shared::api::{BundleView, Page, RolloutExplanation};
use muster_shared::rollout::{FleetStopView, RolloutStatus, RolloutView};
use serde_json::{Value, json};

use super::*;
use crate::testing::{manifest, signed_manifest};

fn wish() -> Value {
    json!({
        "bundle": "digits@1.0.0",
        "selector": "*",
        "waves": [{ "size": "100%", "soak_ms": 1_000, "max_duration_ms": 60_000 }],
    })
}

async fn with_bundle() -> Client {
    let client = Client::new().await;
    client.trust().await;
    let bundle = manifest("digits", "1.0.0", b"model", b"{}");
    for (file, content) in bundle.files.iter().zip([b"model".as_slice(), b"{}"]) {
        client.raw(Method::PUT, &format!("/api/v1/files/{}", file.sha256), content).await;
    }
    let body = json!({ "manifest": signed_manifest(&bundle) });
    let _: BundleView = client.post("/api/v1/bundles", &body).await.ok(201);
    client
}

#[tokio::test]
async fn a_rollout_is_created_shown_and_steered() {
    let client = with_bundle().await;
    let created: RolloutView = client.post("/api/v1/rollouts", &wish()).await.ok(201);
    let path = format!("/api/v1/rollouts/{}", created.id);
    let shown: RolloutView = client.get(&path).await.ok(200);
    assert_eq!(shown.id, created.id);
    let page: Page<RolloutView> = client.get("/api/v1/rollouts").await.ok(200);
    assert_eq!(page.items.len(), 1);

    let act =
        async |action: &str, body: &str| client.raw(Method::POST, &format!("{path}/{action}"), body.to_owned()).await;
    act("resume", "").await.problem(409, "not-in-this-state");
    let stopped: RolloutView = act("abort", "{\"reason\":\"wrong model\"}").await.ok(200);
    assert_eq!(stopped.status, RolloutStatus::Stopped);
    assert!(stopped.status_reason.contains("wrong model"), "{}", stopped.status_reason);
    act("pause", "").await.problem(409, "not-in-this-state");
    act("pause", "{\"because\":1}").await.problem(400, "invalid-body");
    let long = json!({ "reason": "x".repeat(2_000) }).to_string();
    act("rollback", &long).await.problem(400, "invalid-body");
    client.post("/api/v1/rollouts/r99/pause", &json!({})).await.problem(404, "unknown-rollout");
    let numbers = client.get("/metrics").await;
    let text = String::from_utf8(numbers.body.to_vec()).unwrap();
    assert!(text.contains("muster_controller_rollouts{status=\"stopped\"} 1"), "{text}");
}

#[tokio::test]
async fn a_rollout_is_explained_with_its_history() {
    let client = with_bundle().await;
    let created: RolloutView = client.post("/api/v1/rollouts", &wish()).await.ok(201);
    let path = format!("/api/v1/rollouts/{}/explain", created.id);
    let explained: RolloutExplanation = client.get(&path).await.ok(200);
    assert_eq!((&explained.explanation.rollout, explained.explanation.device), (&created.id, None));
    let kinds: Vec<_> = explained.history.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!((kinds, explained.history_is_cut), (vec!["rollout.created"], false));
    client.get(&format!("{path}?device=nobody")).await.problem(404, "unknown-device");
    client.get(&format!("{path}?gadget=dev-1")).await.problem(400, "invalid-query");
    client.get("/api/v1/rollouts/r99/explain").await.problem(404, "unknown-rollout");
}

#[tokio::test]
async fn the_whole_fleet_is_stopped_and_let_go() {
    let client = with_bundle().await;
    let view: FleetStopView = client.get("/api/v1/rollouts/stop").await.ok(200);
    assert_eq!(view, FleetStopView { stop: None, rollouts: Vec::new() });
    client.post("/api/v1/rollouts/lift-stop", &json!({})).await.problem(409, "fleet-not-stopped");
    let created: RolloutView = client.post("/api/v1/rollouts", &wish()).await.ok(201);
    let long = json!({ "reason": "x".repeat(2_000) });
    client.post("/api/v1/rollouts/stop-all", &long).await.problem(400, "invalid-body");
    let stopped: FleetStopView =
        client.post("/api/v1/rollouts/stop-all", &json!({ "reason": "press 7 smells of smoke" })).await.ok(200);
    let stop = stopped.stop.unwrap();
    assert_eq!(stop.reason.as_deref(), Some("press 7 smells of smoke"));
    let ended: Vec<_> = stopped.rollouts.iter().map(|rollout| (&rollout.id, rollout.status)).collect();
    assert_eq!(ended, [(&created.id, RolloutStatus::Stopped)]);
    let refused = client.post("/api/v1/rollouts", &wish()).await;
    let text = String::from_utf8(refused.body.to_vec()).unwrap();
    for part in ["stopped since 20", &stop.by, "press 7 smells of smoke", "lift-stop"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    refused.problem(409, "fleet-stopped");
    let again: FleetStopView = client.post("/api/v1/rollouts/stop-all", &json!({ "reason": "again" })).await.ok(200);
    assert_eq!((again.stop, again.rollouts.len()), (Some(stop), 0), "the first stop stays whose it is");
    let lifted: FleetStopView = client.post("/api/v1/rollouts/lift-stop", &json!({})).await.ok(200);
    assert_eq!(lifted.stop, None);
    let _: RolloutView = client.post("/api/v1/rollouts", &wish()).await.ok(201);
}

#[tokio::test]
async fn wishes_that_make_no_sense_are_refused() {
    let client = with_bundle().await;
    let post = async |change: &dyn Fn(&mut Value)| {
        let mut wish = wish();
        change(&mut wish);
        client.post("/api/v1/rollouts", &wish).await
    };
    let invalid = post(&|wish| wish["selector"] = json!("site=")).await.problem(400, "invalid-body");
    assert!(invalid.contains("site="), "{invalid}");
    post(&|wish| wish["selector"] = json!("")).await.problem(400, "invalid-body");
    post(&|wish| wish["waves"][0]["size"] = json!("0%")).await.problem(400, "invalid-body");
    post(&|wish| wish["wave"] = json!(1)).await.problem(400, "invalid-body");
    post(&|wish| wish["waves"] = json!([])).await.problem(400, "invalid-rollout");
    post(&|wish| wish["waves"][0]["max_duration_ms"] = json!(1)).await.problem(400, "invalid-rollout");
    post(&|wish| wish["limits"] = json!({ "min_reports": 0 })).await.problem(400, "invalid-rollout");
    let unknown = post(&|wish| wish["bundle"] = json!("digits@9.9.9")).await.problem(422, "unknown-bundle");
    assert!(unknown.contains("digits@9.9.9"), "{unknown}");
    let none: Page<RolloutView> = client.get("/api/v1/rollouts").await.ok(200);
    assert_eq!(none.items.len(), 0);
}

#[tokio::test]
async fn the_same_key_gives_the_same_rollout() {
    let client = with_bundle().await;
    let post = async |key: &str, wish: &Value| {
        let request = client.request(Method::POST, "/api/v1/rollouts").header("Idempotency-Key", key);
        client.send(request.body(serde_json::to_vec(wish).unwrap().into()).unwrap()).await
    };
    let first: RolloutView = post("a", &wish()).await.ok(201);
    let again: RolloutView = post("a", &wish()).await.ok(201);
    assert_eq!(first.id, again.id);
    let mut other = wish();
    other["selector"] = json!("site=lyon");
    post("a", &other).await.problem(422, "idempotency-key-reused");
    let second: RolloutView = post("b", &other).await.ok(201);
    assert_ne!(first.id, second.id);
    post("", &wish()).await.problem(400, "invalid-idempotency-key");
    post(&"x".repeat(129), &wish()).await.problem(400, "invalid-idempotency-key");
    let page: Page<RolloutView> = client.get("/api/v1/rollouts").await.ok(200);
    assert_eq!(page.items.len(), 2);
}
