//! What every runtime offers: loading a model and running it.
//!
//! The agent, the golden check and `muster bundle build` know only these traits, so that another runtime can take
//! tract's place. Errors say what was wrong in the words of the model's author, not of the runtime.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_shared::bundle::{DataType, ModelSignature};
use muster_shared::pipeline::{Half, PipelineError};

use crate::images::See;
use crate::tensor::{Tensor, TensorError};

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Shapes to prepare the model for at load, by the name of the input. Inputs not named here get 1 in every
    /// dimension that the model leaves free; a golden example's shapes are the best choice.
    pub sample_shapes: BTreeMap<String, Vec<usize>>,
    /// Longest time that loading, or preparing another shape later, may take.
    pub time_limit: Duration,
    /// How many shapes stay prepared at once, the one from loading included. At least 1.
    pub max_prepared_shapes: usize,
    /// About how many bytes all prepared shapes together may take; each is taken to need as much as the ONNX file. One
    /// shape besides the one from loading is always allowed.
    pub max_prepared_bytes: usize,
    /// What is done to what comes in before the model's inputs get it. A runtime that cannot do it refuses the model.
    pub inputs: Vec<Border>,
    /// What is done to what the model's outputs give before it goes out.
    pub outputs: Vec<Border>,
}

/// What a runtime does at one input or output of a model, as a part of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Border {
    /// The input or output, which is `FP32` in the model.
    pub tensor: String,
    /// Its name outside.
    pub name: String,
    /// The element type outside: of what comes in, which is cast first, or of what goes out, `FP32`.
    pub outside: DataType,
    /// What is done, in this order.
    pub nodes: Vec<BorderNode>,
}

/// Arithmetic in 32-bit floating point that keeps shapes. Lists hold a number for each position of the last dimension, or one for all.
/// NaN stays NaN.
#[derive(Debug, Clone, PartialEq)]
pub enum BorderNode {
    /// Takes these away.
    Subtract(Vec<f32>),
    /// Multiplies by these.
    Multiply(Vec<f32>),
    /// Adds these.
    Add(Vec<f32>),
    /// `exp(x) / Σ exp(x)` over the last dimension.
    Softmax,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            sample_shapes: BTreeMap::new(),
            time_limit: Duration::from_secs(120),
            max_prepared_shapes: 8,
            max_prepared_bytes: 64 * 1024 * 1024,
            inputs: Vec::new(),
            outputs: Vec::new(),
        }
    }
}

/// Runs models of one kind.
pub trait Runtime: Send + Sync {
    /// The runtime's name, as server metadata gives it.
    fn name(&self) -> &'static str;

    /// Reads and prepares the ONNX file `onnx`. Blocks for as long as that takes: call it away from an async executor.
    ///
    /// # Errors
    /// [`LoadError`] when the bytes are not a model that this runtime can run; nothing stays loaded then.
    fn load(&self, onnx: &[u8], options: &LoadOptions) -> Result<Box<dyn Model>, LoadError>;
}

/// A loaded model. Any number of threads may run it at once; no lock is held across a run.
pub trait Model: Send + Sync {
    /// What it takes and gives. A dimension of -1 is chosen by each request.
    fn signature(&self) -> &ModelSignature;

    /// Bytes that the model costs a device: its weights as the runtime keeps them, and one run's intermediate values when they
    /// are most, for the shapes from loading. Found by arithmetic, so it is the same every time.
    fn memory_bytes(&self) -> u64;

    /// Runs the model once. Inputs are found by name, in any order; outputs come in the signature's order. Blocks:
    /// call it away from an async executor. The first run with a new shape takes longer, for the model is prepared for it.
    ///
    /// # Errors
    /// [`RunError`]; [`RunError::is_request_fault`] tells a wrong request from a failing model.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError>;

    /// The same, and shows `see` the images that the model's pipeline decodes, as they are then. Nobody is shown what a run that fails
    /// before did not come to.
    ///
    /// # Errors
    /// Those of [`Model::run`].
    fn run_seen(&self, inputs: &[Tensor], see: See<'_>) -> Result<Vec<Tensor>, RunError> {
        let _ = see;
        self.run(inputs)
    }
}

/// Why a model could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The bytes are not an ONNX model, or only a part of one.
    #[error("this is not a complete ONNX model: {reason}")]
    Malformed {
        /// What could not be read.
        reason: String,
    },
    /// The model uses operators that the runtime does not have.
    #[error("{runtime} cannot run this model: it has no operator {}; export the model without it", operators.join(", "))]
    UnsupportedOperators {
        /// The runtime's name.
        runtime: &'static str,
        /// Their names, each with its domain unless that is ONNX's own.
        operators: Vec<String>,
    },
    /// The pipeline around the model cannot be carried out, or does not fit it.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// An input or output has a type or shape that cannot be served.
    #[error("tensor {tensor:?} of the model cannot be served: {reason}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The runtime refused the model for another reason.
    #[error("{runtime} cannot run this model: {reason}")]
    Refused {
        /// The runtime's name.
        runtime: &'static str,
        /// The runtime's own words.
        reason: String,
    },
    /// The runtime panicked.
    #[error("{runtime} panicked on this model: {reason}")]
    Panicked {
        /// The runtime's name.
        runtime: &'static str,
        /// The panic's message.
        reason: String,
    },
    /// Preparing the model took too long.
    #[error("{runtime} had not prepared this model after {limit_ms} ms")]
    TooSlow {
        /// The runtime's name.
        runtime: &'static str,
        /// The limit, in milliseconds.
        limit_ms: u64,
    },
}

/// Why a model gave no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RunError {
    /// An input of the model was not given.
    #[error("input {input:?} is missing")]
    MissingInput {
        /// The input.
        input: String,
    },
    /// The model has no such input.
    #[error("the model has no input {input:?}; it takes {}", known.join(", "))]
    UnknownInput {
        /// The name given.
        input: String,
        /// The model's inputs.
        known: Vec<String>,
    },
    /// An input was given twice.
    #[error("input {input:?} is given twice")]
    RepeatedInput {
        /// The input.
        input: String,
    },
    /// An input has another element type than the model's.
    #[error("input {input:?} must be {expected}, but {got} was given")]
    Datatype {
        /// The input.
        input: String,
        /// The model's type.
        expected: DataType,
        /// The type given.
        got: DataType,
    },
    /// A text that is not one.
    #[error("input {input:?}, element {element}: the model takes texts, and this is not UTF-8")]
    NotText {
        /// The input.
        input: String,
        /// The element, counted from 0 in row-major order.
        element: usize,
    },
    /// An input has a shape that the model does not take.
    #[error("input {input:?} must have the shape {expected:?} (-1 for any size from 1), but {got:?} was given")]
    Shape {
        /// The input.
        input: String,
        /// The model's shape.
        expected: Vec<i64>,
        /// The shape given.
        got: Vec<usize>,
    },
    /// Two dimensions that the model declares equal are not.
    #[error(
        "the model wants one size for its dimension {dimension:?}, but {first_input:?} has {first} and {second_input:?} has {second}"
    )]
    Dimension {
        /// The dimension's name in the model.
        dimension: String,
        /// The input that has it first.
        first_input: String,
        /// Its size there.
        first: usize,
        /// The input that disagrees.
        second_input: String,
        /// Its size there.
        second: usize,
    },
    /// The model cannot take inputs of these shapes, although its signature would allow them.
    #[error("the model cannot take inputs of these sizes: {reason}")]
    Unpreparable {
        /// The runtime's own words.
        reason: String,
    },
    /// Preparing the model for these shapes took too long.
    #[error("the model was not ready for inputs of these sizes after {limit_ms} ms")]
    TooSlow {
        /// The limit, in milliseconds.
        limit_ms: u64,
    },
    /// A step of the pipeline could not be carried out. Steps are counted from 1.
    #[error("pipeline, {half} step {number} ({operation}): {reason}")]
    Step {
        /// The half it is in.
        half: Half,
        /// Its place there.
        number: usize,
        /// What it does.
        operation: &'static str,
        /// What went wrong.
        reason: String,
    },
    /// What the pipeline gives is no tensor of the model's or the caller's type.
    #[error("what the pipeline's {half} steps give is not usable")]
    Bound {
        /// The half.
        half: Half,
        /// What is wrong with it.
        source: TensorError,
    },
    /// The model does not take these values, a category that it does not know for one.
    #[error("the model does not take these values: {reason}")]
    NotTaken {
        /// Which, in the runtime's words.
        reason: String,
    },
    /// The model failed while it ran.
    #[error("the model failed: {reason}")]
    Failed {
        /// The runtime's own words.
        reason: String,
    },
    /// The runtime panicked while the model ran.
    #[error("the runtime panicked: {reason}")]
    Panicked {
        /// The panic's message.
        reason: String,
    },
    /// The model gave something that is no tensor of its signature.
    #[error("the model's output {output:?} is not usable")]
    Output {
        /// The output.
        output: String,
        /// What is wrong with it.
        source: TensorError,
    },
}

impl RunError {
    /// Whether another request might succeed: the fault lies in what was sent, not in the model.
    #[must_use]
    pub const fn is_request_fault(&self) -> bool {
        match self {
            Self::MissingInput { .. }
            | Self::UnknownInput { .. }
            | Self::RepeatedInput { .. }
            | Self::Datatype { .. }
            | Self::NotText { .. }
            | Self::Shape { .. }
            | Self::Dimension { .. }
            | Self::NotTaken { .. }
            | Self::Unpreparable { .. }
            | Self::Step { half: Half::Pre, .. }
            | Self::Bound { half: Half::Pre, .. } => true,
            Self::Step { half: Half::Post, .. } | Self::Bound { half: Half::Post, .. } => false,
            Self::TooSlow { .. } | Self::Failed { .. } | Self::Panicked { .. } | Self::Output { .. } => false,
        }
    }
}
