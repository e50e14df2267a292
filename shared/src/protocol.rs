//! Minor numbers of version 1 of the wire contract: which agent understands what.
//!
//! Messages ignore fields they do not know, so most of the contract grows without a number. Signed documents refuse them, and so does
//! whoever reads one: before a field is written into a document, the device it is for must have said that it knows it. A device says its
//! number in each report ([`crate::messages::StateReport::protocol`]); one that says none has number 0.

use serde::{Deserialize, Serialize};

/// What this code understands.
pub const PROTOCOL: u32 = 2;

/// Something that documents may hold and that agents did not always know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// [`crate::trust::Assignment::delivery`].
    Delivery,
    /// [`crate::trust::Assignment::stage`].
    Stage,
    /// [`crate::trust::Assignment::activation`].
    Activation,
    /// [`crate::bundle::Requirements::cpu_features`].
    CpuFeatures,
    /// [`crate::trust::Assignment::track`] and [`crate::bundle::Manifest::program`].
    ProgramTrack,
}

impl Feature {
    /// The number with which it came.
    #[must_use]
    pub const fn since(self) -> u32 {
        match self {
            Self::Delivery | Self::Stage | Self::Activation | Self::CpuFeatures => 1,
            Self::ProgramTrack => 2,
        }
    }

    /// Whether a device that says `protocol` knows it.
    #[must_use]
    pub const fn is_known_to(self, protocol: u32) -> bool {
        protocol >= self.since()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_nothing_is_sent_nothing_new() {
        let all = [Feature::Delivery, Feature::Stage, Feature::Activation, Feature::CpuFeatures, Feature::ProgramTrack];
        let known = |protocol| all.into_iter().filter(|feature| feature.is_known_to(protocol)).count();
        assert_eq!((known(0), known(1), known(2), known(u32::MAX)), (0, 4, 5, 5));
        assert!(all.into_iter().all(|feature| feature.is_known_to(PROTOCOL)), "this code knows what it writes");
    }
}
