//! From a reference sample to what counts as an outlier of it: [`crate::profile::Outliers`].

use crate::limits::{MAX_CENTRES, MAX_DISTANCE_NUMBERS, MAX_WHITENED_COLUMNS};
use crate::profile::{Centre, Distance};

/// Rows a class needs to have a centre of its own.
const MIN_CLASS_ROWS: usize = 10;
/// Rows without which nothing is fitted.
const MIN_ROWS: usize = 20;
/// Parts the sample is cut into to find the threshold: each is held against a fit of the others.
const FOLDS: usize = 5;
/// The least weight of the shrinkage's target, so that columns that depend on each other have a covariance that can be inverted.
const MIN_SHRINKAGE: f64 = 1e-6;
/// The least mean variance, in squared ranges: a sample whose classes do not vary at all.
const MIN_VARIANCE: f64 = 1e-4;

/// A column's values over the sample: NaN for none, and of a category its position.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// Numbers.
    Numbers(&'a [f64]),
    /// Positions of categories.
    Categories(&'a [f64]),
}

/// The share of rows that hold a value which no other row reaches, has, or lacks: what each row would be flagged for, were it held against all others. By
/// exchangeability, a fresh row of the same distribution is flagged as often.
#[must_use]
pub fn expected_share(columns: &[Values<'_>], rows: usize) -> f64 {
    let mut flagged = vec![false; rows];
    for column in columns {
        let (Values::Numbers(values) | Values::Categories(values)) = column;
        let mut order: Vec<usize> = (0..values.len().min(rows)).filter(|row| !values[*row].is_nan()).collect();
        let missing: Vec<usize> = (0..values.len().min(rows)).filter(|row| values[*row].is_nan()).collect();
        order.sort_by(|one, other| values[*one].total_cmp(&values[*other]));
        let same = |one: usize, other: usize| values[order[one]].total_cmp(&values[order[other]]).is_eq();
        let last = order.len().saturating_sub(1);
        for at in 0..order.len() {
            let alone = (at == 0 || !same(at, at - 1)) && (at == last || !same(at, at + 1));
            let at_an_end = at == 0 || at == last;
            flagged[order[at]] |= alone && (at_an_end || matches!(column, Values::Categories(_)));
        }
        if let [only] = missing.as_slice() {
            flagged[*only] = true;
        }
    }
    flagged.iter().filter(|flagged| **flagged).count() as f64 / rows.max(1) as f64
}

/// Numeric columns that vary, and which rows belong to which centre.
struct Sample<'a> {
    /// Position in the profile, values, and range over all rows.
    columns: Vec<(u16, &'a [f64], f64)>,
    /// The centre of each row; none for rows of a rare class.
    centre_of: Vec<Option<usize>>,
    centres: usize,
}

impl<'a> Sample<'a> {
    fn new(columns: &[(u16, &'a [f64])], classes: Option<&[usize]>) -> Option<Self> {
        let rows = columns.iter().map(|(_, values)| values.len()).min().filter(|rows| *rows >= MIN_ROWS)?;
        let columns: Vec<(u16, &[f64], f64)> = columns
            .iter()
            .map(|(at, values)| (*at, *values, range(values.iter().copied())))
            .filter(|(_, _, range)| range.is_finite() && *range > 0.0)
            .collect();
        let class_of = |row: usize| classes.and_then(|classes| classes.get(row)).copied().unwrap_or(0);
        let mut known: Vec<usize> = (0..rows).map(class_of).collect();
        known.sort_unstable();
        let frequent: Vec<usize> = known
            .chunk_by(|one, other| one == other)
            .filter(|rows| rows.len() >= MIN_CLASS_ROWS)
            .map(|rows| rows[0])
            .collect();
        let by_class = (1..=MAX_CENTRES).contains(&frequent.len());
        let centre = |row: usize| if by_class { frequent.binary_search(&class_of(row)).ok() } else { Some(0) };
        let centres = if by_class { frequent.len() } else { 1 };
        let fits = !columns.is_empty() && columns.len() * centres <= MAX_DISTANCE_NUMBERS;
        fits.then(|| Self { columns, centre_of: (0..rows).map(centre).collect(), centres })
    }

    fn rows(&self) -> usize {
        self.centre_of.len()
    }

    /// The mean of each column in each centre that has a row among those `taken`. What is missing is left out.
    fn means(&self, taken: impl Fn(usize) -> bool) -> Vec<Option<Vec<f64>>> {
        let width = self.columns.len();
        let mut sums = vec![(0_usize, vec![(0.0, 0.0); width]); self.centres];
        for row in (0..self.rows()).filter(|row| taken(*row)) {
            let Some((rows, sums)) = self.centre_of[row].and_then(|centre| sums.get_mut(centre)) else { continue };
            *rows += 1;
            for ((n, mean), (_, values, _)) in sums.iter_mut().zip(&self.columns) {
                if values[row].is_finite() {
                    *n += 1.0;
                    *mean += (values[row] - *mean) / *n;
                }
            }
        }
        let means =
            |(rows, sums): (usize, Vec<(f64, f64)>)| (rows > 0).then(|| sums.iter().map(|(_, mean)| *mean).collect());
        sums.into_iter().map(means).collect()
    }

    /// Fits centres, and one covariance to what the rows that are `taken` are off them. Columns count in units of their range, and the
    /// covariance is shrunk towards the same variance for all of them, by as much as promises the least error (Ledoit and Wolf, "A
    /// well-conditioned estimator for large-dimensional covariance matrices", 2004): a column that hardly ever moves does not outweigh the
    /// others. Of more columns than [`MAX_WHITENED_COLUMNS`] the variances alone are fitted, and shrunk in the same way.
    fn fit(&self, taken: impl Fn(usize) -> bool) -> Option<Distance> {
        let (width, means) = (self.columns.len(), self.means(&taken));
        let whitens = width <= MAX_WHITENED_COLUMNS;
        // Missing values are taken to be at the centre, and the others make up for it.
        let present: Vec<f64> = self
            .columns
            .iter()
            .map(|(_, values, _)| (0..self.rows()).filter(|row| taken(*row) && values[*row].is_finite()).count() as f64)
            .collect();
        let all = (0..self.rows()).filter(|row| taken(*row)).count() as f64;
        // As little as the rest of a fit may a unit rest on rows that were held back, unless there is no other.
        let range_of = |(_, values, over_all): &(u16, &[f64], f64)| {
            let range = range((0..self.rows()).filter(|row| taken(*row)).map(|row| values[row]));
            if range.is_finite() && range > 0.0 { range } else { *over_all }
        };
        let ranges: Vec<f64> = self.columns.iter().map(range_of).collect();
        let weights: Vec<f64> = present.iter().map(|present| (all / present.max(1.0)).sqrt()).collect();
        let entries = if whitens { triangle(width) } else { width };
        let (mut n, mut sums, mut fourth) = (0.0, vec![0.0; entries], 0.0);
        let mut off = vec![0.0; width];
        for row in (0..self.rows()).filter(|row| taken(*row)) {
            let Some(mean) = self.centre_of[row].and_then(|centre| means.get(centre)?.as_ref()) else { continue };
            for (at, (off, (_, values, _))) in off.iter_mut().zip(&self.columns).enumerate() {
                *off = if values[row].is_finite() { (values[row] - mean[at]) / ranges[at] * weights[at] } else { 0.0 };
            }
            n += 1.0;
            if whitens {
                let mut rest = sums.as_mut_slice();
                for (at, one) in off.iter().enumerate() {
                    let (sums, more) = rest.split_at_mut(at + 1);
                    rest = more;
                    sums.iter_mut().zip(&off).for_each(|(sum, other)| *sum += one * other);
                }
                fourth += off.iter().map(|off| off * off).sum::<f64>().powi(2);
            } else {
                sums.iter_mut().zip(&off).for_each(|(sum, off)| *sum += off * off);
                fourth += off.iter().map(|off| off.powi(4)).sum::<f64>();
            }
        }
        sums.iter_mut().for_each(|sum| *sum /= n);
        let variance = |at: usize| if whitens { sums[triangle(at) + at] } else { sums[at] };
        let trace: f64 = (0..width).map(variance).sum();
        let diagonal: f64 = (0..width).map(|at| variance(at).powi(2)).sum();
        // All entries count, and the triangle has those off the diagonal once.
        let squares = if whitens { 2.0 * sums.iter().map(|sum| sum * sum).sum::<f64>() - diagonal } else { diagonal };
        let spread = squares - trace * trace / width as f64;
        let noise = (fourth / n - squares) / n;
        let shrinkage = if spread > 0.0 { (noise / spread).clamp(MIN_SHRINKAGE, 1.0) } else { 1.0 };
        let target = (trace / width as f64).max(MIN_VARIANCE);
        let shrunk = |at: usize| (1.0 - shrinkage) * variance(at) + shrinkage * target;

        let variances: Vec<f32> =
            (0..width).map(|at| single(shrunk(at) * ranges[at] * ranges[at]).max(f32::MIN_POSITIVE)).collect();
        let centre =
            |mean: Vec<f64>| Centre { mean: mean.into_iter().map(single).collect(), variance: variances.clone() };
        let whitening = if whitens {
            let mut covariance: Vec<f64> = sums.iter().map(|sum| (1.0 - shrinkage) * sum).collect();
            (0..width).for_each(|at| covariance[triangle(at) + at] += shrinkage * target);
            let mut whitening = inverse_root(&covariance, width)?;
            for (row, column) in (0..width).flat_map(|row| (0..=row).map(move |column| (row, column))) {
                whitening[triangle(row) + column] /= ranges[column];
            }
            whitening.into_iter().map(single).collect()
        } else {
            Vec::new()
        };
        let columns = self.columns.iter().map(|(at, _, _)| *at).collect();
        let centres: Vec<Centre> = means.into_iter().flatten().map(centre).collect();
        let is_finite = |numbers: &[f32]| numbers.iter().all(|number| number.is_finite());
        let usable = !centres.is_empty()
            && is_finite(&whitening)
            && centres.iter().all(|centre| is_finite(&centre.mean) && is_finite(&centre.variance));
        usable.then_some(Distance { columns, centres, threshold: 0.0, quantile: 1.0, whitening })
    }
}

/// The greatest less the least of those values that are finite; no finite number where there are none.
fn range(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let finite = values.filter(|value| value.is_finite());
    finite.clone().fold(f64::NEG_INFINITY, f64::max) - finite.fold(f64::INFINITY, f64::min)
}

/// Entries of a lower triangle before row `row`.
const fn triangle(row: usize) -> usize {
    row * (row + 1) / 2
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to the nearest is as good")]
const fn single(x: f64) -> f32 {
    x as f32
}

/// The inverse of the Cholesky factor of the symmetric matrix with the lower triangle `covariance`, again a lower triangle; none where
/// it is not positive definite.
fn inverse_root(covariance: &[f64], width: usize) -> Option<Vec<f64>> {
    let mut factor = covariance.to_vec();
    for row in 0..width {
        for column in 0..=row {
            let (one, other) = (triangle(row), triangle(column));
            let known: f64 = (0..column).map(|at| factor[one + at] * factor[other + at]).sum();
            let left = factor[one + column] - known;
            factor[one + column] = if row == column {
                Some(left.sqrt()).filter(|root| root.is_normal())?
            } else {
                left / factor[other + column]
            };
        }
    }
    let mut inverse = vec![0.0; factor.len()];
    for row in 0..width {
        let root = factor[triangle(row) + row];
        for column in 0..row {
            let known: f64 = (column..row).map(|at| factor[triangle(row) + at] * inverse[triangle(at) + column]).sum();
            inverse[triangle(row) + column] = -known / root;
        }
        inverse[triangle(row) + row] = 1.0 / root;
    }
    Some(inverse)
}

/// Fits a distance to numeric `columns`, each a position in the profile and a value of every row (NaN for none), with one centre for each class of
/// `classes` that has enough rows. The threshold is the `quantile` of distances of rows that were held back: each fifth of the rows is held against a fit of
/// the others, and the threshold is the k-th of all those distances with k = ⌈(n + 1) · quantile⌉, so that of fresh rows about 1 − quantile lie
/// beyond (cross-conformal prediction; Vovk, 2015). Of too few rows for that it is the greatest, and the quantile given back says n / (n + 1).
/// Constant columns are left to the range. `None` where no column varies, there are fewer than 20 rows, or what would be
/// needed is past the bounds of a profile.
#[must_use]
pub fn fit(columns: &[(u16, &[f64])], classes: Option<&[usize]>, quantile: f64) -> Option<Distance> {
    let sample = Sample::new(columns, classes)?;
    let rows = sample.rows();
    let mut squared = Vec::with_capacity(rows);
    for fold in 0..FOLDS {
        let ready = sample.fit(|row| row % FOLDS != fold)?.ready();
        squared.extend((fold..rows).step_by(FOLDS).map(|row| {
            let mut distance = ready.row();
            sample
                .columns
                .iter()
                .enumerate()
                .for_each(|(place, (_, values, _))| distance.add(place, Some(values[row])));
            distance.squared()
        }));
    }
    squared.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
    let rank = ((quantile * (rows + 1) as f64).ceil() as usize).clamp(1, rows);
    let mut distance = sample.fit(|_| true)?;
    distance.threshold = single(*squared.get(rank - 1)?).next_up();
    distance.quantile = rank as f64 / (rows + 1) as f64;
    distance.threshold.is_finite().then_some(distance)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from 0 to 1 without a pattern (a Weyl sequence).
    fn weyl(n: usize, step: f64) -> Vec<f64> {
        (1..=n).map(|k| (k as f64 * step).fract()).collect()
    }

    /// About normal, by the sum of twelve uniform numbers.
    fn normal(n: usize, salt: f64) -> Vec<f64> {
        let parts: Vec<Vec<f64>> = (0..12).map(|k| weyl(n, (salt + f64::from(k)).sqrt())).collect();
        (0..n).map(|row| parts.iter().map(|part| part[row]).sum::<f64>() - 6.0).collect()
    }

    #[test]
    fn the_expected_share_is_that_of_rows_that_stand_alone() {
        // The least and the greatest stand alone; of the second column only the greatest does, its row being flagged already.
        let columns = [Values::Numbers(&[1.0, 2.0, 3.0, 4.0]), Values::Numbers(&[0.0, 0.0, 1.0, 2.0])];
        assert!((expected_share(&columns, 4) - 0.5).abs() < 1e-12);
        let categories = [Values::Categories(&[0.0, 0.0, 1.0, 2.0, 2.0])];
        assert!((expected_share(&categories, 5) - 0.2).abs() < 1e-12);
        let missing = [Values::Numbers(&[1.0, 1.0, f64::NAN, 1.0])];
        assert!((expected_share(&missing, 4) - 0.25).abs() < 1e-12);
        assert!(expected_share(&[], 0).abs() < 1e-12);
    }

    /// Two clusters: a point between them is far from both, though each of its coordinates is ordinary.
    #[test]
    fn a_point_between_two_classes_is_far_from_both() {
        let rows = 2_000;
        let classes: Vec<usize> = (0..rows).map(|row| (row / 2) % 2).collect();
        let at = |salt: f64| -> Vec<f64> {
            normal(rows, salt).iter().zip(&classes).map(|(x, class)| x + 20.0 * *class as f64).collect()
        };
        let (x, y) = (at(2.0), at(31.0));
        let constant = vec![3.0; rows];
        let distance = fit(&[(0, &x), (1, &constant), (4, &y)], Some(&classes), 0.99).unwrap();
        assert_eq!((distance.columns.as_slice(), distance.centres.len()), (&[0, 4][..], 2));
        let ready = distance.ready();
        let far = |x: f64, y: f64| {
            let mut row = ready.row();
            row.add(0, Some(x));
            row.add(1, Some(y));
            row.is_far()
        };
        assert!(!far(0.5, -0.5) && !far(20.0, 21.0));
        assert!(far(10.0, 10.0) && far(0.0, 20.0));
        // χ²(2) has its 99 % quantile at 9.21; the clusters are about normal.
        assert!((7.0..12.0).contains(&distance.threshold), "{}", distance.threshold);
        // ⌈2001 · 0.99⌉ = 1981 of 2000 lie within when they are held back, and about as many of them all.
        assert!((distance.quantile - 1981.0 / 2001.0).abs() < 1e-12);
        let beyond = (0..rows).filter(|row| far(x[*row], y[*row])).count();
        assert!((15..=20).contains(&beyond), "{beyond}");
        let mut missing = ready.row();
        missing.add(0, None);
        missing.add(1, Some(f64::NAN));
        assert!((missing.squared() - 2.0).abs() < 1e-12);
    }

    /// y follows x: a row in which it does not is odd, though both numbers are ordinary.
    #[test]
    fn a_row_that_breaks_a_correlation_is_far() {
        let (x, noise) = (normal(1_000, 50.0), normal(1_000, 65.0));
        let y: Vec<f64> = x.iter().zip(&noise).map(|(x, noise)| 5.0 * x + 0.5 * noise).collect();
        let distance = fit(&[(0, &x), (1, &y)], None, 0.99).unwrap();
        let ready = distance.ready();
        let squared = |values: [Option<f64>; 2]| {
            let mut row = ready.row();
            values.into_iter().enumerate().for_each(|(place, value)| row.add(place, value));
            row.squared()
        };
        let threshold = f64::from(distance.threshold);
        assert!(squared([Some(1.5), Some(7.5)]) < threshold && squared([Some(-1.5), Some(-7.5)]) < threshold);
        assert!(squared([Some(1.5), Some(-7.5)]) > 5.0 * threshold);
        // Without the other value each alone is ordinary: what is missing is taken as it goes with the rest, and adds 1.
        let alone = squared([Some(1.5), None]);
        assert!(alone > 1.0 && alone < threshold + 1.0, "{alone}");
        assert!(squared([Some(1e300), Some(-1e300)]) > threshold);
        // The triangle is W with W Σ Wᵀ = I: what is one covariance away in x and five times as far in y is 1 off.
        let along = squared([Some(1.0), Some(5.0)]);
        assert!((0.8..1.3).contains(&along), "{along}");
    }

    #[test]
    fn a_column_that_hardly_ever_moves_does_not_outweigh_the_others() {
        let rows = 500;
        let columns: Vec<Vec<f64>> = (0..8).map(|k| weyl(rows, (2.0 + f64::from(k * k)).sqrt())).collect();
        let rare: Vec<f64> = (0..rows).map(|row| f64::from(u8::from(row == 250))).collect();
        let mut given: Vec<(u16, &[f64])> = (0..).zip(&columns).map(|(at, values)| (at, values.as_slice())).collect();
        given.push((8, &rare));
        let distance = fit(&given, None, 0.99).unwrap();
        let variance = &distance.centres[0].variance;
        // Its own is 0.002, that of the others 0.083.
        assert!(variance[8] > 0.002 && (0.07..0.09).contains(&variance[0]), "{variance:?}");
        // Collinear columns can be inverted all the same, and columns that do not vary within classes too.
        let twice = [(0, columns[0].as_slice()), (1, columns[0].as_slice())];
        assert!(fit(&twice, None, 0.99).is_some());
        let classes: Vec<usize> = (0..rows).map(|row| row % 2).collect();
        let same: Vec<f64> = classes.iter().map(|class| *class as f64).collect();
        assert!(fit(&[(0, &same)], Some(&classes), 0.99).is_some());
    }

    #[test]
    fn more_columns_than_are_whitened_have_variances_of_their_own() {
        let columns: Vec<Vec<f64>> = (0u16..130).map(|k| weyl(60, (2.0 + f64::from(k * k)).sqrt())).collect();
        let given: Vec<(u16, &[f64])> = (0..).zip(&columns).map(|(at, values)| (at, values.as_slice())).collect();
        let distance = fit(&given, None, 0.999).unwrap();
        assert!(distance.whitening.is_empty() && distance.centres[0].variance.len() == 130);
        // 60 rows cannot tell a thousandth.
        assert!((distance.quantile - 60.0 / 61.0).abs() < 1e-12);
    }

    #[test]
    fn what_cannot_be_fitted_gives_no_distance() {
        let x = weyl(30, 0.618);
        assert_eq!(fit(&[], None, 0.999), None);
        assert_eq!(fit(&[(0, &[1.0; 30])], None, 0.999), None);
        assert_eq!(fit(&[(0, &x[..19])], None, 0.999), None);
        // Classes of few rows share one centre.
        let classes: Vec<usize> = (0..30).collect();
        assert_eq!(fit(&[(0, &x)], Some(&classes), 0.999).unwrap().centres.len(), 1);
    }
}
