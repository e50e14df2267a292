//! How good a model is by its labels: accuracy, precision, recall, calibration, errors, and how sure that is.
//!
//! Everything is computed from counts ([`crate::sketch::LabelCounts`]). The device is the statistical unit: where several
//! have labels, intervals and tests rest on how much devices differ, not on how many labels there are.

mod concept;
mod estimate;
mod limit;
mod metrics;
#[cfg(test)]
mod peers;
mod report;

pub use concept::{
    Baseline, ClassBaseline, ConceptDrift, MIN_ACCURACY_DROP, MIN_ERROR_RISE, TargetBaseline, concept_drift,
    concept_drift_since,
};
pub use estimate::{Estimate, difference_estimate, mean_estimate, share_estimate};
pub use limit::{AgainstLimit, Metric, against_limit, share_above};
pub use metrics::{
    ClassQuality, ClassificationQuality, ReliabilityBin, TargetQuality, calibration_error, device_score,
    measure_classes, measure_target,
};
pub use report::{LabelStanding, Quality, QualityGroup, QualityReport, SliceQuality, TrendPoint, quality_of};

/// Confidence of every interval.
pub const INTERVAL: f64 = 0.95;
