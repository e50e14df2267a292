//! The list of authorities that replaced the one this device enrolled with: signed by the director, kept in `identity/authorities.json`.
//!
//! It was verified before it was stored, so what lies on the disk is believed as the CA of the enrolment is. A list never gives way to an
//! older one, unless another key signs by now. It is kept twice: without it the device would know nobody but the authority of its
//! enrolment, which may be retired by now because its key was stolen.

use muster_shared::ids::Digest;
use muster_shared::trust::{Authorities, Envelope, TrustedRoot};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::papers::PapersError;
use crate::sealed;

/// A list in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Stored {
    /// Under which epoch of the director's keys it was verified.
    director_epoch: u64,
    list: Authorities,
}

impl Stored {
    /// Checks a list that came with a certificate.
    pub(super) fn verify(envelope: &Envelope, root: &TrustedRoot) -> Result<Self, PapersError> {
        let list = root.verify_authorities(envelope).map_err(PapersError::Authorities)?;
        let this = Self { director_epoch: root.director_epoch(), list };
        this.certificates().ok_or(PapersError::Parse("list of authorities"))?;
        Ok(this)
    }

    /// As it is written to a file.
    pub(super) fn to_file(&self) -> Result<Vec<u8>, serde_json::Error> {
        Ok(sealed::seal(&serde_json::to_vec(self)?))
    }

    /// Reads what [`Self::to_file`] wrote, or an agent from before there were seals. The error says what is wrong.
    pub(super) fn from_file(bytes: &[u8]) -> Result<Self, String> {
        let content = sealed::open_if_sealed(bytes).ok_or("is damaged (it is not what was written)")?;
        let this: Self = serde_json::from_slice(content).map_err(|error| format!("is damaged ({error})"))?;
        this.certificates().ok_or("is damaged (it holds what is not a certificate)")?;
        Ok(this)
    }

    /// Whether this one may follow `before`.
    pub(super) fn follows(&self, before: &Self) -> bool {
        (self.director_epoch, self.list.version) >= (before.director_epoch, before.list.version)
    }

    /// The certificates; none when one of them does not parse.
    pub(super) fn certificates(&self) -> Option<Vec<CertificateDer<'static>>> {
        self.list.certificates.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok()).collect()
    }

    /// Whether it names the authority with this fingerprint.
    pub(super) fn names(&self, sha256: &Digest) -> bool {
        self.certificates().is_some_and(|certificates| certificates.iter().any(|c| Digest::of(c) == *sha256))
    }
}
