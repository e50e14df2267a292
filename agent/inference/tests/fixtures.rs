//! The committed models, run as a device runs them, against the answers onnxruntime gave.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::sync::Arc;

use muster_inference::{GoldenSet, LoadError, LoadOptions, Model, RunError, Runtime, Tensor, TractRuntime, golden};
use muster_shared::bundle::{DataType, TensorSpec};

const MODELS: [&str; 9] = [
    "two-inputs-two-outputs",
    "int64",
    "cnn",
    "float64",
    "bool-uint8",
    "gru",
    "gru-symbolic-batch",
    "value-info-batch",
    "two-symbols",
];

fn fixture(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn load(path: &str) -> Box<dyn Model> {
    TractRuntime.load(&fixture(path), &LoadOptions::default()).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn spec(name: &str, datatype: DataType, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype, shape: shape.to_vec() }
}

#[test]
fn every_model_answers_as_onnxruntime_does() {
    for name in MODELS {
        let model = load(&format!("models/{name}.onnx"));
        let cases = GoldenSet::parse(&fixture(&format!("models/{name}.cases.json"))).unwrap();
        // Twice: what one run leaves behind must not reach the next.
        for _ in 0..2 {
            let report = golden::check(model.as_ref(), &cases).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(report.examples, cases.examples.len());
            println!("{name}: {report:?}");
        }
    }
}

#[test]
fn sample_shapes_are_what_a_model_is_prepared_for() {
    for name in MODELS {
        let cases = GoldenSet::parse(&fixture(&format!("models/{name}.cases.json"))).unwrap();
        let options = LoadOptions { sample_shapes: cases.sample_shapes(), ..LoadOptions::default() };
        let model = TractRuntime.load(&fixture(&format!("models/{name}.onnx")), &options).unwrap();
        golden::check(model.as_ref(), &cases).unwrap();
    }
}

#[test]
fn signatures_say_what_the_files_declare() {
    let signature = |name: &str| load(&format!("models/{name}.onnx")).signature().clone();
    let two = signature("two-inputs-two-outputs");
    assert_eq!(two.inputs, [spec("left", DataType::Fp32, &[-1, 3]), spec("right", DataType::Fp32, &[-1, 3])]);
    assert_eq!(two.outputs, [spec("sum", DataType::Fp32, &[-1, 3]), spec("score", DataType::Fp32, &[-1, 2])]);
    // tract types these outputs as symbolic integers of its own.
    assert_eq!(
        signature("int64").outputs,
        [spec("total", DataType::Int64, &[-1, 4]), spec("halved", DataType::Int64, &[-1, 4])]
    );
    assert_eq!(
        signature("bool-uint8").outputs,
        [
            spec("kept", DataType::Uint8, &[-1, 6]),
            spec("level", DataType::Fp32, &[-1, 6]),
            spec("bright", DataType::Bool, &[-1, 6])
        ]
    );
    assert_eq!(signature("gru").inputs, [spec("readings", DataType::Fp32, &[-1, 1, 3])]);
    assert_eq!(signature("gru").outputs, [spec("forecast", DataType::Fp32, &[1, 2])]);
    assert_eq!(signature("gru-symbolic-batch").outputs, [spec("forecast", DataType::Fp32, &[-1, 2])]);
    assert_eq!(signature("two-symbols").outputs, [spec("attention", DataType::Fp32, &[-1, -1])]);
    assert_eq!(signature("cnn").outputs, [spec("probabilities", DataType::Fp32, &[-1, 5])]);
}

fn refusal(name: &str) -> LoadError {
    match TractRuntime.load(&fixture(&format!("models/{name}.onnx")), &LoadOptions::default()) {
        Ok(_) => panic!("{name} must be refused"),
        Err(error) => error,
    }
}

#[test]
fn models_that_cannot_run_are_refused_in_plain_words() {
    let unsupported = refusal("refuse-unsupported-operator");
    assert_eq!(
        unsupported.to_string(),
        "tract cannot run this model: it has no operator Unique; export the model without it"
    );
    for damaged in ["refuse-truncated", "refuse-not-onnx"] {
        let error = refusal(damaged);
        assert!(matches!(error, LoadError::Malformed { .. }), "{damaged}: {error}");
        println!("{damaged}: {error}");
    }
    let empty = TractRuntime.load(b"", &LoadOptions::default()).err().unwrap();
    assert_eq!(empty.to_string(), "this is not a complete ONNX model: it contains no graph");
}

struct Rows {
    labels: Vec<usize>,
    pixels: Vec<Vec<f32>>,
}

fn heldout() -> Rows {
    let text = String::from_utf8(fixture("digits/heldout.csv")).unwrap();
    let mut rows = Rows { labels: Vec::new(), pixels: Vec::new() };
    for line in text.lines().skip(1) {
        let (label, pixels) = line.split_once(',').unwrap();
        rows.labels.push(label.parse().unwrap());
        rows.pixels.push(pixels.split(',').map(|pixel| pixel.parse().unwrap()).collect());
    }
    rows
}

fn classes(model: &dyn Model, rows: &[Vec<f32>]) -> Vec<usize> {
    let input = Tensor::from_f32("image", vec![rows.len(), 64], &rows.concat()).unwrap();
    let outputs = model.run(&[input]).unwrap();
    assert_eq!(outputs[0].shape(), [rows.len(), 10]);
    let values: Vec<f64> = outputs[0].values().collect();
    let largest = |row: &[f64]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
    values.chunks(10).map(largest).collect()
}

#[test]
fn digits_pass_their_golden_examples_and_answer_as_published() {
    let rows = heldout();
    for (version, least, most) in [("1.0.0", 0.85, 0.95), ("1.1.0", 0.95, 1.0), ("1.2.0", 0.0, 0.2)] {
        let model = load(&format!("digits/digits-{version}.onnx"));
        let golden = GoldenSet::parse(&fixture(&format!("digits/golden-{version}.json"))).unwrap();
        let report = golden::check(model.as_ref(), &golden).unwrap();
        assert_eq!(report.examples, 10);
        let predicted = classes(model.as_ref(), &rows.pixels);
        let right = predicted.iter().zip(&rows.labels).filter(|(a, b)| a == b).count();
        let accuracy = right as f64 / rows.labels.len() as f64;
        println!("{version}: accuracy {accuracy}, {report:?}");
        assert!((least..=most).contains(&accuracy), "{version}: {accuracy}");
        // One by one, in a batch of any size: the same classes.
        for size in [1, 3, 64] {
            let batched: Vec<usize> =
                rows.pixels[..192].chunks(size).flat_map(|chunk| classes(model.as_ref(), chunk)).collect();
            assert_eq!(batched, predicted[..192], "{version}, batches of {size}");
        }
    }
}

#[test]
fn a_wrong_model_fails_the_golden_examples_of_another() {
    let golden = GoldenSet::parse(&fixture("digits/golden-1.1.0.json")).unwrap();
    let error = golden::check(load("digits/digits-1.0.0.onnx").as_ref(), &golden).unwrap_err();
    let golden::GoldenError::Value { example, output, element, .. } = &error else { panic!("{error}") };
    assert_eq!((*example, output.as_str(), *element), (1, "probabilities", 0));
    assert!(error.to_string().starts_with("golden example 1: element 0 of output \"probabilities\" should be 0.99"));
}

fn fp32(name: &str, shape: &[usize]) -> Tensor {
    Tensor::from_f32(name, shape.to_vec(), &vec![0.5; shape.iter().product()]).unwrap()
}

#[test]
fn requests_that_do_not_fit_are_refused_by_name() {
    let model = load("models/two-inputs-two-outputs.onnx");
    let refuse = |inputs: &[Tensor]| {
        let error = model.run(inputs).unwrap_err();
        assert!(error.is_request_fault(), "{error}");
        error.to_string()
    };
    let (left, right) = (fp32("left", &[2, 3]), fp32("right", &[2, 3]));
    assert_eq!(refuse(std::slice::from_ref(&left)), "input \"right\" is missing");
    assert_eq!(refuse(&[left.clone(), left.clone()]), "input \"left\" is given twice");
    assert_eq!(
        refuse(&[left.clone(), right.clone(), fp32("up", &[1])]),
        "the model has no input \"up\"; it takes left, right"
    );
    assert_eq!(
        refuse(&[left.clone(), fp32("right", &[2, 4])]),
        "input \"right\" must have the shape [-1, 3] (-1 for any size from 1), but [2, 4] was given"
    );
    assert!(refuse(&[fp32("left", &[0, 3]), right.clone()]).contains("[0, 3] was given"));
    assert!(refuse(&[fp32("left", &[3]), right.clone()]).contains("[3] was given"));
    // Added, one row would spread over four; but the model declares both batches to be N.
    assert_eq!(
        refuse(&[fp32("left", &[1, 3]), fp32("right", &[4, 3])]),
        "the model wants one size for its dimension \"N\", but \"left\" has 1 and \"right\" has 4"
    );
    let doubles = Tensor::from_f64("right", DataType::Fp64, vec![2, 3], &[0.0; 6]).unwrap();
    assert_eq!(refuse(&[left.clone(), doubles]), "input \"right\" must be FP32, but FP64 was given");
    // In any order.
    assert_eq!(model.run(&[right.clone(), left.clone()]).unwrap(), model.run(&[left, right]).unwrap());
}

#[test]
fn more_shapes_than_stay_prepared_are_all_served() {
    let options = LoadOptions { max_prepared_shapes: 3, ..LoadOptions::default() };
    let model = TractRuntime.load(&fixture("models/two-symbols.onnx"), &options).unwrap();
    for round in 0..2 {
        for rows in 1..5 {
            for columns in 1..4 {
                let outputs = model.run(&[fp32("queries", &[rows, 4]), fp32("keys", &[columns, 4])]).unwrap();
                assert_eq!(outputs[0].shape(), [rows, columns], "round {round}");
                let even = 1.0 / columns as f64;
                assert!(outputs[0].values().all(|share| (share - even).abs() < 1e-6));
            }
        }
    }
}

#[test]
fn threads_running_one_model_get_equal_answers() {
    for (path, cases) in [
        ("digits/digits-1.1.0.onnx", "digits/golden-1.1.0.json"),
        ("models/gru-symbolic-batch.onnx", "models/gru-symbolic-batch.cases.json"),
    ] {
        let model: Arc<dyn Model> = Arc::from(load(path));
        let golden = GoldenSet::parse(&fixture(cases)).unwrap();
        let alone: Vec<_> = golden.examples.iter().map(|example| model.run(&example.inputs).unwrap()).collect();
        std::thread::scope(|scope| {
            for first in 0..4 {
                let (model, golden, alone) = (&model, &golden, &alone);
                scope.spawn(move || {
                    for at in (0..golden.examples.len()).cycle().skip(first).take(100) {
                        assert_eq!(model.run(&golden.examples[at].inputs).unwrap(), alone[at]);
                    }
                });
            }
        });
    }
}

#[test]
fn a_time_limit_ends_loading_and_preparing() {
    let options = LoadOptions { time_limit: std::time::Duration::ZERO, ..LoadOptions::default() };
    match TractRuntime.load(&fixture("models/cnn.onnx"), &options) {
        Ok(model) => {
            // A fast machine may be done in no time; then another shape meets the limit, or not.
            let result = model.run(&[fp32("image", &[2, 1, 8, 8])]);
            assert!(matches!(result, Ok(_) | Err(RunError::TooSlow { .. })), "{result:?}");
        }
        Err(error) => assert_eq!(error.to_string(), "tract had not prepared this model after 0 ms"),
    }
}
