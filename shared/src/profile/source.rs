//! Where a column's values come from, and what is asked of a wide tensor in place of its elements.

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_PROBE_CHANNELS, PROJECTIONS};

/// Where a column's value comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "from", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Source {
    /// Element `index` of each row of the input tensor `tensor`: a number, or which of the column's classes it is.
    Input {
        /// The input's name.
        tensor: String,
        /// Element of the row, counted from 0.
        index: u32,
    },
    /// Element `index` of each row of the output tensor `tensor`: a number, or which of the column's classes it is.
    Output {
        /// The output's name.
        tensor: String,
        /// Element of the row, counted from 0.
        index: u32,
    },
    /// The class with the largest value in each row of the output tensor `tensor`.
    PredictedClass {
        /// The output's name.
        tensor: String,
    },
    /// The largest value in each row of the output tensor `tensor`.
    Confidence {
        /// The output's name.
        tensor: String,
    },
    /// −Σ p · ln p over each row of the output tensor `tensor`, in nats (Shannon, 1948). NaN where a value is below 0.
    Entropy {
        /// The output's name.
        tensor: String,
    },
    /// The largest value less the second largest in each row of the output tensor `tensor`.
    Margin {
        /// The output's name.
        tensor: String,
    },
    /// A figure over all elements of each row.
    Probe {
        /// Whether the tensor goes into the model or comes out of it.
        of: Side,
        /// The tensor's name.
        tensor: String,
        /// Which figure.
        probe: Probe,
    },
    /// A random projection of each row onto a line: the sum of a random sixteenth of its elements, each with a random sign. How they
    /// are drawn from `seed` is part of the wire contract; see `muster_inference`'s module `wide`.
    Projection {
        /// Whether the tensor goes into the model or comes out of it.
        of: Side,
        /// The tensor's name.
        tensor: String,
        /// What all of a tensor's projections are drawn from.
        seed: u64,
        /// Which of the sixteen, counted from 0.
        number: u8,
    },
}

/// Which end of a model a tensor is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Side {
    /// It goes in.
    Input,
    /// It comes out.
    Output,
}

/// A figure over all elements of a row of a wide tensor. All are NaN in a row with an element that is no finite number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Probe {
    /// Their mean.
    Mean,
    /// Their standard deviation (over n).
    Std,
    /// The least.
    Min,
    /// The greatest.
    Max,
    /// The root of the sum of their squares.
    Norm,
    /// The mean of how far each lies from the one before it in the tensor's order: low where an image is blurred or a signal stuck.
    Roughness,
    /// The share of elements that are 0.
    Zeros,
    /// The share of elements that reach a greatest value.
    Saturated {
        /// That value: the greatest of the reference sample.
        at: f32,
    },
    /// The mean of one channel of an image.
    ChannelMean {
        /// Which, counted from 0.
        channel: u8,
        /// How many there are.
        channels: u8,
        /// Whether the channel is the last dimension of a row, rather than the first.
        last: bool,
    },
}

impl Source {
    /// The tensor's end of the model and its name.
    #[must_use]
    pub fn tensor(&self) -> (Side, &str) {
        match self {
            Self::Input { tensor, .. } => (Side::Input, tensor),
            Self::Output { tensor, .. }
            | Self::PredictedClass { tensor }
            | Self::Confidence { tensor }
            | Self::Entropy { tensor }
            | Self::Margin { tensor } => (Side::Output, tensor),
            Self::Probe { of, tensor, .. } | Self::Projection { of, tensor, .. } => (*of, tensor),
        }
    }

    /// Whether it gives numbers only, never classes.
    pub(super) fn is_numeric(&self) -> bool {
        !matches!(self, Self::Input { .. } | Self::Output { .. } | Self::PredictedClass { .. })
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Projection { number, .. } if usize::from(*number) >= PROJECTIONS => {
                Err("a tensor has 16 projections, counted from 0")
            }
            Self::Probe { probe: Probe::Saturated { at }, .. } if !at.is_finite() => {
                Err("what counts as saturated must be a finite number")
            }
            Self::Probe { probe: Probe::ChannelMean { channel, channels, .. }, .. }
                if channel >= channels || usize::from(*channels) > MAX_PROBE_CHANNELS =>
            {
                Err("an image has at most 4 channels, counted from 0")
            }
            Self::Input { .. }
            | Self::Output { .. }
            | Self::PredictedClass { .. }
            | Self::Confidence { .. }
            | Self::Entropy { .. }
            | Self::Margin { .. }
            | Self::Probe { .. }
            | Self::Projection { .. } => Ok(()),
        }
    }
}
