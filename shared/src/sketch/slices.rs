//! What was counted of each slice of a window: its rows, and every column of the profile for them alone.
//!
//! Only slices that saw a row are kept and sent. Which slices there are is [`crate::profile::Slicing`]'s matter, and how many must
//! have been counted before one is shown [`crate::suppression`]'s.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::column::{ColumnSketch, MergeError};
use crate::limits::{MAX_SLICED_COLUMNS, MAX_SLICES};
use crate::profile::Profile;

/// Counts of one slice.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SliceSketch {
    /// Rows in it.
    pub rows: u64,
    /// One sketch a column, in the profile's order; none where they were left out for want of space, so that they may tell of fewer rows
    /// than there were.
    #[serde(deserialize_with = "super::columns::deserialize")]
    pub columns: Vec<ColumnSketch>,
}

/// Counts of every slice that saw a row, by its number in the profile.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub struct SliceSketches(BTreeMap<u8, SliceSketch>);

impl SliceSketch {
    /// An empty one for `profile`.
    #[must_use]
    pub fn empty(profile: &Profile) -> Self {
        Self { rows: 0, columns: profile.columns.iter().map(ColumnSketch::empty).collect() }
    }

    fn fits(&self, profile: &Profile) -> bool {
        let columns = self.columns.iter().zip(&profile.columns);
        let whole = self.columns.len() == profile.columns.len() && columns.clone().all(|(s, column)| s.fits(column));
        self.rows > 0 && (self.columns.is_empty() || whole)
    }

    fn same_cells(&self, other: &Self) -> bool {
        let either_is_left_out = self.columns.is_empty() || other.columns.is_empty();
        either_is_left_out
            || (self.columns.len() == other.columns.len()
                && self.columns.iter().zip(&other.columns).all(|(mine, theirs)| mine.same_cells(theirs)))
    }

    /// Adds what another sketch of the same slice counted.
    ///
    /// # Errors
    /// [`MergeError`] when the cells differ; nothing is changed then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        if !self.same_cells(other) {
            return Err(MergeError);
        }
        self.rows = self.rows.saturating_add(other.rows);
        if self.columns.is_empty() {
            self.columns.clone_from(&other.columns);
            return Ok(());
        }
        self.columns.iter_mut().zip(&other.columns).try_for_each(|(mine, theirs)| mine.merge(theirs))
    }
}

impl SliceSketches {
    /// Keeps those of `counted`, given at the position that is their number, that saw a row.
    #[must_use]
    pub fn of_counted(counted: Vec<SliceSketch>) -> Self {
        Self((0..=u8::MAX).zip(counted).filter(|(_, slice)| slice.rows > 0).collect())
    }

    /// The slices that saw a row, ascending by number.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &SliceSketch)> {
        self.0.iter().map(|(number, slice)| (*number, slice))
    }

    /// What was counted of the slice with this number; `None` when it saw nothing.
    #[must_use]
    pub fn get(&self, number: u8) -> Option<&SliceSketch> {
        self.0.get(&number)
    }

    /// Whether the slices are those of `profile`, with its cells and no other.
    #[must_use]
    pub fn fits(&self, profile: &Profile) -> bool {
        let count = profile.slice_count();
        self.0.iter().all(|(number, slice)| usize::from(*number) < count && slice.fits(profile))
    }

    /// Whether [`SliceSketches::merge`] would go through.
    #[must_use]
    pub fn same_cells(&self, other: &Self) -> bool {
        self.0.iter().all(|(number, mine)| other.get(*number).is_none_or(|theirs| mine.same_cells(theirs)))
    }

    /// Adds what another window counted.
    ///
    /// # Errors
    /// [`MergeError`] when the cells differ; nothing is changed then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        if !self.same_cells(other) {
            return Err(MergeError);
        }
        for (number, theirs) in &other.0 {
            match self.0.get_mut(number) {
                Some(mine) => mine.merge(theirs)?,
                None => drop(self.0.insert(*number, theirs.clone())),
            }
        }
        Ok(())
    }

    /// Leaves the columns of the smallest slices out until what is left is at most `max_bytes` on the wire.
    pub(super) fn bound(&mut self, max_bytes: usize) {
        let length = |slice: &SliceSketch| postcard::to_stdvec(&slice.columns).map_or(0, |bytes| bytes.len());
        let mut sizes: Vec<(u64, u8, usize)> =
            self.0.iter().map(|(number, slice)| (slice.rows, *number, length(slice))).collect();
        // What a slice takes besides its columns: its number and its rows.
        let mut total: usize = sizes.iter().map(|(_, _, length)| length + 11).sum();
        sizes.sort_unstable();
        for (_, number, length) in sizes {
            if total <= max_bytes {
                break;
            }
            if let Some(slice) = self.0.get_mut(&number) {
                slice.columns.clear();
                total -= length;
            }
        }
    }
}

impl<'de> Deserialize<'de> for SliceSketches {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Slices;
        impl<'de> Visitor<'de> for Slices {
            type Value = SliceSketches;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_SLICES} slices of {MAX_SLICED_COLUMNS} columns together")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SliceSketches, A::Error> {
                let mut slices = BTreeMap::new();
                let mut columns = 0;
                while let Some((number, slice)) = map.next_entry::<u8, SliceSketch>()? {
                    columns += slice.columns.len();
                    let ascends = slices.last_key_value().is_none_or(|(last, _)| *last < number);
                    if !ascends || usize::from(number) >= MAX_SLICES || columns > MAX_SLICED_COLUMNS {
                        return Err(A::Error::custom("slices are out of order or out of bounds"));
                    }
                    slices.insert(number, slice);
                }
                Ok(SliceSketches(slices))
            }
        }
        deserializer.deserialize_map(Slices)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::profile::{Column, Reference, SliceBy, SliceSet, Slicing, Source};

    fn profile() -> Profile {
        let column = |name: &str, reference| Column {
            name: name.into(),
            source: Source::Input { tensor: "in".into(), index: 0 },
            reference,
        };
        let numeric = Reference::Numeric { lower_edges: vec![0.0, 1.0, 2.0], max: 3.0, counts: vec![1; 3], missing: 0 };
        let class = Reference::Class { classes: vec!["a".into(), "b".into()], counts: vec![1, 1] };
        let by = SliceBy::Range { tensor: "in".into(), index: 0, edges: vec![0.5, 1.5] };
        Profile {
            columns: vec![column("x", numeric), column("c", class)],
            slices: vec![Slicing { name: "x".into(), by }],
            ..Profile::default()
        }
    }

    /// Sketches rows that are in the slice of their second part.
    fn sketched(rows: &[(f64, u8)]) -> SliceSketches {
        let profile = profile();
        let mut slices = vec![SliceSketch::empty(&profile); profile.slice_count()];
        for (value, slice) in rows {
            for number in SliceSet::default().with(*slice).iter() {
                let slice = &mut slices[usize::from(number)];
                slice.rows += 1;
                for (sketch, column) in slice.columns.iter_mut().zip(&profile.columns) {
                    sketch.add(column, *value);
                }
            }
        }
        SliceSketches::of_counted(slices)
    }

    fn counts(slices: &SliceSketches) -> Vec<(u8, u64, Vec<Vec<u64>>)> {
        slices.iter().map(|(n, s)| (n, s.rows, s.columns.iter().map(ColumnSketch::cells).collect())).collect()
    }

    fn merged(parts: &[&SliceSketches]) -> SliceSketches {
        let mut sum = SliceSketches::default();
        for part in parts {
            sum.merge(part).unwrap();
        }
        sum
    }

    #[test]
    fn slices_that_saw_nothing_cost_nothing() {
        assert_eq!(postcard::to_stdvec(&sketched(&[])).unwrap(), [0]);
        assert_eq!(sketched(&[(0.0, 2)]).iter().map(|(n, s)| (n, s.rows)).collect::<Vec<_>>(), [(2, 1)]);
        assert!(postcard::to_stdvec(&sketched(&[(0.0, 2)])).unwrap().len() < 48);
    }

    #[test]
    fn the_smallest_slices_are_left_out_first_but_not_their_rows() {
        let rows: Vec<_> = (0..60u8).map(|n| (f64::from(n) / 20.0, [0, 1, 1, 3, 3, 3][usize::from(n % 6)])).collect();
        let mut slices = sketched(&rows);
        let whole = postcard::to_stdvec(&slices).unwrap().len();
        slices.bound(whole + 100);
        assert_eq!(slices, sketched(&rows));
        slices.bound(whole);
        let kept: Vec<_> = slices.iter().map(|(n, s)| (n, s.rows, s.columns.is_empty())).collect();
        assert_eq!(kept, [(0, 10, true), (1, 20, false), (3, 30, false)]);
        assert!(slices.fits(&profile()));
        // Such windows still add up with those that are whole.
        let sum = merged(&[&slices, &sketched(&rows)]);
        assert_eq!(sum.get(0).map(|s| (s.rows, s.columns[0].total())), Some((20, 10)));
        slices.bound(0);
        assert!(slices.iter().all(|(_, slice)| slice.columns.is_empty() && slice.rows > 0));
    }

    #[test]
    fn other_cells_are_refused_and_change_nothing() {
        let mut one = sketched(&[(0.0, 0), (1.0, 1)]);
        let mut other = sketched(&[(0.0, 0), (1.0, 1)]);
        other.0.get_mut(&1).unwrap().columns.pop();
        assert!(!other.fits(&profile()));
        let before = one.clone();
        assert_eq!(one.merge(&other), Err(MergeError));
        assert_eq!(one, before);
        assert!(one.fits(&profile()) && !one.fits(&Profile::default()));
    }

    #[test]
    fn hostile_forms_are_refused() {
        let slice = SliceSketch { rows: 1, columns: Vec::new() };
        let wire = |slices: &[(u8, SliceSketch)]| postcard::to_stdvec(&slices.to_vec()).unwrap();
        let read = |bytes: &[u8]| postcard::from_bytes::<SliceSketches>(bytes);
        assert!(read(&wire(&[(0, slice.clone()), (63, slice.clone())])).is_ok());
        for bad in [
            vec![(64, slice.clone())],
            vec![(1, slice.clone()), (1, slice.clone())],
            vec![(2, slice.clone()), (1, slice)],
        ] {
            assert!(read(&wire(&bad)).is_err(), "{bad:?}");
        }
        let empty = ColumnSketch::empty(&profile().columns[1]);
        let many = SliceSketch { rows: 1, columns: vec![empty; MAX_SLICED_COLUMNS / 2 + 1] };
        assert!(read(&wire(&[(0, many.clone()), (1, many)])).is_err());
    }

    fn rows() -> impl Strategy<Value = Vec<(f64, u8)>> {
        prop::collection::vec((prop_oneof![-1.0..4.0f64, Just(f64::NAN), Just(1.0)], 0u8..4), 0..30)
    }

    proptest! {
        #[test]
        fn merging_equals_sketching_the_union(a in rows(), b in rows(), c in rows()) {
            let [sa, sb, sc] = [&a, &b, &c].map(|rows| sketched(rows));
            let union = counts(&sketched(&[a, b, c].concat()));
            prop_assert_eq!(counts(&merged(&[&sa, &sb, &sc])), union.clone());
            prop_assert_eq!(counts(&merged(&[&sc, &merged(&[&sb, &sa])])), union);
        }

        #[test]
        fn what_is_sent_comes_back(rows in rows()) {
            let sent = sketched(&rows);
            let back: SliceSketches = postcard::from_bytes(&postcard::to_stdvec(&sent).unwrap()).unwrap();
            prop_assert_eq!(back, sent);
        }
    }
}
