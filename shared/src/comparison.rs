//! How a bundle compares with the one it runs beside, as the API tells it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{BundleRef, Digest};
use crate::quality::Estimate;

/// What one of the two models was asked, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelFigures {
    /// Requests it was given.
    pub requests: u64,
    /// Of those, the ones it failed or answered with a number that is none.
    pub errors: u64,
    /// Median time in microseconds.
    pub latency_p50_us: Option<f64>,
    /// 99th percentile of the time in microseconds.
    pub latency_p99_us: Option<f64>,
}

/// Both models' answers in one column of the profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ColumnAgreement {
    /// A predicted class.
    Classes {
        /// The column.
        name: String,
        /// Rows compared.
        rows: u64,
        /// Share of rows for which both named the same class, with its 95 % interval over devices.
        agreement: Option<Estimate>,
        /// Rows by the incumbent's class, then by the candidate's; empty where there are too many classes.
        pairs: BTreeMap<String, BTreeMap<String, u64>>,
    },
    /// A number, in spreads of the incumbent's reference (a confidence: as it is).
    Numbers {
        /// The column.
        name: String,
        /// Rows compared.
        rows: u64,
        /// Rows for which one of the two gave no finite number.
        untold: u64,
        /// The candidate's mean less the incumbent's.
        mean_difference: Option<f64>,
        /// Root of the mean squared difference.
        root_mean_square: Option<f64>,
        /// Edges between the cells below.
        edges: Vec<f64>,
        /// Rows by difference; one cell more than edges.
        cells: Vec<u64>,
    },
}

/// Labels by which of two models was right on the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PairedLabels {
    /// Both were.
    pub both_right: u64,
    /// Only the incumbent was.
    pub incumbent_right: u64,
    /// Only the candidate was.
    pub candidate_right: u64,
    /// Neither was.
    pub both_wrong: u64,
}

/// How often one model was right.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Accuracy {
    /// Labels of its answers.
    pub labels: u64,
    /// Answers that were right.
    pub right: u64,
    /// Their share, with its 95 % interval over devices.
    pub accuracy: Option<Estimate>,
}

/// How far off one model was.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Errors {
    /// Labels of its answers that were numbers.
    pub labels: u64,
    /// Labels of answers that were none.
    pub unanswered: u64,
    /// The mean of its errors without their sign, with its 95 % interval over devices.
    pub mean_absolute_error: Option<Estimate>,
    /// The root of their mean square.
    pub root_mean_square_error: Option<f64>,
}

/// What labels say of one element of both models' answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TargetReport {
    /// The element, counted from 0.
    pub index: u32,
    /// The scale that the incumbent's bundle declares; without it (the bundle is gone), all below is in shares of it.
    pub scale: Option<f64>,
    /// Rows that both answered, and the incumbent came closer; 0 in a split, as the two below.
    pub incumbent_closer: u64,
    /// The candidate came closer.
    pub candidate_closer: u64,
    /// Both came as close.
    pub alike: u64,
    /// The incumbent's errors.
    pub incumbent: Errors,
    /// The candidate's errors.
    pub candidate: Errors,
    /// The candidate's mean absolute error less the incumbent's, with its 95 % interval over devices; below 0, the candidate is better.
    pub difference: Option<Estimate>,
}

/// What labels say of two models that ran side by side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum LabelReport {
    /// Labels are classes.
    Classes {
        /// Row by row, where a shadow answered the same rows; none for a split.
        paired: Option<PairedLabels>,
        /// The incumbent's answers.
        incumbent: Accuracy,
        /// The candidate's answers.
        candidate: Accuracy,
        /// The candidate's accuracy less the incumbent's, with its 95 % interval over devices; above 0, the candidate is better.
        difference: Option<Estimate>,
    },
    /// Labels are numbers.
    Numbers {
        /// Each element that is labelled.
        targets: Vec<TargetReport>,
    },
    /// So few of one of the two that nothing is shown of them.
    TooFew {
        /// Labels of the incumbent's answers.
        incumbent: u64,
        /// Labels of the candidate's answers.
        candidate: u64,
        /// How many each needs.
        needed: u64,
    },
}

/// One group of devices on which the bundle ran beside one and the same incumbent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ComparisonGroup {
    /// The value of the label the devices are grouped by; empty for those without it, and for the whole fleet.
    pub group: String,
    /// Digest of the incumbent's manifest.
    pub against: Digest,
    /// Its name and version.
    pub incumbent: Option<BundleRef>,
    /// Devices that reported.
    pub devices: u32,
    /// Windows they reported.
    pub windows: u64,
    /// Requests that both models answered.
    pub compared: u64,
    /// Requests that fell to the candidate and were not run on it, for want of room or time.
    pub skipped: u64,
    /// Of those skipped, the ones that came while a device was short of memory, or hot, and ran no shadow.
    #[serde(default)]
    pub paused: u64,
    /// Requests that the candidate failed and the incumbent answered.
    pub candidate_failed: u64,
    /// The candidate's figures. Of a shadow, the time is how long the model took; of a split, from a request's last byte to its answer's
    /// first.
    pub candidate_figures: ModelFigures,
    /// The incumbent's, on the same devices while the candidate ran there; of a shadow, times are of the requests compared alone.
    pub incumbent_figures: ModelFigures,
    /// Columns of answers that both have.
    pub columns: Vec<ColumnAgreement>,
    /// What labels say of the two; none where none came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<LabelReport>,
}

/// How a bundle compares with what it ran beside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ComparisonReport {
    /// The bundle that ran beside another.
    pub bundle: BundleRef,
    /// The label the devices are grouped by; none for the whole fleet.
    pub group_by: Option<String>,
    /// Windows that start before this are left out, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// One entry a group and incumbent.
    pub groups: Vec<ComparisonGroup>,
}
