//! When an inference counts as an outlier of the reference sample.
//!
//! A row is flagged when an element of an input lies outside the range of the reference, is a category that the reference does not name,
//! or is missing where the reference never lacks it; and, where a [`Distance`] is given, when it lies far from all of the reference's classes.
//! Fitting is [`crate::outliers`]' matter, and reading tensors the agent's.

use serde::{Deserialize, Serialize};

use super::{Profile, ProfileError, Reference, Side, refuse};
use crate::limits::{MAX_CENTRES, MAX_DISTANCE_NUMBERS, MAX_WHITENED_COLUMNS};

/// Sweeps over the missing values of a row.
const SWEEPS: usize = 8;
/// A squared distance that shrinks by less in a sweep is found.
const ENOUGH: f64 = 1e-3;

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

/// The squared Mahalanobis distance to the nearest of a few centres, which share one covariance (Lee and others, "A simple unified
/// framework for detecting out-of-distribution samples", `NeurIPS` 2018).
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
    /// The share of rows of the reference's distribution that lie within the threshold.
    pub quantile: f64,
    /// A lower triangle by rows, W with W Σ Wᵀ = I for the covariance Σ of all classes. Without it columns count as uncorrelated, with
    /// the variances of each centre.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub whitening: Vec<f32>,
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

/// A distance made ready to be taken.
#[derive(Debug, Clone)]
pub struct ReadyDistance {
    centres: Vec<Centre>,
    threshold: f64,
    /// [`Distance::whitening`] by columns, so that one pass adds to independent sums; empty without one.
    whitening: Vec<f64>,
    /// The centres after whitening, seen from the first.
    whitened: Vec<Vec<f64>>,
}

/// The distance of one row, while its columns come in.
#[derive(Debug, Clone, Copy)]
pub struct RowDistance<'a> {
    of: &'a ReadyDistance,
    sums: [f64; MAX_CENTRES],
    /// NaN for none; used with a whitening only.
    values: [f64; MAX_WHITENED_COLUMNS],
}

impl Distance {
    /// Makes it ready; it must have been validated.
    #[must_use]
    pub fn ready(&self) -> ReadyDistance {
        let width = self.columns.len();
        let mut ready = ReadyDistance {
            centres: self.centres.clone(),
            threshold: f64::from(self.threshold),
            whitening: Vec::with_capacity(self.whitening.len()),
            whitened: Vec::new(),
        };
        if self.whitening.is_empty() {
            return ready;
        }
        for column in 0..width {
            let rows = column..width;
            ready
                .whitening
                .extend(rows.filter_map(|row| self.whitening.get(row * (row + 1) / 2 + column)).map(|w| f64::from(*w)));
        }
        let first = self.centres.first().map(|centre| centre.mean.as_slice()).unwrap_or_default();
        let from_first = |centre: &Centre| {
            let mut away = [0.0; MAX_WHITENED_COLUMNS];
            for (away, (mean, first)) in away.iter_mut().zip(centre.mean.iter().zip(first)) {
                *away = f64::from(*mean) - f64::from(*first);
            }
            ready.whiten(&away)[..width.min(MAX_WHITENED_COLUMNS)].to_vec()
        };
        ready.whitened = self.centres.iter().map(from_first).collect();
        ready
    }
}

impl ReadyDistance {
    /// Begins a row.
    #[must_use]
    pub const fn row(&self) -> RowDistance<'_> {
        RowDistance { of: self, sums: [0.0; MAX_CENTRES], values: [f64::NAN; MAX_WHITENED_COLUMNS] }
    }

    fn width(&self) -> usize {
        self.centres.first().map_or(0, |centre| centre.mean.len()).min(MAX_WHITENED_COLUMNS)
    }

    /// Column `column` of W, from its diagonal on.
    fn weights_of(&self, column: usize) -> &[f64] {
        let width = self.width();
        let before = column * (2 * width + 1 - column) / 2;
        self.whitening.get(before..before + (width - column)).unwrap_or_default()
    }

    /// W times `away`, whose first elements are the columns.
    fn whiten(&self, away: &[f64; MAX_WHITENED_COLUMNS]) -> [f64; MAX_WHITENED_COLUMNS] {
        let (mut whitened, width) = ([0.0; MAX_WHITENED_COLUMNS], self.width());
        let mut rest = self.whitening.as_slice();
        for (column, away) in away.iter().enumerate().take(width) {
            let (weights, more) = rest.split_at((width - column).min(rest.len()));
            rest = more;
            whitened[column..].iter_mut().zip(weights).for_each(|(sum, weight)| *sum += weight * away);
        }
        whitened
    }
}

/// The sum of squared differences, in four sums side by side.
fn squared_distance(one: &[f64], other: &[f64]) -> f64 {
    let mut sums = [0.0; 4];
    let ((one, one_rest), (other, other_rest)) = (one.as_chunks::<4>(), other.as_chunks::<4>());
    for (one, other) in one.iter().zip(other) {
        for (sum, (one, other)) in sums.iter_mut().zip(one.iter().zip(other)) {
            *sum += (one - other) * (one - other);
        }
    }
    let rest: f64 = one_rest.iter().zip(other_rest).map(|(one, other)| (one - other) * (one - other)).sum();
    sums.iter().sum::<f64>() + rest
}

impl RowDistance<'_> {
    /// Takes in the value of the column at `place` of [`Distance::columns`]. What is missing or no finite number adds what a value is
    /// expected to.
    pub fn add(&mut self, place: usize, value: Option<f64>) {
        let value = value.filter(|value| value.is_finite());
        if !self.of.whitening.is_empty() {
            if let Some(kept) = self.values.get_mut(place) {
                *kept = value.unwrap_or(f64::NAN);
            }
            return;
        }
        for (sum, centre) in self.sums.iter_mut().zip(&self.of.centres) {
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
        if self.of.whitening.is_empty() {
            return self.sums.iter().zip(&self.of.centres).map(|(sum, _)| *sum).fold(f64::INFINITY, f64::min);
        }
        let width = self.of.width();
        let missing = self.values[..width].iter().filter(|value| value.is_nan()).count();
        if missing > 0 {
            let each = self.of.centres.iter().map(|centre| self.squared_to(centre) + missing as f64);
            return each.fold(f64::INFINITY, f64::min);
        }
        let Some(first) = self.of.centres.first() else { return f64::INFINITY };
        let whitened = self.of.whiten(&self.away_from(first));
        let each = self.of.whitened.iter().map(|centre| squared_distance(&whitened[..width], centre));
        each.fold(f64::INFINITY, f64::min)
    }

    /// Whether it is farther from all centres than is ordinary.
    #[must_use]
    pub fn is_far(&self) -> bool {
        self.squared() > self.of.threshold
    }

    /// What is missing is at first taken to be where the centre is.
    fn away_from(&self, centre: &Centre) -> [f64; MAX_WHITENED_COLUMNS] {
        let mut away = [0.0; MAX_WHITENED_COLUMNS];
        for (away, (value, mean)) in away.iter_mut().zip(self.values.iter().zip(&centre.mean)) {
            *away = if value.is_nan() { 0.0 } else { value - f64::from(*mean) };
        }
        away
    }

    /// The least squared distance to `centre` over all values that those missing could have, found one column after the other (Gauss and
    /// Seidel): in one sweep where one is missing, and from above in a few where more are.
    fn squared_to(&self, centre: &Centre) -> f64 {
        let mut whitened = self.of.whiten(&self.away_from(centre));
        for _ in 0..SWEEPS {
            let mut nearer = 0.0;
            for column in (0..self.of.width()).filter(|column| self.values[*column].is_nan()) {
                let (weights, rest) = (self.of.weights_of(column), &mut whitened[column..]);
                let (dot, norm) = weights
                    .iter()
                    .zip(rest.iter())
                    .fold((0.0, 0.0), |(dot, norm), (weight, z)| (dot + weight * z, norm + weight * weight));
                if norm > 0.0 {
                    rest.iter_mut().zip(weights).for_each(|(z, weight)| *z -= weight * dot / norm);
                    nearer += dot * dot / norm;
                }
            }
            if nearer < ENOUGH {
                break;
            }
        }
        whitened.iter().map(|z| z * z).sum()
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
        let whitening = &distance.whitening;
        let is_triangle = width <= MAX_WHITENED_COLUMNS && whitening.len() == width * (width + 1) / 2;
        let is_usable = whitening.is_empty() || is_triangle && whitening.iter().all(|weight| weight.is_finite());
        if !is_usable {
            return refuse("outliers", "a whitening is a lower triangle of finite numbers, for at most 128 columns");
        }
        Ok(())
    }
}
