//! What was wrong or odd with the inputs of a group of devices, as a drift report tells it.

use serde::{Deserialize, Serialize};

use crate::data_schema::Handling;
use crate::sketch::Cause;

/// What was wrong with a value, a row or a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FaultCause {
    /// A value was not there: NaN, or an empty text.
    Missing,
    /// An infinity.
    Infinite,
    /// Less than the least that is expected.
    BelowMin,
    /// More than the greatest that is expected.
    AboveMax,
    /// None of the expected values.
    UnknownCategory,
    /// The same value too many times in a row: a constant or stuck sensor.
    Stuck,
    /// A time before the one before it.
    OutOfOrder,
    /// A row that was one of those just before it.
    Duplicate,
    /// A request with another element type or shape than the signature's.
    Malformed,
}

impl From<Cause> for FaultCause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Missing => Self::Missing,
            Cause::Infinite => Self::Infinite,
            Cause::BelowMin => Self::BelowMin,
            Cause::AboveMax => Self::AboveMax,
            Cause::UnknownCategory => Self::UnknownCategory,
            Cause::Stuck => Self::Stuck,
            Cause::OutOfOrder => Self::OutOfOrder,
        }
    }
}

/// How often one thing was wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DataFault {
    /// The feature of the data schema; none for whole rows and requests.
    pub feature: Option<String>,
    /// What was wrong.
    pub cause: FaultCause,
    /// Values; rows of duplicates, requests of what is malformed.
    pub count: u64,
    /// As a share of the rows that were looked at; none where rows are not what is counted.
    pub share: Option<f64>,
    /// What devices do about it.
    pub handling: Handling,
}

/// The missing values of a feature, held against the share that the data schema allows (`max-missing-share`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MissingLimit {
    /// The feature.
    pub feature: String,
    /// The share that is missing.
    pub share: f64,
    /// The share that may be.
    pub limit: f64,
    /// How many independent rows it rests on, clustering in devices considered.
    pub n_effective: f64,
    /// The chance of a share at least as large where the true one is at the limit.
    pub p_value: f64,
    /// The false discovery rate over everything that the report tests of inputs.
    pub q_value: Option<f64>,
    /// More is missing than may be, and that is not chance.
    pub exceeded: bool,
}

/// What was wrong with inputs, held against the bundle's data schema.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DataQuality {
    /// Rows that were looked at, of rejected requests too.
    pub rows: u64,
    /// Requests that were rejected by a rule.
    pub rejected: u64,
    /// Requests that were answered and flagged.
    pub flagged: u64,
    /// Requests that were answered with a value put in.
    pub imputed: u64,
    /// Everything that happened, the most frequent first.
    pub faults: Vec<DataFault>,
    /// Features whose missing values have a limit, in the schema's order.
    pub missing_limits: Vec<MissingLimit>,
}

impl DataQuality {
    /// The faults that break a rule, rather than being counted only.
    pub fn violations(&self) -> impl Iterator<Item = &DataFault> {
        self.faults.iter().filter(|fault| fault.handling != Handling::Counted)
    }

    /// The feature's limit of missing values, where it is exceeded.
    #[must_use]
    pub fn exceeded(&self, feature: &str) -> Option<&MissingLimit> {
        self.missing_limits.iter().find(|limit| limit.exceeded && limit.feature == feature)
    }
}

/// In which sense a row is an outlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OutlierCause {
    /// In any of the others.
    Any,
    /// A number lies outside the range of the reference.
    Range,
    /// Novelty: a category that the reference does not name.
    Category,
    /// It lacks what the reference never lacks.
    Missing,
    /// It lies too far from the reference as a whole.
    Distance,
}

/// How many rows are outliers in one sense.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutlierRate {
    /// In which sense.
    pub cause: OutlierCause,
    /// Rows.
    pub count: u64,
    /// Their share of the rows that were looked at.
    pub share: f64,
    /// The share that the profile expects of ordinary rows; of `range`, `category` and `missing` at most, as the profile knows them only
    /// together.
    pub expected: f64,
    /// How many independent rows the share rests on, clustering in devices considered.
    pub n_effective: f64,
    /// The chance of a share as far above what is expected when nothing has changed; 1 where it is not above.
    pub p_value: f64,
    /// The false discovery rate over everything that the report tests of inputs.
    pub q_value: Option<f64>,
    /// More than expected by at least one percentage point, and that is not chance.
    pub exceeded: bool,
}

/// Rows unlike those of the reference.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutlierRates {
    /// Rows that were held against the reference.
    pub rows: u64,
    /// In each sense that the profile tells, `any` first.
    pub rates: Vec<OutlierRate>,
}
