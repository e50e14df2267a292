//! Inference over HTTP with one client, beside the engine alone and onnxruntime on the same images.
//!
//! The three are measured in turns, so that a busy moment of the machine hits all of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use muster_inference::{LoadOptions, Model, Runtime as _, Tensor, TractRuntime};
use muster_tests::binaries::Binaries;
use muster_tests::fixtures::{self, Image};
use serde::Deserialize;

use crate::forests;
use crate::http::{Connection, Request};
use crate::report::{self, Table};
use crate::samples::Samples;
use crate::stage;

const GOAL_OVER_ENGINE_US: f64 = 100.0;
const ROUNDS: usize = 3;
const INFER: &str = "/v2/models/digits/infer";
const PYTHON: &str = "MUSTER_PEERS_PYTHON";
/// The same sums in another order.
const LARGEST_DIFFERENCE: f64 = 1e-5;

/// What was measured, by who did the work.
#[derive(Default)]
struct Measured {
    engine: Samples,
    http: Samples,
    json: Samples,
    binary: Samples,
}

#[derive(Deserialize)]
struct OnnxruntimeMeasured {
    version: String,
    median_us: f64,
    p99_us: f64,
    bound_median_us: f64,
}

pub(crate) async fn measure(binaries: &Binaries, folder: &Path, requests: u32) -> anyhow::Result<Vec<Table>> {
    let mut fleet = stage::one_device(binaries, folder).await?;
    stage::commit_digits(&fleet).await?;
    stage::wait_ready(stage::device(&mut fleet)?).await?;
    let address = stage::address(stage::device(&mut fleet)?)?;
    let images = fixtures::held_out()?;
    let per_round = usize::try_from(requests)?.div_ceil(ROUNDS);
    // Blocking on purpose: an event loop of the client's own would be measured with it.
    let (measured, peer) = tokio::task::spawn_blocking(move || measure_in_turns(address, &images, per_round)).await??;
    let mut tables = vec![table(&measured, peer.as_ref())];
    if let Some(python) = std::env::var_os(PYTHON) {
        let folder = folder.to_path_buf();
        tables.extend(tokio::task::spawn_blocking(move || forests::measure(&folder, Path::new(&python))).await??);
    }
    Ok(tables)
}

/// Forests alone, which need no program of ours.
pub(crate) fn forests(folder: &Path) -> anyhow::Result<Vec<Table>> {
    let Some(python) = std::env::var_os(PYTHON) else { bail!("{PYTHON} names no Python that can export forests") };
    Ok(forests::measure(folder, Path::new(&python))?.into_iter().collect())
}

fn measure_in_turns(
    address: SocketAddr,
    images: &[Image],
    per_round: usize,
) -> anyhow::Result<(Measured, Option<OnnxruntimeMeasured>)> {
    let engine = Engine::load(images)?;
    let client = Client::new(address, images)?;
    engine.agrees_with(&client)?;
    let mut measured = Measured::default();
    // Caches, lazily made buffers and the processor's clock settle first.
    engine.run(per_round.min(500), &mut Samples::default())?;
    client.run(&client.json, per_round.min(500), &mut Samples::default())?;
    client.run(&client.binary, per_round.min(500), &mut Samples::default())?;
    for _ in 0..ROUNDS {
        engine.run(per_round, &mut measured.engine)?;
        client.run(&client.idle, per_round, &mut measured.http)?;
        client.run(&client.json, per_round, &mut measured.json)?;
        client.run(&client.binary, per_round, &mut measured.binary)?;
    }
    Ok((measured, onnxruntime(per_round * ROUNDS)?))
}

/// tract in this process, as the agent uses it.
struct Engine {
    model: Box<dyn Model>,
    inputs: Vec<Tensor>,
}

impl Engine {
    fn load(images: &[Image]) -> anyhow::Result<Self> {
        let path = model_path();
        let onnx = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
        let options = LoadOptions {
            sample_shapes: BTreeMap::from([("image".to_owned(), vec![1, 64])]),
            ..LoadOptions::default()
        };
        let inputs = images
            .iter()
            .map(|image| Tensor::from_f32("image", vec![1, 64], &image.pixels))
            .collect::<Result<_, _>>()?;
        Ok(Self { model: TractRuntime.load(&onnx, &options)?, inputs })
    }

    fn answer(&self, at: usize) -> anyhow::Result<Vec<f64>> {
        let outputs = self.model.run(std::slice::from_ref(&self.inputs[at % self.inputs.len()]))?;
        Ok(outputs.first().context("the engine gave no output")?.values().collect())
    }

    fn run(&self, count: usize, samples: &mut Samples) -> anyhow::Result<()> {
        for input in self.inputs.iter().cycle().take(count) {
            samples.time(|| self.model.run(std::slice::from_ref(input)))?;
        }
        Ok(())
    }

    /// Makes sure that both really answer what is asked, before either is timed.
    fn agrees_with(&self, client: &Client) -> anyhow::Result<()> {
        let mut connection = client.connect()?;
        for at in 0..20 {
            let expected = self.answer(at)?;
            for (requests, read) in
                [(&client.json, read_json as fn(&[u8]) -> _), (&client.binary, read_binary as fn(&[u8]) -> _)]
            {
                let answer = connection.exchange(&requests[at])?;
                let said: Vec<f64> = if answer.status == 200 { read(answer.body)? } else { Vec::new() };
                let same = said.len() == expected.len()
                    && said.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= LARGEST_DIFFERENCE);
                ensure!(
                    same,
                    "image {at}: the agent answered {} with {said:?}, the engine says {expected:?}: {}",
                    answer.status,
                    String::from_utf8_lossy(answer.body)
                );
            }
        }
        Ok(())
    }
}

/// The one client and its requests.
struct Client {
    address: SocketAddr,
    idle: Vec<Request>,
    json: Vec<Request>,
    binary: Vec<Request>,
}

impl Client {
    fn new(address: SocketAddr, images: &[Image]) -> anyhow::Result<Self> {
        ensure!(images.len() >= 20, "there are too few held-out images");
        let json = |image: &Image| {
            let body = serde_json::json!({
                "inputs": [{ "name": "image", "datatype": "FP32", "shape": [1, 64], "data": image.pixels }]
            });
            Request::post(INFER, "Content-Type: application/json\r\n", body.to_string().as_bytes())
        };
        let binary = |image: &Image| {
            let data: Vec<u8> = image.pixels.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
            let head = serde_json::json!({
                "inputs": [{
                    "name": "image", "datatype": "FP32", "shape": [1, 64],
                    "parameters": { "binary_data_size": data.len() }
                }],
                "outputs": [{ "name": "probabilities", "parameters": { "binary_data": true } }]
            })
            .to_string();
            let headers = format!(
                "Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {}\r\n",
                head.len()
            );
            Request::post(INFER, &headers, &[head.as_bytes(), &data].concat())
        };
        Ok(Self {
            address,
            idle: vec![Request::get("/v2/health/live")],
            json: images.iter().map(json).collect(),
            binary: images.iter().map(binary).collect(),
        })
    }

    fn connect(&self) -> anyhow::Result<Connection> {
        Connection::open(self.address, Duration::from_secs(30))
    }

    fn run(&self, requests: &[Request], count: usize, samples: &mut Samples) -> anyhow::Result<()> {
        let mut connection = self.connect()?;
        for request in requests.iter().cycle().take(count) {
            let answer = samples.time(|| connection.exchange(request))?;
            if answer.status != 200 {
                bail!("the agent answered {}: {}", answer.status, String::from_utf8_lossy(answer.body));
            }
        }
        Ok(())
    }
}

fn read_json(body: &[u8]) -> anyhow::Result<Vec<f64>> {
    #[derive(Deserialize)]
    struct Output {
        data: Vec<f64>,
    }
    #[derive(Deserialize)]
    struct Answer {
        outputs: Vec<Output>,
    }
    let answer: Answer = serde_json::from_slice(body)?;
    Ok(answer.outputs.into_iter().next().context("no output")?.data)
}

/// The ten float32 at the end of the body.
fn read_binary(body: &[u8]) -> anyhow::Result<Vec<f64>> {
    let data = body.last_chunk::<40>().context("too short for ten numbers")?;
    Ok(data.as_chunks::<4>().0.iter().map(|four| f64::from(f32::from_le_bytes(*four))).collect())
}

fn model_path() -> std::path::PathBuf {
    fixtures::digits().join(format!("digits-{}.onnx", stage::VERSION))
}

/// onnxruntime on one thread, where there is a Python that has it.
fn onnxruntime(requests: usize) -> anyhow::Result<Option<OnnxruntimeMeasured>> {
    let Some(python) = std::env::var_os(PYTHON) else {
        report::line(&format!(
            "onnxruntime is not measured: set {PYTHON} to a Python with tests/fixtures/requirements-peers.txt installed"
        ));
        return Ok(None);
    };
    let output = Command::new(&python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/onnxruntime_median.py"))
        .arg("--onnx")
        .arg(model_path())
        .arg("--heldout")
        .arg(fixtures::digits().join("heldout.csv"))
        .args(["--requests", &requests.to_string()])
        .output()
        .with_context(|| format!("{} cannot be started", python.display()))?;
    let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "onnxruntime_median.py ended with {}: {complaint}", output.status);
    serde_json::from_str(&said).map(Some).with_context(|| format!("onnxruntime_median.py printed {said}"))
}

fn table(measured: &Measured, peer: Option<&OnnxruntimeMeasured>) -> Table {
    let engine = measured.engine.median_us();
    let mut table = Table::new(format!(
        "Inference: digits {}, batch 1, one client on localhost, {} requests of each kind",
        stage::VERSION,
        measured.json.len()
    ));
    table.figure("engine alone (tract), median", engine, "us");
    table.figure("engine alone (tract), p99", measured.engine.p99_us(), "us");
    table.figure("HTTP without inference (GET live), median", measured.http.median_us(), "us");
    for (name, samples) in [("JSON", &measured.json), ("binary", &measured.binary)] {
        let median = samples.median_us();
        table.goal(&format!("HTTP {name}, median"), median, engine + GOAL_OVER_ENGINE_US, "us");
        table.figure(&format!("HTTP {name}, p99"), samples.p99_us(), "us");
        table.goal(&format!("HTTP {name}, median above the engine's"), median - engine, GOAL_OVER_ENGINE_US, "us");
        table.figure(&format!("HTTP {name} / engine, medians"), median / engine, "x");
    }
    match peer {
        Some(peer) => {
            let name = format!("onnxruntime {}, one thread", peer.version);
            table.figure(&format!("{name}, median"), peer.median_us, "us");
            table.figure(&format!("{name}, p99"), peer.p99_us, "us");
            table.figure(&format!("{name}, bound buffers, median"), peer.bound_median_us, "us");
            table.figure("tract / onnxruntime, medians", engine / peer.median_us, "x");
            table.figure("tract / onnxruntime with bound buffers, medians", engine / peer.bound_median_us, "x");
        }
        None => table.text("onnxruntime", &format!("not measured: {PYTHON} is not set")),
    }
    table
}
