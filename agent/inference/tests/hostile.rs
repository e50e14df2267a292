//! Files that are no model, or one damaged on its way: an answer in bounded time, never a panic.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::time::Duration;

use muster_inference::{GoldenSet, LoadOptions, Model, Runtime, Tensor, TractRuntime, golden};
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

    #[test]
    fn damaged_golden_examples_are_refused_or_checked(at: prop::sample::Index, value: u8) {
        let mut bytes = fixture("bool-uint8.cases.json");
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(examples) = GoldenSet::parse(&bytes) {
            let model = TractRuntime.load(&fixture("bool-uint8.onnx"), &LoadOptions::default()).unwrap();
            let _ = golden::check(model.as_ref(), &examples);
        }
    }
}
