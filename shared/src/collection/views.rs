//! What the API takes and gives of collections.

use serde::{Deserialize, Serialize};

use super::{CollectionProgress, RecipientKey, Rule, SampleLimits};
use crate::ids::{BundleRef, CollectionId, DeviceId, Digest};
use crate::limits::{MAX_COLLECTION_BUNDLES, MAX_COLLECTION_MS};
use crate::selector::Selector;

/// A wish for a collection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateCollection {
    /// The devices meant.
    pub selector: Selector,
    /// The bundles whose inferences count.
    pub bundles: Vec<BundleRef>,
    /// Which of them.
    pub rule: Rule,
    /// How much each device keeps.
    pub per_device: SampleLimits,
    /// How many samples are taken in altogether.
    pub max_total_count: u64,
    /// How many bytes of them, sealed.
    pub max_total_bytes: u64,
    /// How long samples are taken, in milliseconds.
    pub duration_ms: u64,
    /// How long devices have after that to upload, in milliseconds.
    pub upload_within_ms: u64,
    /// Whose key opens the samples.
    pub recipient: RecipientKey,
    /// What for, for the records.
    #[serde(default)]
    pub purpose: String,
}

impl CreateCollection {
    /// What is wrong with it, in words.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let span = |name: &str, ms: u64| {
            let wrong = ms == 0 || ms > MAX_COLLECTION_MS;
            wrong.then(|| format!("{name} is {ms} ms, must be from 1 to {MAX_COLLECTION_MS}"))
        };
        if self.bundles.is_empty() || self.bundles.len() > MAX_COLLECTION_BUNDLES {
            return Some(format!("it names {} bundles, 1 to {MAX_COLLECTION_BUNDLES} are allowed", self.bundles.len()));
        }
        if self.max_total_count == 0 || self.max_total_bytes == 0 {
            return Some("its limits let nothing in".to_owned());
        }
        self.rule
            .problem()
            .or_else(|| self.per_device.problem())
            .map(|problem| format!("it {problem}"))
            .or_else(|| span("duration_ms", self.duration_ms))
            .or_else(|| span("upload_within_ms", self.upload_within_ms))
    }
}

/// How a collection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum CollectionStatus {
    /// Devices take samples.
    Open,
    /// None takes any more; those that have some upload them.
    Uploading,
    /// Nothing is taken in any more.
    Closed,
}

/// How a collection ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Closing {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Who closed it: a token's name, or the controller.
    pub by: String,
    /// Why, in words.
    pub reason: String,
    /// Devices delete what they have instead of uploading it.
    pub discard: bool,
}

/// How to close a collection.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CloseCollection {
    /// Devices delete what they have instead of uploading it.
    pub discard: bool,
    /// Why, for the records.
    pub reason: Option<String>,
}

/// A collection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CollectionView {
    /// Its name.
    pub id: CollectionId,
    /// What was asked for.
    pub spec: CreateCollection,
    /// Digests of the bundles' manifests, in the order of `spec.bundles`.
    pub manifests: Vec<Digest>,
    /// How it stands.
    pub status: CollectionStatus,
    /// When it was opened, in milliseconds since the Unix epoch.
    pub opened_at_ms: u64,
    /// Who opened it: a token's name.
    pub opened_by: String,
    /// No sample is taken from then on, in milliseconds since the Unix epoch.
    pub ends_ms: u64,
    /// None is taken in from then on, in milliseconds since the Unix epoch.
    pub upload_by_ms: u64,
    /// How it ended; none while it is open.
    pub closing: Option<Closing>,
    /// Samples the controller has.
    pub samples: u64,
    /// Bytes of them, sealed.
    pub bytes: u64,
    /// Devices that match.
    pub devices_total: u64,
    /// Samples that devices say they hold and have not uploaded.
    pub held: u64,
    /// The devices, by name; in lists none, otherwise those of which there is something to say first, and no more than a few hundred.
    pub devices: Vec<CollectionDevice>,
}

/// A device's part in a collection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CollectionDevice {
    /// The device.
    pub device: DeviceId,
    /// Whether it is connected.
    pub online: bool,
    /// What it says; none where it has said nothing of this collection yet.
    pub progress: Option<CollectionProgress>,
    /// Samples the controller has of it.
    pub samples: u64,
    /// Bytes of them, sealed.
    pub bytes: u64,
}

/// One batch of sealed samples at the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SampleBatch {
    /// The device they came from.
    pub device: DeviceId,
    /// Its number, from 0.
    pub number: u32,
    /// How many batches the device has.
    pub of: u32,
    /// Samples in it.
    pub samples: u64,
    /// Bytes of it.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
    /// When it came, in milliseconds since the Unix epoch.
    pub received_at_ms: u64,
}

/// What the controller says of a batch that it has stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BatchStored {
    /// Samples in it.
    pub samples: u64,
}

/// What an inference should have been answered with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SampleLabel {
    /// The inference's id.
    pub id: String,
    /// The device that answered; any where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// The row of the inference, counted from 0; every row where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<u32>,
    /// The truth: a class or a number, in words.
    pub label: String,
}

/// Labels for a collection.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SampleLabels {
    /// The labels; the last of the same id, device and row counts.
    pub labels: Vec<SampleLabel>,
}
