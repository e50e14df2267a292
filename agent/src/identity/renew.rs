//! The certificate's successor: fetched in good time, over and over until it is there.
//!
//! When, is `muster_agent_core::renewal`'s decision. A new key is made for every attempt and kept only together with its
//! certificate, so whatever breaks off an attempt leaves the pair before it, which is accepted until the new one is shown.

use std::sync::Arc;
use std::time::Duration;

use muster_agent_core::renewal::{Now, Renewal, Validity};
use muster_shared::api::{Problem, RenewRequest, RenewResponse};
use muster_shared::trust::Envelope;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::sync::{Notify, watch};

use super::authorities::Stored;
use super::enrol::{BodyError, bounded_body, csr, reason};
use super::papers::{self, PapersError};
use super::{Identity, IdentityError, IdentityStore};
use crate::causes::with_source;
use crate::time::{EffectiveTime, Steady, jitter, wall_ms};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the clock is looked at: it may have been set.
const LOOK_MS: u64 = 60_000;
/// Longest reason of a refusal that is repeated, in characters.
const MAX_REASON: usize = 400;

/// Why there is no new certificate. It is tried again, whatever it is: a refusal ends once the device is reinstated.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    /// The device's own files are in the way.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The request could not be made.
    #[error("no request for a certificate could be made: {0}")]
    Request(String),
    /// The controller cannot be reached, or does not take the certificate shown to it.
    #[error("the controller at {url} cannot be reached: {reason}")]
    Away {
        /// Where it should be.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The controller said no.
    #[error("the controller at {url} does not renew this device's certificate ({status}): {detail}")]
    Refused {
        /// Where it is.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Its reason.
        detail: String,
    },
    /// What the controller answered cannot be used.
    #[error("the controller at {url} gave a certificate that cannot be used")]
    Papers {
        /// Where it is.
        url: String,
        /// What is wrong with it.
        #[source]
        source: PapersError,
    },
}

/// Renews the certificate of one device.
pub(crate) struct Renewer {
    pub(crate) identity: Identity,
    pub(crate) store: IdentityStore,
    pub(crate) time: EffectiveTime,
    /// Where the controller's API is.
    pub(crate) api_url: Option<String>,
    /// The controller asks for it.
    pub(crate) asked: Arc<Notify>,
    /// Counted up whenever another certificate is in force.
    pub(crate) renewed: watch::Sender<u64>,
}

impl Renewer {
    /// Renews the certificate again and again. Ends only where that can never be done.
    pub(crate) async fn run(self) {
        let device = &self.identity.device;
        let Some(api_url) = &self.api_url else {
            return tracing::warn!(%device, "the certificate cannot be renewed: this device enrolled before it kept the address for that; set enrolment-token to any token of its controller");
        };
        let clock = Steady::start();
        let now = || Now { wall_ms: wall_ms(), floor_ms: self.time.floor_ms(), steady_ms: clock.now_ms() };
        let validity = match tokio::task::block_in_place(|| self.store.validity()) {
            Ok(validity) => validity,
            Err(error) => {
                return tracing::error!(%device, error = %with_source(&error), "the certificate cannot be renewed");
            }
        };
        let mut renewal = Renewal::found(validity, now(), jitter());
        let mut told = None;
        loop {
            let wait_ms = renewal.wait_ms(now());
            if wait_ms > 0 {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(wait_ms.min(LOOK_MS))) => {}
                    () = self.asked.notified() => renewal.asked(now(), jitter()),
                }
                continue;
            }
            match self.renew(api_url).await {
                Ok(validity) => {
                    told = None;
                    renewal = Renewal::given(validity, now(), jitter());
                    self.renewed.send_modify(|count| *count += 1);
                    tracing::info!(%device, not_after_ms = validity.not_after_ms, "the certificate is renewed");
                }
                Err(error) => {
                    renewal.failed(now(), jitter());
                    let (error, pause_ms) = (with_source(&error), renewal.wait_ms(now()));
                    // Weeks without a network are one thing that happened, not thousands.
                    if told.as_ref() == Some(&error) {
                        tracing::debug!(%device, %error, pause_ms, "the certificate is still not renewed");
                    } else {
                        tracing::warn!(%device, %error, pause_ms, "the certificate is not renewed yet");
                        told = Some(error);
                    }
                }
            }
        }
    }

    /// Checks the list of authorities that came with a certificate.
    fn list(&self, list: &Envelope, unusable: &impl Fn(PapersError) -> RenewError) -> Result<Stored, RenewError> {
        let root = self.store.root(&self.identity)?;
        let list = Stored::verify(list, &root).map_err(unusable)?;
        // One that cannot be read keeps nothing out.
        if let Ok(Some(before)) = self.store.authorities()
            && !list.follows(&before)
        {
            return Err(unusable(PapersError::OldAuthorities));
        }
        Ok(list)
    }

    /// Fetches a certificate for a new key and puts both into force.
    async fn renew(&self, api_url: &str) -> Result<Validity, RenewError> {
        let request = |error: &dyn ToString| RenewError::Request(error.to_string());
        let device = &self.identity.device;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| request(&error))?;
        let wish = RenewRequest { csr_pem: csr(&key, Some(device)).map_err(RenewError::Request)? };
        let (trusted, tls) = tokio::task::block_in_place(|| {
            Ok::<_, IdentityError>((self.store.trusted(&self.identity)?, self.store.tls(&self.identity, &self.time)?))
        })?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(REQUEST_TIMEOUT)
            .build()
            .map_err(|error| RenewError::Request(reason(&error)))?;
        let url = format!("{}/api/v1/renew", api_url.trim_end_matches('/'));
        let away = |reason: String| RenewError::Away { url: url.clone(), reason };
        let answer = client.post(&url).json(&wish).send().await.map_err(|error| away(reason(&error)))?;
        let status = answer.status();
        let body = bounded_body(answer).await.map_err(|error| match error {
            BodyError::Http(error) => away(reason(&error)),
            BodyError::TooLarge => away("its answer is too large".to_owned()),
        })?;
        if !status.is_success() {
            let detail = serde_json::from_slice::<Problem>(&body).map(|problem| problem.detail).unwrap_or_default();
            let detail = detail.chars().take(MAX_REASON).collect();
            return Err(RenewError::Refused { url, status: status.as_u16(), detail });
        }
        let unusable = |source| RenewError::Papers { url: url.clone(), source };
        let RenewResponse { certificate_pem, authorities } =
            serde_json::from_slice(&body).map_err(|_| unusable(PapersError::Parse("answer")))?;
        tokio::task::block_in_place(|| {
            let list = authorities.map(|list| self.list(&list, &unusable)).transpose()?;
            let signers = match &list {
                Some(list) => list.certificates().unwrap_or_default(),
                None => trusted,
            };
            let validity = papers::certificate(&signers, &certificate_pem, &key, device).map_err(unusable)?;
            // First: the other way round, a crash in between would leave a certificate whose signer is not believed.
            if let Some(list) = list {
                self.store.store_authorities(&list)?;
            }
            self.store.exchange(&key, &certificate_pem)?;
            Ok(validity)
        })
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::api::EnrolResponse;
    use muster_shared::trust::{Authorities, DocumentKind, SigningKey, sign_document};
    use rustls::pki_types::CertificateDer;

    use super::super::papers::tests::Controller;
    use super::*;
    use crate::trust_store::TrustStore;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whatever_is_answered_the_pair_in_force_stays_until_there_is_a_right_one() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(folder.path());
        let controller = Controller::new();
        let key = store.key().unwrap();
        let papers = papers::check(&controller.token(), &key, controller.enrol(&key)).unwrap();
        let identity = store.install(&papers, 7).unwrap();
        let (renewed, _) = watch::channel(0);
        let renewer = Renewer {
            identity,
            store: store.clone(),
            time: EffectiveTime::default(),
            api_url: None,
            asked: Arc::default(),
            renewed,
        };

        let stranger = KeyPair::generate().unwrap();
        let certificate =
            |pem: String| serde_json::to_vec(&RenewResponse { certificate_pem: pem, authorities: None }).unwrap();
        let problem = br#"{"type":"t","title":"t","status":403,"detail":"the device is revoked"}"#;
        for (status, body, words) in [
            (403, problem.to_vec(), "(403): the device is revoked"),
            (503, b"rubbish".to_vec(), "(503)"),
            (200, b"rubbish".to_vec(), "cannot be used: its answer does not parse"),
            (200, vec![b' '; 5 << 20], "too large"),
            (200, certificate(String::new()), "its certificate does not parse"),
            (200, certificate(controller.enrol(&stranger).certificate_pem), "is for another key"),
            (200, certificate(Controller::new().enrol(&stranger).certificate_pem), "is not signed by its CA"),
        ] {
            let url = controller.answering("/api/v1/renew", status, body).await;
            let said = with_source(&renewer.renew(&url).await.unwrap_err());
            assert!(said.contains(words) && said.contains(&url), "{said}");
        }
        // Another controller learns nothing but that somebody called.
        let url = Controller::new().answering("/api/v1/renew", 200, Vec::new()).await;
        assert!(matches!(renewer.renew(&url).await, Err(RenewError::Away { .. })));
        assert!(!folder.path().join("identity/renewed.pem").exists());
        store.tls(&renewer.identity, &renewer.time).unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn another_authority_is_believed_when_the_director_names_it_and_not_otherwise() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(folder.path());
        let (controller, next) = (Controller::new(), Controller::new());
        let key = store.key().unwrap();
        let papers = papers::check(&controller.token(), &key, controller.enrol(&key)).unwrap();
        TrustStore::install(folder.path(), &papers.roots, papers.root_sha256).unwrap();
        let identity = store.install(&papers, 7).unwrap();
        let (renewed, _) = watch::channel(0);
        let time = EffectiveTime::default();
        let renewer = Renewer { identity, store: store.clone(), time, api_url: None, asked: Arc::default(), renewed };
        let both = |version| Authorities { version, certificates: vec![controller.ca_pem(), next.ca_pem()] };
        let by =
            |signer: &SigningKey, list: &Authorities| sign_document(DocumentKind::Authorities, list, [signer]).unwrap();
        let (director, thief) = (signer(1), signer(9));
        let none = Authorities { version: 5, certificates: Vec::new() };
        let noise = Authorities { version: 5, certificates: vec!["noise".into()] };
        let cases = [
            (None, "is not signed by its CA"),
            (Some(by(&thief, &both(4))), "list of certificate authorities is not trusted"),
            (Some(by(&director, &none)), "1 to 4 are allowed"),
            (Some(by(&director, &noise)), "list of authorities does not parse"),
        ];
        for (list, words) in cases {
            let said = renewer.answered(&controller, &next, list).await.unwrap_err();
            assert!(said.contains(words), "{said}");
            assert!(!folder.path().join("identity/authorities.json").exists());
        }
        renewer.answered(&controller, &next, Some(by(&director, &both(4)))).await.unwrap();
        assert_eq!(store.trusted(&renewer.identity).unwrap().len(), 2);
        // The next server is of the new authority alone; an older list comes too late.
        let said = renewer.answered(&next, &next, Some(by(&director, &both(3)))).await.unwrap_err();
        assert!(said.contains("older than the one"), "{said}");
        let alone = Authorities { version: 5, certificates: vec![next.ca_pem()] };
        renewer.answered(&next, &next, Some(by(&director, &alone))).await.unwrap();
        assert!(matches!(
            renewer.renew(&controller.answering("/api/v1/renew", 200, Vec::new()).await).await,
            Err(RenewError::Away { .. })
        ));
        // Whatever becomes of the list, the first one, which was retired, is believed no more.
        let believed = |der: &[u8]| store.trusted(&renewer.identity).map(|list| list.iter().any(|ca| **ca == *der));
        let (retired, in_force) = (controller.ca_der(), next.ca_der());
        let [list, copy] =
            ["authorities.json", "authorities.copy.json"].map(|name| folder.path().join("identity").join(name));
        let whole = std::fs::read(&list).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        let damages =
            [None, Some(b"{".to_vec()), Some(Vec::new()), Some(whole[..whole.len() / 2].to_vec()), Some(flipped)];
        let put = |path: &std::path::Path, content: &Option<Vec<u8>>| match content {
            Some(content) => std::fs::write(path, content).unwrap(),
            None => crate::files::remove(path).unwrap(),
        };
        for damage in &damages {
            put(&list, damage);
            put(&copy, &Some(whole.clone()));
            assert_eq!((believed(&in_force).unwrap(), believed(&retired).unwrap()), (true, false));
            // It keeps older ones out, and a new one mends both.
            let said = renewer.answered(&next, &next, Some(by(&director, &both(4)))).await.unwrap_err();
            assert!(said.contains("older than the one"), "{said}");
            renewer.answered(&next, &next, Some(by(&director, &alone))).await.unwrap();
            assert!([&list, &copy].iter().all(|path| std::fs::read(path).unwrap() == whole));
            for second in &damages {
                put(&list, damage);
                put(&copy, second);
                let said = store.tls(&renewer.identity, &renewer.time).unwrap_err().to_string();
                assert!(said.contains("authorities.json") && said.contains("enrol again"), "{said}");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_lost_list_leaves_the_first_authority_to_a_device_whose_certificate_it_signed() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(folder.path());
        let (controller, next) = (Controller::new(), Controller::new());
        let key = store.key().unwrap();
        let both = Authorities { version: 4, certificates: vec![controller.ca_pem(), next.ca_pem()] };
        let list = sign_document(DocumentKind::Authorities, &both, [&signer(1)]).unwrap();
        let response = EnrolResponse { authorities: Some(list), ..controller.enrol(&key) };
        let papers = papers::check(&controller.token(), &key, response).unwrap();
        let identity = store.install(&papers, 7).unwrap();
        assert_eq!(store.trusted(&identity).unwrap().len(), 2);
        for name in ["authorities.json", "authorities.copy.json"] {
            std::fs::write(folder.path().join("identity").join(name), "{").unwrap();
        }
        assert_eq!(store.trusted(&identity).unwrap(), [CertificateDer::from(controller.ca_der())]);
        store.tls(&identity, &EffectiveTime::default()).unwrap();
        // Enrolled where there is no list, none is left from before.
        let papers = papers::check(&controller.token(), &key, controller.enrol(&key)).unwrap();
        store.install(&papers, 8).unwrap();
        assert!(store.authorities().unwrap().is_none());
    }

    fn signer(seed: u8) -> SigningKey {
        SigningKey::from_seed(&zeroize::Zeroizing::new([seed; 32]))
    }

    impl Renewer {
        /// Asks a server of `shown`, which answers with a certificate of `signing` for whatever key was asked for, and with `list`.
        async fn answered(
            &self,
            shown: &Controller,
            signing: &Controller,
            list: Option<Envelope>,
        ) -> Result<(), String> {
            let url = shown.renewing(signing, list).await;
            self.renew(&url).await.map(drop).map_err(|error| with_source(&error))
        }
    }
}
