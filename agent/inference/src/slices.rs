//! Which slices of a profile a row of a request is in.
//!
//! Slices by device label are the controller's to tell and are passed over here. Rows are those of [`crate::columns`]; a tensor without a
//! batch says the same of every row of a request.

use muster_shared::bundle::{DataType, ModelSignature};
use muster_shared::profile::{Profile, SliceBy, SliceSet};

use crate::categories::Categories;
use crate::columns::ColumnError;
use crate::tensor::Tensor;

/// How a value is put into a slice of its slicing.
#[derive(Debug, Clone)]
enum Cut {
    /// By ascending edges.
    Range(Vec<f64>),
    /// By the values that are told apart, so many of them.
    Category(Categories, usize),
}

/// One slicing made ready for a model.
#[derive(Debug, Clone)]
struct Finder {
    tensor: String,
    batched: bool,
    index: usize,
    /// Number of the slicing's first slice in the profile.
    first: u8,
    cut: Cut,
}

/// A profile's slices made ready for a model.
#[derive(Debug, Clone)]
pub struct SliceFinder {
    finders: Vec<Finder>,
}

impl SliceFinder {
    /// Holds the slices of `profile` against the model's `signature`.
    ///
    /// # Errors
    /// [`ColumnError`] with the first slicing whose tensor, element or values the model does not have.
    pub fn new(profile: &Profile, signature: &ModelSignature) -> Result<Self, ColumnError> {
        let mut finders = Vec::new();
        let mut first = 0_u8;
        for slicing in &profile.slices {
            let refuse = |reason: String| ColumnError { column: format!("slices {}", slicing.name), reason };
            let (tensor, index) = match &slicing.by {
                SliceBy::Range { tensor, index, .. } | SliceBy::Category { tensor, index, .. } => {
                    (tensor, *index as usize)
                }
                SliceBy::Label { .. } => continue,
            };
            let spec = signature.inputs.iter().find(|spec| spec.name == *tensor);
            let spec = spec.ok_or_else(|| refuse(format!("the model has no input {tensor:?}")))?;
            if spec.datatype == DataType::Bytes && matches!(slicing.by, SliceBy::Range { .. }) {
                return Err(refuse(format!("input {tensor:?} holds no numbers")));
            }
            if let Some(width) = spec.row_width().filter(|width| index >= *width) {
                let reason = format!("element {index} is past the end of input {tensor:?}, whose rows have {width}");
                return Err(refuse(reason));
            }
            let cut = match &slicing.by {
                SliceBy::Range { edges, .. } => Cut::Range(edges.iter().map(|edge| f64::from(*edge)).collect()),
                SliceBy::Category { values, .. } => {
                    Cut::Category(Categories::new(values, spec.datatype).map_err(refuse)?, values.len())
                }
                SliceBy::Label { .. } => continue,
            };
            let batched = spec.is_batched();
            finders.push(Finder { tensor: tensor.clone(), batched, index, first, cut });
            first = first.saturating_add(u8::try_from(slicing.slices()).unwrap_or(u8::MAX));
        }
        Ok(Self { finders })
    }

    /// Whether there is nothing to tell on the device.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.finders.is_empty()
    }

    /// The slices that row `row` of a request, counted from 0, is in: one of each slicing that the device tells.
    ///
    /// Nothing is allocated.
    #[must_use]
    pub fn slices_of(&self, inputs: &[Tensor], row: usize) -> SliceSet {
        let mut set = [SliceSet::default()];
        self.fill(inputs, row, &mut set);
        set[0]
    }

    /// Puts the slices of the rows from `first` on into `sets`.
    pub(crate) fn fill(&self, inputs: &[Tensor], first: usize, sets: &mut [SliceSet]) {
        sets.fill(SliceSet::default());
        for finder in &self.finders {
            finder.fill(inputs, first, sets);
        }
    }
}

impl Finder {
    fn fill(&self, inputs: &[Tensor], first: usize, sets: &mut [SliceSet]) {
        let tensor = inputs.iter().find(|tensor| tensor.name() == self.tensor);
        let rows = tensor.and_then(|tensor| tensor.shape().first().copied()).filter(|_| self.batched).unwrap_or(1);
        let width = tensor.and_then(|tensor| tensor.element_count().checked_div(rows)).unwrap_or(0);
        let step = if self.batched { width.max(1) } else { 0 };
        // Without a batch the first row speaks for all.
        let start = first.saturating_mul(step).saturating_add(self.index);
        // Texts lie one behind the other and are read in one go; without a batch, the one is read again for each row.
        let mut texts = tensor.filter(|tensor| tensor.datatype() == DataType::Bytes).map(|tensor| {
            let mut texts = tensor.byte_elements();
            (start > 0).then(|| texts.nth(start - 1));
            texts
        });
        for (at, set) in sets.iter_mut().enumerate() {
            let is_there = self.index < width && (!self.batched || first + at < rows);
            let slice = match (&mut texts, tensor) {
                (Some(texts), _) if is_there => {
                    let text = texts.clone().next();
                    (step > 0).then(|| texts.nth(step - 1));
                    self.of_text(text)
                }
                (None, Some(tensor)) if is_there => self.of_number(tensor.value(start + at * step)),
                _ => self.of_number(None),
            };
            *set = set.with(self.first + slice);
        }
    }

    /// The slice of a number in this slicing, counted from its first.
    fn of_number(&self, value: Option<f64>) -> u8 {
        match &self.cut {
            Cut::Range(edges) => {
                let missing = edges.len() + 1;
                let value = value.filter(|value| !value.is_nan());
                position(value.map_or(missing, |value| edges.partition_point(|edge| *edge <= value)))
            }
            Cut::Category(categories, named) => category(categories.of_number(value), *named),
        }
    }

    /// The slice of a text in this slicing, counted from its first.
    fn of_text(&self, text: Option<&[u8]>) -> u8 {
        match (&self.cut, text) {
            (Cut::Category(categories, named), Some(text)) => category(categories.of_text(text), *named),
            (Cut::Category(..) | Cut::Range(_), _) => self.of_number(None),
        }
    }
}

/// The slice of the category at `place`: behind those named come other values, and then none.
fn category(place: Option<f64>, named: usize) -> u8 {
    match place {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place among at most 30")]
        Some(place) if place >= 0.0 => position(place as usize),
        Some(_) => position(named),
        None => position(named + 1),
    }
}

/// A profile has at most 64 slices.
fn position(slice: usize) -> u8 {
    u8::try_from(slice).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use muster_shared::bundle::TensorSpec;
    use muster_shared::profile::Slicing;
    use proptest::prelude::*;

    use super::*;

    fn signature() -> ModelSignature {
        let spec =
            |name: &str, datatype, shape: &[i64]| TensorSpec { name: name.into(), datatype, shape: shape.to_vec() };
        ModelSignature {
            inputs: vec![
                spec("row", DataType::Fp32, &[-1, 2]),
                spec("site", DataType::Int64, &[1]),
                spec("on", DataType::Bool, &[-1, 1]),
                spec("words", DataType::Bytes, &[-1, 2]),
            ],
            outputs: Vec::new(),
        }
    }

    fn range(edges: &[f32]) -> SliceBy {
        SliceBy::Range { tensor: "row".into(), index: 1, edges: edges.to_vec() }
    }

    fn category(tensor: &str, values: &[&str]) -> SliceBy {
        SliceBy::Category { tensor: tensor.into(), index: 0, values: values.iter().map(|v| (*v).to_owned()).collect() }
    }

    fn profile(by: Vec<SliceBy>) -> Profile {
        let slices = by.into_iter().enumerate().map(|(n, by)| Slicing { name: n.to_string(), by }).collect();
        let profile = Profile { slices, ..Profile::default() };
        profile.validate().unwrap();
        profile
    }

    fn names(profile: &Profile, inputs: &[Tensor], row: usize) -> Vec<String> {
        let set = SliceFinder::new(profile, &signature()).unwrap().slices_of(inputs, row);
        let names = profile.slice_names();
        set.iter().map(|slice| names[usize::from(slice)].to_string()).collect()
    }

    #[test]
    fn each_row_is_in_one_slice_of_each_slicing() {
        let profile = profile(vec![
            range(&[0.0, 10.0]),
            SliceBy::Label { label: "site".into() },
            category("site", &["7", "9"]),
            category("on", &["true"]),
        ]);
        let rows = [0.0, -1.0, 0.0, 0.0, 0.0, 10.0, 0.0, f32::NAN, 0.0, f32::INFINITY];
        let inputs = [
            Tensor::from_f64("site", DataType::Int64, vec![1], &[9.0]).unwrap(),
            Tensor::from_f32("row", vec![5, 2], &rows).unwrap(),
            Tensor::from_f64("on", DataType::Bool, vec![5, 1], &[1.0, 0.0, 1.0, 1.0, 1.0]).unwrap(),
        ];
        for (row, expected) in [
            (0, ["0=< 0", "2=9", "3=true"]),
            (1, ["0=0 to 10", "2=9", "3=(other)"]),
            (2, ["0=>= 10", "2=9", "3=true"]),
            (3, ["0=(missing)", "2=9", "3=true"]),
            (4, ["0=>= 10", "2=9", "3=true"]),
            (5, ["0=(missing)", "2=9", "3=(missing)"]),
        ] {
            assert_eq!(names(&profile, &inputs, row), expected, "row {row}");
        }
        assert_eq!(names(&profile, &[], 0), ["0=(missing)", "2=(missing)", "3=(missing)"]);
    }

    #[test]
    fn texts_are_told_apart_row_by_row() {
        let by = SliceBy::Category { tensor: "words".into(), index: 1, values: vec!["north".into(), "south".into()] };
        let profile = profile(vec![by]);
        let words = ["a", "south", "b", "west", "c", "north", "d", ""];
        let words = [Tensor::from_byte_elements("words", vec![4, 2], words).unwrap()];
        let finder = SliceFinder::new(&profile, &signature()).unwrap();
        let mut sets = [SliceSet::default(); 5];
        finder.fill(&words, 0, &mut sets);
        assert_eq!(sets.map(|set| set.iter().next().unwrap()), [1, 2, 0, 3, 3]);
        for (row, set) in sets.iter().enumerate() {
            assert_eq!(finder.slices_of(&words, row), *set, "row {row}");
        }
    }

    #[test]
    fn slices_for_another_model_are_refused() {
        let refused = |by: SliceBy| SliceFinder::new(&profile(vec![by]), &signature()).unwrap_err().to_string();
        assert!(
            refused(category("colour", &["1"])).contains("slices 0\" does not fit the model: the model has no input")
        );
        assert!(refused(SliceBy::Range { tensor: "row".into(), index: 2, edges: vec![0.0] }).contains("past the end"));
        assert!(refused(category("site", &["north"])).contains("\"north\" is no value of INT64"));
        assert!(refused(category("site", &["1", "1.0"])).contains("1 is named twice"));
        assert!(refused(category("on", &["1"])).contains("\"1\" is no value of BOOL"));
    }

    proptest! {
        /// The rule of the profile, written as comparisons.
        #[test]
        fn a_number_is_in_the_slice_whose_edges_hold_it(value: f32, edges in prop::collection::btree_set(-20i16..20, 1..6)) {
            let edges: Vec<f32> = edges.into_iter().map(f32::from).collect();
            let profile = profile(vec![range(&edges)]);
            let row = Tensor::from_f32("row", vec![1, 2], &[0.0, value]).unwrap();
            let set = SliceFinder::new(&profile, &signature()).unwrap().slices_of(&[row], 0);
            let expected = if value.is_nan() { edges.len() + 1 } else { edges.iter().filter(|edge| **edge <= value).count() };
            prop_assert_eq!(set.iter().map(usize::from).collect::<Vec<_>>(), [expected]);
        }
    }
}
