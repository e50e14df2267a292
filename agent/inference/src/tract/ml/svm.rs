//! SVMClassifier and SVMRegressor: support vectors as libsvm has them, or one weight for each feature as liblinear has them.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::attributes::{Attributes, index};
use super::kernel::{Built, Form, Kernel, expect_numbers, matrix, operator, sizes, table};
use super::labels::Labels;
use super::linear::{dot, largest};
use super::post::{Post, logistic};

/// Rounds of the pairwise coupling, as libsvm has them.
const COUPLING_ROUNDS: usize = 100;
/// Least and greatest pairwise probability, as libsvm has them.
const LEAST_PROBABILITY: f32 = 1e-7;

#[derive(Debug, Clone, Copy)]
enum Shape {
    Linear,
    Poly,
    Rbf,
    Sigmoid,
}

/// The kernel function over a set of vectors.
#[derive(Debug)]
struct Vectors {
    shape: Shape,
    gamma: f32,
    coef0: f32,
    degree: f32,
    features: usize,
    /// One row of `features` for each vector.
    vectors: Vec<f32>,
}

impl Vectors {
    /// `count` vectors of `values`; none at all means one row of weights for each of `outputs` in `coefficients`.
    fn read(attributes: &Attributes<'_>, count: usize, outputs: usize) -> TractResult<Self> {
        let shape = match attributes.text("kernel_type", "LINEAR")? {
            "LINEAR" => Shape::Linear,
            "POLY" => Shape::Poly,
            "RBF" => Shape::Rbf,
            "SIGMOID" => Shape::Sigmoid,
            other => bail!("there is no kernel_type {other:?}"),
        };
        let [gamma, coef0, degree] = match attributes.floats("kernel_params")? {
            [] => [0.0; 3],
            [gamma, coef0, degree] => [*gamma, *coef0, *degree],
            other => bail!("attribute 'kernel_params' has {} elements where 3 are needed", other.len()),
        };
        let (shape, name, count) =
            if count > 0 { (shape, "support_vectors", count) } else { (Shape::Linear, "coefficients", outputs) };
        let vectors = attributes.floats(name)?;
        ensure!(
            !vectors.is_empty() && vectors.len() % count == 0,
            "attribute '{name}' has {} elements, which are not a whole number of features for {count} vectors",
            vectors.len()
        );
        Ok(Self { shape, gamma, coef0, degree, features: vectors.len() / count, vectors: vectors.to_vec() })
    }

    fn rows(&self, (datum, shape): &Form) -> TractResult<TDim> {
        expect_numbers(*datum)?;
        let (rows, columns) = table(shape)?;
        ensure!(columns == self.features, "it is made for {} features, but its input has {columns}", self.features);
        Ok(rows)
    }

    /// The kernel of `row` with each vector.
    fn of<'a>(&'a self, row: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
        self.vectors.chunks_exact(self.features).map(move |vector| match self.shape {
            Shape::Linear => dot(row, vector),
            Shape::Poly => (self.gamma * dot(row, vector) + self.coef0).powf(self.degree),
            Shape::Sigmoid => (self.gamma * dot(row, vector) + self.coef0).tanh(),
            Shape::Rbf => {
                let distance: f32 = row.iter().zip(vector).map(|(a, b)| (a - b) * (a - b)).sum();
                (-self.gamma * distance).exp()
            }
        })
    }

    fn memory_bytes(&self) -> usize {
        size_of_val(self.vectors.as_slice())
    }
}

#[derive(Debug)]
struct SvmRegressor {
    vectors: Vectors,
    /// One for each support vector; empty when there are none.
    coefficients: Vec<f32>,
    rho: f32,
    /// Whether only the side is wanted, 1 or -1.
    one_class: bool,
}

pub(super) fn regressor(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let attributes = Attributes::new(context, node);
    let supports = index("n_supports", attributes.int("n_supports", 0)?)?;
    let vectors = Vectors::read(&attributes, supports, 1)?;
    let coefficients = if supports == 0 { &[] } else { attributes.floats("coefficients")? };
    attributes.expect_length("coefficients", coefficients.len(), supports)?;
    let [rho, ..] = attributes.floats("rho")? else { bail!("attribute 'rho' is empty") };
    let one_class = attributes.int("one_class", 0)? != 0;
    operator(node, 1, SvmRegressor { vectors, coefficients: coefficients.to_vec(), rho: *rho, one_class })
}

impl Kernel for SvmRegressor {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        Ok(vec![(f32::datum_type(), tvec![self.vectors.rows(&inputs[0])?, 1.to_dim()])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let values = inputs[0].cast_to::<f32>()?;
        let values = values.try_as_plain_ram()?;
        let of_row = |row| {
            let kernels = self.vectors.of(row);
            let sum: f32 = if self.coefficients.is_empty() {
                kernels.sum()
            } else {
                kernels.zip(&self.coefficients).map(|(kernel, coefficient)| kernel * coefficient).sum()
            };
            let score = sum + self.rho;
            match self.one_class {
                true if score > 0.0 => 1.0,
                true => -1.0,
                false => score,
            }
        };
        let scores: Vec<f32> = values.as_slice::<f32>()?.chunks_exact(self.vectors.features).map(of_row).collect();
        Ok(vec![matrix(sizes(&inputs[0]).0, 1, &scores)?])
    }

    fn memory_bytes(&self) -> usize {
        self.vectors.memory_bytes() + size_of_val(self.coefficients.as_slice())
    }
}

/// Pairs of classes, each decided by the support vectors of both.
#[derive(Debug)]
struct Pairs {
    /// Where each class's vectors begin, and behind them their number.
    starts: Vec<usize>,
    /// One row of all vectors' coefficients for each class but one.
    coefficients: Vec<f32>,
    rho: Vec<f32>,
    /// Slope and intercept of each pair's sigmoid; empty when probabilities are not wanted.
    sigmoids: Vec<(f32, f32)>,
}

#[derive(Debug)]
enum Decision {
    /// A score for each class.
    Linear {
        rho: f32,
        all_positive: bool,
        has_probabilities: bool,
    },
    Pairs(Pairs),
}

#[derive(Debug)]
struct SvmClassifier {
    vectors: Vectors,
    decision: Decision,
    labels: Labels,
    post: Post,
}

pub(super) fn classifier(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let attributes = Attributes::new(context, node);
    let labels = Labels::read(&attributes, "classlabels_ints", "classlabels_strings")?;
    let post = Post::named(attributes.text("post_transform", "NONE")?)?;
    let classes = labels.count();
    let mut starts = vec![0_usize];
    for count in attributes.ints("vectors_per_class")? {
        let count = index("vectors_per_class", *count)?;
        let end = starts.last().copied().unwrap_or_default().checked_add(count);
        starts.push(end.context("attribute 'vectors_per_class' counts too many vectors")?);
    }
    let supports = starts.last().copied().unwrap_or_default();
    let vectors = Vectors::read(&attributes, supports, classes)?;
    let (coefficients, rho) = (attributes.floats("coefficients")?, attributes.floats("rho")?);
    let (slopes, intercepts) = (attributes.floats("prob_a")?, attributes.floats("prob_b")?);
    attributes.expect_length("prob_b", intercepts.len(), slopes.len())?;
    let decision = if supports == 0 {
        let [rho, ..] = rho else { bail!("attribute 'rho' is empty") };
        let all_positive = coefficients.iter().all(|weight| *weight >= 0.0);
        Decision::Linear { rho: *rho, all_positive, has_probabilities: !slopes.is_empty() }
    } else {
        attributes.expect_length("vectors_per_class", starts.len() - 1, classes)?;
        let pairs = classes * (classes - 1) / 2;
        let needed = (classes - 1).checked_mul(supports).context("it has too many classes and vectors")?;
        attributes.expect_length("coefficients", coefficients.len(), needed)?;
        attributes.expect_length("rho", rho.len(), pairs)?;
        if !slopes.is_empty() {
            attributes.expect_length("prob_a", slopes.len(), pairs)?;
        }
        let sigmoids = slopes.iter().copied().zip(intercepts.iter().copied()).collect();
        Decision::Pairs(Pairs { starts, coefficients: coefficients.to_vec(), rho: rho.to_vec(), sigmoids })
    };
    operator(node, 2, SvmClassifier { vectors, decision, labels, post })
}

impl Pairs {
    fn vectors(&self) -> usize {
        self.starts.last().copied().unwrap_or_default()
    }

    /// Each pair's decision value, positive for the first class, in the order 0-1, 0-2, … 1-2, …, and the class with most votes.
    fn decide(&self, kernels: &[f32]) -> (Vec<f32>, usize) {
        let classes = self.starts.len() - 1;
        let mut votes = vec![0_usize; classes];
        let mut scores = Vec::with_capacity(self.rho.len());
        let partial = |class: usize, row: usize| -> f64 {
            let vectors = self.starts[class]..self.starts[class + 1];
            let weights = &self.coefficients[row * self.vectors()..][vectors.clone()];
            weights.iter().zip(&kernels[vectors]).map(|(weight, kernel)| f64::from(weight * kernel)).sum()
        };
        let mut rho = self.rho.iter();
        for first in 0..classes {
            for second in first + 1..classes {
                let rho = rho.next().map_or(0.0, |rho| f64::from(*rho));
                let sum = partial(first, second - 1) + partial(second, first) + rho;
                votes[if sum > 0.0 { first } else { second }] += 1;
                #[expect(clippy::cast_possible_truncation, reason = "scores are of single precision")]
                scores.push(sum as f32);
            }
        }
        let most = (1..classes).fold(0, |best, class| if votes[class] > votes[best] { class } else { best });
        (scores, most)
    }

    /// Each class's probability from the decision values.
    fn probabilities(&self, scores: &[f32]) -> Vec<f32> {
        let classes = self.starts.len() - 1;
        let mut pairwise = vec![0.0_f32; classes * classes];
        let mut decided = scores.iter().zip(&self.sigmoids);
        for first in 0..classes {
            for second in first + 1..classes {
                let Some((score, (slope, intercept))) = decided.next() else { continue };
                let share = 1.0 - logistic(score * slope + intercept);
                let share = share.clamp(LEAST_PROBABILITY, 1.0 - LEAST_PROBABILITY);
                pairwise[first * classes + second] = share;
                pairwise[second * classes + first] = 1.0 - share;
            }
        }
        couple(&pairwise, classes)
    }
}

/// Probabilities p that fit pairwise ones r best: the second method of Wu, Lin and Weng, "Probability Estimates for Multi-class
/// Classification by Pairwise Coupling" (JMLR 5, 2004), in the iteration of its algorithm 2 that libsvm runs.
fn couple(r: &[f32], k: usize) -> Vec<f32> {
    let mut q = vec![0.0_f32; k * k];
    for i in 0..k {
        for j in (0..k).filter(|j| *j != i) {
            q[i * k + i] += r[j * k + i] * r[j * k + i];
            q[i * k + j] = -r[j * k + i] * r[i * k + j];
        }
    }
    let mut p = vec![1.0 / k as f32; k];
    let tolerance = 0.005 / k as f32;
    for _ in 0..COUPLING_ROUNDS {
        let mut qp: Vec<f32> = q.chunks_exact(k).map(|row| row.iter().zip(&p).map(|(q, p)| q * p).sum()).collect();
        let mut pqp: f32 = p.iter().zip(&qp).map(|(p, qp)| p * qp).sum();
        if qp.iter().all(|qp| (qp - pqp).abs() < tolerance) {
            break;
        }
        for i in 0..k {
            let own = q[i * k + i];
            let step = (pqp - qp[i]) / own;
            p[i] += step;
            pqp = (pqp + step * (step * own + 2.0 * qp[i])) / (1.0 + step) / (1.0 + step);
            for j in 0..k {
                qp[j] = (qp[j] + step * q[i * k + j]) / (1.0 + step);
                p[j] /= 1.0 + step;
            }
        }
    }
    p
}

impl SvmClassifier {
    /// How many scores a row has.
    fn width(&self) -> usize {
        match &self.decision {
            Decision::Pairs(pairs) if pairs.sigmoids.is_empty() && self.labels.count() > 2 => pairs.rho.len(),
            Decision::Pairs(_) | Decision::Linear { .. } => self.labels.count(),
        }
    }

    /// The class of `row`; its scores are appended to `out`.
    fn classify(&self, row: &[f32], out: &mut Vec<f32>) -> usize {
        let from = out.len();
        match &self.decision {
            Decision::Linear { rho, all_positive, has_probabilities } => {
                out.extend(self.vectors.of(row).map(|score| score + rho));
                let best = largest(&out[from..]);
                let most = out[from + best];
                self.post.apply(&mut out[from..]);
                // With two classes, onnxruntime takes the larger score for that of the second.
                let is_second = if *all_positive { most >= 0.5 } else { most > 0.0 };
                if self.labels.count() == 2 && !has_probabilities && is_second { 1 } else { best }
            }
            Decision::Pairs(pairs) => {
                let kernels: Vec<f32> = self.vectors.of(row).collect();
                let (scores, class) = pairs.decide(&kernels);
                if !pairs.sigmoids.is_empty() {
                    out.extend(pairs.probabilities(&scores));
                    self.post.apply(&mut out[from..]);
                } else if let [score] = scores.as_slice() {
                    out.extend(self.post.binary(*score, self.post != Post::None));
                } else {
                    out.extend(scores);
                    self.post.apply(&mut out[from..]);
                }
                class
            }
        }
    }
}

impl Kernel for SvmClassifier {
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        let rows = self.vectors.rows(&inputs[0])?;
        let scores = tvec![rows.clone(), self.width().to_dim()];
        Ok(vec![(self.labels.datum(), tvec![rows]), (f32::datum_type(), scores)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let values = inputs[0].cast_to::<f32>()?;
        let values = values.try_as_plain_ram()?;
        let rows = values.as_slice::<f32>()?.chunks_exact(self.vectors.features);
        let mut scores = Vec::with_capacity(rows.len() * self.width());
        let classes: Vec<usize> = rows.map(|row| self.classify(row, &mut scores)).collect();
        Ok(vec![self.labels.column(&classes)?, matrix(classes.len(), self.width(), &scores)?])
    }

    fn memory_bytes(&self) -> usize {
        let pairs = match &self.decision {
            Decision::Pairs(pairs) => size_of_val(pairs.coefficients.as_slice()) + size_of_val(pairs.rho.as_slice()),
            Decision::Linear { .. } => 0,
        };
        self.vectors.memory_bytes() + pairs + self.labels.memory_bytes()
    }
}
