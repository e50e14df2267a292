//! The certificate authority: one key and one self-signed certificate, made at the first start.

use std::path::{Path, PathBuf};

use muster_shared::ids::Digest;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::{BACKDATED_MS, DAY_MS, PkiError, date, random_serial};
use crate::durable::{self, Access};

const SUBJECT: &str = "Muster CA";
const VALID_FOR_MS: u64 = 20 * 365 * DAY_MS;

/// The authority.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    file: PathBuf,
}

/// Reads a P-256 key in PEM.
pub(super) fn read_key(path: &Path, text: &[u8]) -> Result<KeyPair, PkiError> {
    let damaged = |reason: &str| PkiError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
    let text = std::str::from_utf8(text).map_err(|_| damaged("it is not text"))?;
    // The library's reason could repeat parts of the key.
    KeyPair::from_pem_and_sign_algo(text, &PKCS_ECDSA_P256_SHA256).map_err(|_| damaged("it is not a P-256 key in PEM"))
}

/// Makes a P-256 key and stores it for the owner alone.
pub(super) fn make_key(path: &Path, subject: &str) -> Result<KeyPair, PkiError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|error| PkiError::Make { subject: subject.to_owned(), reason: error.to_string() })?;
    let text = Zeroizing::new(key.serialize_pem());
    durable::write(path, text.as_bytes(), Access::Secret)?;
    Ok(key)
}

impl Authority {
    pub(super) fn open(folder: &Path, now_ms: u64) -> Result<Self, PkiError> {
        let (file, key_file) = (folder.join("ca.pem"), folder.join("ca.key"));
        let stored_key = durable::read(&key_file)?.map(Zeroizing::new);
        let stored = durable::read(&file)?;
        let key = match (&stored_key, &stored) {
            (Some(text), _) => read_key(&key_file, text)?,
            (None, Some(_)) => return Err(PkiError::KeyMissing { ca: file, key: key_file }),
            (None, None) => make_key(&key_file, SUBJECT)?,
        };
        let damaged = |reason: String| PkiError::Damaged { path: file.clone(), reason };
        let pem = match stored {
            Some(text) => String::from_utf8(text).map_err(|_| damaged("it is not text".into()))?,
            // At the first start, or when that one was cut short after the key.
            None => {
                let pem = self_signed(&key, now_ms)?;
                durable::write(&file, pem.as_bytes(), Access::Public)?;
                pem
            }
        };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(error.to_string()))?;
        {
            let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|error| damaged(error.to_string()))?;
            if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
                return Err(PkiError::KeyMismatch { ca: file, key: key_file });
            }
            if !parsed.is_ca() {
                return Err(damaged("it is not the certificate of an authority".into()));
            }
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| damaged(error.to_string()))?;
        Ok(Self { issuer, certificate, pem, file })
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    pub(super) fn der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) fn sha256(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }
}

fn self_signed(key: &KeyPair, now_ms: u64) -> Result<String, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, SUBJECT);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(&random_serial(SUBJECT)?));
    params.not_before = date(now_ms.saturating_sub(BACKDATED_MS));
    params.not_after = date(now_ms.saturating_add(VALID_FOR_MS));
    params
        .self_signed(key)
        .map(|certificate| certificate.pem())
        .map_err(|error| PkiError::Make { subject: SUBJECT.into(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    const NOW_MS: u64 = 1_790_000_000_000;

    #[test]
    fn the_authority_is_made_once_and_its_key_is_the_owners() {
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::open(folder.path(), NOW_MS).unwrap();
        let again = Authority::open(folder.path(), NOW_MS + DAY_MS).unwrap();
        assert_eq!(first.sha256(), again.sha256());
        let mode = fs::metadata(folder.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_certificate_that_may_sign_nothing_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::open(folder.path(), NOW_MS).unwrap();
        let key = read_key(&folder.path().join("ca.key"), &fs::read(folder.path().join("ca.key")).unwrap()).unwrap();
        let plain = CertificateParams::default().self_signed(&key).unwrap().pem();
        assert_ne!(plain, first.pem());
        fs::write(folder.path().join("ca.pem"), &plain).unwrap();
        let said = Authority::open(folder.path(), NOW_MS).err().unwrap().to_string();
        assert!(said.contains("ca.pem") && said.contains("not the certificate of an authority"), "{said}");
        assert_eq!(fs::read_to_string(folder.path().join("ca.pem")).unwrap(), plain);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_as_a_key_or_certificate(bytes in prop::collection::vec(any::<u8>(), 0..200), pem in any::<bool>()) {
            let text = if pem {
                let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &bytes);
                format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n").into_bytes()
            } else {
                bytes
            };
            let folder = tempfile::tempdir().unwrap();
            Authority::open(folder.path(), NOW_MS).unwrap();
            for file in ["ca.pem", "ca.key"] {
                let right = fs::read(folder.path().join(file)).unwrap();
                fs::write(folder.path().join(file), &text).unwrap();
                let said = Authority::open(folder.path(), NOW_MS).err().unwrap().to_string();
                prop_assert!(said.contains(file), "{}", said);
                prop_assert_eq!(&fs::read(folder.path().join(file)).unwrap(), &text);
                fs::write(folder.path().join(file), right).unwrap();
            }
        }
    }

    #[test]
    fn a_first_start_cut_short_is_finished_with_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        Authority::open(folder.path(), NOW_MS).unwrap();
        let key = fs::read(folder.path().join("ca.key")).unwrap();
        fs::remove_file(folder.path().join("ca.pem")).unwrap();
        Authority::open(folder.path(), NOW_MS).unwrap();
        assert_eq!(fs::read(folder.path().join("ca.key")).unwrap(), key);
    }

    #[test]
    fn what_is_damaged_is_named_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (ca, key) = (folder.path().join("ca.pem"), folder.path().join("ca.key"));
        Authority::open(folder.path(), NOW_MS).unwrap();
        let (good_ca, good_key) = (fs::read(&ca).unwrap(), fs::read(&key).unwrap());

        fs::remove_file(&key).unwrap();
        assert!(matches!(Authority::open(folder.path(), NOW_MS), Err(PkiError::KeyMissing { .. })));
        make_key(&key, "another").unwrap();
        assert!(matches!(Authority::open(folder.path(), NOW_MS), Err(PkiError::KeyMismatch { .. })));
        for bad in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "\u{ff}"] {
            fs::write(&key, bad).unwrap();
            let error = Authority::open(folder.path(), NOW_MS).err().unwrap();
            assert!(matches!(&error, PkiError::Damaged { path, .. } if *path == key), "{error}");
        }
        fs::write(&key, good_key).unwrap();
        for bad in ["", "noise", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            fs::write(&ca, bad).unwrap();
            let error = Authority::open(folder.path(), NOW_MS).err().unwrap();
            assert!(matches!(&error, PkiError::Damaged { path, .. } if *path == ca), "{error}");
            assert_eq!(fs::read_to_string(&ca).unwrap(), bad);
        }
        fs::write(&ca, good_ca).unwrap();
        Authority::open(folder.path(), NOW_MS).unwrap();
    }
}
