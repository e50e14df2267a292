//! Whether a step fits the values it reads, and what it writes.

use std::collections::{BTreeMap, BTreeSet};

use super::operation::{Categories, ImageOperation, Operation, Size, Unknown};
use super::{
    Form, MAX_CATEGORIES, MAX_ELEMENTS, MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE, MAX_NAME_BYTES, MAX_SOURCES, Step, known,
};
use crate::bundle::DataType;
use crate::limits::MAX_EXACT;

/// Dimensions of a value.
const MAX_RANK: usize = 8;

fn named(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(format!("a value's name has 1 to {MAX_NAME_BYTES} bytes"));
    }
    Ok(())
}

/// The values that `step` writes when it reads some of `values`.
pub(super) fn written(step: &Step, values: &BTreeMap<String, Form>) -> Result<Vec<(String, Form)>, String> {
    named(&step.to)?;
    if step.from.is_empty() || step.from.len() > MAX_SOURCES {
        return Err(format!("a step reads 1 to {MAX_SOURCES} values"));
    }
    let form = |name: &String| {
        values.get(name).ok_or_else(|| {
            let name: String = name.chars().take(80).collect();
            format!("there is no value {name:?}; there {}", known(values))
        })
    };
    let sources = step.from.iter().map(form).collect::<Result<Vec<_>, _>>()?;
    let read = side_by_side(&sources)?;
    let result = result(&step.operation, &read)?;
    let rest = result.shape.iter().skip(1).try_fold(1_usize, |product, size| {
        product.checked_mul(usize::try_from(*size).unwrap_or(1)).filter(|elements| *elements <= MAX_ELEMENTS)
    });
    if result.shape.len() > MAX_RANK || rest.is_none() {
        return Err(format!("a row has at most {MAX_ELEMENTS} elements in {MAX_RANK} dimensions"));
    }
    let mut written = vec![(step.to.clone(), result.clone())];
    if let Operation::TopK { indices, .. } = &step.operation {
        named(indices)?;
        if *indices == step.to {
            return Err("its two results need two names".into());
        }
        written.push((indices.clone(), Form { datatype: DataType::Int64, shape: result.shape }));
    }
    Ok(written)
}

/// The form of several values laid side by side; a single one stays as it is.
fn side_by_side(sources: &[&Form]) -> Result<Form, String> {
    let [first, others @ ..] = sources else { return Err("it reads nothing".into()) };
    if others.is_empty() {
        return Ok((*first).clone());
    }
    let mut width = 0_i64;
    let mut datatype = first.datatype;
    for form in sources {
        if (form.datatype == DataType::Bytes) != (first.datatype == DataType::Bytes) {
            return Err("texts and numbers cannot be laid side by side".into());
        }
        width = match form.shape.as_slice() {
            [_] => width.checked_add(1),
            [_, columns] if *columns > 0 => width.checked_add(*columns),
            shape => {
                return Err(format!(
                    "only values of shape [-1] and [-1, columns] can be laid side by side, not {shape:?}"
                ));
            }
        }
        .ok_or("the columns are too many")?;
        if form.datatype != datatype {
            datatype = wider(datatype, form.datatype);
        }
    }
    Ok(Form { datatype, shape: vec![first.shape[0], width] })
}

const fn wider(one: DataType, other: DataType) -> DataType {
    match (one, other) {
        (DataType::Fp64, _) | (_, DataType::Fp64) => DataType::Fp64,
        _ => DataType::Fp32,
    }
}

/// The type of what arithmetic makes of numbers of this type.
const fn real(datatype: DataType) -> DataType {
    if datatype.is_float() { datatype } else { DataType::Fp32 }
}

/// The number of columns, where the form fixes it.
fn columns(form: &Form) -> Option<usize> {
    match form.shape.as_slice() {
        [] | [-1] => Some(1),
        [.., last] => usize::try_from(*last).ok(),
    }
}

fn finite(what: &str, numbers: &[f64]) -> Result<(), String> {
    match numbers.iter().position(|number| !number.is_finite()) {
        Some(at) => Err(format!("{what}: entry {} is not a finite number", at + 1)),
        None => Ok(()),
    }
}

/// One entry for each column, or one for all.
fn one_each(what: &str, entries: usize, form: &Form) -> Result<(), String> {
    match columns(form) {
        _ if entries == 1 => Ok(()),
        Some(columns) if columns == entries => Ok(()),
        Some(columns) => Err(format!("{what} has {entries} entries for {columns} columns")),
        None => Err(format!("{what} has {entries} entries, but the number of columns is left open: give one")),
    }
}

fn parameters(what: &str, numbers: &[f64], form: &Form) -> Result<(), String> {
    finite(what, numbers)?;
    one_each(what, numbers.len(), form)
}

fn texts(what: &str, texts: &[String]) -> Result<(), String> {
    if texts.is_empty() || texts.len() > MAX_CATEGORIES {
        return Err(format!("{what}: 1 to {MAX_CATEGORIES} are allowed"));
    }
    if let Some(long) = texts.iter().find(|text| text.len() > MAX_NAME_BYTES) {
        let start: String = long.chars().take(20).collect();
        return Err(format!("{what}: {start:?}... is longer than {MAX_NAME_BYTES} bytes"));
    }
    Ok(())
}

impl Categories {
    /// Checks that there are some, within bounds and each once.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let once = match self {
            Self::Texts(names) => {
                texts("categories", names)?;
                names.iter().collect::<BTreeSet<_>>().len() == names.len()
            }
            Self::Integers(integers) => {
                if integers.len() > MAX_CATEGORIES {
                    return Err(format!("categories: 1 to {MAX_CATEGORIES} are allowed"));
                }
                if let Some(large) = integers.iter().find(|integer| integer.unsigned_abs() > MAX_EXACT) {
                    return Err(format!("categories: {large} is past 2^53"));
                }
                integers.iter().collect::<BTreeSet<_>>().len() == integers.len()
            }
        };
        if once { Ok(()) } else { Err("categories: one is there twice".into()) }
    }
}

fn categories(lists: &[Categories], form: &Form) -> Result<usize, String> {
    if columns(form) != Some(lists.len()) {
        return Err(format!(
            "categories are given for {} columns, but values of shape {:?} are read",
            lists.len(),
            form.shape
        ));
    }
    let mut width = 0;
    for (at, list) in lists.iter().enumerate() {
        list.check().map_err(|reason| format!("column {}: {reason}", at + 1))?;
        if matches!(list, Categories::Texts(_)) != (form.datatype == DataType::Bytes) {
            return Err(format!(
                "column {}: the categories are not of the type of the values, {}",
                at + 1,
                form.datatype
            ));
        }
        width += list.len();
    }
    Ok(width)
}

/// `form` with another last dimension, the columns being rows' only one.
fn with_columns(form: &Form, datatype: DataType, columns: usize) -> Result<Form, String> {
    let rows = match form.shape.as_slice() {
        [rows] | [rows, _] => *rows,
        shape => return Err(format!("values of shape [-1] or [-1, columns] are read, not {shape:?}")),
    };
    let columns = i64::try_from(columns).map_err(|_| "the columns are too many")?;
    Ok(Form { datatype, shape: vec![rows, columns] })
}

fn result(operation: &Operation, form: &Form) -> Result<Form, String> {
    let takes_texts = matches!(
        operation,
        Operation::Join
            | Operation::Select { .. }
            | Operation::ImputeText { .. }
            | Operation::OneHot { .. }
            | Operation::Ordinal { .. }
            | Operation::Image(_)
    );
    let takes_numbers = !matches!(operation, Operation::ImputeText { .. } | Operation::Image(_));
    if form.datatype == DataType::Bytes && !takes_texts {
        return Err("numbers are read, but BYTES are given".into());
    }
    if form.datatype != DataType::Bytes && !takes_numbers {
        return Err(format!("BYTES are read, but {} is given", form.datatype));
    }
    let same = || Form { datatype: real(form.datatype), shape: form.shape.clone() };
    match operation {
        Operation::Join => {
            with_columns(form, form.datatype, columns(form).ok_or("the number of columns must be fixed")?)
        }
        Operation::Select { indices } => {
            let width = columns(form).ok_or("the number of columns must be fixed")?;
            if indices.is_empty() || indices.len() > MAX_ELEMENTS {
                return Err("indices: name at least one column".into());
            }
            if let Some(past) = indices.iter().find(|index| **index as usize >= width) {
                return Err(format!("indices: there is no column {past}; there are {width}, counted from 0"));
            }
            with_columns(form, form.datatype, indices.len())
        }
        Operation::Scale { center, scale } | Operation::Unscale { center, scale } => {
            parameters("center", center, form)?;
            parameters("scale", scale, form)?;
            if matches!(operation, Operation::Scale { .. }) && scale.contains(&0.0) {
                return Err("scale: a column cannot be divided by 0; a constant column has the scale 1".into());
            }
            Ok(same())
        }
        Operation::MinMax { data_min, data_max, low, high, clip: _ } => {
            parameters("data-min", data_min, form)?;
            parameters("data-max", data_max, form)?;
            finite("low and high", &[*low, *high])?;
            if data_min.len() != data_max.len()
                || data_min.iter().zip(data_max).any(|(min, max)| min > max)
                || low >= high
            {
                return Err("data-min must be at most data-max, column by column, and low below high".into());
            }
            Ok(same())
        }
        Operation::Normalize { norm: _ } | Operation::Softmax | Operation::Sigmoid | Operation::Log1p => Ok(same()),
        Operation::Clip { min, max } => {
            let bounds: Vec<f64> = min.iter().chain(max).copied().collect();
            finite("min and max", &bounds)?;
            if bounds.is_empty() || min.zip(*max).is_some_and(|(min, max)| min > max) {
                return Err("give min, max or both, min being at most max".into());
            }
            Ok(same())
        }
        Operation::Impute { values } => parameters("values", values, form).map(|()| same()),
        Operation::ImputeText { values } => {
            texts("values", values)?;
            one_each("values", values.len(), form)?;
            Ok(form.clone())
        }
        Operation::OneHot { categories: lists, unknown } => {
            let width = categories(lists, form)?;
            let others = if *unknown == Unknown::Other { lists.len() } else { 0 };
            with_columns(form, DataType::Fp32, width + others)
        }
        Operation::Ordinal { categories: lists, unknown_value } => {
            categories(lists, form)?;
            finite("unknown-value", unknown_value.as_slice())?;
            let whole = unknown_value.is_none_or(|value| value.fract() == 0.0 && value.abs() <= MAX_EXACT as f64);
            with_columns(form, if whole { DataType::Int64 } else { DataType::Fp32 }, lists.len())
        }
        Operation::Cast { datatype: DataType::Bytes } => Err("numbers cannot be made BYTES; labels does that".into()),
        Operation::Cast { datatype } => Ok(Form { datatype: *datatype, shape: form.shape.clone() }),
        Operation::Image(image) => image_form(image, form),
        Operation::Window { size, hop } => {
            let width = match form.shape.as_slice() {
                [_] => 1,
                [_, columns] if *columns > 0 => *columns,
                shape => return Err(format!("a series of shape [-1] or [-1, columns] is read, not {shape:?}")),
            };
            if *size == 0 || *hop == 0 {
                return Err("size and hop are at least 1".into());
            }
            Ok(Form { datatype: form.datatype, shape: vec![-1, i64::from(*size), width] })
        }
        Operation::Reshape { shape } => {
            let [rows, rest @ ..] = form.shape.as_slice() else { return Err("there are no rows".into()) };
            let before =
                rest.iter().try_fold(1_i64, |product, size| (*size > 0).then(|| product.checked_mul(*size))?);
            let after = shape.iter().try_fold(1_i64, |product, size| product.checked_mul(i64::from(*size)));
            if before.is_none() || before != after {
                return Err(format!("rows of shape {rest:?} cannot have the shape {shape:?}"));
            }
            let shape = std::iter::once(*rows).chain(shape.iter().map(|size| i64::from(*size))).collect();
            Ok(Form { datatype: form.datatype, shape })
        }
        Operation::Argmax => {
            let mut shape = form.shape.clone();
            if shape.len() < 2 {
                return Err(format!("values of shape [-1, columns] are read, not {shape:?}"));
            }
            shape.pop();
            Ok(Form { datatype: DataType::Int64, shape })
        }
        Operation::TopK { k, indices: _ } => {
            let width =
                columns(form).filter(|_| form.shape.len() >= 2).ok_or("rows of a fixed number of columns are read")?;
            if *k == 0 || *k as usize > width {
                return Err(format!("k must be from 1 to {width}, the number of columns"));
            }
            let mut shape = form.shape.clone();
            shape.pop();
            shape.push(i64::from(*k));
            Ok(Form { datatype: form.datatype, shape })
        }
        Operation::Threshold { at } => {
            finite("at", &[*at])?;
            Ok(Form { datatype: DataType::Int64, shape: form.shape.clone() })
        }
        Operation::Labels { labels } => {
            texts("labels", labels)?;
            if form.datatype.is_float() {
                return Err(format!(
                    "positions are read, but {} is given: argmax, top-k or threshold give them",
                    form.datatype
                ));
            }
            Ok(Form { datatype: DataType::Bytes, shape: form.shape.clone() })
        }
    }
}

fn image_form(image: &ImageOperation, form: &Form) -> Result<Form, String> {
    if !matches!(form.shape.as_slice(), [_] | [_, 1]) {
        return Err(format!("one image a row is read, in the shape [-1] or [-1, 1], not {:?}", form.shape));
    }
    let sides = |what: &str, sides: &[u32]| match sides.iter().find(|side| !(1..=MAX_IMAGE_SIDE).contains(*side)) {
        Some(side) => Err(format!("{what}: a side of {side} pixels; 1 to {MAX_IMAGE_SIDE} are allowed")),
        None => Ok(()),
    };
    let resized = match image.resize.map(|resize| resize.size) {
        Some(Size::Exact(size)) => sides("resize", &size).map(|()| Some(size))?,
        Some(Size::Shorter(side)) => sides("resize", &[side]).map(|()| None)?,
        None => None,
    };
    if let Some(crop) = image.crop {
        sides("crop", &crop)?;
        if resized.is_some_and(|size| crop[0] > size[0] || crop[1] > size[1]) {
            return Err("crop: the part that is kept is larger than the image".into());
        }
    }
    let Some([width, height]) = image.crop.or(resized) else {
        return Err(
            "give resize with an exact size, or crop: otherwise the tensor's shape would follow from the image".into(),
        );
    };
    let channels = image.colour.channels();
    for (what, numbers) in [("mean", &image.mean), ("std", &image.std)] {
        finite(what, numbers)?;
        if !matches!(numbers.len(), 0 | 1) && numbers.len() != channels {
            return Err(format!("{what} has {} entries for {channels} channels", numbers.len()));
        }
    }
    if image.std.contains(&0.0) || !image.divide_by.is_finite() || image.divide_by == 0.0 {
        return Err("std and divide-by cannot be 0".into());
    }
    if image.max_pixels == 0 || image.max_pixels > MAX_IMAGE_PIXELS {
        return Err(format!("max-pixels is from 1 to {MAX_IMAGE_PIXELS}"));
    }
    let (width, height, channels) = (i64::from(width), i64::from(height), channels as i64);
    let rest = match image.layout {
        super::Layout::Nchw => [channels, height, width],
        super::Layout::Nhwc => [height, width, channels],
    };
    Ok(Form { datatype: DataType::Fp32, shape: std::iter::once(form.shape[0]).chain(rest).collect() })
}
