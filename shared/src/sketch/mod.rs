//! Sketches: what a device remembers of a window instead of raw values.
//!
//! Every sketch is a vector of counts over cells fixed beforehand, so that merging is adding: exact, commutative and
//! free of order. Nothing here reads a value twice or keeps one. The cells of a column come from the signed
//! [`crate::profile::Profile`]. One kind is otherwise, and kept only where a bundle asks for it: [`QuantileSketch`] contains raw
//! values, and of what is merged only their number is exact.

mod column;
mod columns;
mod common;
mod comparison;
mod counts;
mod labels;
mod latency;
mod objectives;
mod outcomes;
mod outliers;
mod quality;
mod quantiles;
mod slices;
mod sparse;
mod window;

#[cfg(test)]
mod peers;
#[cfg(test)]
mod sizes;

pub use column::{Cell, ClassSketch, ColumnSketch, MergeError, Moments, NumericSketch};
pub use common::common_answers;
pub use comparison::{
    ClassPairs, ColumnComparison, Comparison, DIFFERENCE_EDGES, Differences, MAX_PAIRS, UNTOLD_CLASS,
};
pub use labels::{
    CALIBRATION_BINS, CONFIDENCE_UNITS, CalibrationBin, ClassLabels, ERROR_BINS, ERROR_BOUNDS, LabelCounts,
    LabelSketch, MAX_CONFUSIONS, TargetLabels,
};
pub use latency::{LATENCY_RELATIVE_ERROR, LatencySketch};
pub use objectives::{LatencyCount, ObjectiveCounts};
pub use outcomes::{Arm, ClassOutcomes, ErrorSums, LabelOutcomes, Labelled, RightCounts, TargetOutcomes};
pub use outliers::OutlierCounts;
pub use quality::{Cause, QualitySketch};
pub use quantiles::{QuantileSketch, QuantileSketchError, QuantileSketches, SHOWN_RANKS};
pub use slices::{SliceSketch, SliceSketches};
pub use window::{SketchWindow, WindowError};
