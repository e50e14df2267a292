//! Element types and tensors, between Muster's form and tract's.

use muster_shared::bundle::DataType;
use tract_onnx::pb::tensor_proto::DataType as OnnxType;
use tract_onnx::prelude::{DatumType, Tensor as TractTensor, TractResult, tensor1};

use crate::tensor::{Tensor, TensorError};

/// The types that are served: ONNX's, tract's, Muster's.
const TYPES: [(OnnxType, DatumType, DataType); 13] = [
    (OnnxType::Bool, DatumType::Bool, DataType::Bool),
    (OnnxType::Uint8, DatumType::U8, DataType::Uint8),
    (OnnxType::Uint16, DatumType::U16, DataType::Uint16),
    (OnnxType::Uint32, DatumType::U32, DataType::Uint32),
    (OnnxType::Uint64, DatumType::U64, DataType::Uint64),
    (OnnxType::Int8, DatumType::I8, DataType::Int8),
    (OnnxType::Int16, DatumType::I16, DataType::Int16),
    (OnnxType::Int32, DatumType::I32, DataType::Int32),
    (OnnxType::Int64, DatumType::I64, DataType::Int64),
    (OnnxType::Float16, DatumType::F16, DataType::Fp16),
    (OnnxType::Float, DatumType::F32, DataType::Fp32),
    (OnnxType::Double, DatumType::F64, DataType::Fp64),
    (OnnxType::String, DatumType::String, DataType::Bytes),
];

/// The element type of an ONNX type number, or why it is not served.
pub(super) fn datatype_of_onnx(number: i32) -> Result<DataType, String> {
    let onnx = OnnxType::try_from(number).map_err(|_| format!("its element type {number} is not one of ONNX's"))?;
    TYPES
        .iter()
        .find(|(known, _, _)| *known == onnx)
        .map(|(_, _, datatype)| *datatype)
        .ok_or_else(|| format!("its element type {} is not supported", onnx.as_str_name()))
}

/// tract's type for `datatype`.
pub(super) fn to_tract_type(datatype: DataType) -> DatumType {
    TYPES.iter().find(|(_, _, known)| *known == datatype).map_or(DatumType::String, |(_, datum, _)| *datum)
}

/// The element type in which tract's `datum` is served: its own symbolic integers as 64 bits.
pub(super) fn datatype_of_tract(datum: DatumType) -> Option<DataType> {
    let plain = if datum.is_tdim() { DatumType::I64 } else { datum.unquantized() };
    TYPES.iter().find(|(_, known, _)| *known == plain).map(|(_, _, datatype)| *datatype)
}

/// A copy of `tensor` as tract takes it. Its bytes were checked when it was made.
///
/// # Errors
/// For `BYTES` that are no text.
pub(super) fn to_tract(tensor: &Tensor) -> TractResult<TractTensor> {
    if tensor.datatype() == DataType::Bytes {
        let texts = tensor.byte_elements().map(|text| std::str::from_utf8(text).map(str::to_owned));
        let texts: Vec<String> = texts.collect::<Result<_, _>>()?;
        return tensor1(&texts).into_shape(tensor.shape());
    }
    let mut copy = TractTensor::zero_dt(to_tract_type(tensor.datatype()), tensor.shape())?;
    if !tensor.data().is_empty() {
        copy.as_bytes_mut().copy_from_slice(tensor.data());
    }
    Ok(copy)
}

/// A copy of `tensor` as `datatype`, which it is cast to where tract has chosen another type than the model declares.
pub(super) fn from_tract(tensor: &TractTensor, datatype: DataType) -> TractResult<(Vec<usize>, Vec<u8>)> {
    let wanted = to_tract_type(datatype);
    let plain = tensor.try_as_plain_ram()?;
    if datatype == DataType::Bytes {
        let texts = plain.as_slice::<String>()?;
        let data = Tensor::from_byte_elements("", vec![texts.len()], texts)?.into_data();
        return Ok((tensor.shape().to_vec(), data));
    }
    // A quantised type is its plain one with a scale beside it; casting would apply the scale.
    let data = if tensor.datum_type().unquantized() == wanted {
        plain.as_bytes().to_vec()
    } else {
        tensor.cast_to_dt(wanted)?.try_as_plain_ram()?.as_bytes().to_vec()
    };
    Ok((tensor.shape().to_vec(), data))
}

/// Names and checks what [`from_tract`] gave.
pub(super) fn named(
    name: &str,
    datatype: DataType,
    (shape, data): (Vec<usize>, Vec<u8>),
) -> Result<Tensor, TensorError> {
    Tensor::new(name, datatype, shape, data)
}
