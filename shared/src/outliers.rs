//! From a reference sample to what counts as an outlier of it: [`crate::profile::Outliers`].

use crate::limits::{MAX_CENTRES, MAX_DISTANCE_NUMBERS};
use crate::profile::{Centre, Distance};

/// Rows a class needs among those fitted to have a centre of its own.
const MIN_CLASS_ROWS: usize = 10;
/// How many rows the variance over all classes weighs in that of one.
const SHRINKAGE_ROWS: f64 = 10.0;
/// The least standard deviation, as a share of the column's range.
const MIN_SPREAD: f64 = 0.01;

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

/// Mean and variance of the values of `rows` that are finite, and how many they are.
fn moments(values: &[f64], rows: impl Iterator<Item = usize>) -> (f64, f64, f64) {
    let (mut n, mut mean, mut m2) = (0.0, 0.0, 0.0);
    for value in rows.map(|row| values[row]).filter(|value| value.is_finite()) {
        n += 1.0;
        let off = value - mean;
        mean += off / n;
        m2 += off * (value - mean);
    }
    (n, mean, if n > 0.0 { m2 / n } else { 0.0 })
}

/// Fits a distance to numeric `columns`, each a position in the profile and a value of every row. Every other row is fitted, one centre for each class
/// of `classes` with enough rows; the threshold is the `quantile` of the distances of the others, which were not seen before. A class's
/// variances are shrunk towards those within all classes together. Constant columns are left to the range. `None` where no column varies, there are fewer than 20 rows, or
/// what would be needed is past the bounds of a profile.
#[must_use]
pub fn fit(columns: &[(u16, &[f64])], classes: Option<&[usize]>, quantile: f64) -> Option<Distance> {
    let rows = columns.iter().map(|(_, values)| values.len()).min().filter(|rows| *rows >= 2 * MIN_CLASS_ROWS)?;
    let range = |values: &[f64]| {
        let finite = values.iter().copied().filter(|value| value.is_finite());
        finite.clone().fold(f64::MIN, f64::max) - finite.fold(f64::MAX, f64::min)
    };
    let varying: Vec<(u16, &[f64], f64)> = columns
        .iter()
        .map(|(at, values)| (*at, *values, range(values)))
        .filter(|(_, _, range)| range.is_finite() && *range > 0.0)
        .collect();
    let class_of = |row: usize| classes.and_then(|classes| classes.get(row)).copied().unwrap_or(0);
    let fitted = || (0..rows).step_by(2);
    let mut known: Vec<usize> = fitted().map(class_of).collect();
    known.sort_unstable();
    let mut with_centre: Vec<usize> = known
        .chunk_by(|one, other| one == other)
        .filter(|rows| rows.len() >= MIN_CLASS_ROWS)
        .map(|rows| rows[0])
        .collect();
    let by_class = !with_centre.is_empty() && with_centre.len() <= MAX_CENTRES;
    if !by_class {
        with_centre = vec![0];
    }
    if varying.is_empty() || varying.len() * with_centre.len() > MAX_DISTANCE_NUMBERS {
        return None;
    }
    let of_class = |class: usize| fitted().filter(move |row| !by_class || class_of(*row) == class);
    let mut centres = vec![Centre { mean: Vec::new(), variance: Vec::new() }; with_centre.len()];
    for (_, values, range) in &varying {
        let each: Vec<(f64, f64, f64)> = with_centre.iter().map(|class| moments(values, of_class(*class))).collect();
        let n: f64 = each.iter().map(|(n, _, _)| n).sum();
        let within = each.iter().map(|(n, _, variance)| n * variance).sum::<f64>() / n.max(1.0);
        let least = (MIN_SPREAD * range) * (MIN_SPREAD * range);
        for (centre, (n, mean, variance)) in centres.iter_mut().zip(&each) {
            let shrunk = (n * variance + SHRINKAGE_ROWS * within) / (n + SHRINKAGE_ROWS);
            #[expect(clippy::cast_possible_truncation, reason = "rounding to the nearest is as good")]
            let (mean, variance) = (*mean as f32, shrunk.max(least).max(f64::from(f32::MIN_POSITIVE)) as f32);
            centre.mean.push(mean);
            centre.variance.push(variance);
        }
    }
    let mut distance =
        Distance { columns: varying.iter().map(|(at, _, _)| *at).collect(), centres, threshold: 0.0, quantile };
    let mut squared: Vec<f64> = (1..rows)
        .step_by(2)
        .map(|row| {
            let mut sums = distance.row();
            varying.iter().enumerate().for_each(|(place, (_, values, _))| sums.add(place, Some(values[row])));
            sums.squared()
        })
        .collect();
    squared.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
    let rank = (quantile * squared.len() as f64).ceil() as usize;
    #[expect(clippy::cast_possible_truncation, reason = "rounded up just after")]
    let threshold = *squared.get(rank.clamp(1, squared.len()) - 1)? as f32;
    distance.threshold = threshold.next_up();
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
        let far = |x: f64, y: f64| {
            let mut row = distance.row();
            row.add(0, Some(x));
            row.add(1, Some(y));
            row.squared() > f64::from(distance.threshold)
        };
        assert!(!far(0.5, -0.5) && !far(20.0, 21.0));
        assert!(far(10.0, 10.0) && far(0.0, 20.0));
        // χ²(2) has its 99 % quantile at 9.21; the clusters are about normal.
        assert!((7.0..12.0).contains(&distance.threshold), "{}", distance.threshold);
        // Of the rows that were not fitted, 1 % lie beyond.
        let beyond = (1..rows).step_by(2).filter(|row| far(x[*row], y[*row])).count();
        assert!((5..=10).contains(&beyond), "{beyond}");
        let mut missing = distance.row();
        missing.add(0, None);
        missing.add(1, Some(f64::NAN));
        assert!((missing.squared() - 2.0).abs() < 1e-12);
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
