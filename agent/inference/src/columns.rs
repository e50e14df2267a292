//! The columns that a monitoring profile watches, taken out of a request and its answer.
//!
//! The agent's monitor and `muster bundle build` both read columns through here, so that the reference and what is held
//! against it cannot be computed differently.
//!
//! **Rows.** Where the model leaves a tensor's first dimension free, it is the batch and each of its positions is a row;
//! otherwise the whole tensor is one row. A row's elements are counted in row-major order.

use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::profile::{Profile, Reference, Source};

use crate::tensor::Tensor;

/// Why a profile does not fit a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("monitored column {column:?} does not fit the model: {reason}")]
pub struct ColumnError {
    /// The column's name.
    pub column: String,
    /// What is wrong.
    pub reason: String,
}

/// What to take from a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Take {
    Element(usize),
    PredictedClass,
    Confidence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Input,
    Output,
}

/// All columns that come from one tensor.
#[derive(Debug, Clone)]
struct Watched {
    side: Side,
    tensor: String,
    batched: bool,
    columns: Vec<(usize, Take)>,
}

/// A profile made ready for a model: which element of which tensor each column is.
#[derive(Debug, Clone)]
pub struct ColumnExtractor {
    watched: Vec<Watched>,
}

impl ColumnExtractor {
    /// Holds `profile` against the model's `signature`.
    ///
    /// # Errors
    /// [`ColumnError`] with the first column whose tensor or element the model does not have, or that names more classes
    /// than the model gives.
    pub fn new(profile: &Profile, signature: &ModelSignature) -> Result<Self, ColumnError> {
        let mut watched: Vec<Watched> = Vec::new();
        for (position, column) in profile.columns.iter().enumerate() {
            let refuse = |reason: String| ColumnError { column: column.name.clone(), reason };
            let (side, tensor, take) = match &column.source {
                Source::Input { tensor, index } => (Side::Input, tensor, Take::Element(*index as usize)),
                Source::Output { tensor, index } => (Side::Output, tensor, Take::Element(*index as usize)),
                Source::PredictedClass { tensor } => (Side::Output, tensor, Take::PredictedClass),
                Source::Confidence { tensor } => (Side::Output, tensor, Take::Confidence),
            };
            let (specs, word) = match side {
                Side::Input => (&signature.inputs, "input"),
                Side::Output => (&signature.outputs, "output"),
            };
            let spec = specs
                .iter()
                .find(|spec| spec.name == *tensor)
                .ok_or_else(|| refuse(format!("the model has no {word} {tensor:?}")))?;
            if spec.datatype == DataType::Bytes {
                return Err(refuse(format!("{word} {tensor:?} holds no numbers")));
            }
            if let Some(width) = row_width(spec) {
                match (take, &column.reference) {
                    (Take::Element(index), _) if index >= width => {
                        return Err(refuse(format!(
                            "element {index} is past the end of {word} {tensor:?}, whose rows have {width}"
                        )));
                    }
                    (Take::PredictedClass, Reference::Class { classes, .. }) if classes.len() > width => {
                        return Err(refuse(format!(
                            "{} classes are named, but rows of {word} {tensor:?} have {width} elements",
                            classes.len()
                        )));
                    }
                    (Take::Element(_) | Take::PredictedClass | Take::Confidence, _) => {}
                }
            }
            let batched = spec.shape.first() == Some(&-1);
            match watched.iter_mut().find(|w| w.side == side && w.tensor == *tensor) {
                Some(known) => known.columns.push((position, take)),
                None => {
                    watched.push(Watched { side, tensor: tensor.clone(), batched, columns: vec![(position, take)] })
                }
            }
        }
        Ok(Self { watched })
    }

    /// Calls `visit(row, column, value)` for every row and column, `row` being counted from 0 and `column` a position in the profile. All
    /// of a column's rows come in their order, and a row's columns of one tensor together; different tensors may come in any order. The value is `None` where there is
    /// none: the tensor is missing, the row is shorter than the profile expects, or a predicted class cannot be told because
    /// a NaN is among the values. Confidence is NaN in such a row. Of equal values the first is the predicted class.
    ///
    /// Nothing is allocated.
    pub fn visit(&self, inputs: &[Tensor], outputs: &[Tensor], mut visit: impl FnMut(usize, usize, Option<f64>)) {
        for watched in &self.watched {
            let tensors = match watched.side {
                Side::Input => inputs,
                Side::Output => outputs,
            };
            let Some(tensor) = tensors.iter().find(|tensor| tensor.name() == watched.tensor) else {
                for row in 0..self.rows(inputs, outputs) {
                    for (column, _) in &watched.columns {
                        visit(row, *column, None);
                    }
                }
                continue;
            };
            let rows = watched.rows_of(tensor);
            let width = tensor.element_count().checked_div(rows).unwrap_or(0);
            for row in 0..rows {
                let start = row * width;
                for (column, take) in &watched.columns {
                    let value = match take {
                        Take::Element(index) if *index < width => tensor.value(start + index),
                        Take::Element(_) => None,
                        Take::PredictedClass => {
                            largest(tensor, start, width).and_then(|(at, value)| (!value.is_nan()).then_some(at as f64))
                        }
                        Take::Confidence => largest(tensor, start, width).map(|(_, value)| value),
                    };
                    visit(row, *column, value);
                }
            }
        }
    }

    /// How many rows a request has: those of its longest watched tensor, at least 1.
    #[must_use]
    pub fn rows(&self, inputs: &[Tensor], outputs: &[Tensor]) -> usize {
        self.watched
            .iter()
            .filter_map(|watched| {
                let tensors = match watched.side {
                    Side::Input => inputs,
                    Side::Output => outputs,
                };
                tensors.iter().find(|tensor| tensor.name() == watched.tensor).map(|tensor| watched.rows_of(tensor))
            })
            .max()
            .unwrap_or(1)
            .max(1)
    }
}

impl Watched {
    fn rows_of(&self, tensor: &Tensor) -> usize {
        if self.batched { tensor.shape().first().copied().unwrap_or(1) } else { 1 }
    }
}

/// Elements of one row, where the signature fixes them.
pub(crate) fn row_width(spec: &TensorSpec) -> Option<usize> {
    let dimensions = match spec.shape.split_first() {
        Some((-1, rest)) => rest,
        Some(_) | None => &spec.shape,
    };
    dimensions.iter().try_fold(1_usize, |product, d| product.checked_mul(usize::try_from(*d).ok()?))
}

/// Position and value of the row's largest element; a NaN counts as the largest, so that it is not overlooked.
fn largest(tensor: &Tensor, start: usize, width: usize) -> Option<(usize, f64)> {
    let mut best: Option<(usize, f64)> = None;
    for at in 0..width {
        let value = tensor.value(start + at)?;
        if value.is_nan() {
            return Some((at, value));
        }
        if best.is_none_or(|(_, most)| value > most) {
            best = Some((at, value));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use muster_shared::profile::Column;
    use proptest::prelude::*;

    use super::*;

    fn spec(name: &str, shape: &[i64]) -> TensorSpec {
        TensorSpec { name: name.into(), datatype: DataType::Fp32, shape: shape.to_vec() }
    }

    fn signature() -> ModelSignature {
        ModelSignature {
            inputs: vec![spec("image", &[-1, 2, 2]), spec("gain", &[3])],
            outputs: vec![spec("scores", &[-1, 3]), spec("open", &[-1, -1])],
        }
    }

    fn numeric(source: Source) -> Column {
        let reference = Reference::Numeric { lower_edges: vec![0.0], max: 1.0, counts: vec![1], missing: 0 };
        Column { name: "watched".into(), source, reference }
    }

    fn class(tensor: &str, classes: usize) -> Column {
        let reference = Reference::Class {
            classes: (0..classes).map(|class| class.to_string()).collect(),
            counts: vec![0; classes],
        };
        Column { name: "class".into(), source: Source::PredictedClass { tensor: tensor.into() }, reference }
    }

    fn input(tensor: &str, index: u32) -> Column {
        numeric(Source::Input { tensor: tensor.into(), index })
    }

    fn output(tensor: &str, index: u32) -> Column {
        numeric(Source::Output { tensor: tensor.into(), index })
    }

    fn confidence(tensor: &str) -> Column {
        numeric(Source::Confidence { tensor: tensor.into() })
    }

    fn tensor(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_f32(name, shape.to_vec(), values).unwrap()
    }

    /// The values of every column in the order of visits; NaN as -1, none as -2.
    fn visited(columns: Vec<Column>, inputs: &[Tensor], outputs: &[Tensor]) -> Vec<Vec<f64>> {
        let mut seen = vec![Vec::new(); columns.len()];
        let extractor = ColumnExtractor::new(&Profile { columns, ..Profile::default() }, &signature()).unwrap();
        extractor.visit(inputs, outputs, |_, column, value| {
            seen[column].push(value.map_or(-2.0, |value| if value.is_nan() { -1.0 } else { value }));
        });
        seen
    }

    #[test]
    fn every_row_and_kind_of_column() {
        let image = tensor("image", &[2, 2, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let gain = tensor("gain", &[3], &[7.0, 8.0, 9.0]);
        let scores = tensor("scores", &[2, 3], &[0.1, 0.7, 0.2, 0.5, 0.5, 0.0]);
        let columns = vec![
            class("scores", 3),
            input("image", 3),
            output("scores", 0),
            confidence("scores"),
            input("gain", 2),
            input("image", 0),
        ];
        let seen = visited(columns, &[gain, image], &[scores]);
        // A tensor without a batch is one row; of equals the first is the class.
        let (low, high) = (f64::from(0.1_f32), f64::from(0.7_f32));
        let expected = [vec![1.0, 0.0], vec![3.0, 7.0], vec![low, 0.5], vec![high, 0.5], vec![9.0], vec![0.0, 4.0]];
        assert_eq!(seen, expected);
    }

    #[test]
    fn what_is_not_there_is_missing() {
        let image = tensor("image", &[2, 2, 2], &[0.0; 8]);
        let broken = tensor("scores", &[2, 3], &[0.1, f32::NAN, 0.2, 0.5, 0.4, 0.1]);
        let open = tensor("open", &[2, 1], &[0.25, 0.5]);
        let columns = vec![
            class("scores", 3),
            confidence("scores"),
            input("gain", 0),
            output("open", 0),
            output("open", 1),
            input("image", 0),
        ];
        let seen = visited(columns, &[image], &[broken, open]);
        let expected =
            [vec![-2.0, 0.0], vec![-1.0, 0.5], vec![-2.0, -2.0], vec![0.25, 0.5], vec![-2.0, -2.0], vec![0.0, 0.0]];
        assert_eq!(seen, expected);
        assert_eq!(visited(vec![input("image", 0)], &[], &[]), [vec![-2.0]]);
        assert_eq!(
            visited(vec![output("open", 0), class("open", 2)], &[], &[tensor("open", &[1, 0], &[])]),
            [[-2.0], [-2.0]]
        );
    }

    #[test]
    fn a_profile_for_another_model_is_refused() {
        let refuse = |column: Column| {
            ColumnExtractor::new(&Profile { columns: vec![column], ..Profile::default() }, &signature())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refuse(input("scores", 0)),
            "monitored column \"watched\" does not fit the model: the model has no input \"scores\""
        );
        assert!(refuse(input("image", 4)).ends_with("element 4 is past the end of input \"image\", whose rows have 4"));
        assert!(refuse(input("gain", 3)).contains("whose rows have 3"));
        assert!(refuse(confidence("image")).contains("no output \"image\""));
        assert!(
            refuse(class("scores", 4)).contains("4 classes are named, but rows of output \"scores\" have 3 elements")
        );
        // Where the model leaves the row open, requests decide.
        ColumnExtractor::new(
            &Profile { columns: vec![output("open", 900), class("scores", 2)], ..Profile::default() },
            &signature(),
        )
        .unwrap();
    }

    proptest! {
        #[test]
        fn every_column_is_visited_once_a_row(rows in 0_usize..6, width in 0_usize..5, value: f32) {
            let open = tensor("open", &[rows, width], &vec![value; rows * width]);
            let seen = visited(vec![output("open", 2), class("open", 2), confidence("open")], &[], &[open]);
            for column in &seen {
                prop_assert_eq!(column.len(), rows);
            }
            prop_assert!(width > 2 || seen[0].iter().all(|value| value.total_cmp(&-2.0).is_eq()));
        }
    }
}
