//! From a sample of a column's values to its [`Reference`]: where the bins lie and how the sample fell into them.
//!
//! Bins are cut at the sample's quantiles, so that each holds about the same share and a score over them sees a move
//! anywhere in the distribution. Edges travel as `f32`; they are rounded *away* from the sample (the lower ones
//! down, the maximum up), so that no value of the sample can fall outside the bins made from it. Counting is done by the same
//! [`NumericSketch`] that devices use. Which columns there are, and where the sample comes from, is the caller's matter.

use crate::profile::Reference;
use crate::sketch::{ClassSketch, NumericSketch};

/// Bins of a numeric column; fewer when quantiles coincide.
pub const REFERENCE_BINS: usize = 20;

/// Why a sample gives no reference. Rows are counted from 0, in the order given.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum ReferenceError {
    /// A value is infinite.
    #[error("row {row} of the sample is infinite: a reference needs finite values, or none where there is no value")]
    Infinite {
        /// Which row.
        row: usize,
    },
    /// A value that no edge can hold.
    #[error("row {row} of the sample, {value:e}, is past what a 32-bit float holds: scale the column")]
    TooLarge {
        /// Which row.
        row: usize,
        /// Its value.
        value: f64,
    },
    /// No row has a value.
    #[error("no row of the sample has a value")]
    Empty,
    /// A class past those that are known.
    #[error("row {row} of the sample is in class {class}, counted from 0, and {known} classes are named")]
    UnknownClass {
        /// Which row.
        row: usize,
        /// Its class.
        class: usize,
        /// How many classes are named.
        known: usize,
    },
}

/// The greatest `f32` that is not above `x`, which must be within the range of `f32`.
fn rounded_down(x: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "rounds to the nearest, which is put right below")]
    let nearest = x as f32;
    let down = if f64::from(nearest) > x { nearest.next_down() } else { nearest };
    // One zero only, so that equal samples give equal bytes.
    down + 0.0
}

/// The least `f32` that is not below `x`, which must be within the range of `f32`.
fn rounded_up(x: f64) -> f32 {
    -rounded_down(-x) + 0.0
}

/// The lower edges of at most `bins` bins of `sorted`, which must be finite, ascending and not empty.
fn lower_edges(sorted: &[f64], bins: usize) -> Vec<f32> {
    let mut distinct: Vec<f32> = Vec::with_capacity(bins + 1);
    for x in sorted {
        let edge = rounded_down(*x);
        if distinct.last().is_none_or(|last| *last < edge) {
            distinct.push(edge);
            if distinct.len() > bins {
                break;
            }
        }
    }
    if distinct.len() <= bins {
        return distinct;
    }
    let mut edges: Vec<f32> = (0..bins).map(|bin| rounded_down(sorted[bin * sorted.len() / bins])).collect();
    edges.dedup();
    edges
}

/// The reference of a numeric column. NaN stands for a row without a value and counts as missing.
///
/// With at most [`REFERENCE_BINS`] distinct values each gets a bin of its own; otherwise the lower edges are the
/// distinct quantiles 0/20, 1/20, ... 19/20 of the values.
///
/// # Errors
/// [`ReferenceError`] when a value is infinite or too large, or when there is none.
pub fn numeric(sample: &[f64]) -> Result<Reference, ReferenceError> {
    numeric_in(sample, REFERENCE_BINS)
}

/// [`numeric`] with at most `bins` bins, which must be at least one.
///
/// # Errors
/// As [`numeric`] has them.
pub fn numeric_in(sample: &[f64], bins: usize) -> Result<Reference, ReferenceError> {
    let mut sorted = Vec::with_capacity(sample.len());
    for (row, value) in sample.iter().copied().enumerate().filter(|(_, value)| !value.is_nan()) {
        if value.is_infinite() {
            return Err(ReferenceError::Infinite { row });
        }
        if value.abs() > f64::from(f32::MAX) {
            return Err(ReferenceError::TooLarge { row, value });
        }
        sorted.push(value);
    }
    sorted.sort_by(f64::total_cmp);
    let Some(greatest) = sorted.last() else {
        return Err(ReferenceError::Empty);
    };
    let max = rounded_up(*greatest);
    let lower_edges = lower_edges(&sorted, bins.max(1));
    let mut sketch = NumericSketch { bins: vec![0; lower_edges.len()], ..NumericSketch::default() };
    for value in &sorted {
        sketch.add(&lower_edges, max, *value);
    }
    let missing = (sample.len() - sorted.len()) as u64;
    Ok(Reference::Numeric { lower_edges, max, counts: sketch.bins, missing })
}

/// The reference of a column of classes. `sample` holds positions in `classes`.
///
/// # Errors
/// [`ReferenceError::UnknownClass`] when a position is past the classes, [`ReferenceError::Empty`] without a row.
pub fn class(classes: Vec<String>, sample: &[usize]) -> Result<Reference, ReferenceError> {
    if sample.is_empty() {
        return Err(ReferenceError::Empty);
    }
    let known = classes.len();
    let mut sketch = ClassSketch { counts: vec![0; known], ..ClassSketch::default() };
    for (row, class) in sample.iter().copied().enumerate() {
        if class >= known {
            return Err(ReferenceError::UnknownClass { row, class, known });
        }
        sketch.add(class);
    }
    Ok(Reference::Class { classes, counts: sketch.counts })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::drift::psi;
    use crate::profile::{Column, Profile, Source};
    use crate::sketch::ColumnSketch;

    fn column(reference: Reference) -> Column {
        Column { name: "x".into(), source: Source::Input { tensor: "in".into(), index: 0 }, reference }
    }

    fn edges(reference: &Reference) -> (&[f32], f32, &[u64], u64) {
        match reference {
            Reference::Numeric { lower_edges, max, counts, missing } => (lower_edges, *max, counts, *missing),
            Reference::Class { .. } => panic!("a numeric reference is expected"),
        }
    }

    /// Everything that must hold of any sample that gives a reference.
    fn check(sample: &[f64]) -> Result<(), TestCaseError> {
        let reference = numeric(sample).unwrap();
        let (lower_edges, max, counts, missing) = edges(&reference);
        prop_assert!(lower_edges.len() <= REFERENCE_BINS);
        prop_assert_eq!(counts.iter().sum::<u64>() + missing, sample.len() as u64);
        prop_assert!(counts.iter().all(|n| *n > 0), "an empty bin in {:?}", reference);
        let column = column(reference.clone());
        prop_assert_eq!(Profile { columns: vec![column.clone()], ..Profile::default() }.validate(), Ok(()));

        // Seen again by a device, the sample falls into the bins and nowhere else.
        let mut sketch = ColumnSketch::empty(&column);
        for value in sample {
            if value.is_nan() { sketch.add_missing() } else { sketch.add(&column, *value) }
        }
        prop_assert_eq!(sketch.cells(), reference.cells());
        prop_assert!(psi(&reference.cells(), &sketch.cells()).unwrap().abs() < 1e-12);

        // The manifest carries it as JSON: not an edge may move on the way.
        let json = serde_json::to_string(&reference).unwrap();
        prop_assert_eq!(serde_json::from_str::<Reference>(&json).unwrap(), reference.clone());
        prop_assert!(f64::from(max) >= sample.iter().copied().filter(|x| !x.is_nan()).fold(f64::MIN, f64::max));
        Ok(())
    }

    #[test]
    fn few_values_get_a_bin_each() {
        let reference = numeric(&[3.0, 1.0, 1.0, f64::NAN, 7.0]).unwrap();
        assert_eq!(edges(&reference), (&[1.0, 3.0, 7.0][..], 7.0, &[2, 1, 1][..], 1));
        let constant = numeric(&[0.1; 9]).unwrap();
        let (lower_edges, max, counts, _) = edges(&constant);
        // 0.1 lies between two floats of 32 bits: the bin reaches from the one below to the one above.
        assert!(f64::from(lower_edges[0]) <= 0.1 && f64::from(max) >= 0.1 && counts == [9]);
        let twenty: Vec<f64> = (0..20).map(f64::from).collect();
        assert_eq!(edges(&numeric(&twenty).unwrap()).2, [1; 20]);
    }

    #[test]
    fn many_values_are_cut_at_their_quantiles() {
        let sample: Vec<f64> = (0..1_000).map(f64::from).collect();
        let reference = numeric(&sample).unwrap();
        let (lower_edges, max, counts, missing) = edges(&reference);
        let expected: Vec<f32> = (0u16..20).map(|bin| f32::from(bin * 50)).collect();
        assert_eq!((lower_edges, max, counts, missing), (&expected[..], 999.0, &[50u64; 20][..], 0));
    }

    #[test]
    fn a_heavy_value_takes_the_quantiles_that_fall_on_it() {
        // Nine tenths are zero: the quantiles 0 to 17 of 20 coincide.
        let mut sample = vec![0.0; 900];
        sample.extend((1..=100).map(f64::from));
        let reference = numeric(&sample).unwrap();
        let (lower_edges, _, counts, _) = edges(&reference);
        assert_eq!((lower_edges, counts), (&[0.0, 1.0, 51.0][..], &[900, 50, 50][..]));
    }

    #[test]
    fn what_cannot_be_binned_is_refused() {
        assert_eq!(numeric(&[1.0, f64::INFINITY]), Err(ReferenceError::Infinite { row: 1 }));
        assert_eq!(numeric(&[f64::NEG_INFINITY]), Err(ReferenceError::Infinite { row: 0 }));
        assert_eq!(numeric(&[1e39]), Err(ReferenceError::TooLarge { row: 0, value: 1e39 }));
        // Above the greatest float of 32 bits by less than half a step: rounding to the nearest would let it pass.
        let above = f64::from(f32::MAX).next_up();
        assert_eq!(numeric(&[0.0, -above]), Err(ReferenceError::TooLarge { row: 1, value: -above }));
        assert_eq!(numeric(&[]), Err(ReferenceError::Empty));
        assert_eq!(numeric(&[f64::NAN]), Err(ReferenceError::Empty));
    }

    #[test]
    fn rounding_edge_cases_stay_inside_their_bins() {
        let tiny = f64::from(f32::MIN_POSITIVE);
        let subnormal = f64::from(f32::from_bits(1));
        for sample in [
            vec![-0.0, 0.0],
            vec![subnormal, subnormal / 2.0, -subnormal / 2.0, f64::MIN_POSITIVE, 5e-324, -5e-324],
            vec![tiny.next_down(), tiny, tiny.next_up()],
            vec![f64::from(f32::MAX), -f64::from(f32::MAX), f64::from(f32::MAX).next_down()],
            vec![16_777_216.0, 16_777_217.0, 16_777_218.0],
            vec![0.1, 0.1f64.next_up(), 0.1f64.next_down()],
        ] {
            check(&sample).unwrap();
        }
        let zeros = serde_json::to_string(&numeric(&[-0.0]).unwrap()).unwrap();
        assert_eq!(zeros, serde_json::to_string(&numeric(&[0.0]).unwrap()).unwrap());
    }

    #[test]
    fn classes_are_counted_by_position() {
        let names = || vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let reference = class(names(), &[0, 2, 2]).unwrap();
        assert_eq!(reference, Reference::Class { classes: names(), counts: vec![1, 0, 2] });
        assert_eq!(class(names(), &[0, 3]), Err(ReferenceError::UnknownClass { row: 1, class: 3, known: 3 }));
        assert_eq!(class(names(), &[]), Err(ReferenceError::Empty));
    }

    fn value() -> impl Strategy<Value = f64> {
        let range = f64::from(f32::MAX);
        prop_oneof![
            4 => -100.0..100.0f64,
            2 => (-3i8..3).prop_map(f64::from),
            1 => prop::num::f64::SUBNORMAL | prop::num::f64::POSITIVE | prop::num::f64::NEGATIVE,
            1 => any::<f32>().prop_map(f64::from),
            1 => Just(f64::NAN),
            1 => Just(0.1),
        ]
        .prop_map(move |x| if x.is_infinite() || x.abs() > range { range.copysign(x) } else { x })
    }

    proptest! {
        #[test]
        fn any_sample_falls_into_the_bins_made_from_it(mut sample in prop::collection::vec(value(), 0..150), one in -10.0..10.0f64) {
            sample.push(one);
            check(&sample)?;
        }

        #[test]
        fn wide_samples_use_every_bin(mut sample in prop::collection::vec(-1e6..1e6f64, 200..400)) {
            check(&sample)?;
            sample.sort_by(f64::total_cmp);
            sample.dedup();
            let reference = numeric(&sample).unwrap();
            prop_assert!(edges(&reference).0.len() >= REFERENCE_BINS - 1);
        }

        #[test]
        fn the_order_of_the_sample_does_not_matter(sample in prop::collection::vec(-5.0..5.0f64, 1..60)) {
            let mut reversed = sample.clone();
            reversed.reverse();
            prop_assert_eq!(numeric(&sample), numeric(&reversed));
        }

        #[test]
        fn any_floats_give_a_reference_or_an_error(sample in prop::collection::vec(any::<f64>(), 0..40)) {
            if let Ok(reference) = numeric(&sample) {
                prop_assert_eq!(Profile { columns: vec![column(reference)], ..Profile::default() }.validate(), Ok(()));
            }
        }

        #[test]
        fn classes_sum_to_the_rows(sample in prop::collection::vec(0usize..4, 1..60)) {
            let names = (0..4).map(|c| c.to_string()).collect();
            match class(names, &sample).unwrap() {
                Reference::Class { counts, .. } => prop_assert_eq!(counts.iter().sum::<u64>(), sample.len() as u64),
                Reference::Numeric { .. } => prop_assert!(false),
            }
        }
    }
}
