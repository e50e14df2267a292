//! Whether the papers an enrolment brought are this device's, and come from the controller the token names.

use muster_agent_core::renewal::Validity;
use muster_shared::api::EnrolResponse;
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::token::EnrolmentToken;
use muster_shared::trust::{Envelope, TrustError, TrustedRoot};
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

use super::authorities::Stored;

/// Largest certificate in PEM, in bytes: one on P-256 has about 700.
const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;
/// Longest host name, in bytes (RFC 1035).
const MAX_HOST_BYTES: usize = 253;

/// Papers that have been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Papers {
    pub(super) device: DeviceId,
    pub(super) certificate_pem: String,
    pub(super) ca_pem: String,
    pub(super) ca_sha256: Digest,
    pub(super) root_sha256: Digest,
    pub(super) broker_host: String,
    pub(super) broker_port: u16,
    pub(super) api_url: String,
    /// Every root document from version 1 on.
    pub(super) roots: Vec<Envelope>,
    /// The authorities, where others than the one of the token are in force.
    pub(super) authorities: Option<Stored>,
}

/// What is wrong with them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PapersError {
    /// The CA is not the one the token names.
    #[error("its CA certificate is not the one the enrolment token names")]
    Ca,
    /// A certificate does not parse.
    #[error("its {0} does not parse")]
    Parse(&'static str),
    /// The certificate is for another key or name, or not from the CA.
    #[error("the certificate it gave {0}")]
    Certificate(&'static str),
    /// The broker's address is none.
    #[error("it named no usable broker")]
    Broker,
    /// The root documents are not trusted.
    #[error("its root documents are not those the enrolment token leads to")]
    Roots(#[source] TrustError),
    /// The list of authorities is not trusted.
    #[error("its list of certificate authorities is not trusted")]
    Authorities(#[source] TrustError),
    /// The list is older than the one in force.
    #[error("its list of certificate authorities is older than the one this device has")]
    OldAuthorities,
}

/// Checks `response` against the token it answers and the device's own key.
pub(super) fn check(token: &EnrolmentToken, key: &KeyPair, response: EnrolResponse) -> Result<Papers, PapersError> {
    let ca = CertificateDer::from_pem_slice(response.ca_pem.as_bytes()).map_err(|_| PapersError::Parse("CA"))?;
    if Digest::of(&ca) != token.ca_sha256 {
        return Err(PapersError::Ca);
    }
    if response.broker_host.is_empty() || response.broker_host.len() > MAX_HOST_BYTES || response.broker_port == 0 {
        return Err(PapersError::Broker);
    }
    let root = chain(response.roots.iter().cloned(), token.root_sha256).map_err(PapersError::Roots)?;
    let authorities = response.authorities.as_ref().map(|list| Stored::verify(list, &root)).transpose()?;
    let signers = match &authorities {
        // A list that leaves the token's own out would cut the device off from whoever gave it.
        Some(stored) if !stored.names(&token.ca_sha256) => return Err(PapersError::Ca),
        Some(stored) => stored.certificates().unwrap_or_default(),
        None => vec![ca],
    };
    certificate(&signers, &response.certificate_pem, key, &response.device)?;
    Ok(Papers {
        device: response.device,
        certificate_pem: response.certificate_pem,
        ca_pem: response.ca_pem,
        ca_sha256: token.ca_sha256,
        root_sha256: token.root_sha256,
        broker_host: response.broker_host,
        broker_port: response.broker_port,
        api_url: token.url.clone(),
        roots: response.roots,
        authorities,
    })
}

/// Checks that `pem` is a certificate of one of `authorities` for this device and this key. Gives how long it is good.
pub(super) fn certificate(
    authorities: &[CertificateDer<'_>],
    pem: &str,
    key: &KeyPair,
    device: &DeviceId,
) -> Result<Validity, PapersError> {
    // It is stored as it came, so nothing may come along with it.
    if pem.len() > MAX_CERTIFICATE_BYTES || pem.matches("-----BEGIN").count() != 1 {
        return Err(PapersError::Parse("certificate"));
    }
    let ours = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| PapersError::Parse("certificate"))?;
    let (_, parsed) = parse_x509_certificate(&ours).map_err(|_| PapersError::Parse("certificate"))?;
    if !authorities.iter().any(|ca| is_signed_by(&ours, ca)) {
        return Err(PapersError::Certificate("is not signed by its CA"));
    }
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(PapersError::Certificate("is for another key than this device's"));
    }
    let mut names = parsed.subject().iter_common_name();
    let name = names.next().and_then(|n| n.as_str().ok());
    if name != Some(device.as_str()) || names.next().is_some() {
        return Err(PapersError::Certificate("is for another name than the device's"));
    }
    validity(&ours)
        .filter(|validity| validity.not_before_ms < validity.not_after_ms)
        .ok_or(PapersError::Certificate("is good at no time"))
}

/// Whether `certificate` was signed by the authority `ca`.
pub(super) fn is_signed_by(certificate: &CertificateDer<'_>, ca: &CertificateDer<'_>) -> bool {
    let (Ok((_, certificate)), Ok((_, ca))) = (parse_x509_certificate(certificate), parse_x509_certificate(ca)) else {
        return false;
    };
    certificate.verify_signature(Some(ca.public_key())).is_ok()
}

/// From when until when a certificate is good; times before 1970 count as 1970.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Option<Validity> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    let ms = |at: ASN1Time| u64::try_from(at.timestamp()).unwrap_or(0).saturating_mul(1_000);
    Some(Validity { not_before_ms: ms(parsed.validity().not_before), not_after_ms: ms(parsed.validity().not_after) })
}

fn chain(mut roots: impl Iterator<Item = Envelope>, pinned: Digest) -> Result<TrustedRoot, TrustError> {
    let first = roots.next().ok_or(TrustError::RootPin)?;
    let mut trusted = TrustedRoot::first(first, Some(pinned))?;
    for next in roots {
        trusted = trusted.next(next)?;
    }
    Ok(trusted)
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use muster_shared::api::{RenewRequest, RenewResponse};
    use muster_shared::trust::{DocumentKind, Role, RoleKeys, Root, SigningKey, sign_document};
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa};
    use rumqttc::tokio_rustls::TlsAcceptor;
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use zeroize::Zeroizing;

    use super::*;

    pub(in super::super) fn device() -> DeviceId {
        DeviceId::new("press-7").unwrap()
    }

    /// Plays the controller's part in an enrolment.
    pub(in super::super) struct Controller {
        ca: Arc<CertifiedIssuer<'static, KeyPair>>,
        root: Envelope,
    }

    impl Controller {
        pub(in super::super) fn new() -> Self {
            let mut params = CertificateParams::new([]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let signer = SigningKey::from_seed(&Zeroizing::new([1; 32]));
            let (id, public) = (signer.public().id(), signer.public());
            let role = |role| (role, RoleKeys { key_ids: [id].into(), threshold: 1 });
            let root = Root {
                version: 1,
                expires_ms: u64::MAX,
                keys: [(id, public)].into(),
                roles: [role(Role::Root), role(Role::Release), role(Role::Director)].into(),
            };
            Self {
                ca: Arc::new(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()),
                root: sign_document(DocumentKind::Root, &root, [&signer]).unwrap(),
            }
        }

        pub(in super::super) fn token(&self) -> EnrolmentToken {
            EnrolmentToken {
                url: "https://127.0.0.1:1".into(),
                ca_sha256: Digest::of(self.ca.der()),
                root_sha256: Digest::of(&self.root.payload_bytes().unwrap()),
                secret: Some("s".into()),
            }
        }

        pub(in super::super) fn enrol(&self, key: &KeyPair) -> EnrolResponse {
            self.enrol_as(key, device().as_str())
        }

        pub(in super::super) fn ca_pem(&self) -> String {
            self.ca.pem()
        }

        pub(in super::super) fn ca_der(&self) -> Vec<u8> {
            self.ca.der().to_vec()
        }

        /// Answers one request to `path` over TLS with `status` and `body`; gives the URL to ask.
        pub(in super::super) async fn answering(&self, path: &'static str, status: u16, body: Vec<u8>) -> String {
            self.answering_with(path, status, move |_| body).await
        }

        /// Answers one renewal with a certificate of `signing` for the key asked for, and with `list`; gives the URL to ask.
        pub(in super::super) async fn renewing(&self, signing: &Self, list: Option<Envelope>) -> String {
            let issuer = Arc::clone(&signing.ca);
            let answer = move |request: &[u8]| {
                let wish: RenewRequest = serde_json::from_slice(request).unwrap();
                let csr = rcgen::CertificateSigningRequestParams::from_pem(&wish.csr_pem).unwrap();
                let certificate_pem = csr.signed_by(&**issuer).unwrap().pem();
                serde_json::to_vec(&RenewResponse { certificate_pem, authorities: list }).unwrap()
            };
            self.answering_with("/api/v1/renew", 200, answer).await
        }

        async fn answering_with(
            &self,
            path: &'static str,
            status: u16,
            answer: impl FnOnce(&[u8]) -> Vec<u8> + Send + 'static,
        ) -> String {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://{}", listener.local_addr().unwrap());
            let tls = TlsAcceptor::from(self.server());
            tokio::spawn(async move {
                let (socket, _) = listener.accept().await.unwrap();
                // The client hangs up where it does not trust the server.
                let Ok(mut stream) = tls.accept(socket).await else { return };
                let mut request = vec![0; 64 * 1024];
                let mut length = 0;
                while !request[..length].ends_with(b"}") {
                    length += stream.read(&mut request[length..]).await.unwrap();
                }
                assert!(request.starts_with(format!("POST {path} HTTP/1.1").as_bytes()));
                let begin = request.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
                let body = answer(&request[begin..length]);
                let head =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                stream.write_all(&[head.into_bytes(), body].concat()).await.unwrap();
                stream.shutdown().await.unwrap();
            });
            url
        }

        /// A server of this CA on the loopback address, which shows its CA too.
        pub(in super::super) fn server(&self) -> Arc<ServerConfig> {
            let key = KeyPair::generate().unwrap();
            let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &**self.ca).unwrap();
            let chain = vec![leaf.der().clone(), self.ca.der().clone()];
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .map(Arc::new)
                .unwrap()
        }

        fn enrol_as(&self, key: &KeyPair, name: &str) -> EnrolResponse {
            let mut params = CertificateParams::new([]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            EnrolResponse {
                authorities: None,
                device: device(),
                certificate_pem: params.signed_by(key, &**self.ca).unwrap().pem(),
                ca_pem: self.ca.pem(),
                broker_host: "127.0.0.1".into(),
                broker_port: 8883,
                roots: vec![self.root.clone()],
            }
        }
    }

    #[test]
    fn every_paper_must_be_right() {
        let (controller, other) = (Controller::new(), Controller::new());
        let key = KeyPair::generate().unwrap();
        let check_changed = |change: &dyn Fn(&mut EnrolResponse)| {
            let mut response = controller.enrol(&key);
            change(&mut response);
            check(&controller.token(), &key, response)
        };
        assert_eq!(check_changed(&|_| {}).unwrap().device, device());
        let stranger = KeyPair::generate().unwrap();
        type Case<'a> = (&'a dyn Fn(&mut EnrolResponse), PapersError);
        let cases: [Case<'_>; 11] = [
            (&|r| r.ca_pem = other.ca.pem(), PapersError::Ca),
            (&|r| r.ca_pem = "x".into(), PapersError::Parse("CA")),
            (&|r| r.certificate_pem = String::new(), PapersError::Parse("certificate")),
            (
                &|r| r.certificate_pem = other.enrol(&key).certificate_pem,
                PapersError::Certificate("is not signed by its CA"),
            ),
            (
                &|r| r.certificate_pem = controller.enrol(&stranger).certificate_pem,
                PapersError::Certificate("is for another key than this device's"),
            ),
            (
                &|r| r.certificate_pem = controller.enrol_as(&key, "press-8").certificate_pem,
                PapersError::Certificate("is for another name than the device's"),
            ),
            (
                &|r| r.certificate_pem = [&*r.certificate_pem, &*r.certificate_pem].concat(),
                PapersError::Parse("certificate"),
            ),
            (&|r| r.certificate_pem.push_str(&" ".repeat(300_000)), PapersError::Parse("certificate")),
            (&|r| r.broker_port = 0, PapersError::Broker),
            (&|r| r.roots.clear(), PapersError::Roots(TrustError::RootPin)),
            (
                &|r| r.roots.push(controller.root.clone()),
                PapersError::Roots(TrustError::RootVersion { current: 1, found: 1 }),
            ),
        ];
        for (change, expected) in cases {
            assert_eq!(check_changed(change), Err(expected));
        }
    }

    /// Keys and signatures are the same for every case, since making them takes long.
    fn good() -> &'static (EnrolmentToken, KeyPair, EnrolResponse) {
        static GOOD: std::sync::LazyLock<(EnrolmentToken, KeyPair, EnrolResponse)> = std::sync::LazyLock::new(|| {
            let (controller, key) = (Controller::new(), KeyPair::generate().unwrap());
            let response = controller.enrol(&key);
            (controller.token(), key, response)
        });
        &GOOD
    }

    proptest::proptest! {
        #[test]
        fn damaged_papers_are_the_same_papers_or_none(at: proptest::sample::Index, text in ".{0,3}", cut in 0..30usize) {
            let (token, key, response) = good();
            let whole: Vec<char> = serde_json::to_string(response).unwrap().chars().collect();
            let at = at.index(whole.len());
            let mut damaged = whole.clone();
            damaged.splice(at..(at + cut).min(whole.len()), text.chars());
            let damaged: String = damaged.into_iter().collect();
            if let Ok(response) = serde_json::from_str::<EnrolResponse>(&damaged)
                && let Ok(papers) = check(token, key, response)
            {
                // Names of the broker are not signed, as TLS tells the right one from others.
                proptest::prop_assert_eq!(papers.device, device());
                proptest::prop_assert_eq!((papers.ca_sha256, papers.root_sha256), (token.ca_sha256, token.root_sha256));
                proptest::prop_assert!(!papers.broker_host.is_empty() && papers.broker_host.len() <= MAX_HOST_BYTES);
            }
        }

        #[test]
        fn any_papers_are_refused(certificate in ".{0,80}", ca in ".{0,80}", body in "([A-Za-z0-9+/]{4}){0,60}") {
            let pem = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
            let (token, key, response) = good();
            for (certificate_pem, ca_pem) in [
                (certificate.clone(), ca.clone()),
                (certificate, response.ca_pem.clone()),
                (pem.clone(), response.ca_pem.clone()),
                (response.certificate_pem.clone(), pem.clone()),
            ] {
                let response = EnrolResponse { certificate_pem, ca_pem, ..response.clone() };
                proptest::prop_assert!(check(token, key, response).is_err());
            }
        }
    }
}
