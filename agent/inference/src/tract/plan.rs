//! A model prepared for inputs of concrete shapes.

use std::sync::{Arc, Mutex, PoisonError};

use muster_shared::bundle::DataType;
use tract_onnx::prelude::{
    DatumType, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, IntoTValue, TVec, TractResult,
    TypedRunnableModel, TypedSimpleState,
};

use super::convert;
use super::onnx::Input;
use crate::tensor::Tensor;

/// Run states kept for the next runs; more runs than this at once make their own.
const MAX_IDLE: usize = 8;

/// A plan of tract's.
#[derive(Debug)]
pub(super) struct Plan {
    runnable: Arc<TypedRunnableModel>,
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

impl Plan {
    /// Prepares `model` for `inputs` of `shapes`.
    pub(super) fn prepare(model: &InferenceModel, inputs: &[Input], shapes: &[Vec<usize>]) -> TractResult<Self> {
        let mut model = model.clone();
        for (at, (input, shape)) in inputs.iter().zip(shapes).enumerate() {
            let datum = convert::to_tract_type(input.datatype);
            model.set_input_fact(at, InferenceFact::dt_shape(datum, shape.as_slice()))?;
        }
        Ok(Self { runnable: model.into_optimized()?.into_runnable()?, idle: Mutex::default() })
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
