//! Single elements of a tensor: bytes to numbers, numbers and JSON text to bytes.
//!
//! Everything that depends on the element type and nothing else is here. Integers of 64 bits never pass through a
//! floating-point number on their way from and to JSON.

use std::io::Write as _;

use half::f16;
use muster_shared::bundle::DataType;

/// The bytes of element `index`.
fn element<const N: usize>(data: &[u8], index: usize) -> Option<[u8; N]> {
    let start = index.checked_mul(N)?;
    data.get(start..start.checked_add(N)?)?.try_into().ok()
}

/// Element `index` as a number; `None` past the end and for `BYTES`.
pub(crate) fn value(datatype: DataType, data: &[u8], index: usize) -> Option<f64> {
    match datatype {
        DataType::Bool | DataType::Uint8 => element(data, index).map(|b| f64::from(u8::from_le_bytes(b))),
        DataType::Uint16 => element(data, index).map(|b| f64::from(u16::from_le_bytes(b))),
        DataType::Uint32 => element(data, index).map(|b| f64::from(u32::from_le_bytes(b))),
        DataType::Uint64 => element(data, index).map(|b| u64::from_le_bytes(b) as f64),
        DataType::Int8 => element(data, index).map(|b| f64::from(i8::from_le_bytes(b))),
        DataType::Int16 => element(data, index).map(|b| f64::from(i16::from_le_bytes(b))),
        DataType::Int32 => element(data, index).map(|b| f64::from(i32::from_le_bytes(b))),
        DataType::Int64 => element(data, index).map(|b| i64::from_le_bytes(b) as f64),
        DataType::Fp16 => element(data, index).map(|b| f16::from_le_bytes(b).to_f64()),
        DataType::Fp32 => element(data, index).map(|b| f64::from(f32::from_le_bytes(b))),
        DataType::Fp64 => element(data, index).map(f64::from_le_bytes),
        DataType::Bytes => None,
    }
}

/// Element `index` as an integer, for the types that hold nothing else.
pub(crate) fn integer(datatype: DataType, data: &[u8], index: usize) -> Option<i128> {
    match datatype {
        DataType::Bool | DataType::Uint8 => element(data, index).map(|b| i128::from(u8::from_le_bytes(b))),
        DataType::Uint16 => element(data, index).map(|b| i128::from(u16::from_le_bytes(b))),
        DataType::Uint32 => element(data, index).map(|b| i128::from(u32::from_le_bytes(b))),
        DataType::Uint64 => element(data, index).map(|b| i128::from(u64::from_le_bytes(b))),
        DataType::Int8 => element(data, index).map(|b| i128::from(i8::from_le_bytes(b))),
        DataType::Int16 => element(data, index).map(|b| i128::from(i16::from_le_bytes(b))),
        DataType::Int32 => element(data, index).map(|b| i128::from(i32::from_le_bytes(b))),
        DataType::Int64 => element(data, index).map(|b| i128::from(i64::from_le_bytes(b))),
        DataType::Fp16 | DataType::Fp32 | DataType::Fp64 | DataType::Bytes => None,
    }
}

/// Appends an element of `BYTES`, or says that it is too long.
pub(crate) fn push_bytes(element: &[u8], out: &mut Vec<u8>) -> bool {
    u32::try_from(element.len()).map(|length| out.extend(length.to_le_bytes())).is_ok_and(|()| {
        out.extend_from_slice(element);
        true
    })
}

/// Appends the JSON string `text`, read straight into `out`.
fn push_text(text: &str, out: &mut Vec<u8>) -> bool {
    match text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        None => false,
        Some(plain) if !plain.contains('\\') => push_bytes(plain.as_bytes(), out),
        Some(_) => serde_json::from_str::<String>(text).is_ok_and(|decoded| push_bytes(decoded.as_bytes(), out)),
    }
}

/// Appends `value`, or says that `datatype` cannot hold it.
pub(crate) fn push_f64(datatype: DataType, value: f64, out: &mut Vec<u8>) -> bool {
    match datatype {
        DataType::Fp16 => out.extend(f16::from_f64(value).to_le_bytes()),
        #[expect(clippy::cast_possible_truncation, reason = "rounding to the nearest is what is promised")]
        DataType::Fp32 => out.extend((value as f32).to_le_bytes()),
        DataType::Fp64 => out.extend(value.to_le_bytes()),
        DataType::Bool
        | DataType::Uint8
        | DataType::Uint16
        | DataType::Uint32
        | DataType::Uint64
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Bytes => {
            if value.fract() != 0.0 || !(-1e19..=2e19).contains(&value) {
                return false;
            }
            #[expect(clippy::cast_possible_truncation, reason = "an integer of at most 65 bits, checked just above")]
            return push_integer(datatype, value as i128, out);
        }
    }
    true
}

/// Appends `value`, or says that `datatype` cannot hold it.
fn push_integer(datatype: DataType, value: i128, out: &mut Vec<u8>) -> bool {
    fn put<T: TryFrom<i128>, const N: usize>(value: i128, bytes: fn(T) -> [u8; N], out: &mut Vec<u8>) -> bool {
        T::try_from(value).map(|number| out.extend(bytes(number))).is_ok()
    }
    match datatype {
        DataType::Bool => matches!(value, 0 | 1) && put(value, u8::to_le_bytes, out),
        DataType::Uint8 => put(value, u8::to_le_bytes, out),
        DataType::Uint16 => put(value, u16::to_le_bytes, out),
        DataType::Uint32 => put(value, u32::to_le_bytes, out),
        DataType::Uint64 => put(value, u64::to_le_bytes, out),
        DataType::Int8 => put(value, i8::to_le_bytes, out),
        DataType::Int16 => put(value, i16::to_le_bytes, out),
        DataType::Int32 => put(value, i32::to_le_bytes, out),
        DataType::Int64 => put(value, i64::to_le_bytes, out),
        DataType::Fp16 | DataType::Fp32 | DataType::Fp64 | DataType::Bytes => false,
    }
}

/// A number written as JSON, or one of the words for those that JSON lacks. A literal too large for the type is refused
/// rather than turned into infinity.
fn float<T: std::str::FromStr>(text: &str, is_finite: fn(&T) -> bool, words: [T; 3]) -> Option<T> {
    let [nan, infinity, minus_infinity] = words;
    match text {
        "\"NaN\"" => Some(nan),
        "\"Infinity\"" | "\"Inf\"" => Some(infinity),
        "\"-Infinity\"" | "\"-Inf\"" => Some(minus_infinity),
        // Only what starts as a JSON number does: Rust would read `inf` and `.5` too.
        _ if text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => text.parse().ok().filter(is_finite),
        _ => None,
    }
}

/// Appends the JSON scalar `text`, or says that `datatype` cannot hold it.
pub(crate) fn push_json(datatype: DataType, text: &str, out: &mut Vec<u8>) -> bool {
    match datatype {
        DataType::Bool => match text {
            "true" => out.push(1),
            "false" => out.push(0),
            _ => return false,
        },
        DataType::Fp16 => {
            match float(text, |v: &f32| v.is_finite(), [f32::NAN, f32::INFINITY, f32::NEG_INFINITY]).map(f16::from_f32)
            {
                Some(value) => out.extend(value.to_le_bytes()),
                None => return false,
            }
        }
        DataType::Fp32 => match float(text, |v: &f32| v.is_finite(), [f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
            Some(value) => out.extend(value.to_le_bytes()),
            None => return false,
        },
        DataType::Fp64 => match float(text, |v: &f64| v.is_finite(), [f64::NAN, f64::INFINITY, f64::NEG_INFINITY]) {
            Some(value) => out.extend(value.to_le_bytes()),
            None => return false,
        },
        DataType::Bytes => return push_text(text, out),
        DataType::Uint8
        | DataType::Uint16
        | DataType::Uint32
        | DataType::Uint64
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64 => {
            return text.parse::<i128>().is_ok_and(|value| push_integer(datatype, value, out));
        }
    }
    true
}

/// Appends an element of `BYTES` as JSON, or says that it is no text.
pub(crate) fn write_text(element: &[u8], out: &mut Vec<u8>) -> bool {
    // Writing text to memory cannot fail.
    std::str::from_utf8(element).is_ok_and(|text| serde_json::to_writer(out, text).is_ok())
}

/// Appends element `index`, a number or a boolean, as JSON. Floats get the shortest digits that read back as the same value; those that JSON lacks
/// are written as Triton writes them: `NaN`, `Infinity`, `-Infinity`.
pub(crate) fn write_json(datatype: DataType, data: &[u8], index: usize, out: &mut Vec<u8>) {
    let word = |value: f64| match value {
        v if v.is_nan() => "NaN",
        v if v > 0.0 => "Infinity",
        _ => "-Infinity",
    };
    match datatype {
        DataType::Bool => out.extend_from_slice(if data.get(index) == Some(&1) { b"true" } else { b"false" }),
        DataType::Fp32 => match element(data, index).map_or(f32::NAN, f32::from_le_bytes) {
            value if value.is_finite() => write_number(&value, out),
            value => out.extend_from_slice(word(f64::from(value)).as_bytes()),
        },
        DataType::Fp64 | DataType::Fp16 => match value(datatype, data, index).unwrap_or(f64::NAN) {
            value if value.is_finite() => write_number(&value, out),
            value => out.extend_from_slice(word(value).as_bytes()),
        },
        DataType::Uint8
        | DataType::Uint16
        | DataType::Uint32
        | DataType::Uint64
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Bytes => {
            // Writing to memory cannot fail.
            let _ = write!(out, "{}", integer(datatype, data, index).unwrap_or_default());
        }
    }
}

fn write_number<T: serde::Serialize>(value: &T, out: &mut Vec<u8>) {
    // Writing a number to memory cannot fail.
    let _ = serde_json::to_writer(out, value);
}
