//! Trust: signed documents and what makes them acceptable.
//!
//! Every signed document is a DSSE envelope (github.com/secure-systems-lab/dsse): the exact payload bytes
//! are signed, and signatures are checked before anything in them is parsed. Three kinds of document, each
//! signed by the keys that the current root names for its role:
//!
//! | document | role | says |
//! |---|---|---|
//! | [`Root`] | `root`, offline | which keys may sign what, and how many of them must |
//! | [`crate::bundle::Manifest`] | `release`, offline | what a bundle is |
//! | [`Assignment`] | `director`, online | which device shall run which bundle |
//! | [`Authorities`] | `director`, online | whose certificates devices take the controller's from |
//! | [`crate::collection::Collections`] | `director`, online | which samples a device may collect, and whose key opens them |
//!
//! This module decides whether signatures, kinds and dates are right. Whether a device *wants* a genuine document (its floor,
//! its generation, its hardware) is the agent's decision.

mod activation;
mod delivery;
mod documents;
mod envelope;
mod keys;
mod stage;
mod track;

pub use activation::Activation;
pub use delivery::{DeliveryPolicy, MIN_DOWNLOAD_BYTES_PER_S, MeteredUse};
pub use documents::{
    Assignment, Authorities, Role, RoleKeys, Root, TrustedRoot, VerifiedManifest, WatchPolicy, sign_document,
};
pub use envelope::{DocumentKind, Envelope, Signature};
pub use keys::{KeyId, PublicKey, SigningKey};
pub use stage::{Stage, StageError};
pub use track::Track;

use crate::bundle::ManifestError;
use crate::ids::{BundleRef, DeviceId};
use crate::limits::{MAX_DOCUMENT_BYTES, MAX_SIGNATURES};

/// Why a document is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The envelope does not parse, or its base64 does not.
    #[error("the signed envelope is damaged: {0}")]
    Envelope(String),
    /// More bytes than any document may have.
    #[error("the signed document is larger than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge,
    /// More signatures than any document may have.
    #[error("the envelope carries more than {MAX_SIGNATURES} signatures")]
    TooManySignatures,
    /// Another kind of document.
    #[error("the document is of type {found:?} where {expected:?} is expected")]
    PayloadType {
        /// What was expected.
        expected: String,
        /// What the envelope says, shortened.
        found: String,
    },
    /// Not enough valid signatures by different keys of the role.
    #[error("{role} document: {valid} of {threshold} required signatures are valid")]
    Threshold {
        /// The role that must sign.
        role: Role,
        /// Valid signatures by different keys.
        valid: u32,
        /// How many are required.
        threshold: u32,
    },
    /// A model where a program is due, or a program where a model is.
    #[error("{bundle} brings a {found}, and a {expected} is asked for")]
    Track {
        /// The bundle.
        bundle: BundleRef,
        /// What it is.
        found: Track,
        /// What was asked for.
        expected: Track,
    },
    /// The signed bytes are not the document they should be.
    #[error("the signed {kind} does not parse: {reason}")]
    Payload {
        /// The kind of document.
        kind: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// The document is out of date.
    #[error("the {kind} expired at {expires_ms} ms, it is {now_ms} ms now")]
    Expired {
        /// The kind of document.
        kind: &'static str,
        /// When it expired, in milliseconds since the Unix epoch.
        expires_ms: u64,
        /// The time it was held against.
        now_ms: u64,
    },
    /// A root document out of turn.
    #[error("root version {found} cannot follow version {current}: versions go up one by one")]
    RootVersion {
        /// The version trusted now.
        current: u64,
        /// The version offered.
        found: u64,
    },
    /// A root document that contradicts itself.
    #[error("root document: {0}")]
    RootContent(String),
    /// The first root document is not the one expected.
    #[error("the root document is not the one this device was told to start from")]
    RootPin,
    /// A manifest that is genuine and still not valid.
    #[error("manifest: {0}")]
    Manifest(#[from] ManifestError),
    /// An assignment for another device.
    #[error("the assignment is for device {found}, this is {expected}")]
    Device {
        /// This device.
        expected: DeviceId,
        /// The device it is for.
        found: DeviceId,
    },
    /// A signature made elsewhere that is none.
    #[error("this is no signature of the key {0} over the document")]
    Signature(KeyId),
    /// Text that is not a key.
    #[error("not an ed25519 key: {0}")]
    Key(String),
}
