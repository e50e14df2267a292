//! Devices that are shut out and let in again, and what renews their certificates.

use muster_rollout::{BundleFacts, Rollout};
use muster_shared::api::{AuthoritiesView, DeviceView, EnrolResponse, EventView, Page, RenewResponse};
use muster_shared::ids::{DeviceId, Digest};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::peer::Shown;
use super::enrolment::{one_use, request, request_of};
use super::*;
use crate::admission::EnrolledDevices;
use crate::broker::{Admit as _, serial_text};
use crate::fleet::FleetIndex;
use crate::pki::DeviceKey;
use crate::store::records::{DeviceRecord, SupersededCertificate};
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
    let admit = EnrolledDevices::new(client.test.app.records.clone(), client.test.app.fleet.clone());
    assert!(admit.device_allowed(&device, Some(&serial)).await);

    let shown: DeviceView = client.post("/api/v1/devices/press-7/revoke", &json!({ "reason": "stolen" })).await.ok(200);
    let revocation = shown.revoked.unwrap();
    assert_eq!((revocation.by.as_str(), revocation.reason.as_deref()), ("admin", Some("stolen")));
    assert_eq!(client.test.broker.disconnected(), std::slice::from_ref(&device));
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
        track: Default::default(),
        features: Default::default(),
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

/// Certificates that a device gets by showing the one it has.
impl Client {
    async fn renew(&self, shown: Option<&str>, csr: &str) -> Answer {
        let mut request = Request::post("/api/v1/renew").header(header::CONTENT_TYPE, "application/json");
        if let Some(pem) = shown {
            request = request.extension(Shown(vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()]));
        }
        self.send(request.body(serde_json::to_vec(&json!({ "csr_pem": csr })).unwrap().into()).unwrap()).await
    }

    /// Takes the device to have waited since it was given its last certificate.
    async fn rested(&self) {
        let stored = self.test.app.records.get::<DeviceRecord>(Table::Devices, "press-7").await.unwrap().unwrap();
        let record = DeviceRecord { renewed_at_ms: Some(1), ..stored.value };
        let change = Records::put(Table::Devices, "press-7", Expect::Version(stored.version), &record).unwrap();
        self.test.app.records.commit(vec![change]).await.unwrap();
    }
}

fn serial(pem: &str) -> String {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(certificate.subject().to_string(), "CN=press-7");
    serial_text(certificate.raw_serial())
}

async fn enrolled() -> (Client, String) {
    let client = Client::new().await;
    client.trust().await;
    let secret = client.secret(&one_use()).await;
    let papers: EnrolResponse = client.enrol(&secret, Some("press-7"), &request()).await.ok(200);
    (client, papers.certificate_pem)
}

#[tokio::test]
async fn the_first_new_certificate_that_is_shown_supersedes_all_others() {
    let (client, first) = enrolled().await;
    let admit = EnrolledDevices::new(client.test.app.records.clone(), client.test.app.fleet.clone());
    let device: DeviceId = "press-7".parse().unwrap();
    let allowed = async |pem: &str| admit.device_allowed(&device, Some(&serial(pem))).await;
    let mut given = Vec::new();
    // The answers may all have been lost, so each of the last few counts.
    for _ in 0..5 {
        let answer: RenewResponse = client.renew(Some(&first), &request()).await.ok(200);
        given.push(answer.certificate_pem);
        let said = client.renew(Some(&first), &request()).await.problem(429, "renewed-just-now");
        assert!(said.contains("60000 ms"), "{said}");
        client.rested().await;
    }
    assert!(!allowed(&given[0]).await, "only so many wait");
    assert!(allowed(&first).await, "shown again, the one in use changes nothing");
    assert!(allowed(&given[2]).await);
    for superseded in [&first, &given[1], &given[3], &given[4]] {
        assert!(!allowed(superseded).await);
        client.renew(Some(superseded), &request()).await.problem(403, "certificate-refused");
    }
    assert!(allowed(&given[2]).await);
    let record = record(&client).await;
    assert_eq!((record.certificate_serial, record.pending.len()), (serial(&given[2]), 0));
    let entries = kinds(&client).await;
    assert!(entries.len() == 5 && entries.iter().all(|(kind, actor, _)| kind == "device.renewed" && actor == "device"));
    // Shown to the API first, a new one counts just as well.
    let next: RenewResponse = client.renew(Some(&given[2]), &request()).await.ok(200);
    client.rested().await;
    let _: RenewResponse = client.renew(Some(&next.certificate_pem), &request()).await.ok(200);
    assert!(!allowed(&given[2]).await);
}

#[tokio::test]
async fn only_a_certificate_that_is_accepted_is_renewed() {
    let (client, first) = enrolled().await;
    client.renew(None, &request()).await.problem(401, "no-client-certificate");
    client.renew(Some(&client.test.app.pki.current().pem), &request()).await.problem(401, "no-client-certificate");
    let signed = |name: &str, now_ms: u64| {
        let key = DeviceKey::from_request(&request()).unwrap();
        client.test.app.pki.issue(&name.parse().unwrap(), &key, now_ms, 60_000).unwrap().pem
    };
    let now_ms = crate::clock::now_ms();
    client.renew(Some(&signed("press-7", now_ms)), &request()).await.problem(403, "certificate-refused");
    client.renew(Some(&signed("nobody", now_ms)), &request()).await.problem(403, "certificate-refused");
    let expired = signed("press-7", now_ms - 120_000);
    assert!(client.renew(Some(&expired), &request()).await.problem(401, "no-client-certificate").contains("expired"));
    for bad in ["", "noise", &request().replace("CERTIFICATE REQUEST", "CERTIFICATE")] {
        client.renew(Some(&first), bad).await.problem(422, "invalid-certificate-request");
    }
    let _: DeviceView = client.raw(Method::POST, "/api/v1/devices/press-7/revoke", "").await.ok(200);
    let said = client.renew(Some(&first), &request()).await.problem(403, "certificate-refused");
    assert!(said.contains("revoked"), "{said}");
    let _: DeviceView = client.raw(Method::POST, "/api/v1/devices/press-7/reinstate", "").await.ok(200);
    let _: RenewResponse = client.renew(Some(&first), &request()).await.ok(200);
}

#[tokio::test]
async fn a_device_whose_certificate_ended_enrols_again_with_a_key_it_was_given_a_certificate_for() {
    let (client, first) = enrolled().await;
    let key = KeyPair::generate().unwrap();
    let renewed: RenewResponse = client.renew(Some(&first), &request_of(&key)).await.ok(200);
    let secret = client.secret(&one_use()).await;
    client.enrol(&secret, Some("press-7"), &request()).await.problem(409, "device-exists");
    let papers: EnrolResponse = client.enrol(&secret, Some("press-7"), &request_of(&key)).await.ok(200);
    let admit = EnrolledDevices::new(client.test.app.records.clone(), client.test.app.fleet.clone());
    let allowed = async |pem: &str| admit.device_allowed(&papers.device, Some(&serial(pem))).await;
    assert!(allowed(&papers.certificate_pem).await);
    assert!(!allowed(&renewed.certificate_pem).await && !allowed(&first).await);
    let again: EnrolResponse = client.enrol(&secret, Some("press-7"), &request_of(&key)).await.ok(200);
    assert!(allowed(&again.certificate_pem).await);
}

/// Serial numbers in the list that is given out, whoever asks.
async fn listed(client: &Client) -> Vec<String> {
    let request = Request::builder().uri("/api/v1/crl.pem").body(Body::empty()).unwrap();
    let answer = client.send(request).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers[header::CONTENT_TYPE], "application/x-pem-file");
    let (_, pem) = x509_parser::pem::parse_x509_pem(&answer.body).unwrap();
    let (_, list) = x509_parser::revocation_list::CertificateRevocationList::from_der(&pem.contents).unwrap();
    list.iter_revoked_certificates().map(|entry| serial_text(entry.raw_serial())).collect()
}

#[tokio::test]
async fn the_list_names_every_certificate_that_is_refused_and_no_other() {
    let (client, first) = enrolled().await;
    assert_eq!(listed(&client).await, [""; 0]);
    let mut given = vec![first.clone()];
    for _ in 0..5 {
        let answer: RenewResponse = client.renew(Some(&first), &request()).await.ok(200);
        given.push(answer.certificate_pem);
        client.rested().await;
    }
    let serials = |certificates: &[usize]| certificates.iter().map(|at| serial(&given[*at])).collect::<Vec<_>>();
    assert_eq!(listed(&client).await, serials(&[1]), "only four wait");
    let admit = EnrolledDevices::new(client.test.app.records.clone(), client.test.app.fleet.clone());
    assert!(admit.device_allowed(&"press-7".parse().unwrap(), Some(&serial(&given[3]))).await);
    assert_eq!(listed(&client).await, serials(&[1, 0, 2, 4, 5]));
    let _: RenewResponse = client.renew(Some(&given[3]), &request()).await.ok(200);
    let pending = record(&client).await.pending[0].serial.clone();
    let _: DeviceView = client.raw(Method::POST, "/api/v1/devices/press-7/revoke", "").await.ok(200);
    assert_eq!(listed(&client).await, [serials(&[1, 0, 2, 4, 5, 3]), vec![pending]].concat());
    let _: DeviceView = client.raw(Method::POST, "/api/v1/devices/press-7/reinstate", "").await.ok(200);
    assert_eq!(listed(&client).await, serials(&[1, 0, 2, 4, 5]));
}

#[tokio::test]
async fn there_is_an_end_to_the_certificates_that_a_device_is_given() {
    let (client, first) = enrolled().await;
    let refused = loop {
        let answer = client.renew(Some(&first), &request()).await;
        if answer.status != 200 {
            break answer;
        }
        client.rested().await;
        assert!(record(&client).await.superseded.len() < 1_000, "no end");
    };
    refused.problem(429, "too-many-certificates");
    let age = async |how: &dyn Fn(&mut SupersededCertificate)| {
        let stored = client.test.app.records.get::<DeviceRecord>(Table::Devices, "press-7").await.unwrap().unwrap();
        let mut aged = stored.value;
        aged.superseded.iter_mut().for_each(how);
        let change = Records::put(Table::Devices, "press-7", Expect::Version(stored.version), &aged).unwrap();
        client.test.app.records.commit(vec![change]).await.unwrap();
    };
    // How long ago that was says nothing of when they end: they may have been given when certificates lived longer.
    age(&|superseded| superseded.since_ms = 1).await;
    client.renew(Some(&first), &request()).await.problem(429, "too-many-certificates");
    // Once they have ended there is room again, and the list is as short as before.
    age(&|superseded| superseded.ends_ms = Some(1)).await;
    let _: RenewResponse = client.renew(Some(&first), &request()).await.ok(200);
    assert_eq!(listed(&client).await.len(), 1);
}

#[tokio::test]
async fn a_device_with_too_many_certificates_enrols_again_and_those_of_a_retired_authority_do_not_count() {
    let key = KeyPair::generate().unwrap();
    for retired in [false, true] {
        let client = Client::new().await;
        client.trust().await;
        let secret = client.secret(&one_use()).await;
        let first: EnrolResponse = client.enrol(&secret, Some("press-7"), &request_of(&key)).await.ok(200);
        while client.renew(Some(&first.certificate_pem), &request()).await.status == 200 {
            client.rested().await;
        }
        let before = listed(&client).await;
        if retired {
            client.test.app.pki.rotate(crate::clock::now_ms()).unwrap();
            client.test.app.pki.retire(crate::clock::now_ms()).unwrap();
        }
        let secret = client.secret(&one_use()).await;
        let again: EnrolResponse = client.enrol(&secret, Some("press-7"), &request_of(&key)).await.ok(200);
        let _: RenewResponse = client.renew(Some(&again.certificate_pem), &request()).await.ok(200);
        let after = listed(&client).await;
        let told: Vec<_> = kinds(&client).await.into_iter().filter(|(kind, ..)| kind.ends_with("forgotten")).collect();
        if retired {
            assert_eq!((after.len(), told), (0, Vec::new()));
        } else {
            let gone: Vec<_> = before.iter().filter(|serial| !after.contains(serial)).collect();
            assert!(!gone.is_empty() && before.starts_with(&gone.iter().map(|s| (*s).clone()).collect::<Vec<_>>()));
            assert_eq!(told.len(), 1);
            assert!(gone.iter().all(|serial| told[0].2.contains(*serial)), "{told:?} for {gone:?}");
            let admit = EnrolledDevices::new(client.test.app.records.clone(), client.test.app.fleet.clone());
            assert!(
                !admit.device_allowed(&again.device, Some(gone[0])).await,
                "this controller refuses it all the same"
            );
        }
    }
}

#[tokio::test]
async fn who_connected_with_the_retired_authority_is_cut_off() {
    let (client, _) = with_device(&KeyPair::generate().unwrap()).await;
    let cuts = || client.test.broker.cuts_of_all();
    let _: AuthoritiesView = client.post("/api/v1/ca/rotate", &json!({})).await.ok(200);
    client.post("/api/v1/ca/retire", &json!({})).await.problem(409, "authority-in-use");
    assert_eq!(cuts(), 0);
    let left: AuthoritiesView = client.post("/api/v1/ca/retire", &json!({ "force": true })).await.ok(200);
    assert_eq!((left.authorities.len(), cuts()), (1, 1));
    let _: AuthoritiesView = client.post("/api/v1/ca/retire", &json!({ "force": true })).await.ok(200);
    assert_eq!(cuts(), 1, "there is none to retire");
}
