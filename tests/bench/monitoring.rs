//! What counting an inference costs, beside whylogs and the KLL sketch of Apache DataSketches on the same columns, and for an image
//! beside the model that answers it.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use muster_inference::{Counted, Images, LoadOptions, Runtime as _, Tally, Tensor, TractRuntime};
use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::profile::{Column, Probe, Profile, Reference, Side, SliceBy, Slicing, Source};
use muster_shared::reference;
use serde::Deserialize;

use crate::around;
use crate::report::{self, Table};
use crate::samples::Samples;

const GOAL_US: f64 = 2.0;
const GOAL_IMAGE_SHARE: f64 = 0.05;
const FEATURES: u32 = 64;
const CLASSES: usize = 10;
const ROWS: usize = 1_000;
const ROUNDS: usize = 21;
const PIXELS: usize = 3 * 224 * 224;
const PYTHON: &str = "MUSTER_PEERS_PYTHON";
/// A MobileNetV2 in ONNX with one input of 1×3×224×224.
const MOBILENET: &str = "MUSTER_MOBILENET";

/// SplitMix64: the same rows in every run.
struct Random(u64);

impl Random {
    /// From 0 to below 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Of the normal distribution (Box and Muller, 1958), rounded to 32 bits as a tensor holds it.
    #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
    fn normal(&mut self) -> f32 {
        ((-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()) as f32
    }
}

fn spec(name: &str, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype: DataType::Fp32, shape: shape.to_vec() }
}

fn measured(name: String, source: Source, sample: &[f64]) -> anyhow::Result<Column> {
    Ok(Column { name, source, reference: reference::numeric(sample)? })
}

/// Requests of one row and their answers.
struct Traffic {
    profile: Profile,
    signature: ModelSignature,
    requests: Vec<([Tensor; 1], Vec<Tensor>)>,
}

fn tabular() -> anyhow::Result<Traffic> {
    let mut random = Random(1);
    let mut columns = Vec::new();
    for index in 0..FEATURES {
        let sample: Vec<f64> = (0..ROWS).map(|_| f64::from(random.normal())).collect();
        columns.push(measured(format!("x{index}"), Source::Input { tensor: "x".into(), index }, &sample)?);
    }
    let tensor = || "p".to_owned();
    let classes = (0..CLASSES).map(|class| class.to_string()).collect();
    let reference = Reference::Class { classes, counts: vec![100; CLASSES] };
    columns.push(Column { name: "class".into(), source: Source::PredictedClass { tensor: tensor() }, reference });
    let sample: Vec<f64> = (0..ROWS).map(|_| random.unit()).collect();
    for (name, source) in [
        ("confidence", Source::Confidence { tensor: tensor() }),
        ("entropy", Source::Entropy { tensor: tensor() }),
        ("margin", Source::Margin { tensor: tensor() }),
    ] {
        columns.push(measured(name.into(), source, &sample)?);
    }
    let mut requests = Vec::with_capacity(ROWS);
    for _ in 0..ROWS {
        let x: Vec<f32> = (0..FEATURES).map(|_| random.normal()).collect();
        let scores: Vec<f32> = (0..CLASSES).map(|_| (3.0 * random.normal()).exp()).collect();
        let sum: f32 = scores.iter().sum();
        let p: Vec<f32> = scores.iter().map(|score| score / sum).collect();
        let input = Tensor::from_f32("x", vec![1, x.len()], &x)?;
        requests.push(([input], vec![Tensor::from_f32("p", vec![1, CLASSES], &p)?]));
    }
    let signature = ModelSignature {
        inputs: vec![spec("x", &[-1, i64::from(FEATURES)])],
        outputs: vec![spec("p", &[-1, i64::try_from(CLASSES)?])],
    };
    Ok(Traffic { profile: Profile { columns, ..Profile::default() }, signature, requests })
}

fn images() -> anyhow::Result<Traffic> {
    let mut random = Random(2);
    let sample: Vec<f64> = (0..ROWS).map(|_| f64::from(random.normal())).collect();
    let mut probes = vec![
        Probe::Mean,
        Probe::Std,
        Probe::Min,
        Probe::Max,
        Probe::Norm,
        Probe::Roughness,
        Probe::Zeros,
        Probe::Saturated { at: 1.0 },
    ];
    probes.extend((0..3).map(|channel| Probe::ChannelMean { channel, channels: 3, last: false }));
    let (of, tensor) = (Side::Input, || "image".to_owned());
    let probes = probes.into_iter().map(|probe| Source::Probe { of, tensor: tensor(), probe });
    let projections = (0..16).map(|number| Source::Projection { of, tensor: tensor(), seed: 9, number });
    let columns = probes
        .chain(projections)
        .enumerate()
        .map(|(at, source)| measured(format!("q{at}"), source, &sample))
        .collect::<anyhow::Result<_>>()?;
    let mut requests = Vec::new();
    for _ in 0..8 {
        let pixels: Vec<f32> = (0..PIXELS).map(|_| random.normal()).collect();
        requests.push(([Tensor::from_f32("image", vec![1, 3, 224, 224], &pixels)?], Vec::new()));
    }
    let signature = ModelSignature { inputs: vec![spec("image", &[-1, 3, 224, 224])], outputs: Vec::new() };
    Ok(Traffic { profile: Profile { columns, ..Profile::default() }, signature, requests })
}

/// The time an inference takes to be counted, in microseconds: the median of rounds of `count` of them.
fn counting_us(traffic: &Traffic, count: usize) -> anyhow::Result<f64> {
    let profile = Arc::new(traffic.profile.clone());
    let tally = Tally::new(Arc::clone(&profile), &traffic.signature)?;
    let mut counted = Counted::nothing(&profile);
    let mut rounds = Samples::default();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for (inputs, outputs) in traffic.requests.iter().cycle().take(count) {
            tally.count(&mut counted, inputs, &Images::NONE, outputs);
        }
        rounds.push(started.elapsed() / u32::try_from(count)?);
    }
    let total = counted.columns.first().map_or(0, muster_shared::sketch::ColumnSketch::total);
    ensure!(total == (ROUNDS * count) as u64, "{total} values were counted");
    Ok(rounds.percentile(50).as_secs_f64() * 1e6)
}

#[derive(Deserialize)]
struct PeersMeasured {
    kll_version: String,
    kll_us_a_row: f64,
    whylogs_version: Option<String>,
    whylogs_us_a_row: Option<f64>,
}

/// The peers on the same rows, read from a file of FP32.
fn peers(folder: &Path, traffic: &Traffic) -> anyhow::Result<Option<PeersMeasured>> {
    let Some(python) = std::env::var_os(PYTHON) else { return Ok(None) };
    let file = folder.join("rows.f32");
    let rows: Vec<u8> = traffic.requests.iter().flat_map(|(inputs, _)| inputs[0].data().iter().copied()).collect();
    std::fs::write(&file, rows)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/monitoring_peers.py");
    let output = Command::new(python).arg(script).arg(&file).arg(FEATURES.to_string()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(Some(serde_json::from_slice(&output.stdout)?))
}

/// The time MobileNetV2 takes for one image, in microseconds.
fn mobilenet_us() -> anyhow::Result<Option<f64>> {
    let Some(path) = std::env::var_os(MOBILENET) else { return Ok(None) };
    let onnx = std::fs::read(&path).with_context(|| format!("{MOBILENET}={}", Path::new(&path).display()))?;
    let shape = vec![1, 3, 224, 224];
    let probe = TractRuntime.load(&onnx, &LoadOptions::default());
    let name = probe.as_ref().ok().and_then(|model| model.signature().inputs.first().map(|input| input.name.clone()));
    let name = name.unwrap_or_else(|| "input".into());
    let options = LoadOptions { sample_shapes: [(name.clone(), shape.clone())].into(), ..LoadOptions::default() };
    let model = TractRuntime.load(&onnx, &options)?;
    let input = [Tensor::from_f32(name, shape, &vec![0.5; PIXELS])?];
    let mut runs = Samples::default();
    for _ in 0..ROUNDS {
        runs.time(|| model.run(&input))?;
    }
    Ok(Some(runs.percentile(50).as_secs_f64() * 1e6))
}

pub(crate) fn measure(folder: &Path) -> anyhow::Result<Vec<Table>> {
    let traffic = tabular()?;
    // The clock of the processor settles first.
    let settled = Instant::now();
    while settled.elapsed() < Duration::from_millis(300) {
        counting_us(&traffic, 100)?;
    }
    let mut table = Table::new("Counting an inference");
    let whole_us = counting_us(&traffic, 20_000)?;
    table.goal("64 features and 10 classes, with confidence, entropy and margin", whole_us, GOAL_US, "µs");
    let by = SliceBy::Range { tensor: "x".into(), index: 3, edges: vec![-1.0, 0.0, 1.0] };
    let slices = vec![Slicing { name: "x3".into(), by }];
    let sliced = Traffic { profile: Profile { slices, ..traffic.profile.clone() }, ..tabular()? };
    table.figure("the same in slices by one feature", counting_us(&sliced, 20_000)?, "µs");
    match peers(folder, &traffic)? {
        Some(peers) => {
            table.figure(
                &format!("datasketches {} KLL, the features alone", peers.kll_version),
                peers.kll_us_a_row,
                "µs",
            );
            table.figure("ratio of that to ours", peers.kll_us_a_row / whole_us, "");
            if let (Some(version), Some(row_us)) = (peers.whylogs_version, peers.whylogs_us_a_row) {
                table.figure(&format!("whylogs {version}, the features alone"), row_us, "µs");
                table.figure("ratio of that to ours", row_us / whole_us, "");
            }
        }
        None => report::line(&format!("{PYTHON} names no Python with datasketches and whylogs: no peers")),
    }
    let image_us = counting_us(&images()?, 40)?;
    table.figure("an image of 3×224×224: 11 probes, 16 projections", image_us, "µs");
    match mobilenet_us()? {
        Some(model_us) => {
            table.figure("MobileNetV2 on it, with tract", model_us, "µs");
            table.goal("share of that", image_us / model_us, GOAL_IMAGE_SHARE, "");
        }
        None => report::line(&format!("{MOBILENET} names no ONNX file: the image stands alone")),
    }
    Ok(vec![table, around::measure()?])
}
