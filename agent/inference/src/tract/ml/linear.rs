//! LinearClassifier and LinearRegressor.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::attributes::{Attributes, index};
use super::kernel::{Built, Form, Kernel, expect_numbers, matrix, operator, sizes, table};
use super::labels::Labels;
use super::post::Post;

/// Partial sums of a scalar product, so that it does not wait for each addition.
const LANES: usize = 8;

/// The scalar product of two slices of one length.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// `X · coefficientsᵀ + intercepts`.
#[derive(Debug)]
struct Weights {
    features: usize,
    /// One row of `features` for each score.
    coefficients: Vec<f32>,
    intercepts: Vec<f32>,
}

impl Weights {
    /// `intercepts` may be absent.
    fn read(attributes: &Attributes<'_>, scores: usize) -> TractResult<Self> {
        let (coefficients, intercepts) = (attributes.floats("coefficients")?, attributes.floats("intercepts")?);
        ensure!(
            !coefficients.is_empty() && coefficients.len() % scores == 0,
            "{} coefficients are not a whole number of features for {scores} scores",
            coefficients.len()
        );
        let intercepts = if intercepts.is_empty() { vec![0.0; scores] } else { intercepts.to_vec() };
        attributes.expect_length("intercepts", intercepts.len(), scores)?;
        Ok(Self { features: coefficients.len() / scores, coefficients: coefficients.to_vec(), intercepts })
    }

    fn rows(&self, (datum, shape): &Form) -> TractResult<TDim> {
        expect_numbers(*datum)?;
        let (rows, columns) = table(shape)?;
        ensure!(columns == self.features, "it is made for {} features, but its input has {columns}", self.features);
        Ok(rows)
    }

    /// The scores of each row, one row after the other.
    fn scores(&self, input: &Tensor) -> TractResult<Vec<f32>> {
        let values = input.cast_to::<f32>()?;
        let values = values.try_as_plain_ram()?;
        let score = |row| move |(weights, intercept): (&[f32], &f32)| dot(row, weights) + intercept;
        let rows = values.as_slice::<f32>()?.chunks_exact(self.features);
        let of_row = |row| self.coefficients.chunks_exact(self.features).zip(&self.intercepts).map(score(row));
        Ok(rows.flat_map(of_row).collect())
    }

    fn memory_bytes(&self) -> usize {
        size_of_val(self.coefficients.as_slice()) + size_of_val(self.intercepts.as_slice())
    }
}

#[derive(Debug)]
struct LinearRegressor {
    weights: Weights,
    targets: usize,
    post: Post,
}

pub(super) fn regressor(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let attributes = Attributes::new(context, node);
    let targets = attributes.columns("targets", index("targets", attributes.int("targets", 1)?)?)?;
    let post = Post::named(attributes.text("post_transform", "NONE")?)?;
    operator(node, 1, LinearRegressor { weights: Weights::read(&attributes, targets)?, targets, post })
}

impl Kernel for LinearRegressor {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        Ok(vec![(f32::datum_type(), tvec![self.weights.rows(&inputs[0])?, self.targets.to_dim()])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let mut scores = self.weights.scores(&inputs[0])?;
        match self.targets {
            1 => scores.iter_mut().for_each(|score| *score = self.post.apply_single(*score)),
            targets => scores.chunks_exact_mut(targets).for_each(|row| self.post.apply(row)),
        }
        Ok(vec![matrix(sizes(&inputs[0]).0, self.targets, &scores)?])
    }

    fn memory_bytes(&self) -> usize {
        self.weights.memory_bytes()
    }
}

#[derive(Debug)]
struct LinearClassifier {
    weights: Weights,
    labels: Labels,
    /// Whether a row's only score decides between two classes.
    single: bool,
    post: Post,
}

pub(super) fn classifier(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let attributes = Attributes::new(context, node);
    let labels = Labels::read(&attributes, "classlabels_ints", "classlabels_strings")?;
    let single = attributes.floats("intercepts")?.len() == 1 && labels.count() == 2;
    let weights = Weights::read(&attributes, if single { 1 } else { labels.count() })?;
    let post = Post::named(attributes.text("post_transform", "NONE")?)?;
    operator(node, 2, LinearClassifier { weights, labels, single, post })
}

/// The position of the largest value, the first of several.
pub(super) fn largest(scores: &[f32]) -> usize {
    let larger = |best: usize, at: usize| if scores[at] > scores[best] { at } else { best };
    (1..scores.len()).fold(0, larger)
}

impl Kernel for LinearClassifier {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        let rows = self.weights.rows(&inputs[0])?;
        let classes = self.labels.count().to_dim();
        Ok(vec![(self.labels.datum(), tvec![rows.clone()]), (f32::datum_type(), tvec![rows, classes])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let scores = self.weights.scores(&inputs[0])?;
        let (classes, scores): (Vec<usize>, Vec<f32>) = if self.single {
            let classes = scores.iter().map(|score| usize::from(*score > 0.0)).collect();
            (classes, scores.iter().flat_map(|score| self.post.binary(*score, true)).collect())
        } else {
            let mut scores = scores;
            let rows = scores.chunks_exact_mut(self.labels.count());
            let classes = rows.map(|row| {
                let class = largest(row);
                self.post.apply(row);
                class
            });
            (classes.collect(), scores)
        };
        Ok(vec![self.labels.column(&classes)?, matrix(classes.len(), self.labels.count(), &scores)?])
    }

    fn memory_bytes(&self) -> usize {
        self.weights.memory_bytes() + self.labels.memory_bytes()
    }
}
