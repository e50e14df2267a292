//! Models as scikit-learn, XGBoost and LightGBM users export them, and single operators of `ai.onnx.ml`, against the answers
//! that onnxruntime gave or ONNX's own tests demand.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use muster_inference::{
    GoldenSet, LoadOptions, Model, RunError, Runtime, Tensor, TractRuntime, golden, quote_non_finite,
};
use muster_shared::bundle::DataType;
use serde::Deserialize;
use serde_json::value::RawValue;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tabular")
}

fn load(onnx: &[u8], name: &str) -> Box<dyn Model> {
    TractRuntime.load(onnx, &LoadOptions::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn export(name: &str) -> Box<dyn Model> {
    load(&std::fs::read(folder().join(format!("{name}.onnx"))).unwrap(), name)
}

#[test]
fn exports_answer_as_onnxruntime_does() {
    let mut names = BTreeSet::new();
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "onnx") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let cases = GoldenSet::parse(&std::fs::read(path.with_extension("cases.json")).unwrap()).unwrap();
        match TractRuntime.load(&std::fs::read(&path).unwrap(), &LoadOptions::default()) {
            Ok(model) => match golden::check(model.as_ref(), &cases) {
                Ok(report) => println!("{name}: {report:?}"),
                Err(error) => wrong.push(format!("{name}: {error}")),
            },
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
        names.insert(name);
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), names.len(), wrong.join("\n"));
    for kind in ["forest-", "boosting-", "hist-boosting-", "svc-", "columns-", "xgboost-", "lightgbm-"] {
        assert!(names.iter().filter(|name| name.starts_with(kind)).count() >= 2, "{kind} has too few of {names:?}");
    }
}

#[derive(Deserialize)]
struct Operator {
    name: String,
    /// The ONNX file in hexadecimal digits.
    model: String,
    golden: Box<RawValue>,
}

#[test]
fn single_operators_answer_as_specified() {
    let mut operators: Vec<Operator> = Vec::new();
    for file in ["operators-trees.json", "operators-others.json"] {
        let text = std::fs::read(folder().join(file)).unwrap();
        operators.extend(serde_json::from_slice::<Vec<Operator>>(&quote_non_finite(&text)).unwrap());
    }
    let mut wrong = Vec::new();
    for Operator { name, model, golden: cases } in &operators {
        let byte = |at: usize| u8::from_str_radix(&model[at..at + 2], 16).unwrap();
        let onnx: Vec<u8> = (0..model.len()).step_by(2).map(byte).collect();
        let cases = GoldenSet::parse(cases.get().as_bytes()).unwrap();
        let options = LoadOptions { sample_shapes: cases.sample_shapes(), ..LoadOptions::default() };
        match TractRuntime.load(&onnx, &options) {
            Ok(model) => {
                if let Err(error) = golden::check(model.as_ref(), &cases) {
                    wrong.push(format!("{name}: {error}"));
                }
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), operators.len(), wrong.join("\n"));
    let onnx_own = operators.iter().filter(|operator| operator.name.starts_with("test_ai_onnx_ml")).count();
    assert!(onnx_own >= 8, "only {onnx_own} are ONNX's own");
}

#[test]
fn texts_are_served_and_categories_that_are_not_known_are_told() {
    let model = export("columns-logistic");
    let types: Vec<DataType> = model.signature().inputs.iter().map(|input| input.datatype).collect();
    assert_eq!(types, [DataType::Fp32, DataType::Fp32, DataType::Bytes, DataType::Int64]);
    let one = |name: &str| Tensor::from_f32(name, vec![1, 1], &[0.01]).unwrap();
    let kind = Tensor::from_f64("kind", DataType::Int64, vec![1, 1], &[3.0]).unwrap();
    let run = |site: &[u8]| {
        let site = Tensor::from_byte_elements("site", vec![1, 1], [site]).unwrap();
        model.run(&[one("bmi"), one("bp"), site, kind.clone()])
    };
    let scores = |site: &[u8]| run(site).unwrap()[1].values().collect::<Vec<f64>>();
    assert_ne!(scores("süd".as_bytes()), scores(b"north"));
    assert!(matches!(run(b"\xff"), Err(RunError::NotText { element: 0, .. })));
}

#[test]
fn labels_are_texts_where_the_model_has_texts() {
    let model = export("logistic-binary-texts");
    let label = &model.signature().outputs[0];
    assert_eq!((label.datatype, label.shape.as_slice()), (DataType::Bytes, [-1].as_slice()));
    let outputs = model.run(&[Tensor::from_f32("input", vec![2, 30], &[1.0; 60]).unwrap()]).unwrap();
    for label in outputs[0].byte_elements() {
        assert!([b"benign".as_slice(), b"malignant"].contains(&label));
    }
}

#[test]
fn memory_counts_what_operators_hold() {
    let model = export("forest-classifier");
    assert!(model.memory_bytes() > 4_000, "{}", model.memory_bytes());
}
