//! Which slices of a profile a row of a request is in.
//!
//! Slices by device label are the controller's to tell and are passed over here. Rows are those of [`crate::columns`]; a tensor without a
//! batch says the same of every row of a request.

use muster_shared::bundle::{DataType, ModelSignature};
use muster_shared::profile::{Profile, SliceBy, SliceSet};

use crate::columns::{ColumnError, row_width};
use crate::tensor::Tensor;

/// Integers past this are not exact as the numbers that categories are compared as.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// How a value is put into a slice of its slicing.
#[derive(Debug, Clone)]
enum Cut {
    /// By ascending edges.
    Range(Vec<f64>),
    /// By the numbers that are told apart.
    Numbers(Vec<f64>),
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

/// The number that `text` stands for in a tensor of `datatype`.
fn number(text: &str, datatype: DataType) -> Option<f64> {
    match (datatype, text) {
        (DataType::Bool, "true") => Some(1.0),
        (DataType::Bool, "false") => Some(0.0),
        (DataType::Bool, _) => None,
        _ => text.parse().ok().filter(|number: &f64| number.abs() <= MAX_EXACT),
    }
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
            if spec.datatype == DataType::Bytes {
                return Err(refuse(format!("input {tensor:?} holds no numbers")));
            }
            if let Some(width) = row_width(spec).filter(|width| index >= *width) {
                let reason = format!("element {index} is past the end of input {tensor:?}, whose rows have {width}");
                return Err(refuse(reason));
            }
            let cut = match &slicing.by {
                SliceBy::Range { edges, .. } => Cut::Range(edges.iter().map(|edge| f64::from(*edge)).collect()),
                SliceBy::Category { values, .. } => {
                    let parsed = |text: &String| {
                        number(text, spec.datatype)
                            .ok_or_else(|| refuse(format!("{text:?} is no value of {}", spec.datatype)))
                    };
                    let numbers = values.iter().map(parsed).collect::<Result<Vec<_>, _>>()?;
                    let twice = (1..numbers.len()).find(|at| numbers[..*at].contains(&numbers[*at]));
                    if let Some(at) = twice {
                        return Err(refuse(format!("{:?} names a value a second time", values[at])));
                    }
                    Cut::Numbers(numbers)
                }
                SliceBy::Label { .. } => continue,
            };
            let batched = spec.shape.first() == Some(&-1);
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
        self.finders.iter().fold(SliceSet::default(), |set, finder| set.with(finder.first + finder.slice(inputs, row)))
    }
}

impl Finder {
    /// The slice of this slicing, counted from its first.
    fn slice(&self, inputs: &[Tensor], row: usize) -> u8 {
        let value = self.value(inputs, row).filter(|value| !value.is_nan());
        let (slice, missing) = match &self.cut {
            Cut::Range(edges) => (value.map(|value| edges.partition_point(|edge| *edge <= value)), edges.len() + 1),
            Cut::Numbers(numbers) => {
                #[expect(clippy::float_cmp, reason = "a category is one number exactly")]
                let position = |value| numbers.iter().position(|number| *number == value).unwrap_or(numbers.len());
                (value.map(position), numbers.len() + 1)
            }
        };
        // A profile has at most 64 slices.
        u8::try_from(slice.unwrap_or(missing)).unwrap_or(u8::MAX)
    }

    fn value(&self, inputs: &[Tensor], row: usize) -> Option<f64> {
        let tensor = inputs.iter().find(|tensor| tensor.name() == self.tensor)?;
        if !self.batched {
            return tensor.value(self.index);
        }
        let rows = tensor.shape().first().copied().unwrap_or(1);
        let width = tensor.element_count().checked_div(rows)?;
        (row < rows && self.index < width).then(|| tensor.value(row * width + self.index)).flatten()
    }
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
    fn slices_for_another_model_are_refused() {
        let refused = |by: SliceBy| SliceFinder::new(&profile(vec![by]), &signature()).unwrap_err().to_string();
        assert!(
            refused(category("colour", &["1"])).contains("slices 0\" does not fit the model: the model has no input")
        );
        assert!(refused(SliceBy::Range { tensor: "row".into(), index: 2, edges: vec![0.0] }).contains("past the end"));
        assert!(refused(category("site", &["north"])).contains("\"north\" is no value of INT64"));
        assert!(refused(category("site", &["1", "1.0"])).contains("\"1.0\" names a value a second time"));
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
