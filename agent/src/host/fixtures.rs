//! Models for tests: the digits model of the repository's fixtures, and models that do what a test tells them.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use muster_inference::{LoadOptions, Model, RunError, Runtime, Tensor, TractRuntime};
use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::ids::Digest;
use muster_shared::profile::{Column, Outliers, Profile, SliceBy, Slicing, Source};
use muster_shared::reference;

use super::ServedModel;

/// Elements of an image of the digits.
pub(crate) const PIXELS: usize = 64;

fn rows_of(file: &str) -> Vec<Vec<f32>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/digits").join(file);
    let mut reader = csv::Reader::from_path(&path).unwrap();
    reader.records().map(|record| record.unwrap().iter().map(|field| field.parse().unwrap()).collect()).collect()
}

/// Images that no version of the model was trained on, each with its label.
pub(crate) fn held_out() -> Vec<(f32, Vec<f32>)> {
    rows_of("heldout.csv").into_iter().map(|row| (row[0], row[1..].to_vec())).collect()
}

fn load(file: &str) -> Arc<dyn Model> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(file);
    TractRuntime.load(&std::fs::read(path).unwrap(), &LoadOptions::default()).unwrap().into()
}

/// All pixels, the predicted class and the confidence, against the reference sample of the fixtures.
pub(crate) fn digits_profile() -> Arc<Profile> {
    static PROFILE: OnceLock<Arc<Profile>> = OnceLock::new();
    let profile = || {
        let rows = rows_of("reference.csv");
        let model = load("digits/digits-1.1.0.onnx");
        let flat: Vec<f32> = rows.concat();
        let input = Tensor::from_f32("image", vec![rows.len(), PIXELS], &flat).unwrap();
        let answers: Vec<f64> = model.run(&[input]).unwrap()[0].values().collect();
        let mut columns: Vec<Column> = (0..PIXELS)
            .map(|pixel| Column {
                name: format!("p{pixel}"),
                source: Source::Input { tensor: "image".into(), index: u32::try_from(pixel).unwrap() },
                reference: reference::numeric(&rows.iter().map(|row| f64::from(row[pixel])).collect::<Vec<_>>())
                    .unwrap(),
            })
            .collect();
        let tensor = || "probabilities".to_owned();
        let best = |row: &[f64]| (0..10).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
        let classes: Vec<usize> = answers.chunks(10).map(best).collect();
        columns.push(Column {
            name: "class".into(),
            source: Source::PredictedClass { tensor: tensor() },
            reference: reference::class((0..10).map(|class| class.to_string()).collect(), &classes).unwrap(),
        });
        let confidence: Vec<f64> = answers.chunks(10).map(|row| row[best(row)]).collect();
        columns.push(Column {
            name: "confidence".into(),
            source: Source::Confidence { tensor: tensor() },
            reference: reference::numeric(&confidence).unwrap(),
        });
        Arc::new(Profile { columns, ..Profile::default() })
    };
    Arc::clone(PROFILE.get_or_init(profile))
}

/// A version of the digits model of the fixtures.
pub(crate) fn digits(version: &str, generation: u64) -> ServedModel {
    let model = load(&format!("digits/digits-{version}.onnx"));
    ServedModel {
        bundle: format!("digits@{version}").parse().unwrap(),
        manifest: Digest::of(version.as_bytes()),
        generation,
        signature: model.signature().clone(),
        profile: digits_profile(),
        quality: None,
        model,
    }
}

/// One of the fixtures that are not the digits, without a profile.
pub(crate) fn other(name: &str) -> ServedModel {
    let model = load(&format!("models/{name}.onnx"));
    ServedModel {
        bundle: format!("{name}@1.0.0").parse().unwrap(),
        manifest: Digest::of(name.as_bytes()),
        generation: 1,
        signature: model.signature().clone(),
        profile: Arc::default(),
        quality: None,
        model,
    }
}

struct Scripted<F> {
    signature: ModelSignature,
    run: F,
}

impl<F> Model for Scripted<F>
where
    F: Fn(&[Tensor]) -> Result<Vec<Tensor>, RunError> + Send + Sync,
{
    fn signature(&self) -> &ModelSignature {
        &self.signature
    }

    fn memory_bytes(&self) -> u64 {
        0
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        (self.run)(inputs)
    }
}

/// A model named `scripted` with an input `x` and an output `y` of `datatype` and any number of rows of one element, that
/// does `run`. The first element of each is watched in the bins 0 to 10 and above, in slices by `x`: below 5, from 5, missing.
pub(crate) fn scripted(
    datatype: DataType,
    version: &str,
    generation: u64,
    run: impl Fn(&[Tensor]) -> Result<Vec<Tensor>, RunError> + Send + Sync + 'static,
) -> ServedModel {
    let spec = |name: &str| TensorSpec { name: name.into(), datatype, shape: vec![-1, 1] };
    let signature = ModelSignature { inputs: vec![spec("x")], outputs: vec![spec("y")] };
    let sample: Vec<f64> = (0..=10).map(f64::from).collect();
    let column =
        |name: &str, source| Column { name: name.into(), source, reference: reference::numeric(&sample).unwrap() };
    let columns = vec![
        column("x", Source::Input { tensor: "x".into(), index: 0 }),
        column("y", Source::Output { tensor: "y".into(), index: 0 }),
    ];
    let by = SliceBy::Range { tensor: "x".into(), index: 0, edges: vec![5.0] };
    ServedModel {
        bundle: format!("scripted@{version}").parse().unwrap(),
        manifest: Digest::of(version.as_bytes()),
        generation,
        signature: signature.clone(),
        profile: Arc::new(Profile {
            columns,
            slices: vec![Slicing { name: "x".into(), by }],
            outliers: Some(Outliers { expected_share: 0.0, distance: None }),
            ..Profile::default()
        }),
        quality: None,
        model: Arc::new(Scripted { signature, run }),
    }
}

/// A tensor of FP64 with rows of one element.
pub(crate) fn column_of(name: &str, values: &[f64]) -> Tensor {
    Tensor::from_f64(name, DataType::Fp64, vec![values.len(), 1], values).unwrap()
}

/// A [`scripted`] model of FP64 that answers each value with its double.
pub(crate) fn doubling(version: &str, generation: u64) -> ServedModel {
    scripted(DataType::Fp64, version, generation, |inputs| {
        Ok(vec![column_of("y", &inputs[0].values().map(|x| 2.0 * x).collect::<Vec<_>>())])
    })
}
