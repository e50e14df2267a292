//! A model prepared for inputs of concrete shapes.

use std::sync::{Arc, Mutex, PoisonError};

use muster_shared::bundle::DataType;
use tract_onnx::prelude::{
    DatumType, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, IntoTValue, TDim, TVec, TractResult,
    TypedNode, TypedRunnableModel, TypedSimpleState,
};
use tract_onnx::tract_core::ops::konst::Const;

use super::border::Borders;
use super::convert;
use super::ml::MlOp;
use super::onnx::Input;
use crate::tensor::Tensor;

/// Run states kept for the next runs; more runs than this at once make their own.
const MAX_IDLE: usize = 8;

/// A model as the file has it, and what is done at its border.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) model: InferenceModel,
    /// The model's own inputs.
    pub(super) inputs: Vec<Input>,
    pub(super) borders: Borders,
}

/// A plan of tract's.
#[derive(Debug)]
pub(super) struct Plan {
    runnable: Arc<TypedRunnableModel>,
    weights_bytes: u64,
    /// States of earlier runs. Empty for ever when an operator keeps something between runs, as a recurrent one does.
    idle: Mutex<Vec<TypedSimpleState>>,
}

/// What tract knows of an output of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OutputFact {
    pub(super) datum: DatumType,
    /// Sizes; `None` for one that depends on the values.
    pub(super) sizes: Vec<Option<usize>>,
}

fn is_constant(node: &TypedNode) -> bool {
    node.op_is::<Const>()
}

fn bytes(size: &TDim) -> u64 {
    size.as_i64().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default()
}

impl Plan {
    /// Prepares `graph` for inputs of `shapes`.
    pub(super) fn prepare(graph: &Graph, shapes: &[Vec<usize>]) -> TractResult<Self> {
        let mut model = graph.model.clone();
        for (at, (input, shape)) in graph.inputs.iter().zip(shapes).enumerate() {
            let datum = convert::to_tract_type(input.datatype);
            model.set_input_fact(at, InferenceFact::dt_shape(datum, shape.as_slice()))?;
        }
        let mut model = model.into_typed()?;
        graph.borders.wire(&mut model)?;
        let mut model = model.into_decluttered()?;
        // Counted now: optimising moves weights into operators, where nothing can look.
        let weights = model.nodes().iter().filter(|node| is_constant(node)).flat_map(|node| &node.outputs);
        let weights_bytes = weights.map(|outlet| bytes(&outlet.fact.mem_size())).fold(0, u64::saturating_add);
        let operators = model.nodes().iter().filter_map(|node| node.op_as::<MlOp>()).map(|op| op.memory_bytes() as u64);
        let weights_bytes = operators.fold(weights_bytes, u64::saturating_add);
        model.optimize()?;
        Ok(Self { runnable: model.into_runnable()?, weights_bytes, idle: Mutex::default() })
    }

    /// The outputs' types and sizes, in the model's order.
    pub(super) fn outputs(&self) -> TractResult<Vec<OutputFact>> {
        let model = self.runnable.model();
        let fact = |at: usize| {
            let fact = model.output_fact(at)?;
            let sizes =
                fact.shape.iter().map(|size| size.as_i64().and_then(|size| usize::try_from(size).ok())).collect();
            Ok(OutputFact { datum: fact.datum_type, sizes })
        };
        (0..model.outputs.len()).map(fact).collect()
    }

    /// Bytes of the weights, and of one run's intermediate values when they are most. What depends on the values counts nothing.
    pub(super) fn memory_bytes(&self) -> TractResult<u64> {
        let model = self.runnable.model();
        let steps = model.eval_tmp_memory_usage(&model.eval_order()?, |node| !is_constant(node))?;
        let run = steps.iter().map(|(_, size)| bytes(size)).max().unwrap_or_default();
        Ok(self.weights_bytes.saturating_add(run))
    }

    /// Runs the model on `inputs`, which are in the model's order, and gives each output's shape and bytes as `outputs` wants it.
    pub(super) fn run(&self, inputs: &[&Tensor], outputs: &[DataType]) -> TractResult<Vec<(Vec<usize>, Vec<u8>)>> {
        let inputs: TVec<_> =
            inputs.iter().map(|tensor| Ok(convert::to_tract(tensor)?.into_tvalue())).collect::<TractResult<_>>()?;
        let idle = self.idle().pop();
        let mut state = match idle {
            Some(state) => state,
            None => self.runnable.spawn()?,
        };
        // A state is lost when the run fails or panics: what it holds then is unknown.
        let values = state.run(inputs)?;
        if state.op_states.iter().all(Option::is_none) {
            let mut idle = self.idle();
            if idle.len() < MAX_IDLE {
                idle.push(state);
            }
        }
        values.iter().zip(outputs).map(|(value, datatype)| convert::from_tract(value, *datatype)).collect()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<TypedSimpleState>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
