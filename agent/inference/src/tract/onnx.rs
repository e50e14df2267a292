//! What an ONNX file says of its model, before tract works on it.
//!
//! tract takes dimension names for symbols and refuses graphs in which they do not agree, which exporters leave in
//! intermediate values; and it parses them with a recursive parser. Since every shape is made concrete later, all
//! names are taken out here, after they have been noted for the signature.

use std::collections::BTreeSet;

use muster_shared::bundle::DataType;
use muster_shared::limits::bounded_text;
use tract_onnx::Onnx;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as DimensionValue;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, type_proto};
use tract_onnx::prelude::Framework;

use super::convert::datatype_of_onnx;
use super::ml;
use crate::guard;
use crate::runtime::LoadError;
use crate::tensor::MAX_RANK;

/// One dimension as the model declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Dimension {
    /// Always this size, at least 1.
    Fixed(usize),
    /// Chosen by each request, under this name if it has one.
    Free(Option<String>),
}

impl Dimension {
    /// The dimension as a signature has it.
    pub(super) fn declared(&self) -> i64 {
        match self {
            Self::Fixed(size) => i64::try_from(*size).unwrap_or(-1),
            Self::Free(_) => -1,
        }
    }
}

/// One input as the model declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Input {
    pub(super) name: String,
    pub(super) datatype: DataType,
    pub(super) dimensions: Vec<Dimension>,
}

impl Input {
    /// Whether a tensor of `shape` can be this input, as far as its own dimensions tell.
    pub(super) fn takes(&self, shape: &[usize]) -> bool {
        self.dimensions.len() == shape.len()
            && self.dimensions.iter().zip(shape).all(|(dimension, size)| match dimension {
                Dimension::Fixed(fixed) => fixed == size,
                Dimension::Free(_) => *size > 0,
            })
    }
}

/// One output as the model declares it; tract may find out what is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) datatype: Option<DataType>,
    pub(super) dimensions: Option<Vec<Dimension>>,
}

/// A model read, but not yet understood by tract.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) proto: ModelProto,
    pub(super) inputs: Vec<Input>,
    pub(super) outputs: Vec<Output>,
    /// Operators that tract does not have, each with its domain unless that is ONNX's own.
    pub(super) missing_operators: Vec<String>,
}

/// Reads the file `onnx`.
///
/// # Errors
/// [`LoadError::Malformed`] when it is no complete model, [`LoadError::Tensor`] when an input or output cannot be served.
pub(super) fn describe(framework: &Onnx, onnx: &[u8]) -> Result<Described, LoadError> {
    let malformed = |reason: String| LoadError::Malformed { reason: bounded_text(&reason) };
    let decoded = guard::here(|| framework.proto_model_for_read(&mut &*onnx));
    let mut proto = match decoded {
        Ok(Ok(proto)) => proto,
        Ok(Err(error)) => return Err(malformed(error.root_cause().to_string())),
        Err(stopped) => return Err(malformed(format!("{stopped:?}"))),
    };
    let Some(graph) = &mut proto.graph else {
        return Err(malformed("it contains no graph".into()));
    };
    if graph.node.is_empty() {
        return Err(malformed("its graph has no nodes".into()));
    }
    let mut missing = BTreeSet::new();
    let mut external = None;
    visit(graph, &mut |graph| {
        external =
            external.take().or_else(|| graph.initializer.iter().find(|t| is_external(t)).map(|t| t.name.clone()));
        missing.extend(graph.node.iter().filter(|node| !is_known(framework, node)).map(operator));
    });
    if let Some(tensor) = external {
        return Err(malformed(format!(
            "the values of {tensor:?} are in another file; save the model as a single file"
        )));
    }
    if let Some(output) = dangling_output(graph) {
        return Err(malformed(format!("no node gives its output {output:?}")));
    }
    let weights: BTreeSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let inputs = graph.input.iter().filter(|value| !weights.contains(value.name.as_str())).map(input);
    let inputs: Vec<Input> = inputs.collect::<Result<_, _>>()?;
    let outputs: Vec<Output> = graph.output.iter().map(output).collect::<Result<_, _>>()?;
    distinct("input", inputs.iter().map(|input| input.name.as_str()))?;
    distinct("output", outputs.iter().map(|output| output.name.as_str()))?;
    visit(graph, &mut forget_names);
    Ok(Described { proto, inputs, outputs, missing_operators: missing.into_iter().collect() })
}

/// Calls `each` for `graph` and every graph inside its nodes. Protocol buffers nest at most 100 deep.
fn visit(graph: &mut GraphProto, each: &mut impl FnMut(&mut GraphProto)) {
    each(graph);
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        for inner in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            visit(inner, each);
        }
    }
}

/// Whether there is such an operator. tract goes by the name alone, whatever the domain.
fn is_known(framework: &Onnx, node: &NodeProto) -> bool {
    framework.op_register.0.contains_key(&node.op_type)
        && (node.domain == ml::DOMAIN || !ml::OPERATORS.contains(&node.op_type.as_str()))
}

fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(DataLocation::External as i32)
}

/// An output of the graph that nothing in it gives.
fn dangling_output(graph: &GraphProto) -> Option<&str> {
    let nodes = graph.node.iter().flat_map(|node| &node.output);
    let others = graph.input.iter().map(|value| &value.name).chain(graph.initializer.iter().map(|tensor| &tensor.name));
    let given: BTreeSet<&String> = nodes.chain(others).collect();
    graph.output.iter().find(|output| !given.contains(&output.name)).map(|output| output.name.as_str())
}

/// A node's operator as an error names it.
fn operator(node: &NodeProto) -> String {
    let name: String = node.op_type.chars().take(80).collect();
    match node.domain.as_str() {
        "" | "ai.onnx" => name,
        domain => format!("{name} (of {})", domain.chars().take(80).collect::<String>()),
    }
}

/// Takes names of dimensions, and all that is said of intermediate values, out of `graph`.
fn forget_names(graph: &mut GraphProto) {
    graph.value_info.clear();
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        let Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), .. }) = &mut value.r#type else {
            continue;
        };
        for dimension in tensor.shape.iter_mut().flat_map(|shape| &mut shape.dim) {
            if let Some(DimensionValue::DimParam(_)) = dimension.value {
                dimension.value = None;
            }
        }
    }
}

fn tensor_type(value: &ValueInfoProto) -> Option<&type_proto::Tensor> {
    let type_proto::Value::TensorType(tensor) = value.r#type.as_ref()?.value.as_ref()?;
    Some(tensor)
}

/// The declared dimensions; `None` when not even their number is declared.
fn dimensions(tensor: &type_proto::Tensor) -> Option<Vec<Dimension>> {
    let shape = tensor.shape.as_ref()?;
    let dimension = |value: &Option<DimensionValue>| match value {
        Some(DimensionValue::DimValue(size)) => match usize::try_from(*size) {
            // Some exporters write 0 or less for a size they do not know.
            Err(_) | Ok(0) => Dimension::Free(None),
            Ok(size) => Dimension::Fixed(size),
        },
        // tract's own rule for names that mean nothing.
        Some(DimensionValue::DimParam(name)) if name.is_empty() || name == "?" || name.starts_with("unk__") => {
            Dimension::Free(None)
        }
        Some(DimensionValue::DimParam(name)) => Dimension::Free(Some(name.chars().take(80).collect())),
        None => Dimension::Free(None),
    };
    Some(shape.dim.iter().map(|declared| dimension(&declared.value)).collect())
}

fn refuse(tensor: &str, reason: impl Into<String>) -> LoadError {
    LoadError::Tensor { tensor: bounded_text(tensor), reason: reason.into() }
}

fn input(value: &ValueInfoProto) -> Result<Input, LoadError> {
    let tensor = tensor_type(value).ok_or_else(|| refuse(&value.name, "it is not declared as a tensor"))?;
    let datatype = datatype_of_onnx(tensor.elem_type).map_err(|reason| refuse(&value.name, reason))?;
    let dimensions = dimensions(tensor).ok_or_else(|| {
        refuse(&value.name, "its number of dimensions is not declared; export the model with input shapes")
    })?;
    if dimensions.len() > MAX_RANK {
        return Err(refuse(&value.name, format!("it has more than {MAX_RANK} dimensions")));
    }
    Ok(Input { name: value.name.clone(), datatype, dimensions })
}

fn output(value: &ValueInfoProto) -> Result<Output, LoadError> {
    let Some(tensor) = tensor_type(value) else {
        return Ok(Output { name: value.name.clone(), datatype: None, dimensions: None });
    };
    let datatype = match tensor.elem_type {
        0 => None,
        number => Some(datatype_of_onnx(number).map_err(|reason| refuse(&value.name, reason))?),
    };
    Ok(Output { name: value.name.clone(), datatype, dimensions: dimensions(tensor) })
}

/// Refuses no name at all, an empty one and one used twice.
fn distinct<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), LoadError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if name.is_empty() || !seen.insert(name) {
            return Err(refuse(name, format!("the model must give each {what} a name of its own")));
        }
    }
    if seen.is_empty() {
        return Err(LoadError::Malformed { reason: format!("it has no {what}") });
    }
    Ok(())
}
