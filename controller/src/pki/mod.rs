//! The controller's own certificate authority, and every certificate it gives out.
//!
//! `ca` keeps an authority, `authorities` those in force, `server` the certificate of this controller, `device` those of devices, `crl` says
//! which of those are accepted no more. All keys
//! are P-256. Who may have a certificate is decided by those who call.

mod authorities;
mod ca;
mod crl;
mod device;
mod outside;
mod server;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use axum_server::tls_rustls::RustlsConfig;
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::trust;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::X509Certificate;

pub(crate) use authorities::AuthoritiesVersion;
pub(crate) use crl::RevokedCertificate;
pub(crate) use device::{DeviceCertificate, DeviceKey};
pub(crate) use outside::{OutsideError, Provisioned};
pub(crate) use server::ServerNames;

use crate::broker::TlsFiles;
use crate::config::OutsideConfig;
use crate::durable::{self, Access, FileError};

/// Clocks of fresh devices may be behind: certificates are good from this long before now, in milliseconds.
const BACKDATED_MS: u64 = 3_600_000;
pub(crate) const DAY_MS: u64 = 24 * 3_600_000;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PkiError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not what it should be.
    #[error("{path} is damaged ({reason}): restore it from a backup")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The authority's certificate is there without its key.
    #[error("{ca} is there but its key {key} is not: restore the key from a backup, or no device can enrol")]
    KeyMissing {
        /// The certificate.
        ca: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// The key does not belong to the certificate.
    #[error("the key {key} does not belong to the certificate {ca}: restore both from the same backup")]
    KeyMismatch {
        /// The certificate.
        ca: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// There are two already.
    #[error("the authority before this one is still accepted: retire it first, with `muster ca retire`")]
    Overlap,
    /// A certificate could not be made.
    #[error("cannot make the certificate of {subject}: {reason}")]
    Make {
        /// Whose.
        subject: String,
        /// What the library says.
        reason: String,
    },
    /// The list of revoked certificates could not be made.
    #[error("cannot make the list of revoked certificates: {reason}")]
    RevocationList {
        /// What the library says.
        reason: String,
    },
    /// The TLS library does not take the server's certificate.
    #[error("the certificate in {path} cannot be used for TLS: {reason}")]
    Tls {
        /// Which.
        path: PathBuf,
        /// What the library says.
        reason: String,
    },
}

/// One authority, as it is shown.
pub(crate) struct AuthorityFacts {
    /// 1 for the first.
    pub(crate) generation: u64,
    /// Its certificate in PEM.
    pub(crate) pem: String,
    /// SHA-256 of it in DER.
    pub(crate) sha256: Digest,
    /// When it ends, in milliseconds since the Unix epoch.
    pub(crate) expires_ms: u64,
}

impl From<&ca::Authority> for AuthorityFacts {
    fn from(authority: &ca::Authority) -> Self {
        Self {
            generation: authority.generation(),
            pem: authority.pem().to_owned(),
            sha256: authority.sha256(),
            expires_ms: authority.expires_ms(),
        }
    }
}

/// The authorities and the server's certificate.
pub(crate) struct Pki {
    folder: PathBuf,
    names: ServerNames,
    outside: Vec<outside::Outside>,
    inner: RwLock<Inner>,
    api: RustlsConfig,
}

struct Inner {
    authorities: authorities::Authorities,
    server: server::ServerFiles,
}

impl Inner {
    fn open(folder: &Path, names: &ServerNames, now_ms: u64) -> Result<Self, PkiError> {
        let authorities = authorities::Authorities::open(folder, now_ms)?;
        Ok(Self { server: follow(&authorities, folder, names, now_ms)?, authorities })
    }
}

/// Brings the files that rest on `authorities` up to date with them.
fn follow(
    authorities: &authorities::Authorities,
    folder: &Path,
    names: &ServerNames,
    now_ms: u64,
) -> Result<server::ServerFiles, PkiError> {
    let server = server::ServerFiles::open(folder, authorities, names, now_ms)?;
    durable::write(&clients_file(folder), authorities.pem().as_bytes(), Access::Public)?;
    Ok(server)
}

/// Who may sign certificates of devices.
fn clients_file(folder: &Path) -> PathBuf {
    folder.join("clients.pem")
}

impl Pki {
    /// Opens the authorities in `folder`, or makes the first at the first start, and renews the server's certificate where needed.
    ///
    /// # Errors
    /// [`PkiError`]; an authority that is there is never replaced.
    pub(crate) fn open(
        folder: &Path,
        names: &ServerNames,
        outside: &[OutsideConfig],
        now_ms: u64,
    ) -> Result<Self, PkiError> {
        durable::make_folder(folder)?;
        let outside = outside.iter().map(outside::Outside::open).collect::<Result<Vec<_>, _>>()?;
        let inner = Inner::open(folder, names, now_ms)?;
        let api = RustlsConfig::from_config(Arc::new(inner.server.api_tls(&inner.authorities, &outside)?));
        Ok(Self { folder: folder.to_owned(), names: names.clone(), outside, inner: RwLock::new(inner), api })
    }

    fn inner(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner_to_change(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The authorities in force, oldest first.
    pub(crate) fn authorities(&self) -> Vec<AuthorityFacts> {
        self.inner().authorities.all().map(AuthorityFacts::from).collect()
    }

    /// The one with this fingerprint, if it is in force.
    pub(crate) fn authority(&self, sha256: &Digest) -> Option<AuthorityFacts> {
        self.inner().authorities.with_sha256(sha256).map(AuthorityFacts::from)
    }

    /// The one that signs.
    pub(crate) fn current(&self) -> AuthorityFacts {
        self.inner().authorities.current().into()
    }

    /// The generation of the oldest that is in force: certificates of those before are accepted by nobody.
    pub(crate) fn oldest_generation(&self) -> u64 {
        let inner = self.inner();
        inner.authorities.all().map(ca::Authority::generation).min().unwrap_or_default()
    }

    /// Which authorities these are.
    pub(crate) fn version(&self) -> AuthoritiesVersion {
        self.inner().authorities.version()
    }

    /// The list for devices to take their controller's certificate from; none while the first authority is the only one there was.
    pub(crate) fn list(&self) -> Option<trust::Authorities> {
        let inner = self.inner();
        let version = inner.authorities.version();
        (version > AuthoritiesVersion::FIRST).then(|| trust::Authorities {
            version: version.number(),
            certificates: inner.authorities.all().map(|authority| authority.pem().to_owned()).collect(),
        })
    }

    /// Whether one of our own authorities in force signed `certificate`.
    pub(crate) fn is_ours(&self, certificate: &X509Certificate<'_>) -> bool {
        self.inner().authorities.all().any(|authority| authority.has_signed(certificate))
    }

    /// Who the certificate of an outside authority at the head of `chain` was given to.
    ///
    /// # Errors
    /// [`OutsideError`].
    pub(crate) fn provisioned(&self, chain: &[CertificateDer<'_>], now_ms: u64) -> Result<Provisioned, OutsideError> {
        outside::identify(&self.outside, chain, now_ms)
    }

    /// Where the certificate of the authority that signs lies.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.inner().authorities.current().file().to_owned()
    }

    /// The files the broker needs.
    pub(crate) fn broker_files(&self) -> TlsFiles {
        let inner = self.inner();
        TlsFiles {
            certificate: inner.server.certificate_file().to_owned(),
            key: inner.server.key_file().to_owned(),
            client_ca: clients_file(&self.folder),
        }
    }

    /// How the API speaks TLS, now and after every change.
    pub(crate) fn api_tls(&self) -> RustlsConfig {
        self.api.clone()
    }

    /// Puts a new authority into force beside the one there is.
    ///
    /// # Errors
    /// [`PkiError`]. The new one may be in force all the same; asking again, or the next start, finishes what is left to do.
    pub(crate) fn rotate(&self, now_ms: u64) -> Result<(), PkiError> {
        let mut inner = self.inner_to_change();
        let rotated = inner.authorities.rotate(now_ms);
        // Also where it was done before: what follows may have been left undone then.
        self.follow(&mut inner, now_ms)?;
        rotated
    }

    /// Takes the authority before the current one out of force. Says whether there was one.
    ///
    /// # Errors
    /// [`PkiError`]; it is to be tried again then.
    pub(crate) fn retire(&self, now_ms: u64) -> Result<bool, PkiError> {
        let mut inner = self.inner_to_change();
        let any = inner.authorities.retire()?;
        self.follow(&mut inner, now_ms)?;
        Ok(any)
    }

    fn follow(&self, inner: &mut Inner, now_ms: u64) -> Result<(), PkiError> {
        inner.server = follow(&inner.authorities, &self.folder, &self.names, now_ms)?;
        self.api.reload_from_config(Arc::new(inner.server.api_tls(&inner.authorities, &self.outside)?));
        Ok(())
    }

    /// A client certificate for `device`, whose key has proven itself, good for so long from now on.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub(crate) fn issue(
        &self,
        device: &DeviceId,
        key: &DeviceKey,
        now_ms: u64,
        valid_for_ms: u64,
    ) -> Result<DeviceCertificate, PkiError> {
        let inner = self.inner();
        device::issue(&inner.authorities, device, key, now_ms, valid_for_ms)
    }

    /// The list of `revoked` certificates in PEM, one by each authority in force.
    ///
    /// # Errors
    /// [`PkiError::RevocationList`].
    pub(crate) fn revocation_list(&self, revoked: &[RevokedCertificate], now_ms: u64) -> Result<String, PkiError> {
        self.inner().authorities.all().map(|authority| crl::make(authority, revoked, now_ms)).collect()
    }
}

/// A time as the certificate library has it, to the second.
fn date(at_ms: u64) -> time::OffsetDateTime {
    i64::try_from(at_ms / 1_000)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

/// A random serial number: positive, 16 bytes, the first of them not zero (RFC 5280, 4.1.2.2).
fn random_serial(subject: &str) -> Result<[u8; 16], PkiError> {
    let mut serial = [0_u8; 16];
    getrandom::fill(&mut serial)
        .map_err(|error| PkiError::Make { subject: subject.to_owned(), reason: error.to_string() })?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}
