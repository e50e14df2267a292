//! Files that are no model, or one damaged on its way: an answer in bounded time, never a panic.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use muster_inference::golden::{MAX_EXAMPLES, Tolerance};
use muster_inference::{GoldenSet, LoadOptions, Model, Runtime, Tensor, TractRuntime, golden};
use muster_shared::bundle::DataType;
use proptest::prelude::*;

fn fixture(path: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(path)).unwrap()
}

/// Loads `bytes` and, if they are a model, runs it once on zeros and once in a batch of two.
fn load_and_run(bytes: &[u8]) {
    let options = LoadOptions { time_limit: Duration::from_secs(20), ..LoadOptions::default() };
    let model: Box<dyn Model> = match TractRuntime.load(bytes, &options) {
        Ok(model) => model,
        Err(error) => {
            assert!(error.to_string().len() < 4_096, "an error must fit a log line");
            return;
        }
    };
    for free in [1_usize, 2] {
        let zeros = |spec: &muster_shared::bundle::TensorSpec| {
            let shape: Vec<usize> = spec.shape.iter().map(|size| usize::try_from(*size).unwrap_or(free)).collect();
            let elements: usize = shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d)).filter(|n| *n < 1 << 20)?;
            Some(Tensor::from_f64(&spec.name, spec.datatype, shape, &vec![0.0; elements]).unwrap())
        };
        let Some(inputs) = model.signature().inputs.iter().map(zeros).collect::<Option<Vec<_>>>() else { return };
        if let Err(error) = model.run(&inputs) {
            assert!(error.to_string().len() < 4_096, "an error must fit a log line");
        }
    }
}

/// A small model and where and how to damage it.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let names = vec!["two-symbols.onnx", "int64.onnx", "bool-uint8.onnx", "gru-symbolic-batch.onnx", "cnn.onnx"];
    (prop::sample::select(names), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(name, at, value)| {
        let mut bytes = fixture(name);
        let at = at.index(bytes.len());
        bytes[at] = value;
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_refused_or_run(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        load_and_run(&bytes);
    }

    #[test]
    fn a_damaged_byte_is_refused_or_runs(bytes in damaged()) {
        load_and_run(&bytes);
    }

    #[test]
    fn a_file_cut_short_is_refused_or_runs(name in prop::sample::select(vec!["two-symbols.onnx", "cnn.onnx"]), end: prop::sample::Index) {
        let bytes = fixture(name);
        load_and_run(&bytes[..end.index(bytes.len())]);
    }
}

/// The model that [`check_golden`] runs, loaded once.
static SMALL_MODEL: LazyLock<Box<dyn Model>> =
    LazyLock::new(|| TractRuntime.load(&fixture("bool-uint8.onnx"), &LoadOptions::default()).unwrap());

/// A good file of golden examples, of a model with other types than floats and of one with nothing else.
fn good_golden() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec!["bool-uint8.cases.json", "float64.cases.json", "two-inputs-two-outputs.cases.json"])
        .prop_map(fixture)
}

/// `good` with pieces put in or in place of a byte that mean something in such a file.
fn with_pieces(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let pieces = vec![
        "",
        "0",
        "9",
        "-",
        ".",
        "e9",
        "1e999",
        "NaN",
        "-Inf",
        "Infinity",
        "99999999999999999999",
        "\"",
        "\\",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        " ",
        "null",
        "true",
        "\"FP16\"",
        "\"BYTES\"",
        "\u{e9}",
    ];
    let change = (any::<prop::sample::Index>(), any::<bool>(), prop::sample::select(pieces));
    prop::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut bytes = good.clone();
        for (at, replace, piece) in changes {
            let at = at.index(bytes.len());
            bytes.splice(at..at + usize::from(replace), piece.bytes());
        }
        bytes
    })
}

/// `bytes` are refused in few words, or are examples that can be run.
fn check_golden(bytes: &[u8]) -> Result<(), TestCaseError> {
    let golden = match GoldenSet::parse(bytes) {
        Ok(golden) => golden,
        Err(error) => {
            prop_assert!(error.to_string().len() < 4_096, "an error must fit a log line");
            return Ok(());
        }
    };
    let Tolerance { abs, rel } = golden.tolerance;
    prop_assert!(abs.is_finite() && abs >= 0.0 && rel.is_finite() && rel >= 0.0);
    prop_assert!((1..=MAX_EXAMPLES).contains(&golden.examples.len()));
    for example in &golden.examples {
        for tensors in [&example.inputs, &example.outputs] {
            let names: BTreeSet<&str> = tensors.iter().map(Tensor::name).collect();
            prop_assert!(!names.is_empty() && names.len() == tensors.len());
            for tensor in tensors {
                let elements = if tensor.shape().contains(&0) { 0 } else { tensor.shape().iter().product() };
                prop_assert_eq!(tensor.element_count(), elements);
                let is_numbers = tensor.datatype() != DataType::Bytes;
                prop_assert_eq!(tensor.values().count(), if is_numbers { elements } else { 0 });
                prop_assert_eq!(tensor.byte_elements().count(), if is_numbers { 0 } else { elements });
            }
        }
    }
    if let Err(error) = golden::check(SMALL_MODEL.as_ref(), &golden) {
        prop_assert!(error.to_string().len() < 4_096, "an error must fit a log line");
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_are_golden_examples_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        text in "[\\[\\]{}:0-9eE.,\\\\ \"NaIinftrue-]{0,80}",
    ) {
        check_golden(&bytes)?;
        check_golden(text.as_bytes())?;
        check_golden(format!(r#"{{"tolerance":{{"abs":0,"rel":0}},"examples":[{text}]}}"#).as_bytes())?;
    }

    #[test]
    fn any_tensor_is_a_golden_example_or_refused(
        datatype in prop::sample::select(vec!["BOOL", "UINT8", "UINT64", "INT16", "INT64", "FP16", "FP32", "FP64", "BYTES"]),
        shape in prop::collection::vec(prop_oneof![0..4_u64, any::<u64>()], 0..4),
        data in prop_oneof!["\\[[01]?\\]", "\\[[0-9.,eNaIf-]{0,10}\\]", "[\\[\\]{}:0-9eE.,\\\\ \"NaIinftrue-]{0,40}"],
    ) {
        let tensor = format!(r#"{{"name":"x","datatype":"{datatype}","shape":{shape:?},"data":{data}}}"#);
        let set = format!(r#"{{"tolerance":{{"abs":0,"rel":0}},"examples":[{{"inputs":[{tensor}],"outputs":[{tensor}]}}]}}"#);
        check_golden(set.as_bytes())?;
    }

    #[test]
    fn damaged_golden_examples_are_refused_or_checked(
        bytes in good_golden().prop_flat_map(with_pieces),
        good in good_golden(),
        at: prop::sample::Index,
        value: u8,
    ) {
        check_golden(&bytes)?;
        let mut bytes = good;
        let at = at.index(bytes.len());
        bytes[at] = value;
        check_golden(&bytes)?;
    }
}
