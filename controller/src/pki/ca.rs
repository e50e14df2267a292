//! A certificate authority: one key and one self-signed certificate. The first is made at the first start; which follow, and how long they
//! overlap, is decided in [`super::authorities`].

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

/// An authority.
pub(super) struct Authority {
    generation: u64,
    /// Its certificate as the one before it signed it; none for the first.
    cross_pem: Option<String>,
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

/// The files of an authority.
pub(super) struct Files {
    /// Its certificate: it is in force once this is there.
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    /// See [`Authority::cross_pem`].
    pub(super) cross: PathBuf,
}

impl Files {
    pub(super) fn of(folder: &Path, generation: u64) -> Self {
        let stem = if generation == 1 { "ca".to_owned() } else { format!("ca-{generation}") };
        let file = |ending: &str| folder.join(format!("{stem}{ending}"));
        Self { certificate: file(".pem"), key: file(".key"), cross: file("-cross.pem") }
    }
}

impl Authority {
    /// Opens the authority `generation` in `folder`; the first is made where there is none.
    ///
    /// # Errors
    /// [`PkiError`]; files that are there are never replaced.
    pub(super) fn open(folder: &Path, generation: u64, now_ms: u64) -> Result<Self, PkiError> {
        let Files { certificate: file, key: key_file, cross } = Files::of(folder, generation);
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
                let pem = params(1, now_ms)?.self_signed(&key).map_err(|error| not_made(&error))?.pem();
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
        let cross_pem = durable::read(&cross)?.and_then(|text| String::from_utf8(text).ok());
        Ok(Self { generation, cross_pem, issuer, certificate, pem, file })
    }

    /// Makes the authority after this one: its certificate, and the same signed by this one, so that those who know only this one
    /// accept what it signs. It is in force once this returns.
    ///
    /// # Errors
    /// [`PkiError`].
    pub(super) fn successor(&self, folder: &Path, now_ms: u64) -> Result<Self, PkiError> {
        let generation = self.generation.saturating_add(1);
        let files = Files::of(folder, generation);
        let key = make_key(&files.key, SUBJECT)?;
        let mut params = params(generation, now_ms)?;
        let pem = params.self_signed(&key).map_err(|error| not_made(&error))?.pem();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&random_serial(SUBJECT)?));
        let cross = params.signed_by(&key, &self.issuer).map_err(|error| not_made(&error))?.pem();
        durable::write(&files.cross, cross.as_bytes(), Access::Public)?;
        durable::write(&files.certificate, pem.as_bytes(), Access::Public)?;
        Self::open(folder, generation, now_ms)
    }

    /// 1 for the first, one more for each that followed.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Its certificate as the one before it signed it.
    pub(super) fn cross_pem(&self) -> Option<&str> {
        self.cross_pem.as_deref()
    }

    /// Whether it signed `certificate`.
    pub(super) fn has_signed(&self, certificate: &X509Certificate<'_>) -> bool {
        X509Certificate::from_der(&self.certificate)
            .is_ok_and(|(_, own)| certificate.verify_signature(Some(own.public_key())).is_ok())
    }

    /// When its certificate ends, in milliseconds since the Unix epoch.
    pub(super) fn expires_ms(&self) -> u64 {
        X509Certificate::from_der(&self.certificate)
            .ok()
            .and_then(|(_, parsed)| u64::try_from(parsed.validity().not_after.timestamp()).ok())
            .map_or(0, |seconds| seconds.saturating_mul(1_000))
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

fn not_made(error: &rcgen::Error) -> PkiError {
    PkiError::Make { subject: SUBJECT.into(), reason: error.to_string() }
}

fn params(generation: u64, now_ms: u64) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let subject = if generation == 1 { SUBJECT.to_owned() } else { format!("{SUBJECT} {generation}") };
    params.distinguished_name.push(DnType::CommonName, subject);
    // Its successor is the one below it, for those who know only it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(&random_serial(SUBJECT)?));
    params.not_before = date(now_ms.saturating_sub(BACKDATED_MS));
    params.not_after = date(now_ms.saturating_add(VALID_FOR_MS));
    Ok(params)
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
        let first = Authority::open(folder.path(), 1, NOW_MS).unwrap();
        let again = Authority::open(folder.path(), 1, NOW_MS + DAY_MS).unwrap();
        assert_eq!(first.sha256(), again.sha256());
        let mode = fs::metadata(folder.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_certificate_that_may_sign_nothing_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::open(folder.path(), 1, NOW_MS).unwrap();
        let key = read_key(&folder.path().join("ca.key"), &fs::read(folder.path().join("ca.key")).unwrap()).unwrap();
        let plain = CertificateParams::default().self_signed(&key).unwrap().pem();
        assert_ne!(plain, first.pem());
        fs::write(folder.path().join("ca.pem"), &plain).unwrap();
        let said = Authority::open(folder.path(), 1, NOW_MS).err().unwrap().to_string();
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
            Authority::open(folder.path(), 1, NOW_MS).unwrap();
            for file in ["ca.pem", "ca.key"] {
                let right = fs::read(folder.path().join(file)).unwrap();
                fs::write(folder.path().join(file), &text).unwrap();
                let said = Authority::open(folder.path(), 1, NOW_MS).err().unwrap().to_string();
                prop_assert!(said.contains(file), "{}", said);
                prop_assert_eq!(&fs::read(folder.path().join(file)).unwrap(), &text);
                fs::write(folder.path().join(file), right).unwrap();
            }
        }
    }

    #[test]
    fn a_first_start_cut_short_is_finished_with_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        Authority::open(folder.path(), 1, NOW_MS).unwrap();
        let key = fs::read(folder.path().join("ca.key")).unwrap();
        fs::remove_file(folder.path().join("ca.pem")).unwrap();
        Authority::open(folder.path(), 1, NOW_MS).unwrap();
        assert_eq!(fs::read(folder.path().join("ca.key")).unwrap(), key);
    }

    #[test]
    fn what_is_damaged_is_named_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (ca, key) = (folder.path().join("ca.pem"), folder.path().join("ca.key"));
        Authority::open(folder.path(), 1, NOW_MS).unwrap();
        let (good_ca, good_key) = (fs::read(&ca).unwrap(), fs::read(&key).unwrap());

        fs::remove_file(&key).unwrap();
        assert!(matches!(Authority::open(folder.path(), 1, NOW_MS), Err(PkiError::KeyMissing { .. })));
        make_key(&key, "another").unwrap();
        assert!(matches!(Authority::open(folder.path(), 1, NOW_MS), Err(PkiError::KeyMismatch { .. })));
        for bad in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "\u{ff}"] {
            fs::write(&key, bad).unwrap();
            let error = Authority::open(folder.path(), 1, NOW_MS).err().unwrap();
            assert!(matches!(&error, PkiError::Damaged { path, .. } if *path == key), "{error}");
        }
        fs::write(&key, good_key).unwrap();
        for bad in ["", "noise", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            fs::write(&ca, bad).unwrap();
            let error = Authority::open(folder.path(), 1, NOW_MS).err().unwrap();
            assert!(matches!(&error, PkiError::Damaged { path, .. } if *path == ca), "{error}");
            assert_eq!(fs::read_to_string(&ca).unwrap(), bad);
        }
        fs::write(&ca, good_ca).unwrap();
        Authority::open(folder.path(), 1, NOW_MS).unwrap();
    }
}
