//! What a device says of its collections, as part of its state report.

use serde::{Deserialize, Serialize};

use crate::ids::CollectionId;

/// How a device stands with the collections it was told of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SamplesReport {
    /// The generation of the last statement it accepted; 0 before the first.
    pub generation: u64,
    /// Whether its owner allows samples to be taken.
    pub allowed: bool,
    /// How far each collection is.
    pub collections: Vec<CollectionProgress>,
}

impl SamplesReport {
    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How far a collection is on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum CollectionStage {
    /// Nothing is taken, for the reason given.
    #[default]
    Refused,
    /// Samples are taken.
    Sampling,
    /// What was kept waits to be uploaded, or is being.
    Uploading,
    /// Everything that was kept is at the controller.
    Uploaded,
    /// What was kept was given up, for the reason given.
    GivenUp,
    /// Something this version has no word for.
    #[serde(other)]
    Other,
}

/// One collection on a device. Counts are since it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CollectionProgress {
    /// The collection.
    pub collection: CollectionId,
    /// How far it is.
    #[serde(default)]
    pub stage: CollectionStage,
    /// Why nothing is taken, or why it waits, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Inferences that matched the rule.
    #[serde(default)]
    pub matched: u64,
    /// Samples kept at this moment.
    #[serde(default)]
    pub held: u64,
    /// Bytes of them, sealed.
    #[serde(default)]
    pub held_bytes: u64,
    /// Inferences passed over unseen, because others were being sealed or written.
    #[serde(default)]
    pub dropped: u64,
    /// Samples that matched and are larger than the limits allow.
    #[serde(default)]
    pub too_large: u64,
    /// Samples lost, because they could not be written.
    #[serde(default)]
    pub lost: u64,
    /// Samples the controller has.
    #[serde(default)]
    pub uploaded: u64,
}

impl CollectionProgress {
    /// Of a collection that has not begun.
    #[must_use]
    pub fn new(collection: CollectionId, stage: CollectionStage) -> Self {
        Self {
            collection,
            stage,
            reason: None,
            matched: 0,
            held: 0,
            held_bytes: 0,
            dropped: 0,
            too_large: 0,
            lost: 0,
            uploaded: 0,
        }
    }
}
