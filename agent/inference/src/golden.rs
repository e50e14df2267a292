//! Golden examples: inputs with the answers another runtime gave, checked before a model may serve.
//!
//! A runtime can be silently wrong about a model, so these are not optional. This module decides what a file of
//! examples may hold and when an answer is right; when to check, and what a budget allows, is the caller's matter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use muster_shared::bundle::DataType;
use serde::Deserialize;

use crate::elements;
use crate::json::{HalfInJson, TensorJson, quote_non_finite};
use crate::runtime::{Model, RunError};
use crate::tensor::{Tensor, TensorError};

/// Largest file of golden examples, in bytes.
pub const MAX_GOLDEN_BYTES: usize = 64 * 1024 * 1024;
/// Characters of a text that an error shows.
const SHOWN_CHARS: usize = 40;
/// Examples one file may hold.
pub const MAX_EXAMPLES: usize = 1_000;

/// How far an answer may be from the expected one: `abs + rel · |expected|`, and `abs` for integers.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    /// The absolute part.
    pub abs: f64,
    /// The part relative to the expected value.
    pub rel: f64,
}

impl Default for Tolerance {
    /// 1e-5 and 1e-3: the relative part is what ONNX's own backend tests allow, the absolute part lets small shares of one differ in
    /// fp32's last digits. Signed bundles rest on these numbers.
    fn default() -> Self {
        Self { abs: 1e-5, rel: 1e-3 }
    }
}

/// One example.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// What the model is given.
    pub inputs: Vec<Tensor>,
    /// What it must answer. Outputs not named here are not compared.
    pub outputs: Vec<Tensor>,
}

/// The golden examples of a bundle.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenSet {
    /// How far answers may be off.
    pub tolerance: Tolerance,
    /// The examples, at least one.
    pub examples: Vec<Example>,
}

/// What a passed check measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GoldenReport {
    /// Examples that passed: all of them.
    pub examples: usize,
    /// The largest difference from an expected number.
    pub max_abs_difference: f64,
    /// Median time of one example's run, in microseconds, the model being prepared for its shape.
    pub median_us: u64,
}

/// Why golden examples cannot be read, or a model does not pass them. Examples are counted from 1.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GoldenError {
    /// The file is too large.
    #[error("golden examples of {bytes} bytes are too large: at most {MAX_GOLDEN_BYTES} bytes are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The file is not of the expected form.
    #[error("the golden examples are not readable: {0}")]
    Malformed(String),
    /// No example, or too many.
    #[error("a set holds 1 to {MAX_EXAMPLES} golden examples, but this one holds {0}")]
    Count(usize),
    /// A tolerance that is negative or not a number.
    #[error("the tolerance of the golden examples must be two finite numbers from 0, not abs {abs} and rel {rel}")]
    Tolerance {
        /// The absolute part.
        abs: f64,
        /// The relative part.
        rel: f64,
    },
    /// A tensor of an example is not valid.
    #[error("golden example {example} is not valid")]
    Tensor {
        /// The example.
        example: usize,
        /// What is wrong.
        source: TensorError,
    },
    /// An example has no input or output, or one twice.
    #[error("golden example {example}: name at least one input and one output, and each once")]
    Names {
        /// The example.
        example: usize,
    },
    /// The model did not answer.
    #[error("golden example {example}: the model gave no answer")]
    Run {
        /// The example.
        example: usize,
        /// Why not.
        source: RunError,
    },
    /// The model has no such output.
    #[error("golden example {example}: the model has no output {output:?}")]
    NoOutput {
        /// The example.
        example: usize,
        /// The output.
        output: String,
    },
    /// An output has another type or shape.
    #[error(
        "golden example {example}: output {output:?} should be {expected_datatype} of shape {expected_shape:?}, but is {datatype} of shape {shape:?}"
    )]
    Form {
        /// The example.
        example: usize,
        /// The output.
        output: String,
        /// The type expected.
        expected_datatype: DataType,
        /// The shape expected.
        expected_shape: Vec<usize>,
        /// The type given.
        datatype: DataType,
        /// The shape given.
        shape: Vec<usize>,
    },
    /// A text is another one.
    #[error("golden example {example}: element {element} of output {output:?} should be {expected:?}, but is {got:?}")]
    Text {
        /// The example.
        example: usize,
        /// The output.
        output: String,
        /// The element, counted from 0 in row-major order.
        element: usize,
        /// The text expected, shortened.
        expected: String,
        /// The text given, shortened.
        got: String,
    },
    /// An element is too far off.
    #[error(
        "golden example {example}: element {element} of output {output:?} should be {expected}, but is {got} (allowed: {tolerance} either way)"
    )]
    Value {
        /// The example.
        example: usize,
        /// The output.
        output: String,
        /// The element, counted from 0 in row-major order.
        element: usize,
        /// The value expected.
        expected: f64,
        /// The value given.
        got: f64,
        /// How far it might have been off.
        tolerance: f64,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    tolerance: Tolerance,
    examples: Vec<DocumentExample>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DocumentExample {
    inputs: Vec<TensorJson>,
    outputs: Vec<TensorJson>,
}

impl GoldenSet {
    /// Reads a file of golden examples: `{"tolerance": {"abs", "rel"}, "examples": [{"inputs": [..], "outputs": [..]}]}` with
    /// tensors in the Open Inference Protocol's JSON form. Without a tolerance, [`Tolerance::default`] holds. `FP16` is written as numbers here, and files as base64.
    ///
    /// # Errors
    /// [`GoldenError`] when the file is too large, malformed, empty, or holds a tensor that is not valid.
    pub fn parse(bytes: &[u8]) -> Result<Self, GoldenError> {
        if bytes.len() > MAX_GOLDEN_BYTES {
            return Err(GoldenError::TooLarge { bytes: bytes.len() });
        }
        let document: Document = serde_json::from_slice(&quote_non_finite(bytes))
            .map_err(|error| GoldenError::Malformed(error.to_string()))?;
        let Tolerance { abs, rel } = document.tolerance;
        if !(abs >= 0.0 && abs.is_finite() && rel >= 0.0 && rel.is_finite()) {
            return Err(GoldenError::Tolerance { abs, rel });
        }
        if document.examples.is_empty() || document.examples.len() > MAX_EXAMPLES {
            return Err(GoldenError::Count(document.examples.len()));
        }
        let mut examples = Vec::with_capacity(document.examples.len());
        for (index, example) in document.examples.into_iter().enumerate() {
            let number = index + 1;
            let read = |tensors: Vec<TensorJson>| -> Result<Vec<Tensor>, GoldenError> {
                let names: BTreeSet<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
                if names.is_empty() || names.len() != tensors.len() {
                    return Err(GoldenError::Names { example: number });
                }
                tensors
                    .into_iter()
                    .map(read_tensor)
                    .collect::<Result<_, _>>()
                    .map_err(|source| GoldenError::Tensor { example: number, source })
            };
            examples.push(Example { inputs: read(example.inputs)?, outputs: read(example.outputs)? });
        }
        Ok(Self { tolerance: document.tolerance, examples })
    }

    /// The first example's shapes by input: what to prepare a model for at load
    /// ([`crate::runtime::LoadOptions::sample_shapes`]).
    #[must_use]
    pub fn sample_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let inputs = self.examples.first().map_or(&[][..], |example| &example.inputs);
        inputs.iter().map(|tensor| (tensor.name().to_owned(), tensor.shape().to_vec())).collect()
    }
}

/// Reads a tensor. Elements of `BYTES` that are no text, as images, are base64 with the parameter `content_encoding: "base64"`.
fn read_tensor(json: TensorJson) -> Result<Tensor, TensorError> {
    let is_encoded = json.parameters.get("content_encoding").is_some_and(|encoding| encoding == "base64");
    let tensor = json.read(HalfInJson::Allowed)?;
    if !is_encoded || tensor.datatype() != DataType::Bytes {
        return Ok(tensor);
    }
    let mut elements = Vec::with_capacity(tensor.element_count());
    for (element, text) in tensor.byte_elements().enumerate() {
        elements.push(BASE64.decode(text).map_err(|_| TensorError::Value {
            tensor: tensor.name().to_owned(),
            element,
            datatype: DataType::Bytes,
            got: "what is no base64".into(),
        })?);
    }
    Tensor::from_byte_elements(tensor.name(), tensor.shape().to_vec(), elements)
}

/// Runs every example and compares every expected output, then times some more runs.
///
/// # Errors
/// [`GoldenError`] with the first example that fails.
pub fn check(model: &dyn Model, golden: &GoldenSet) -> Result<GoldenReport, GoldenError> {
    let mut max_abs_difference: f64 = 0.0;
    for (index, example) in golden.examples.iter().enumerate() {
        let number = index + 1;
        let outputs = model.run(&example.inputs).map_err(|source| GoldenError::Run { example: number, source })?;
        for expected in &example.outputs {
            let output = outputs
                .iter()
                .find(|output| output.name() == expected.name())
                .ok_or_else(|| GoldenError::NoOutput { example: number, output: expected.name().to_owned() })?;
            max_abs_difference = max_abs_difference.max(compare(number, expected, output, golden.tolerance)?);
        }
    }
    let median_us = median_us(model, golden)?;
    Ok(GoldenReport { examples: golden.examples.len(), max_abs_difference, median_us })
}

/// The largest difference of `got` from `expected`, or the first element that is too far off; texts must be equal.
fn compare(example: usize, expected: &Tensor, got: &Tensor, tolerance: Tolerance) -> Result<f64, GoldenError> {
    if (expected.datatype(), expected.shape()) != (got.datatype(), got.shape()) {
        return Err(GoldenError::Form {
            example,
            output: expected.name().to_owned(),
            expected_datatype: expected.datatype(),
            expected_shape: expected.shape().to_vec(),
            datatype: got.datatype(),
            shape: got.shape().to_vec(),
        });
    }
    let datatype = expected.datatype();
    let texts = || expected.byte_elements().zip(got.byte_elements());
    if let Some((element, (e, g))) = texts().enumerate().find(|(_, (e, g))| e != g) {
        let short = |text: &[u8]| String::from_utf8_lossy(text).chars().take(SHOWN_CHARS).collect();
        let output = expected.name().to_owned();
        return Err(GoldenError::Text { example, output, element, expected: short(e), got: short(g) });
    }
    let mut largest: f64 = 0.0;
    for (element, (e, g)) in expected.values().zip(got.values()).enumerate() {
        // 64-bit integers are subtracted as such: as floating-point numbers two different ones can be equal.
        let integers =
            elements::integer(datatype, expected.data(), element).zip(elements::integer(datatype, got.data(), element));
        let difference = match integers {
            Some((e, g)) => e.abs_diff(g) as f64,
            None if e.is_finite() && g.is_finite() => (e - g).abs(),
            None if (e.is_nan() && g.is_nan()) || (e.is_infinite() && e.total_cmp(&g).is_eq()) => 0.0,
            None => f64::INFINITY,
        };
        // A relative part would let the class 2001 pass for 2000.
        let relative = if integers.is_some() { 0.0 } else { tolerance.rel * e.abs() };
        let allowed = tolerance.abs + relative;
        if difference.is_infinite() || difference > allowed {
            let output = expected.name().to_owned();
            return Err(GoldenError::Value { example, output, element, expected: e, got: g, tolerance: allowed });
        }
        largest = largest.max(difference);
    }
    Ok(largest)
}

/// Times the examples of the first one's shapes, in turn: five rounds or half a second, whichever ends sooner, and one run at
/// least. Examples of other shapes are left out, for their runs may include preparing the model.
fn median_us(model: &dyn Model, golden: &GoldenSet) -> Result<u64, GoldenError> {
    let Some(first) = golden.examples.first() else { return Ok(0) };
    let alike = |example: &Example| {
        example.inputs.iter().all(|input| {
            first.inputs.iter().any(|other| (other.name(), other.shape()) == (input.name(), input.shape()))
        })
    };
    let begun = Instant::now();
    let mut times_us = Vec::new();
    let timed: Vec<_> = golden.examples.iter().enumerate().filter(|(_, example)| alike(example)).collect();
    for (index, example) in timed.iter().cycle().take(5 * timed.len()) {
        if !times_us.is_empty() && begun.elapsed() > Duration::from_millis(500) {
            break;
        }
        let start = Instant::now();
        model.run(&example.inputs).map_err(|source| GoldenError::Run { example: index + 1, source })?;
        times_us.push(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    times_us.sort_unstable();
    Ok(times_us.get(times_us.len() / 2).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use muster_shared::bundle::{ModelSignature, TensorSpec};
    use proptest::prelude::*;

    use super::*;

    /// Answers with its input under another name and the type given.
    struct Echo(ModelSignature);

    impl Echo {
        fn of(datatype: DataType) -> Self {
            let spec = |name: &str| TensorSpec { name: name.into(), datatype, shape: vec![-1] };
            Self(ModelSignature { inputs: vec![spec("in")], outputs: vec![spec("out")] })
        }
    }

    impl Model for Echo {
        fn signature(&self) -> &ModelSignature {
            &self.0
        }

        fn memory_bytes(&self) -> u64 {
            0
        }

        fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
            let input = inputs.first().ok_or_else(|| RunError::MissingInput { input: "in".into() })?;
            let data = input.data().to_vec();
            Ok(vec![Tensor::new("out", input.datatype(), input.shape().to_vec(), data).unwrap()])
        }
    }

    /// A set whose one example gives `given` and expects `expected`.
    fn set(datatype: &str, given: &str, expected: &str, abs: f64, rel: f64) -> Result<GoldenSet, GoldenError> {
        let tensor = |name: &str, data: &str| {
            let elements = data.split(',').count();
            format!(r#"{{"name":"{name}","datatype":"{datatype}","shape":[{elements}],"data":[{data}]}}"#)
        };
        let (input, output) = (tensor("in", given), tensor("out", expected));
        let text = format!(
            r#"{{"tolerance":{{"abs":{abs},"rel":{rel}}},"examples":[{{"inputs":[{input}],"outputs":[{output}]}}]}}"#
        );
        GoldenSet::parse(text.as_bytes())
    }

    fn checked(datatype: &str, given: &str, expected: &str, abs: f64, rel: f64) -> Result<f64, GoldenError> {
        let golden = set(datatype, given, expected, abs, rel)?;
        check(&Echo::of(DataType::Fp32), &golden).map(|report| report.max_abs_difference)
    }

    #[test]
    fn answers_within_the_tolerance_pass_and_others_are_named() {
        assert_eq!(checked("FP64", "1.5,100", "1,101", 0.25, 0.25), Ok(1.0));
        assert_eq!(
            checked("FP64", "1,2,3.5", "1,2,3", 0.25, 0.0).unwrap_err(),
            GoldenError::Value {
                example: 1,
                output: "out".into(),
                element: 2,
                expected: 3.0,
                got: 3.5,
                tolerance: 0.25
            }
        );
        // Only the expected value scales the tolerance.
        assert!(checked("FP64", "200", "100", 0.0, 0.5).is_err());
    }

    #[test]
    fn nan_passes_only_where_nan_is_expected() {
        assert_eq!(checked("FP32", "NaN,Infinity,-Infinity", "NaN,Infinity,-Infinity", 0.0, 0.0), Ok(0.0));
        for (given, expected) in [
            ("NaN", "0"),
            ("0", "NaN"),
            ("Infinity", "-Infinity"),
            ("0", "Infinity"),
            ("NaN", "Infinity"),
            ("Infinity", "0"),
        ] {
            assert!(
                matches!(checked("FP32", given, expected, 1e30, 1e30), Err(GoldenError::Value { .. })),
                "{given} for {expected}"
            );
        }
    }

    #[test]
    fn a_file_without_a_tolerance_has_the_default() {
        let tensor = |name: &str| format!(r#"{{"name":"{name}","datatype":"FP32","shape":[1],"data":[1]}}"#);
        let text = format!(r#"{{"examples":[{{"inputs":[{}],"outputs":[{}]}}]}}"#, tensor("in"), tensor("out"));
        assert_eq!(GoldenSet::parse(text.as_bytes()).unwrap().tolerance, Tolerance { abs: 1e-5, rel: 1e-3 });
    }

    #[test]
    fn large_integers_are_compared_exactly() {
        let (given, expected) = ("9007199254740993", "9007199254740992");
        assert!(checked("INT64", given, expected, 0.5, 0.0).is_err());
        assert_eq!(checked("INT64", given, expected, 1.0, 0.0), Ok(1.0));
        assert!(checked("INT32", "2001", "2000", 1e-5, 1e-3).is_err(), "a relative tolerance is none for classes");
        assert!(checked("BOOL", "true", "false", 1e-4, 1e-3).is_err());
    }

    #[test]
    fn half_floats_are_numbers_in_a_golden_file() {
        assert_eq!(checked("FP16", "0.5", "0.25", 0.25, 0.0), Ok(0.25));
    }

    #[test]
    fn texts_are_compared_exactly() {
        let echo = Echo::of(DataType::Bytes);
        let of = |given, expected| check(&echo, &set("BYTES", given, expected, 9.0, 9.0).unwrap());
        assert!(of(r#""a","b""#, r#""a","b""#).is_ok());
        assert_eq!(
            of(r#""a","b""#, r#""a","c""#).unwrap_err().to_string(),
            "golden example 1: element 1 of output \"out\" should be \"c\", but is \"b\""
        );
    }

    #[test]
    fn another_form_or_name_is_an_error() {
        let mut golden = set("FP32", "1,2", "1,2", 0.0, 0.0).unwrap();
        golden.examples[0].outputs[0] = Tensor::from_f32("out", vec![1, 2], &[1.0, 2.0]).unwrap();
        let error = check(&Echo::of(DataType::Fp32), &golden).unwrap_err().to_string();
        let text = "golden example 1: output \"out\" should be FP32 of shape [1, 2], but is FP32 of shape [2]";
        assert_eq!(error, text);
        golden.examples[0].outputs[0] = Tensor::from_f32("up", vec![2], &[1.0, 2.0]).unwrap();
        let error = check(&Echo::of(DataType::Fp32), &golden).unwrap_err();
        assert_eq!(error, GoldenError::NoOutput { example: 1, output: "up".into() });
    }

    #[test]
    fn files_that_prove_nothing_are_refused() {
        let parse = |text: &str| GoldenSet::parse(text.as_bytes()).unwrap_err();
        let empty = parse(r#"{"tolerance":{"abs":0,"rel":0},"examples":[]}"#);
        assert_eq!(empty.to_string(), "a set holds 1 to 1000 golden examples, but this one holds 0");
        let silent = parse(r#"{"tolerance":{"abs":0,"rel":0},"examples":[{"inputs":[],"outputs":[]}]}"#);
        assert_eq!(silent, GoldenError::Names { example: 1 });
        assert!(matches!(set("FP32", "1", "1", -1.0, 0.0), Err(GoldenError::Tolerance { .. })));
        assert!(matches!(parse("{"), GoldenError::Malformed(_)));
        assert!(matches!(parse(r#"{"tolerance":{"abs":0},"examples":[]}"#), GoldenError::Malformed(_)));
        assert!(matches!(set("FP32", "1", "x", 0.0, 0.0), Err(GoldenError::Malformed(_))));
        assert!(matches!(set("INT8", "1", "300", 0.0, 0.0), Err(GoldenError::Tensor { example: 1, .. })));
    }

    proptest! {
        #[test]
        fn a_difference_passes_exactly_up_to_the_tolerance(expected in -1e6..1e6_f64, off in -2.0..2.0_f64, abs in 0.0..1.0_f64) {
            let (e, g) = (
                Tensor::from_f64("out", DataType::Fp64, vec![1], &[expected]).unwrap(),
                Tensor::from_f64("out", DataType::Fp64, vec![1], &[expected + off]).unwrap(),
            );
            let result = compare(1, &e, &g, Tolerance { abs, rel: 0.0 });
            prop_assert_eq!(result.is_ok(), ((expected + off) - expected).abs() <= abs);
        }
    }
}
