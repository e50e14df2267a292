//! Samples in numpy's NPY format: a two-dimensional array of numbers, read by position.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use npyz::{DType, NpyFile, Order, TypeChar};

use super::{MAX_VALUES, Place, SampleError, Wanted, admit};

/// Longest header, in bytes; numpy's own are below 200.
const MAX_HEADER_BYTES: u64 = 64 * 1024;

/// Whether the file holds as much as its header says. The parser multiplies the header's numbers without a check, so
/// this is looked at first: the product of all whole numbers in the header (sizes of dimensions and of the type)
/// cannot be more than the file's length.
fn promises_too_much(header: &[u8], length: u64) -> bool {
    let mut product: u64 = 1;
    for number in header.split(|b| !b.is_ascii_digit()).filter(|digits| !digits.is_empty()) {
        let number =
            number.iter().try_fold(0_u64, |number, digit| number.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
        match number.and_then(|number| product.checked_mul(number.max(1))) {
            Some(next) if next <= length => product = next,
            Some(_) | None => return true,
        }
    }
    false
}

/// The text of the header, without interpreting it. Leaves the file at its start.
fn header_text(file: &mut File) -> std::io::Result<Option<Vec<u8>>> {
    let mut start = Vec::new();
    file.take(MAX_HEADER_BYTES).read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    let Some(rest) = start.strip_prefix(b"\x93NUMPY") else {
        return Ok(None);
    };
    Ok(match rest {
        [1, _, a, b, text @ ..] => text.get(..usize::from(u16::from_le_bytes([*a, *b]))),
        [2 | 3, _, a, b, c, d, text @ ..] => {
            usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).ok().and_then(|length| text.get(..length))
        }
        _ => None,
    }
    .map(<[u8]>::to_vec))
}

fn numbers(npy: NpyFile<BufReader<File>>, kind: TypeChar, size: u64) -> Option<Vec<Result<f64, std::io::Error>>> {
    // The length was held against the file's before, so that collecting is bounded by it.
    macro_rules! read_as {
        ($type:ty, $convert:expr) => {
            npy.data::<$type>().ok().map(|data| data.map(|value| value.map($convert)).collect())
        };
    }
    match (kind, size) {
        (TypeChar::Float, 4) => read_as!(f32, f64::from),
        (TypeChar::Float, 8) => read_as!(f64, |value| value),
        (TypeChar::Int, 1) => read_as!(i8, f64::from),
        (TypeChar::Int, 2) => read_as!(i16, f64::from),
        (TypeChar::Int, 4) => read_as!(i32, f64::from),
        (TypeChar::Int, 8) => read_as!(i64, |value| value as f64),
        (TypeChar::Uint, 1) => read_as!(u8, f64::from),
        (TypeChar::Uint, 2) => read_as!(u16, f64::from),
        (TypeChar::Uint, 4) => read_as!(u32, f64::from),
        (TypeChar::Uint, 8) => read_as!(u64, |value| value as f64),
        (TypeChar::Bool, 1) => read_as!(bool, |value| f64::from(u8::from(value))),
        _ => None,
    }
}

/// Reads the wanted values of every row: the array must have as many columns.
pub(super) fn read(path: &Path, mut file: File, length: u64, wanted: &[Wanted]) -> Result<Vec<f64>, SampleError> {
    let refuse = |reason: String| SampleError::new(path, Place::File, reason);
    let header = header_text(&mut file)
        .map_err(|error| refuse(format!("cannot read it: {error}")))?
        .ok_or_else(|| refuse("this is not an NPY file: write it with numpy.save".into()))?;
    if promises_too_much(&header, length) {
        return Err(refuse("the file is shorter than its header says; it is damaged".into()));
    }
    let npy = NpyFile::new(BufReader::new(file)).map_err(|error| refuse(format!("its header is damaged: {error}")))?;
    let dtype = npy.dtype();
    let refuse_type = || {
        refuse(format!(
            "the array holds {}; integers, booleans and floating-point numbers of 32 or 64 bits can be read",
            dtype.descr()
        ))
    };
    let DType::Plain(scalar) = &dtype else {
        return Err(refuse_type());
    };
    let (rows, columns) = match npy.shape() {
        [rows, columns] => (*rows, *columns),
        shape => {
            return Err(refuse(format!("the array has {} dimensions; 2 are expected, rows and columns", shape.len())));
        }
    };
    if usize::try_from(columns) != Ok(wanted.len()) {
        return Err(refuse(format!("the array has {columns} columns, but the model's inputs take {}", wanted.len())));
    }
    let (order, total) = (npy.order(), npy.len());
    if total > MAX_VALUES as u64 {
        return Err(refuse(format!("it holds more than {MAX_VALUES} values: a smaller sample serves as well")));
    }
    let stored = numbers(npy, scalar.type_char(), scalar.size_field()).ok_or_else(refuse_type)?;
    let rows = usize::try_from(rows).unwrap_or(usize::MAX);
    let mut values = Vec::with_capacity(stored.len());
    for row in 0..rows {
        for (column, Wanted { datatype, .. }) in wanted.iter().enumerate() {
            let at = match order {
                Order::C => row * wanted.len() + column,
                Order::Fortran => column * rows + row,
            };
            let value = match stored.get(at) {
                Some(Ok(value)) => *value,
                Some(Err(_)) | None => {
                    return Err(refuse("the file is shorter than its header says; it is damaged".into()));
                }
            };
            let value = admit(value, *datatype)
                .map_err(|reason| SampleError::new(path, Place::Element { row, column }, reason))?;
            values.push(value);
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use muster_shared::bundle::DataType;
    use proptest::prelude::*;

    use super::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn header(descr: &str, fortran: bool, shape: &str) -> String {
        let fortran = if fortran { "True" } else { "False" };
        format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
    }

    fn read_bytes(bytes: &[u8], columns: usize, datatype: DataType) -> Result<Vec<f64>, String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let wanted = vec![Wanted { name: String::new(), datatype }; columns];
        read(Path::new("r.npy"), file, bytes.len() as u64, &wanted).map_err(|error| error.to_string())
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn both_orders_and_the_ordinary_types_are_read() {
        let data = floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let c = npy(&header("'<f4'", false, "(2, 3)"), &data);
        assert_eq!(read_bytes(&c, 3, DataType::Fp32), Ok(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let fortran = npy(&header("'<f4'", true, "(2, 3)"), &data);
        assert_eq!(read_bytes(&fortran, 3, DataType::Fp32), Ok(vec![1.0, 3.0, 5.0, 2.0, 4.0, 6.0]));
        for (descr, data) in [
            ("'|i1'", vec![255u8, 2]),
            ("'>i2'", vec![255, 255, 0, 2]),
            ("'<i8'", [(-1i64).to_le_bytes(), 2i64.to_le_bytes()].concat()),
        ] {
            assert_eq!(
                read_bytes(&npy(&header(descr, false, "(1, 2)"), &data), 2, DataType::Int64),
                Ok(vec![-1.0, 2.0])
            );
        }
        assert_eq!(read_bytes(&npy(&header("'|b1'", false, "(2, 1)"), &[0, 1]), 1, DataType::Bool), Ok(vec![0.0, 1.0]));
    }

    #[test]
    fn mistakes_are_named() {
        let data = floats(&[1.0, f32::NAN]);
        for (bytes, expected) in [
            (b"PK\x03\x04".to_vec(), "not an NPY file"),
            (b"".to_vec(), "not an NPY file"),
            (npy(&header("'<f4'", false, "(3, 2)"), &data), "shorter than its header says"),
            (npy(&header("'<f4'", false, "(18446744073709551615, 3)"), &data), "shorter than its header says"),
            (
                npy(&header("'<f4'", false, "(0, 4294967296, 4294967296, 4294967296)"), &data),
                "shorter than its header says",
            ),
            (npy(&header("'<f4'", false, "(2,)"), &data), "1 dimensions"),
            (npy(&header("'<f4'", false, "(2, 1)"), &data), "1 columns, but the model's inputs take 2"),
            (npy(&header("'<U2'", false, "(1, 2)"), &[0; 16]), "the array holds '<U2'"),
            (npy(&header("'|O'", false, "(1, 2)"), &[0; 16]), "the array holds '|O'"),
            (npy(&header("[('a', '<f4')]", false, "(1, 2)"), &data), "the array holds"),
            (npy("not python", &data), "its header is damaged"),
            (npy(&header("'<f4'", false, "(1, 2)"), &floats(&[1.0, f32::INFINITY])), "r.npy, element [0, 1]: infinite"),
        ] {
            let error = read_bytes(&bytes, 2, DataType::Fp32).unwrap_err();
            assert!(error.contains(expected) && error.starts_with("r.npy"), "{error} for {expected}");
        }
        let good = npy(&header("'<f4'", false, "(1, 2)"), &data);
        assert!(read_bytes(&good, 2, DataType::Int8).unwrap_err().contains("element [0, 1]: the value is missing"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_sample_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[\\[\\](){}',:a-z0-9_<>| ]{0,80}", data in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = read_bytes(&bytes, 2, DataType::Fp32);
            let _ = read_bytes(&npy(&text, &data), 2, DataType::Fp32);
        }

        #[test]
        fn any_shape_is_read_or_refused(shape in prop::collection::vec(any::<u64>(), 0..5), small in prop::collection::vec(0u64..4, 0..4), fortran: bool) {
            for shape in [shape, small] {
                let shape = format!("({})", shape.iter().map(|d| format!("{d},")).collect::<String>());
                let _ = read_bytes(&npy(&header("'<f4'", fortran, &shape), &[0; 64]), 2, DataType::Fp32);
            }
        }
    }
}
