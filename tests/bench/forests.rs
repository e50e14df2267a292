//! Forests of 100 trees, the engine alone, beside onnxruntime on one thread and the same rows.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use muster_inference::{LoadOptions, Runtime as _, Tensor, TractRuntime};
use serde::Deserialize;

use crate::report::{self, Table};
use crate::samples::Samples;

const REPEATS: usize = 2_000;
const GOAL_RATIO: f64 = 1.0;
/// The same sums in another order, of scores up to some hundreds.
const LARGEST_DIFFERENCE: f64 = 1e-3;

/// What onnxruntime took for one forest and one batch.
#[derive(Deserialize)]
struct Peer {
    path: PathBuf,
    name: String,
    version: String,
    rows: Vec<Vec<f32>>,
    /// Its last output.
    scores: Vec<f64>,
    median_us: f64,
    bound_median_us: f64,
}

/// Measures where there is a Python that can export forests.
pub(crate) fn measure(folder: &Path, python: &Path) -> anyhow::Result<Option<Table>> {
    let output = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/forests.py"))
        .arg(folder)
        .arg(REPEATS.to_string())
        .output()
        .with_context(|| format!("{} cannot be started", python.display()))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let last = complaint.lines().last().unwrap_or_default();
        report::line(&format!(
            "forests are not measured: forests.py says {last:?}; it needs tests/fixtures/requirements-tabular.txt"
        ));
        return Ok(None);
    }
    let mut table = Table::new("Inference: forests of 100 trees, depth at most 12, engine alone");
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        add(&mut table, &serde_json::from_str(line).context("forests.py printed something else")?)?;
    }
    Ok(Some(table))
}

fn add(table: &mut Table, peer: &Peer) -> anyhow::Result<()> {
    let onnx = std::fs::read(&peer.path).with_context(|| format!("{}", peer.path.display()))?;
    let shape = vec![peer.rows.len(), peer.rows.first().map_or(0, Vec::len)];
    let input = Tensor::from_f32("input", shape.clone(), &peer.rows.concat())?;
    let sample_shapes = [("input".to_owned(), shape)].into();
    let model = TractRuntime.load(&onnx, &LoadOptions { sample_shapes, ..LoadOptions::default() })?;
    let scores = model.run(std::slice::from_ref(&input))?.pop().context("the engine gave no output")?;
    let same = scores.values().zip(&peer.scores).all(|(a, b)| (a - b).abs() <= LARGEST_DIFFERENCE);
    ensure!(same && scores.element_count() == peer.scores.len(), "{}: the engine and onnxruntime differ", peer.name);
    let mut samples = Samples::default();
    for _ in 0..REPEATS / 10 {
        model.run(std::slice::from_ref(&input))?;
    }
    for _ in 0..REPEATS {
        samples.time(|| model.run(std::slice::from_ref(&input)))?;
    }
    let (name, own) = (format!("{}, batch {}", peer.name, peer.rows.len()), samples.median_us());
    table.figure(&format!("{name}: tract with own operators, median"), own, "us");
    table.figure(&format!("{name}: onnxruntime {}, median", peer.version), peer.median_us, "us");
    table.figure(&format!("{name}: onnxruntime, bound buffers, median"), peer.bound_median_us, "us");
    table.goal(&format!("{name}: tract / onnxruntime, medians"), own / peer.median_us, GOAL_RATIO, "x");
    table.goal(&format!("{name}: tract / onnxruntime with bound buffers"), own / peer.bound_median_us, GOAL_RATIO, "x");
    Ok(())
}
