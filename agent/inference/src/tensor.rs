//! A tensor: a name, an element type, a shape and the elements' bytes.
//!
//! Bytes are little-endian, row-major and without padding, as the Open Inference Protocol's binary extension has them: an
//! element of `BYTES`, which may be a text or an encoded image, is its length in four bytes and then as many bytes. A `Tensor`
//! is consistent by construction: as many bytes as its shape says, no `BOOL` but 0 and 1, and no length that lies.

use muster_shared::bundle::DataType;

use crate::elements;

/// Dimensions a tensor may have.
pub const MAX_RANK: usize = 16;

/// A tensor; see the module's notes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    name: String,
    datatype: DataType,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// Why something is not a tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// More dimensions than [`MAX_RANK`].
    #[error("tensor {tensor:?} has {rank} dimensions; at most {MAX_RANK} are allowed")]
    Rank {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        rank: usize,
    },
    /// More elements than memory could hold.
    #[error("tensor {tensor:?}: the shape {shape:?} is larger than any memory")]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The data does not fill the shape.
    #[error("tensor {tensor:?} of {datatype} and shape {shape:?} needs {expected} bytes, but {got} were given")]
    ByteCount {
        /// The tensor.
        tensor: String,
        /// Its element type.
        datatype: DataType,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes the shape asks for.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// The data does not fill the shape.
    #[error("tensor {tensor:?} of shape {shape:?} needs {expected} elements, but {} given", if *got > *expected { "more are".to_owned() } else { format!("{got} are") })]
    ElementCount {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Elements the shape asks for.
        expected: usize,
        /// Elements given; reading stops at one too many.
        got: usize,
    },
    /// An element of `BYTES` that is said to be longer than the data.
    #[error(
        "tensor {tensor:?}, element {element}: its length needs 4 bytes and then as many as it says, but {got} are left"
    )]
    Length {
        /// The tensor.
        tensor: String,
        /// The element, counted from 0 in row-major order.
        element: usize,
        /// Bytes left for it and its length.
        got: usize,
    },
    /// Data that goes on behind the last element of `BYTES`.
    #[error("tensor {tensor:?} of BYTES: {got} bytes follow the last of its {elements} elements")]
    Trailing {
        /// The tensor.
        tensor: String,
        /// Elements the shape asks for.
        elements: usize,
        /// Bytes too many.
        got: usize,
    },
    /// An element of `BYTES` that is not UTF-8, for which JSON has no form.
    #[error(
        "tensor {tensor:?}, element {element} is no UTF-8 text, for which JSON has no form; use the binary data format"
    )]
    NotText {
        /// The tensor.
        tensor: String,
        /// The element, counted from 0 in row-major order.
        element: usize,
    },
    /// A byte of a `BOOL` that is neither 0 nor 1.
    #[error("tensor {tensor:?}, element {element}: a BOOL is 0 or 1, not {got}")]
    Bool {
        /// The tensor.
        tensor: String,
        /// The element, counted from 0 in row-major order.
        element: usize,
        /// The byte.
        got: u8,
    },
    /// FP16, for which JSON has no form.
    #[error("tensor {tensor:?}: FP16 data cannot be sent as JSON; use the binary data format")]
    HalfInJson {
        /// The tensor.
        tensor: String,
    },
    /// An element that its type cannot hold.
    #[error("tensor {tensor:?}, element {element}: {got} is not a value of {datatype}")]
    Value {
        /// The tensor.
        tensor: String,
        /// The element, counted from 0 in row-major order.
        element: usize,
        /// The element type.
        datatype: DataType,
        /// What stood there, shortened.
        got: String,
    },
    /// The JSON has no `data`, or it is not an array.
    #[error("tensor {tensor:?}: \"data\" must be an array, flat or nested as the shape, and not deeper than it")]
    NoArray {
        /// The tensor.
        tensor: String,
    },
}

/// Elements of `shape`, unless there are too many to address.
fn element_count(shape: &[usize]) -> Option<usize> {
    // Zero times anything is zero, but the other factors alone must not overflow either: they are printed and multiplied later.
    let others = shape.iter().filter(|d| **d != 0).try_fold(1_usize, |product, d| product.checked_mul(*d))?;
    Some(if shape.contains(&0) { 0 } else { others })
}

/// Bytes of the length before each element of `BYTES`.
pub(crate) const LENGTH_BYTES: usize = 4;

/// Checks `shape` and gives its elements and bytes; for `BYTES`, the fewest bytes they could have.
pub(crate) fn measure(name: &str, datatype: DataType, shape: &[usize]) -> Result<(usize, usize), TensorError> {
    if shape.len() > MAX_RANK {
        return Err(TensorError::Rank { tensor: name.to_owned(), rank: shape.len() });
    }
    let size = datatype.size_bytes().unwrap_or(LENGTH_BYTES);
    let count = element_count(shape);
    count
        .zip(count.and_then(|count| count.checked_mul(size)).filter(|bytes| isize::try_from(*bytes).is_ok()))
        .ok_or_else(|| TensorError::TooLarge { tensor: name.to_owned(), shape: shape.to_vec() })
}

/// The elements of a tensor of `BYTES`; see [`Tensor::byte_elements`].
#[derive(Debug, Clone)]
pub struct ByteElements<'a>(&'a [u8]);

impl<'a> Iterator for ByteElements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<LENGTH_BYTES>()?;
        let (element, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        self.0 = rest;
        Some(element)
    }
}

/// Whether `data` is as many elements of `BYTES` as `shape` has.
fn check_byte_elements(name: &str, shape: &[usize], expected: usize, data: &[u8]) -> Result<(), TensorError> {
    let mut elements = ByteElements(data);
    let got = elements.by_ref().take(expected).count();
    let (tensor, left) = (name.to_owned(), elements.0.len());
    match (got == expected, left) {
        (true, 0) => Ok(()),
        (true, got) => Err(TensorError::Trailing { tensor, elements: expected, got }),
        (false, 0) => Err(TensorError::ElementCount { tensor, shape: shape.to_vec(), expected, got }),
        (false, left) => Err(TensorError::Length { tensor, element: got, got: left }),
    }
}

impl Tensor {
    /// Checks and wraps `data`.
    ///
    /// # Errors
    /// [`TensorError`] when the bytes do not fill the shape, there are too many dimensions, the length of an element of `BYTES`
    /// goes past the end, or a `BOOL` is neither 0 nor 1.
    pub fn new(
        name: impl Into<String>,
        datatype: DataType,
        shape: Vec<usize>,
        data: Vec<u8>,
    ) -> Result<Self, TensorError> {
        let name = name.into();
        let (elements, expected) = measure(&name, datatype, &shape)?;
        if datatype == DataType::Bytes {
            check_byte_elements(&name, &shape, elements, &data)?;
        } else if data.len() != expected {
            return Err(TensorError::ByteCount { tensor: name, datatype, shape, expected, got: data.len() });
        }
        if datatype == DataType::Bool
            && let Some(element) = data.iter().position(|byte| *byte > 1)
        {
            return Err(TensorError::Bool { tensor: name, element, got: data[element] });
        }
        Ok(Self { name, datatype, shape, data })
    }

    /// A tensor of `FP32`.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_f32(name: impl Into<String>, shape: Vec<usize>, values: &[f32]) -> Result<Self, TensorError> {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(name, DataType::Fp32, shape, data)
    }

    /// A tensor of `BYTES`.
    ///
    /// # Errors
    /// As [`Tensor::new`], and [`TensorError::TooLarge`] for an element of 4 GiB or more.
    pub fn from_byte_elements<E: AsRef<[u8]>>(
        name: impl Into<String>,
        shape: Vec<usize>,
        elements: impl IntoIterator<Item = E>,
    ) -> Result<Self, TensorError> {
        let (name, mut data) = (name.into(), Vec::new());
        for element in elements {
            if !elements::push_bytes(element.as_ref(), &mut data) {
                return Err(TensorError::TooLarge { tensor: name, shape });
            }
        }
        Self::new(name, DataType::Bytes, shape, data)
    }

    /// A tensor of `datatype` with `values` converted to it: rounded to the nearest `FP16`, `FP32`; for integers and `BOOL`
    /// only values that they hold exactly are taken.
    ///
    /// # Errors
    /// As [`Tensor::new`], and [`TensorError::Value`] for a value that the type cannot hold.
    pub fn from_f64(
        name: impl Into<String>,
        datatype: DataType,
        shape: Vec<usize>,
        values: &[f64],
    ) -> Result<Self, TensorError> {
        let name = name.into();
        let (expected, bytes) = measure(&name, datatype, &shape)?;
        if values.len() != expected {
            return Err(TensorError::ElementCount { tensor: name, shape, expected, got: values.len() });
        }
        let mut data = Vec::with_capacity(bytes);
        for (element, value) in values.iter().enumerate() {
            if !elements::push_f64(datatype, *value, &mut data) {
                return Err(TensorError::Value { tensor: name, element, datatype, got: value.to_string() });
            }
        }
        Self::new(name, datatype, shape, data)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its element type.
    #[must_use]
    pub fn datatype(&self) -> DataType {
        self.datatype
    }

    /// Its shape.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its elements' bytes, little-endian, row-major, without padding; for `BYTES`, each with its length before it.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Gives its elements' bytes away.
    #[must_use]
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// How many elements it has.
    #[must_use]
    pub fn element_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Element `index` in row-major order as a number; `false` is 0 and `true` is 1. 64-bit integers beyond 2⁵³ are
    /// rounded. `None` past the end, and for `BYTES`.
    #[must_use]
    pub fn value(&self, index: usize) -> Option<f64> {
        elements::value(self.datatype, &self.data, index)
    }

    /// All elements in row-major order as [`Tensor::value`] gives them; none for `BYTES`.
    pub fn values(&self) -> impl Iterator<Item = f64> {
        (0..self.element_count()).map_while(|index| self.value(index))
    }

    /// All elements of `BYTES` in row-major order, without their lengths; none for any other type.
    #[must_use]
    pub fn byte_elements(&self) -> ByteElements<'_> {
        ByteElements(if self.datatype == DataType::Bytes { &self.data } else { &[] })
    }

    /// The first element of `BYTES` that is no UTF-8 text, counted from 0.
    #[must_use]
    pub fn first_not_text(&self) -> Option<usize> {
        self.byte_elements().position(|element| std::str::from_utf8(element).is_err())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn inconsistent_tensors_cannot_be_made() {
        let make = |datatype, shape: &[usize], bytes: usize| Tensor::new("x", datatype, shape.to_vec(), vec![0; bytes]);
        assert!(make(DataType::Fp32, &[2, 3], 24).is_ok());
        assert!(make(DataType::Fp32, &[], 4).is_ok());
        assert_eq!(
            make(DataType::Fp32, &[2, 3], 23).unwrap_err().to_string(),
            "tensor \"x\" of FP32 and shape [2, 3] needs 24 bytes, but 23 were given"
        );
        assert!(matches!(make(DataType::Int8, &[usize::MAX, 2], 1), Err(TensorError::TooLarge { .. })));
        assert!(matches!(make(DataType::Int8, &[usize::MAX, 2, 0], 0), Err(TensorError::TooLarge { .. })));
        assert!(matches!(make(DataType::Fp64, &[usize::MAX / 4], 1), Err(TensorError::TooLarge { .. })));
        assert!(matches!(make(DataType::Int8, &[1; MAX_RANK + 1], 1), Err(TensorError::Rank { .. })));
        assert_eq!(
            Tensor::new("x", DataType::Bool, vec![2], vec![1, 2]),
            Err(TensorError::Bool { tensor: "x".into(), element: 1, got: 2 })
        );
    }

    #[test]
    fn bytes_are_elements_of_any_length() {
        let elements: [&[u8]; 4] = [b"setosa", b"", b"\xff\x00", "Öl".as_bytes()];
        let tensor = Tensor::from_byte_elements("x", vec![2, 2], elements).unwrap();
        assert_eq!(tensor.byte_elements().collect::<Vec<_>>(), elements);
        assert_eq!(tensor.data()[..10], *b"\x06\0\0\0setosa");
        assert_eq!((tensor.value(0), tensor.values().count(), tensor.first_not_text()), (None, 0, Some(2)));
        assert!(Tensor::from_byte_elements("x", vec![0, 2], [""; 0]).is_ok());
        assert_eq!(Tensor::from_f32("x", vec![1], &[1.0]).unwrap().byte_elements().count(), 0);
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let text = |shape: &[usize], data: &[u8]| {
            Tensor::new("x", DataType::Bytes, shape.to_vec(), data.to_vec()).unwrap_err().to_string()
        };
        assert_eq!(text(&[2], b"\x01\0\0\0a"), "tensor \"x\" of shape [2] needs 2 elements, but 1 are given");
        assert_eq!(text(&[1], b"\x01\0\0\0ab"), "tensor \"x\" of BYTES: 1 bytes follow the last of its 1 elements");
        assert!(text(&[1], b"\xff\xff\xff\xffa").contains("element 0: its length needs 4 bytes and then as many"));
        assert!(text(&[2], b"\x01\0\0\0a\x01\0").ends_with("but 2 are left"));
        assert!(text(&[usize::MAX / 8], b"").contains("but 0 are given"));
        assert!(text(&[usize::MAX / 2], b"").contains("larger than any memory"));
    }

    #[test]
    fn numbers_are_converted_or_refused() {
        let make =
            |datatype, value: f64| Tensor::from_f64("x", datatype, vec![1], &[value]).map(|t| t.value(0).unwrap());
        for (datatype, value) in [
            (DataType::Bool, 1.0),
            (DataType::Uint8, 255.0),
            (DataType::Int16, -32_768.0),
            (DataType::Uint64, 18_446_744_073_709_549_568.0),
            (DataType::Int64, -9_223_372_036_854_775_808.0),
            (DataType::Fp16, 0.5),
            (DataType::Fp32, f64::NEG_INFINITY),
            (DataType::Fp64, 0.1),
        ] {
            assert_eq!(make(datatype, value), Ok(value), "{datatype}");
        }
        for (datatype, value) in [
            (DataType::Bool, 2.0),
            (DataType::Uint8, 256.0),
            (DataType::Uint8, -1.0),
            (DataType::Int32, 0.5),
            (DataType::Int64, 9_223_372_036_854_775_808.0),
            (DataType::Uint64, 18_446_744_073_709_551_616.0),
            (DataType::Int8, f64::NAN),
            (DataType::Int8, f64::INFINITY),
        ] {
            assert!(matches!(make(datatype, value), Err(TensorError::Value { .. })), "{datatype} {value}");
        }
        assert!(matches!(
            Tensor::from_f64("x", DataType::Fp32, vec![2], &[1.0]),
            Err(TensorError::ElementCount { expected: 2, got: 1, .. })
        ));
    }

    #[test]
    fn floats_are_the_types_that_hold_what_is_no_number() {
        for datatype in [
            DataType::Bool,
            DataType::Uint8,
            DataType::Uint16,
            DataType::Uint32,
            DataType::Uint64,
            DataType::Int8,
            DataType::Int16,
            DataType::Int32,
            DataType::Int64,
            DataType::Fp16,
            DataType::Fp32,
            DataType::Fp64,
            DataType::Bytes,
        ] {
            let held = Tensor::from_f64("x", datatype, vec![1], &[f64::NAN]).is_ok();
            assert_eq!(held, datatype.is_float(), "{datatype}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_elements_or_refused(elements in 0_usize..4, data in prop::collection::vec(0_u8..6, 0..24)) {
            if let Ok(tensor) = Tensor::new("x", DataType::Bytes, vec![elements], data) {
                prop_assert_eq!(tensor.byte_elements().count(), elements);
                let again = Tensor::from_byte_elements("x", vec![elements], tensor.byte_elements());
                prop_assert_eq!(again, Ok(tensor.clone()));
            }
        }

        #[test]
        fn any_shape_is_measured_without_overflow(shape in prop::collection::vec(any::<usize>(), 0..20), bytes in 0_usize..16) {
            if let Ok(tensor) = Tensor::new("x", DataType::Fp64, shape, vec![0; bytes]) {
                prop_assert_eq!(tensor.element_count() * 8, bytes);
                prop_assert_eq!(tensor.values().count(), tensor.element_count());
                prop_assert_eq!(tensor.value(tensor.element_count()), None);
            }
        }
    }
}
