//! Steps against what scikit-learn, scipy and Pillow made of the same data (`tests/fixtures/make_pipelines.py`).

use std::path::PathBuf;

use muster_shared::bundle::DataType;
use muster_shared::pipeline::{Categories, Operation, Unknown};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value as Json;

use super::*;
use crate::tensor::TensorError;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pipelines").join(name)).unwrap()
}

fn tensor(name: &str, table: &[Vec<Json>]) -> Tensor {
    let shape = vec![table.len(), table[0].len()];
    let cells = || table.iter().flatten();
    if cells().any(Json::is_string) {
        return Tensor::from_byte_elements(name, shape, cells().map(|cell| cell.as_str().unwrap().to_owned())).unwrap();
    }
    let numbers: Vec<f64> = cells().map(|cell| cell.as_f64().unwrap_or(f64::NAN)).collect();
    Tensor::from_f64(name, DataType::Fp64, shape, &numbers).unwrap()
}

fn spec(name: &str, datatype: DataType, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype, shape: shape.to_vec() }
}

/// What `operation` makes of `given`, in floating point of 64 bits where it makes numbers.
fn carried_out(operation: Operation, given: Tensor) -> Result<Tensor, RunError> {
    let width = i64::try_from(given.shape().get(1).copied().unwrap_or(1)).unwrap();
    let inputs = [spec("in", given.datatype(), &if given.shape().len() == 1 { vec![-1] } else { vec![-1, width] })];
    let step = Step { from: vec!["in".into()], to: "out".into(), operation };
    let forms = muster_shared::pipeline::forms_after(Half::Pre, &inputs, std::slice::from_ref(&step)).unwrap();
    let form = &forms["out"];
    let datatype = if form.datatype == DataType::Bytes { DataType::Bytes } else { DataType::Fp64 };
    let flow = Flow::new(Half::Pre, &inputs, &[step]).unwrap();
    Ok(flow.run(&[given], &[spec("out", datatype, &form.shape)])?.remove(0))
}

fn assert_close(name: &str, got: &Tensor, expected: &Tensor, relative: f64) {
    assert_eq!(got.shape(), expected.shape(), "{name}");
    assert_eq!(got.byte_elements().collect::<Vec<_>>(), expected.byte_elements().collect::<Vec<_>>(), "{name}");
    for (at, (got, expected)) in got.values().zip(expected.values()).enumerate() {
        let close = (got - expected).abs() <= relative * expected.abs().max(1.0);
        assert!(close || (got.is_nan() && expected.is_nan()), "{name}, element {at}: {got} for {expected}");
    }
}

#[derive(Deserialize)]
struct StepCase {
    name: String,
    given: Vec<Vec<Json>>,
    #[serde(rename = "do")]
    operation: Operation,
    fit: Option<Fit>,
    expected: Vec<Vec<Json>>,
}

#[test]
fn steps_equal_scikit_learn_and_scipy() {
    let cases: Vec<StepCase> = serde_json::from_slice(&fixture("steps.json")).unwrap();
    assert!(cases.len() > 20);
    for StepCase { name, given, operation, expected, .. } in cases {
        let got = carried_out(operation, tensor("in", &given)).unwrap();
        assert_close(&name, &got, &tensor("out", &expected), 1e-13);
    }
}

#[test]
fn fitted_numbers_equal_scikit_learn() {
    let cases: Vec<StepCase> = serde_json::from_slice(&fixture("steps.json")).unwrap();
    let fitted = cases.iter().filter(|case| case.fit.is_some());
    assert!(fitted.clone().count() > 12);
    for StepCase { name, given, operation, fit: found, expected } in fitted {
        // The fixtures' estimators have seen the first half, or the first 20 rows of 30.
        let seen = if given.len() == 30 { 20 } else { given.len() / 2 };
        let sample = tensor("in", &given[..seen]);
        let inputs = [spec("in", sample.datatype(), &[-1, i64::try_from(given[0].len()).unwrap()])];
        let draft = DraftStep { from: vec!["in".into()], to: "out".into(), draft: Draft::Fit(found.unwrap()) };
        let steps = fit(&inputs, &[draft], Some(&[sample])).unwrap();
        match (&steps[0].operation, operation) {
            (Operation::OneHot { .. } | Operation::Ordinal { .. } | Operation::ImputeText { .. }, expected) => {
                assert_eq!(steps[0].operation, *expected, "{name}");
            }
            (found, _) => {
                let got = carried_out(found.clone(), tensor("in", given)).unwrap();
                assert_close(name, &got, &tensor("out", expected), 1e-12);
            }
        }
    }
}

#[derive(Deserialize)]
struct ImageCase {
    file: String,
    #[serde(rename = "do")]
    operation: muster_shared::pipeline::ImageOperation,
    expected: String,
}

fn image(operation: &muster_shared::pipeline::ImageOperation, file: &[u8]) -> Result<Tensor, RunError> {
    carried_out(Operation::Image(operation.clone()), Tensor::from_byte_elements("in", vec![1], [file]).unwrap())
}

#[test]
fn images_equal_pillow() {
    let cases: Vec<ImageCase> = serde_json::from_slice(&fixture("images.json")).unwrap();
    assert!(cases.len() > 25);
    for ImageCase { file, operation, expected } in cases {
        let got = image(&operation, &fixture(&file)).unwrap();
        let size = [got.shape()[3], got.shape()[2]].map(|side| u32::try_from(side).unwrap());
        let as_is = muster_shared::pipeline::ImageOperation { resize: None, crop: Some(size), ..operation };
        let wanted = image(&as_is, &fixture(&expected)).unwrap();
        assert_eq!(got.shape(), wanted.shape());
        let differences: Vec<f64> =
            got.values().zip(wanted.values()).map(|(got, wanted)| (got - wanted).abs()).collect();
        let largest = differences.iter().copied().fold(0.0, f64::max);
        let mean = differences.iter().sum::<f64>() / differences.len() as f64;
        if file.ends_with(".png") {
            assert!(largest == 0.0, "{file} as {expected}: {largest}");
        } else {
            // The inverse cosine transform and the interpolation of colours are each decoder's own.
            assert!(largest <= 4.0 && mean < 0.5, "{file} as {expected}: at most {largest}, {mean} in the mean");
        }
    }
}

#[test]
fn channels_layout_and_scale_are_as_described() {
    let operation = |text: &str| serde_json::from_str(text).unwrap();
    let file = fixture("photo.png");
    let plain = image(&operation(r#"{"crop": [4, 3]}"#), &file).unwrap();
    assert_eq!(plain.shape(), [1, 3, 3, 4]);
    let plain: Vec<f64> = plain.values().collect();
    let nhwc = image(&operation(r#"{"crop": [4, 3], "layout": "nhwc"}"#), &file).unwrap();
    assert_eq!(nhwc.shape(), [1, 3, 4, 3]);
    let bgr = image(&operation(r#"{"crop": [4, 3], "colour": "bgr"}"#), &file).unwrap();
    let scaled = r#"{"crop": [4, 3], "divide-by": 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}"#;
    let scaled = image(&operation(scaled), &file).unwrap();
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    for channel in 0..3 {
        for pixel in 0..12 {
            let value = plain[channel * 12 + pixel];
            assert_eq!(nhwc.value(pixel * 3 + channel), Some(value));
            assert_eq!(bgr.value((2 - channel) * 12 + pixel), Some(value));
            assert_eq!(scaled.value(channel * 12 + pixel), Some((value / 255.0 - mean[channel]) / std[channel]));
        }
    }
}

#[test]
fn hostile_images_are_refused_before_they_are_decoded() {
    let small = serde_json::from_str(r#"{"resize": {"size": {"exact": [8, 8]}}, "max-pixels": 5000}"#).unwrap();
    let refuse = |file: &[u8]| image(&small, file).unwrap_err().to_string();
    assert!(refuse(&fixture("photo.png")).contains("90 × 61 pixels; the images of one request may have 5000 together"));
    assert!(refuse(b"GIF89a").contains("image 1: "));
    assert!(refuse(b"").contains("neither PNG nor JPEG"));
    let photo = fixture("photo.png");
    assert!(image(&small, &photo[..photo.len() / 2]).is_err());
    // A header that claims 60,000 × 60,000 pixels.
    let mut huge = photo;
    huge[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
    let crc = crc32(&huge[12..29]);
    huge[29..33].copy_from_slice(&crc.to_be_bytes());
    assert!(refuse(&huge).contains("60000 × 60000 pixels"), "{}", refuse(&huge));
}

/// The checksum of a PNG's chunk (PNG specification, annex D).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { 0xEDB8_8320 ^ (crc >> 1) } else { crc >> 1 })
    })
}

#[test]
fn an_unknown_category_is_refused_ignored_or_another_column() {
    let categories = || vec![Categories::Texts(vec!["a".into(), "b".into()])];
    let given = || Tensor::from_byte_elements("in", vec![2, 1], ["b", "z"]).unwrap();
    let encode = |unknown| carried_out(Operation::OneHot { categories: categories(), unknown }, given());
    let rows = |tensor: Tensor| tensor.values().collect::<Vec<_>>();
    assert_eq!(rows(encode(Unknown::Ignore).unwrap()), [0.0, 1.0, 0.0, 0.0]);
    assert_eq!(rows(encode(Unknown::Other).unwrap()), [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    let error = encode(Unknown::Error).unwrap_err();
    assert!(error.is_request_fault());
    assert_eq!(error.to_string(), "pipeline, pre step 1 (one-hot): row 2, column 1: \"z\" is no known category");
    let strict = Operation::Ordinal { categories: categories(), unknown_value: None };
    assert!(carried_out(strict, given()).is_err());
}

#[test]
fn the_greatest_columns_come_in_order() {
    let given =
        Tensor::from_f64("in", DataType::Fp64, vec![2, 4], &[1.0, 3.0, f64::NAN, 3.0, -0.5, 0.0, -1.0, 2.0]).unwrap();
    let inputs = [spec("in", DataType::Fp64, &[-1, 4])];
    let step =
        Step { from: vec!["in".into()], to: "top".into(), operation: Operation::TopK { k: 3, indices: "at".into() } };
    let flow = Flow::new(Half::Post, &inputs, &[step]).unwrap();
    let wanted = [spec("top", DataType::Fp64, &[-1, 3]), spec("at", DataType::Int64, &[-1, 3])];
    let results = flow.run(&[given], &wanted).unwrap();
    assert_eq!(results[0].values().collect::<Vec<_>>(), [3.0, 3.0, 1.0, 2.0, 0.0, -0.5]);
    assert_eq!(results[1].values().collect::<Vec<_>>(), [1.0, 3.0, 0.0, 3.0, 1.0, 0.0]);
}

#[test]
fn a_series_becomes_windows() {
    let given =
        Tensor::from_f64("in", DataType::Fp64, vec![7, 2], &(0..14).map(f64::from).collect::<Vec<_>>()).unwrap();
    let windows = carried_out(Operation::Window { size: 3, hop: 2 }, given).unwrap();
    assert_eq!(windows.shape(), [3, 3, 2]);
    let expected = [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 8, 9, 10, 11, 12, 13].map(f64::from);
    assert_eq!(windows.values().collect::<Vec<_>>(), expected);
    let short = Tensor::from_f64("in", DataType::Fp64, vec![2, 1], &[0.0; 2]).unwrap();
    let error = carried_out(Operation::Window { size: 3, hop: 1 }, short).unwrap_err();
    assert!(error.to_string().contains("a series of 2 times is shorter than a window, 3"), "{error}");
}

/// Gives its input `x` once more as `y`.
struct Echo(ModelSignature);

impl Model for Echo {
    fn signature(&self) -> &ModelSignature {
        &self.0
    }

    fn memory_bytes(&self) -> u64 {
        0
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        let x = &inputs[0];
        let y = Tensor::new("y", x.datatype(), x.shape().to_vec(), x.data().to_vec());
        Ok(vec![y.map_err(|source: TensorError| RunError::Output { output: "y".into(), source })?])
    }
}

fn echo() -> (Box<dyn Model>, ModelSignature, Pipeline) {
    let model = ModelSignature {
        inputs: vec![spec("x", DataType::Fp32, &[-1, 4])],
        outputs: vec![spec("y", DataType::Fp32, &[-1, 4])],
    };
    let step = |from: &[&str], to: &str, operation| Step {
        from: from.iter().map(|name| (*name).to_owned()).collect(),
        to: to.into(),
        operation,
    };
    let city = Categories::Texts(vec!["Graz".into(), "Lyon".into()]);
    let pipeline = Pipeline {
        model: model.clone(),
        pre: vec![
            step(&["a", "b"], "n", Operation::Scale { center: vec![1.0, 2.0], scale: vec![2.0, 4.0] }),
            step(&["city"], "c", Operation::OneHot { categories: vec![city], unknown: Unknown::Ignore }),
            step(&["n", "c"], "x", Operation::Join),
        ],
        post: vec![
            step(&["y"], "class", Operation::Argmax),
            step(
                &["class"],
                "label",
                Operation::Labels { labels: ["a", "b", "Graz", "Lyon"].map(Into::into).to_vec() },
            ),
        ],
    };
    let outer = ModelSignature {
        inputs: vec![
            spec("a", DataType::Fp32, &[-1, 1]),
            spec("b", DataType::Int64, &[-1]),
            spec("city", DataType::Bytes, &[-1, 1]),
        ],
        outputs: vec![spec("label", DataType::Bytes, &[-1]), spec("y", DataType::Fp32, &[-1, 4])],
    };
    (Box::new(Echo(model)), outer, pipeline)
}

fn request(rows: usize) -> Vec<Tensor> {
    vec![
        Tensor::from_byte_elements("city", vec![rows, 1], vec!["Lyon"; rows]).unwrap(),
        Tensor::from_f64("a", DataType::Fp32, vec![rows, 1], &vec![2.0; rows]).unwrap(),
        Tensor::from_f64("b", DataType::Int64, vec![rows], &vec![4.0; rows]).unwrap(),
    ]
}

#[test]
fn a_model_in_its_pipeline_takes_and_gives_what_callers_know() {
    let (model, outer, pipeline) = echo();
    let model = surround(model, &outer, &pipeline).unwrap();
    assert_eq!(model.signature(), &outer);
    let answer = model.run(&request(2)).unwrap();
    assert_eq!(answer[0].byte_elements().collect::<Vec<_>>(), [b"Lyon"; 2]);
    assert_eq!(answer[1].values().collect::<Vec<_>>(), [0.5, 0.5, 0.0, 1.0, 0.5, 0.5, 0.0, 1.0]);
    let refuse = |change: &dyn Fn(&mut Vec<Tensor>)| {
        let mut inputs = request(2);
        change(&mut inputs);
        let error = model.run(&inputs).unwrap_err();
        assert!(error.is_request_fault(), "{error}");
        error.to_string()
    };
    assert!(refuse(&|inputs| drop(inputs.pop())).contains("input \"b\" is missing"));
    assert!(refuse(&|inputs| inputs.push(inputs[0].clone())).contains("given twice"));
    assert!(refuse(&|inputs| inputs[1] = request(3).remove(1)).contains("inputs have 3 rows and 2 rows"));
    assert!(
        refuse(&|inputs| inputs[2] = Tensor::from_f64("x", DataType::Fp32, vec![1], &[0.0]).unwrap()).contains("\"x\"")
    );
    assert!(
        refuse(&|inputs| inputs[2] = Tensor::from_f64("b", DataType::Fp32, vec![2], &[0.0; 2]).unwrap())
            .contains("INT64")
    );
}

#[test]
fn a_pipeline_for_another_model_is_refused() {
    let (_, outer, pipeline) = echo();
    let other = ModelSignature { inputs: vec![spec("x", DataType::Fp32, &[-1, 5])], ..pipeline.model.clone() };
    assert!(matches!(surround(Box::new(Echo(other)), &outer, &pipeline), Err(LoadError::Tensor { .. })));
    let (model, outer, mut pipeline) = echo();
    pipeline.pre.remove(1);
    assert!(matches!(surround(model, &outer, &pipeline), Err(LoadError::Pipeline(_))));
}

/// Any tensor named `in`, of any type and of a shape that need not suit.
fn any_tensor() -> impl Strategy<Value = Tensor> {
    let texts = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 1..6)
        .prop_map(|texts| Tensor::from_byte_elements("in", vec![texts.len(), 1], texts).unwrap());
    let numbers = (1..5_usize, 0..4_usize, prop::collection::vec(any::<f64>(), 20)).prop_map(|(rows, width, data)| {
        Tensor::from_f64("in", DataType::Fp64, vec![rows, width], &data[..rows * width]).unwrap()
    });
    prop_oneof![texts, numbers]
}

proptest! {
    #[test]
    fn no_step_panics_whatever_it_is_given(given in any_tensor(), which in any::<prop::sample::Index>()) {
        let cases: Vec<StepCase> = serde_json::from_slice(&fixture("steps.json")).unwrap();
        let case = &cases[which.index(cases.len())];
        let inputs = [spec("in", given.datatype(), &[-1, -1])];
        let step = Step { from: vec!["in".into()], to: "out".into(), operation: case.operation.clone() };
        let mut flow = Flow::new(Half::Pre, &inputs, &[]).unwrap();
        // Not even where validation would have refused it.
        flow.push(&step);
        let mut values = flow.start(std::slice::from_ref(&given));
        let _ = flow.carry_out(0, &mut values);
    }

    #[test]
    fn any_bytes_are_an_image_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), jpeg: bool) {
        let operation = serde_json::from_str(r#"{"resize": {"size": {"exact": [5, 4]}}, "max-pixels": 20000}"#).unwrap();
        let mut file = fixture(if jpeg { "photo-420.jpg" } else { "digit.png" });
        let at = at.index(file.len());
        let end = file.len().min(at + bytes.len());
        file[at..end].copy_from_slice(&bytes[..end - at]);
        if let Ok(image) = image(&operation, &file) {
            prop_assert_eq!(image.shape(), [1, 3, 4, 5]);
        }
    }

    #[test]
    fn scaling_and_its_undoing_come_back(x in -1e6..1e6_f64, center in -1e3..1e3_f64, scale in 1e-3..1e3_f64) {
        let given = Tensor::from_f64("in", DataType::Fp64, vec![1, 1], &[x]).unwrap();
        let scaled = carried_out(Operation::Scale { center: vec![center], scale: vec![scale] }, given).unwrap();
        let renamed = Tensor::new("in", DataType::Fp64, vec![1, 1], scaled.data().to_vec()).unwrap();
        let back = carried_out(Operation::Unscale { center: vec![center], scale: vec![scale] }, renamed).unwrap();
        prop_assert!((back.value(0).unwrap() - x).abs() <= 1e-9 * x.abs().max(1.0));
    }
}

/// Scaling and softmax are the same as steps outside the model, folded into it, and as its own nodes, in the rounding of 32 bits.
#[test]
fn steps_around_a_model_give_what_its_own_nodes_give() {
    let digits = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/digits");
    let bare_onnx = fixture("digits-bare.onnx");
    let load_one = |onnx: &[u8]| crate::TractRuntime.load(onnx, &LoadOptions::default()).unwrap();
    let whole = load_one(&std::fs::read(digits.join("digits-1.1.0.onnx")).unwrap());
    let bare = load_one(&bare_onnx);
    let step = |from: &str, to: &str, operation| Step { from: vec![from.into()], to: to.into(), operation };
    let pipeline = Pipeline {
        model: bare.signature().clone(),
        pre: vec![step("image", "scaled", Operation::Scale { center: vec![0.0], scale: vec![16.0] })],
        post: vec![step("linear1", "probabilities", Operation::Softmax)],
    };
    let golden = GoldenSet::parse(&std::fs::read(digits.join("golden-1.1.0.json")).unwrap()).unwrap();
    let outside = surround(bare, whole.signature(), &pipeline).unwrap();
    let inside = load(&crate::TractRuntime, &bare_onnx, whole.signature(), Some(&pipeline), &golden).unwrap();
    assert_eq!(inside.folded.len(), 2);
    for example in &golden.examples {
        let nodes = whole.run(&example.inputs).unwrap();
        for model in [&outside, &inside.model] {
            let steps = model.run(&example.inputs).unwrap();
            let off = steps[0].values().zip(nodes[0].values()).map(|(one, other)| (one - other).abs());
            assert!(off.fold(0.0, f64::max) <= 1e-6);
        }
    }
}
