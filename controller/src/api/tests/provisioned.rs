//! Devices that join with a certificate of an outside authority.

use muster_shared::api::{DeviceView, EnrolResponse, ProvisioningString, RenewResponse};
use muster_shared::token::EnrolmentToken;
use rcgen::{CertificateParams, CertifiedIssuer, DnType, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;

use super::enrolment::{one_use, request};
use super::*;
use crate::api::peer::Shown;
use crate::store::Table;
use crate::store::records::DeviceRecord;

/// Devices that show a certificate of an outside authority.
struct Factory {
    client: Client,
    ca: CertifiedIssuer<'static, KeyPair>,
    _folder: tempfile::TempDir,
}

impl Factory {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = folder.path().join("factory.pem");
        std::fs::write(&file, ca.pem()).unwrap();
        let outside = toml::from_str(&format!(
            "name = \"factory\"\nfile = {file:?}\nprefix = \"acme-\"\nlabels = {{ maker = \"acme\" }}\n"
        ));
        let outside = vec![outside.unwrap()];
        let client = Client::with(move |config| config.pki.outside = outside).await;
        client.trust().await;
        Self { client, ca, _folder: folder }
    }

    fn certificate(&self, name: &str) -> CertificateDer<'static> {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.signed_by(&KeyPair::generate().unwrap(), &self.ca).unwrap().der().clone()
    }

    async fn post(&self, path: &str, shown: CertificateDer<'static>, body: serde_json::Value) -> Answer {
        let request =
            Request::post(path).header(header::CONTENT_TYPE, "application/json").extension(Shown(vec![shown]));
        self.client.send(request.body(serde_json::to_vec(&body).unwrap().into()).unwrap()).await
    }

    async fn enrol(&self, name: &str, csr: &str) -> Answer {
        self.post("/api/v1/enrol", self.certificate(name), json!({ "csr_pem": csr })).await
    }
}

#[tokio::test]
async fn a_device_that_keeps_nothing_enrols_at_every_boot() {
    let factory = Factory::new().await;
    for boot in 0..150 {
        let answer = factory.enrol("press-7", &request()).await;
        assert_eq!(answer.status, 200, "boot {boot}");
    }
    let records = &factory.client.test.app.records;
    let record = records.get::<DeviceRecord>(Table::Devices, "acme-press-7").await.unwrap().unwrap().value;
    assert!((48..64).contains(&record.superseded.len()), "{}", record.superseded.len());
}

#[tokio::test]
async fn a_certificate_of_an_outside_authority_stands_for_a_token_and_for_nothing_else() {
    let factory = Factory::new().await;
    let client = &factory.client;
    let given: ProvisioningString = client.get("/api/v1/tokens/provisioning").await.ok(200);
    let token: EnrolmentToken = given.token.parse().unwrap();
    assert_eq!((token.secret, token.ca_sha256), (None, client.test.app.pki.current().sha256));

    let papers: EnrolResponse = factory.enrol("Press-7", &request()).await.ok(200);
    assert_eq!(papers.device.as_str(), "acme-press-7");
    let view: DeviceView = client.get("/api/v1/devices/acme-press-7").await.ok(200);
    assert_eq!(view.labels["maker"], "acme");
    // Set up anew, with another key: it is still itself. What it had before counts no more.
    let again: EnrolResponse = factory.enrol("press-7", &request()).await.ok(200);
    let ours = |papers: &EnrolResponse| CertificateDer::from_pem_slice(papers.certificate_pem.as_bytes()).unwrap();
    let renew = async |shown| factory.post("/api/v1/renew", shown, json!({ "csr_pem": request() })).await;
    renew(ours(&papers)).await.problem(403, "certificate-refused");
    let _: RenewResponse = renew(ours(&again)).await.ok(200);
    // The certificate of the factory renews nothing, and a name it does not stand for is not given.
    renew(factory.certificate("acme-press-7")).await.problem(401, "no-client-certificate");
    let wish = json!({ "csr_pem": request(), "device": "press-8" });
    factory.post("/api/v1/enrol", factory.certificate("press-7"), wish).await.problem(409, "other-device");
    // Nor the name of a device that came with a token, nor that of one that was shut out.
    let secret = client.secret(&one_use()).await;
    let _: EnrolResponse = client.enrol(&secret, Some("acme-press-9"), &request()).await.ok(200);
    factory.enrol("press-9", &request()).await.problem(409, "device-exists");
    let _: DeviceView = client.post("/api/v1/devices/acme-press-7/revoke", &json!({})).await.ok(200);
    factory.enrol("press-7", &request()).await.problem(403, "device-revoked");
    // Without either there is no right.
    let nothing = client.post("/api/v1/enrol", &json!({ "csr_pem": request() })).await;
    nothing.problem(401, "no-right-to-enrol");
    let stranger = Factory::new().await.certificate("press-7");
    factory.post("/api/v1/enrol", stranger, json!({ "csr_pem": request() })).await.problem(401, "no-right-to-enrol");
    let own = factory.post("/api/v1/enrol", ours(&again), json!({ "csr_pem": request() })).await;
    own.problem(401, "no-right-to-enrol");
}
