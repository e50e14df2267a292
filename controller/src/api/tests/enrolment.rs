//! Trust, tokens and devices that join.

use muster_shared::api::{CreatedToken, DeviceView, EnrolResponse, EventView, Page, TokenView, TrustView};
use muster_shared::ids::Digest;
use muster_shared::token::EnrolmentToken;
use muster_shared::topics::{Down, Kind};
use muster_shared::trust::{DocumentKind, sign_document};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384};
use serde_json::json;

use super::*;
use crate::admission::EnrolledDevices;
use crate::broker::Admit as _;
use crate::store::records::{DeviceRecord, EnrolmentTokenRecord};
use crate::store::{Expect, Records, Table};
use crate::testing::{ROOT_SEED, key, root_document, signed_root};

pub(super) fn request_of(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

pub(super) fn request() -> String {
    request_of(&KeyPair::generate().unwrap())
}

impl Client {
    pub(super) async fn secret(&self, wish: &serde_json::Value) -> String {
        let created: CreatedToken = self.post("/api/v1/tokens", wish).await.ok(201);
        created.token.parse::<EnrolmentToken>().unwrap().secret.unwrap()
    }

    pub(super) async fn enrol(&self, secret: &str, device: Option<&str>, csr: &str) -> Answer {
        let wish = json!({ "secret": secret, "device": device, "csr_pem": csr });
        let request = Request::post("/api/v1/enrol").header(header::CONTENT_TYPE, "application/json");
        self.send(request.body(serde_json::to_vec(&wish).unwrap().into()).unwrap()).await
    }

    async fn change_token(&self, secret: &str, change: impl FnOnce(&mut EnrolmentTokenRecord)) {
        let key = Digest::of(secret.as_bytes()).to_string();
        let records = &self.test.app.records;
        let mut token = records.get::<EnrolmentTokenRecord>(Table::EnrolmentTokens, &key).await.unwrap().unwrap().value;
        change(&mut token);
        let change = Records::put(Table::EnrolmentTokens, key, Expect::Anything, &token).unwrap();
        records.commit(vec![change]).await.unwrap();
    }
}

pub(super) fn one_use() -> serde_json::Value {
    json!({ "valid_for_ms": 60_000, "uses": 1, "labels": { "site": "lyon" } })
}

#[tokio::test]
async fn a_device_joins_with_all_it_needs() {
    let client = Client::new().await;
    client.trust().await;
    let created: CreatedToken = client.post("/api/v1/tokens", &one_use()).await.ok(201);
    let token: EnrolmentToken = created.token.parse().unwrap();
    assert_eq!(token.url, "https://127.0.0.1:8443");
    assert_eq!(token.ca_sha256, client.test.app.pki.current().sha256);
    assert_eq!(token.root_sha256, Digest::of(&client.test.root().payload_bytes().unwrap()));

    let papers: EnrolResponse = client.enrol(token.secret.as_ref().unwrap(), Some("press-7"), &request()).await.ok(200);
    assert_eq!(papers.device.as_str(), "press-7");
    assert_eq!((papers.broker_host.as_str(), papers.broker_port), ("127.0.0.1", 8883));
    assert_eq!(papers.roots, [client.test.root()]);
    let device: DeviceView = client.get("/api/v1/devices/press-7").await.ok(200);
    assert_eq!(device.labels["site"], "lyon");
    assert!(!device.online);

    let record = client.test.app.records.get::<DeviceRecord>(Table::Devices, "press-7").await.unwrap().unwrap().value;
    let admit = EnrolledDevices::new(client.test.app.records.clone(), client.test.app.fleet.clone());
    assert!(admit.device_allowed(&record.id, Some(&record.certificate_serial)).await);
    assert!(!admit.device_allowed(&record.id, Some("1")).await);
    assert!(!admit.device_allowed(&"stranger".parse().unwrap(), Some(&record.certificate_serial)).await);
}

#[tokio::test]
async fn tokens_that_are_not_good_are_refused_with_the_reason() {
    let client = Client::new().await;
    client.trust().await;
    client.enrol("wrong", None, &request()).await.problem(401, "unknown-enrolment-token");
    client.enrol("", None, &request()).await.problem(401, "unknown-enrolment-token");

    let secret = client.secret(&one_use()).await;
    let _: EnrolResponse = client.enrol(&secret, Some("a"), &request()).await.ok(200);
    client.enrol(&secret, Some("b"), &request()).await.problem(403, "used-up-enrolment-token");
    client.get("/api/v1/devices/b").await.problem(404, "unknown-device");

    let secret = client.secret(&one_use()).await;
    client.change_token(&secret, |token| token.expires_ms = 1).await;
    client.enrol(&secret, None, &request()).await.problem(403, "expired-enrolment-token");
    // Long expired tokens are forgotten when another one is made.
    client.secret(&one_use()).await;
    client.enrol(&secret, None, &request()).await.problem(401, "unknown-enrolment-token");
}

#[tokio::test]
async fn tokens_are_listed_without_their_secrets_and_can_be_revoked() {
    let client = Client::new().await;
    client.trust().await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(client.post("/api/v1/tokens", &one_use()).await.ok::<CreatedToken>(201));
    }
    let secret = |token: &CreatedToken| token.token.parse::<EnrolmentToken>().unwrap().secret.unwrap();
    let listed = client.get("/api/v1/tokens").await;
    for token in &made {
        assert!(!String::from_utf8_lossy(&listed.body).contains(&secret(token)));
    }
    let mut ids: Vec<String> = made.iter().map(|token| token.id.clone()).collect();
    ids.sort();
    let mut paged = Vec::new();
    let mut path = "/api/v1/tokens?limit=1".to_owned();
    loop {
        let page: Page<TokenView> = client.get(&path).await.ok(200);
        paged.extend(page.items);
        let Some(cursor) = page.next_cursor else { break };
        path = format!("/api/v1/tokens?limit=1&cursor={cursor}");
    }
    assert_eq!(paged.iter().map(|token| token.id.clone()).collect::<Vec<_>>(), ids);
    assert!(paged.iter().all(|token| token.uses_left == 1 && token.created_by.as_deref() == Some("admin")));

    let revoke = format!("/api/v1/tokens/{}/revoke", made[0].id);
    let shown: TokenView = client.post(&revoke, &json!({ "reason": "leaked" })).await.ok(200);
    let revocation = shown.revoked.unwrap();
    assert_eq!((revocation.by.as_str(), revocation.reason.as_deref()), ("admin", Some("leaked")));
    let again: TokenView = client.raw(Method::POST, &revoke, "").await.ok(200);
    assert_eq!(again.revoked, Some(revocation));
    let said = client.enrol(&secret(&made[0]), Some("a"), &request()).await.problem(403, "revoked-enrolment-token");
    assert!(said.contains("muster token create"), "{said}");
    let _: EnrolResponse = client.enrol(&secret(&made[1]), Some("a"), &request()).await.ok(200);
    let history: Page<EventView> = client.get("/api/v1/events").await.ok(200);
    let revoked: Vec<&EventView> = history.items.iter().filter(|event| event.kind == "token.revoked").collect();
    assert_eq!(revoked.len(), 1);
    assert_eq!(revoked[0].detail, format!("enrolment token {}: leaked", made[0].id));
    let enrolled = history.items.iter().find(|event| event.kind == "device.enrolled").unwrap();
    assert!(enrolled.detail.ends_with(&format!("token {}", made[1].id)), "{}", enrolled.detail);

    client.raw(Method::POST, "/api/v1/tokens/000000000000/revoke", "").await.problem(404, "unknown-token");
    for odd in ["", "0", "xyz", &"0".repeat(64), "00000000000G"] {
        let answer = client.raw(Method::POST, &format!("/api/v1/tokens/{odd}/revoke"), "").await;
        assert!(answer.status.is_client_error(), "{odd}: {}", answer.status);
    }
    client.get("/api/v1/tokens?cursor=x").await.problem(400, "invalid-query");
}

#[tokio::test]
async fn requests_that_prove_nothing_use_up_nothing() {
    let client = Client::new().await;
    client.trust().await;
    let secret = client.secret(&one_use()).await;
    let other_curve = request_of(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap());
    for bad in ["", "noise", &other_curve, &request().replace("CERTIFICATE REQUEST", "CERTIFICATE")] {
        client.enrol(&secret, None, bad).await.problem(422, "invalid-certificate-request");
    }
    client.enrol(&secret, Some("UPPER"), &request()).await.problem(400, "invalid-body");
    let _: EnrolResponse = client.enrol(&secret, None, &request()).await.ok(200);
}

#[tokio::test]
async fn a_name_is_given_once_but_the_same_key_may_ask_again() {
    let client = Client::new().await;
    client.trust().await;
    let secret = client.secret(&json!({ "valid_for_ms": 60_000, "uses": 2 })).await;
    let key = KeyPair::generate().unwrap();
    let first: EnrolResponse = client.enrol(&secret, None, &request_of(&key)).await.ok(200);
    let again: EnrolResponse = client.enrol(&secret, None, &request_of(&key)).await.ok(200);
    assert_eq!(first.device, again.device);
    assert_ne!(first.certificate_pem, again.certificate_pem);
    client.enrol(&secret, Some(first.device.as_str()), &request()).await.problem(409, "device-exists");
    let _: EnrolResponse = client.enrol(&secret, Some("second"), &request()).await.ok(200);
    client.enrol(&secret, Some("third"), &request()).await.problem(403, "used-up-enrolment-token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_cannot_use_a_token_too_often() {
    let client = std::sync::Arc::new(Client::new().await);
    client.trust().await;
    let secret = client.secret(&json!({ "valid_for_ms": 60_000, "uses": 5 })).await;
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let (client, secret) = (std::sync::Arc::clone(&client), secret.clone());
            tokio::spawn(async move { client.enrol(&secret, Some(&format!("dev-{n}")), &request()).await.status })
        })
        .collect();
    let mut joined = 0;
    for task in tasks {
        joined += usize::from(task.await.unwrap() == StatusCode::OK);
    }
    assert_eq!(joined, 5);
    let devices: Page<DeviceView> = client.get("/api/v1/devices").await.ok(200);
    assert_eq!(devices.items.len(), 5);
}

#[tokio::test]
async fn wishes_for_tokens_are_checked() {
    let client = Client::new().await;
    client.post("/api/v1/tokens", &one_use()).await.problem(409, "no-root");
    client.trust().await;
    for wish in [
        json!({ "valid_for_ms": 0, "uses": 1 }),
        json!({ "valid_for_ms": u64::MAX, "uses": 1 }),
        json!({ "valid_for_ms": 1, "uses": 0 }),
        json!({ "valid_for_ms": 1, "uses": 1, "labels": { "a b": "c" } }),
        json!({ "valid_for_ms": 1, "uses": 1, "labels": { "id": "c" } }),
    ] {
        client.post("/api/v1/tokens", &wish).await.problem(400, "invalid-token-wish");
    }
}

#[tokio::test]
async fn roots_must_follow_from_each_other() {
    let client = Client::new().await;
    let director = client.test.app.director.public();
    let push =
        async |root: &muster_shared::trust::Envelope| client.post("/api/v1/trust/root", &json!({ "root": root })).await;
    let refused = "untrusted-root";
    assert!(push(&signed_root(1, key(9).public())).await.problem(422, refused).contains("director"));
    push(&signed_root(2, director.clone())).await.problem(422, refused);
    let unsigned = sign_document(DocumentKind::Root, &root_document(1, director.clone()), [&key(9)]).unwrap();
    push(&unsigned).await.problem(422, refused);
    let mut expired = root_document(1, director.clone());
    expired.expires_ms = 1;
    push(&sign_document(DocumentKind::Root, &expired, [&key(ROOT_SEED)]).unwrap()).await.problem(422, refused);

    let trust: TrustView = push(&client.test.root()).await.ok(200);
    assert_eq!((trust.roots.len(), trust.director_public_key), (1, director.clone()));
    let again: TrustView = push(&client.test.root()).await.ok(200);
    assert_eq!(again.roots.len(), 1);
    push(&signed_root(3, director.clone())).await.problem(422, refused);
    client.test.broker.take();
    let secret = client.secret(&one_use()).await;
    let papers: EnrolResponse = client.enrol(&secret, Some("dev-1"), &request()).await.ok(200);
    client.test.app.fleet.set_online(&papers.device, true, 1);
    let next: TrustView = push(&signed_root(2, director)).await.ok(200);
    assert_eq!(next.roots.len(), 2);
    let told = client.test.broker.take();
    assert!(told.iter().any(|(topic, _)| topic.device == papers.device && topic.kind == Kind::Down(Down::Root)));
}

#[tokio::test]
async fn the_director_key_is_replaced_by_a_root_document_alone() {
    let client = Client::new().await;
    let first: TrustView = client.get("/api/v1/trust").await.ok(200);
    client.trust().await;
    let director = client.test.app.director.public();
    let prepare = async || client.post("/api/v1/trust/director", &json!(null)).await;
    let prepared: TrustView = prepare().await.ok(200);
    let next = prepared.next_director_public_key.clone().unwrap();
    assert_eq!((first.next_director_public_key, prepared.director_public_key), (None, director.clone()));
    let again: TrustView = prepare().await.ok(200);
    assert_eq!(again.next_director_public_key, Some(next.clone()));
    let push = json!({ "root": signed_root(2, next.clone()) });
    let pushed: TrustView = client.post("/api/v1/trust/root", &push).await.ok(200);
    assert_eq!((pushed.director_public_key, pushed.next_director_public_key), (next.clone(), None));
    // Given up, another one is made; only an administrator may.
    let third = prepare().await.ok::<TrustView>(200).next_director_public_key;
    assert!(third.is_some() && third != Some(director));
    let given_up: TrustView = client.raw(Method::DELETE, "/api/v1/trust/director", "").await.ok(200);
    assert_eq!((given_up.director_public_key, given_up.next_director_public_key), (next, None));
    assert_ne!(prepare().await.ok::<TrustView>(200).next_director_public_key, third);
}

#[tokio::test]
async fn labels_are_set_removed_and_checked() {
    let client = Client::new().await;
    client.trust().await;
    let secret = client.secret(&json!({ "valid_for_ms": 60_000, "uses": 3 })).await;
    for name in ["a", "b", "c"] {
        let _: EnrolResponse = client.enrol(&secret, Some(name), &request()).await.ok(200);
    }
    let patch = async |device: &str, labels: serde_json::Value| {
        let body = serde_json::to_vec(&json!({ "labels": labels })).unwrap();
        client.raw(Method::PATCH, &format!("/api/v1/devices/{device}/labels"), body).await
    };
    let _: DeviceView = patch("a", json!({ "site": "lyon", "ring": "canary" })).await.ok(200);
    let device: DeviceView = patch("a", json!({ "ring": null, "line": "4" })).await.ok(200);
    assert_eq!(device.labels.keys().collect::<Vec<_>>(), ["line", "site"]);
    patch("a", json!({ "site": "a,b" })).await.problem(400, "invalid-label");
    patch("a", json!({ "id": "x" })).await.problem(400, "invalid-label");
    patch("nobody", json!({ "site": "lyon" })).await.problem(404, "unknown-device");
    let many: serde_json::Map<String, serde_json::Value> = (0..65).map(|n| (format!("l{n}"), json!("x"))).collect();
    patch("a", many.into()).await.problem(400, "invalid-label");

    let selected: Page<DeviceView> = client.get("/api/v1/devices?selector=site%3Dlyon").await.ok(200);
    assert_eq!(selected.items.len(), 1);
    let first: Page<DeviceView> = client.get("/api/v1/devices?limit=2").await.ok(200);
    assert_eq!((first.items.len(), first.next_cursor.as_deref()), (2, Some("b")));
    let rest: Page<DeviceView> = client.get("/api/v1/devices?limit=2&cursor=b").await.ok(200);
    assert_eq!((rest.items.len(), rest.next_cursor), (1, None));

    let history: Page<EventView> = client.get("/api/v1/events?device=a").await.ok(200);
    let kinds: Vec<&str> = history.items.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["device.enrolled", "device.labelled", "device.labelled"]);
    assert_eq!(history.items[1].actor, "admin");
    let cursor = history.next_cursor.unwrap();
    let later: Page<EventView> = client.get(&format!("/api/v1/events?after={cursor}")).await.ok(200);
    assert_eq!((later.items.len(), later.next_cursor), (0, None));
}
