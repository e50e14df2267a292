//! Who this device is: its key, its certificate, its CA, and where its broker is.
//!
//! `identity/identity.json` is written last, so that it stands for the whole: without it the device is not enrolled,
//! whatever else lies there. The key never leaves the folder.
//!
//! A certificate that has been renewed lies in `renewed.pem` together with its key, so that one rename exchanges both: at any
//! moment the device has a key and the certificate for it. Until then they are `device.pem` and `device.key`.

mod authorities;
mod enrol;
mod papers;
mod pin;
mod provisioned;
mod renew;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_agent_core::renewal::Validity;
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::trust::TrustedRoot;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use self::authorities::Stored;
pub(crate) use self::enrol::{EnrolError, Enrolled, bounded_body, enrol, reason};
use self::papers::Papers;
pub(crate) use self::renew::Renewer;
use crate::causes::with_source;
use crate::files::{self, FileError};
use crate::time::EffectiveTime;
use crate::trust_store::{self, TrustStoreError};

const MAX_FILE_BYTES: u64 = 256 * 1024;
/// The authorities since the first was replaced.
const AUTHORITIES: &str = "authorities.json";
/// The same, for when that one is damaged.
const AUTHORITIES_COPY: &str = "authorities.copy.json";
/// Key and certificate since the first renewal.
const RENEWED: &str = "renewed.pem";

/// Who this device is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Identity {
    /// Its name.
    pub(crate) device: DeviceId,
    /// Host of the MQTT broker.
    pub(crate) broker_host: String,
    /// Port of the MQTT broker.
    pub(crate) broker_port: u16,
    /// SHA-256 of the CA's certificate.
    pub(crate) ca_sha256: Digest,
    /// SHA-256 of the payload of the root document trust starts from.
    pub(crate) root_sha256: Digest,
    /// When it enrolled, in milliseconds since the Unix epoch.
    pub(crate) enrolled_at_ms: u64,
    /// Base URL of the controller's API, which renews the certificate; devices that enrolled before there was that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) api_url: Option<String>,
}

/// A certificate with what lies beside it in its file, and its key.
struct Pair {
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// The file with the certificate, and that with the key.
    files: (&'static str, &'static str),
}

/// Why the identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// A file cannot be read or written.
    #[error("the device's identity cannot be used")]
    File(#[from] FileError),
    /// A file is missing or not what it should be.
    #[error("{path} {problem}: restore it, or remove {} to enrol again", folder(path))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The root documents cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustStoreError),
    /// No key could be made.
    #[error("no key could be made for the device: {0}")]
    Key(String),
    /// The certificate, key and CA do not make a connection.
    #[error("the device's certificate cannot be used for connections: {0}")]
    Tls(String),
}

fn folder(path: &Path) -> String {
    path.parent().map(|p| p.display().to_string()).unwrap_or_default()
}

/// The folder that holds the identity.
#[derive(Debug, Clone)]
pub(crate) struct IdentityStore {
    data_dir: PathBuf,
    dir: PathBuf,
}

impl IdentityStore {
    /// The identity below `data_dir`.
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned(), dir: data_dir.join("identity") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn read(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
        let path = self.path(name);
        match files::read_start(&path, MAX_FILE_BYTES)? {
            Some(bytes) => Ok(Zeroizing::new(bytes)),
            None => Err(IdentityError::Damaged { path, problem: "is missing".to_owned() }),
        }
    }

    /// Who this device is; `None` before it is enrolled.
    pub(crate) fn load(&self) -> Result<Option<Identity>, IdentityError> {
        let path = self.path("identity.json");
        let Some(bytes) = files::read_start(&path, MAX_FILE_BYTES)? else { return Ok(None) };
        let identity = serde_json::from_slice(&bytes)
            .map_err(|error| IdentityError::Damaged { path, problem: format!("is damaged ({error})") })?;
        Ok(Some(identity))
    }

    /// The device's key, made and stored where there is none yet: an enrolment that was broken off goes on with the same.
    fn key(&self) -> Result<KeyPair, IdentityError> {
        files::make_folder(&self.dir)?;
        let renewed = self.path(RENEWED);
        let path = if renewed.exists() { renewed } else { self.path("device.key") };
        if let Some(bytes) = files::read_start(&path, MAX_FILE_BYTES)? {
            let pem = Zeroizing::new(bytes);
            return std::str::from_utf8(&pem)
                .ok()
                .and_then(|pem| KeyPair::from_pem(pem).ok())
                .ok_or_else(|| IdentityError::Damaged { path, problem: "is not a private key".to_owned() });
        }
        let key =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| IdentityError::Key(error.to_string()))?;
        files::write_durably(&path, Zeroizing::new(key.serialize_pem()).as_bytes())?;
        Ok(key)
    }

    /// Keeps the papers an enrolment brought; the device is enrolled once this returns.
    fn install(&self, papers: &Papers, enrolled_at_ms: u64) -> Result<Identity, IdentityError> {
        let identity = Identity {
            device: papers.device.clone(),
            broker_host: papers.broker_host.clone(),
            broker_port: papers.broker_port,
            ca_sha256: papers.ca_sha256,
            root_sha256: papers.root_sha256,
            enrolled_at_ms,
            api_url: Some(papers.api_url.clone()),
        };
        files::write_durably(&self.path("ca.pem"), papers.ca_pem.as_bytes())?;
        match &papers.authorities {
            Some(authorities) => self.store_authorities(authorities)?,
            None => [AUTHORITIES, AUTHORITIES_COPY].iter().try_for_each(|name| files::remove(&self.path(name)))?,
        }
        if self.path(RENEWED).exists() {
            self.exchange(&self.key()?, &papers.certificate_pem)?;
        } else {
            files::write_durably(&self.path("device.pem"), papers.certificate_pem.as_bytes())?;
        }
        let json = serde_json::to_vec_pretty(&identity).map_err(|error| IdentityError::Key(error.to_string()))?;
        files::write_durably(&self.path("identity.json"), &json)?;
        Ok(identity)
    }

    /// Puts a new key and its certificate into force, both or neither.
    fn exchange(&self, key: &KeyPair, certificate_pem: &str) -> Result<(), IdentityError> {
        let both = Zeroizing::new(format!("{}\n{certificate_pem}", *Zeroizing::new(key.serialize_pem())));
        files::write_durably(&self.path(RENEWED), both.as_bytes())?;
        // Nobody asks for the first ones any more.
        for name in ["device.pem", "device.key"] {
            if let Err(error) = files::remove(&self.path(name)) {
                tracing::warn!(error = %with_source(&error), "a superseded file of the identity stays");
            }
        }
        Ok(())
    }

    fn damaged(&self, name: &str, problem: &str) -> IdentityError {
        IdentityError::Damaged { path: self.path(name), problem: problem.to_owned() }
    }

    fn pair(&self) -> Result<Pair, IdentityError> {
        let files @ (file, key_file) =
            if self.path(RENEWED).exists() { (RENEWED, RENEWED) } else { ("device.pem", "device.key") };
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&self.read(file)?)
            .collect::<Result<_, _>>()
            .map_err(|_| self.damaged(file, "is not a certificate"))?;
        if certificates.is_empty() {
            return Err(self.damaged(file, "is not a certificate"));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.read(key_file)?)
            .map_err(|_| self.damaged(key_file, "is not a private key"))?;
        Ok(Pair { certificates, key, files })
    }

    /// The CA this device enrolled with.
    fn ca(&self, identity: &Identity) -> Result<CertificateDer<'static>, IdentityError> {
        let ca = CertificateDer::from_pem_slice(&self.read("ca.pem")?)
            .map_err(|_| self.damaged("ca.pem", "is not a certificate"))?;
        if Digest::of(&ca) != identity.ca_sha256 {
            return Err(self.damaged("ca.pem", "is not the CA this device enrolled with"));
        }
        Ok(ca)
    }

    fn list(&self, name: &str) -> Result<Option<Stored>, IdentityError> {
        let Some(bytes) = files::read_start(&self.path(name), MAX_FILE_BYTES)? else { return Ok(None) };
        Stored::from_file(&bytes).map(Some).map_err(|problem| self.damaged(name, &problem))
    }

    /// The list in force, where the authority of the enrolment was replaced.
    fn authorities(&self) -> Result<Option<Stored>, IdentityError> {
        let newest = match self.list(AUTHORITIES) {
            Ok(Some(stored)) => return Ok(Some(stored)),
            newest => newest,
        };
        let Ok(Some(copy)) = self.list(AUTHORITIES_COPY) else { return newest };
        let problem = newest.err().map_or_else(|| "it is missing".to_owned(), |error| with_source(&error));
        tracing::error!(path = %self.path(AUTHORITIES).display(), problem, "the list of authorities cannot be used; its copy is");
        Ok(Some(copy))
    }

    fn store_authorities(&self, authorities: &Stored) -> Result<(), IdentityError> {
        let bytes = authorities.to_file().map_err(|error| IdentityError::Key(error.to_string()))?;
        // One after the other, so that whatever breaks this off spoils one of them.
        for name in [AUTHORITIES_COPY, AUTHORITIES] {
            files::write_durably(&self.path(name), &bytes)?;
        }
        Ok(())
    }

    /// The root documents in force, as they are stored.
    fn root(&self, identity: &Identity) -> Result<TrustedRoot, IdentityError> {
        Ok(trust_store::stored_root(&self.data_dir, identity.root_sha256)?)
    }

    /// Those whose certificates this device takes its controller's from.
    fn trusted(&self, identity: &Identity) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let damage = match self.authorities() {
            Ok(Some(stored)) => return Ok(stored.certificates().unwrap_or_default()),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        let (ca, Pair { certificates, files: (file, _), .. }) = (self.ca(identity)?, self.pair()?);
        if !certificates.first().is_some_and(|own| papers::is_signed_by(own, &ca)) {
            // Then the authority of the enrolment was replaced, and whoever has its key by now is not to be believed.
            let problem = format!("is missing, and the certificate in {file} is not signed by the CA in ca.pem");
            return Err(damage.unwrap_or_else(|| self.damaged(AUTHORITIES, &problem)));
        }
        if let Some(error) = damage {
            // It signed what this device shows, so it is in force as far as that is; with the next certificate the list comes again.
            tracing::error!(error = %with_source(&error), "the list of authorities cannot be used; only the first one is believed");
        }
        Ok(vec![ca])
    }

    /// From when until when the certificate in force is good.
    pub(crate) fn validity(&self) -> Result<Validity, IdentityError> {
        let Pair { certificates, files: (file, _), .. } = self.pair()?;
        certificates
            .first()
            .and_then(|certificate| papers::validity(certificate))
            .ok_or_else(|| self.damaged(file, "is not a certificate"))
    }

    /// How the device connects to its controller: as itself, and to nobody but a server of its CA.
    pub(crate) fn tls(&self, identity: &Identity, time: &EffectiveTime) -> Result<Arc<ClientConfig>, IdentityError> {
        let trusted = self.trusted(identity)?;
        let Pair { certificates, key, files: (file, key_file) } = self.pair()?;
        // A board without a clock knows that much: the controller's own certificate is usually older than this one.
        if let Some(validity) = certificates.first().and_then(|certificate| papers::validity(certificate)) {
            time.set_own(validity);
        }
        let tls = |error: &dyn std::fmt::Display| IdentityError::Tls(error.to_string());
        let mut roots = RootCertStore::empty();
        for ca in trusted {
            roots.add(ca).map_err(|e| self.damaged("ca.pem", &format!("is not a CA's certificate ({e})")))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|e| tls(&e))?;
        ClientConfig::builder_with_details(provider, Arc::new(time.clone()))
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(certificates, key)
            .map(Arc::new)
            .map_err(|e| {
                self.damaged(file, &format!("does not make a certificate with its key, the one in {key_file} ({e})"))
            })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::papers::tests::{Controller, device};
    use super::*;

    #[test]
    fn the_key_is_private_and_stays_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(folder.path());
        let first = store.key().unwrap();
        assert_eq!(store.key().unwrap().serialize_der(), first.serialize_der());
        let path = folder.path().join("identity/device.key");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        for rubbish in [&b"rubbish"[..], b"", &[0xff; 10], &[b'-'; 300_000]] {
            std::fs::write(&path, rubbish).unwrap();
            let text = store.key().unwrap_err().to_string();
            assert!(text.contains("device.key") && text.contains("enrol again"), "{text}");
        }
    }

    /// A device that is enrolled, in a folder of its own.
    fn enrolled() -> (tempfile::TempDir, IdentityStore, Identity) {
        let folder = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(folder.path());
        assert_eq!(store.load().unwrap(), None);
        let controller = Controller::new();
        let key = store.key().unwrap();
        let papers = papers::check(&controller.token(), &key, controller.enrol(&key)).unwrap();
        let identity = store.install(&papers, 7).unwrap();
        (folder, store, identity)
    }

    #[test]
    fn an_enrolled_device_can_connect_and_a_damaged_one_says_which_file() {
        let (folder, store, identity) = enrolled();
        assert_eq!(store.load().unwrap(), Some(identity.clone()));
        assert_eq!(identity.device, device());
        let time = EffectiveTime::default();
        store.tls(&identity, &time).unwrap();
        let begins_ms = store.validity().unwrap().not_before_ms;
        assert_eq!((time.floor_ms(), begins_ms > 0), (begins_ms, true), "a clock that was never set is behind that");
        let (stranger, _, _) = enrolled();
        for name in ["ca.pem", "device.pem", "device.key"] {
            let path = folder.path().join("identity").join(name);
            let good = std::fs::read(&path).unwrap();
            let not_der = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec();
            let not_base64 = b"-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n".to_vec();
            let another = std::fs::read(stranger.path().join("identity").join(name)).unwrap();
            for content in [not_der, not_base64, Vec::new(), vec![0xff; 50], vec![b'x'; 300_000], another] {
                std::fs::write(&path, content).unwrap();
                let text = store.tls(&identity, &time).unwrap_err().to_string();
                assert!(text.contains(name) && text.contains("enrol again"), "{name}: {text}");
            }
            std::fs::remove_file(&path).unwrap();
            let text = store.tls(&identity, &time).unwrap_err().to_string();
            assert!(text.contains(name) && text.contains("is missing"), "{text}");
            std::fs::write(&path, good).unwrap();
        }
        for rubbish in [&b"{"[..], b"", &[0; 300_000]] {
            std::fs::write(folder.path().join("identity/identity.json"), rubbish).unwrap();
            let text = store.load().unwrap_err().to_string();
            assert!(text.contains("identity.json") && text.contains("enrol again"), "{text}");
        }
    }

    #[test]
    fn a_renewed_pair_is_in_force_as_a_whole_whatever_breaks_it_off() {
        let (folder, store, _) = enrolled();
        let path = |name: &str| folder.path().join("identity").join(name);
        let controller = Controller::new();
        let key = store.key().unwrap();
        let papers = papers::check(&controller.token(), &key, controller.enrol(&key)).unwrap();
        let identity = store.install(&papers, 7).unwrap();
        let time = EffectiveTime::default();
        let first = (std::fs::read(path("device.pem")).unwrap(), std::fs::read(path("device.key")).unwrap());
        let shown = |store: &IdentityStore| store.pair().unwrap().certificates[0].clone();
        let before = shown(&store);
        // Killed while it was writing: the one before counts.
        files::write_durably(&path("renewed.pem.new"), b"-----BEGIN PRIV").unwrap();
        store.tls(&identity, &time).unwrap();
        assert_eq!(shown(&store), before);

        let next = KeyPair::generate().unwrap();
        store.exchange(&next, &controller.enrol(&next).certificate_pem).unwrap();
        store.tls(&identity, &time).unwrap();
        assert_ne!(shown(&store), before);
        assert_eq!(std::fs::metadata(path(RENEWED)).unwrap().mode() & 0o777, 0o600);
        assert!(!path("device.pem").exists() && !path("device.key").exists());
        // Killed before the first ones were removed: the new one counts.
        std::fs::write(path("device.pem"), first.0).unwrap();
        std::fs::write(path("device.key"), first.1).unwrap();
        store.tls(&identity, &time).unwrap();
        assert_ne!(shown(&store), before);

        // Enrolled again for want of identity.json, with the same key.
        std::fs::remove_file(path("identity.json")).unwrap();
        assert_eq!(store.key().unwrap().serialize_der(), next.serialize_der());
        let papers = papers::check(&controller.token(), &next, controller.enrol(&next)).unwrap();
        let identity = store.install(&papers, 8).unwrap();
        store.tls(&identity, &time).unwrap();
        assert_eq!(store.load().unwrap(), Some(identity.clone()));

        let good = std::fs::read(path(RENEWED)).unwrap();
        let another = KeyPair::generate().unwrap().serialize_pem();
        let mixed = [another.as_bytes(), &papers.certificate_pem.clone().into_bytes()].concat();
        for content in [&b""[..], b"rubbish", &good[..good.len() / 2], &[0xff; 300_000], &mixed] {
            std::fs::write(path(RENEWED), content).unwrap();
            let text = store.tls(&identity, &time).unwrap_err().to_string();
            assert!(text.contains(RENEWED) && text.contains("enrol again"), "{text}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_the_files_say_the_identity_is_whole_or_a_file_is_named(
            which in 0..4usize,
            at: proptest::sample::Index,
            byte: u8,
            rubbish: Option<Vec<u8>>,
        ) {
            let (folder, store, identity) = enrolled();
            let name = ["identity.json", "ca.pem", "device.pem", "device.key"][which];
            let path = folder.path().join("identity").join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            std::fs::write(&path, rubbish.unwrap_or(bytes)).unwrap();
            let used = store.load().and_then(|identity| match identity {
                Some(identity) => store.tls(&identity, &EffectiveTime::default()).map(drop),
                None => Ok(()),
            });
            let made = store.key().map(drop);
            for error in [used, made].into_iter().filter_map(Result::err) {
                proptest::prop_assert!(error.to_string().contains("identity/"), "{}", error);
            }
            let _ = store.tls(&identity, &EffectiveTime::default());
        }
    }
}
