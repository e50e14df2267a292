//! A loaded model: checks a request against its signature, finds the plan for its shapes and runs it.

use std::sync::Arc;
use std::time::Duration;

use muster_shared::bundle::{DataType, ModelSignature};

use super::convert;
use super::load::{milliseconds, prepare_more, words};
use super::ml::NotTaken;
use super::onnx::{Dimension, Input};
use super::plan::Graph;
use super::prepared::{Prepared, Unprepared};
use crate::guard::{self, Stopped};
use crate::runtime::{Model, RunError};
use crate::tensor::Tensor;

#[derive(Debug)]
pub(super) struct TractModel {
    pub(super) signature: ModelSignature,
    /// What comes in, by the names of the model's inputs.
    pub(super) inputs: Vec<Input>,
    /// What further shapes are prepared from; `None` when the model has only one.
    pub(super) source: Option<Arc<Graph>>,
    pub(super) prepared: Prepared,
    pub(super) time_limit: Duration,
    pub(super) memory_bytes: u64,
}

impl Model for TractModel {
    fn signature(&self) -> &ModelSignature {
        &self.signature
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        let inputs = in_order(&self.inputs, inputs)?;
        let found = self.prepared.find(inputs.iter().map(|tensor| tensor.shape()), |shapes| match &self.source {
            Some(source) => prepare_more(source, shapes, self.time_limit),
            None => Err(Unprepared::Refused("the model takes one shape only".into())),
        });
        let plan = found.plan().map_err(|unprepared| match unprepared {
            Unprepared::Refused(reason) | Unprepared::Stopped(Stopped::Panicked(reason)) => {
                RunError::Unpreparable { reason }
            }
            Unprepared::Stopped(Stopped::TooSlow) => RunError::TooSlow { limit_ms: milliseconds(self.time_limit) },
            Unprepared::Stopped(Stopped::NoThread(reason)) => RunError::Failed { reason },
        })?;
        let outputs = &self.signature.outputs;
        let datatypes: Vec<DataType> = outputs.iter().map(|output| output.datatype).collect();
        let values = match guard::here(|| plan.run(&inputs, &datatypes)) {
            Ok(Ok(values)) => values,
            Ok(Err(error)) if error.chain().any(|cause| cause.is::<NotTaken>()) => {
                return Err(RunError::NotTaken { reason: words(&error) });
            }
            Ok(Err(error)) => return Err(RunError::Failed { reason: words(&error) }),
            Err(Stopped::Panicked(reason) | Stopped::NoThread(reason)) => return Err(RunError::Panicked { reason }),
            Err(Stopped::TooSlow) => return Err(RunError::TooSlow { limit_ms: milliseconds(self.time_limit) }),
        };
        let name = |(output, value): (&muster_shared::bundle::TensorSpec, (Vec<usize>, Vec<u8>))| {
            convert::named(&output.name, output.datatype, value)
                .map_err(|source| RunError::Output { output: output.name.clone(), source })
        };
        outputs.iter().zip(values).map(name).collect()
    }
}

/// The given tensors in the order of the model's `inputs`, once they fit.
fn in_order<'a>(inputs: &[Input], given: &'a [Tensor]) -> Result<Vec<&'a Tensor>, RunError> {
    for (at, tensor) in given.iter().enumerate() {
        let input = || tensor.name().to_owned();
        if !inputs.iter().any(|input| input.name == tensor.name()) {
            let known = inputs.iter().map(|input| input.name.clone()).collect();
            return Err(RunError::UnknownInput { input: input(), known });
        }
        if given[..at].iter().any(|earlier| earlier.name() == tensor.name()) {
            return Err(RunError::RepeatedInput { input: input() });
        }
    }
    // Names of free dimensions with the size they have in this request, and the input that said so.
    let mut sizes: Vec<(&str, usize, &Input)> = Vec::new();
    let mut ordered = Vec::with_capacity(inputs.len());
    for input in inputs {
        let tensor = given
            .iter()
            .find(|tensor| tensor.name() == input.name)
            .ok_or_else(|| RunError::MissingInput { input: input.name.clone() })?;
        if tensor.datatype() != input.datatype {
            let (expected, got) = (input.datatype, tensor.datatype());
            return Err(RunError::Datatype { input: input.name.clone(), expected, got });
        }
        if let Some(element) = tensor.first_not_text() {
            return Err(RunError::NotText { input: input.name.clone(), element });
        }
        if !input.takes(tensor.shape()) {
            let expected = input.dimensions.iter().map(Dimension::declared).collect();
            return Err(RunError::Shape { input: input.name.clone(), expected, got: tensor.shape().to_vec() });
        }
        for (dimension, size) in input.dimensions.iter().zip(tensor.shape()) {
            let Dimension::Free(Some(name)) = dimension else { continue };
            match sizes.iter().find(|(known, _, _)| known == name) {
                Some((_, first, _)) if first == size => {}
                Some((_, first, first_input)) => {
                    return Err(RunError::Dimension {
                        dimension: name.clone(),
                        first_input: first_input.name.clone(),
                        first: *first,
                        second_input: input.name.clone(),
                        second: *size,
                    });
                }
                None => sizes.push((name, *size, input)),
            }
        }
        ordered.push(tensor);
    }
    Ok(ordered)
}
