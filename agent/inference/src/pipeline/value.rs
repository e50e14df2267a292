//! A value between two steps.

use muster_shared::bundle::DataType;
use muster_shared::pipeline::{MAX_ELEMENTS, shape_fits};

use crate::tensor::{Tensor, TensorError};

/// A value; texts are borrowed from the request or the manifest.
#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    /// As the caller or the model gave it.
    Tensor(&'a Tensor),
    /// Numbers, whatever the type they will have.
    Numbers(Numbers),
    /// Texts or files.
    Texts(Texts<'a>),
}

/// Numbers and their shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Numbers {
    pub(super) shape: Vec<usize>,
    pub(super) data: Vec<f64>,
}

/// Texts and their shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Texts<'a> {
    pub(super) shape: Vec<usize>,
    pub(super) data: Vec<&'a [u8]>,
}

/// Positions of the last dimension; one where there is only the dimension that counts rows.
pub(super) fn columns(shape: &[usize]) -> usize {
    match shape {
        [] | [_] => 1,
        [.., last] => *last,
    }
}

/// Checks that a value of `rows` rows of `width` elements may be made.
pub(super) fn room(rows: usize, width: usize) -> Result<usize, String> {
    rows.checked_mul(width)
        .filter(|elements| *elements <= MAX_ELEMENTS)
        .ok_or_else(|| format!("it would make more than {MAX_ELEMENTS} elements; send fewer rows"))
}

impl<'a> Value<'a> {
    pub(super) fn shape(&self) -> &[usize] {
        match self {
            Self::Tensor(tensor) => tensor.shape(),
            Self::Numbers(numbers) => &numbers.shape,
            Self::Texts(texts) => &texts.shape,
        }
    }

    pub(super) fn is_text(&self) -> bool {
        match self {
            Self::Tensor(tensor) => tensor.datatype() == DataType::Bytes,
            Self::Numbers(_) => false,
            Self::Texts(_) => true,
        }
    }

    /// Its numbers; none when it holds texts.
    pub(super) fn into_numbers(self) -> Result<Numbers, String> {
        match self {
            Self::Numbers(numbers) => Ok(numbers),
            Self::Tensor(tensor) if tensor.datatype() != DataType::Bytes => {
                let elements = room(1, tensor.element_count())?;
                let mut data = Vec::with_capacity(elements);
                // The type of nearly every input, without a decision for each element.
                if tensor.datatype() == DataType::Fp32 {
                    let (floats, _) = tensor.data().as_chunks::<4>();
                    data.extend(floats.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))));
                } else {
                    data.extend(tensor.values());
                }
                Ok(Numbers { shape: tensor.shape().to_vec(), data })
            }
            Self::Tensor(_) | Self::Texts(_) => Err("numbers are expected, but these are texts".into()),
        }
    }

    /// Its texts; none when it holds numbers.
    pub(super) fn into_texts(self) -> Result<Texts<'a>, String> {
        match self {
            Self::Texts(texts) => Ok(texts),
            Self::Tensor(tensor) if tensor.datatype() == DataType::Bytes => {
                room(1, tensor.element_count())?;
                Ok(Texts { shape: tensor.shape().to_vec(), data: tensor.byte_elements().collect() })
            }
            Self::Tensor(_) | Self::Numbers(_) => Err("texts are expected, but these are numbers".into()),
        }
    }

    /// The value as the tensor `name` of `datatype` whose shape the signature gives as `shape`.
    pub(super) fn into_tensor(self, name: &str, datatype: DataType, shape: &[i64]) -> Result<Tensor, TensorError> {
        let shaped = |given: Vec<usize>| {
            let signed: Vec<i64> = given.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect();
            match (given.as_slice(), shape) {
                ([rows], [_, 1]) if shape_fits(&signed, shape) => vec![*rows, 1],
                _ => given,
            }
        };
        match self {
            Self::Tensor(tensor) if tensor.datatype() == datatype => {
                Tensor::new(name, datatype, shaped(tensor.shape().to_vec()), tensor.data().to_vec())
            }
            Self::Tensor(tensor) => {
                let values: Vec<f64> = tensor.values().collect();
                Tensor::from_f64(name, datatype, shaped(tensor.shape().to_vec()), &values)
            }
            Self::Numbers(Numbers { shape, data }) => Tensor::from_f64(name, datatype, shaped(shape), &data),
            Self::Texts(Texts { shape, data }) => Tensor::from_byte_elements(name, shaped(shape), data),
        }
    }
}

/// Rows and columns of something that can be laid beside others.
fn table(shape: &[usize]) -> Result<(usize, usize), String> {
    match shape {
        [rows] => Ok((*rows, 1)),
        [rows, columns] => Ok((*rows, *columns)),
        shape => Err(format!("values of shape {shape:?} cannot be laid side by side")),
    }
}

/// Lays values side by side, row by row; a single one stays as it is.
pub(super) fn side_by_side(mut values: Vec<Value<'_>>) -> Result<Value<'_>, String> {
    if values.len() == 1
        && let Some(only) = values.pop()
    {
        return Ok(only);
    }
    let tables = values.iter().map(|value| table(value.shape())).collect::<Result<Vec<_>, _>>()?;
    let (rows, _) = *tables.first().ok_or("nothing is read")?;
    if let Some((other, _)) = tables.iter().find(|(other, _)| *other != rows) {
        return Err(format!("inputs have {rows} rows and {other} rows: send as many of each"));
    }
    let width = tables.iter().map(|(_, columns)| columns).sum();
    let elements = room(rows, width)?;
    let shape = vec![rows, width];
    if values.iter().all(Value::is_text) {
        let parts = values.into_iter().map(Value::into_texts).collect::<Result<Vec<_>, _>>()?;
        let mut data = Vec::with_capacity(elements);
        for row in 0..rows {
            for (part, (_, columns)) in parts.iter().zip(&tables) {
                data.extend_from_slice(&part.data[row * columns..(row + 1) * columns]);
            }
        }
        return Ok(Value::Texts(Texts { shape, data }));
    }
    let mut data = vec![0.0; elements];
    let mut start = 0;
    for (value, (_, columns)) in values.into_iter().zip(tables) {
        let part = value.into_numbers()?;
        if columns > 0 {
            for (row, numbers) in part.data.chunks_exact(columns).enumerate() {
                let at = row * width + start;
                data[at..at + columns].copy_from_slice(numbers);
            }
        }
        start += columns;
    }
    Ok(Value::Numbers(Numbers { shape, data }))
}
