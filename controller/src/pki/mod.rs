//! The controller's own certificate authority, and every certificate it gives out.
//!
//! `ca` keeps the authority, `server` the certificate of this controller, `device` those of devices. All keys
//! are P-256. Who may have a certificate is decided by those who call.

mod ca;
mod device;
mod server;

use std::path::{Path, PathBuf};

use muster_shared::ids::{DeviceId, Digest};

pub(crate) use device::{DeviceCertificate, DeviceKey};
pub(crate) use server::ServerNames;

use crate::broker::TlsFiles;
use crate::durable::FileError;

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
    /// A certificate could not be made.
    #[error("cannot make the certificate of {subject}: {reason}")]
    Make {
        /// Whose.
        subject: String,
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

/// The authority and the server's certificate.
pub(crate) struct Pki {
    ca: ca::Authority,
    server: server::ServerFiles,
}

impl Pki {
    /// Opens the authority in `folder`, or makes it at the first start, and renews the server's certificate where needed.
    ///
    /// # Errors
    /// [`PkiError`]; an authority that is there is never replaced.
    pub(crate) fn open(folder: &Path, names: &ServerNames, now_ms: u64) -> Result<Self, PkiError> {
        crate::durable::make_folder(folder)?;
        let ca = ca::Authority::open(folder, now_ms)?;
        let server = server::ServerFiles::open(folder, &ca, names, now_ms)?;
        Ok(Self { ca, server })
    }

    /// The authority's certificate in PEM.
    pub(crate) fn ca_pem(&self) -> &str {
        self.ca.pem()
    }

    /// SHA-256 of the authority's certificate in DER.
    pub(crate) fn ca_sha256(&self) -> Digest {
        self.ca.sha256()
    }

    /// Where the authority's certificate lies.
    pub(crate) fn ca_file(&self) -> &Path {
        self.ca.file()
    }

    /// The files the broker needs.
    pub(crate) fn broker_files(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.server.certificate_file().to_owned(),
            key: self.server.key_file().to_owned(),
            client_ca: self.ca.file().to_owned(),
        }
    }

    /// How the API speaks TLS.
    ///
    /// # Errors
    /// [`PkiError::Tls`].
    pub(crate) fn api_tls(&self) -> Result<rustls::ServerConfig, PkiError> {
        self.server.api_tls(&self.ca)
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
        device::issue(&self.ca, device, key, now_ms, valid_for_ms)
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
