//! Pipelines around models: a model that takes what callers send and gives what they get.
//!
//! The agent and `muster bundle build` both load a model through [`load`], so that what golden examples and the reference sample
//! went through before release is what requests go through on a device. Steps at the border of the model are carried out inside it
//! ([`folded_steps`]). What a pipeline may say is [`muster_shared::pipeline`]'s to decide; it has been validated there before anything here runs.

mod columns;
mod encode;
mod fit;
mod flow;
mod fold;
mod image;
mod value;

use std::collections::BTreeMap;

use muster_shared::bundle::{ModelSignature, TensorSpec};
use muster_shared::pipeline::{Half, Pipeline, PipelineError, Step, shape_fits};

pub(crate) use self::encode::Lookup;
pub use self::fit::{Draft, DraftStep, Fit, FitError, fit};
use self::flow::Flow;
use self::fold::{FoldedHalf, Folding};
pub use self::fold::{FoldedStep, folded_steps};
use crate::golden::GoldenSet;
use crate::images::See;
use crate::runtime::{LoadError, LoadOptions, Model, RunError, Runtime};
use crate::tensor::Tensor;

/// A model between the steps of its pipeline.
struct Pipelined {
    /// What callers send and get.
    outer: ModelSignature,
    /// None where the model takes what callers send.
    pre: Option<Flow>,
    model: Box<dyn Model>,
    /// None where callers get what the model gives.
    post: Option<Flow>,
    parameter_bytes: u64,
}

/// A model as callers meet it, and how its pipeline is carried out.
pub struct Loaded {
    /// The model.
    pub model: Box<dyn Model>,
    /// The steps that are carried out inside it.
    pub folded: Vec<FoldedStep>,
}

/// Loads the model of a bundle as callers meet it: prepared for the shapes of the first golden example, and inside its pipeline
/// where it has one. `signature` is what callers send and get; without a pipeline nothing is held against it here.
///
/// # Errors
/// [`LoadError`] when the runtime cannot run the model, or the pipeline does not fit it.
pub fn load(
    runtime: &dyn Runtime,
    onnx: &[u8],
    signature: &ModelSignature,
    pipeline: Option<&Pipeline>,
    golden: &GoldenSet,
) -> Result<Loaded, LoadError> {
    let Some(pipeline) = pipeline else {
        let options = LoadOptions { sample_shapes: golden.sample_shapes(), ..LoadOptions::default() };
        return Ok(Loaded { model: runtime.load(onnx, &options)?, folded: Vec::new() });
    };
    pipeline.validate(signature)?;
    let with = |folding: &Folding| {
        let options = LoadOptions {
            sample_shapes: sample_shapes(&signature.inputs, &pipeline.pre, folding, golden),
            inputs: folding.pre.borders(),
            outputs: folding.post.borders(),
            ..LoadOptions::default()
        };
        let model = enclose(runtime.load(onnx, &options)?, signature, pipeline, folding)?;
        Ok(Loaded { model, folded: folding.steps(pipeline) })
    };
    let folding = Folding::of(pipeline, signature);
    match with(&folding) {
        // What the runtime does not take with steps in it, it may take without.
        Err(LoadError::Refused { .. } | LoadError::Panicked { .. }) if !folding.is_empty() => with(&Folding::default()),
        loaded => loaded,
    }
}

/// What a model takes and gives by itself, without its pipeline, whose steps before the model are `pre` and take `inputs`.
///
/// # Errors
/// [`LoadError`] when the runtime cannot run the model.
pub fn inner_signature(
    runtime: &dyn Runtime,
    onnx: &[u8],
    inputs: &[TensorSpec],
    pre: &[Step],
    golden: &GoldenSet,
) -> Result<ModelSignature, LoadError> {
    let sample_shapes = sample_shapes(inputs, pre, &Folding::default(), golden);
    let model = runtime.load(onnx, &LoadOptions { sample_shapes, ..LoadOptions::default() })?;
    Ok(model.signature().clone())
}

/// The shapes that the first golden example has when it comes to the model. None where a step fails: the golden check tells why.
fn sample_shapes(
    inputs: &[TensorSpec],
    pre: &[Step],
    folding: &Folding,
    golden: &GoldenSet,
) -> BTreeMap<String, Vec<usize>> {
    let Some(example) = golden.examples.first() else { return BTreeMap::new() };
    let Ok(mut flow) = Flow::new(Half::Pre, inputs, pre) else { return BTreeMap::new() };
    flow.fold(&folding.pre.places());
    flow.shapes(&example.inputs).unwrap_or_default()
}

/// Puts `model` inside `pipeline`, all of whose steps stay outside it, so that it takes and gives what `outer` says.
///
/// # Errors
/// [`LoadError::Pipeline`] when they do not fit together, [`LoadError::Tensor`] when the model is not the one that the pipeline
/// was made for.
pub fn surround(
    model: Box<dyn Model>,
    outer: &ModelSignature,
    pipeline: &Pipeline,
) -> Result<Box<dyn Model>, LoadError> {
    pipeline.validate(outer)?;
    enclose(model, outer, pipeline, &Folding::default())
}

/// Puts `model`, in which what `folding` says is done already, inside the other steps of `pipeline`.
fn enclose(
    model: Box<dyn Model>,
    outer: &ModelSignature,
    pipeline: &Pipeline,
    folding: &Folding,
) -> Result<Box<dyn Model>, LoadError> {
    let (promised, found) = (folding.signature(&pipeline.model), model.signature());
    for (promised, found) in [(&promised.inputs, &found.inputs), (&promised.outputs, &found.outputs)] {
        let alike = |one: &TensorSpec, other: &TensorSpec| {
            one.name == other.name && one.datatype == other.datatype && shape_fits(&one.shape, &other.shape)
        };
        let missing = promised.iter().find(|spec| !found.iter().any(|other| alike(spec, other)));
        let extra = found.iter().find(|spec| !promised.iter().any(|other| alike(spec, other)));
        if let Some(spec) = missing.or(extra) {
            return Err(LoadError::Tensor {
                tensor: spec.name.clone(),
                reason: "the model that the pipeline was made for has other inputs or outputs".into(),
            });
        }
    }
    let flow = |half: Half, specs: &[TensorSpec], steps: &[Step], folded: &FoldedHalf| {
        if folded.is_whole {
            return Ok(None);
        }
        let mut flow = Flow::new(half, specs, steps)?;
        flow.fold(&folded.places());
        Ok::<_, PipelineError>(Some(flow))
    };
    let parameter_bytes = serde_json::to_vec(pipeline).map_or(0, |json| json.len() as u64);
    Ok(Box::new(Pipelined {
        outer: outer.clone(),
        pre: flow(Half::Pre, &outer.inputs, &pipeline.pre, &folding.pre)?,
        post: flow(Half::Post, &model.signature().outputs, &pipeline.post, &folding.post)?,
        model,
        parameter_bytes,
    }))
}

impl Model for Pipelined {
    fn signature(&self) -> &ModelSignature {
        &self.outer
    }

    fn memory_bytes(&self) -> u64 {
        self.model.memory_bytes().saturating_add(self.parameter_bytes)
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        self.run_seen(inputs, &mut |_| {})
    }

    fn run_seen(&self, inputs: &[Tensor], see: See<'_>) -> Result<Vec<Tensor>, RunError> {
        let answered = match &self.pre {
            None => self.model.run(inputs)?,
            Some(pre) => {
                check(&self.outer.inputs, inputs)?;
                let prepared = pre.run_seen(inputs, &self.model.signature().inputs, see)?;
                self.model.run(&prepared).map_err(|error| match error {
                    // The caller has never heard of the model's own inputs.
                    error if error.is_request_fault() => RunError::Unpreparable { reason: error.to_string() },
                    error => error,
                })?
            }
        };
        match &self.post {
            None => Ok(answered),
            Some(post) => post.run(&answered, &self.outer.outputs),
        }
    }
}

/// Whether `given` are all of `specs`, each once, of its type and shape.
fn check(specs: &[TensorSpec], given: &[Tensor]) -> Result<(), RunError> {
    let named: BTreeMap<&str, &TensorSpec> = specs.iter().map(|spec| (spec.name.as_str(), spec)).collect();
    let mut left = named.clone();
    for tensor in given {
        let input = || tensor.name().to_owned();
        let Some(spec) = left.remove(tensor.name()) else {
            if named.contains_key(tensor.name()) {
                return Err(RunError::RepeatedInput { input: input() });
            }
            let known = specs.iter().map(|spec| spec.name.clone()).collect();
            return Err(RunError::UnknownInput { input: input(), known });
        };
        if tensor.datatype() != spec.datatype {
            return Err(RunError::Datatype { input: input(), expected: spec.datatype, got: tensor.datatype() });
        }
        let fits = |(size, wanted): (&usize, &i64)| match usize::try_from(*wanted) {
            Ok(wanted) => *size == wanted,
            Err(_) => *size > 0,
        };
        if tensor.shape().len() != spec.shape.len() || !tensor.shape().iter().zip(&spec.shape).all(fits) {
            let (expected, got) = (spec.shape.clone(), tensor.shape().to_vec());
            return Err(RunError::Shape { input: input(), expected, got });
        }
    }
    match left.keys().next() {
        Some(input) => Err(RunError::MissingInput { input: (*input).to_owned() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
