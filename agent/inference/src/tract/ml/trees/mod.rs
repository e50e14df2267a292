//! Ensembles of decision trees: TreeEnsembleRegressor, TreeEnsembleClassifier, and TreeEnsemble of opset 5.

mod draft;
mod flat;

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_num_traits::Float;

use self::draft::Draft;
use self::flat::{Aggregate, Forest, Scores};
use super::attributes::Attributes;
use super::kernel::{Built, Form, Kernel, expect_numbers, matrix, operator, sizes, table};
use super::labels::Labels;
use super::post::Post;

/// A forest in the precision that its attributes came in.
#[derive(Debug)]
enum AnyForest {
    Single(Forest<f32>),
    Double(Forest<f64>),
}

/// Scores in the precision that they were summed in: that of the input or of the forest, whichever is higher.
enum AnyScores {
    Single(Scores<f32>),
    Double(Scores<f64>),
}

impl AnyForest {
    fn new(draft: &Draft) -> TractResult<Self> {
        Ok(if draft.is_double { Self::Double(Forest::new(draft)?) } else { Self::Single(Forest::new(draft)?) })
    }

    /// The rows of an input that it can take.
    fn rows(&self, (datum, shape): &Form) -> TractResult<TDim> {
        expect_numbers(*datum)?;
        let (rows, columns) = table(shape)?;
        let features = match self {
            Self::Single(forest) => forest.features,
            Self::Double(forest) => forest.features,
        };
        ensure!(features <= columns, "its trees ask for {features} features, but its input has {columns}");
        Ok(rows)
    }

    fn score(&self, input: &Tensor, targets: usize, aggregate: Aggregate) -> TractResult<AnyScores> {
        let columns = sizes(input).1;
        let is_double = input.datum_type() == f64::datum_type();
        if let (Self::Single(forest), false) = (self, is_double) {
            let values = input.cast_to::<f32>()?;
            let values = values.try_as_plain_ram()?;
            return Ok(AnyScores::Single(forest.score(values.as_slice::<f32>()?, columns, targets, aggregate)));
        }
        let values = input.cast_to::<f64>()?;
        let values = values.try_as_plain_ram()?;
        let values = values.as_slice::<f64>()?;
        Ok(AnyScores::Double(match self {
            Self::Single(forest) => forest.score(values, columns, targets, aggregate),
            Self::Double(forest) => forest.score(values, columns, targets, aggregate),
        }))
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Single(forest) => forest.memory_bytes(),
            Self::Double(forest) => forest.memory_bytes(),
        }
    }
}

fn number<X: Float>(value: f64) -> X {
    X::from(value).unwrap_or_else(X::nan)
}

fn single<X: Float>(values: &[X]) -> Vec<f32> {
    values.iter().map(|value| value.to_f32().unwrap_or(f32::NAN)).collect()
}

/// `base_values`: none or one for each of `targets`.
fn base_values(attributes: &Attributes<'_>, counts: &[usize]) -> TractResult<Vec<f64>> {
    let base = attributes.numbers("base_values", "base_values_as_tensor")?.values;
    ensure!(
        base.is_empty() || counts.contains(&base.len()),
        "attribute 'base_values' has {} elements; none or {counts:?} are possible",
        base.len()
    );
    Ok(base)
}

/// Sums of weights as they are: a regression.
#[derive(Debug)]
struct Regressor {
    forest: AnyForest,
    targets: usize,
    aggregate: Aggregate,
    base: Vec<f64>,
    post: Post,
    /// Whether the output has the input's precision, as opset 5 has it.
    keeps_type: bool,
}

pub(super) fn regressor(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let attributes = Attributes::new(context, node);
    let targets = Draft::targets(attributes.int("n_targets", 1)?)?;
    let draft = Draft::read(&attributes, "target", targets)?;
    let kernel = Regressor {
        forest: AnyForest::new(&draft)?,
        targets,
        aggregate: Aggregate::named(attributes.text("aggregate_function", "SUM")?)?,
        base: base_values(&attributes, &[targets])?,
        post: Post::named(attributes.text("post_transform", "NONE")?)?,
        keeps_type: false,
    };
    operator(node, 1, kernel)
}

pub(super) fn ensemble(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let attributes = Attributes::new(context, node);
    let targets = Draft::targets(attributes.int("n_targets", 1)?)?;
    let draft = Draft::read_joint(&attributes, targets)?;
    let kernel = Regressor {
        forest: AnyForest::new(&draft)?,
        targets,
        aggregate: Aggregate::numbered(attributes.int("aggregate_function", 1)?)?,
        base: Vec::new(),
        post: Post::numbered(attributes.int("post_transform", 0)?)?,
        keeps_type: true,
    };
    operator(node, 1, kernel)
}

impl Regressor {
    fn finish<X: Float>(&self, mut scores: Scores<X>) -> Vec<X> {
        for row in scores.values.chunks_exact_mut(self.targets) {
            for (score, base) in row.iter_mut().zip(&self.base) {
                *score = *score + number(*base);
            }
            match row {
                [score] => *score = self.post.apply_single(*score),
                row => self.post.apply(row),
            }
        }
        scores.values
    }

    fn output(&self, input: DatumType) -> DatumType {
        if self.keeps_type && input.is_float() { input } else { f32::datum_type() }
    }
}

impl Kernel for Regressor {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        let rows = self.forest.rows(&inputs[0])?;
        Ok(vec![(self.output(inputs[0].0), tvec![rows, self.targets.to_dim()])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let rows = sizes(&inputs[0]).0;
        let output = match self.forest.score(&inputs[0], self.targets, self.aggregate)? {
            AnyScores::Single(scores) => matrix(rows, self.targets, &self.finish(scores))?,
            AnyScores::Double(scores) => matrix(rows, self.targets, &self.finish(scores))?,
        };
        Ok(vec![output.cast_to_dt(self.output(inputs[0].datum_type()))?.into_owned()])
    }

    fn memory_bytes(&self) -> usize {
        self.forest.memory_bytes()
    }
}

/// Sums of weights by class.
#[derive(Debug)]
struct Classifier {
    forest: AnyForest,
    labels: Labels,
    base: Vec<f64>,
    post: Post,
    /// Whether the weights of two classes are all of one.
    one_sided: bool,
    all_positive: bool,
}

pub(super) fn classifier(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let attributes = Attributes::new(context, node);
    let mut labels = Labels::read(&attributes, "classlabels_int64s", "classlabels_strings")?;
    let classes = labels.count();
    let draft = Draft::read(&attributes, "class", classes)?;
    let weights = || draft.leaves.iter().flatten();
    let one_sided =
        classes == 2 && weights().all(|(class, _)| Some(*class) == weights().next().map(|(first, _)| *first));
    if let Labels::Ints(labels) = &mut labels
        && classes == 2
        && !one_sided
    {
        // Where both classes have weights, onnxruntime answers 0 and 1 whatever the labels are.
        *labels = vec![0, 1];
    }
    let kernel = Classifier {
        forest: AnyForest::new(&draft)?,
        base: base_values(&attributes, if classes == 2 { &[1, 2] } else { std::slice::from_ref(&classes) })?,
        post: Post::named(attributes.text("post_transform", "NONE")?)?,
        one_sided,
        all_positive: weights().all(|(_, weight)| *weight >= 0.0),
        labels,
    };
    operator(node, 2, kernel)
}

impl Classifier {
    /// Each row's class; its scores become what the second output holds.
    fn finish<X: Float>(&self, scores: &mut Scores<X>) -> Vec<usize> {
        let classes = self.labels.count();
        let rows = scores.values.chunks_exact_mut(classes).zip(scores.is_set.chunks_exact_mut(classes));
        rows.map(|(values, is_set)| match (values, is_set) {
            ([first, second], [first_set, second_set]) => self.finish_two([first, second], [*first_set, *second_set]),
            (values, is_set) => self.finish_many(values, is_set),
        })
        .collect()
    }

    fn finish_many<X: Float>(&self, values: &mut [X], is_set: &[bool]) -> usize {
        for (value, base) in values.iter_mut().zip(&self.base) {
            *value = *value + number(*base);
        }
        // Classes that no leaf spoke of and that have no base do not take part.
        let candidates = (0..values.len()).filter(|at| is_set[*at] || *at < self.base.len());
        let best = candidates.reduce(|best, at| if values[at] > values[best] { at } else { best });
        self.post.apply(values);
        best.unwrap_or_default()
    }

    /// Two classes: with the cases that exporters rest on, and that ONNX says nothing about, as onnxruntime tells them apart.
    fn finish_two<X: Float>(&self, [first, second]: [&mut X; 2], [first_set, second_set]: [bool; 2]) -> usize {
        let base = |at: usize| self.base.get(at).map_or_else(X::zero, |base| number(*base));
        let is_single = self.base.len() < 2 && !second_set;
        match self.base.len() {
            2 if second_set => {
                *second = base(1) + *first;
                *first = if first_set { -*second } else { X::zero() };
            }
            2 => *first = *first + base(0),
            1 if first_set || is_single => *first = *first + base(0),
            _ => {}
        }
        let decisive = if second_set { *second } else { *first };
        let limit = if self.one_sided && self.all_positive { number(0.5) } else { X::zero() };
        let class = usize::from(decisive > limit);
        if is_single {
            // A score of one class that no other score stands beside. With a base and weights of both classes, it stays alone.
            let stays_alone = !self.one_sided && !self.base.is_empty();
            [*first, *second] = if stays_alone {
                [self.post.apply_single(*first), X::zero()]
            } else {
                self.post.binary(*first, self.one_sided && self.all_positive)
            };
        } else {
            let mut both = [*first, *second];
            self.post.apply(&mut both);
            [*first, *second] = both;
        }
        class
    }
}

impl Kernel for Classifier {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        let rows = self.forest.rows(&inputs[0])?;
        let scores = tvec![rows.clone(), self.labels.count().to_dim()];
        Ok(vec![(self.labels.datum(), tvec![rows]), (f32::datum_type(), scores)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let classes = self.labels.count();
        let (classified, scores) = match self.forest.score(&inputs[0], classes, Aggregate::Sum)? {
            AnyScores::Single(mut scores) => (self.finish(&mut scores), scores.values),
            AnyScores::Double(mut scores) => (self.finish(&mut scores), single(&scores.values)),
        };
        Ok(vec![self.labels.column(&classified)?, matrix(classified.len(), classes, &scores)?])
    }

    fn memory_bytes(&self) -> usize {
        self.forest.memory_bytes() + self.labels.memory_bytes()
    }
}
