//! The monitoring profile of a bundle: what its columns looked like in the reference sample.
//!
//! It is part of the signed manifest. A column is a feature of the input, or something derived from
//! the output; each is sketched on the device in the bins given here ([`crate::sketch`]), so that counts of all
//! devices add up exactly. Counts made against different profiles (by [`Profile::digest`]) are never merged.

mod objectives;
mod outliers;
mod slices;
mod source;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::Digest;
use crate::labels::{LabelSpec, LabelSpecError};
use crate::limits::{MAX_BINS, MAX_CLASSES, MAX_COLUMNS, MAX_LABEL_BYTES, MAX_QUANTILE_COLUMNS};

pub use self::objectives::Objectives;
pub use self::outliers::{Centre, Distance, Outliers, ReadyDistance, RowDistance};
pub use self::slices::{MISSING_SLICE, OTHER_SLICE, SliceBy, SliceName, SliceSet, Slicing};
pub use self::source::{Probe, Side, Source};

/// The bins of a column and how the reference sample fell into them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Reference {
    /// A number. Bin `i` holds `lower_edges[i] <= x < lower_edges[i + 1]`, the last one `x <= max`.
    #[serde(rename_all = "kebab-case")]
    Numeric {
        /// Ascending, the first being the reference's least value.
        lower_edges: Vec<f32>,
        /// The reference's greatest value.
        max: f32,
        /// Reference rows in each bin.
        counts: Vec<u64>,
        /// Reference rows without a value.
        missing: u64,
    },
    /// One of a set of known classes.
    Class {
        /// The classes' names, in the order of the model's output; for an element that is a class itself, its values as texts. Of
        /// those, [`OTHER_SLICE`] stands for all that have no name here, and [`MISSING_SLICE`] for none, where the reference sample had such.
        classes: Vec<String>,
        /// Reference rows in each class.
        counts: Vec<u64>,
    },
}

/// One monitored column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Column {
    /// Its name, unique in the profile.
    pub name: String,
    /// Where its values come from.
    pub source: Source,
    /// Its bins and reference counts.
    pub reference: Reference,
}

/// All monitored columns of a bundle.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Profile {
    /// The columns, in the order in which sketches carry them.
    pub columns: Vec<Column>,
    /// How rows are cut into slices that are counted apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<Slicing>,
    /// What a label is; none where the bundle is not labelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<LabelSpec>,
    /// Which rows are outliers of the reference; none where none are flagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outliers: Option<Outliers>,
    /// Positions of the columns of which devices keep a quantile sketch, ascending. Such a sketch contains raw values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quantiles: Vec<u16>,
    /// What requests are expected to keep to.
    #[serde(default, skip_serializing_if = "Objectives::is_empty")]
    pub objectives: Objectives,
}

/// Why a profile is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("monitoring profile, column {column:?}: {reason}")]
pub struct ProfileError {
    /// The column's name.
    pub column: String,
    /// What is wrong.
    pub reason: &'static str,
}

fn refuse<T>(column: &str, reason: &'static str) -> Result<T, ProfileError> {
    Err(ProfileError { column: column.chars().take(80).collect(), reason })
}

impl Column {
    /// Whether the column tells about the model's answers rather than its inputs.
    #[must_use]
    pub fn is_prediction(&self) -> bool {
        self.source.tensor().0 == Side::Output
    }
}

impl Profile {
    /// Identifies the profile: the digest of its JSON form, which is deterministic.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// The names of the columns of which devices keep raw values.
    pub fn quantile_columns(&self) -> impl Iterator<Item = &str> {
        self.quantiles.iter().filter_map(|at| self.columns.get(usize::from(*at))).map(|column| column.name.as_str())
    }

    /// Checks every bound and order that sketching relies on.
    ///
    /// # Errors
    /// [`ProfileError`] with the first column that breaks one.
    pub fn validate(&self) -> Result<(), ProfileError> {
        if self.columns.len() > MAX_COLUMNS {
            return refuse("", "more columns than a profile may hold");
        }
        let mut names = BTreeSet::new();
        for column in &self.columns {
            if column.name.is_empty() || column.name.len() > MAX_LABEL_BYTES {
                return refuse(&column.name, "a name has 1 to 128 bytes");
            }
            if !names.insert(&column.name) {
                return refuse(&column.name, "the name is used twice");
            }
            column.source.check().or_else(|reason| refuse(&column.name, reason))?;
            if column.source.is_numeric() && matches!(column.reference, Reference::Class { .. }) {
                return refuse(&column.name, "it gives numbers, which are in no class");
            }
            let (counts, bins) = match &column.reference {
                Reference::Numeric { lower_edges, max, counts, .. } => {
                    if lower_edges.is_empty() || lower_edges.len() > MAX_BINS {
                        return refuse(&column.name, "1 to 64 bins are allowed");
                    }
                    if !max.is_finite() || lower_edges.iter().any(|e| !e.is_finite()) {
                        return refuse(&column.name, "edges must be finite numbers");
                    }
                    if lower_edges.windows(2).any(|w| w[0] >= w[1]) || lower_edges.iter().any(|e| e > max) {
                        return refuse(&column.name, "edges must ascend and end below the maximum");
                    }
                    (counts, lower_edges.len())
                }
                Reference::Class { classes, counts } => {
                    if classes.is_empty() || classes.len() > MAX_CLASSES {
                        return refuse(&column.name, "1 to 256 classes are allowed");
                    }
                    if classes.iter().any(|c| c.is_empty() || c.len() > MAX_LABEL_BYTES) {
                        return refuse(&column.name, "a class name has 1 to 128 bytes");
                    }
                    if classes.iter().collect::<BTreeSet<_>>().len() != classes.len() {
                        return refuse(&column.name, "a class is named twice");
                    }
                    (counts, classes.len())
                }
            };
            if counts.len() != bins {
                return refuse(&column.name, "there must be one reference count for each bin");
            }
        }
        if let Some(labels) = &self.labels {
            labels.validate().map_err(|LabelSpecError(reason)| ProfileError { column: "labels".into(), reason })?;
        }
        self.check_quantiles()?;
        self.objectives.check().or_else(|reason| refuse("objectives", reason))?;
        self.check_outliers()?;
        self.check_slices()
    }

    fn check_quantiles(&self) -> Result<(), ProfileError> {
        if self.quantiles.len() > MAX_QUANTILE_COLUMNS {
            return refuse("", "quantiles are kept of at most 32 columns");
        }
        if self.quantiles.windows(2).any(|pair| pair[0] >= pair[1]) {
            return refuse("", "columns with quantiles are listed once, in order");
        }
        for at in &self.quantiles {
            match self.columns.get(usize::from(*at)) {
                Some(column) if matches!(column.reference, Reference::Numeric { .. }) => {}
                Some(column) => return refuse(&column.name, "it holds classes, which have no quantiles"),
                None => return refuse("", "quantiles are asked of a column that is not there"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::damage;
    use crate::sketch::ColumnSketch;

    fn profile() -> serde_json::Value {
        let column = |name: &str, source, reference| Column { name: name.into(), source, reference };
        let numeric =
            || Reference::Numeric { lower_edges: vec![-1.5, 0.0, 2.0], max: 3.0, counts: vec![4, 5, 6], missing: 1 };
        let class = Reference::Class { classes: vec!["a".into(), "b".into()], counts: vec![7, 9] };
        let profile = Profile {
            columns: vec![
                column("x", Source::Input { tensor: "in".into(), index: 0 }, numeric()),
                column("y", Source::Output { tensor: "out".into(), index: 1 }, numeric()),
                column("confidence", Source::Confidence { tensor: "out".into() }, numeric()),
                column("class", Source::PredictedClass { tensor: "out".into() }, class),
            ],
            ..Profile::default()
        };
        profile.validate().unwrap();
        serde_json::to_value(profile).unwrap()
    }

    /// What sketching relies on in a valid profile: every value falls into one cell.
    fn check_valid(profile: &Profile, value: f64) -> Result<(), TestCaseError> {
        for column in &profile.columns {
            let mut sketch = ColumnSketch::empty(column);
            prop_assert!(sketch.fits(column));
            prop_assert_eq!(sketch.cells().len(), column.reference.cells().len());
            let at = match &column.reference {
                Reference::Numeric { lower_edges, max, .. } => {
                    prop_assert!(lower_edges.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", column);
                    [value].into_iter().chain(lower_edges.iter().chain([max]).map(|edge| f64::from(*edge))).collect()
                }
                Reference::Class { .. } => vec![value, 0.0, -1.0],
            };
            for (n, value) in (1..).zip(at) {
                sketch.add(column, value);
                prop_assert_eq!(sketch.cells().iter().sum::<u64>(), n, "{} in {:?}", value, column);
            }
        }
        Ok(())
    }

    #[test]
    fn quantiles_are_of_numbers_and_take_no_room_where_none_are_kept() {
        let plain: Profile = serde_json::from_value(profile()).unwrap();
        let text = serde_json::to_string(&plain).unwrap();
        assert!(!text.contains("quantiles") && !text.contains("objectives"), "{text}");
        let with = Profile { quantiles: vec![0, 2], ..plain.clone() };
        with.validate().unwrap();
        assert_ne!(with.digest(), plain.digest());
        for (quantiles, why) in
            [(vec![3], "no quantiles"), (vec![2, 0], "in order"), (vec![0, 0], "once"), (vec![4], "not there")]
        {
            let message = Profile { quantiles, ..plain.clone() }.validate().unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        }
        let many = Profile { quantiles: (0..33).collect(), ..plain };
        assert!(many.validate().unwrap_err().to_string().contains("at most 32"));
    }

    proptest! {
        #[test]
        fn a_damaged_profile_is_refused_or_can_be_sketched(json in damage::json(profile()), value: f64) {
            if let Ok(profile) = serde_json::from_value::<Profile>(json) && profile.validate().is_ok() {
                check_valid(&profile, value)?;
            }
        }

        #[test]
        fn any_bins_are_refused_or_can_be_sketched(
            lower_edges in prop::collection::vec(prop_oneof![any::<f32>(), -2f32..2.0, Just(0.0), Just(1.0)], 0..4),
            sorted: bool,
            max: f32,
            counts in prop::collection::vec(any::<u64>(), 0..4),
            value: f64,
        ) {
            let mut lower_edges = lower_edges;
            if sorted {
                lower_edges.sort_by(f32::total_cmp);
            }
            let reference = Reference::Numeric { lower_edges, max, counts, missing: 0 };
            let source = Source::Input { tensor: "in".into(), index: 0 };
            let profile = Profile { columns: vec![Column { name: "x".into(), source, reference }], ..Profile::default() };
            if profile.validate().is_ok() {
                check_valid(&profile, value)?;
            }
        }
    }
}
