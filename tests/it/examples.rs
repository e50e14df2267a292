//! The programs under `examples/`, beside a real agent: each is answered as the model's golden examples say, waits for what may pass,
//! loses nothing meanwhile, and stops when it is told to. `.ci/examples` builds what cargo does not and runs this.

mod applications;
mod bridge;
mod units;
mod watcher;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use muster_tests::binaries::Binaries;
use muster_tests::device::DeviceSetup;
use muster_tests::fixtures;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::process::Process;
use muster_tests::wait;
use serde::Deserialize;

use crate::stage;

/// The folder of the examples.
fn folder() -> PathBuf {
    fixtures::folder().join("../../examples")
}

/// A golden example of digits 1.0.0: an input, and what another runtime answers to it.
struct Golden {
    pixels: Vec<f32>,
    probabilities: Vec<f64>,
}

impl Golden {
    fn class(&self) -> usize {
        let best = self.probabilities.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        best.map_or(0, |(class, _)| class)
    }

    /// Whether `probability` is that of the class, as nearly as the fixture says it has to be.
    fn allows(&self, class: usize, probability: f64) -> bool {
        let expected = self.probabilities[self.class()];
        class == self.class() && (probability - expected).abs() <= 1e-4 + 1e-3 * expected
    }
}

#[derive(Deserialize)]
struct GoldenFile {
    examples: Vec<GoldenExample>,
}

#[derive(Deserialize)]
struct GoldenExample {
    inputs: Vec<GoldenTensor>,
    outputs: Vec<GoldenTensor>,
}

#[derive(Deserialize)]
struct GoldenTensor {
    data: Vec<f64>,
}

fn golden() -> anyhow::Result<Vec<Golden>> {
    let file: GoldenFile = serde_json::from_slice(&std::fs::read(fixtures::digits().join("golden-1.0.0.json"))?)?;
    let golden = file.examples.into_iter().map(|example| {
        let (input, output) = (example.inputs.into_iter().next()?, example.outputs.into_iter().next()?);
        #[expect(clippy::cast_possible_truncation, reason = "grey values are whole numbers up to 16")]
        let pixels = input.data.iter().map(|value| *value as f32).collect();
        Some(Golden { pixels, probabilities: output.data })
    });
    golden.collect::<Option<_>>().context("a golden example without input or output")
}

/// A device with a Unix socket, which is not there before [`Stage::open`], and a fleet around it.
struct Stage {
    fleet: Fleet,
    folder: PathBuf,
    socket: PathBuf,
}

impl Stage {
    async fn set(binaries: &Binaries, folder: &Path) -> anyhow::Result<Self> {
        let mut fleet = stage::fleet(binaries, folder, 0).await?;
        fleet.release_digits("1.0.0").await?;
        let token = fleet.enrolment_token(1).await?;
        fleet.add_device(&DeviceSetup { id: "dev-1", token: &token, window_ms: 500, settings: "" }, false).await?;
        fleet.device("dev-1")?.process_mut().stop().await?;
        let socket = folder.join("agent.sock");
        let config = folder.join("dev-1/agent.toml");
        let settings = std::fs::read_to_string(&config)?;
        std::fs::write(&config, settings.replacen("[serve]\n", &format!("[serve]\nunix-socket = {socket:?}\n"), 1))?;
        Ok(Self { fleet, folder: folder.to_path_buf(), socket })
    }

    /// The host and port at which the agent will answer.
    fn url(&self) -> String {
        self.fleet.devices[0].inference_url.trim_start_matches("http://").to_owned()
    }

    /// Starts the agent, which serves nothing yet.
    async fn open(&mut self) -> anyhow::Result<()> {
        self.fleet.device("dev-1")?.restart().await
    }

    /// Rolls digits 1.0.0 out and waits until the agent answers with it.
    async fn serve(&mut self) -> anyhow::Result<()> {
        self.fleet.roll_out(&[&["--bundle", "digits@1.0.0", "--selector", "*"], &stage::EASY[..]].concat()).await?;
        let url = format!("{}/v2/models/digits/ready", self.fleet.devices[0].inference_url);
        wait::until("the model is served", PATIENCE, async || {
            Ok(reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success()).then_some(()))
        })
        .await
    }

    /// Stops the agent in its tracks with SIGSTOP, or lets it go on with SIGCONT.
    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let pid = self.fleet.devices[0].process_id().to_string();
        ensure!(Command::new("kill").args([signal, &pid]).status()?.success(), "{signal} was refused");
        Ok(())
    }
}

/// One of the examples, running.
struct Example {
    name: &'static str,
    process: Process,
    log: PathBuf,
}

impl Example {
    fn start(stage: &Stage, name: &'static str, command: &mut Command) -> anyhow::Result<Self> {
        let log = stage.folder.join(format!("{name}.log"));
        if log.exists() {
            std::fs::remove_file(&log)?;
        }
        Ok(Self { name, process: Process::start(name, command, &log)?, log })
    }

    fn said(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// Waits until it has said `text`.
    async fn says(&mut self, text: &str) -> anyhow::Result<()> {
        let what = format!("{} says {text:?}", self.name);
        wait::until(&what, PATIENCE, async || {
            self.process.ensure_running()?;
            Ok(self.said()?.contains(text).then_some(()))
        })
        .await
    }

    /// Waits for its end, which has to be a good one.
    async fn ends_well(&mut self) -> anyhow::Result<()> {
        let status = wait::until(&format!("{} is through", self.name), PATIENCE, async || self.process.ended()).await?;
        ensure!(status.success(), "{} ended with {status}: {}", self.name, self.said()?);
        Ok(())
    }

    /// Tells it to stop, as systemd does.
    async fn stops_cleanly(&mut self) -> anyhow::Result<()> {
        let status = self.process.stop().await?;
        ensure!(status.success(), "{} ended with {status}: {}", self.name, self.said()?);
        Ok(())
    }

    /// The memory it has in use, in KiB.
    fn resident_kib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")
    }
}

/// The Python that `.ci/examples` names.
fn python() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("MUSTER_EXAMPLES_PYTHON");
    named.map(PathBuf::from).context("MUSTER_EXAMPLES_PYTHON must name a Python: start this with .ci/examples PYTHON")
}
