//! One wave as asked for: how large it is, and how long it is watched.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::selector::Selector;
use crate::trust::Stage;

/// How large a wave is, all waves before it included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum WaveSize {
    /// That many devices, written `3`.
    Count(u32),
    /// That share of the devices meant, rounded up, written `25%`.
    Percent(u8),
}

impl WaveSize {
    /// How many of `candidates` devices the wave reaches.
    #[must_use]
    pub fn of(self, candidates: usize) -> usize {
        match self {
            Self::Count(count) => candidates.min(count as usize),
            Self::Percent(percent) => (candidates * usize::from(percent)).div_ceil(100).min(candidates),
        }
    }
}

/// Why a text is not a wave's size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the size of a wave: write a number of devices (3) or a share (25%), neither of them zero")]
pub struct WaveSizeError(String);

impl FromStr for WaveSize {
    type Err = WaveSizeError;
    fn from_str(text: &str) -> Result<Self, WaveSizeError> {
        let refuse = || WaveSizeError(text.chars().take(40).collect());
        match text.trim().strip_suffix('%') {
            Some(percent) => {
                let percent = percent.parse().map_err(|_| refuse())?;
                (1..=100).contains(&percent).then_some(Self::Percent(percent)).ok_or_else(refuse)
            }
            None => {
                let count = text.trim().parse().map_err(|_| refuse())?;
                (count > 0).then_some(Self::Count(count)).ok_or_else(refuse)
            }
        }
    }
}

impl TryFrom<String> for WaveSize {
    type Error = WaveSizeError;
    fn try_from(text: String) -> Result<Self, WaveSizeError> {
        text.parse()
    }
}

impl From<WaveSize> for String {
    fn from(size: WaveSize) -> String {
        size.to_string()
    }
}

impl fmt::Display for WaveSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// One wave of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WaveSpec {
    /// How large it is.
    pub size: WaveSize,
    /// Narrows the wave to some of the rollout's devices, as to one site.
    #[serde(default)]
    pub selector: Option<Selector>,
    /// The least time it is watched after its devices have committed, in milliseconds.
    pub soak_ms: u64,
    /// After this without a verdict the rollout pauses, in milliseconds.
    pub max_duration_ms: u64,
    /// In which part its devices run the bundle, where that is another than the rollout's: as shadow, before they serve it with a later
    /// wave. The size of a wave that serves counts the devices that serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
}

impl WaveSpec {
    /// A wave of the rollout's devices, whichever they are.
    #[must_use]
    pub fn of(size: WaveSize, soak_ms: u64, max_duration_ms: u64) -> Self {
        Self { size, selector: None, soak_ms, max_duration_ms, stage: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_up_and_never_past_the_fleet() {
        for (text, candidates, size) in
            [("1%", 12, 1), ("25%", 10, 3), ("100%", 7, 7), ("3", 12, 3), ("30", 12, 12), ("50%", 0, 0)]
        {
            assert_eq!(text.parse::<WaveSize>().unwrap().of(candidates), size, "{text} of {candidates}");
        }
        for bad in ["", "0", "0%", "101%", "-1", "1.5%", "%", "ten"] {
            assert!(bad.parse::<WaveSize>().is_err(), "{bad}");
        }
    }
}
