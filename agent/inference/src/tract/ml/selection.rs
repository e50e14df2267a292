//! Operators that move values about: ArrayFeatureExtractor, FeatureVectorizer and ZipMap.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::attributes::Attributes;
use super::kernel::{Built, Form, Kernel, NotTaken, expect_numbers, operator};
use super::labels::Labels;

/// Takes columns, counted from 0 along the last dimension, that the second input names.
#[derive(Debug)]
struct ArrayFeatureExtractor;

pub(super) fn array_feature_extractor(_context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    operator(node, 1, ArrayFeatureExtractor)
}

fn take<T: Datum>(input: &Tensor, columns: &[usize], shape: &[usize]) -> TractResult<Tensor> {
    let width = input.shape().last().copied().unwrap_or(1).max(1);
    let values = input.try_as_plain_ram()?;
    let rows = values.as_slice::<T>()?.chunks_exact(width);
    let taken: Vec<T> = rows.flat_map(|row| columns.iter().map(|column| row[*column].clone())).collect();
    tensor1(&taken).into_shape(shape)
}

impl Kernel for ArrayFeatureExtractor {
    fn inputs(&self) -> Option<usize> {
        Some(2)
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        let [(datum, shape), (_, indices)] = inputs else { bail!("it takes two inputs") };
        let taken: TDim = indices.iter().product();
        let shape = match shape.as_slice() {
            [] => bail!("its input has no dimension"),
            [_] => tvec![1.to_dim(), taken],
            [before @ .., _] => before.iter().cloned().chain([taken]).collect(),
        };
        Ok(vec![(if datum.is_tdim() { i64::datum_type() } else { *datum }, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let [input, indices] = inputs else { bail!("it takes two inputs") };
        let width = input.shape().last().copied().unwrap_or_default();
        let indices = indices.cast_to::<i64>()?;
        let known = |index: &i64| {
            let column = usize::try_from(*index).ok().filter(|column| *column < width);
            column.ok_or_else(|| NotTaken(format!("there is no column {index} among {width}")).into())
        };
        let columns: Vec<usize> =
            indices.try_as_plain_ram()?.as_slice::<i64>()?.iter().map(known).collect::<TractResult<_>>()?;
        let shape: Vec<usize> = match input.shape() {
            [] => bail!("its input has no dimension"),
            [_] => vec![1, columns.len()],
            [before @ .., _] => before.iter().copied().chain([columns.len()]).collect(),
        };
        let datum = input.datum_type();
        let taken = if datum == f32::datum_type() {
            take::<f32>(input, &columns, &shape)
        } else if datum == f64::datum_type() {
            take::<f64>(input, &columns, &shape)
        } else if datum == i32::datum_type() {
            take::<i32>(input, &columns, &shape)
        } else if datum == i64::datum_type() || datum.is_tdim() {
            take::<i64>(input.cast_to::<i64>()?.as_ref(), &columns, &shape)
        } else if datum == bool::datum_type() {
            take::<bool>(input, &columns, &shape)
        } else if datum == String::datum_type() {
            take::<String>(input, &columns, &shape)
        } else {
            bail!("it does not take {datum:?}")
        };
        Ok(vec![taken?])
    }
}

/// Puts the columns of all inputs beside each other, as floats.
#[derive(Debug)]
struct FeatureVectorizer;

pub(super) fn feature_vectorizer(_context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    operator(node, 1, FeatureVectorizer)
}

impl Kernel for FeatureVectorizer {
    fn inputs(&self) -> Option<usize> {
        None
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        let mut columns = 0.to_dim();
        for (datum, shape) in inputs {
            expect_numbers(*datum)?;
            let ([rows, width], [first, ..]) = (shape.as_slice(), inputs[0].1.as_slice()) else {
                bail!("it takes rows of features, not an input of shape {shape:?}");
            };
            ensure!(rows == first, "its inputs have {first} and {rows} rows");
            columns += width;
        }
        Ok(vec![(f32::datum_type(), tvec![inputs[0].1[0].clone(), columns])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let floats = inputs.iter().map(|input| Ok(input.cast_to::<f32>()?.into_owned()));
        let floats: Vec<Tensor> = floats.collect::<TractResult<_>>()?;
        Ok(vec![Tensor::stack_tensors(1, &floats)?])
    }
}

/// Maps from labels to scores, in a list: here the scores alone, in the order of the labels.
#[derive(Debug)]
struct ZipMap {
    labels: Labels,
}

pub(super) fn zip_map(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let attributes = Attributes::new(context, node);
    operator(node, 1, ZipMap { labels: Labels::read(&attributes, "classlabels_int64s", "classlabels_strings")? })
}

impl Kernel for ZipMap {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        let (datum, shape) = &inputs[0];
        let (scores, labels) = (shape.last().cloned().unwrap_or_default(), self.labels.count());
        ensure!(scores == labels.to_dim(), "it has {labels} labels for {scores} scores");
        Ok(vec![(*datum, shape.clone())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        Ok(vec![inputs[0].clone().into_tensor()])
    }

    fn memory_bytes(&self) -> usize {
        self.labels.memory_bytes()
    }
}
