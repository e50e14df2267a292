//! From an ONNX file to a model that runs.

use std::sync::Arc;
use std::time::Duration;

use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::limits::bounded_text;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::{Framework, TractError};

use super::border::Borders;
use super::model::TractModel;
use super::onnx::{Described, Dimension, Input, Output, describe};
use super::plan::{Graph, OutputFact, Plan};
use super::prepared::{Prepared, Unprepared};
use super::{NAME, convert, ml};
use crate::guard::{self, Stopped};
use crate::runtime::{LoadError, LoadOptions};

/// Sizes tried for free dimensions other than the batch when 1 is too small for the model, as it is for most images.
const SIZES: [usize; 8] = [1, 2, 8, 16, 32, 64, 128, 224];

/// A model that has been prepared for one set of shapes.
struct Loaded {
    graph: Graph,
    shapes: Vec<Vec<usize>>,
    plan: Plan,
    memory_bytes: u64,
    outputs: Vec<OutputFact>,
    /// The outputs for other sizes of every free dimension, where that was needed and possible.
    others: Option<Vec<OutputFact>>,
}

/// A plan for one set of shapes with what is known of it.
struct Attempt {
    plan: Plan,
    outputs: Vec<OutputFact>,
    memory_bytes: u64,
}

/// Why a model could not be prepared for any shape.
enum Failed {
    Refused(String),
    Stopped(Stopped),
}

pub(super) fn load(onnx: &[u8], options: &LoadOptions) -> Result<TractModel, LoadError> {
    let mut framework = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
    ml::register(&mut framework);
    let Described { proto, inputs: own_inputs, outputs, missing_operators } = describe(&framework, onnx)?;
    let borders = Borders::find(&own_inputs, &outputs, options)?;
    let (inputs, outputs) = (borders.inputs_outside(&own_inputs), borders.outputs_outside(&outputs));
    let work = {
        let candidates = candidates(&inputs, options);
        let outputs = outputs.clone();
        move || prepare_first(&framework, proto, own_inputs, &outputs, borders, &candidates)
    };
    let loaded = guard::on_thread(options.time_limit, work).map_err(Failed::Stopped).and_then(|result| result);
    let loaded = loaded.map_err(|failed| match failed {
        // Whatever tract stumbled over, this is what its author has to change.
        _ if !missing_operators.is_empty() => {
            LoadError::UnsupportedOperators { runtime: NAME, operators: missing_operators }
        }
        Failed::Refused(reason) => LoadError::Refused { runtime: NAME, reason },
        Failed::Stopped(Stopped::Panicked(reason)) => LoadError::Panicked { runtime: NAME, reason },
        Failed::Stopped(Stopped::NoThread(reason)) => LoadError::Refused { runtime: NAME, reason },
        Failed::Stopped(Stopped::TooSlow) => {
            LoadError::TooSlow { runtime: NAME, limit_ms: milliseconds(options.time_limit) }
        }
    })?;
    let signature = ModelSignature {
        inputs: inputs
            .iter()
            .map(|input| TensorSpec {
                name: input.name.clone(),
                datatype: input.datatype,
                shape: input.dimensions.iter().map(Dimension::declared).collect(),
            })
            .collect(),
        outputs: output_specs(&inputs, &outputs, &loaded)?,
    };
    let by_bytes = (options.max_prepared_bytes / onnx.len().max(1)).saturating_sub(1);
    let max_others = by_bytes.min(options.max_prepared_shapes.saturating_sub(1));
    let has_free = inputs.iter().any(|input| input.dimensions.iter().any(|d| matches!(d, Dimension::Free(_))));
    // The graph that further shapes are prepared from holds the weights as the file does.
    let graph_bytes = if has_free { onnx.len() as u64 } else { 0 };
    Ok(TractModel {
        signature,
        inputs,
        // Without a free dimension there is nothing left to prepare, and the graph only takes memory.
        source: has_free.then(|| Arc::new(loaded.graph)),
        prepared: Prepared::new(loaded.shapes, loaded.plan, max_others),
        time_limit: options.time_limit,
        memory_bytes: loaded.memory_bytes.saturating_add(graph_bytes),
    })
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// tract's words for `error`, bounded.
pub(super) fn words(error: &TractError) -> String {
    bounded_text(&format!("{error:#}"))
}

/// Shapes to try in turn: the caller's, if they fit, then 1 in every free dimension, then larger ones.
fn candidates(inputs: &[Input], options: &LoadOptions) -> Vec<Vec<Vec<usize>>> {
    let sized = |free: usize| -> Vec<Vec<usize>> {
        let shape = |input: &Input| {
            let size = |(at, dimension): (usize, &Dimension)| match dimension {
                Dimension::Fixed(size) => *size,
                Dimension::Free(_) if at == 0 => 1,
                Dimension::Free(_) => free,
            };
            input.dimensions.iter().enumerate().map(size).collect()
        };
        inputs.iter().map(shape).collect()
    };
    let mut candidates: Vec<Vec<Vec<usize>>> = Vec::new();
    if !options.sample_shapes.is_empty() {
        let sample = inputs.iter().zip(sized(1)).map(|(input, ones)| {
            options.sample_shapes.get(&input.name).filter(|shape| input.takes(shape)).cloned().unwrap_or(ones)
        });
        candidates.push(sample.collect());
    }
    candidates.extend(SIZES.map(sized));
    candidates.dedup();
    candidates
}

fn prepare_first(
    framework: &tract_onnx::Onnx,
    proto: ModelProto,
    inputs: Vec<Input>,
    outputs: &[Output],
    borders: Borders,
    candidates: &[Vec<Vec<usize>>],
) -> Result<Loaded, Failed> {
    let model = framework.model_for_proto_model(&proto).map_err(|error| Failed::Refused(words(&error)))?;
    drop(proto);
    if (model.inputs.len(), model.outputs.len()) != (inputs.len(), outputs.len()) {
        return Err(Failed::Refused("an initializer or output is named twice".into()));
    }
    let graph = Graph { model, inputs, borders };
    let mut first_error = None;
    for shapes in candidates {
        match attempt(&graph, shapes) {
            Ok(Attempt { plan, outputs: facts, memory_bytes }) => {
                let others = others(&graph, outputs, shapes);
                return Ok(Loaded { graph, shapes: shapes.clone(), plan, memory_bytes, outputs: facts, others });
            }
            Err(error) => _ = first_error.get_or_insert(error),
        }
    }
    Err(first_error.unwrap_or_else(|| Failed::Refused("there is no shape to prepare it for".into())))
}

fn attempt(graph: &Graph, shapes: &[Vec<usize>]) -> Result<Attempt, Failed> {
    let prepare = || {
        let plan = Plan::prepare(graph, shapes)?;
        let (outputs, memory_bytes) = (plan.outputs()?, plan.memory_bytes()?);
        Ok(Attempt { plan, outputs, memory_bytes })
    };
    // A panic over one size says nothing about the next.
    let prepared = guard::here(prepare).map_err(Failed::Stopped)?;
    let prepared = prepared.map_err(|error: TractError| Failed::Refused(words(&error)))?;
    // Where an image is smaller than a filter, tract goes on with nothing at all.
    if prepared.outputs.iter().any(|output| output.sizes.contains(&Some(0))) {
        return Err(Failed::Refused(format!("for inputs of the shapes {shapes:?} it gives nothing")));
    }
    Ok(prepared)
}

/// The outputs when every free dimension is one larger, if the declared ones leave a size open or look as if an exporter had
/// fixed the batch by mistake.
fn others(graph: &Graph, outputs: &[Output], shapes: &[Vec<usize>]) -> Option<Vec<OutputFact>> {
    let inputs = &graph.inputs;
    let free_batch = inputs.iter().any(|input| matches!(input.dimensions.first(), Some(Dimension::Free(_))));
    let in_doubt = outputs.iter().any(|output| {
        output.dimensions.as_ref().is_none_or(|dimensions| {
            dimensions.contains(&Dimension::Free(None))
                || (free_batch && matches!(dimensions.first(), Some(Dimension::Fixed(_))))
        })
    });
    let mut larger = shapes.to_vec();
    for (input, shape) in inputs.iter().zip(&mut larger) {
        for (dimension, size) in input.dimensions.iter().zip(shape) {
            *size += usize::from(matches!(dimension, Dimension::Free(_)));
        }
    }
    (in_doubt && larger != shapes).then(|| attempt(graph, &larger).ok().map(|other| other.outputs)).flatten()
}

/// The signature's outputs: what the model declares where tract agrees, otherwise what tract found.
fn output_specs(inputs: &[Input], outputs: &[Output], loaded: &Loaded) -> Result<Vec<TensorSpec>, LoadError> {
    let varies = inputs.iter().any(|input| input.dimensions.iter().any(|d| matches!(d, Dimension::Free(_))));
    let spec = |(at, (output, fact)): (usize, (&Output, &OutputFact))| {
        let found = convert::datatype_of_tract(fact.datum);
        let datatype: Option<DataType> = output.datatype.filter(|_| found.is_some()).or(found);
        let datatype = datatype.ok_or_else(|| LoadError::Tensor {
            tensor: output.name.clone(),
            reason: format!("tract gives it the element type {:?}, which is not supported", fact.datum),
        })?;
        let declared = output.dimensions.as_deref().filter(|declared| declared.len() == fact.sizes.len());
        let other = loaded.others.as_ref().and_then(|others| others.get(at));
        let same = |axis: usize, size| other.map(|other| other.sizes.get(axis) == Some(size));
        let shape = fact.sizes.iter().enumerate().map(|(axis, size)| {
            let stays = match declared.and_then(|declared| declared.get(axis)) {
                _ if !varies => true,
                Some(Dimension::Fixed(fixed)) => *size == Some(*fixed) && same(axis, size) != Some(false),
                Some(Dimension::Free(Some(_))) => false,
                Some(Dimension::Free(None)) | None => same(axis, size) == Some(true),
            };
            size.filter(|_| stays).and_then(|size| i64::try_from(size).ok()).unwrap_or(-1)
        });
        Ok(TensorSpec { name: output.name.clone(), datatype, shape: shape.collect() })
    };
    outputs.iter().zip(&loaded.outputs).enumerate().map(spec).collect()
}

/// Prepares `graph` for further shapes.
pub(super) fn prepare_more(
    graph: &Arc<Graph>,
    shapes: Vec<Vec<usize>>,
    time_limit: Duration,
) -> Result<Plan, Unprepared> {
    let graph = Arc::clone(graph);
    guard::on_thread(time_limit, move || Plan::prepare(&graph, &shapes))
        .map_err(Unprepared::Stopped)?
        .map_err(|error| Unprepared::Refused(words(&error)))
}
