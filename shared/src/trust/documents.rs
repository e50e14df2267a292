//! The signed documents and the order in which each is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::TrustError;
use super::activation::Activation;
use super::delivery::DeliveryPolicy;
use super::envelope::{DocumentKind, Envelope};
use super::keys::{KeyId, PublicKey, SigningKey};
use super::stage::Stage;
use super::track::Track;
use crate::bundle::Manifest;
use crate::collection::Collections;
use crate::ids::{DeviceId, Digest, RolloutId};
use crate::limits::{MAX_AUTHORITIES, MAX_AUTHORITY_BYTES, MAX_DOCUMENT_BYTES, MAX_ROOT_KEYS, MAX_THRESHOLD};

/// What a set of keys is trusted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Saying which keys are trusted.
    Root,
    /// Saying what a bundle is.
    Release,
    /// Saying which device runs what.
    Director,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Release => "release",
            Self::Director => "director",
        })
    }
}

/// The keys of a role and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleKeys {
    /// Keys by their names in [`Root::keys`].
    pub key_ids: BTreeSet<KeyId>,
    /// Signatures by different keys that a document needs.
    pub threshold: u32,
}

/// The root document: who may sign what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// 1 for the first, then one more each.
    pub version: u64,
    /// After this it must be replaced, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// Every key a role names.
    pub keys: BTreeMap<KeyId, PublicKey>,
    /// Every role with its keys.
    pub roles: BTreeMap<Role, RoleKeys>,
}

impl Root {
    /// Checks that every role is there and can be fulfilled.
    ///
    /// # Errors
    /// [`TrustError::RootContent`] with what is wrong.
    pub fn validate(&self) -> Result<(), TrustError> {
        let refuse = |reason: String| Err(TrustError::RootContent(reason));
        if self.version == 0 {
            return refuse("versions start at 1".into());
        }
        if self.keys.len() > MAX_ROOT_KEYS {
            return refuse(format!("it lists {} keys, and {MAX_ROOT_KEYS} are allowed", self.keys.len()));
        }
        if let Some((id, _)) = self.keys.iter().find(|(id, key)| **id != key.id()) {
            return refuse(format!("key {} is listed under a name that is not its own", id.short()));
        }
        for role in [Role::Root, Role::Release, Role::Director] {
            let Some(keys) = self.roles.get(&role) else {
                return refuse(format!("it names no keys for the role {role}"));
            };
            if keys.threshold == 0 || keys.threshold as usize > keys.key_ids.len() {
                return refuse(format!(
                    "the role {role} has {} keys and a threshold of {}",
                    keys.key_ids.len(),
                    keys.threshold
                ));
            }
            if keys.threshold as usize > MAX_THRESHOLD {
                return refuse(format!(
                    "the role {role} has a threshold of {}, and {MAX_THRESHOLD} is the greatest",
                    keys.threshold
                ));
            }
            if keys.key_ids.iter().any(|id| !self.keys.contains_key(id)) {
                return refuse(format!("the role {role} names a key that is not listed"));
            }
        }
        Ok(())
    }

    /// The keys of `role` that are listed, with how many of them must sign.
    fn keys_of(&self, role: Role) -> (Vec<&PublicKey>, u32) {
        self.roles.get(&role).map_or((Vec::new(), u32::MAX), |role_keys| {
            (role_keys.key_ids.iter().filter_map(|id| self.keys.get(id)).collect(), role_keys.threshold)
        })
    }

    fn verify(&self, envelope: &Envelope, kind: DocumentKind) -> Result<Vec<u8>, TrustError> {
        let (keys, threshold) = self.keys_of(kind.role());
        envelope.verify(kind, keys, threshold)
    }

    /// Which of this document's root keys have signed the root document in `envelope`, this one or the next.
    ///
    /// # Errors
    /// [`TrustError`] when the envelope holds another kind of document or cannot be read.
    pub fn root_signers(&self, envelope: &Envelope) -> Result<BTreeSet<KeyId>, TrustError> {
        envelope.signers(DocumentKind::Root, self.keys_of(Role::Root).0)
    }
}

/// A root document whose signatures have been checked, with its envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedRoot {
    root: Root,
    envelope: Envelope,
    director_epoch: u64,
}

/// A manifest whose signatures, kind and content have been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedManifest {
    /// The digest of the signed bytes: what assignments, requests and reports name it by.
    pub digest: Digest,
    /// Its content.
    pub manifest: Manifest,
}

fn parse<T: DeserializeOwned>(kind: DocumentKind, payload: &[u8]) -> Result<T, TrustError> {
    serde_json::from_slice(payload)
        .map_err(|error| TrustError::Payload { kind: kind.as_str(), reason: error.to_string() })
}

fn check_date(kind: DocumentKind, expires_ms: u64, now_ms: u64) -> Result<(), TrustError> {
    if now_ms >= expires_ms {
        return Err(TrustError::Expired { kind: kind.as_str(), expires_ms, now_ms });
    }
    Ok(())
}

impl TrustedRoot {
    /// Takes the first root document: signed by its own keys and, where `pinned` is given, exactly the one with
    /// that payload digest.
    ///
    /// # Errors
    /// [`TrustError`] with what is wrong.
    pub fn first(envelope: Envelope, pinned: Option<Digest>) -> Result<Self, TrustError> {
        if pinned.is_some_and(|digest| envelope.payload_bytes().map(|p| Digest::of(&p)) != Ok(digest)) {
            return Err(TrustError::RootPin);
        }
        envelope.check_kind(DocumentKind::Root)?;
        let claimed: Root = parse(DocumentKind::Root, &envelope.payload_bytes()?)?;
        claimed.validate()?;
        claimed.verify(&envelope, DocumentKind::Root)?;
        Ok(Self { director_epoch: claimed.version, root: claimed, envelope })
    }

    /// Takes the next root document: one version up, signed by a threshold of these keys *and* of its own (TUF
    /// specification, 5.3). Expiry is not checked here, so that a device far behind can walk the chain; it is by
    /// [`Self::check_date`] on the last one.
    ///
    /// # Errors
    /// [`TrustError`] with what is wrong; `self` stays trusted.
    pub fn next(&self, envelope: Envelope) -> Result<Self, TrustError> {
        let payload = self.root.verify(&envelope, DocumentKind::Root)?;
        let next: Root = parse(DocumentKind::Root, &payload)?;
        if self.root.version.checked_add(1) != Some(next.version) {
            return Err(TrustError::RootVersion { current: self.root.version, found: next.version });
        }
        next.validate()?;
        next.verify(&envelope, DocumentKind::Root)?;
        let director =
            |root: &Root| root.roles.get(&Role::Director).map(|keys| keys.key_ids.clone()).unwrap_or_default();
        let kept = director(&self.root).is_subset(&director(&next));
        let director_epoch = if kept { self.director_epoch } else { next.version };
        Ok(Self { root: next, envelope, director_epoch })
    }

    /// The version of the document that last took a director key away, or of the first. What assignments of an earlier epoch claimed
    /// (generations, times) counts no more: whoever had the key that was taken away may have claimed the highest there are
    /// (TUF specification, 5.3.11, recovery from fast-forward attacks).
    #[must_use]
    pub fn director_epoch(&self) -> u64 {
        self.director_epoch
    }

    /// The document.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The document as it was signed, to store and pass on.
    #[must_use]
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Whether the root is still in date.
    ///
    /// # Errors
    /// [`TrustError::Expired`].
    pub fn check_date(&self, now_ms: u64) -> Result<(), TrustError> {
        check_date(DocumentKind::Root, self.root.expires_ms, now_ms)
    }

    /// Checks a model's manifest: signatures, then content, then date.
    ///
    /// # Errors
    /// [`TrustError`] with what is wrong.
    pub fn verify_manifest(&self, envelope: &Envelope, now_ms: u64) -> Result<VerifiedManifest, TrustError> {
        let verified = self.verify_undated_manifest(envelope, Track::Model)?;
        check_date(DocumentKind::Manifest, verified.manifest.expires_ms, now_ms)?;
        Ok(verified)
    }

    /// Checks a manifest but for its date, and that it is for `track`: for a bundle that is installed already and must keep serving.
    ///
    /// # Errors
    /// [`TrustError`] with what is wrong.
    pub fn verify_undated_manifest(&self, envelope: &Envelope, track: Track) -> Result<VerifiedManifest, TrustError> {
        let verified = self.verify_any_undated_manifest(envelope)?;
        let found = verified.manifest.track();
        if found != track {
            return Err(TrustError::Track { bundle: verified.manifest.bundle(), found, expected: track });
        }
        Ok(verified)
    }

    /// Checks a manifest of either track, for whoever keeps bundles and runs none: signatures, then content, then date.
    ///
    /// # Errors
    /// [`TrustError`] with what is wrong.
    pub fn verify_any_manifest(&self, envelope: &Envelope, now_ms: u64) -> Result<VerifiedManifest, TrustError> {
        let verified = self.verify_any_undated_manifest(envelope)?;
        check_date(DocumentKind::Manifest, verified.manifest.expires_ms, now_ms)?;
        Ok(verified)
    }

    fn verify_any_undated_manifest(&self, envelope: &Envelope) -> Result<VerifiedManifest, TrustError> {
        let payload = self.root.verify(envelope, DocumentKind::Manifest)?;
        let manifest: Manifest = parse(DocumentKind::Manifest, &payload)?;
        manifest.validate()?;
        Ok(VerifiedManifest { digest: Digest::of(&payload), manifest })
    }

    /// Checks an assignment for `device`: signatures, then device, then date.
    ///
    /// # Errors
    /// [`TrustError`] with what is wrong.
    pub fn verify_assignment(
        &self,
        envelope: &Envelope,
        device: &DeviceId,
        now_ms: u64,
    ) -> Result<Assignment, TrustError> {
        let payload = self.root.verify(envelope, DocumentKind::Assignment)?;
        let assignment: Assignment = parse(DocumentKind::Assignment, &payload)?;
        if assignment.device != *device {
            return Err(TrustError::Device { expected: device.clone(), found: assignment.device });
        }
        check_date(DocumentKind::Assignment, assignment.expires_ms, now_ms)?;
        let refuse = |reason| TrustError::Payload { kind: DocumentKind::Assignment.as_str(), reason };
        assignment.stage.validate().map_err(|error| refuse(error.to_string()))?;
        let takes_over_at_once = assignment.stage.is_serve() && assignment.activation.is_at_once();
        if !assignment.track.is_model() && !takes_over_at_once {
            return Err(refuse("a program has neither stage nor activation: it takes over at once".to_owned()));
        }
        Ok(assignment)
    }

    /// Checks a list of authorities: signatures, then how many and how long they are. Whether they are certificates is the reader's
    /// to find out.
    ///
    /// # Errors
    /// [`TrustError`] with what is wrong.
    pub fn verify_authorities(&self, envelope: &Envelope) -> Result<Authorities, TrustError> {
        let kind = DocumentKind::Authorities;
        let payload = self.root.verify(envelope, kind)?;
        let authorities: Authorities = parse(kind, &payload)?;
        let refuse = |reason: String| Err(TrustError::Payload { kind: kind.as_str(), reason });
        if authorities.certificates.is_empty() || authorities.certificates.len() > MAX_AUTHORITIES {
            return refuse(format!(
                "it lists {} certificates, 1 to {MAX_AUTHORITIES} are allowed",
                authorities.certificates.len()
            ));
        }
        if let Some(long) = authorities.certificates.iter().map(String::len).find(|bytes| *bytes > MAX_AUTHORITY_BYTES)
        {
            return refuse(format!("a certificate has {long} bytes, {MAX_AUTHORITY_BYTES} are allowed"));
        }
        Ok(authorities)
    }

    /// Checks which samples `device` may collect: signatures, then device, then date, then whether it makes sense.
    ///
    /// # Errors
    /// [`TrustError`] with what is wrong.
    pub fn verify_collections(
        &self,
        envelope: &Envelope,
        device: &DeviceId,
        now_ms: u64,
    ) -> Result<Collections, TrustError> {
        let kind = DocumentKind::Collections;
        let payload = self.root.verify(envelope, kind)?;
        let collections: Collections = parse(kind, &payload)?;
        if collections.device != *device {
            let reason = format!("it is for device {}, this is {device}", collections.device);
            return Err(TrustError::Payload { kind: kind.as_str(), reason });
        }
        check_date(kind, collections.expires_ms, now_ms)?;
        collections.validate().map_err(|reason| TrustError::Payload { kind: kind.as_str(), reason })?;
        Ok(collections)
    }
}

/// Which certificate authorities a device takes its controller's certificate from. The director signs it, so that a thief of one
/// authority's key cannot name another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorities {
    /// Grows with every change.
    pub version: u64,
    /// Their certificates in PEM, the one that signs new certificates last; from one to [`MAX_AUTHORITIES`].
    pub certificates: Vec<String>,
}

/// How a device watches a new bundle before it commits to it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WatchPolicy {
    /// How long the new bundle serves under watch, in milliseconds.
    pub probation_ms: u64,
    /// The share of requests that may fail meanwhile.
    pub max_error_rate: f64,
    /// Requests below which that share is not judged.
    pub min_requests: u64,
}

impl Default for WatchPolicy {
    fn default() -> Self {
        Self { probation_ms: 60_000, max_error_rate: 0.2, min_requests: 20 }
    }
}

/// The statement "this device shall run this bundle".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The device it is for.
    pub device: DeviceId,
    /// The rollout it belongs to.
    pub rollout: RolloutId,
    /// Digest of the manifest to run; none to run nothing.
    pub manifest: Option<Digest>,
    /// Grows with every assignment of the device.
    pub generation: u64,
    /// When it was signed, in milliseconds since the Unix epoch.
    pub issued_at_ms: u64,
    /// After this it must not be acted upon, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// How the device watches the bundle before it commits.
    pub watch: WatchPolicy,
    /// When and how fast it may fetch the bundle.
    #[serde(default, skip_serializing_if = "DeliveryPolicy::is_default")]
    pub delivery: DeliveryPolicy,
    /// In which part the device runs it.
    #[serde(default, skip_serializing_if = "Stage::is_serve")]
    pub stage: Stage,
    /// When it switches to it.
    #[serde(default, skip_serializing_if = "Activation::is_at_once")]
    pub activation: Activation,
    /// What of the device it is about.
    #[serde(default, skip_serializing_if = "Track::is_model")]
    pub track: Track,
}

/// Serialises `document` and signs it with every key given.
///
/// # Errors
/// [`TrustError`] when it does not serialise or is too large.
pub fn sign_document<'k, T: Serialize>(
    kind: DocumentKind,
    document: &T,
    keys: impl IntoIterator<Item = &'k SigningKey>,
) -> Result<Envelope, TrustError> {
    let payload = serde_json::to_vec(document)
        .map_err(|error| TrustError::Payload { kind: kind.as_str(), reason: error.to_string() })?;
    if payload.len() > MAX_DOCUMENT_BYTES {
        return Err(TrustError::TooLarge);
    }
    let mut envelope = Envelope::unsigned(kind, &payload);
    for key in keys {
        envelope.add_signature(key)?;
    }
    Ok(envelope)
}

#[cfg(test)]
mod tests;
