//! Drift as the API tells it: scores with critical values, verdicts, and what lies behind them.

use serde::{Deserialize, Serialize};

use super::inputs::{DataQuality, OutlierRates};
use crate::drift::{ChiSquare, Clustering, Score};
use crate::ids::{BundleRef, DeviceId, Digest};
use crate::profile::{Column, Reference, Side, Source};
use crate::quality::ConceptDrift;
use crate::sketch::LatencyCount;

/// What a column tells about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Subject {
    /// A feature of the model's input.
    #[default]
    Input,
    /// A number the model answers.
    Output,
    /// The class the model predicts.
    PredictedClass,
    /// How sure the model is: the largest probability of its answer, their entropy, or by how much the largest leads.
    Confidence,
}

impl Subject {
    /// What `column` tells about.
    #[must_use]
    pub fn of(column: &Column) -> Self {
        match (&column.source, &column.reference) {
            (Source::Input { .. }, _) => Self::Input,
            (Source::PredictedClass { .. }, _) | (Source::Output { .. }, Reference::Class { .. }) => {
                Self::PredictedClass
            }
            (Source::Output { .. }, Reference::Numeric { .. }) => Self::Output,
            (Source::Confidence { .. } | Source::Entropy { .. } | Source::Margin { .. }, _) => Self::Confidence,
            (Source::Probe { of, .. } | Source::Projection { of, .. }, _) => match of {
                Side::Input => Self::Input,
                Side::Output => Self::Output,
            },
        }
    }
}

/// A score that can say that a column has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ScoreName {
    /// Population stability index; of an input also called characteristic stability index.
    Psi,
    /// Jensen–Shannon divergence.
    JensenShannon,
    /// Largest difference of one cell's share.
    LInfinity,
    /// Kolmogorov–Smirnov statistic.
    KolmogorovSmirnov,
    /// Wasserstein-1 distance.
    Wasserstein,
    /// Pearson's χ².
    ChiSquare,
    /// Share of missing values.
    Missing,
    /// Share of values outside the reference's range, or in no known class.
    Unexpected,
}

/// How one column of one group has moved from the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ColumnDrift {
    /// The column's name.
    pub name: String,
    /// Whether it tells about the model's answers rather than its inputs.
    pub prediction: bool,
    /// What it tells about.
    #[serde(default)]
    pub subject: Subject,
    /// Population stability index (of an input: characteristic stability index); none without counts.
    pub psi: Option<f64>,
    /// The value it exceeds by chance with probability [`DriftReport::alpha`].
    pub critical: Option<f64>,
    /// Jensen–Shannon divergence in bits; its square root is the distance.
    #[serde(default)]
    pub jensen_shannon: Option<Score>,
    /// Largest difference of one cell's share.
    #[serde(default)]
    pub l_infinity: Option<Score>,
    /// Kolmogorov–Smirnov statistic from bins; of numbers.
    #[serde(default)]
    pub kolmogorov_smirnov: Option<Score>,
    /// Wasserstein-1 distance from bins, in standard deviations of the reference; of numbers that have one.
    #[serde(default)]
    pub wasserstein: Option<Score>,
    /// Pearson's test for two samples at the size the counts are worth.
    #[serde(default)]
    pub chi_square: Option<ChiSquare>,
    /// Values counted.
    pub n: u64,
    /// How many independent values they are worth, clustering in devices considered.
    pub n_effective: f64,
    /// How that was found.
    #[serde(default)]
    pub clustering: Clustering,
    /// Share of rows without a value, or with NaN.
    pub missing_share: f64,
    /// The same of the reference.
    #[serde(default)]
    pub reference_missing_share: f64,
    /// The chance of such a change of the missing share when nothing has moved.
    #[serde(default)]
    pub missing_p_value: Option<f64>,
    /// Share of values outside the reference's range, infinite, or in no known class.
    pub unexpected_share: f64,
    /// The chance of such a share when nothing has moved.
    #[serde(default)]
    pub unexpected_p_value: Option<f64>,
    /// The chance of evidence this strong, all tests of the column together, when nothing has moved.
    #[serde(default)]
    pub p_value: Option<f64>,
    /// Benjamini and Hochberg's false discovery rate over all columns and groups of the report: of the columns whose rate is at most this
    /// one, that share is expected not to have moved.
    #[serde(default)]
    pub q_value: Option<f64>,
    /// `p_value` is at most α.
    #[serde(default)]
    pub significant: bool,
    /// Some move is large enough to matter.
    #[serde(default)]
    pub effect: bool,
    /// Scores beyond what chance makes of them, with probability α each.
    #[serde(default)]
    pub beyond_chance: Vec<ScoreName>,
    /// The verdict: what is significant is also large enough to matter, and `q_value` is at most α.
    pub drifted: bool,
}

/// Drift of one group of devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DriftGroup {
    /// The value of the label the devices are grouped by; empty for those without it, and for the whole fleet.
    pub group: String,
    /// The slice of rows; none for all of them.
    #[serde(default)]
    pub slice: Option<String>,
    /// The earliest start of its windows, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub start_ms: u64,
    /// The latest end of its windows.
    #[serde(default)]
    pub end_ms: u64,
    /// Devices that reported.
    pub devices: u32,
    /// Windows they reported.
    pub windows: u64,
    /// It is kept back: a slice of fewer rows than `k_min`, or one without which such a slice could be found by subtraction.
    #[serde(default)]
    pub suppressed: bool,
    /// One entry a column, in the profile's order.
    pub columns: Vec<ColumnDrift>,
    /// What was wrong with the inputs; none of slices, and where nothing was looked at.
    #[serde(default)]
    pub quality: Option<DataQuality>,
    /// Rows unlike those of the reference; none of slices, and where the profile flags none.
    #[serde(default)]
    pub outliers: Option<OutlierRates>,
    /// Of the columns of which the bundle wants quantiles; none of slices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quantiles: Vec<ColumnQuantiles>,
    /// Requests held against the bundle's latency objectives; not told apart by step of time or slice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objectives: Vec<LatencyCount>,
}

/// Quantiles of a column, which are raw values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ColumnQuantiles {
    /// The column.
    pub column: String,
    /// Finite values seen.
    pub n: u64,
    /// How far the share at or below a quantile may be from the one it stands for, with 99 % confidence.
    pub rank_error: f64,
    /// Shares, and the values at or below which they lie.
    pub quantiles: Vec<(f64, f64)>,
}

/// Drift of a bundle against its reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DriftReport {
    /// Which bundle.
    pub bundle: BundleRef,
    /// Digest of its profile.
    pub profile: Digest,
    /// The label the devices are grouped by; none for the whole fleet.
    pub group_by: Option<String>,
    /// Whether windows are told apart too: one group for each step of time, in order.
    #[serde(default)]
    pub by_window: bool,
    /// Chance of a false alarm among all columns and groups when nothing has moved; of each score to exceed its critical value.
    pub alpha: f64,
    /// The score below which a significant move is too small to matter.
    pub min_effect: f64,
    /// Windows that start before this are left out, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Rows a slice needs at least to be shown.
    #[serde(default)]
    pub k_min: u64,
    /// One entry a group; its slices follow it, the worst first.
    pub groups: Vec<DriftGroup>,
}

/// In which sense a column has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DriftKind {
    /// Nothing beyond chance, or nothing that matters.
    None,
    /// The inputs have come to be distributed otherwise.
    Data,
    /// The answers have come to be distributed otherwise: label shift, where inputs of a class look as before.
    Prediction,
    /// What the model learned holds no more: labels say that it errs more often; without labels, it is less (or more) sure of its answers.
    Concept,
    /// Values are missing or impossible.
    Quality,
    /// Training and serving differ: it was so from the first windows on.
    Skew,
}

/// What is said of concept drift rests on this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ConceptBasis {
    /// There are neither labels nor a certainty to go by.
    #[default]
    Nothing,
    /// How sure the model is of its answers; there are no labels, or too few.
    Certainty,
    /// Labels against those of the reference sample.
    LabelsAgainstReference,
    /// The reference sample had no labels: those of the later half of the windows against those of the earlier half.
    LabelsAgainstEarlier,
}

/// One cell of a column on both sides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CellChange {
    /// What falls into it: `[1.5, 2)`, a class, `missing`.
    pub cell: String,
    /// Rows of the reference.
    pub reference: u64,
    /// Rows of the devices.
    pub current: u64,
    /// Their share less the reference's.
    pub change: f64,
    /// Its part of the population stability index.
    pub psi: f64,
}

/// What one device adds to a column's drift.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeviceDrift {
    /// Which device.
    pub device: DeviceId,
    /// Its rows.
    pub n: u64,
    /// Its own population stability index.
    pub psi: f64,
    /// The index of all others together; none where there are none.
    pub psi_without: Option<f64>,
    /// By which share leaving it out lessens the index; negative where it hides drift.
    pub contribution: f64,
}

/// Why a column counts as drifted or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DriftExplanation {
    /// Which bundle.
    pub bundle: BundleRef,
    /// The label the devices are grouped by; none for the whole fleet.
    pub group_by: Option<String>,
    /// Which group.
    pub group: String,
    /// Devices that reported.
    pub devices: u32,
    /// The scores.
    pub column: ColumnDrift,
    /// In which sense it has moved.
    pub kind: DriftKind,
    /// That in one sentence.
    pub sentence: String,
    /// What labels say of the whole group: one comparison for a classifier, one for each target of a regression; none without enough labels.
    #[serde(default)]
    pub concept: Vec<ConceptDrift>,
    /// On what it rests whether there is concept drift.
    #[serde(default)]
    pub concept_basis: ConceptBasis,
    /// Every cell, in order.
    pub cells: Vec<CellChange>,
    /// The devices that contribute most, at most ten.
    pub contributors: Vec<DeviceDrift>,
    /// The first of the last unbroken run of time steps in which the column counted as drifted; none when the last one did not.
    pub since_ms: Option<u64>,
}

/// The quantile sketch of one column in one group, and step of time where these are told apart. It contains raw values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupQuantiles {
    /// The value of the label the devices are grouped by.
    pub group: String,
    /// The earliest start of its windows, in milliseconds since the Unix epoch.
    pub start_ms: u64,
    /// The latest end of its windows.
    pub end_ms: u64,
    /// Devices that reported.
    pub devices: u32,
    /// The column.
    pub column: String,
    /// Finite values seen.
    pub n: u64,
    /// How far the share at or below a quantile may be from the one it stands for, with 99 % confidence.
    pub rank_error: f64,
    /// Apache DataSketches' `kll_floats_sketch`, in Base64.
    pub sketch: String,
}

/// Quantile sketches of a bundle, for notebooks. They contain raw values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QuantileExport {
    /// Which bundle.
    pub bundle: BundleRef,
    /// The label the devices are grouped by; none for the whole fleet.
    pub group_by: Option<String>,
    /// Whether steps of time are told apart.
    pub by_window: bool,
    /// One entry a group, step of time and column.
    pub sketches: Vec<GroupQuantiles>,
}

/// Counts of one column in one group and step of time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WindowCounts {
    /// The value of the label the devices are grouped by.
    pub group: String,
    /// The slice of rows; none for all of them.
    #[serde(default)]
    pub slice: Option<String>,
    /// The earliest start of its windows, in milliseconds since the Unix epoch.
    pub start_ms: u64,
    /// The latest end of its windows.
    pub end_ms: u64,
    /// Devices that reported.
    pub devices: u32,
    /// The column.
    pub column: String,
    /// Rows in each cell, in the order of [`WindowExport::cells`].
    pub counts: Vec<u64>,
}

/// Counts by group, step of time and column, for notebooks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WindowExport {
    /// Which bundle.
    pub bundle: BundleRef,
    /// Digest of its profile.
    pub profile: Digest,
    /// The label the devices are grouped by; none for the whole fleet.
    pub group_by: Option<String>,
    /// By column: what falls into each cell, and the reference's rows in it.
    pub cells: std::collections::BTreeMap<String, Vec<(String, u64)>>,
    /// One entry a group, step of time and column.
    pub windows: Vec<WindowCounts>,
}
