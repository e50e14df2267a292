//! What the HTTP API under `/api/v1` takes and gives, for the controller and its clients alike.

mod card;
mod drift;
mod inputs;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bundle::Manifest;
use crate::ids::{BundleRef, DeviceId, Digest, RolloutId};
use crate::messages::StateReport;
use crate::rollout::Explanation;
use crate::rollout::{Pin, Quarantine};
use crate::trust::{Activation, Envelope, PublicKey, Stage, Track};

pub use card::{LatencyCard, LiveCard, ModelCard, RolloutCard};
pub use drift::{
    CellChange, ColumnDrift, ColumnQuantiles, ConceptBasis, DeviceDrift, DriftExplanation, DriftGroup, DriftKind,
    DriftReport, GroupQuantiles, QuantileExport, ScoreName, Subject, WindowCounts, WindowExport,
};
pub use inputs::{DataFault, DataQuality, FaultCause, MissingLimit, OutlierCause, OutlierRate, OutlierRates};

/// An error, as RFC 9457 has it (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// A stable name of the kind of error, `urn:muster:problem:<kind>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong, where, and what to do.
    pub detail: String,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Page<T> {
    /// The items, in a stable order.
    pub items: Vec<T>,
    /// Give this as `cursor` to get the next page; none on the last.
    pub next_cursor: Option<String>,
}

/// What a token's bearer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum AccessRole {
    /// Read.
    Viewer,
    /// Read, and drive rollouts, labels and bundles.
    Operator,
    /// What an operator may, and approve.
    Approver,
    /// Everything.
    Admin,
}

/// A wish for an enrolment token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateToken {
    /// How long it is good for, in milliseconds.
    pub valid_for_ms: u64,
    /// How many devices may use it.
    pub uses: u32,
    /// Labels every device enrolled with it gets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A new enrolment token, shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedToken {
    /// What it is called in lists.
    pub id: String,
    /// The string to give to the device ([`crate::token::EnrolmentToken`]).
    pub token: String,
    /// When it expires, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
}

/// An enrolment token as the controller keeps it: without what lets anybody enrol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenView {
    /// What it is called: the beginning of its secret's digest.
    pub id: String,
    /// When it was made, in milliseconds since the Unix epoch; none where that was not kept.
    pub created_at_ms: Option<u64>,
    /// The name of the access token it was made with.
    pub created_by: Option<String>,
    /// When it expires, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// Devices that may still use it.
    pub uses_left: u32,
    /// Labels every device enrolled with it gets.
    pub labels: BTreeMap<String, String>,
    /// It is no longer accepted; absent while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revocation>,
}

/// What devices need to find and trust this controller: an enrolment token without a secret, the same for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProvisioningString {
    /// To be given to the agent as `enrolment-token`.
    pub token: String,
}

/// A device asking to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolRequest {
    /// The secret of the enrolment token; none where the device shows a certificate of an outside authority.
    #[serde(default)]
    pub secret: Option<String>,
    /// The name the device wants; the controller makes one up otherwise.
    pub device: Option<DeviceId>,
    /// PKCS#10 certificate request in PEM, signed with the device's own key.
    pub csr_pem: String,
}

/// A device's papers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolResponse {
    /// The device's name.
    pub device: DeviceId,
    /// Its client certificate in PEM.
    pub certificate_pem: String,
    /// The CA's certificate in PEM.
    pub ca_pem: String,
    /// Host of the MQTT broker.
    pub broker_host: String,
    /// Port of the MQTT broker (TLS).
    pub broker_port: u16,
    /// Every root document from version 1 on, in order.
    pub roots: Vec<Envelope>,
    /// The [`crate::trust::Authorities`], where there are others than the one of `ca_pem`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities: Option<Envelope>,
}

/// A device asking for its next certificate, over a connection on which it showed the one it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RenewRequest {
    /// PKCS#10 certificate request in PEM, signed with the new key.
    pub csr_pem: String,
}

/// A device's next certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RenewResponse {
    /// In PEM. The certificate before it is accepted until this one is used.
    pub certificate_pem: String,
    /// The [`crate::trust::Authorities`] from now on; none where the device's own has never been replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities: Option<Envelope>,
}

/// The controller's certificate authorities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuthoritiesView {
    /// Oldest first. The last one signs; one before it is accepted until it is retired.
    pub authorities: Vec<AuthorityView>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuthorityView {
    /// SHA-256 of its certificate in DER, as enrolment tokens name it.
    pub sha256: Digest,
    /// Its certificate in PEM.
    pub certificate_pem: String,
    /// When its certificate ends, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// Devices that use a certificate of it, revoked ones left out.
    pub devices: usize,
}

/// That an authority that was replaced shall no longer be accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RetireAuthority {
    /// Also when devices still use it, which then have to enrol again.
    pub force: bool,
}

/// What the controller was told to bring to a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DesiredView {
    /// Digest of the manifest; none to run nothing.
    pub manifest: Option<Digest>,
    /// Its name and version.
    pub bundle: Option<BundleRef>,
    /// The generation of the assignment.
    pub generation: u64,
    /// The rollout it belongs to.
    pub rollout: RolloutId,
    /// In which part the device runs it.
    #[serde(default, skip_serializing_if = "Stage::is_serve")]
    pub stage: Stage,
    /// When it switches to it.
    #[serde(default, skip_serializing_if = "Activation::is_at_once")]
    pub activation: Activation,
}

/// That a device or an enrolment token is no longer accepted: since when, by whom, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Revocation {
    /// In milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// The name of the token it was done with.
    pub by: String,
    /// In words.
    pub reason: Option<String>,
}

/// A device as the controller knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeviceView {
    /// Its name.
    pub id: DeviceId,
    /// Set by operators.
    pub labels: BTreeMap<String, String>,
    /// When it enrolled, in milliseconds since the Unix epoch.
    pub enrolled_at_ms: u64,
    /// Whether it is connected.
    pub online: bool,
    /// When it was heard last, in milliseconds since the Unix epoch.
    pub last_seen_ms: Option<u64>,
    /// The model that it shall serve.
    pub desired: Option<DesiredView>,
    /// The program that it shall be, its generations counted apart; absent where it was never told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_program: Option<DesiredView>,
    /// What it says of itself.
    pub reported: Option<StateReport>,
    /// What its agent understands of the wire contract ([`crate::protocol`]): what it says, or else what follows from its report; 0 where it
    /// has not reported.
    #[serde(default)]
    pub protocol: u32,
    /// Its certificate is no longer accepted; absent while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revocation>,
    /// Updates keep failing on it, so no rollout takes it in; absent while rollouts may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<Quarantine>,
    /// An operator keeps it from rollouts; absent while rollouts may take it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Pin>,
}

/// A change of a device's labels: a value sets, null removes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LabelPatch {
    /// The labels to change.
    pub labels: BTreeMap<String, Option<String>>,
}

/// A bundle to take in. Its files must have been uploaded before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PushBundle {
    /// The signed manifest.
    pub manifest: Envelope,
}

/// A bundle the controller holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BundleView {
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// Name and version.
    pub bundle: BundleRef,
    /// When it was taken in, in milliseconds since the Unix epoch.
    pub pushed_at_ms: u64,
    /// Bytes of all its files.
    pub total_bytes: u64,
    /// What of a device it is for: the model it serves, or its own program. Absent for a model.
    #[serde(default, skip_serializing_if = "Track::is_model")]
    pub track: Track,
    /// Its content; left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Manifest>,
}

/// The keys and documents trust rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TrustView {
    /// The controller's director key, to be named in the root document.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub director_public_key: PublicKey,
    /// The key to take its place once a root document names it; none while none was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub next_director_public_key: Option<PublicKey>,
    /// Every root document taken in, in order.
    pub roots: Vec<Envelope>,
}

/// A root document to take in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PushRoot {
    /// The signed root document.
    pub root: Envelope,
}

/// A wish to create a rollout; it starts at once.
pub type CreateRollout = crate::rollout::RolloutSpec;

/// Why an operator does something, for the records.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ActionReason {
    /// In words.
    pub reason: Option<String>,
}

/// How devices of a rollout go back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RollbackOrder {
    /// Why, in words.
    pub reason: Option<String>,
    /// The bundle that all of them go back to; to what each of them ran before when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<BundleRef>,
}

/// Why a rollout stands where it does, and how it came there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutExplanation {
    /// What it does, waits for and rests on.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// What happened so far, oldest first: of the device, where one was asked about.
    pub history: Vec<EventView>,
    /// There is more history than this; these are the last entries.
    pub history_is_cut: bool,
}

/// One entry of the fleet's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventView {
    /// Grows with every entry.
    pub sequence: u64,
    /// When the controller wrote it down, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What kind of thing, as `device.committed` or `rollout.paused`.
    pub kind: String,
    /// Who caused it: `device`, `controller` or a token's name.
    pub actor: String,
    /// The device concerned.
    pub device: Option<DeviceId>,
    /// The rollout concerned.
    pub rollout: Option<RolloutId>,
    /// The bundle concerned.
    pub bundle: Option<BundleRef>,
    /// The rest, in words.
    pub detail: String,
}
