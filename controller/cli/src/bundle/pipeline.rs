//! From a description's `[pipeline]` to a model inside its pipeline, fitted on the reference sample where that is asked for.

use muster_inference::pipeline::{self, Draft, DraftStep, Fit, FoldedStep, Loaded};
use muster_inference::{GoldenSet, LoadError, TractRuntime};
use muster_shared::bundle::{ModelSignature, TensorSpec};
use muster_shared::pipeline::{ImageOperation, Operation, Pipeline, Step, first_image, outputs_after};
use serde::Deserialize;
use toml::Spanned;

use super::description::Description;
use super::profile;
use crate::failure::Failure;

/// What is done around the model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct PipelineTable {
    /// What callers send.
    inputs: Vec<TensorSpec>,
    /// What callers get, by name; the model's own outputs where none is named.
    #[serde(default)]
    outputs: Vec<String>,
    /// Steps before the model.
    #[serde(default)]
    pre: Vec<Spanned<StepTable>>,
    /// Steps after it.
    #[serde(default)]
    post: Vec<Spanned<StepTable>>,
}

/// One step: `do`, `fit` or `select` says what it does.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct StepTable {
    from: Vec<String>,
    to: String,
    #[serde(rename = "do")]
    operation: Option<Operation>,
    fit: Option<Fit>,
    /// Features of an input by name.
    select: Option<Vec<String>>,
}

impl PipelineTable {
    /// Whether the callers' input `name` holds encoded images.
    pub(super) fn takes_images(&self, name: &str) -> bool {
        let is_image = |step: &StepTable| matches!(step.operation, Some(Operation::Image(_)));
        self.pre.iter().map(Spanned::as_ref).any(|step| is_image(step) && step.from.iter().any(|from| from == name))
    }

    /// The step whose images are watched of the callers' input `name`, if it holds any.
    pub(super) fn image(&self, name: &str) -> Option<&ImageOperation> {
        let steps = self.pre.iter().map(Spanned::as_ref);
        first_image(name, steps.map(|step| (step.from.as_slice(), step.to.as_str(), step.operation.as_ref())))
            .map(|(_, image)| image)
    }
}

/// A model as callers meet it, and the pipeline around it.
pub(super) struct Assembled {
    pub(super) loaded: Loaded,
    pub(super) pipeline: Option<Pipeline>,
}

/// How many steps `pipeline` has, and which of them are carried out inside the model, for people.
pub(super) fn steps_text(pipeline: &Pipeline, folded: &[FoldedStep]) -> String {
    let steps = pipeline.pre.len() + pipeline.post.len();
    let step = |step: &FoldedStep| format!("{} {} {}", step.half, step.number, step.operation);
    let names = folded.iter().map(step).collect::<Vec<_>>().join(", ");
    let names = if names.is_empty() { names } else { format!(" ({names})") };
    format!("{steps} steps, {} folded into the model{names}", folded.len())
}

fn draft(description: &Description, step: &Spanned<StepTable>) -> Result<DraftStep, Failure> {
    let table = step.as_ref();
    let fault = |field: &str, reason: String| description.origin.fault(step.span(), field, reason);
    let draft = match (&table.operation, table.fit, &table.select) {
        (Some(operation), None, None) => Draft::Given(operation.clone()),
        (None, Some(fit), None) => Draft::Fit(fit),
        (None, None, Some(names)) => {
            let [from] = table.from.as_slice() else {
                return Err(fault("pipeline.select", "features are selected from one input".into()));
            };
            let input = description.inputs.iter().map(Spanned::as_ref).find(|input| input.name == *from);
            let features = input.map(|input| input.features.as_slice()).unwrap_or_default();
            let place = |name: &String| {
                let place = features.iter().position(|feature| feature == name);
                place.and_then(|place| u32::try_from(place).ok()).ok_or_else(|| {
                    fault("pipeline.select", format!("[[inputs]] names no feature {name:?} of {from:?}"))
                })
            };
            Draft::Given(Operation::Select { indices: names.iter().map(place).collect::<Result<_, _>>()? })
        }
        _ => return Err(fault("pipeline", "a step has one of do, fit and select".into())),
    };
    Ok(DraftStep { from: table.from.clone(), to: table.to.clone(), draft })
}

fn post_step(description: &Description, step: &Spanned<StepTable>) -> Result<Step, Failure> {
    let DraftStep { from, to, draft } = draft(description, step)?;
    match draft {
        Draft::Given(operation) => Ok(Step { from, to, operation }),
        Draft::Fit(_) => {
            let reason = "the reference sample holds no answers to fit it to; give the numbers with do";
            Err(description.origin.fault(step.span(), "pipeline.post.fit", reason))
        }
    }
}

fn cannot_load(description: &Description, error: LoadError) -> Failure {
    if let LoadError::Pipeline(error) = error {
        return description.origin.whole_fault(error.to_string());
    }
    Failure::input(format!("{} cannot be put into a bundle", description.model.display())).because(error)
}

/// Loads the model as the agent does, inside the pipeline that the description gives it.
///
/// # Errors
/// [`Failure`] of bad input with the runtime's reason, or the step that is wrong.
pub(super) fn assemble(description: &Description, onnx: &[u8], golden: &GoldenSet) -> Result<Assembled, Failure> {
    let load = |signature: &ModelSignature, pipeline: Option<&Pipeline>| {
        pipeline::load(&TractRuntime, onnx, signature, pipeline, golden)
            .map_err(|error| cannot_load(description, error))
    };
    let Some(table) = &description.pipeline else {
        let loaded = load(&ModelSignature { inputs: Vec::new(), outputs: Vec::new() }, None)?;
        return Ok(Assembled { loaded, pipeline: None });
    };
    let drafts = table.pre.iter().map(|step| draft(description, step)).collect::<Result<Vec<_>, _>>()?;
    let post = table.post.iter().map(|step| post_step(description, step)).collect::<Result<Vec<_>, _>>()?;
    let is_fitted = drafts.iter().any(|step| matches!(step.draft, Draft::Fit(_)));
    let sample = match &description.reference {
        Some(reference) if is_fitted => Some(profile::sample_tensors(description, reference, &table.inputs)?),
        Some(_) | None => None,
    };
    let pre = pipeline::fit(&table.inputs, &drafts, sample.as_deref())
        .map_err(|error| description.origin.whole_fault(error.to_string()))?;
    let model = pipeline::inner_signature(&TractRuntime, onnx, &table.inputs, &pre, golden)
        .map_err(|error| cannot_load(description, error))?;
    let outputs = outputs_after(&model, &post, &table.outputs)
        .map_err(|error| description.origin.whole_fault(error.to_string()))?;
    let pipeline = Pipeline { model, pre, post };
    let loaded = load(&ModelSignature { inputs: table.inputs.clone(), outputs }, Some(&pipeline))?;
    Ok(Assembled { loaded, pipeline: Some(pipeline) })
}
