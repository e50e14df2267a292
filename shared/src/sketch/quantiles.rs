//! Quantiles of raw values, for columns whose bundle asks for them.
//!
//! A KLL sketch (Karnin, Lang and Liberty, FOCS 2016) as Apache DataSketches has it, in that project's own bytes, so that its libraries in
//! other languages read them. Unlike everything else a device counts, it *contains raw values*: it keeps some of what it saw verbatim, and
//! of few rows all of them. Merging adds the numbers of rows up exactly. Which values are kept is drawn at random, so quantiles after
//! merging depend on order and chance, within [`QuantileSketch::rank_error`].
//!
//! A sketch arrives from devices that may lie. The library checks that its bytes are a sketch; the bounds here make sure beforehand that
//! they are one of ours, and that no sum of them reaches the numbers at which the library panics.

use std::collections::BTreeMap;
use std::fmt;

use datasketches::common::SearchCriteria;
use datasketches::kll::{KllFloat, KllSketch};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::column::{ColumnSketch, MergeError};
use crate::limits::{MAX_EXACT, MAX_QUANTILE_COLUMNS};
use crate::profile::Profile;

/// The parameter of every sketch: up to a million rows take at most 1.5 kB then.
const K: u16 = 104;
/// Rows that one window's sketch counts; beyond, it stays as it is.
const MAX_ROWS: u64 = 1 << 40;
/// Levels of such a sketch: the values of level `i` stand for 2^i rows each, so it takes fewer.
const MAX_LEVELS: u8 = 48;
/// Longest sketch of that many levels, in bytes: 20, and 4 for each level, for the least, the greatest and every value.
const MAX_BYTES: usize = 20 + 4 * (48 + 2 + 294 + 41 * 8);
/// What people are shown: shares of rows, whose quantiles are told.
pub const SHOWN_RANKS: [f64; 7] = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99];

/// Values of one column, as FP32.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantileSketch(KllSketch<KllFloat<f32>>);

/// Sketches of the columns that have one and saw a value, by their position in the profile.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub struct QuantileSketches(BTreeMap<u16, QuantileSketch>);

/// Why bytes are not a quantile sketch that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a quantile sketch: {0}")]
pub struct QuantileSketchError(&'static str);

impl Default for QuantileSketch {
    fn default() -> Self {
        // The library refuses a parameter below 8 only.
        Self(KllSketch::new(K).unwrap_or_default())
    }
}

impl QuantileSketch {
    /// Takes in `x`, as the nearest FP32 number. What is no finite number is left out.
    pub fn add(&mut self, x: f64) {
        if !x.is_finite() || self.0.n() >= MAX_ROWS {
            return;
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounds to the nearest within the range")]
        let x = x.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
        if let Ok(x) = KllFloat::<f32>::new(x) {
            self.0.update(x);
        }
    }

    /// How many values it took in.
    #[must_use]
    pub fn n(&self) -> u64 {
        self.0.n()
    }

    /// Takes in what another sketch saw.
    ///
    /// # Errors
    /// [`MergeError`] when the two saw more values than can be told apart; nothing is changed then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        let fits = self.n().checked_add(other.n()).is_some_and(|n| n <= MAX_EXACT);
        if !fits {
            return Err(MergeError);
        }
        self.0.merge(&other.0).map_err(|_| MergeError)
    }

    /// The values below or at which these shares (0 to 1) of all values lie; `None` of an empty sketch.
    #[must_use]
    pub fn quantiles(&self, ranks: &[f64]) -> Option<Vec<f64>> {
        let found = self.0.quantiles(ranks, SearchCriteria::Inclusive).ok().flatten()?;
        Some(found.into_iter().map(|x| f64::from(x.into_inner())).collect())
    }

    /// How far the share of values at or below a quantile may be from the one asked for, with 99 % confidence
    /// (DataSketches' normalized rank error).
    #[must_use]
    pub fn rank_error(&self) -> f64 {
        self.0.normalized_rank_error()
    }

    /// Apache DataSketches' form of a `kll_floats_sketch`.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.serialize()
    }

    /// Reads what a device's [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`QuantileSketchError`] when the bytes are not a sketch of a window that saw something.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, QuantileSketchError> {
        let refuse = |reason| Err(QuantileSketchError(reason));
        if bytes.len() > MAX_BYTES {
            return refuse("it is longer than any");
        }
        // Preamble, version, family, flags, k (2), m, unused; where there is more than one value n (8), least k (2), levels.
        if bytes.get(4..6) != Some(&K.to_le_bytes()[..]) {
            return refuse("its parameter k is another");
        }
        let is_many = bytes.get(1) == Some(&1) && bytes.len() > 8;
        if is_many && bytes.get(18).is_none_or(|levels| *levels > MAX_LEVELS) {
            return refuse("it has more levels than any");
        }
        let sketch = KllSketch::<KllFloat<f32>>::deserialize(bytes);
        let sketch = sketch.map_err(|_| QuantileSketchError("its parts do not fit together"))?;
        if sketch.n() == 0 || sketch.n() > MAX_ROWS || sketch.min_k() != K {
            return refuse("its number of values is out of bounds");
        }
        // Everything else lies between these two.
        if [sketch.min_item(), sketch.max_item()].iter().any(|end| end.is_none_or(|x| !x.is_finite())) {
            return refuse("it holds what is no finite number");
        }
        Ok(Self(sketch))
    }
}

impl Serialize for QuantileSketch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.to_bytes())
    }
}

impl<'de> Deserialize<'de> for QuantileSketch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = QuantileSketch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_BYTES} bytes of a quantile sketch")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<QuantileSketch, E> {
                QuantileSketch::from_bytes(bytes).map_err(E::custom)
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

impl QuantileSketches {
    /// Keeps those of `counted`, given at the position of their column, that saw a value.
    #[must_use]
    pub fn of_counted(counted: Vec<Option<QuantileSketch>>) -> Self {
        let held = (0..=u16::MAX).zip(counted).filter_map(|(at, sketch)| Some((at, sketch?)));
        Self(held.filter(|(_, sketch)| sketch.n() > 0).collect())
    }

    /// The positions and sketches, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &QuantileSketch)> {
        self.0.iter().map(|(at, sketch)| (usize::from(*at), sketch))
    }

    /// The sketch of the column at position `at`.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<&QuantileSketch> {
        self.0.get(&u16::try_from(at).ok()?)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether they are of columns of which `profile` wants one, and saw no more than `columns`, which count every value.
    #[must_use]
    pub fn fits(&self, profile: &Profile, columns: &[ColumnSketch]) -> bool {
        self.0.iter().all(|(at, sketch)| {
            let counted = match columns.get(usize::from(*at)) {
                Some(ColumnSketch::Numeric(column)) => column.moments.n,
                Some(ColumnSketch::Class(_)) | None => 0,
            };
            profile.quantiles.contains(at) && sketch.n() <= counted
        })
    }

    /// Whether [`QuantileSketches::merge`] would go through.
    #[must_use]
    pub fn can_merge(&self, other: &Self) -> bool {
        let n = |sketches: &Self, at| sketches.0.get(at).map_or(0, QuantileSketch::n);
        other.0.keys().all(|at| n(self, at).checked_add(n(other, at)).is_some_and(|n| n <= MAX_EXACT))
    }

    /// Takes in what another window saw.
    ///
    /// # Errors
    /// [`MergeError`] when the two saw more values than can be told apart; nothing is changed then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        if !self.can_merge(other) {
            return Err(MergeError);
        }
        other.0.iter().try_for_each(|(at, theirs)| self.0.entry(*at).or_default().merge(theirs))
    }
}

impl<'de> Deserialize<'de> for QuantileSketches {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sketches;
        impl<'de> Visitor<'de> for Sketches {
            type Value = QuantileSketches;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "quantile sketches of at most {MAX_QUANTILE_COLUMNS} columns")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<QuantileSketches, A::Error> {
                let mut sketches = BTreeMap::new();
                while let Some((at, sketch)) = map.next_entry::<u16, QuantileSketch>()? {
                    let ascends = sketches.last_key_value().is_none_or(|(last, _)| *last < at);
                    if !ascends || sketches.len() >= MAX_QUANTILE_COLUMNS {
                        return Err(A::Error::custom("quantile sketches are out of order or too many"));
                    }
                    sketches.insert(at, sketch);
                }
                Ok(QuantileSketches(sketches))
            }
        }
        deserializer.deserialize_map(Sketches)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::damage;

    fn sketch(values: &[f64]) -> QuantileSketch {
        let mut sketch = QuantileSketch::default();
        values.iter().for_each(|x| sketch.add(*x));
        sketch
    }

    /// 0 to 1 in an order without pattern (Weyl's sequence of the golden ratio).
    fn spread(rows: u32) -> Vec<f64> {
        (0..rows).map(|row| (f64::from(row) * 0.618_033_988_749_894_9).fract()).collect()
    }

    /// How far each shown quantile's true rank among `sorted` is from the one asked for.
    fn errors(sketch: &QuantileSketch, sorted: &[f64]) -> Vec<f64> {
        assert_eq!(sketch.n(), sorted.len() as u64);
        let error = |(rank, x): (&f64, f64)| {
            let below = sorted.partition_point(|value| *value < x) as f64 / sorted.len() as f64;
            let at_most = sorted.partition_point(|value| *value <= x) as f64 / sorted.len() as f64;
            (below - rank).max(rank - at_most).max(0.0)
        };
        SHOWN_RANKS.iter().zip(sketch.quantiles(&SHOWN_RANKS).unwrap()).map(error).collect()
    }

    /// The bound is the library's published one, for 99 of 100 queries; what is asked of it is the exact order statistic.
    #[test]
    fn merged_sketches_keep_n_and_the_published_rank_error() {
        // Values that FP32 holds, skewed over five decades.
        #[expect(clippy::cast_possible_truncation, reason = "to values that FP32 holds")]
        let values: Vec<f64> = spread(5_000).into_iter().map(|u| f64::from((12.0 * (u - 0.5)).exp() as f32)).collect();
        let mut sorted = values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let bound = QuantileSketch::default().rank_error();
        assert!((bound - 2.296 / f64::from(K).powf(0.9723)).abs() < 1e-12);
        let (mut queries, mut beyond) = (0_u32, 0_u32);
        for length in 31..71 {
            // The same values whole, from devices that are alike, and from devices of which each saw a part of the range.
            let merged = |values: &[f64]| {
                let mut sum = QuantileSketch::default();
                values.chunks(length * 11).for_each(|part| sum.merge(&sketch(part)).unwrap());
                sum
            };
            for found in [sketch(&values), merged(&values), merged(&sorted)] {
                for error in errors(&found, &sorted) {
                    assert!(error <= 2.0 * bound, "{error} is no matter of chance");
                    queries += 1;
                    beyond += u32::from(error > bound);
                }
            }
        }
        assert!(beyond * 50 <= queries, "{beyond} of {queries}");
    }

    /// `tests/fixtures/make_quantiles.py`: what the library's own Python package wrote is read, and says the same.
    #[test]
    fn a_sketch_written_in_python_is_read() {
        let sketch =
            QuantileSketch::from_bytes(include_bytes!("../../../tests/fixtures/quantiles/python.kll")).unwrap();
        let case: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/fixtures/quantiles/python.json")).unwrap();
        assert_eq!(Some(sketch.n()), case["n"].as_u64());
        assert!((sketch.rank_error() - case["rank_error"].as_f64().unwrap()).abs() < 1e-12);
        let told: Vec<(f64, f64)> = serde_json::from_value(case["quantiles"].clone()).unwrap();
        let ours = sketch.quantiles(&SHOWN_RANKS).unwrap();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "they are FP32, and JSON's reader rounds in the last place of FP64"
        )]
        let as_fp32 = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
        assert_eq!(as_fp32(told.iter().map(|(_, x)| *x).collect()), as_fp32(ours));
        assert_eq!(sketch.to_bytes(), include_bytes!("../../../tests/fixtures/quantiles/python.kll"));
        // And it is right: numpy's quantile a rank error away on either side encloses it.
        let exact: Vec<(f64, f64)> = serde_json::from_value(case["exact"].clone()).unwrap();
        assert!(exact.windows(2).all(|pair| pair[0].1 < pair[1].1));
        let median = told[3].1;
        assert!(exact[2].1 < median && median < exact[4].1, "{median}");
    }

    #[test]
    fn few_values_are_kept_as_they_are() {
        let mut one = sketch(&[3.0, 1.0]);
        one.merge(&sketch(&[2.0])).unwrap();
        assert_eq!(one.quantiles(&[0.0, 0.5, 1.0]), Some(vec![1.0, 2.0, 3.0]));
        assert_eq!(QuantileSketch::default().quantiles(&[0.5]), None);
        assert!(QuantileSketch::from_bytes(&QuantileSketch::default().to_bytes()).is_err(), "nothing seen is not sent");
    }

    #[test]
    fn what_is_no_number_stays_out() {
        let sketch = sketch(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e100, 5.0]);
        assert_eq!((sketch.n(), sketch.quantiles(&[1.0])), (2, Some(vec![f64::from(f32::MAX)])));
    }

    #[test]
    fn sums_stop_before_the_library_does() {
        // A sketch of one value that claims to stand for 2^40 rows: the value is at level 40, and there alone.
        let mut bytes = sketch(&[1.0, 1.0]).to_bytes();
        bytes[8..16].copy_from_slice(&MAX_ROWS.to_le_bytes());
        bytes[18] = 41;
        let capacity: u32 = 104 + 69 + 46 + 31 + 21 + 14 + 9 + 34 * 8;
        let offsets: Vec<u8> = std::iter::repeat_n(capacity - 1, 41).flat_map(u32::to_le_bytes).collect();
        bytes.splice(20..24, offsets);
        bytes.truncate(bytes.len() - 4);
        let large = QuantileSketch::from_bytes(&bytes).unwrap();
        assert_eq!(large.n(), MAX_ROWS);
        let mut sum = QuantileSketch::default();
        while sum.merge(&large).is_ok() {}
        assert_eq!(sum.n(), MAX_EXACT);
        assert_eq!(sum.quantiles(&[0.5]), Some(vec![1.0]));
        assert!(sum.to_bytes().len() < 4_096);
        let before = sum.clone();
        assert_eq!((sum.merge(&sketch(&[2.0])), &sum), (Err(MergeError), &before));
        sum.add(2.0);
        assert_eq!(sum, before);
    }

    #[test]
    fn another_libraries_parameters_are_refused() {
        let good = sketch(&spread(5_000)).to_bytes();
        for (at, byte, why) in [(4, 200, "k"), (18, 49, "levels"), (6, 9, "parts"), (2, 7, "parts"), (16, 8, "values")]
        {
            let mut bytes = good.clone();
            bytes[at] = byte;
            let error = QuantileSketch::from_bytes(&bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{at}: {error}");
        }
        let infinite = {
            let mut bytes = sketch(&[1.0]).to_bytes();
            let at = bytes.len() - 4;
            bytes[at..].copy_from_slice(&f32::INFINITY.to_le_bytes());
            bytes
        };
        assert!(QuantileSketch::from_bytes(&infinite).unwrap_err().to_string().contains("finite"));
        assert!(QuantileSketch::from_bytes(&vec![0; MAX_BYTES + 1]).unwrap_err().to_string().contains("longer"));
    }

    proptest! {
        #[test]
        fn a_sketch_comes_back(values in prop::collection::vec(any::<f32>().prop_map(f64::from), 1..400)) {
            let sketch = sketch(&values);
            prop_assert_eq!(sketch.n(), values.iter().filter(|x| x.is_finite()).count() as u64);
            if sketch.n() > 0 {
                prop_assert_eq!(QuantileSketch::from_bytes(&sketch.to_bytes()).unwrap(), sketch);
            }
        }

        /// Whatever passes can be added to honest sketches, over and over, and asked.
        #[test]
        fn a_damaged_sketch_is_refused_or_harmless(
            bytes in prop_oneof![
                damage::bytes(sketch(&spread(3_000)).to_bytes()),
                damage::bytes(sketch(&spread(60)).to_bytes()),
                damage::bytes(sketch(&[1.0]).to_bytes()),
            ],
        ) {
            if let Ok(odd) = QuantileSketch::from_bytes(&bytes) {
                let mut sum = sketch(&spread(500));
                for _ in 0..60 {
                    let before = sum.n();
                    sum.merge(&odd).unwrap();
                    prop_assert_eq!(sum.n(), before + odd.n());
                }
                let mut onto = odd.clone();
                spread(2_000).iter().for_each(|x| onto.add(*x));
                for sketch in [sum, onto] {
                    let found = sketch.quantiles(&SHOWN_RANKS).unwrap();
                    prop_assert!(found.windows(2).all(|pair| pair[0] <= pair[1]) && found.iter().all(|x| x.is_finite()));
                    prop_assert!(sketch.to_bytes().len() < 4_096);
                }
            }
        }

        #[test]
        fn any_bytes_are_a_sketch_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            let _ = QuantileSketch::from_bytes(&bytes);
            // Past the first checks.
            if bytes.len() > 20 {
                bytes[..7].copy_from_slice(&[5, 1, 15, 0, 104, 0, 8]);
                bytes[18] %= 60;
                let _ = QuantileSketch::from_bytes(&bytes);
            }
        }
    }
}
