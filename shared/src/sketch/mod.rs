//! Sketches: what a device remembers of a window instead of raw values.
//!
//! Every sketch is a vector of counts over cells fixed beforehand, so that merging is adding: exact, commutative and
//! free of order. Nothing here reads a value twice or keeps one. The cells of a column come from the signed
//! [`crate::profile::Profile`].

mod column;
mod comparison;
mod labels;
mod latency;
mod outliers;
mod quality;
mod slices;
mod sparse;
mod window;

pub use column::{Cell, ClassSketch, ColumnSketch, MergeError, Moments, NumericSketch};
pub use comparison::{
    ClassPairs, ColumnComparison, Comparison, DIFFERENCE_EDGES, Differences, MAX_PAIRS, UNTOLD_CLASS,
};
pub use labels::{
    CALIBRATION_BINS, CONFIDENCE_UNITS, CalibrationBin, ClassLabels, ERROR_BINS, ERROR_BOUNDS, LabelCounts,
    LabelSketch, MAX_CONFUSIONS, TargetLabels,
};
pub use latency::{LATENCY_RELATIVE_ERROR, LatencySketch};
pub use outliers::OutlierCounts;
pub use quality::{Cause, QualitySketch};
pub use slices::{SliceSketch, SliceSketches};
pub use window::{SketchWindow, WindowError};
