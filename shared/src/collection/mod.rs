//! Samples for retraining: what a device may keep of its inputs, for how long, and for whose eyes.
//!
//! An operator opens a collection; the director signs for each device which collections there are for it ([`Collections`]), as it does with
//! assignments. One document says everything, so that what it does not name any more has ended: a device deletes that. Samples are sealed
//! to the collection's recipient ([`seal`]) before they are written anywhere; neither device nor controller can open them again.
//! What may be collected at all is for the device's owner to say, and which inference is kept for `muster-agent-core`.

mod batch;
mod progress;
mod recipient;
mod sample;
pub mod seal;
mod views;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::batch::{Batch, BatchError, FRAME_HEAD_BYTES};
pub use self::progress::{CollectionProgress, CollectionStage, SamplesReport};
pub use self::recipient::{RecipientError, RecipientKey, RecipientSecret};
pub use self::sample::{DISAGREES_FLAG, Sample, SampleError, SampleTensor};
pub use self::views::{
    BatchStored, CloseCollection, Closing, CollectionDevice, CollectionStatus, CollectionView, CreateCollection,
    SampleBatch, SampleLabel, SampleLabels,
};
use crate::ids::{CollectionId, DeviceId, Digest};
use crate::limits::{MAX_COLLECTION_BUNDLES, MAX_COLLECTIONS, MAX_SAMPLES};

/// Which inferences are kept; of those that match, an unbiased choice where there are more than the limits allow.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "rule", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Rule {
    /// Each with this probability.
    Random {
        /// From above 0 to 1.
        share: f64,
    },
    /// Those whose confidence is below a threshold in at least one row: the largest value of the output that the profile takes for it.
    LowConfidence {
        /// The threshold.
        below: f64,
    },
    /// Those with a value that the reference never had: outside its range, or of no known class.
    Outlier {},
    /// Those on which a shadow disagreed with the answer: another class or, where no classes are predicted, a number that is off by a spread of
    /// the reference or more.
    ShadowDisagreement {},
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random { share } => write!(f, "random {share}"),
            Self::LowConfidence { below } => write!(f, "confidence below {below}"),
            Self::Outlier {} => f.write_str("outliers"),
            Self::ShadowDisagreement {} => f.write_str("disagreement in shadow"),
        }
    }
}

/// How much one device keeps at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SampleLimits {
    /// Inferences.
    pub max_count: u32,
    /// Bytes of them, sealed.
    pub max_bytes: u64,
}

/// How far a collection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Samples are taken, until the collection's time is up.
    Open,
    /// None is taken any more; those kept are uploaded.
    Closed,
}

/// One collection, as a device is told of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Its name.
    pub collection: CollectionId,
    /// Digests of the manifests whose inferences count.
    pub manifests: Vec<Digest>,
    /// Which of them.
    pub rule: Rule,
    /// How much of them.
    pub limits: SampleLimits,
    /// Whether samples are still taken.
    pub phase: Phase,
    /// None is taken from then on, in milliseconds since the Unix epoch.
    pub ends_ms: u64,
    /// What has not been uploaded by then is deleted, in milliseconds since the Unix epoch.
    pub upload_by_ms: u64,
    /// Whose key opens the samples.
    pub recipient: RecipientKey,
}

/// The statement "these are the collections of this device, and there are no others".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collections {
    /// The device it is for.
    pub device: DeviceId,
    /// Grows whenever another statement is made for the device.
    pub generation: u64,
    /// When it was signed, in milliseconds since the Unix epoch.
    pub issued_at_ms: u64,
    /// After this it must not be acted upon, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// The collections, by name; at most [`MAX_COLLECTIONS`].
    pub collections: Vec<Wanted>,
}

impl Wanted {
    fn problem(&self) -> Option<String> {
        if self.manifests.is_empty() || self.manifests.len() > MAX_COLLECTION_BUNDLES {
            return Some(format!("names {} bundles, 1 to {MAX_COLLECTION_BUNDLES} are allowed", self.manifests.len()));
        }
        if self.upload_by_ms < self.ends_ms {
            return Some("is to be uploaded before it ends".to_owned());
        }
        self.rule.problem().or_else(|| self.limits.problem())
    }
}

impl Rule {
    /// What is wrong with it, in words.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Random { share } if !(*share > 0.0 && *share <= 1.0) => {
                Some(format!("has the share {share}, which must be above 0 and at most 1"))
            }
            Self::LowConfidence { below } if !below.is_finite() => Some("has a threshold that is no number".to_owned()),
            Self::Random { .. } | Self::LowConfidence { .. } | Self::Outlier {} | Self::ShadowDisagreement {} => None,
        }
    }
}

impl SampleLimits {
    /// What is wrong with them, in words.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        if self.max_count == 0 || self.max_count > MAX_SAMPLES {
            return Some(format!("keeps {} samples, 1 to {MAX_SAMPLES} are allowed", self.max_count));
        }
        (self.max_bytes == 0).then(|| "keeps no byte".to_owned())
    }
}

impl Collections {
    /// What is wrong with it, in words.
    ///
    /// # Errors
    /// The first thing that is.
    pub fn validate(&self) -> Result<(), String> {
        if self.collections.len() > MAX_COLLECTIONS {
            return Err(format!(
                "it names {} collections, at most {MAX_COLLECTIONS} are allowed",
                self.collections.len()
            ));
        }
        for (at, wanted) in self.collections.iter().enumerate() {
            if let Some(problem) = wanted.problem() {
                return Err(format!("the collection {} {problem}", wanted.collection));
            }
            if self.collections[..at].iter().any(|before| before.collection == wanted.collection) {
                return Err(format!("the collection {} is named twice", wanted.collection));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
