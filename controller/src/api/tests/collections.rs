//! Who may do what with collections, and what of that is written down.

use muster_shared::api::EventView;
use muster_shared::collection::{CollectionView, SampleLabels};
use serde_json::{Value, json};

use super::*;

fn wish() -> Value {
    json!({
        "selector": "*",
        "bundles": ["digits@1.0.0"],
        "rule": { "rule": "random", "share": 1.0 },
        "per_device": { "max_count": 4, "max_bytes": 10_000 },
        "max_total_count": 6,
        "max_total_bytes": 100_000,
        "duration_ms": 3_600_000,
        "upload_within_ms": 3_600_000,
        "recipient": "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a",
    })
}

#[tokio::test]
async fn every_access_needs_its_role_and_is_written_down() {
    let client = Client::new().await;
    client.test.bundle("digits", "1.0.0", 10).await;
    let opened: CollectionView = client.post("/api/v1/collections", &wish()).await.ok(201);
    let path = format!("/api/v1/collections/{}", opened.id);
    let as_role = async |role: AccessRole, method: Method, path: &str, body: Option<Value>| {
        let token = client.test.token(role).await;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.map_or_else(Body::empty, |body| Body::from(body.to_string())))
            .unwrap();
        client.send(request).await.status.as_u16()
    };
    use AccessRole::{Approver, Operator, Viewer};
    for (method, path, body, least) in [
        (Method::GET, "/api/v1/collections".to_owned(), None, Viewer),
        (Method::GET, path.clone(), None, Viewer),
        (Method::POST, "/api/v1/collections".to_owned(), Some(wish()), Operator),
        (Method::POST, format!("{path}/close"), Some(json!({ "reason": "enough" })), Operator),
        (Method::GET, format!("{path}/batches"), None, Approver),
        (Method::GET, format!("{path}/export"), None, Approver),
        (Method::GET, format!("{path}/export?device=dev-1"), None, Approver),
        (Method::GET, format!("{path}/labels"), None, Approver),
        (Method::POST, format!("{path}/labels"), Some(json!({ "labels": [{ "id": "a", "label": "3" }] })), Approver),
        (Method::DELETE, path.clone(), None, Approver),
    ] {
        for role in [Viewer, Operator, Approver].into_iter().filter(|role| *role < least) {
            assert_eq!(as_role(role, method.clone(), &path, body.clone()).await, 403, "{method} {path} as {role:?}");
        }
        let status = as_role(least, method.clone(), &path, body).await;
        assert!((200..300).contains(&status), "{method} {path} as {least:?}: {status}");
    }
    let events: Vec<EventView> = client.test.app.events.list(0, None, None, 1_000).await.unwrap().events;
    for (kind, actor) in [
        ("opened", "admin"),
        ("opened", "operator"),
        ("closed", "operator"),
        ("listed", "viewer"),
        ("batches-listed", "approver"),
        ("exported", "approver"),
        ("downloaded", "approver"),
        ("labelled", "approver"),
        ("deleted", "approver"),
    ] {
        let found = events.iter().any(|event| event.kind == format!("collection.{kind}") && event.actor == actor);
        assert!(found, "{kind} by {actor} is not in the history");
    }
    // What was refused leaves no trace of having been given.
    let exports = events.iter().filter(|event| event.kind == "collection.exported").count();
    assert_eq!(exports, 1);
}

#[tokio::test]
async fn what_makes_no_sense_has_a_name() {
    let client = Client::new().await;
    client.post("/api/v1/collections", &wish()).await.problem(422, "unknown-bundle");
    client.test.bundle("digits", "1.0.0", 10).await;
    let with = |field: &str, value: Value| {
        let mut wish = wish();
        wish[field] = value;
        wish
    };
    for (field, value, kind) in [
        ("recipient", json!("00".repeat(32)), "invalid-body"),
        ("recipient", json!("short"), "invalid-body"),
        ("rule", json!({ "rule": "everything" }), "invalid-body"),
        ("nonsense", json!(1), "invalid-body"),
        ("rule", json!({ "rule": "random", "share": 0.0 }), "invalid-collection"),
        ("duration_ms", json!(0), "invalid-collection"),
    ] {
        client.post("/api/v1/collections", &with(field, value)).await.problem(400, kind);
    }
    for path in ["", "/batches", "/export", "/labels"] {
        client.get(&format!("/api/v1/collections/c9{path}")).await.problem(404, "unknown-collection");
    }
    client.post("/api/v1/collections/c9/close", &json!({})).await.problem(404, "unknown-collection");
    let batch = client.raw(Method::PUT, "/api/v1/collections/c9/batches/0?of=1", "x").await;
    batch.problem(401, "no-client-certificate");
    let opened: CollectionView = client.post("/api/v1/collections", &wish()).await.ok(201);
    let path = format!("/api/v1/collections/{}/labels", opened.id);
    let long = json!({ "labels": [{ "id": "x".repeat(300), "label": "1" }] });
    client.post(&path, &long).await.problem(400, "invalid-collection");
    let two = json!({ "labels": [{ "id": "a", "label": "1" }, { "id": "a", "label": "2" }, { "id": "a", "device": "dev-1", "label": "3" }] });
    let stored: SampleLabels = client.post(&path, &two).await.ok(200);
    assert_eq!(stored.labels.iter().map(|label| label.label.as_str()).collect::<Vec<_>>(), ["2", "3"]);
}
