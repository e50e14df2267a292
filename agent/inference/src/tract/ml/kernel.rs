//! What an operator is for tract: shapes and types of its outputs, and how they are computed.

use std::fmt::Debug;
use std::sync::Arc;

use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::DOMAIN;

/// The element type and the shape of an input or output.
pub(super) type Form = (DatumType, TVec<TDim>);

/// One operator with its attributes.
pub(super) trait Kernel: Debug + Send + Sync + 'static {
    /// How many inputs it takes; `None` for any number from 1.
    fn inputs(&self) -> Option<usize> {
        Some(1)
    }

    /// The outputs for inputs of these forms.
    ///
    /// # Errors
    /// When it cannot take such inputs.
    fn outputs(&self, inputs: &[Form]) -> TractResult<Vec<Form>>;

    /// Computes the outputs.
    ///
    /// # Errors
    /// When the values of the inputs are none that it takes.
    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>>;

    /// About how many bytes its attributes take.
    fn memory_bytes(&self) -> usize {
        0
    }
}

/// A kernel as an operator of tract's.
#[derive(Debug, Clone)]
pub(in crate::tract) struct MlOp {
    name: StaticName,
    kernel: Arc<dyn Kernel>,
    /// Outputs that the node has; they may be fewer than the kernel's.
    outputs: usize,
}

impl PartialEq for MlOp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kernel, &other.kernel)
    }
}

impl Eq for MlOp {}

/// What building an operator gives.
pub(super) type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// Makes an operator of `kernel`, which computes `outputs` outputs, for `node`.
pub(super) fn operator(node: &NodeProto, outputs: usize, kernel: impl Kernel) -> Built {
    // tract's registry has no domains.
    ensure!(node.domain == DOMAIN, "{} is known as an operator of {DOMAIN} only", node.op_type);
    ensure!(
        (1..=outputs).contains(&node.output.len()) && node.output.iter().all(|name| !name.is_empty()),
        "it must have {outputs} outputs, each with a name"
    );
    let operator = MlOp { name: node.op_type.clone().into(), kernel: Arc::new(kernel), outputs: node.output.len() };
    Ok((expand(operator), Vec::new()))
}

impl MlOp {
    /// About how many bytes its attributes take.
    pub(in crate::tract) fn memory_bytes(&self) -> usize {
        self.kernel.memory_bytes()
    }

    fn forms(&self, inputs: &[Form]) -> TractResult<Vec<Form>> {
        let mut forms = self.kernel.outputs(inputs)?;
        forms.truncate(self.outputs);
        Ok(forms)
    }
}

impl Expansion for MlOp {
    fn name(&self) -> StaticName {
        self.name.clone()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.outputs)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        match self.kernel.inputs() {
            Some(expected) => check_input_arity(inputs, expected)?,
            None => ensure!(!inputs.is_empty(), "it has no input"),
        }
        check_output_arity(outputs, self.outputs)?;
        solver.given_all(inputs.iter().map(|input| &input.shape), move |solver, shapes| {
            solver.given_all(inputs.iter().map(|input| &input.datum_type), move |solver, types| {
                let given: Vec<Form> = types.into_iter().zip(shapes.iter().cloned()).collect();
                for (output, (datum, shape)) in outputs.iter().zip(self.forms(&given)?) {
                    solver.equals(&output.datum_type, datum)?;
                    solver.equals(&output.shape, shape)?;
                }
                Ok(())
            })
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for MlOp {
    fn name(&self) -> StaticName {
        self.name.clone()
    }

    op_as_typed_op!();
}

impl EvalOp for MlOp {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let outputs = self.kernel.run(&inputs)?;
        Ok(outputs.into_iter().take(self.outputs).map(IntoTValue::into_tvalue).collect())
    }
}

impl TypedOp for MlOp {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let given: Vec<Form> = inputs.iter().map(|fact| (fact.datum_type, fact.shape.to_tvec())).collect();
        Ok(self.forms(&given)?.into_iter().map(|(datum, shape)| datum.fact(shape)).collect())
    }

    as_op!();
}

/// Rows and columns of an input: a single row when it has one dimension, as onnxruntime takes it.
pub(super) fn table(shape: &[TDim]) -> TractResult<(TDim, usize)> {
    let (rows, columns) = match shape {
        [columns] => (1.to_dim(), columns),
        [rows, columns] => (rows.clone(), columns),
        _ => bail!("it takes rows of features, not an input of shape {shape:?}"),
    };
    Ok((rows, columns.to_usize()?))
}

/// Rows and columns of a tensor that [`table`] took.
pub(super) fn sizes(tensor: &Tensor) -> (usize, usize) {
    match tensor.shape() {
        [columns] => (1, *columns),
        [rows, columns] => (*rows, *columns),
        _ => (0, 0),
    }
}

/// Whether an input holds numbers.
pub(super) fn expect_numbers(datum: DatumType) -> TractResult<()> {
    ensure!(datum.is_number() || datum == bool::datum_type() || datum.is_tdim(), "it takes numbers, not {datum:?}");
    Ok(())
}

/// A tensor of `rows` × `columns`.
pub(super) fn matrix<T: Datum + Copy>(rows: usize, columns: usize, values: &[T]) -> TractResult<Tensor> {
    Tensor::from_shape(&[rows, columns], values)
}

/// A value of an input that a model does not take: the request is wrong, not the model.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(in crate::tract) struct NotTaken(pub(super) String);
