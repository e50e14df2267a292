//! The Open Inference Protocol's JSON form of a tensor.
//!
//! `data` is read straight into bytes, flat or nested: no tree of values is built, so a request costs no more memory than its
//! text and its tensors, and every number is rounded once, by its own type. NaN and the infinities, which JSON lacks, are
//! written and read as bare words the way Triton does; reading them needs [`quote_non_finite`] before the JSON parser.

use std::borrow::Cow;

use muster_shared::bundle::DataType;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::elements;
use crate::tensor::{LENGTH_BYTES, Tensor, TensorError, measure};

/// An input of a request, as JSON gives it.
#[derive(Debug, Clone, Deserialize)]
pub struct TensorJson {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub datatype: DataType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements; absent when they come in binary form after the JSON.
    #[serde(default)]
    pub data: Option<Box<RawValue>>,
    /// The protocol's parameters, `binary_data_size` for one.
    #[serde(default)]
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

/// Whether `FP16` may be read from JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HalfInJson {
    /// Refuse it, as the protocol has no form for it.
    Refused,
    /// Take numbers, in files of our own.
    Allowed,
}

impl TensorJson {
    /// Reads `data`.
    ///
    /// # Errors
    /// [`TensorError`] when there is none, it does not fill the shape, is nested deeper than it, or an element is not of
    /// the type; for `FP16`, which the protocol only has in binary form.
    pub fn into_tensor(self) -> Result<Tensor, TensorError> {
        self.read(HalfInJson::Refused)
    }

    pub(crate) fn read(self, half: HalfInJson) -> Result<Tensor, TensorError> {
        let Self { name, datatype, shape, data, parameters: _ } = self;
        let (expected, bytes) = measure(&name, datatype, &shape)?;
        if datatype == DataType::Fp16 && half == HalfInJson::Refused {
            return Err(TensorError::HalfInJson { tensor: name });
        }
        let Some(text) = data.as_deref().map(RawValue::get).filter(|text| text.starts_with('[')) else {
            return Err(TensorError::NoArray { tensor: name });
        };
        // An element takes at least two characters with its comma, so a short text cannot ask for a large buffer.
        let size = datatype.size_bytes().unwrap_or(LENGTH_BYTES);
        let mut out = Vec::with_capacity(bytes.min((text.len() / 2 + 1).saturating_mul(size)));
        let mut count = 0;
        let mut depth = 0;
        for piece in Pieces(text) {
            match piece {
                Piece::Open => {
                    depth += 1;
                    if depth > shape.len().max(1) {
                        return Err(TensorError::NoArray { tensor: name });
                    }
                }
                Piece::Close => depth -= 1,
                Piece::Scalar(scalar) => {
                    if count == expected {
                        return Err(TensorError::ElementCount { tensor: name, shape, expected, got: expected + 1 });
                    }
                    if !elements::push_json(datatype, scalar, &mut out) {
                        let got = scalar.chars().take(40).collect();
                        return Err(TensorError::Value { tensor: name, element: count, datatype, got });
                    }
                    count += 1;
                }
            }
        }
        if count != expected {
            return Err(TensorError::ElementCount { tensor: name, shape, expected, got: count });
        }
        Tensor::new(name, datatype, shape, out)
    }
}

impl Tensor {
    /// Appends the tensor as a JSON object with `name`, `datatype`, `shape` and flat `data`.
    ///
    /// # Errors
    /// [`TensorError::HalfInJson`] for `FP16` and [`TensorError::NotText`] for `BYTES` that are no UTF-8, which the protocol only
    /// has in binary form; nothing is appended then.
    pub fn write_json(&self, out: &mut Vec<u8>) -> Result<(), TensorError> {
        if self.datatype() == DataType::Fp16 {
            return Err(TensorError::HalfInJson { tensor: self.name().to_owned() });
        }
        if let Some(element) = self.first_not_text() {
            return Err(TensorError::NotText { tensor: self.name().to_owned(), element });
        }
        let head = serde_json::json!({"name": self.name(), "datatype": self.datatype(), "shape": self.shape()});
        out.extend_from_slice(head.to_string().as_bytes());
        // The object's closing brace makes room for one more member.
        out.pop();
        out.extend_from_slice(b",\"data\":[");
        let mut texts = self.byte_elements();
        for index in 0..self.element_count() {
            if index > 0 {
                out.push(b',');
            }
            match texts.next() {
                Some(text) => _ = elements::write_text(text, out),
                None => elements::write_json(self.datatype(), self.data(), index, out),
            }
        }
        out.extend_from_slice(b"]}");
        Ok(())
    }
}

/// What an array of JSON consists of, once a JSON parser has found it well formed.
enum Piece<'a> {
    Open,
    Close,
    Scalar(&'a str),
}

struct Pieces<'a>(&'a str);

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let text = self.0.trim_start_matches([' ', '\t', '\r', '\n', ',']);
        let first = text.chars().next()?;
        let (piece, length) = match first {
            '[' => (Piece::Open, 1),
            ']' => (Piece::Close, 1),
            '"' => {
                let length = string_length(text.as_bytes());
                (Piece::Scalar(&text[..length]), length)
            }
            // An object is no element; the rest of it is taken as one scalar, which no type reads.
            '{' => (Piece::Scalar(text), text.len()),
            _ => {
                let length = text.find([',', ']', ' ', '\t', '\r', '\n']).unwrap_or(text.len());
                (Piece::Scalar(&text[..length]), length)
            }
        };
        self.0 = &text[length..];
        Some(piece)
    }
}

/// Length of the JSON string that `text` starts with, its quotes included.
fn string_length(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// Puts quotes around the bare words `NaN`, `Infinity`, `-Infinity`, `Inf` and `-Inf` of `json`, which Triton's clients
/// send and a JSON parser refuses. Text inside strings stays as it is. Nothing is copied when there is no such word.
#[must_use]
pub fn quote_non_finite(json: &[u8]) -> Cow<'_, [u8]> {
    const WORDS: [&[u8]; 5] = [b"NaN", b"-Infinity", b"Infinity", b"-Inf", b"Inf"];
    let mut out = Vec::new();
    let mut copied = 0;
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => at += string_length(&json[at..]),
            b'N' | b'I' | b'-' => match WORDS.iter().find(|word| json[at..].starts_with(word)) {
                Some(word) => {
                    out.extend_from_slice(&json[copied..at]);
                    out.push(b'"');
                    out.extend_from_slice(word);
                    out.push(b'"');
                    at += word.len();
                    copied = at;
                }
                None => at += 1,
            },
            _ => at += 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    out.extend_from_slice(&json[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Result<Tensor, TensorError> {
        serde_json::from_slice::<TensorJson>(&quote_non_finite(json.as_bytes())).unwrap().into_tensor()
    }

    fn written(tensor: &Tensor) -> String {
        let mut out = Vec::new();
        tensor.write_json(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn of(datatype: &str, shape: &str, data: &str) -> Result<Tensor, TensorError> {
        read(&format!(r#"{{"name": "x", "datatype": "{datatype}", "shape": {shape}, "data": {data}}}"#))
    }

    #[test]
    fn flat_and_nested_data_are_the_same() {
        let flat = of("FP32", "[2, 2]", "[1, 2.5, -3e2, 0]").unwrap();
        assert_eq!(flat, of("FP32", "[2, 2]", "[[1, 2.5],\n [-3e2, 0]]").unwrap());
        assert_eq!(flat.values().collect::<Vec<_>>(), [1.0, 2.5, -300.0, 0.0]);
        assert_eq!(written(&flat), r#"{"datatype":"FP32","name":"x","shape":[2,2],"data":[1.0,2.5,-300.0,0.0]}"#);
        assert_eq!(of("UINT8", "[]", "[7]").unwrap().values().collect::<Vec<_>>(), [7.0]);
        assert_eq!(of("UINT8", "[0, 3]", "[]").unwrap().element_count(), 0);
        assert!(of("BOOL", "[2]", "[true, false]").unwrap().data() == [1, 0]);
    }

    #[test]
    fn texts_are_strings() {
        let tensor = of("BYTES", "[2, 2]", r#"[["a", ""], ["\"[,]\\ \u00d6\ud83d\ude00", "NaN"]]"#).unwrap();
        let elements: [&[u8]; 4] = [b"a", b"", "\"[,]\\ Ö😀".as_bytes(), b"NaN"];
        assert_eq!(tensor.byte_elements().collect::<Vec<_>>(), elements);
        assert_eq!(
            written(&tensor),
            r#"{"datatype":"BYTES","name":"x","shape":[2,2],"data":["a","","\"[,]\\ Ö😀","NaN"]}"#
        );
        assert!(matches!(of("BYTES", "[1]", r#"["\ud800"]"#), Err(TensorError::Value { element: 0, .. })));
        let binary = Tensor::from_byte_elements("x", vec![2], [b"a".as_slice(), b"\xff"]).unwrap();
        let mut out = Vec::new();
        let error = binary.write_json(&mut out).unwrap_err().to_string();
        assert_eq!(
            error,
            "tensor \"x\", element 1 is no UTF-8 text, for which JSON has no form; use the binary data format"
        );
        assert!(out.is_empty());
    }

    #[test]
    fn integers_of_64_bits_and_doubles_are_exact() {
        for (datatype, value) in [
            ("INT64", "9223372036854775807"),
            ("INT64", "-9223372036854775808"),
            ("UINT64", "18446744073709551615"),
            ("INT64", "9007199254740993"),
            ("FP64", "0.1"),
            ("FP64", "5e-324"),
            ("FP64", "1.7976931348623157e+308"),
        ] {
            let tensor = of(datatype, "[1]", &format!("[{value}]")).unwrap();
            let text = written(&tensor);
            assert!(text.ends_with(&format!("[{value}]}}")), "{text}");
            assert_eq!(read(&text).unwrap(), tensor);
        }
        // Nearer to 1 + 2⁻²³ than to 1, but halfway between them once it is a double: rounding twice would give 1.
        let once = of("FP32", "[1]", "[1.00000005960464477540]").unwrap();
        assert!(once.value(0).unwrap() > 1.0);
    }

    #[test]
    fn what_json_lacks_is_written_and_read_as_triton_does() {
        let text =
            r#"{"name":"a \"NaN\" -Infinity","datatype":"FP64","shape":[4],"data":[NaN,Infinity,-Infinity,-1.5]}"#;
        let tensor = read(text).unwrap();
        assert_eq!(tensor.name(), "a \"NaN\" -Infinity");
        let values: Vec<f64> = tensor.values().collect();
        assert!(values[0].is_nan() && values[1..] == [f64::INFINITY, f64::NEG_INFINITY, -1.5]);
        assert!(written(&tensor).ends_with("\"data\":[NaN,Infinity,-Infinity,-1.5]}"));
        assert!(matches!(quote_non_finite(b"{\"NaN\": -1}"), Cow::Borrowed(_)));
    }

    #[test]
    fn values_that_do_not_fit_are_refused_with_their_place() {
        for (datatype, data) in [
            ("UINT8", "[0, 256]"),
            ("UINT8", "[0, -1]"),
            ("INT32", "[0, 1.0]"),
            ("INT64", "[0, 9223372036854775808]"),
            ("BOOL", "[true, 1]"),
            ("FP32", "[0, true]"),
            ("FP32", "[0, null]"),
            ("FP32", "[0, \"1\"]"),
            ("FP32", "[0, 1e39]"),
            ("FP64", "[0, 1e999]"),
            ("INT8", "[0, NaN]"),
            ("FP32", "[0, {\"a\": [1]}]"),
        ] {
            let error = of(datatype, "[2]", data).unwrap_err();
            assert!(matches!(&error, TensorError::Value { element: 1, .. }), "{datatype} {data}: {error}");
        }
        assert_eq!(
            of("UINT8", "[2]", "[0, 256]").unwrap_err().to_string(),
            "tensor \"x\", element 1: 256 is not a value of UINT8"
        );
    }

    #[test]
    fn shapes_and_data_that_disagree_are_refused() {
        let text = |result: Result<Tensor, TensorError>| result.unwrap_err().to_string();
        assert_eq!(text(of("FP32", "[3]", "[1, 2]")), "tensor \"x\" of shape [3] needs 3 elements, but 2 are given");
        assert_eq!(text(of("FP32", "[1]", "[1, 2]")), "tensor \"x\" of shape [1] needs 1 elements, but more are given");
        assert!(text(of("FP32", "[2]", "[[1], [2]]")).contains("not deeper than it"));
        assert!(text(of("FP32", "[1]", "5")).contains("must be an array"));
        assert!(text(of("FP32", "[4294967296, 4294967296]", "[]")).contains("larger than any memory"));
        assert!(text(of("FP32", "[1000000000000]", "[1]")).contains("but 1 are given"));
        assert_eq!(text(of("BYTES", "[1]", "[7]")), "tensor \"x\", element 0: 7 is not a value of BYTES");
        assert!(text(of("BYTES", "[2]", "[\"a\"]")).contains("needs 2 elements, but 1 are given"));
        assert!(text(of("FP16", "[1]", "[1]")).contains("use the binary data format"));
        assert!(text(read(r#"{"name": "x", "datatype": "FP32", "shape": [1]}"#)).contains("must be an array"));
        assert!(serde_json::from_str::<TensorJson>(r#"{"name": "x", "datatype": "BF16", "shape": [1]}"#).is_err());
        assert!(serde_json::from_str::<TensorJson>(r#"{"name": "x", "datatype": "FP32", "shape": [-1]}"#).is_err());
    }

    fn datatype() -> impl Strategy<Value = DataType> {
        prop::sample::select(vec![
            DataType::Bool,
            DataType::Uint8,
            DataType::Uint16,
            DataType::Uint32,
            DataType::Uint64,
            DataType::Int8,
            DataType::Int16,
            DataType::Int32,
            DataType::Int64,
            DataType::Fp32,
            DataType::Fp64,
        ])
    }

    proptest! {
        /// Any bytes are numbers of every type, NaN with a payload apart.
        #[test]
        fn what_is_written_reads_back(datatype in datatype(), rows in 0_usize..4, seed in prop::collection::vec(any::<u8>(), 24)) {
            let size = datatype.size_bytes().unwrap();
            let mut data = seed.repeat(size)[..rows * 3 * size].to_vec();
            if datatype == DataType::Bool {
                data.iter_mut().for_each(|byte| *byte &= 1);
            }
            let tensor = Tensor::new("some \"name\"", datatype, vec![rows, 3], data).unwrap();
            let back = read(&written(&tensor)).unwrap();
            if tensor.values().any(f64::is_nan) {
                prop_assert!(tensor.values().zip(back.values()).all(|(a, b)| a.is_nan() == b.is_nan()));
            } else {
                prop_assert_eq!(tensor, back);
            }
        }

        #[test]
        fn texts_read_back(elements in prop::collection::vec(".{0,8}", 0..5)) {
            let tensor = Tensor::from_byte_elements("x", vec![elements.len()], &elements).unwrap();
            prop_assert_eq!(read(&written(&tensor)).unwrap(), tensor);
        }

        #[test]
        fn any_data_reads_or_is_refused(data in "[\\[\\]{}:0-9eE.,+ \"NaIinftrue-]{0,40}", datatype in datatype()) {
            let json = format!(r#"{{"name":"x","datatype":"{datatype}","shape":[2,1],"data":{data}}}"#);
            if let Ok(parsed) = serde_json::from_slice::<TensorJson>(&quote_non_finite(json.as_bytes())) {
                let _ = parsed.into_tensor();
            }
        }

        #[test]
        fn quoting_touches_nothing_outside_bare_words(bytes in prop::collection::vec(any::<u8>(), 0..60), valid in "\\{\"[a-zNIf]{0,6}\":\"[NaNInf-]{0,12}\"\\}") {
            let _ = quote_non_finite(&bytes);
            let quoted = quote_non_finite(valid.as_bytes());
            prop_assert_eq!(quoted.as_ref(), valid.as_bytes());
        }
    }
}
