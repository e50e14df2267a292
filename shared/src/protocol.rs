//! Minor numbers of version 1 of the wire contract: which agent understands what.
//!
//! Messages ignore fields they do not know, so most of the contract grows without a number. Signed documents refuse them, and so does
//! whoever reads one: before a field is written into a document, the device it is for must have said that it knows it. A device says its
//! number in each report ([`StateReport::protocol`]); of one that says none [`number_of`] goes by what only later agents report.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bundle::{Manifest, Requirements};
use crate::messages::StateReport;
use crate::profile::{Objectives, Profile, Source};
use crate::trust::{Activation, Assignment, DeliveryPolicy, Stage, Track};

/// What this code understands.
pub const PROTOCOL: u32 = 3;

/// Something that documents may hold and that agents did not always know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// [`Assignment::delivery`].
    Delivery,
    /// [`Assignment::stage`].
    Stage,
    /// [`Assignment::activation`].
    Activation,
    /// [`Manifest::pipeline`].
    Pipeline,
    /// [`Manifest::schema`].
    DataSchema,
    /// [`Manifest::card`].
    Card,
    /// What a [`Profile`] may hold beside columns of single elements, classes and confidences.
    WideProfile,
    /// [`Requirements::cpu_features`].
    CpuFeatures,
    /// [`Assignment::track`] and [`Manifest::program`].
    ProgramTrack,
    /// [`Requirements::attributes`].
    AttributeRequirements,
}

impl Feature {
    /// Every one there is.
    pub const ALL: [Self; 10] = [
        Self::Delivery,
        Self::Stage,
        Self::Activation,
        Self::Pipeline,
        Self::DataSchema,
        Self::Card,
        Self::WideProfile,
        Self::CpuFeatures,
        Self::ProgramTrack,
        Self::AttributeRequirements,
    ];

    /// The number with which it came.
    #[must_use]
    pub const fn since(self) -> u32 {
        match self {
            Self::Delivery
            | Self::Stage
            | Self::Activation
            | Self::Pipeline
            | Self::DataSchema
            | Self::Card
            | Self::WideProfile
            | Self::CpuFeatures => 1,
            Self::ProgramTrack => 2,
            Self::AttributeRequirements => 3,
        }
    }

    /// Whether a device that says `protocol` knows it.
    #[must_use]
    pub const fn is_known_to(self, protocol: u32) -> bool {
        protocol >= self.since()
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delivery => "when and how fast to fetch",
            Self::Stage => "running a bundle beside another",
            Self::Activation => "waiting with the switch",
            Self::Pipeline => "pipelines around models",
            Self::DataSchema => "data schemas",
            Self::Card => "model cards",
            Self::WideProfile => "the bundle's monitoring profile",
            Self::CpuFeatures => "requirements on the processor",
            Self::ProgramTrack => "exchanging its own program",
            Self::AttributeRequirements => "requirements on attributes",
        })
    }
}

/// The number of the device that sent `report`.
///
/// Agents that say none are of number 0, or 1 where they report both what no configuration can set and agents have reported since they know
/// how to hold ([`StateReport::can_hold`]), and the size of their disk, which they find since they know requirements on the processor. An
/// `agent-version` tells nothing: the first agent reported it.
#[must_use]
pub fn number_of(report: &StateReport) -> u32 {
    let is_one = || report.can_hold && report.attributes.contains_key("disk-bytes");
    if report.protocol == 0 { u32::from(is_one()) } else { report.protocol }
}

impl Manifest {
    /// What an agent must know to read it.
    #[must_use]
    pub fn features(&self) -> BTreeSet<Feature> {
        let Profile { columns, slices, labels, outliers, quantiles, objectives } = &self.profile;
        let is_plain = columns.iter().all(|column| match &column.source {
            Source::Input { .. }
            | Source::Output { .. }
            | Source::PredictedClass { .. }
            | Source::Confidence { .. } => true,
            Source::Entropy { .. } | Source::Margin { .. } | Source::Probe { .. } | Source::Projection { .. } => false,
        });
        let is_bare = slices.is_empty() && labels.is_none() && outliers.is_none() && quantiles.is_empty();
        let Requirements { cpu_features, attributes, .. } = &self.requirements;
        let held = [
            (Feature::Pipeline, self.pipeline.is_some()),
            (Feature::DataSchema, self.schema.is_some()),
            (Feature::Card, self.card.is_some()),
            (Feature::WideProfile, !is_plain || !is_bare || !Objectives::is_empty(objectives)),
            (Feature::CpuFeatures, !cpu_features.is_empty()),
            (Feature::ProgramTrack, self.program.is_some()),
            (Feature::AttributeRequirements, attributes.is_some()),
        ];
        held.into_iter().filter(|(_, is_held)| *is_held).map(|(feature, _)| feature).collect()
    }
}

/// Why nothing can be written that a device reads: what it would have to hold, the device does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the device does not know {}: update its agent first", words(.0))]
pub struct NotUnderstood(pub BTreeSet<Feature>);

/// `features` in words, one after the other.
#[must_use]
pub fn words(features: &BTreeSet<Feature>) -> String {
    features.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Assignment {
    /// It, in a form that a device of number `protocol` reads. What eases the fetching is left out where the device does not know of it;
    /// whatever else it says must be understood.
    ///
    /// # Errors
    /// [`NotUnderstood`] with what the device does not know.
    pub fn written_for(mut self, protocol: u32) -> Result<Self, NotUnderstood> {
        if !Feature::Delivery.is_known_to(protocol) {
            self.delivery = DeliveryPolicy::default();
        }
        let held = [
            (Feature::Stage, !Stage::is_serve(&self.stage)),
            (Feature::Activation, !Activation::is_at_once(&self.activation)),
            (Feature::ProgramTrack, !Track::is_model(&self.track)),
        ];
        let unknown = held.into_iter().filter(|(feature, is_held)| *is_held && !feature.is_known_to(protocol));
        let unknown: BTreeSet<Feature> = unknown.map(|(feature, _)| feature).collect();
        if unknown.is_empty() { Ok(self) } else { Err(NotUnderstood(unknown)) }
    }
}

#[cfg(any(test, feature = "earlier-agents"))]
pub mod earlier;
#[cfg(test)]
mod tests;
