//! Which steps of a pipeline are carried out inside the model, by the runtime.
//!
//! A step folds when it stands at the border of the model and the runtime computes the same: before the model, the last steps of a
//! value that goes to one input and nowhere else; after it, the first steps of an output that nothing else reads and no caller gets.
//! The pipeline alone decides, so that building a bundle and every device fold the same. How a runtime computes its nodes is its
//! own matter; the steps that are left are [`super::flow`]'s.
//!
//! **Numbers** have 32 bits inside the model. A step whose result that could move by more than some 10⁻⁵ of its own unit stays outside,
//! as does one that treats NaN otherwise than the runtime's node would.

use std::collections::BTreeMap;

use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::pipeline::{Form, Half, Operation, Pipeline, Step, forms_after};

use super::columns::no_zero;
use crate::runtime::{Border, BorderNode};

/// How many times its unit a scaling may move numbers: what is taken away or added is rounded to 32 bits, and by 2⁻²⁴ of itself at most.
const MAX_OFFSET: f64 = 64.0;
/// Columns from which on tract takes parameters by column faster than a step outside the model does. It has a kernel for them from here on;
/// for a linear model of 4 and 16 columns, batches of 64 took 1.5 and 1.3 times as long with the step inside.
const MIN_COLUMNS: usize = 32;
/// Columns from which on its softmax is faster: batches of 64 took 1.05 times as long with 4 columns, 0.63 with 8.
const MIN_SOFTMAX_COLUMNS: i64 = 8;
/// The largest parameter, in magnitude. Adding it to the largest of all numbers changes nothing, so that both ways agree on what is infinite.
const MAX_PARAMETER: f64 = 1e30;

/// A step that is carried out inside the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldedStep {
    /// Its half.
    pub half: Half,
    /// Its place there, counted from 1.
    pub number: usize,
    /// What it does.
    pub operation: &'static str,
}

/// The steps that fold at one tensor of the model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chain {
    /// Their places in their half, counted from 0, in the order in which they are carried out.
    pub(super) steps: Vec<usize>,
    /// What the runtime makes of them.
    pub(super) border: Border,
}

/// One half of a pipeline.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct FoldedHalf {
    /// The steps that fold, for each tensor of the model at which there are some. The others are left.
    pub(super) chains: Vec<Chain>,
    /// Whether none is left, so that what callers send or get is the model's own. Then its tensors have the callers' names.
    pub(super) is_whole: bool,
}

/// What folds of a pipeline.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Folding {
    /// At the model's inputs.
    pub(super) pre: FoldedHalf,
    /// At its outputs.
    pub(super) post: FoldedHalf,
}

/// The steps of `pipeline` that are carried out inside the model, callers sending and getting what `outer` says. A runtime that refuses
/// them carries none out.
#[must_use]
pub fn folded_steps(pipeline: &Pipeline, outer: &ModelSignature) -> Vec<FoldedStep> {
    Folding::of(pipeline, outer).steps(pipeline)
}

impl FoldedHalf {
    /// `chains` of a half of `steps` steps between the model's `tensors` and the callers'. `names` are the chains' names outside the model.
    fn new(
        mut chains: Vec<Chain>,
        names: Vec<String>,
        steps: usize,
        tensors: &[TensorSpec],
        callers: &[TensorSpec],
    ) -> Self {
        let own: Vec<String> = chains.iter().map(|chain| chain.border.tensor.clone()).collect();
        let rename = |chains: &mut Vec<Chain>, names: Vec<String>| {
            chains.iter_mut().zip(names).for_each(|(chain, name)| chain.border.name = name);
        };
        rename(&mut chains, names);
        let mut half = Self { chains, is_whole: false };
        let outside = half.outside(tensors);
        half.is_whole = half.places().len() == steps && outside == callers;
        if !half.is_whole {
            rename(&mut half.chains, own);
        }
        half
    }

    /// The places of the steps.
    pub(super) fn places(&self) -> Vec<usize> {
        self.chains.iter().flat_map(|chain| chain.steps.iter().copied()).collect()
    }

    /// What the runtime makes of the steps.
    pub(super) fn borders(&self) -> Vec<Border> {
        self.chains.iter().map(|chain| chain.border.clone()).collect()
    }

    /// What the model's `tensors` are from outside.
    fn outside(&self, tensors: &[TensorSpec]) -> Vec<TensorSpec> {
        let outside = |tensor: &TensorSpec| match self.chains.iter().find(|chain| chain.border.tensor == tensor.name) {
            Some(Chain { border, .. }) => {
                TensorSpec { name: border.name.clone(), datatype: border.outside, shape: tensor.shape.clone() }
            }
            None => tensor.clone(),
        };
        tensors.iter().map(outside).collect()
    }
}

impl Folding {
    /// What folds of `pipeline`, which is valid for callers who send and get what `outer` says.
    pub(super) fn of(pipeline: &Pipeline, outer: &ModelSignature) -> Self {
        let Pipeline { model, pre, post } = pipeline;
        let before = Trace::new(Half::Pre, &outer.inputs, pre);
        let taken: Vec<usize> = model.inputs.iter().filter_map(|input| before.last(&input.name)).collect();
        let inputs = model.inputs.iter().filter(|input| input.datatype == DataType::Fp32);
        let (chains, names) = inputs.filter_map(|input| before.up_to(&input.name, &taken)).unzip();
        let pre = FoldedHalf::new(chains, names, pre.len(), &model.inputs, &outer.inputs);

        let after = Trace::new(Half::Post, &model.outputs, post);
        let got: Vec<usize> = outer.outputs.iter().filter_map(|output| after.last(&output.name)).collect();
        let outputs = model.outputs.iter().enumerate().filter(|(_, output)| output.datatype == DataType::Fp32);
        let (chains, names) = outputs.filter_map(|(value, output)| after.from(value, &output.name, &got)).unzip();
        let post = FoldedHalf::new(chains, names, post.len(), &model.outputs, &outer.outputs);
        Self { pre, post }
    }

    /// Whether no step folds.
    pub(super) const fn is_empty(&self) -> bool {
        self.pre.chains.is_empty() && self.post.chains.is_empty()
    }

    /// The steps, in the order of their halves.
    pub(super) fn steps(&self, pipeline: &Pipeline) -> Vec<FoldedStep> {
        let of = |half: Half, folded: &FoldedHalf, steps: &[Step]| {
            let mut places = folded.places();
            places.sort_unstable();
            let step =
                |at: usize| Some(FoldedStep { half, number: at + 1, operation: steps.get(at)?.operation.name() });
            places.into_iter().filter_map(step).collect::<Vec<_>>()
        };
        [of(Half::Pre, &self.pre, &pipeline.pre), of(Half::Post, &self.post, &pipeline.post)].concat()
    }

    /// What the model takes and gives with the steps inside it, when it is `model` without.
    pub(super) fn signature(&self, model: &ModelSignature) -> ModelSignature {
        ModelSignature { inputs: self.pre.outside(&model.inputs), outputs: self.post.outside(&model.outputs) }
    }
}

/// The values of one half, who writes each and who reads it. A name stands for one value after another; here each has a number.
struct Trace<'a> {
    half: Half,
    specs: &'a [TensorSpec],
    steps: &'a [Step],
    /// The value that each name stands for in the end.
    last: BTreeMap<&'a str, usize>,
    /// Of each value, the step that writes it; none of those that are there before.
    writers: Vec<Option<usize>>,
    /// Of each value, the steps that read it.
    readers: Vec<Vec<usize>>,
    /// Of each step, the value that it reads, if it is one alone.
    sources: Vec<Option<usize>>,
    /// Of each step, the value that it writes.
    results: Vec<usize>,
}

impl<'a> Trace<'a> {
    fn new(half: Half, specs: &'a [TensorSpec], steps: &'a [Step]) -> Self {
        let mut trace = Self {
            half,
            specs,
            steps,
            last: specs.iter().enumerate().map(|(value, spec)| (spec.name.as_str(), value)).collect(),
            writers: vec![None; specs.len()],
            readers: vec![Vec::new(); specs.len()],
            sources: Vec::new(),
            results: Vec::new(),
        };
        for (at, step) in steps.iter().enumerate() {
            let read: Vec<usize> = step.from.iter().filter_map(|name| trace.last(name)).collect();
            for value in &read {
                trace.readers[*value].push(at);
            }
            trace.sources.push(if let [only] = read.as_slice() { Some(*only) } else { None });
            trace.results.push(trace.writers.len());
            for name in std::iter::once(&step.to).chain(step.operation.second_result()) {
                trace.last.insert(name, trace.writers.len());
                trace.writers.push(Some(at));
                trace.readers.push(Vec::new());
            }
        }
        trace
    }

    fn last(&self, name: &str) -> Option<usize> {
        self.last.get(name).copied()
    }

    /// The value that the step at `at` reads, its form, and the nodes that do what the step does; none where it does not fold.
    fn nodes(&self, at: usize) -> Option<(usize, Form, Vec<BorderNode>)> {
        let step = self.steps.get(at)?;
        let source = self.sources.get(at).copied().flatten()?;
        let form = forms_after(self.half, self.specs, self.steps.get(..at)?).ok()?.remove(step.from.first()?)?;
        let nodes = nodes(&step.operation, &form)?;
        Some((source, form, nodes))
    }

    /// The steps that end in the model's input `name`, and the name of the value that they begin with. `taken` are the values that the
    /// model's inputs get.
    fn up_to(&self, name: &str, taken: &[usize]) -> Option<(Chain, String)> {
        let mut value = self.last(name)?;
        let (mut steps, mut all) = (Vec::new(), Vec::new());
        let mut border = Border { tensor: name.into(), name: name.into(), outside: DataType::Fp32, nodes: Vec::new() };
        while self.readers.get(value)?.len() == usize::from(!steps.is_empty())
            && (steps.is_empty() || !taken.contains(&value))
            && let Some(at) = self.writers.get(value).copied().flatten()
            && self.results.get(at) == Some(&value)
            && let Some((source, form, nodes)) = self.nodes(at)
        {
            let is_given = self.writers.get(source)?.is_none();
            let outside = if is_given {
                is_exact(form.datatype).then_some(form.datatype)
            } else {
                matches!(form.datatype, DataType::Fp32 | DataType::Fp16).then_some(DataType::Fp32)
            };
            let Some(outside) = outside else { break };
            border.outside = outside;
            steps.insert(0, at);
            all.splice(0..0, nodes);
            value = source;
        }
        border.nodes = all;
        let begin = self.steps.get(*steps.first()?)?.from.first()?.clone();
        Some((Chain { steps, border }, begin))
    }

    /// The steps that begin with `value`, the model's output `name`, and the name of the value that they end in. Callers get the values
    /// `got`.
    fn from(&self, mut value: usize, name: &str, got: &[usize]) -> Option<(Chain, String)> {
        let mut steps = Vec::new();
        let mut border = Border { tensor: name.into(), name: name.into(), outside: DataType::Fp32, nodes: Vec::new() };
        while let Some([reader]) = self.readers.get(value).map(Vec::as_slice)
            && !got.contains(&value)
            && let Some((_, _, nodes)) = self.nodes(*reader)
        {
            steps.push(*reader);
            border.nodes.extend(nodes);
            value = *self.results.get(*reader)?;
        }
        let end = self.steps.get(*steps.last()?)?.to.clone();
        Some((Chain { steps, border }, end))
    }
}

/// Whether 32-bit floating point holds every number of this type.
const fn is_exact(datatype: DataType) -> bool {
    matches!(
        datatype,
        DataType::Fp32 | DataType::Fp16 | DataType::Int8 | DataType::Int16 | DataType::Uint8 | DataType::Uint16
    )
}

/// The nodes that do what `operation` does to values of `form`; none where it stays outside.
fn nodes(operation: &Operation, form: &Form) -> Option<Vec<BorderNode>> {
    match operation {
        Operation::Scale { center, scale } => {
            let factors = scale.iter().map(|scale| 1.0 / scale);
            all(center, scale, is_near)?;
            Some([offset(center.iter().copied(), BorderNode::Subtract)?, factor(factors)?].concat())
        }
        Operation::Unscale { center, scale } => {
            all(center, scale, is_near)?;
            Some([factor(scale.iter().copied())?, offset(center.iter().copied(), BorderNode::Add)?].concat())
        }
        Operation::MinMax { data_min, data_max, low, high, clip: false } => {
            let range = |min: f64, max: f64| no_zero(max - min);
            all(data_min, data_max, |min, max| is_near(min.abs().max(max.abs()), range(min, max)))?;
            is_near(low.abs().max(high.abs()), high - low).then_some(())?;
            let pairs = || pairs(data_min, data_max);
            let factors = pairs().map(|(min, max)| (high - low) / range(min, max));
            let offsets = pairs().map(|(min, max)| low - min * (high - low) / range(min, max));
            Some([factor(factors)?, offset(offsets, BorderNode::Add)?].concat())
        }
        Operation::Softmax if matches!(form.shape.as_slice(), [_, .., columns] if *columns >= MIN_SOFTMAX_COLUMNS) => {
            Some(vec![BorderNode::Softmax])
        }
        // tract's minimum, maximum and greatest drop NaN or keep it as the processor has it; its sigmoid ends at 5 · 10⁻⁷.
        Operation::MinMax { clip: true, .. }
        | Operation::Clip { .. }
        | Operation::Argmax
        | Operation::TopK { .. }
        | Operation::Sigmoid
        // What is near 0, or has a norm past what 32 bits hold, would lose what 64 bits keep.
        | Operation::Log1p
        | Operation::Normalize { .. }
        // Few columns, or none but the rows.
        | Operation::Softmax
        // Takes what is no number, or may refuse what it reads.
        | Operation::Impute { .. }
        | Operation::ImputeText { .. }
        | Operation::OneHot { .. }
        | Operation::Ordinal { .. }
        | Operation::Cast { .. }
        | Operation::Image(_)
        | Operation::Labels { .. }
        | Operation::Threshold { .. }
        // Moves numbers and computes none.
        | Operation::Join
        | Operation::Select { .. }
        | Operation::Window { .. }
        | Operation::Reshape { .. } => None,
    }
}

/// Whether an offset is so small beside the unit of a scaling that its rounding does not matter.
fn is_near(offset: f64, unit: f64) -> bool {
    offset.abs() <= MAX_OFFSET * unit.abs()
}

/// Two lists of parameters, column by column.
fn pairs<'a>(one: &'a [f64], other: &'a [f64]) -> impl Iterator<Item = (f64, f64)> + 'a {
    let columns = one.len().max(other.len());
    one.iter().cycle().zip(other.iter().cycle()).take(columns).map(|(one, other)| (*one, *other))
}

fn all(one: &[f64], other: &[f64], holds: impl Fn(f64, f64) -> bool) -> Option<()> {
    pairs(one, other).all(|(one, other)| holds(one, other)).then_some(())
}

/// The parameters in 32 bits, one for all where they are alike; none where one of them is not `allowed` there, or there are so few
/// that folding would not pay.
fn rounded(parameters: impl Iterator<Item = f64>, allowed: impl Fn(f32) -> bool) -> Option<Vec<f32>> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "how far that moves results is what decides whether a step folds"
    )]
    let round = |parameter: f64| Some(parameter as f32).filter(|x| f64::from(x.abs()) <= MAX_PARAMETER && allowed(*x));
    let mut parameters: Vec<f32> = parameters.map(round).collect::<Option<_>>()?;
    if parameters.windows(2).all(|pair| pair[0].total_cmp(&pair[1]).is_eq()) {
        parameters.truncate(1);
    }
    (parameters.len() == 1 || parameters.len() >= MIN_COLUMNS).then_some(parameters)
}

/// Multiplication, unless it is by 1.
fn factor(factors: impl Iterator<Item = f64>) -> Option<Vec<BorderNode>> {
    // By 0, tract would make 0 of NaN.
    let factors = rounded(factors, f32::is_normal)?;
    Some(if factors == [1.0] { Vec::new() } else { vec![BorderNode::Multiply(factors)] })
}

/// Moving, unless it is by 0.
fn offset(offsets: impl Iterator<Item = f64>, node: fn(Vec<f32>) -> BorderNode) -> Option<Vec<BorderNode>> {
    let offsets = rounded(offsets, |x| x.is_normal() || x == 0.0)?;
    Some(if offsets == [0.0] { Vec::new() } else { vec![node(offsets)] })
}

#[cfg(test)]
mod tests;
