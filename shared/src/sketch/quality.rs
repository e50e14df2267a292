//! What was wrong with a window's inputs: violations of the data schema, counted by feature and cause.
//!
//! Only what happened takes room, so that a window of good inputs costs a few bytes. A feature is its place in the signed
//! [`DataSchema`]; sketches against different schemas are never merged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::column::MergeError;
use crate::data_schema::DataSchema;
use crate::ids::Digest;

/// Which expectation a value did not meet. New causes go to the end: they travel by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Cause {
    /// There was none: NaN, or an empty text.
    Missing,
    /// An infinity.
    Infinite,
    /// Less than the least that is expected.
    BelowMin,
    /// More than the greatest that is expected.
    AboveMax,
    /// None of the expected values.
    UnknownCategory,
    /// The same value too many times in a row.
    Stuck,
    /// Before the time before it.
    OutOfOrder,
}

impl Cause {
    /// Every cause, in the order of their positions.
    pub const ALL: [Self; 7] = [
        Self::Missing,
        Self::Infinite,
        Self::BelowMin,
        Self::AboveMax,
        Self::UnknownCategory,
        Self::Stuck,
        Self::OutOfOrder,
    ];

    /// Its name in answers and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Infinite => "infinite",
            Self::BelowMin => "below-min",
            Self::AboveMax => "above-max",
            Self::UnknownCategory => "unknown-category",
            Self::Stuck => "stuck",
            Self::OutOfOrder => "out-of-order",
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Counts of one window. Counts stop at the greatest there is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QualitySketch {
    schema: Option<[u8; 32]>,
    /// Rows that were held against the schema.
    pub rows: u64,
    /// Rows that were one of those just before.
    pub duplicates: u64,
    /// Requests whose tensors had another element type or shape than the signature's.
    pub malformed: u64,
    /// Requests that were rejected by a rule.
    pub rejected: u64,
    /// Requests that were answered and flagged.
    pub flagged: u64,
    /// Requests that were answered with a value put in.
    pub imputed: u64,
    counts: BTreeMap<(u16, Cause), u64>,
}

impl QualitySketch {
    /// Nothing counted yet, against the schema with this digest.
    #[must_use]
    pub fn empty(schema: Option<Digest>) -> Self {
        Self { schema: schema.map(|digest| *digest.as_bytes()), ..Self::default() }
    }

    /// Counts `values` of the feature at place `feature` of the schema.
    pub fn add(&mut self, feature: usize, cause: Cause, values: u64) {
        if let Ok(feature) = u16::try_from(feature) {
            let count = self.counts.entry((feature, cause)).or_default();
            *count = count.saturating_add(values);
        }
    }

    /// Values of the feature at place `feature` with this cause.
    #[must_use]
    pub fn count(&self, feature: usize, cause: Cause) -> u64 {
        u16::try_from(feature).ok().and_then(|feature| self.counts.get(&(feature, cause))).copied().unwrap_or(0)
    }

    /// All counts above 0: the feature's place, the cause and the number of values.
    pub fn counts(&self) -> impl Iterator<Item = (usize, Cause, u64)> {
        self.counts.iter().map(|((feature, cause), count)| (usize::from(*feature), *cause, *count))
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self { schema: self.schema, ..Self::default() }
    }

    /// Whether it was counted against `schema` and names only features that are there; without a schema, whether only whole
    /// requests are counted.
    #[must_use]
    pub fn fits(&self, schema: Option<&DataSchema>) -> bool {
        let digest = schema.map(DataSchema::digest);
        self.fits_features(digest.as_ref().zip(schema))
    }

    /// [`QualitySketch::fits`] for many windows: the digest must be the schema's, which takes long to compute.
    #[must_use]
    pub fn fits_features(&self, schema: Option<(&Digest, &DataSchema)>) -> bool {
        let features = schema.map_or(0, |(_, schema)| schema.features.len());
        let same = match (self.schema, schema) {
            (None, _) => self.counts.is_empty(),
            (Some(mine), Some((digest, _))) => mine == *digest.as_bytes(),
            (Some(_), None) => false,
        };
        same && self.counts.keys().all(|(feature, _)| usize::from(*feature) < features)
    }

    /// Adds the counts of another window. One that was not held against any schema adds its whole requests.
    ///
    /// # Errors
    /// [`MergeError`] when the schemas differ; nothing is changed then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        if self.schema.zip(other.schema).is_some_and(|(mine, theirs)| mine != theirs) {
            return Err(MergeError);
        }
        self.schema = self.schema.or(other.schema);
        for (mine, theirs) in [
            (&mut self.rows, other.rows),
            (&mut self.duplicates, other.duplicates),
            (&mut self.malformed, other.malformed),
            (&mut self.rejected, other.rejected),
            (&mut self.flagged, other.flagged),
            (&mut self.imputed, other.imputed),
        ] {
            *mine = mine.saturating_add(theirs);
        }
        for (key, theirs) in &other.counts {
            let mine = self.counts.entry(*key).or_default();
            *mine = mine.saturating_add(*theirs);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sketch() -> impl Strategy<Value = QualitySketch> {
        let count = || prop_oneof![0..9_u64, Just(u64::MAX), any::<u64>()];
        let counts = prop::collection::vec((0..4_usize, 0..Cause::ALL.len(), count()), 0..6);
        let schema = prop_oneof![Just(None), Just(Some(Digest::of(b"one"))), Just(Some(Digest::of(b"other")))];
        (schema, prop::array::uniform6(count()), counts).prop_map(|(schema, whole, counts)| {
            let mut sketch = QualitySketch::empty(schema);
            let [rows, duplicates, malformed, rejected, flagged, imputed] = whole;
            sketch = QualitySketch { rows, duplicates, malformed, rejected, flagged, imputed, ..sketch };
            for (feature, cause, count) in counts {
                sketch.add(feature, Cause::ALL[cause], count);
            }
            sketch
        })
    }

    proptest! {
        #[test]
        fn merging_is_adding_in_any_order(a in sketch(), b in sketch(), c in sketch()) {
            let merged = |parts: [&QualitySketch; 3]| {
                let mut sum = QualitySketch::default();
                parts.into_iter().try_for_each(|part| sum.merge(part)).map(|()| sum)
            };
            let sum = merged([&a, &b, &c]);
            prop_assert_eq!(&sum, &merged([&c, &a, &b]));
            let Ok(sum) = sum else { return Ok(()) };
            prop_assert_eq!(sum.rows, a.rows.saturating_add(b.rows).saturating_add(c.rows));
            for (feature, cause) in (0..4).flat_map(|feature| Cause::ALL.map(|cause| (feature, cause))) {
                let expected = [&a, &b, &c].iter().fold(0, |sum: u64, part| sum.saturating_add(part.count(feature, cause)));
                prop_assert_eq!(sum.count(feature, cause), expected);
            }
            let bytes = postcard::to_stdvec(&sum).unwrap();
            prop_assert_eq!(postcard::from_bytes::<QualitySketch>(&bytes).unwrap(), sum);
        }
    }

    #[test]
    fn counts_against_another_schema_are_refused() {
        let schema = DataSchema::default();
        let mut sketch = QualitySketch::empty(Some(schema.digest()));
        assert!(sketch.fits(Some(&schema)));
        assert!(!sketch.fits(None));
        sketch.add(0, Cause::Missing, 1);
        assert!(!sketch.fits(Some(&schema)), "it has no feature 0");
        assert_eq!(sketch.merge(&QualitySketch::empty(Some(Digest::of(b"x")))), Err(MergeError));
        assert!(QualitySketch::default().fits(Some(&schema)));
    }
}
