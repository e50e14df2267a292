//! Nodes at the border of a model: what is done to what comes in, and to what the model gives.
//!
//! They are wired into the typed graph before tract simplifies it, so that tract can merge them with what stands beside them: what
//! follows a product of matrices becomes a part of it.

use muster_shared::bundle::DataType;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::math::{add, mul, sub};
use tract_onnx::tract_core::ops::nn::{Softmax, SoftmaxKind};
use tract_onnx::tract_core::ops::source::TypedSource;
use tract_onnx::tract_hir::internal::*;

use super::convert;
use super::onnx::{Input, Output};
use crate::runtime::{Border, BorderNode, LoadError, LoadOptions};

/// What is done at inputs and outputs, each by its place among the model's.
#[derive(Debug, Default)]
pub(super) struct Borders {
    inputs: Vec<(usize, Border)>,
    outputs: Vec<(usize, Border)>,
}

impl Borders {
    /// Finds the tensors that `options` name.
    ///
    /// # Errors
    /// [`LoadError::Tensor`] when there is none of the name, or it is not `FP32`.
    pub(super) fn find(inputs: &[Input], outputs: &[Output], options: &LoadOptions) -> Result<Self, LoadError> {
        let find = |border: &Border, place: Option<usize>| match place {
            Some(place) => Ok((place, border.clone())),
            None => Err(LoadError::Tensor {
                tensor: border.tensor.clone(),
                reason: "steps are to be carried out at it, but the model has no such FP32 tensor".into(),
            }),
        };
        let input = |border: &Border| {
            let is_it = |input: &Input| input.name == border.tensor && input.datatype == DataType::Fp32;
            find(border, inputs.iter().position(is_it))
        };
        let output = |border: &Border| {
            let is_it = |output: &Output| {
                output.name == border.tensor && output.datatype.is_none_or(|datatype| datatype == DataType::Fp32)
            };
            find(border, outputs.iter().position(is_it))
        };
        Ok(Self {
            inputs: options.inputs.iter().map(input).collect::<Result<_, _>>()?,
            outputs: options.outputs.iter().map(output).collect::<Result<_, _>>()?,
        })
    }

    /// The model's `inputs` as callers see them.
    pub(super) fn inputs_outside(&self, inputs: &[Input]) -> Vec<Input> {
        let mut inputs = inputs.to_vec();
        for (place, border) in &self.inputs {
            if let Some(input) = inputs.get_mut(*place) {
                (input.name, input.datatype) = (border.name.clone(), border.outside);
            }
        }
        inputs
    }

    /// The model's `outputs` as callers see them.
    pub(super) fn outputs_outside(&self, outputs: &[Output]) -> Vec<Output> {
        let mut outputs = outputs.to_vec();
        for (place, border) in &self.outputs {
            if let Some(output) = outputs.get_mut(*place) {
                output.name.clone_from(&border.name);
            }
        }
        outputs
    }

    /// Wires the nodes into `model`.
    ///
    /// # Errors
    /// When a tensor is not `FP32` after all, or has another number of columns.
    pub(super) fn wire(&self, model: &mut TypedModel) -> TractResult<()> {
        for (place, border) in &self.inputs {
            let source = *model.input_outlets()?.get(*place).context("there is no such input")?;
            let readers = model.outlet_successors(source).to_vec();
            let fact = convert::to_tract_type(border.outside).fact(model.outlet_fact(source)?.shape.clone());
            model.node_mut(source.node).op = Box::new(TypedSource::new(fact.clone()));
            model.set_outlet_fact(source, fact)?;
            let inner = wire_nodes(model, source, border)?;
            for reader in readers {
                model.add_edge(inner, reader)?;
            }
            for output in model.outputs.iter_mut().filter(|output| **output == source) {
                *output = inner;
            }
        }
        for (place, border) in &self.outputs {
            let given = *model.output_outlets()?.get(*place).context("there is no such output")?;
            let outer = wire_nodes(model, given, border)?;
            if let Some(output) = model.outputs.get_mut(*place) {
                *output = outer;
            }
        }
        Ok(())
    }
}

/// Wires the nodes of `border` behind `wire` and gives what the last of them gives.
fn wire_nodes(model: &mut TypedModel, mut wire: OutletId, border: &Border) -> TractResult<OutletId> {
    let name =
        |model: &TypedModel, what: &str| model.unique_name(format!("{}.border.{what}", border.tensor)).into_owned();
    if border.outside != DataType::Fp32 {
        wire = model.wire_node(name(model, "cast"), cast(f32::datum_type()), &[wire])?[0];
    }
    let fact = model.outlet_fact(wire)?;
    ensure!(fact.datum_type == f32::datum_type(), "{:?} has the element type {:?}", border.tensor, fact.datum_type);
    let rank = fact.rank();
    for node in &border.nodes {
        let (what, operator, numbers) = match node {
            BorderNode::Subtract(numbers) => ("subtract", sub(), numbers),
            BorderNode::Multiply(numbers) => ("multiply", mul(), numbers),
            BorderNode::Add(numbers) => ("add", add(), numbers),
            BorderNode::Softmax => {
                let axes = tvec!(rank.checked_sub(1).context("a softmax takes at least one dimension")?);
                wire =
                    model.wire_node(name(model, "softmax"), Softmax::new(axes, None, SoftmaxKind::Softmax), &[wire])?
                        [0];
                continue;
            }
        };
        let mut shape = vec![1; rank];
        if let Some(columns) = shape.last_mut() {
            *columns = numbers.len();
        }
        let constant = model.add_const(name(model, "numbers"), Tensor::from_shape(&shape, numbers)?)?;
        let columns = model.outlet_fact(wire)?.shape.to_tvec();
        wire = model.wire_node(name(model, what), operator, &[wire, constant])?[0];
        ensure!(model.outlet_fact(wire)?.shape.to_tvec() == columns, "{:?} has other columns", border.tensor);
    }
    Ok(wire)
}
