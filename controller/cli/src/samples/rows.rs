//! A sample as rows of a table: which columns it has, and what stands in them.
//!
//! Where the bundle leaves the first dimension of all tensors free, and they agree on it, it is the batch and each of its positions a row;
//! otherwise the whole sample is one row, as for the profile. An element that the profile names is a column of that name, if it names all of
//! its tensor; a single element is a column of the tensor's name; anything else is a list, in row-major order, with its shape beside it.

use std::collections::BTreeMap;

use muster_shared::bundle::{DataType, Manifest};
use muster_shared::collection::{Sample, SampleTensor};
use muster_shared::ids::{BundleRef, DeviceId, Digest};
use muster_shared::profile::{Reference, Source};

/// A bundle of the collection; its manifest is there if the controller still has it.
pub(super) struct Bundle {
    pub(super) name: BundleRef,
    pub(super) manifest: Option<Manifest>,
}

/// Elements of one type.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    Bool(Vec<bool>),
    I8(Vec<i32>),
    I16(Vec<i32>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    U8(Vec<i32>),
    U16(Vec<i32>),
    U32(Vec<i32>),
    U64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bytes(Vec<Vec<u8>>),
}

/// What stands in one place.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    /// One value.
    One(Values),
    /// A list of them.
    List(Values),
}

/// A row: what every sample has, and its own columns by name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) row: i32,
    pub(super) device: DeviceId,
    pub(super) at_ms: u64,
    pub(super) bundle: Option<String>,
    pub(super) manifest: Digest,
    pub(super) generation: u64,
    pub(super) confidence: Option<f64>,
    pub(super) flags: Vec<String>,
    pub(super) cells: BTreeMap<String, Cell>,
    /// What the model took it for, where that can be told.
    pub(super) predicted: Option<String>,
    /// The only number the model answered with, where that is what it does.
    pub(super) estimate: Option<f64>,
}

impl Values {
    fn read(datatype: DataType, data: &[u8]) -> Option<Self> {
        macro_rules! numbers {
            ($wrap:path, $of:ty, $to:expr) => {{
                let read = |piece: &[u8]| piece.try_into().ok().map(<$of>::from_le_bytes);
                $wrap(data.chunks_exact(size_of::<$of>()).map(|piece| read(piece).map($to)).collect::<Option<_>>()?)
            }};
        }
        Some(match datatype {
            DataType::Bool => Self::Bool(data.iter().map(|byte| *byte != 0).collect()),
            DataType::Uint8 => Self::U8(data.iter().map(|byte| i32::from(*byte)).collect()),
            DataType::Uint16 => numbers!(Self::U16, u16, i32::from),
            // Parquet keeps unsigned numbers in the bits of signed ones, and says so beside.
            DataType::Uint32 => numbers!(Self::U32, i32, |value| value),
            DataType::Uint64 => numbers!(Self::U64, i64, |value| value),
            DataType::Int8 => numbers!(Self::I8, i8, i32::from),
            DataType::Int16 => numbers!(Self::I16, i16, i32::from),
            DataType::Int32 => numbers!(Self::I32, i32, |value| value),
            DataType::Int64 => numbers!(Self::I64, i64, |value| value),
            DataType::Fp16 => numbers!(Self::F32, u16, half_to_f32),
            DataType::Fp32 => numbers!(Self::F32, f32, |value| value),
            DataType::Fp64 => numbers!(Self::F64, f64, |value| value),
            DataType::Bytes => return None,
        })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bool(values) => values.len(),
            Self::I8(v) | Self::I16(v) | Self::I32(v) | Self::U8(v) | Self::U16(v) | Self::U32(v) => v.len(),
            Self::I64(v) | Self::U64(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::Bytes(v) => v.len(),
        }
    }

    /// Elements `at` to `until`.
    fn part(&self, at: usize, until: usize) -> Self {
        match self {
            Self::Bool(v) => Self::Bool(v[at..until].to_vec()),
            Self::I8(v) => Self::I8(v[at..until].to_vec()),
            Self::I16(v) => Self::I16(v[at..until].to_vec()),
            Self::I32(v) => Self::I32(v[at..until].to_vec()),
            Self::U8(v) => Self::U8(v[at..until].to_vec()),
            Self::U16(v) => Self::U16(v[at..until].to_vec()),
            Self::U32(v) => Self::U32(v[at..until].to_vec()),
            Self::I64(v) => Self::I64(v[at..until].to_vec()),
            Self::U64(v) => Self::U64(v[at..until].to_vec()),
            Self::F32(v) => Self::F32(v[at..until].to_vec()),
            Self::F64(v) => Self::F64(v[at..until].to_vec()),
            Self::Bytes(v) => Self::Bytes(v[at..until].to_vec()),
        }
    }

    /// As numbers of one kind; none of what is no number.
    pub(super) fn numbers(&self) -> Vec<f64> {
        #[expect(clippy::cast_precision_loss, reason = "it is compared and averaged, not kept")]
        match self {
            Self::Bool(v) => v.iter().map(|value| f64::from(u8::from(*value))).collect(),
            Self::I8(v) | Self::I16(v) | Self::I32(v) | Self::U8(v) | Self::U16(v) => {
                v.iter().map(|v| f64::from(*v)).collect()
            }
            Self::U32(v) => v.iter().map(|v| f64::from(v.cast_unsigned())).collect(),
            Self::I64(v) => v.iter().map(|v| *v as f64).collect(),
            Self::U64(v) => v.iter().map(|v| v.cast_unsigned() as f64).collect(),
            Self::F32(v) => v.iter().map(|v| f64::from(*v)).collect(),
            Self::F64(v) => v.clone(),
            Self::Bytes(_) => Vec::new(),
        }
    }
}

/// IEEE 754 binary16 (half precision) as the same number in single precision.
fn half_to_f32(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from((bits >> 10) & 0x1f), f32::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2.0_f32.powi(-24),
        31 if bits & 0x3ff == 0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction / 1_024.0) * 2.0_f32.powi(exponent - 15),
    }
}

fn elements(tensor: &SampleTensor) -> Option<Values> {
    match tensor.byte_elements().filter(|_| tensor.datatype == DataType::Bytes) {
        Some(elements) => Some(Values::Bytes(elements.into_iter().map(<[u8]>::to_vec).collect())),
        None => Values::read(tensor.datatype, &tensor.data),
    }
}

/// How many rows a sample is.
fn row_count(sample: &Sample, manifest: Option<&Manifest>) -> usize {
    let Some(manifest) = manifest else { return 1 };
    let mut rows = None;
    for (tensors, specs) in
        [(&sample.inputs, &manifest.signature.inputs), (&sample.outputs, &manifest.signature.outputs)]
    {
        for tensor in tensors {
            let is_batched = specs.iter().any(|spec| spec.name == tensor.name && spec.is_batched());
            let first = tensor.shape.first().and_then(|size| usize::try_from(*size).ok()).filter(|_| is_batched);
            match (first, rows) {
                (Some(first), None) => rows = Some(first),
                (Some(first), Some(rows)) if first == rows => {}
                _ => return 1,
            }
        }
    }
    rows.unwrap_or(1)
}

/// The names that the profile has for every one of the `width` elements of a row of `tensor`.
fn names(manifest: Option<&Manifest>, tensor: &str, is_input: bool, width: usize) -> Option<Vec<String>> {
    let mut names = vec![None; width];
    for column in &manifest?.profile.columns {
        let index = if let Source::Input { tensor: of, index } = &column.source
            && is_input
            && of == tensor
        {
            *index
        } else if let Source::Output { tensor: of, index } = &column.source
            && !is_input
            && of == tensor
        {
            *index
        } else {
            continue;
        };
        if let Some(name) = names.get_mut(index as usize) {
            *name = Some(column.name.clone());
        }
    }
    names.into_iter().collect()
}

fn put(
    cells: &mut BTreeMap<String, Cell>,
    manifest: Option<&Manifest>,
    (tensor, values): (&SampleTensor, &Values),
    is_input: bool,
    rows: usize,
    row: usize,
) {
    let width = values.len() / rows.max(1);
    let part = values.part(row * width, (row + 1) * width);
    let prefix = if is_input { "input" } else { "output" };
    if width == 1 {
        let name =
            names(manifest, &tensor.name, is_input, 1).map_or_else(|| tensor.name.clone(), |mut names| names.remove(0));
        cells.insert(format!("{prefix}.{name}"), Cell::One(part));
        return;
    }
    if let Some(names) = names(manifest, &tensor.name, is_input, width).filter(|_| width > 0) {
        for (at, name) in names.into_iter().enumerate() {
            cells.insert(format!("{prefix}.{name}"), Cell::One(part.part(at, at + 1)));
        }
        return;
    }
    let shape = if rows > 1 || row_is_batched(tensor, rows, width) { &tensor.shape[1..] } else { &tensor.shape[..] };
    if shape.len() > 1 {
        let shape = shape.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect();
        cells.insert(format!("{prefix}.{}.shape", tensor.name), Cell::List(Values::I64(shape)));
    }
    cells.insert(format!("{prefix}.{}", tensor.name), Cell::List(part));
}

/// Whether the first dimension of a sample of one row is the batch.
fn row_is_batched(tensor: &SampleTensor, rows: usize, width: usize) -> bool {
    rows == 1 && tensor.shape.first() == Some(&1) && tensor.shape.len() > 1 && width > 0
}

/// The class that the profile takes a row of an output for.
fn predicted(
    manifest: Option<&Manifest>,
    outputs: &[(&SampleTensor, Values)],
    rows: usize,
    row: usize,
) -> Option<String> {
    for column in &manifest?.profile.columns {
        let (Source::PredictedClass { tensor }, Reference::Class { classes, .. }) = (&column.source, &column.reference)
        else {
            continue;
        };
        let Some((_, values)) = outputs.iter().find(|(output, _)| output.name == *tensor) else { continue };
        let numbers = values.numbers();
        let width = numbers.len() / rows.max(1);
        let scores = numbers.get(row * width..(row + 1) * width)?;
        let best = scores.iter().enumerate().fold(None, |best: Option<(usize, f64)>, (at, score)| match best {
            Some((_, most)) if *score <= most || score.is_nan() => best,
            _ => Some((at, *score)),
        });
        return best.map(|(at, _)| classes.get(at).cloned().unwrap_or_else(|| at.to_string()));
    }
    None
}

/// The rows of `sample`, which came from `device`.
pub(super) fn rows(sample: &Sample, device: &DeviceId, bundle: Option<&Bundle>) -> Vec<Row> {
    let manifest = bundle.and_then(|bundle| bundle.manifest.as_ref());
    let read = |tensors: &'_ [SampleTensor]| -> Vec<Option<Values>> { tensors.iter().map(elements).collect() };
    let (inputs, outputs) = (read(&sample.inputs), read(&sample.outputs));
    let both = |tensors: &'_ [SampleTensor], values: Vec<Option<Values>>| -> Vec<(usize, Values)> {
        values
            .into_iter()
            .enumerate()
            .filter_map(|(at, values)| Some((at, values?)))
            .filter(|(at, _)| *at < tensors.len())
            .collect()
    };
    let inputs: Vec<(&SampleTensor, Values)> =
        both(&sample.inputs, inputs).into_iter().map(|(at, values)| (&sample.inputs[at], values)).collect();
    let outputs: Vec<(&SampleTensor, Values)> =
        both(&sample.outputs, outputs).into_iter().map(|(at, values)| (&sample.outputs[at], values)).collect();
    let count = row_count(sample, manifest);
    let row = |row: usize| {
        let mut cells = BTreeMap::new();
        for (tensors, is_input) in [(&inputs, true), (&outputs, false)] {
            for (tensor, values) in tensors {
                put(&mut cells, manifest, (tensor, values), is_input, count, row);
            }
        }
        let estimate = match outputs.as_slice() {
            [(_, values)] if values.len() == count => values.numbers().get(row).copied(),
            _ => None,
        };
        Row {
            id: sample.id.clone(),
            row: i32::try_from(row).unwrap_or(i32::MAX),
            device: device.clone(),
            at_ms: sample.at_ms,
            bundle: bundle.map(|bundle| bundle.name.to_string()),
            manifest: sample.manifest,
            generation: sample.generation,
            confidence: sample.confidence.get(row).copied(),
            flags: sample.flags.clone(),
            cells,
            predicted: predicted(manifest, &outputs, count, row),
            estimate,
        }
    };
    (0..count).map(row).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn half_precision_is_read_as_the_standard_has_it() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65_504.0),
            (0x0001, 5.960_464_5e-8),
            (0x3555, 0.333_251_95),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(half_to_f32(bits).to_bits(), f32::to_bits(value), "{bits:#x}");
        }
        assert!(half_to_f32(0x7e00).is_nan());
    }

    proptest! {
        #[test]
        fn any_sample_has_rows(
            shapes in prop::collection::vec(prop::collection::vec(0..4u64, 0..4), 0..4),
            kind in prop::sample::select(vec![DataType::Fp32, DataType::Uint8, DataType::Fp16, DataType::Int64, DataType::Bytes, DataType::Bool]),
        ) {
            let tensor = |(at, shape): (usize, &Vec<u64>)| {
                let elements = usize::try_from(shape.iter().product::<u64>()).unwrap();
                let data = vec![0; elements * kind.size_bytes().unwrap_or(4)];
                SampleTensor { name: format!("t{at}"), datatype: kind, shape: shape.clone(), data }
            };
            let tensors: Vec<SampleTensor> = shapes.iter().enumerate().map(tensor).collect();
            let sample = Sample { id: "a".into(), at_ms: 0, manifest: Digest::of(b"m"), generation: 0, inputs: tensors.clone(), outputs: tensors, confidence: vec![], flags: vec![] };
            let device = DeviceId::new("d").unwrap();
            let rows = rows(&sample, &device, None);
            prop_assert_eq!(rows.len(), 1);
            for (at, shape) in shapes.iter().enumerate() {
                let elements = usize::try_from(shape.iter().product::<u64>()).unwrap();
                let cell = &rows[0].cells[&format!("input.t{at}")];
                let (Cell::One(values) | Cell::List(values)) = cell;
                prop_assert_eq!(values.len(), elements);
            }
        }
    }
}
