//! What every scenario starts from: a controller, three releases of one model that answer differently, and devices on the first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use muster_shared::rollout::RolloutStatus;
use muster_tests::binaries::Binaries;
use muster_tests::device::{Device, DeviceSetup};
use muster_tests::fixtures;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;
use serde::Deserialize;

use crate::api::{Api, NAME};

/// The releases, in the order in which they go round. With two slots, every update finds its slot holding another.
pub(crate) const VERSIONS: [&str; 3] = ["1.0.0", "1.1.0", "1.2.0"];
/// Noise beside the model, so that fetching takes a while: as much again is in the version before, and copied from there.
const NOISE_BYTES: usize = 300_000;
/// Short windows: what was asked settles soon.
const WINDOW_MS: u64 = 100;
/// The shortest time that assignments may hold, so that they are renewed between two deaths as well.
const CONTROLLER: &str = "[rollout]\ntick-ms = 100\nassignment-valid-for-ms = 10000\n";
const SETTINGS: &str = "[broker]\nreconnect-min-ms = 50\nreconnect-max-ms = 500\nack-timeout-ms = 1000\n";
/// A rollout that nothing the scenarios do brings to an end.
const TOLERANT: [&str; 16] = [
    "--soak",
    "5m",
    "--max-duration",
    "1h",
    "--probation",
    "200ms",
    "--min-reports",
    "1000000",
    "--min-requests",
    "1000000",
    "--max-latency-p99-ratio",
    "1000000",
    "--max-failures",
    "1000000",
    "--max-prediction-psi",
    "1000000",
];

/// A golden example: what is asked and what must be answered.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Example {
    inputs: Vec<Values>,
    outputs: Vec<Values>,
}

#[derive(Debug, Clone, Deserialize)]
struct Values {
    data: Vec<f32>,
}

#[derive(Deserialize)]
struct Golden {
    tolerance: Tolerance,
    examples: Vec<Example>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Tolerance {
    abs: f32,
    rel: f32,
}

impl Example {
    pub(crate) fn pixels(&self) -> &[f32] {
        self.inputs.first().map(|input| input.data.as_slice()).unwrap_or_default()
    }
}

/// What the scenarios share.
pub(crate) struct Stage {
    pub(crate) fleet: Fleet,
    pub(crate) api: Api,
    golden: BTreeMap<String, (Tolerance, Vec<Example>)>,
    token: String,
}

impl Stage {
    pub(crate) async fn found(binaries: &Binaries, folder: &Path) -> anyhow::Result<Self> {
        let fleet = Fleet::found(binaries, folder, CONTROLLER).await?;
        let mut golden = BTreeMap::new();
        for (at, version) in (1u8..).zip(VERSIONS) {
            let file = std::fs::read(fixtures::digits().join(format!("golden-{version}.json")))?;
            let Golden { tolerance, examples } = serde_json::from_slice(&file)?;
            golden.insert(version.to_owned(), (tolerance, examples));
            let write = |path: &Path| {
                let mut noise = fixtures::noise(2 * NOISE_BYTES);
                noise[NOISE_BYTES..].iter_mut().for_each(|byte| *byte ^= at);
                Ok(std::fs::write(path, noise)?)
            };
            fleet.release_digits_with(version, "noise.bin", write).await?;
        }
        let token = fleet.enrolment_token(50).await?;
        Ok(Self { api: Api::of(&fleet)?, fleet, golden, token })
    }

    /// Enrols a device, which runs on until somebody takes it.
    pub(crate) async fn device(&mut self, id: &str) -> anyhow::Result<Taken> {
        let setup = DeviceSetup { id, token: &self.token, window_ms: WINDOW_MS, settings: SETTINGS };
        self.fleet.add_device(&setup, false).await?;
        let device: &Device = self.fleet.device(id)?;
        let taken = Taken { id: id.to_owned(), home: device.folder().to_path_buf(), url: device.inference_url.clone() };
        self.fleet.operator.run(&["device", "label", id, &format!("{NAME}={id}")]).await?;
        Ok(taken)
    }

    /// Brings the first version to every device, and stops them all.
    pub(crate) async fn first_version(&mut self) -> anyhow::Result<()> {
        let devices: Vec<String> = self.fleet.devices.iter().map(|device| device.id.clone()).collect();
        let id = self.roll_out(VERSIONS[0], "*").await?;
        for device in &devices {
            self.fleet.wait_committed(device, VERSIONS[0]).await?;
        }
        self.end_rollout(&id).await?;
        for mut device in std::mem::take(&mut self.fleet.devices) {
            let status = device.process_mut().stop().await?;
            ensure!(status.success(), "{} ended with {status} before anything was done to it", device.id);
        }
        Ok(())
    }

    pub(crate) async fn roll_out(&self, version: &str, selector: &str) -> anyhow::Result<String> {
        let bundle = format!("digits@{version}");
        self.fleet.roll_out(&[&["--bundle", &bundle, "--selector", selector], &TOLERANT[..]].concat()).await
    }

    /// Ends a rollout whose devices have committed: it would be watched for longer than the scenarios last.
    pub(crate) async fn end_rollout(&self, id: &str) -> anyhow::Result<()> {
        self.fleet.operator.run(&["rollout", "abort", id, "--reason", "seen enough"]).await?;
        self.fleet.wait_rollout(id, RolloutStatus::Stopped).await.map(drop)
    }

    /// Brings `version` to `device` in a rollout; gives its id and the generation of the assignment.
    pub(crate) async fn assign(&self, device: &str, version: &str) -> anyhow::Result<(String, u64)> {
        let id = self.roll_out(version, &format!("id={device}")).await?;
        let generation = self.assigned(device, &id).await?;
        Ok((id, generation))
    }

    /// Lets `version` run beside what `device` has, as `part` says; gives the rollout's id and the generation of the assignment.
    pub(crate) async fn assign_beside(
        &self,
        device: &str,
        version: &str,
        part: &[&str],
    ) -> anyhow::Result<(String, u64)> {
        let (bundle, selector) = (format!("digits@{version}"), format!("id={device}"));
        let what = ["--bundle", &bundle, "--selector", &selector];
        let id = self.fleet.roll_out(&[&what[..], part, &TOLERANT[..]].concat()).await?;
        let generation = self.assigned(device, &id).await?;
        Ok((id, generation))
    }

    /// The generation under which `device` was assigned something by the rollout `id`.
    async fn assigned(&self, device: &str, id: &str) -> anyhow::Result<u64> {
        wait::until(&format!("{device} is assigned something by {id}"), PATIENCE, async || {
            let view = self.api.device(device).await?;
            if view.quarantined.is_some() {
                // Killed again and again, it has failed more updates than a device may.
                self.fleet.operator.run(&["device", "release", device, "--reason", "killed on purpose"]).await?;
            }
            Ok(view.desired.filter(|desired| desired.rollout.to_string() == id).map(|desired| desired.generation))
        })
        .await
    }

    pub(crate) fn example(&self, version: &str, at: usize) -> anyhow::Result<&Example> {
        let (_, examples) = self.golden.get(version).with_context(|| format!("there is no {version}"))?;
        examples.get(at % examples.len()).context("there are no examples")
    }

    /// Holds what `version` answered to `example`, which is one of its own, against what it must answer.
    pub(crate) fn check(&self, version: &str, example: &Example, answered: &[f32]) -> anyhow::Result<()> {
        let (tolerance, _) = self.golden.get(version).with_context(|| format!("there is no {version}"))?;
        let expected = example.outputs.first().map(|output| output.data.as_slice()).unwrap_or_default();
        let right = |(a, b): (&f32, &f32)| (a - b).abs() <= tolerance.abs + tolerance.rel * b.abs();
        ensure!(
            answered.len() == expected.len() && answered.iter().zip(expected).all(right),
            "{version} answered {answered:?} where {expected:?} was expected"
        );
        Ok(())
    }
}

/// A device somebody takes over.
pub(crate) struct Taken {
    pub(crate) id: String,
    /// The folder with its configuration, log and data.
    pub(crate) home: PathBuf,
    /// Where applications ask it for predictions.
    pub(crate) url: String,
}
