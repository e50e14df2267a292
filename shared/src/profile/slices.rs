//! Parts of a fleet's traffic that are counted apart: by an attribute of the input, or by a label of the device.
//!
//! A [`Slicing`] cuts all rows into slices that do not overlap; a row is in one slice of each slicing. Slices of attributes are
//! told on the device, and numbered through all slicings in their order ([`Profile::slice_names`]): a [`SliceSet`] says which of them a
//! row is in. A label is known to the controller already, and costs the device nothing. Finding a row's slices is left to
//! whoever holds the tensors, what is counted in each to [`crate::sketch::SliceSketches`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Profile, ProfileError, refuse};
use crate::limits::{MAX_LABEL_BYTES, MAX_SLICED_COLUMNS, MAX_SLICES, MAX_SLICES_OF_ONE, MAX_SLICINGS};

/// The name of the slice for values that none of the named categories has.
pub const OTHER_SLICE: &str = "(other)";
/// The name of the slice for rows that have no value.
pub const MISSING_SLICE: &str = "(missing)";

/// What the slices of a slicing are told by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SliceBy {
    /// Between which edges element `index` of each row of the input `tensor` lies: below the first, from each to below the
    /// next, from the last on, and missing, as which NaN counts.
    Range {
        /// The input's name.
        tensor: String,
        /// Element of the row, counted from 0.
        index: u32,
        /// Ascending; a value that is equal to one lies above it.
        edges: Vec<f32>,
    },
    /// Which of `values` element `index` of each row of the input `tensor` is: each of them, any other, and missing. Numbers are written
    /// as such ("3"), those of a BOOL as "true" and "false".
    Category {
        /// The input's name.
        tensor: String,
        /// Element of the row, counted from 0.
        index: u32,
        /// The values told apart.
        values: Vec<String>,
    },
    /// The value of this label of the device.
    Label {
        /// The label's key.
        label: String,
    },
}

/// One way to cut the rows into slices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Slicing {
    /// Its name, unique in the profile.
    pub name: String,
    /// What its slices are told by.
    pub by: SliceBy,
}

/// A slice that is told on the device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SliceName {
    /// The slicing's name.
    pub slicing: String,
    /// Which part of it: a range, a category, [`OTHER_SLICE`] or [`MISSING_SLICE`].
    pub slice: String,
}

impl std::fmt::Display for SliceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.slicing, self.slice)
    }
}

/// The slices a row is in, by their numbers in the profile: at most one of each slicing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SliceSet(u64);

impl SliceSet {
    /// The set in which `slice` is too. A number past [`MAX_SLICES`] is in no profile, and changes nothing.
    #[must_use]
    pub fn with(self, slice: u8) -> Self {
        Self(self.0 | 1_u64.checked_shl(u32::from(slice)).unwrap_or(0))
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The slices' numbers, ascending.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let slice = u8::try_from(left.trailing_zeros()).ok().filter(|_| left != 0)?;
            left &= left - 1;
            Some(slice)
        })
    }
}

impl Slicing {
    /// How many slices the device tells apart: none for a label.
    #[must_use]
    pub fn slices(&self) -> usize {
        match &self.by {
            SliceBy::Range { edges, .. } => edges.len() + 2,
            SliceBy::Category { values, .. } => values.len() + 2,
            SliceBy::Label { .. } => 0,
        }
    }

    /// The slices' names, in their order.
    fn names(&self) -> Vec<String> {
        match &self.by {
            SliceBy::Range { edges, .. } => {
                let below = edges.first().map(|edge| format!("< {edge}"));
                let between = edges.windows(2).map(|pair| format!("{} to {}", pair[0], pair[1]));
                let above = edges.last().map(|edge| format!(">= {edge}"));
                below.into_iter().chain(between).chain(above).chain([MISSING_SLICE.to_owned()]).collect()
            }
            SliceBy::Category { values, .. } => {
                values.iter().cloned().chain([OTHER_SLICE.to_owned(), MISSING_SLICE.to_owned()]).collect()
            }
            SliceBy::Label { .. } => Vec::new(),
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        let is_text = |text: &str| !text.is_empty() && text.len() <= MAX_LABEL_BYTES;
        if !is_text(&self.name) {
            return Err("a name has 1 to 128 bytes");
        }
        if self.slices() > MAX_SLICES_OF_ONE {
            return Err("a slicing has at most 32 slices, (other) and (missing) included");
        }
        match &self.by {
            SliceBy::Range { edges, .. } => {
                if edges.is_empty() || edges.iter().any(|edge| !edge.is_finite()) {
                    return Err("at least one edge is needed, and edges must be finite numbers");
                }
                if edges.windows(2).any(|pair| pair[0] >= pair[1]) {
                    return Err("edges must ascend");
                }
            }
            SliceBy::Category { values, .. } => {
                if values.is_empty() || values.iter().any(|value| !is_text(value)) {
                    return Err("at least one value is needed, and a value has 1 to 128 bytes");
                }
                if values.iter().any(|value| value == OTHER_SLICE || value == MISSING_SLICE) {
                    return Err("(other) and (missing) are slices of every list of values already");
                }
                if values.iter().collect::<BTreeSet<_>>().len() != values.len() {
                    return Err("a value is named twice");
                }
            }
            SliceBy::Label { label } => {
                if !is_text(label) {
                    return Err("a label's key has 1 to 128 bytes");
                }
            }
        }
        Ok(())
    }
}

impl Profile {
    /// The slices that are told on the device, at the position that is their number.
    #[must_use]
    pub fn slice_names(&self) -> Vec<SliceName> {
        let named = |slicing: &Slicing| {
            let name = slicing.name.clone();
            slicing.names().into_iter().map(move |slice| SliceName { slicing: name.clone(), slice })
        };
        self.slices.iter().flat_map(named).collect()
    }

    /// How many slices are told on the device.
    #[must_use]
    pub fn slice_count(&self) -> usize {
        self.slices.iter().map(Slicing::slices).sum()
    }

    pub(super) fn check_slices(&self) -> Result<(), ProfileError> {
        let name_of = |slicing: &Slicing| format!("slices {}", slicing.name);
        if self.slices.len() > MAX_SLICINGS {
            return refuse("", "at most 8 slicings are allowed");
        }
        let mut names = BTreeSet::new();
        for slicing in &self.slices {
            slicing.check().or_else(|reason| refuse(&name_of(slicing), reason))?;
            if !names.insert(&slicing.name) {
                return refuse(&name_of(slicing), "the name is used twice");
            }
        }
        if self.slice_count() > MAX_SLICES {
            return refuse("", "at most 64 slices are allowed in all, (other) and (missing) of each slicing included");
        }
        if self.slice_count() * self.columns.len() > MAX_SLICED_COLUMNS {
            return refuse("", "slices times columns may be 4096 at most: watch fewer columns, or cut fewer slices");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::damage;

    fn slicing(name: &str, by: SliceBy) -> Slicing {
        Slicing { name: name.into(), by }
    }

    fn range(edges: &[f32]) -> SliceBy {
        SliceBy::Range { tensor: "in".into(), index: 1, edges: edges.to_vec() }
    }

    fn category(values: &[&str]) -> SliceBy {
        SliceBy::Category { tensor: "in".into(), index: 0, values: values.iter().map(|v| (*v).to_owned()).collect() }
    }

    fn profile(slices: Vec<Slicing>) -> Profile {
        Profile { slices, ..Profile::default() }
    }

    fn example() -> Profile {
        profile(vec![
            slicing("age", range(&[30.0, 50.5])),
            slicing("site", SliceBy::Label { label: "site".into() }),
            slicing("sex", category(&["f", "m"])),
        ])
    }

    #[test]
    fn slices_are_numbered_through_and_named() {
        let names: Vec<String> = example().slice_names().iter().map(ToString::to_string).collect();
        let expected = [
            "age=< 30",
            "age=30 to 50.5",
            "age=>= 50.5",
            "age=(missing)",
            "sex=f",
            "sex=m",
            "sex=(other)",
            "sex=(missing)",
        ];
        assert_eq!(names, expected);
        assert_eq!(example().slice_count(), 8);
    }

    #[test]
    fn slicings_out_of_bounds_are_refused() {
        let many: Vec<String> = (0..31).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let refused = |slices: Vec<Slicing>| profile(slices).validate().unwrap_err().to_string();
        for (slices, expected) in [
            (vec![slicing("", range(&[1.0]))], "1 to 128 bytes"),
            (vec![slicing("a", range(&[1.0])), slicing("a", range(&[2.0]))], "used twice"),
            (vec![slicing("a", range(&[]))], "at least one edge"),
            (vec![slicing("a", range(&[f32::NAN]))], "finite"),
            (vec![slicing("a", range(&[1.0, 1.0]))], "ascend"),
            (vec![slicing("a", category(&[]))], "at least one value"),
            (vec![slicing("a", category(&["x", "x"]))], "named twice"),
            (vec![slicing("a", category(&["(other)"]))], "already"),
            (vec![slicing("a", category(&many))], "at most 32 slices"),
            (vec![slicing("a", SliceBy::Label { label: String::new() })], "label's key"),
            ((0..9).map(|n| slicing(&n.to_string(), range(&[1.0]))).collect(), "at most 8 slicings"),
            ((0..3).map(|n| slicing(&n.to_string(), category(&many[..28]))).collect(), "at most 64 slices"),
        ] {
            let message = refused(slices);
            assert!(message.contains(expected), "{message} should say {expected:?}");
        }
    }

    #[test]
    fn a_profile_without_slices_keeps_its_bytes() {
        assert_eq!(serde_json::to_string(&Profile::default()).unwrap(), r#"{"columns":[]}"#);
        let json = serde_json::to_string(&example()).unwrap();
        assert!(
            json.contains(r#"{"name":"sex","by":{"kind":"category","tensor":"in","index":0,"values":["f","m"]}}"#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<Profile>(&json).unwrap(), example());
    }

    #[test]
    fn unknown_fields_are_refused() {
        for slicing in [
            r#"{"name":"a","by":{"kind":"label","label":"site"},"colour":1}"#,
            r#"{"name":"a","by":{"kind":"label","label":"site","edges":[1]}}"#,
            r#"{"name":"a","by":{"kind":"nothing"}}"#,
        ] {
            assert!(serde_json::from_str::<Slicing>(slicing).is_err(), "{slicing}");
        }
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_put_into_it(slices in prop::collection::btree_set(0u8..64, 0..10)) {
            let set = slices.iter().fold(SliceSet::default(), |set, slice| set.with(*slice));
            prop_assert_eq!(set.iter().collect::<BTreeSet<_>>(), slices.clone());
            prop_assert_eq!(set.with(64), set);
            prop_assert_eq!(set.is_empty(), slices.is_empty());
        }

        #[test]
        fn damaged_slices_are_refused_or_within_their_bounds(json in damage::json(serde_json::to_value(example()).unwrap())) {
            if let Ok(profile) = serde_json::from_value::<Profile>(json) && profile.validate().is_ok() {
                prop_assert!(profile.slice_count() <= MAX_SLICES);
                prop_assert_eq!(profile.slice_names().len(), profile.slice_count());
            }
        }
    }
}
