//! What holds on every path: who may, in which form, how much, and what errors look like.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::routing::get;
use serde_json::{Value, json};
use utoipa::OpenApi as _;

use super::super::{Route, batch_routes, bounded, openapi, ordinary_routes, surround, transfer_routes};
use super::*;

/// Every method and path the router knows, found by asking each path with a method that none takes.
async fn known_routes() -> BTreeSet<(String, String)> {
    let client = Client::new().await;
    let mut known = BTreeSet::new();
    for (path, _) in ordinary_routes().into_iter().chain(batch_routes()).chain(transfer_routes()) {
        let concrete = path.replace("{sha256}", &"a".repeat(64)).replace(['{', '}'], "");
        let answer = client.raw(Method::TRACE, &concrete, Body::empty()).await;
        answer.problem(405, "method-not-allowed");
        let allowed = answer.headers[header::ALLOW].to_str().unwrap().to_owned();
        for method in allowed.split(',').filter(|method| *method != "HEAD") {
            known.insert((method.to_lowercase(), path.to_owned()));
        }
    }
    known
}

#[tokio::test]
async fn the_description_lists_every_route_and_no_other() {
    let document: Value = serde_json::to_value(openapi::Description::openapi()).unwrap();
    let mut described = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            described.insert((method.clone(), path.clone()));
        }
    }
    assert_eq!(described, known_routes().await);
}

#[tokio::test]
async fn the_description_holds_together() {
    let client = Client::new().await;
    let answer = client.send(Request::get("/api/v1/openapi.json").body(Body::empty()).unwrap()).await;
    let document: Value = answer.ok(200);
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "the schema {name} is named and not there");
    }
    for open in ["/healthz", "/readyz", "/metrics", "/api/v1/openapi.json", "/api/v1/enrol", "/api/v1/renew"] {
        let operation = document["paths"][open].as_object().unwrap().values().next().unwrap().clone();
        assert_eq!(operation["security"], json!([{}]), "{open}");
    }
    assert_eq!(document["security"], json!([{ "bearer": [] }]));
}

#[tokio::test]
async fn every_path_but_the_open_ones_wants_a_known_token() {
    let client = Client::new().await;
    for (method, path) in known_routes().await {
        let open = ["/healthz", "/readyz", "/metrics", "/api/v1/openapi.json", "/api/v1/crl.pem"];
        let by_other_means = ["/api/v1/enrol", "/api/v1/renew", "/api/v1/collections/{id}/batches/{number}"];
        if open.iter().chain(&by_other_means).any(|known| *known == path) {
            continue;
        }
        let path = path.replace("{sha256}", &"a".repeat(64)).replace(['{', '}'], "");
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        for header in [None, Some("Bearer unknown"), Some("Basic eDp5"), Some("Bearer"), Some("Bearer  ")] {
            let mut request = Request::builder().method(method.clone()).uri(&path);
            if let Some(header) = header {
                request = request.header(header::AUTHORIZATION, header);
            }
            let answer = client.send(request.body(Body::empty()).unwrap()).await;
            answer.problem(401, "unauthenticated");
            assert_eq!(answer.headers[header::WWW_AUTHENTICATE], "Bearer");
        }
    }
}

#[tokio::test]
async fn roles_bound_what_a_caller_may_do() {
    let mut client = Client::new().await;
    client.trust().await;
    let wish = json!({ "valid_for_ms": 1_000, "uses": 1 });
    client.admin = client.test.token(AccessRole::Viewer).await;
    assert_eq!(client.get("/api/v1/devices").await.status, StatusCode::OK);
    assert!(client.post("/api/v1/tokens", &wish).await.problem(403, "forbidden").contains("operator"));
    client.admin = client.test.token(AccessRole::Operator).await;
    assert_eq!(client.post("/api/v1/tokens", &wish).await.status, StatusCode::CREATED);
    let root = json!({ "root": client.test.root() });
    client.post("/api/v1/trust/root", &root).await.problem(403, "forbidden");
    client.admin = client.test.token(AccessRole::Admin).await;
    assert_eq!(client.post("/api/v1/trust/root", &root).await.status, StatusCode::OK);
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there_are_problems() {
    let client = Client::new().await;
    for path in ["/", "/api/v1", "/api/v1/nothing", "/api/v2/devices", "/api/v1/devices/"] {
        client.get(path).await.problem(404, "unknown-path");
    }
    let answer = client.raw(Method::DELETE, "/api/v1/devices", Body::empty()).await;
    answer.problem(405, "method-not-allowed");
    assert_eq!(answer.headers[header::ALLOW], "GET,HEAD");
}

#[tokio::test]
async fn bodies_must_be_json_of_the_right_kind_and_size() {
    let client = Client::with(|config| config.api.max_body_bytes = 64 * 1024).await;
    let path = "/api/v1/tokens";
    let post = async |body: &str| client.raw(Method::POST, path, body.to_owned()).await;
    assert!(post("{\"valid_for_ms\":").await.problem(400, "malformed-json").contains("line 1"));
    post("").await.problem(400, "malformed-json");
    let unknown = post("{\"valid_for_ms\":1,\"uses\":1,\"use\":2}").await.problem(400, "invalid-body");
    assert!(unknown.contains("use") && unknown.contains("line 1"), "{unknown}");
    assert!(post("{\"uses\":1}").await.problem(400, "invalid-body").contains("valid_for_ms"));
    assert!(post("{\"valid_for_ms\":-1,\"uses\":1}").await.problem(400, "invalid-body").contains("-1"));
    post("7").await.problem(400, "invalid-body");
    let large = post(&format!("{{\"x\":\"{}\"}}", "x".repeat(70_000))).await.problem(413, "body-too-large");
    assert!(large.contains("65536"), "{large}");
    let plain = client.request(Method::POST, path).header("x", "y").body(Body::from("{}")).unwrap();
    let (mut parts, body) = plain.into_parts();
    parts.headers.insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
    client.send(Request::from_parts(parts, body)).await.problem(415, "not-json");
}

#[tokio::test]
async fn parameters_are_checked() {
    let client = Client::new().await;
    for (path, named) in [
        ("/api/v1/devices?selector=site%3D", "site="),
        ("/api/v1/devices?selector=", "empty"),
        ("/api/v1/devices?limit=many", "limit"),
        ("/api/v1/devices?limits=1", "limits"),
        ("/api/v1/devices?cursor=%2F", "device id"),
        ("/api/v1/bundles?cursor=digits", "name@version"),
        ("/api/v1/events?after=-1", "after"),
        ("/api/v1/events?device=A", "device id"),
        ("/api/v1/drift", "bundle"),
        ("/api/v1/drift?bundle=digits", "name@version"),
        ("/api/v1/drift?bundle=digits%401.0.0&group-by=a%3Db", "group-by"),
    ] {
        let detail = client.get(path).await.problem(400, "invalid-query");
        assert!(detail.contains(named), "{path}: {detail}");
    }
    for path in ["/api/v1/devices/UPPER", "/api/v1/files/abc", "/api/v1/bundles/digits/one", "/api/v1/rollouts/%2F"] {
        client.get(path).await.problem(400, "invalid-path");
    }
    for (path, kind) in [
        ("/api/v1/devices/nobody", "unknown-device"),
        ("/api/v1/bundles/digits/1.0.0", "unknown-bundle"),
        ("/api/v1/drift?bundle=digits%401.0.0", "unknown-bundle"),
        ("/api/v1/rollouts/r99", "unknown-rollout"),
    ] {
        client.get(path).await.problem(404, kind);
    }
}

#[tokio::test]
async fn a_panic_is_a_problem_and_the_next_request_is_served() {
    async fn broken() -> &'static str {
        panic!("secret reason")
    }
    let client = Client::new().await;
    let routes: Vec<Route> = vec![("/broken", get(broken)), ("/fine", get(|| async { "fine" }))];
    let client = Client { router: surround(bounded(routes, &client.test.app), Arc::clone(&client.test.app)), ..client };
    let detail = client.get("/broken").await.problem(500, "internal");
    assert!(!detail.contains("secret"));
    assert_eq!(client.get("/fine").await.status, StatusCode::OK);
}

fn silence() -> Body {
    Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::convert::Infallible>>())
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    let client = Client::new().await;
    // The clock that is paused here jumps whenever nothing else goes on: either limit may come first.
    let answer = client.raw(Method::POST, "/api/v1/tokens", silence()).await;
    assert!([StatusCode::REQUEST_TIMEOUT, StatusCode::GATEWAY_TIMEOUT].contains(&answer.status), "{:?}", answer.body);
    let path = format!("/api/v1/files/{}", "a".repeat(64));
    client.raw(Method::PUT, &path, silence()).await.problem(400, "incomplete-file");
}

#[tokio::test]
async fn a_request_whose_client_has_gone_is_worked_off() {
    let client = Client::new().await;
    client.trust().await;
    let request = client.request(Method::POST, "/api/v1/tokens");
    let wish = json!({ "valid_for_ms": 1_000, "uses": 1 });
    let request = request.body(axum::body::Body::from(serde_json::to_vec(&wish).unwrap())).unwrap();
    {
        let mut answer = std::pin::pin!(client.router.clone().oneshot(request));
        assert!(futures_util::poll!(&mut answer).is_pending());
    }
    let created = async || {
        let page = client.test.app.events.list(0, None, None, 100).await.unwrap();
        page.events.iter().any(|event| event.kind == "token.created")
    };
    while !created().await {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn health_readiness_and_numbers_are_open() {
    let client = Client::new().await;
    let open = async |path: &str| client.send(Request::get(path).body(Body::empty()).unwrap()).await;
    assert_eq!(open("/healthz").await.body, "ok\n");
    assert_eq!(open("/readyz").await.body, "ready\n");
    client.get("/nothing").await;
    let numbers = open("/metrics").await;
    let text = String::from_utf8(numbers.body.to_vec()).unwrap();
    assert!(text.contains("muster_controller_devices_known 0"), "{text}");
    assert!(text.contains("muster_controller_api_requests_total{status=\"4xx\"} 1"), "{text}");
    assert!(text.contains("muster_controller_build_info{version="), "{text}");
    client.test.app.readiness.broker_ended();
    assert!(open("/readyz").await.problem(503, "not-ready").contains("broker"));
}

/// Bytes as a careless or hostile client might send them: noise, and JSON that is nearly right.
fn odd(seed: u64, length: usize) -> Vec<u8> {
    const JSON: [&str; 6] = ["{", "[", "\"\\ud800\"", "1e999", "{\"uses\":", "null,"];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::new();
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let choice = state.to_be_bytes();
        if choice[0].is_multiple_of(3) {
            bytes.extend(JSON[usize::from(choice[1]) % JSON.len()].bytes());
        } else {
            bytes.push(choice[2]);
        }
    }
    bytes
}

#[tokio::test]
async fn any_bytes_are_answered() {
    let client = Client::with(|config| config.api.max_body_bytes = 64 * 1024).await;
    client.trust().await;
    let escaped = |bytes: &[u8]| bytes.iter().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let mut seed = 0;
    for (method, path) in known_routes().await {
        for round in 0..24_usize {
            seed += 1;
            let mut uri = path.clone();
            for part in ["{id}", "{name}", "{version}", "{sha256}"] {
                let right = if part == "{sha256}" { "a".repeat(64) } else { "dev-1".into() };
                uri = uri.replace(part, &if round % 3 == 0 { right } else { escaped(&odd(seed, 1 + round)) });
            }
            if round % 2 == 1 {
                uri = format!("{uri}?{}={}", escaped(&odd(seed + 1, round % 5)), escaped(&odd(seed + 2, round)));
            }
            let mut request = Request::builder().method(method.to_uppercase().as_str()).uri(&uri);
            request = match round % 4 {
                0 => request.header(header::AUTHORIZATION, odd_header(&odd(seed + 3, round * 9))),
                _ => request.header(header::AUTHORIZATION, format!("Bearer {}", client.admin)),
            };
            if round % 5 != 0 {
                request = request.header(header::CONTENT_TYPE, "application/json");
            }
            request = request.header("idempotency-key", odd_header(&odd(seed + 4, round * 11)));
            let answer = client.send(request.body(odd(seed + 5, round * 37).into()).unwrap()).await;
            assert!(answer.status.as_u16() < 500, "{method} {uri}: {} {:?}", answer.status, answer.body);
            if answer.status.is_client_error() {
                assert_eq!(answer.headers[header::CONTENT_TYPE], "application/problem+json", "{method} {uri}");
                assert_eq!(answer.json::<Problem>().status, answer.status.as_u16());
            }
        }
    }
    assert_eq!(client.get("/api/v1/devices").await.status, StatusCode::OK);
}

/// What of `bytes` may stand in a header.
fn odd_header(bytes: &[u8]) -> header::HeaderValue {
    let allowed: Vec<u8> = bytes.iter().copied().filter(|byte| *byte == b'\t' || *byte >= 32 && *byte != 127).collect();
    header::HeaderValue::from_bytes(&allowed).unwrap()
}

#[tokio::test]
async fn a_store_without_room_is_507_and_goes_on_reading() {
    let client = Client::new().await;
    client.trust().await;
    let (config, broker) = (client.test.app.config.clone(), Arc::clone(&client.test.broker));
    let (token, folder) = (client.admin.clone(), client.test.folder.path().join("store"));
    // The store is opened anew, with more room to leave than there is.
    let TestApp { app, broker: _, folder: _kept } = client.test;
    drop((client.router, app));
    let store = crate::store::SledStore::open_with_reserve(&folder, u64::MAX).unwrap();
    let app = crate::testing::open_over(config, Arc::clone(&broker), crate::store::Records::new(Arc::new(store))).await;
    let test = TestApp { app: Arc::new(app), broker, folder: _kept };
    let client = Client { router: router(Arc::clone(&test.app)), test, admin: token };
    let wish = json!({ "valid_for_ms": 1_000, "uses": 1 });
    assert!(client.post("/api/v1/tokens", &wish).await.problem(507, "disk-full").contains("make room"));
    assert!(client.get("/readyz").await.problem(503, "not-ready").contains("store"));
    assert_eq!(client.get("/api/v1/devices").await.status, StatusCode::OK);
}

#[tokio::test]
async fn everybody_has_a_token_of_their_own_and_approvers_approve() {
    use muster_shared::access::CreatedAccess;
    let mut client = Client::new().await;
    let admin = client.admin.clone();
    let wish = |name: &str, role: &str| serde_json::json!({ "name": name, "role": role });
    let ann: CreatedAccess = client.post("/api/v1/access", &wish("ann", "approver")).await.ok(201);
    let olga: CreatedAccess = client.post("/api/v1/access", &wish("olga", "operator")).await.ok(201);
    for (name, role, status, kind) in [
        ("ann", "viewer", 409, "name-taken"),
        ("admin", "viewer", 400, "invalid-body"),
        ("eve", "admin", 400, "invalid-body"),
        ("e ve", "viewer", 400, "invalid-body"),
    ] {
        client.post("/api/v1/access", &wish(name, role)).await.problem(status, kind);
    }
    for (token, status, kind) in [(&olga.token, 403, "forbidden"), (&ann.token, 404, "unknown-rollout")] {
        client.admin = token.clone();
        client.raw(Method::POST, "/api/v1/rollouts/r1/approve", "").await.problem(status, kind);
        client.raw(Method::POST, "/api/v1/rollouts/r1/reject", "").await.problem(status, kind);
        client.post("/api/v1/access", &wish("eve", "viewer")).await.problem(403, "forbidden");
    }
    client.admin = admin;
    assert_eq!(client.raw(Method::DELETE, "/api/v1/access/ann", "").await.status, 200);
    client.raw(Method::DELETE, "/api/v1/access/ann", "").await.problem(404, "unknown-access-token");
    client.post("/api/v1/access", &wish("ann", "approver")).await.problem(409, "name-taken");
    client.raw(Method::DELETE, "/api/v1/access/admin", "").await.problem(400, "invalid-body");
    client.admin = ann.token;
    client.get("/api/v1/access").await.problem(401, "unauthenticated");
}
