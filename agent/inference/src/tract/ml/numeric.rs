//! Operators that work on each number by itself or within its row: Scaler, Normalizer, Imputer, Binarizer.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_num_traits::Float;

use super::attributes::Attributes;
use super::kernel::{Built, Form, Kernel, expect_numbers, operator};

/// Columns of an input: its second dimension, as onnxruntime counts them, or the only one.
fn columns(shape: &[TDim]) -> TractResult<usize> {
    Ok(shape.get(1).or_else(|| shape.first()).context("its input has no dimension")?.to_usize()?)
}

/// The columns of a tensor as [`columns`] counts them; at least 1, to divide by.
fn stride(tensor: &Tensor) -> usize {
    tensor.shape().get(1).or_else(|| tensor.shape().first()).copied().unwrap_or(1).max(1)
}

/// The values that an attribute gives to each column, or to all.
fn expect_columns(name: &str, values: usize, shape: &[TDim]) -> TractResult<()> {
    let columns = columns(shape)?;
    ensure!(values == 1 || values == columns, "'{name}' has {values} elements, but its input has {columns} columns");
    Ok(())
}

fn floats_like(input: &Tensor, values: &[f32]) -> TractResult<Vec<Tensor>> {
    Ok(vec![Tensor::from_shape(input.shape(), values)?])
}

/// `(x − offset) · scale`.
#[derive(Debug)]
struct Scaler {
    offset: Vec<f32>,
    scale: Vec<f32>,
}

pub(super) fn scaler(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let attributes = Attributes::new(context, node);
    let (offset, scale) = (attributes.floats("offset")?.to_vec(), attributes.floats("scale")?.to_vec());
    ensure!(!scale.is_empty(), "attribute 'scale' is empty");
    attributes.expect_length("offset", offset.len(), scale.len())?;
    operator(node, 1, Scaler { offset, scale })
}

impl Kernel for Scaler {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        expect_numbers(inputs[0].0)?;
        expect_columns("scale", self.scale.len(), &inputs[0].1)?;
        Ok(vec![(f32::datum_type(), inputs[0].1.clone())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        // One pair, or as many as a row has columns.
        let by_column = self.offset.iter().zip(&self.scale).cycle();
        let scaled: Vec<f32> = if inputs[0].datum_type() == f64::datum_type() {
            let values = inputs[0].try_as_plain_ram()?;
            let scale = |(x, (offset, scale)): (&f64, (&f32, &f32))| (x - f64::from(*offset)) * f64::from(*scale);
            #[expect(clippy::cast_possible_truncation, reason = "the operator's output is of single precision")]
            values.as_slice::<f64>()?.iter().zip(by_column).map(scale).map(|x| x as f32).collect()
        } else {
            let values = inputs[0].cast_to::<f32>()?;
            let values = values.try_as_plain_ram()?;
            values.as_slice::<f32>()?.iter().zip(by_column).map(|(x, (offset, scale))| (x - offset) * scale).collect()
        };
        floats_like(&inputs[0], &scaled)
    }
}

#[derive(Debug)]
enum Normalizer {
    Max,
    L1,
    L2,
}

pub(super) fn normalizer(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let kernel = match Attributes::new(context, node).text("norm", "MAX")? {
        "MAX" => Normalizer::Max,
        "L1" => Normalizer::L1,
        "L2" => Normalizer::L2,
        other => bail!("there is no norm {other:?}"),
    };
    operator(node, 1, kernel)
}

impl Kernel for Normalizer {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        expect_numbers(inputs[0].0)?;
        ensure!((1..=2).contains(&inputs[0].1.len()), "it takes rows of features, not {:?}", inputs[0].1);
        Ok(vec![(f32::datum_type(), inputs[0].1.clone())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let values = inputs[0].cast_to::<f32>()?;
        let mut values = values.try_as_plain_ram()?.as_slice::<f32>()?.to_vec();
        for row in values.chunks_mut(stride(&inputs[0])) {
            // The largest, not the largest magnitude: so onnxruntime reads the specification.
            let norm = match self {
                Self::Max => row.iter().copied().fold(f32::MIN, f32::max),
                Self::L1 => row.iter().map(|x| x.abs()).sum(),
                Self::L2 => row.iter().map(|x| x * x).sum::<f32>().sqrt(),
            };
            if norm != 0.0 {
                row.iter_mut().for_each(|x| *x /= norm);
            }
        }
        floats_like(&inputs[0], &values)
    }
}

/// Puts a value in place of another, which may be NaN.
#[derive(Debug)]
enum Imputer {
    Floats { replaced: f32, imputed: Vec<f32> },
    Ints { replaced: i64, imputed: Vec<i64> },
}

pub(super) fn imputer(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let attributes = Attributes::new(context, node);
    let floats = attributes.floats("imputed_value_floats")?;
    let ints = attributes.ints("imputed_value_int64s")?;
    ensure!(
        floats.is_empty() != ints.is_empty(),
        "give either 'imputed_value_floats' or 'imputed_value_int64s', and not both"
    );
    let kernel = if ints.is_empty() {
        Imputer::Floats { replaced: attributes.float("replaced_value_float", 0.0)?, imputed: floats.to_vec() }
    } else {
        Imputer::Ints { replaced: attributes.int("replaced_value_int64", 0)?, imputed: ints.to_vec() }
    };
    operator(node, 1, kernel)
}

fn impute<T: Copy>(values: &[T], imputed: &[T], stride: usize, is_replaced: impl Fn(T) -> bool) -> Vec<T> {
    let of_column = |at: usize| imputed[if imputed.len() == 1 { 0 } else { at % stride }];
    values.iter().enumerate().map(|(at, x)| if is_replaced(*x) { of_column(at) } else { *x }).collect()
}

fn is<T: Float>(replaced: T) -> impl Fn(T) -> bool {
    move |x| x == replaced || (x.is_nan() && replaced.is_nan())
}

impl Kernel for Imputer {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        let (datum, shape) = &inputs[0];
        let values = match self {
            Self::Floats { imputed, .. } => {
                ensure!(datum.is_float() && *datum != f16::datum_type(), "it imputes floats, not {datum:?}");
                imputed.len()
            }
            Self::Ints { imputed, .. } => {
                ensure!(*datum == i64::datum_type() || datum.is_tdim(), "it imputes 64-bit integers, not {datum:?}");
                imputed.len()
            }
        };
        expect_columns("imputed_value", values, shape)?;
        Ok(vec![(if datum.is_tdim() { i64::datum_type() } else { *datum }, shape.clone())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let (input, stride) = (&inputs[0], stride(&inputs[0]));
        let output = match self {
            Self::Floats { replaced, imputed } if input.datum_type() == f64::datum_type() => {
                let imputed: Vec<f64> = imputed.iter().map(|x| f64::from(*x)).collect();
                let values = input.try_as_plain_ram()?;
                let values = impute(values.as_slice::<f64>()?, &imputed, stride, is(f64::from(*replaced)));
                Tensor::from_shape(input.shape(), &values)?
            }
            Self::Floats { replaced, imputed } => {
                let values = input.try_as_plain_ram()?;
                let values = impute(values.as_slice::<f32>()?, imputed, stride, is(*replaced));
                Tensor::from_shape(input.shape(), &values)?
            }
            Self::Ints { replaced, imputed } => {
                let values = input.cast_to::<i64>()?;
                let values = values.try_as_plain_ram()?;
                let values = impute(values.as_slice::<i64>()?, imputed, stride, |x| x == *replaced);
                Tensor::from_shape(input.shape(), &values)?
            }
        };
        Ok(vec![output])
    }
}

/// 1 above the threshold, otherwise 0.
#[derive(Debug)]
struct Binarizer(f32);

pub(super) fn binarizer(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    operator(node, 1, Binarizer(Attributes::new(context, node).float("threshold", 0.0)?))
}

impl Kernel for Binarizer {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        let (datum, shape) = &inputs[0];
        expect_numbers(*datum)?;
        Ok(vec![(if datum.is_tdim() { i64::datum_type() } else { *datum }, shape.clone())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let input = &inputs[0];
        let datum = if input.datum_type().is_tdim() { i64::datum_type() } else { input.datum_type() };
        let values = input.cast_to::<f64>()?;
        let values = values.try_as_plain_ram()?;
        let above = |x: &f64| f32::from(u8::from(*x > f64::from(self.0)));
        let values: Vec<f32> = values.as_slice::<f64>()?.iter().map(above).collect();
        Ok(vec![Tensor::from_shape(input.shape(), &values)?.cast_to_dt(datum)?.into_owned()])
    }
}
