//! Counts of one monitored column.

use serde::{Deserialize, Serialize};

use super::counts::{add, add_all, total};
use crate::profile::{Column, Reference};

/// Count, mean and sum of squared deviations of finite values.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Moments {
    /// How many values.
    pub n: u64,
    /// Their mean.
    pub mean: f64,
    /// Sum of squared deviations from the mean.
    pub m2: f64,
}

impl Moments {
    /// Takes in one finite value (Welford, Technometrics 4(3), 1962).
    pub fn add(&mut self, x: f64) {
        self.n = self.n.saturating_add(1);
        let delta = x - self.mean;
        self.mean += delta / self.n as f64;
        self.m2 += delta * (x - self.mean);
    }

    /// Takes in what another sketch saw (Chan, Golub and LeVeque, 1979).
    pub fn merge(&mut self, other: &Self) {
        if other.n == 0 {
            return;
        }
        let n = self.n.saturating_add(other.n);
        let delta = other.mean - self.mean;
        let share = other.n as f64 / n as f64;
        self.mean += delta * share;
        self.m2 += other.m2 + delta * delta * self.n as f64 * share;
        self.n = n;
    }

    /// The unbiased variance; `None` below two values.
    #[must_use]
    pub fn variance(&self) -> Option<f64> {
        (self.n > 1).then(|| self.m2 / (self.n - 1) as f64)
    }
}

/// Counts of a numeric column.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NumericSketch {
    /// Values in each reference bin.
    #[serde(with = "super::sparse")]
    pub bins: Vec<u64>,
    /// Values below the reference's least.
    pub below_min: u64,
    /// Values above the reference's greatest.
    pub above_max: u64,
    /// Values that are not a number.
    pub nan: u64,
    /// Values that are plus infinity.
    pub pos_inf: u64,
    /// Values that are minus infinity.
    pub neg_inf: u64,
    /// Requests that gave no value.
    pub missing: u64,
    /// Moments of the finite values.
    pub moments: Moments,
}

/// Where a value is counted: found once, it holds for every sketch of the column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// A bin or a class, by its position.
    Bin(u16),
    /// Below the reference's least.
    Below,
    /// Above the reference's greatest; for a class, none that is known.
    Above,
    /// Not a number.
    Nan,
    /// Plus infinity.
    PosInf,
    /// Minus infinity.
    NegInf,
    /// No value.
    Missing,
}

impl Cell {
    /// Where `x` lies among `lower_edges` and `max` (see [`Reference::Numeric`]).
    fn of_number(lower_edges: &[f32], max: f32, x: f64) -> Self {
        if !x.is_finite() {
            return match x {
                x if x.is_nan() => Self::Nan,
                x if x > 0.0 => Self::PosInf,
                _ => Self::NegInf,
            };
        }
        if x > f64::from(max) {
            return Self::Above;
        }
        // An edge is not above x exactly when it is not above the greatest f32 that is not above x. Counting all of them takes
        // no branches, and less time than finding the place by halves.
        #[expect(clippy::cast_possible_truncation, reason = "rounds to the nearest, which is put right below")]
        let nearest = x as f32;
        let at_most = if f64::from(nearest) > x { nearest.next_down() } else { nearest };
        let edges: u32 = lower_edges.iter().map(|edge| u32::from(*edge <= at_most)).sum();
        match edges.checked_sub(1).and_then(|bin| u16::try_from(bin).ok()) {
            Some(bin) => Self::Bin(bin),
            None => Self::Below,
        }
    }

    /// The class at position `x` of `classes`; NaN, fractions and negatives are in no known class.
    fn of_class(classes: usize, x: f64) -> Self {
        let known = x >= 0.0 && x.fract() == 0.0 && x < classes as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
        let class = known.then_some(x as u16);
        class.map_or(Self::Above, Self::Bin)
    }
}

/// Counts of a categorical column.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClassSketch {
    /// Values in each known class.
    #[serde(with = "super::sparse")]
    pub counts: Vec<u64>,
    /// Values in no known class.
    pub other: u64,
    /// Requests that gave no value.
    pub missing: u64,
}

/// Counts of one column, by its kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ColumnSketch {
    /// Of a number.
    Numeric(NumericSketch),
    /// Of a class.
    Class(ClassSketch),
}

/// Why two sketches cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sketches of different cells cannot be added: they were made against different profiles")]
pub struct MergeError;

impl NumericSketch {
    /// Counts `x` into the cells that `lower_edges` and `max` describe (see [`Reference::Numeric`]).
    pub fn add(&mut self, lower_edges: &[f32], max: f32, x: f64) {
        self.count(Cell::of_number(lower_edges, max, x), x);
    }

    /// Counts `x`, which is known to belong in `cell`.
    fn count(&mut self, cell: Cell, x: f64) {
        let count = match cell {
            Cell::Bin(bin) => self.bins.get_mut(usize::from(bin)),
            Cell::Below => Some(&mut self.below_min),
            Cell::Above => Some(&mut self.above_max),
            Cell::Nan => Some(&mut self.nan),
            Cell::PosInf => Some(&mut self.pos_inf),
            Cell::NegInf => Some(&mut self.neg_inf),
            Cell::Missing => Some(&mut self.missing),
        };
        if let Some(count) = count {
            add(count, 1);
        }
        if matches!(cell, Cell::Bin(_) | Cell::Below | Cell::Above) {
            self.moments.add(x);
        }
    }

    /// Values of every kind, missing ones included.
    #[must_use]
    pub fn total(&self) -> u64 {
        let special = [self.below_min, self.above_max, self.nan, self.pos_inf, self.neg_inf, self.missing];
        total(special.iter().chain(&self.bins))
    }

    fn merge(&mut self, other: &Self) {
        add_all(&mut self.bins, &other.bins);
        for (mine, theirs) in [
            (&mut self.below_min, other.below_min),
            (&mut self.above_max, other.above_max),
            (&mut self.nan, other.nan),
            (&mut self.pos_inf, other.pos_inf),
            (&mut self.neg_inf, other.neg_inf),
            (&mut self.missing, other.missing),
        ] {
            add(mine, theirs);
        }
        self.moments.merge(&other.moments);
    }
}

impl ClassSketch {
    /// Counts the class with this position in the profile; a position past its classes counts as `other`.
    pub fn add(&mut self, class: usize) {
        add(self.counts.get_mut(class).unwrap_or(&mut self.other), 1);
    }

    /// Values of every kind, missing ones included.
    #[must_use]
    pub fn total(&self) -> u64 {
        total(self.counts.iter().chain([&self.other, &self.missing]))
    }
}

impl ColumnSketch {
    /// An empty sketch for `column`.
    #[must_use]
    pub fn empty(column: &Column) -> Self {
        match &column.reference {
            Reference::Numeric { lower_edges, .. } => {
                Self::Numeric(NumericSketch { bins: vec![0; lower_edges.len()], ..NumericSketch::default() })
            }
            Reference::Class { classes, .. } => {
                Self::Class(ClassSketch { counts: vec![0; classes.len()], ..ClassSketch::default() })
            }
        }
    }

    /// Whether this sketch has the cells that `column` describes.
    #[must_use]
    pub fn fits(&self, column: &Column) -> bool {
        match (self, &column.reference) {
            (Self::Numeric(sketch), Reference::Numeric { lower_edges, .. }) => {
                sketch.bins.len() == lower_edges.len()
                    && sketch.moments.mean.is_finite()
                    && sketch.moments.m2.is_finite()
                    && sketch.moments.m2 >= 0.0
            }
            (Self::Class(sketch), Reference::Class { classes, .. }) => sketch.counts.len() == classes.len(),
            (Self::Numeric(_), Reference::Class { .. }) | (Self::Class(_), Reference::Numeric { .. }) => false,
        }
    }

    /// Counts `x`: a number, or a class by its position. `column` must be the one this sketch was made for.
    pub fn add(&mut self, column: &Column, x: f64) {
        self.count(column.reference.cell(x), x);
    }

    /// Counts `x`, which [`Reference::cell`] of this sketch's column put into `cell`.
    pub fn count(&mut self, cell: Cell, x: f64) {
        match self {
            Self::Numeric(sketch) => sketch.count(cell, x),
            Self::Class(sketch) => match cell {
                Cell::Bin(class) => sketch.add(usize::from(class)),
                Cell::Missing => add(&mut sketch.missing, 1),
                Cell::Below | Cell::Above | Cell::Nan | Cell::PosInf | Cell::NegInf => sketch.add(usize::MAX),
            },
        }
    }

    /// Counts a request that gave no value.
    pub fn add_missing(&mut self) {
        match self {
            Self::Numeric(sketch) => add(&mut sketch.missing, 1),
            Self::Class(sketch) => add(&mut sketch.missing, 1),
        }
    }

    /// Values of every kind, missing ones included.
    #[must_use]
    pub fn total(&self) -> u64 {
        match self {
            Self::Numeric(sketch) => sketch.total(),
            Self::Class(sketch) => sketch.total(),
        }
    }

    /// Whether `other` counts into the same cells, so that [`ColumnSketch::merge`] goes through.
    #[must_use]
    pub fn same_cells(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Numeric(mine), Self::Numeric(theirs)) => mine.bins.len() == theirs.bins.len(),
            (Self::Class(mine), Self::Class(theirs)) => mine.counts.len() == theirs.counts.len(),
            (Self::Numeric(_), Self::Class(_)) | (Self::Class(_), Self::Numeric(_)) => false,
        }
    }

    /// Adds what another sketch of the same column counted.
    ///
    /// # Errors
    /// [`MergeError`] when the cells differ; nothing is changed then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        if !self.same_cells(other) {
            return Err(MergeError);
        }
        match (self, other) {
            (Self::Numeric(mine), Self::Numeric(theirs)) => mine.merge(theirs),
            (Self::Class(mine), Self::Class(theirs)) => {
                add_all(&mut mine.counts, &theirs.counts);
                add(&mut mine.other, theirs.other);
                add(&mut mine.missing, theirs.missing);
            }
            (Self::Numeric(_), Self::Class(_)) | (Self::Class(_), Self::Numeric(_)) => {}
        }
        Ok(())
    }

    /// The counts as one vector of cells, every special one included: what drift scores compare. For a number: below
    /// the minimum, the bins, above the maximum, plus and minus infinity, missing, as which NaN counts here: to a model
    /// the two are one. For a class: the classes, other, missing.
    #[must_use]
    pub fn cells(&self) -> Vec<u64> {
        match self {
            Self::Numeric(s) => {
                let mut cells = vec![s.below_min];
                cells.extend(&s.bins);
                cells.extend([s.above_max, s.pos_inf, s.neg_inf, s.nan.saturating_add(s.missing)]);
                cells
            }
            Self::Class(s) => {
                let mut cells = s.counts.clone();
                cells.extend([s.other, s.missing]);
                cells
            }
        }
    }
}

impl Reference {
    /// Where `x`, a number or the position of a class, is counted.
    #[must_use]
    pub fn cell(&self, x: f64) -> Cell {
        match self {
            Self::Numeric { lower_edges, max, .. } => Cell::of_number(lower_edges, *max, x),
            Self::Class { classes, .. } => Cell::of_class(classes.len(), x),
        }
    }

    /// The reference sample's counts in the same cells as [`ColumnSketch::cells`].
    #[must_use]
    pub fn cells(&self) -> Vec<u64> {
        match self {
            Self::Numeric { counts, missing, .. } => {
                let mut cells = vec![0];
                cells.extend(counts);
                cells.extend([0, 0, 0, *missing]);
                cells
            }
            Self::Class { counts, .. } => {
                let mut cells = counts.clone();
                cells.extend([0, 0]);
                cells
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::profile::Source;

    proptest! {
        /// The rule as it is documented, by comparisons of 64 bits.
        #[test]
        fn a_number_falls_between_its_edges(
            edges in prop::collection::btree_set(any::<i8>(), 1..30),
            above in 0u8..4,
            x in prop_oneof![any::<f64>(), -130.0..130.0f64, any::<i8>().prop_map(f64::from), any::<f32>().prop_map(f64::from)],
            nudge in -1i8..=1,
        ) {
            let lower_edges: Vec<f32> = edges.into_iter().map(|edge| f32::from(edge) / 3.0).collect();
            let max = lower_edges[lower_edges.len() - 1] + f32::from(above);
            // On an edge, and the least step beside one.
            let x = if x.abs() < 30.0 { f64::from(lower_edges[lower_edges.len() / 2]) } else { x };
            let x = match nudge { -1 => x.next_down(), 0 => x, _ => x.next_up() };
            let expected = match x {
                x if x.is_nan() => Cell::Nan,
                f64::INFINITY => Cell::PosInf,
                f64::NEG_INFINITY => Cell::NegInf,
                x if x < f64::from(lower_edges[0]) => Cell::Below,
                x if x > f64::from(max) => Cell::Above,
                x => Cell::Bin(u16::try_from(lower_edges.iter().rposition(|edge| f64::from(*edge) <= x).unwrap()).unwrap()),
            };
            prop_assert_eq!(Cell::of_number(&lower_edges, max, x), expected);
        }
    }

    fn numeric() -> Column {
        Column {
            name: "x".into(),
            source: Source::Input { tensor: "in".into(), index: 0 },
            reference: Reference::Numeric {
                lower_edges: vec![0.0, 1.0, 4.0],
                max: 4.0,
                counts: vec![1, 1, 1],
                missing: 0,
            },
        }
    }

    fn classes() -> Column {
        Column {
            name: "class".into(),
            source: Source::PredictedClass { tensor: "out".into() },
            reference: Reference::Class { classes: vec!["a".into(), "b".into()], counts: vec![1, 1] },
        }
    }

    fn sketched(column: &Column, values: &[f64]) -> ColumnSketch {
        let mut sketch = ColumnSketch::empty(column);
        for x in values {
            sketch.add(column, *x);
        }
        sketch
    }

    #[test]
    fn every_value_falls_into_the_cell_its_definition_names() {
        let mut sketch =
            sketched(&numeric(), &[-0.1, 0.0, 0.99, 1.0, 3.99, 4.0, 4.01, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
        sketch.add_missing();
        // below, [0,1), [1,4), [4,4], above, +inf, -inf, missing or NaN
        assert_eq!(sketch.cells(), [1, 2, 2, 1, 1, 1, 1, 2]);
        let mut sketch = sketched(&classes(), &[0.0, 1.0, 1.0, 2.0, -1.0, 0.5, f64::NAN]);
        sketch.add_missing();
        assert_eq!(sketch.cells(), [1, 2, 4, 1]);
    }

    #[test]
    fn different_cells_refuse_to_merge() {
        let mut one = ColumnSketch::empty(&numeric());
        assert_eq!(one.merge(&ColumnSketch::empty(&classes())), Err(MergeError));
        let other = ColumnSketch::Numeric(NumericSketch { bins: vec![0; 2], ..NumericSketch::default() });
        assert_eq!(one.merge(&other), Err(MergeError));
    }

    #[test]
    fn counts_saturate_instead_of_wrapping() {
        let mut sketch = ClassSketch { counts: vec![u64::MAX], other: 1, missing: 0 };
        sketch.add(0);
        assert_eq!(sketch.counts, [u64::MAX]);
        assert_eq!(sketch.total(), u64::MAX);
    }

    proptest! {
        /// Merging is associative and commutative, and equal to sketching the union.
        #[test]
        fn merging_equals_sketching_the_union(a in values(), b in values(), c in values()) {
            for column in [numeric(), classes()] {
                let [sa, sb, sc] = [&a, &b, &c].map(|v| sketched(&column, v));
                let all: Vec<f64> = [a.clone(), b.clone(), c.clone()].concat();
                let mut left = sa.clone();
                left.merge(&sb).unwrap();
                left.merge(&sc).unwrap();
                let mut right = sc.clone();
                right.merge(&sb).unwrap();
                right.merge(&sa).unwrap();
                let union = sketched(&column, &all);
                prop_assert_eq!(left.cells(), union.cells());
                prop_assert_eq!(right.cells(), union.cells());
                prop_assert_eq!(union.total(), all.len() as u64);
                if let (ColumnSketch::Numeric(l), ColumnSketch::Numeric(u)) = (&left, &union) {
                    prop_assert_eq!(l.moments.n, u.moments.n);
                    prop_assert!((l.moments.mean - u.moments.mean).abs() < 1e-6);
                    prop_assert!((l.moments.m2 - u.moments.m2).abs() <= 1e-6 * (1.0 + u.moments.m2));
                }
            }
        }
    }

    fn values() -> impl Strategy<Value = Vec<f64>> {
        let special = prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(1.0), Just(4.0)];
        prop::collection::vec(prop_oneof![4 => -2.0..6.0f64, 1 => special], 0..40)
    }
}
