//! A node's attributes, with errors that name them.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{NodeProto, TensorProto};
use tract_onnx::tract_hir::internal::*;

/// Outputs, classes, targets or categories that one operator may have.
pub(super) const MAX_COLUMNS: usize = 65_536;

/// The attributes of one node.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a> {
    context: &'a ParsingContext<'a>,
    pub(super) node: &'a NodeProto,
}

/// The numbers of an attribute that exists for both precisions.
pub(super) struct Numbers {
    pub(super) values: Vec<f64>,
    /// Whether they were given as doubles.
    pub(super) is_double: bool,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(context: &'a ParsingContext<'a>, node: &'a NodeProto) -> Self {
        Self { context, node }
    }

    /// A list of floats; empty when it is absent.
    pub(super) fn floats(&self, name: &str) -> TractResult<&'a [f32]> {
        Ok(self.node.get_attr_opt_slice(name)?.unwrap_or_default())
    }

    /// A list of integers; empty when it is absent.
    pub(super) fn ints(&self, name: &str) -> TractResult<&'a [i64]> {
        Ok(self.node.get_attr_opt_slice(name)?.unwrap_or_default())
    }

    /// A list of texts; empty when it is absent.
    pub(super) fn texts(&self, name: &str) -> TractResult<Vec<String>> {
        Ok(self.node.get_attr_opt_vec(name)?.unwrap_or_default())
    }

    pub(super) fn int(&self, name: &str, default: i64) -> TractResult<i64> {
        Ok(self.node.get_attr_opt(name)?.unwrap_or(default))
    }

    pub(super) fn float(&self, name: &str, default: f32) -> TractResult<f32> {
        Ok(self.node.get_attr_opt(name)?.unwrap_or(default))
    }

    pub(super) fn text(&self, name: &str, default: &'a str) -> TractResult<&'a str> {
        Ok(self.node.get_attr_opt(name)?.unwrap_or(default))
    }

    /// A tensor; `None` when it is absent or, as some exporters write it, without a type.
    pub(super) fn tensor(&self, name: &str) -> TractResult<Option<Tensor>> {
        let Some(proto) = self.node.get_attr_opt::<&TensorProto>(name)?.filter(|proto| proto.data_type != 0) else {
            return Ok(None);
        };
        // Checked here, for tract makes a panic of it.
        let elements = proto.dims.iter().try_fold(1_i64, |product, size| product.checked_mul(*size));
        ensure!(
            elements.is_some_and(|count| (0..=1 << 31).contains(&count)),
            "attribute '{name}': a tensor cannot have the shape {:?}",
            proto.dims
        );
        self.context.load_tensor(proto).map(Some).with_context(|| format!("attribute '{name}'"))
    }

    /// The floats `name`, or else the tensor `tensor`.
    pub(super) fn numbers(&self, name: &str, tensor: &str) -> TractResult<Numbers> {
        let floats = self.floats(name)?;
        let given = if floats.is_empty() { self.tensor(tensor)? } else { None };
        let Some(given) = given else {
            return Ok(Numbers { values: floats.iter().map(|value| f64::from(*value)).collect(), is_double: false });
        };
        let is_double = given.datum_type() == f64::datum_type();
        let values = given.cast_to::<f64>()?;
        Ok(Numbers { values: values.try_as_plain_ram()?.as_slice()?.to_vec(), is_double })
    }

    /// Checks that a list has as many elements as it must.
    pub(super) fn expect_length(&self, name: &str, got: usize, expected: usize) -> TractResult<()> {
        ensure!(got == expected, "attribute '{name}' has {got} elements where {expected} are needed");
        Ok(())
    }

    /// A number of outputs, classes or the like.
    pub(super) fn columns(&self, what: &str, count: usize) -> TractResult<usize> {
        ensure!((1..=MAX_COLUMNS).contains(&count), "it has {count} {what}; 1 to {MAX_COLUMNS} are possible");
        Ok(count)
    }
}

/// `number` as an index.
pub(super) fn index(name: &str, number: i64) -> TractResult<usize> {
    usize::try_from(number).map_err(|_| format_err!("attribute '{name}': {number} is no index"))
}
