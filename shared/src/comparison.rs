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
    /// Requests that the candidate failed and the incumbent answered.
    pub candidate_failed: u64,
    /// The candidate's figures. Of a shadow, the time is how long the model took; of a split, from a request's last byte to its answer's
    /// first.
    pub candidate_figures: ModelFigures,
    /// The incumbent's, on the same devices while the candidate ran there; of a shadow, times are of the requests compared alone.
    pub incumbent_figures: ModelFigures,
    /// Columns of answers that both have.
    pub columns: Vec<ColumnAgreement>,
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
