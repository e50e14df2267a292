//! What is computed column by column or row by row. Formulas are those of scikit-learn and scipy, operation by operation, so
//! that results agree to the last few bits.

use muster_shared::bundle::DataType;
use muster_shared::pipeline::{Norm, Operation};

use super::value::{Numbers, Texts, Value, columns, room};
use crate::elements;

/// `[-1]` becomes `[-1, 1]`; what has columns already stays.
pub(super) fn join(value: Value<'_>) -> Result<Value<'_>, String> {
    let with_column = |mut shape: Vec<usize>| {
        if shape.len() == 1 {
            shape.push(1);
        }
        shape
    };
    if value.is_text() {
        let Texts { shape, data } = value.into_texts()?;
        return Ok(Value::Texts(Texts { shape: with_column(shape), data }));
    }
    let Numbers { shape, data } = value.into_numbers()?;
    Ok(Value::Numbers(Numbers { shape: with_column(shape), data }))
}

pub(super) fn select<'a>(indices: &[u32], value: Value<'a>) -> Result<Value<'a>, String> {
    let width = columns(value.shape());
    let rows = value.shape().first().copied().unwrap_or(1);
    if let Some(past) = indices.iter().find(|index| **index as usize >= width) {
        return Err(format!("there is no column {past}; there are {width}"));
    }
    let elements = room(rows, indices.len())?;
    let shape = vec![rows, indices.len()];
    let places = (0..rows).flat_map(|row| indices.iter().map(move |index| row * width + *index as usize));
    if value.is_text() {
        let texts = value.into_texts()?;
        return Ok(Value::Texts(Texts { shape, data: places.map(|at| texts.data[at]).collect() }));
    }
    let numbers = value.into_numbers()?;
    let mut data = Vec::with_capacity(elements);
    data.extend(places.map(|at| numbers.data[at]));
    Ok(Value::Numbers(Numbers { shape, data }))
}

/// Applies `change(number, parameter...)` to every number, the parameters being those of its column.
fn by_column<const N: usize>(
    numbers: &mut Numbers,
    parameters: [&[f64]; N],
    change: impl Fn(f64, [f64; N]) -> f64,
) -> Result<(), String> {
    let width = columns(&numbers.shape);
    if let Some(wrong) = parameters.iter().find(|list| list.len() != 1 && list.len() != width) {
        return Err(format!("there are {width} columns, but {} are expected", wrong.len()));
    }
    if width == 0 {
        return Ok(());
    }
    for row in numbers.data.chunks_exact_mut(width) {
        for (column, number) in row.iter_mut().enumerate() {
            *number = change(*number, parameters.map(|list| if list.len() == 1 { list[0] } else { list[column] }));
        }
    }
    Ok(())
}

fn by_row(numbers: &mut Numbers, change: impl Fn(&mut [f64])) {
    let width = columns(&numbers.shape);
    if width > 0 {
        numbers.data.chunks_exact_mut(width).for_each(change);
    }
}

/// Carries out what takes numbers and gives as many, or fewer or more of them.
pub(super) fn compute(operation: &Operation, mut numbers: Numbers) -> Result<Numbers, String> {
    match operation {
        Operation::Scale { center, scale } => {
            by_column(&mut numbers, [center, scale], |x, [center, scale]| (x - center) / scale)?;
        }
        Operation::Unscale { center, scale } => {
            by_column(&mut numbers, [center, scale], |x, [center, scale]| x * scale + center)?;
        }
        Operation::MinMax { data_min, data_max, low, high, clip } => {
            by_column(&mut numbers, [data_min, data_max], |x, [min, max]| {
                let factor = (high - low) / no_zero(max - min);
                let moved = x * factor + (low - min * factor);
                // NaN stays NaN.
                if *clip && !moved.is_nan() { moved.clamp(*low, *high) } else { moved }
            })?;
        }
        Operation::Normalize { norm } => by_row(&mut numbers, |row| normalize(*norm, row)),
        Operation::Log1p => numbers.data.iter_mut().for_each(|x| *x = x.ln_1p()),
        Operation::Clip { min, max } => {
            for x in numbers.data.iter_mut().filter(|x| !x.is_nan()) {
                *x = x.max(min.unwrap_or(f64::NEG_INFINITY)).min(max.unwrap_or(f64::INFINITY));
            }
        }
        Operation::Impute { values } => {
            by_column(&mut numbers, [values], |x, [value]| if x.is_nan() { value } else { x })?;
        }
        Operation::Cast { datatype } => cast(*datatype, &mut numbers)?,
        Operation::Window { size, hop } => return windows(*size as usize, *hop as usize, &numbers),
        Operation::Reshape { shape } => {
            let rows = numbers.shape.first().copied().unwrap_or(1);
            let shape: Vec<usize> = std::iter::once(rows).chain(shape.iter().map(|size| *size as usize)).collect();
            if shape.iter().product::<usize>() != numbers.data.len() {
                return Err(format!("rows cannot have the shape {:?}", &shape[1..]));
            }
            numbers.shape = shape;
        }
        Operation::Softmax => by_row(&mut numbers, softmax),
        Operation::Sigmoid => numbers.data.iter_mut().for_each(|x| *x = sigmoid(*x)),
        Operation::Argmax => {
            let width = columns(&numbers.shape).max(1);
            numbers.data = numbers.data.chunks_exact(width).map(argmax).collect();
            numbers.shape.pop();
        }
        Operation::Threshold { at } => numbers.data.iter_mut().for_each(|x| *x = f64::from(u8::from(*x >= *at))),
        Operation::Join
        | Operation::Select { .. }
        | Operation::ImputeText { .. }
        | Operation::OneHot { .. }
        | Operation::Ordinal { .. }
        | Operation::Image(_)
        | Operation::TopK { .. }
        | Operation::Labels { .. } => return Err(format!("{} does not compute numbers alone", operation.name())),
    }
    Ok(numbers)
}

/// scikit-learn's `_handle_zeros_in_scale`: what is next to nothing is no scale.
pub(super) fn no_zero(scale: f64) -> f64 {
    if scale < 10.0 * f64::EPSILON { 1.0 } else { scale }
}

fn normalize(norm: Norm, row: &mut [f64]) {
    let length = match norm {
        Norm::L1 => row.iter().map(|x| x.abs()).sum(),
        Norm::L2 => row.iter().map(|x| x * x).sum::<f64>().sqrt(),
        Norm::Max => row.iter().map(|x| x.abs()).fold(0.0, f64::max),
    };
    let length: f64 = no_zero(length);
    row.iter_mut().for_each(|x| *x /= length);
}

fn softmax(row: &mut [f64]) {
    let greatest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row.iter_mut().for_each(|x| *x = (*x - greatest).exp());
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

fn sigmoid(x: f64) -> f64 {
    // The exponent is never positive, so nothing overflows.
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

fn argmax(row: &[f64]) -> f64 {
    let mut best: Option<(usize, f64)> = None;
    for (at, x) in row.iter().enumerate() {
        if x.is_nan() {
            return -1.0;
        }
        if best.is_none_or(|(_, most)| *x > most) {
            best = Some((at, *x));
        }
    }
    best.map_or(-1.0, |(at, _)| at as f64)
}

/// The `k` greatest of each row and their positions.
pub(super) fn top_k(k: usize, numbers: &Numbers) -> Result<(Numbers, Numbers), String> {
    let width = columns(&numbers.shape);
    if k > width || numbers.shape.len() < 2 {
        return Err(format!("rows have {width} columns, fewer than {k}"));
    }
    let (mut values, mut positions) = (Vec::new(), Vec::new());
    for row in numbers.data.chunks_exact(width.max(1)) {
        let mut order: Vec<usize> = (0..width).collect();
        // NaN counts as the least of all.
        let key = |at: usize| if row[at].is_nan() { f64::NEG_INFINITY } else { row[at] };
        order.sort_by(|a, b| key(*b).total_cmp(&key(*a)).then_with(|| row[*a].is_nan().cmp(&row[*b].is_nan())));
        values.extend(order[..k].iter().map(|at| row[*at]));
        positions.extend(order[..k].iter().map(|at| *at as f64));
    }
    let mut shape = numbers.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = k;
    }
    Ok((Numbers { shape: shape.clone(), data: values }, Numbers { shape, data: positions }))
}

fn cast(datatype: DataType, numbers: &mut Numbers) -> Result<(), String> {
    let mut bytes = Vec::with_capacity(8);
    for (at, x) in numbers.data.iter_mut().enumerate() {
        let whole = if datatype == DataType::Bool { f64::from(u8::from(*x != 0.0)) } else { x.trunc() };
        let wanted = if datatype.is_float() { *x } else { whole };
        bytes.clear();
        if !elements::push_f64(datatype, wanted, &mut bytes) {
            return Err(format!("element {at}: {x} is no value of {datatype}"));
        }
        *x = elements::value(datatype, &bytes, 0).unwrap_or(wanted);
    }
    Ok(())
}

fn windows(size: usize, hop: usize, series: &Numbers) -> Result<Numbers, String> {
    let times = series.shape.first().copied().unwrap_or(0);
    let width = columns(&series.shape);
    let Some(after_first) = times.checked_sub(size) else {
        return Err(format!("a series of {times} times is shorter than a window, {size}"));
    };
    let count = after_first / hop.max(1) + 1;
    let mut data = Vec::with_capacity(room(count, size.saturating_mul(width))?);
    for window in 0..count {
        let start = window * hop * width;
        data.extend_from_slice(&series.data[start..start + size * width]);
    }
    Ok(Numbers { shape: vec![count, size, width], data })
}
