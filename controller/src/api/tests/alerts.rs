//! Alerts through the API: who may do what, and what is refused how.

use muster_shared::alert::{Alert, ReceiverView, RuleView, Silence};
use muster_shared::api::Page;

use super::*;

fn rule(name: &str) -> serde_json::Value {
    json!({ "name": name, "signal": "device-silence", "fire_at": 60.0, "severity": "warning" })
}

#[tokio::test]
async fn rules_are_taken_whole_or_not_at_all() {
    let client = Client::new().await;
    let before: Page<RuleView> = client.get("/api/v1/alerts/rules").await.ok(200);
    assert!(before.items.len() > 10);
    let after: Page<RuleView> = client.post("/api/v1/alerts/rules", &json!({ "rules": [rule("own")] })).await.ok(200);
    assert_eq!(after.items.len(), before.items.len() + 1);
    let mut wrong = rule("wrong");
    wrong["clear_at"] = json!(90.0);
    let refused = client.post("/api/v1/alerts/rules", &json!({ "rules": [rule("other"), wrong] })).await;
    assert!(refused.problem(422, "invalid-rule").contains("alert rule wrong, clear_at"));
    let unknown = json!({ "rules": [{ "name": "x", "signal": "device-silence", "fire_at": 1, "severity": "warning", "fire": 2 }] });
    assert!(client.post("/api/v1/alerts/rules", &unknown).await.problem(400, "invalid-body").contains("fire"));
    let taken = client.post("/api/v1/alerts/rules", &json!({ "rules": [rule("alerts-overflow")] })).await;
    taken.problem(409, "not-possible-now");
    client
        .post("/api/v1/alerts/rules", &json!({ "rules": [rule("a"), rule("a")] }))
        .await
        .problem(409, "not-possible-now");
    let left: Page<RuleView> = client.raw(Method::DELETE, "/api/v1/alerts/rules/own", Body::empty()).await.ok(200);
    assert_eq!(left, before);
    let again = client.raw(Method::DELETE, "/api/v1/alerts/rules/own", Body::empty()).await;
    again.problem(404, "unknown-alert-thing");
}

#[tokio::test]
async fn viewers_read_and_operators_silence() {
    let mut client = Client::new().await;
    let wish =
        json!({ "matchers": [{ "label": "rule", "value": "input-drift" }], "for_ms": 60_000, "reason": "known" });
    client.admin = client.test.token(AccessRole::Viewer).await;
    let none: Page<Alert> =
        client.get("/api/v1/alerts?state=firing&min_severity=warning&rule=input-drift").await.ok(200);
    assert_eq!(none.items, []);
    client.post("/api/v1/alerts/silences", &wish).await.problem(403, "forbidden");
    client.post("/api/v1/alerts/abc/ack", &json!({})).await.problem(403, "forbidden");
    client.admin = client.test.token(AccessRole::Operator).await;
    let silence: Silence = client.post("/api/v1/alerts/silences", &wish).await.ok(201);
    assert_eq!((silence.id.as_str(), silence.by.as_str()), ("s1", "operator"));
    client
        .post("/api/v1/alerts/silences", &json!({ "matchers": [], "for_ms": 1, "reason": "x" }))
        .await
        .problem(422, "invalid-silence");
    let ended: Silence = client.post("/api/v1/alerts/silences/s1/end", &json!(null)).await.ok(200);
    assert!(ended.until_ms < silence.until_ms);
    client.post("/api/v1/alerts/silences/s1/end", &json!(null)).await.problem(409, "not-possible-now");
    client.post("/api/v1/alerts/silences/s9/end", &json!(null)).await.problem(404, "unknown-alert-thing");
    client.get("/api/v1/alerts/abc").await.problem(404, "unknown-alert-thing");
    client.post("/api/v1/alerts/abc/ack", &json!({ "reason": "mine" })).await.problem(404, "unknown-alert-thing");
    let receivers: Page<ReceiverView> = client.get("/api/v1/alerts/receivers").await.ok(200);
    assert_eq!(receivers.items, []);
    client.post("/api/v1/alerts/receivers/none/test", &json!(null)).await.problem(404, "unknown-alert-thing");
}
