//! When an inference counts as an outlier of the reference sample.
//!
//! A row is flagged when an element of an input lies outside the range of the reference, is a category that the reference does not name,
//! or is missing where the reference never lacks it; and, where a [`Distance`] is given, when it lies far from all of the reference's classes.
//! Fitting is [`crate::outliers`]' matter, and reading tensors the agent's.

use serde::{Deserialize, Serialize};

use super::{Profile, ProfileError, Reference, Side, refuse};
use crate::limits::{MAX_CENTRES, MAX_DISTANCE_NUMBERS};

/// What is flagged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Outliers {
    /// The share of the reference's rows outside the range, or of a category, of all its other rows: what a row drawn from the same
    /// distribution has to expect. Distance comes on top.
    pub expected_share: f64,
    /// How far from the reference is too far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<Distance>,
}

/// The squared Mahalanobis distance to the nearest of a few centres, each with a diagonal covariance (after Lee and others, NeurIPS 2018).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Distance {
    /// Positions in the profile of the columns it is taken over: numbers that come from inputs.
    pub columns: Vec<u16>,
    /// One for each class of the reference, or one for all.
    pub centres: Vec<Centre>,
    /// Squared distances above this are flagged.
    pub threshold: f32,
    /// The share of the reference's rows that were not fitted and lie within the threshold.
    pub quantile: f64,
}

/// A centre, with one number a column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Centre {
    /// The mean of each column.
    pub mean: Vec<f32>,
    /// The variance of each column, above 0.
    pub variance: Vec<f32>,
}

/// The distance of one row, while its columns come in.
#[derive(Debug, Clone, Copy)]
pub struct RowDistance<'a> {
    centres: &'a [Centre],
    sums: [f64; MAX_CENTRES],
}

impl Distance {
    /// Begins a row.
    #[must_use]
    pub fn row(&self) -> RowDistance<'_> {
        RowDistance { centres: &self.centres, sums: [0.0; MAX_CENTRES] }
    }
}

impl RowDistance<'_> {
    /// Takes in the value of the column at `place` of [`Distance::columns`]. What is missing or no finite number adds what a value is
    /// expected to.
    pub fn add(&mut self, place: usize, value: Option<f64>) {
        let value = value.filter(|value| value.is_finite());
        for (sum, centre) in self.sums.iter_mut().zip(self.centres) {
            let (Some(mean), Some(variance)) = (centre.mean.get(place), centre.variance.get(place)) else { continue };
            *sum += value.map_or(1.0, |value| {
                let off = value - f64::from(*mean);
                off * off / f64::from(*variance)
            });
        }
    }

    /// The squared distance to the nearest centre.
    #[must_use]
    pub fn squared(&self) -> f64 {
        self.sums.iter().zip(self.centres).map(|(sum, _)| *sum).fold(f64::INFINITY, f64::min)
    }
}

impl Profile {
    pub(super) fn check_outliers(&self) -> Result<(), ProfileError> {
        let Some(outliers) = &self.outliers else { return Ok(()) };
        let is_share = |share: f64| (0.0..=1.0).contains(&share);
        if !is_share(outliers.expected_share) {
            return refuse("outliers", "a share is from 0 to 1");
        }
        let Some(distance) = &outliers.distance else { return Ok(()) };
        let width = distance.columns.len();
        if !is_share(distance.quantile) || !distance.threshold.is_finite() || distance.threshold < 0.0 {
            return refuse("outliers", "the quantile is a share, and the threshold a number that is not below 0");
        }
        if !(1..=MAX_CENTRES).contains(&distance.centres.len())
            || width == 0
            || width * distance.centres.len() > MAX_DISTANCE_NUMBERS
        {
            return refuse("outliers", "a distance has 1 to 64 centres, and columns times centres are at most 4096");
        }
        let is_number_of_an_input = |at: &u16| {
            self.columns.get(usize::from(*at)).is_some_and(|column| {
                matches!(column.reference, Reference::Numeric { .. }) && column.source.tensor().0 == Side::Input
            })
        };
        let ascend = distance.columns.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascend || !distance.columns.iter().all(is_number_of_an_input) {
            return refuse(
                "outliers",
                "a distance is taken over ascending positions of columns that are numbers of inputs",
            );
        }
        let is_centre = |centre: &Centre| {
            centre.mean.len() == width
                && centre.variance.len() == width
                && centre.mean.iter().all(|mean| mean.is_finite())
                && centre.variance.iter().all(|variance| variance.is_finite() && *variance > 0.0)
        };
        if !distance.centres.iter().all(is_centre) {
            return refuse("outliers", "a centre has a finite mean and a variance above 0 for each column");
        }
        Ok(())
    }
}
