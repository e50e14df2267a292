//! A sketch of durations with a bounded relative error.
//!
//! DDSketch (Masson, Rim and Lee, VLDB 2019) with α = 0.02 and a fixed range, 1 µs to about 1,000 s: the
//! same logarithmic cells everywhere, hence a dense vector of counts, merged by adding. A sketch arrives from
//! devices that may lie, so it is read through a form that cannot express an index out of range.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::counts::{add, add_all, total};
use super::sparse;

/// α: how far an estimated quantile may be from a true one, as a share of it.
pub const LATENCY_RELATIVE_ERROR: f64 = 0.02;

const GAMMA: f64 = (1.0 + LATENCY_RELATIVE_ERROR) / (1.0 - LATENCY_RELATIVE_ERROR);
/// ⌈ln(10⁹) / ln γ⌉ + 1: cell 0 holds up to 1 µs, the last one everything from 1,000 s.
const CELLS: usize = 520;

/// Counts of durations in microseconds, by logarithmic cell.
///
/// In binary a list of the cells in use and their counts. In JSON, of which half a kilobyte must do for an hour, the lowest cell in use and then
/// all counts from there to the highest, a run of zeros as a zero and its length; a list of pairs, as earlier versions wrote it, is read as
/// well.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LatencySketch {
    /// The lowest cell in use; 0 while none is.
    first: usize,
    /// From that one to the highest in use: durations of one model lie close together.
    counts: Vec<u64>,
}

/// Why a list of cells is not a latency sketch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a latency sketch lists the cells below {CELLS} that counted anything, each once")]
struct LatencySketchError;

impl LatencySketch {
    /// Counts one duration.
    pub fn add(&mut self, duration_us: u64) {
        let cell = Self::cell(duration_us as f64);
        self.make_room(cell, cell + 1);
        add(&mut self.counts[cell - self.first], 1);
    }

    /// Widens it to hold the cells from `first` to before `end`, of which the outermost are to be counted.
    fn make_room(&mut self, first: usize, end: usize) {
        if self.counts.is_empty() {
            self.first = first;
        } else if first < self.first {
            self.counts.splice(..0, std::iter::repeat_n(0, self.first - first));
            self.first = first;
        }
        if self.first + self.counts.len() < end {
            self.counts.resize(end - self.first, 0);
        }
    }

    /// Adds what another sketch counted.
    pub fn merge(&mut self, other: &Self) {
        if other.counts.is_empty() {
            return;
        }
        self.make_room(other.first, other.first + other.counts.len());
        add_all(&mut self.counts[other.first - self.first..], &other.counts);
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        total(&self.counts)
    }

    /// The `q`-quantile (0 to 1) in microseconds, within [`LATENCY_RELATIVE_ERROR`]; `None` when empty.
    #[must_use]
    pub fn quantile_us(&self, q: f64) -> Option<f64> {
        let counted = self.count();
        if counted == 0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * (counted - 1) as f64;
        let mut below = 0.0;
        for (cell, n) in self.cells() {
            below += *n as f64;
            if below > rank {
                return Some(Self::representative_us(cell));
            }
        }
        self.cells().rfind(|(_, n)| **n > 0).map(|(cell, _)| Self::representative_us(cell))
    }

    /// How many durations were at most `edge_us`, cells being counted whole: within [`LATENCY_RELATIVE_ERROR`] of the edge.
    #[must_use]
    pub fn count_up_to(&self, edge_us: f64) -> u64 {
        let edge = Self::cell(edge_us);
        self.cells().take_while(|(cell, _)| *cell <= edge).fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }

    /// All durations added up, in microseconds, within [`LATENCY_RELATIVE_ERROR`].
    #[must_use]
    pub fn sum_us(&self) -> f64 {
        self.cells().map(|(cell, n)| *n as f64 * Self::representative_us(cell)).sum()
    }

    /// Cells in use, and those between them, with their counts.
    fn cells(&self) -> impl DoubleEndedIterator<Item = (usize, &u64)> {
        (self.first..self.first + self.counts.len()).zip(&self.counts)
    }

    fn cell(duration_us: f64) -> usize {
        if duration_us <= 1.0 {
            return 0;
        }
        let cell = (duration_us.ln() / GAMMA.ln()).ceil();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a float-to-int cast saturates, and the value is positive"
        )]
        (cell as usize).min(CELLS - 1)
    }

    fn representative_us(cell: usize) -> f64 {
        if cell == 0 { 1.0 } else { 2.0 * GAMMA.powi(i32::try_from(cell).unwrap_or(i32::MAX)) / (GAMMA + 1.0) }
    }
}

impl LatencySketch {
    fn pairs(&self) -> Vec<(u16, u64)> {
        let first = u16::try_from(self.first).unwrap_or(u16::MAX);
        (first..).zip(self.counts.iter().copied()).filter(|(_, n)| *n > 0).collect()
    }

    fn of_pairs(cells: Vec<(u16, u64)>) -> Result<Self, LatencySketchError> {
        let mut sketch = Self::default();
        for (cell, n) in cells {
            let cell = usize::from(cell);
            if cell >= CELLS || n == 0 {
                return Err(LatencySketchError);
            }
            sketch.make_room(cell, cell + 1);
            let count = &mut sketch.counts[cell - sketch.first];
            if *count != 0 {
                return Err(LatencySketchError);
            }
            *count = n;
        }
        Ok(sketch)
    }

    fn runs(&self) -> Vec<u64> {
        if self.counts.is_empty() {
            return Vec::new();
        }
        let mut numbers = vec![self.first as u64];
        numbers.extend(sparse::runs(&self.counts));
        numbers
    }

    fn of_runs(numbers: &[u64]) -> Result<Self, LatencySketchError> {
        let Some((first, rest)) = numbers.split_first() else { return Ok(Self::default()) };
        let first = usize::try_from(*first).ok().filter(|first| *first < CELLS).ok_or(LatencySketchError)?;
        let mut counts = Vec::new();
        sparse::extend(&mut counts, rest.iter().copied().map(Ok::<u64, LatencySketchError>), CELLS - first)?
            .ok_or(LatencySketchError)?;
        let ends_in_use = [counts.first(), counts.last()].iter().all(|end| end.is_some_and(|n| *n > 0));
        if ends_in_use { Ok(Self { first, counts }) } else { Err(LatencySketchError) }
    }
}

impl Serialize for LatencySketch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            self.runs().serialize(serializer)
        } else {
            self.pairs().serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for LatencySketch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Runs(Vec<u64>),
            Pairs(Vec<(u16, u64)>),
        }
        let form = if deserializer.is_human_readable() {
            Form::deserialize(deserializer)?
        } else {
            Form::Pairs(Vec::deserialize(deserializer)?)
        };
        let sketch = match form {
            Form::Runs(numbers) => Self::of_runs(&numbers),
            Form::Pairs(cells) => Self::of_pairs(cells),
        };
        sketch.map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sketch(durations: &[u64]) -> LatencySketch {
        let mut sketch = LatencySketch::default();
        durations.iter().for_each(|d| sketch.add(*d));
        sketch
    }

    proptest! {
        /// The error bound is the paper's; the expectation is the exact order statistic.
        #[test]
        fn quantiles_are_within_the_bound(mut durations in prop::collection::vec(1u64..900_000_000, 1..200), q in 0.0..1.0f64) {
            let estimate = sketch(&durations).quantile_us(q).unwrap();
            durations.sort_unstable();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
            let exact = durations[(q * (durations.len() - 1) as f64) as usize] as f64;
            prop_assert!((estimate - exact).abs() <= LATENCY_RELATIVE_ERROR * exact * 1.000_001, "{estimate} for {exact}");
        }

        #[test]
        fn merging_equals_sketching_the_union(a in prop::collection::vec(any::<u64>(), 0..50), b in prop::collection::vec(any::<u64>(), 0..50)) {
            let mut merged = sketch(&a);
            merged.merge(&sketch(&b));
            prop_assert_eq!(&merged, &sketch(&[a, b].concat()));
            let json = serde_json::to_string(&merged).unwrap();
            prop_assert_eq!(&serde_json::from_str::<LatencySketch>(&json).unwrap(), &merged);
            let earlier = serde_json::to_string(&merged.pairs()).unwrap();
            prop_assert_eq!(&serde_json::from_str::<LatencySketch>(&earlier).unwrap(), &merged);
            prop_assert_eq!(postcard::from_bytes::<LatencySketch>(&postcard::to_stdvec(&merged).unwrap()).unwrap(), merged);
        }
    }

    proptest! {
        /// The expectations are the exact sum, and the exact counts at edges a little to both sides.
        #[test]
        fn sums_and_counts_are_within_the_bound(durations in prop::collection::vec(1u64..900_000_000, 0..200), edge in 1.0..1e9f64) {
            let sketched = sketch(&durations);
            let exact: f64 = durations.iter().map(|d| *d as f64).sum();
            prop_assert!((sketched.sum_us() - exact).abs() <= LATENCY_RELATIVE_ERROR * exact * 1.000_001);
            let up_to = |edge: f64| durations.iter().filter(|d| **d as f64 <= edge).count() as u64;
            let counted = sketched.count_up_to(edge);
            prop_assert!(up_to(edge) <= counted && counted <= up_to(edge * GAMMA * 1.000_001), "{counted}");
            prop_assert_eq!(sketched.count_up_to(f64::INFINITY), sketched.count());
        }
    }

    #[test]
    fn the_ends_of_the_range_and_hostile_cells() {
        assert_eq!(sketch(&[0, 1]).quantile_us(0.5), Some(1.0));
        assert_eq!(LatencySketch::default().quantile_us(0.5), None);
        assert!(sketch(&[u64::MAX]).quantile_us(1.0).unwrap() > 9e8);
        for hostile in
            ["[520,1]", "[519,1,1]", "[5,0,1]", "[5,1,0,1]", "[5]", "[5,1,0,0,1]", "[5,1,0,520,1]", "[5,-1]", "[[5],1]"]
        {
            assert!(serde_json::from_str::<LatencySketch>(hostile).is_err(), "{hostile}");
        }
        assert!(serde_json::from_str::<LatencySketch>("[[520,1]]").is_err());
        assert!(serde_json::from_str::<LatencySketch>("[[5,1],[5,1]]").is_err());
        assert!(serde_json::from_str::<LatencySketch>("[[5,0]]").is_err());
    }
}
