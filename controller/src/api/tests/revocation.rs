//! Devices that are shut out, and let in again.

use muster_rollout::{BundleFacts, Rollout};
use muster_shared::api::{DeviceView, EnrolResponse, EventView, Page};
use muster_shared::ids::{DeviceId, Digest};
use rcgen::KeyPair;
use serde_json::json;

use super::enrolment::{one_use, request, request_of};
use super::*;
use crate::admission::EnrolledDevices;
use crate::broker::Admit as _;
use crate::fleet::FleetIndex;
use crate::store::records::DeviceRecord;
use crate::store::{Expect, Records, Table};

async fn with_device(key: &KeyPair) -> (Client, DeviceId) {
    let client = Client::new().await;
    client.trust().await;
    let secret = client.secret(&one_use()).await;
    let papers: EnrolResponse = client.enrol(&secret, Some("press-7"), &request_of(key)).await.ok(200);
    (client, papers.device)
}

async fn record(client: &Client) -> DeviceRecord {
    client.test.app.records.get::<DeviceRecord>(Table::Devices, "press-7").await.unwrap().unwrap().value
}

async fn kinds(client: &Client) -> Vec<(String, String, String)> {
    let history: Page<EventView> = client.get("/api/v1/events?device=press-7").await.ok(200);
    history.items.into_iter().skip(1).map(|event| (event.kind, event.actor, event.detail)).collect()
}

#[tokio::test]
async fn a_revoked_device_is_cut_off_after_that_is_stored_and_stays_out() {
    let key = KeyPair::generate().unwrap();
    let (client, device) = with_device(&key).await;
    let serial = record(&client).await.certificate_serial;
    let admit = EnrolledDevices::new(client.test.app.records.clone());
    assert!(admit.device_allowed(&device, Some(&serial)).await);

    let shown: DeviceView = client.post("/api/v1/devices/press-7/revoke", &json!({ "reason": "stolen" })).await.ok(200);
    let revocation = shown.revoked.unwrap();
    assert_eq!((revocation.by.as_str(), revocation.reason.as_deref()), ("admin", Some("stolen")));
    assert_eq!(client.test.broker.disconnected(), [device.clone()]);
    assert!(!admit.device_allowed(&device, Some(&serial)).await);
    assert!(!client.test.app.fleet.is_member(&device));
    // So it is after a restart.
    let again = FleetIndex::load(&client.test.app.records).await.unwrap();
    assert_eq!(again.view(&device).unwrap().revoked, Some(revocation.clone()));

    // It cannot enrol under its name, with its key or another, even with a token that is good.
    let secret = client.secret(&one_use()).await;
    for csr in [request_of(&key), request()] {
        let said = client.enrol(&secret, Some("press-7"), &csr).await.problem(403, "device-revoked");
        assert!(said.contains("muster device reinstate press-7"), "{said}");
    }
    // Asked for again: nothing changes but that it is cut off once more.
    let shown: DeviceView = client.post("/api/v1/devices/press-7/revoke", &json!({ "reason": "other" })).await.ok(200);
    assert_eq!(shown.revoked, Some(revocation));
    assert_eq!(client.test.broker.disconnected().len(), 2);
    let told = |kind: &str, detail: &str| (kind.to_owned(), "admin".to_owned(), detail.to_owned());
    assert_eq!(kinds(&client).await, [told("device.revoked", "stolen")]);

    for _ in 0..2 {
        let shown: DeviceView = client.raw(Method::POST, "/api/v1/devices/press-7/reinstate", "").await.ok(200);
        assert_eq!(shown.revoked, None);
    }
    assert!(admit.device_allowed(&device, Some(&serial)).await, "with the certificate it had");
    let entries = [told("device.revoked", "stolen"), told("device.reinstated", "it was revoked by admin: stolen")];
    assert_eq!(kinds(&client).await, entries);
}

#[tokio::test]
async fn who_may_not_or_names_nobody_changes_nothing() {
    let (client, _) = with_device(&KeyPair::generate().unwrap()).await;
    let viewer = client.test.token(AccessRole::Viewer).await;
    for verb in ["revoke", "reinstate"] {
        client.raw(Method::POST, &format!("/api/v1/devices/nobody/{verb}"), "").await.problem(404, "unknown-device");
        let request = Request::post(format!("/api/v1/devices/press-7/{verb}"))
            .header(header::AUTHORIZATION, format!("Bearer {viewer}"))
            .body(Body::empty())
            .unwrap();
        client.send(request).await.problem(403, "forbidden");
    }
    let long = json!({ "reason": "x".repeat(100_000) });
    client.post("/api/v1/devices/press-7/revoke", &long).await.problem(400, "invalid-body");
    client.post("/api/v1/devices/press-7/revoke", &json!({ "why": "x" })).await.problem(400, "invalid-body");
    assert!(kinds(&client).await.is_empty() && client.test.broker.disconnected().is_empty());
}

#[tokio::test]
async fn a_device_that_returns_is_not_told_to_run_what_was_taken_back() {
    let (client, device) = with_device(&KeyPair::generate().unwrap()).await;
    let (taken_back, before) = (Digest::of(b"bad"), Digest::of(b"good"));
    client.test.desire(&device, Some(taken_back), 4).await;
    let _: DeviceView = client.raw(Method::POST, "/api/v1/devices/press-7/revoke", "").await.ok(200);
    let spec = json!({
        "bundle": "digits@1.0.0",
        "selector": "*",
        "waves": [{ "size": "100%", "soak_ms": 1_000, "max_duration_ms": 60_000 }],
    });
    let bundle = BundleFacts {
        manifest: taken_back,
        bundle: "digits@1.0.0".parse().unwrap(),
        requirements: Default::default(),
        reference_predictions: Default::default(),
    };
    let created = Rollout::new("r1".parse().unwrap(), serde_json::from_value(spec).unwrap(), bundle, 1).unwrap();
    let mut document = serde_json::to_value(created).unwrap();
    document["status"] = json!("rolled_back");
    document["targets"]["press-7"] = json!({
        "errand": "forward", "manifest": taken_back, "generation": 4, "previous": before, "wave": 0,
        "assigned_at_ms": 1, "done_at_ms": null, "failure": null, "attempts": 1,
    });
    let rollout: Rollout = serde_json::from_value(document).unwrap();
    let change = Records::put(Table::Rollouts, "r1", Expect::Absent, &rollout).unwrap();
    client.test.app.records.commit(vec![change]).await.unwrap();

    let shown: DeviceView = client.raw(Method::POST, "/api/v1/devices/press-7/reinstate", "").await.ok(200);
    let desired = shown.desired.unwrap();
    assert_eq!((desired.manifest, desired.generation, desired.rollout.as_str()), (Some(before), 5, "r1"));
}
