//! Inferences that never end. In service, the service manager is left to find the agent dead, though all else of it answers; in the test of a
//! new model, that one fails.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use muster_shared::rollout::RolloutStatus;
use muster_tests::binaries::Binaries;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::{fixtures, wait};
use reqwest::{Client, StatusCode};
use serde_json::Value;

use crate::stage::{self, STRICT};

/// After how long without a sign of life a service manager ends the agent (`WatchdogSec=`).
const WATCHDOG: Duration = Duration::from_secs(3);
/// How long an inference may take, in milliseconds: the least that may be set.
const STUCK_AFTER_MS: u64 = 10_000;
/// What the model calls and nothing else in the agent does. It does not end while a file is there, and notes in that file that it has begun.
const ENDLESS: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

float expf(float x) {
    float (*real)(float) = (float (*)(float))dlsym(RTLD_NEXT, "expf");
    int endless = open(getenv("ENDLESS"), O_WRONLY | O_APPEND | O_CLOEXEC);
    if (endless >= 0) {
        (void)!write(endless, ".", 1);
        close(endless);
        while (access(getenv("ENDLESS"), F_OK) == 0) usleep(10000);
    }
    return real(x);
}
"#;

/// What a service manager hears of the agent.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// Listens in `folder`.
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let socket = UnixDatagram::bind(folder.join("notify.sock"))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// Whether a sign of life has come since it was asked last.
    fn hears(&self) -> bool {
        let mut said = [0; 512];
        let mut heard = false;
        while let Ok(length) = self.socket.recv(&mut said) {
            heard |= said[..length].split(|byte| *byte == b'\n').any(|line| line == b"WATCHDOG=1");
        }
        heard
    }

    /// Waits for a sign of life.
    async fn hears_soon(&self, when: &str) -> anyhow::Result<()> {
        self.hears();
        wait::until(when, WATCHDOG, async || Ok(self.hears().then_some(()))).await
    }
}

/// An input for the model.
fn request() -> anyhow::Result<String> {
    let golden: Value = serde_json::from_slice(&std::fs::read(model().with_extension("cases.json"))?)?;
    Ok(serde_json::json!({ "inputs": golden["examples"][0]["inputs"] }).to_string())
}

fn model() -> PathBuf {
    fixtures::folder().join("tabular/logistic-regression.onnx")
}

/// A device whose model can be made endless.
struct Scene {
    fleet: Fleet,
    manager: Manager,
    /// While this file is there, no inference of the model ends.
    endless: PathBuf,
}

impl Scene {
    /// With these settings of the agent, and the model released as flowers 2.0.0.
    async fn begin(binaries: Binaries, folder: &Path, settings: &str) -> anyhow::Result<Self> {
        let endless = folder.join("endless");
        let script = format!(
            "export LD_PRELOAD={:?} ENDLESS={endless:?} NOTIFY_SOCKET={:?} WATCHDOG_USEC={}\nexec {:?} \"$@\"",
            stage::library(folder, ENDLESS)?,
            folder.join("notify.sock"),
            WATCHDOG.as_micros(),
            binaries.agent
        );
        let manager = Manager::new(folder)?;
        let agent = stage::agent_by(folder, &script)?;
        let fleet = stage::fleet_of(binaries, folder, agent, 500, settings).await?;
        let description = folder.join("flowers.toml");
        let golden = model().with_extension("cases.json");
        std::fs::write(
            &description,
            format!(
                "name = \"flowers\"\nversion = \"2.0.0\"\nrelease-counter = 1\nmodel = {:?}\ngolden = {golden:?}\n",
                model(),
            ),
        )?;
        fleet.release("flowers", &description).await?;
        Ok(Self { fleet, manager, endless })
    }

    async fn roll_out(&self) -> anyhow::Result<String> {
        self.fleet.roll_out(&[&["--bundle", "flowers@2.0.0", "--selector", "*"], STRICT].concat()).await
    }

    /// Waits until an inference has begun that does not end.
    async fn hangs(&self) -> anyhow::Result<()> {
        let has_begun = async || Ok((std::fs::metadata(&self.endless)?.len() > 0).then_some(()));
        wait::until("an inference hangs", PATIENCE, has_begun).await
    }
}

#[test]
fn an_inference_that_never_ends_is_no_life_and_all_else_goes_on() {
    stage::run(async |binaries, folder| {
        let settings = format!("[serve]\nstuck-after-ms = {STUCK_AFTER_MS}\n");
        let mut scene = Scene::begin(binaries, &folder, &settings).await?;
        let rollout = scene.roll_out().await?;
        let (client, device) = (Client::new(), &scene.fleet.devices[0]);
        let url = format!("{}/v2/models/flowers/infer", device.inference_url);
        let body = request()?;
        let ask = || client.post(&url).body(body.clone()).send();
        let answers = async || Ok((ask().await?.status() == StatusCode::OK).then_some(()));
        wait::until("the model answers", PATIENCE, answers).await?;
        scene.fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        scene.manager.hears_soon("the agent shows that it lives").await?;

        std::fs::write(&scene.endless, "")?;
        let asked = tokio::spawn(ask());
        scene.hangs().await?;
        let (begun, mut heard) = (Instant::now(), Instant::now());
        wait::until("nothing is heard of the agent for as long as a service manager waits", PATIENCE, async || {
            if scene.manager.hears() {
                heard = Instant::now();
            }
            Ok((heard.elapsed() > WATCHDOG).then_some(()))
        })
        .await?;
        ensure!(heard.duration_since(begun) >= Duration::from_millis(STUCK_AFTER_MS) - WATCHDOG, "that was too early");
        let live = client.get(format!("{}/v2/health/live", device.inference_url)).timeout(PATIENCE).send();
        let live = live.await.context("all else of the agent hangs, too")?;
        ensure!(live.status() == StatusCode::OK, "{live:?}");
        let log = std::fs::read_to_string(device.folder().join("agent.log"))?;
        let said = log.lines().filter(|line| line.contains("the agent is stuck")).collect::<Vec<_>>();
        ensure!(said.len() == 1 && said[0].contains("an inference has been computing for"), "{said:?}");

        // Where the service manager would not end it: an inference that ends after all is life again.
        std::fs::remove_file(&scene.endless)?;
        scene.manager.hears_soon("the agent shows that it lives again").await?;
        let answer = asked.await?.context("the request was cut off")?;
        ensure!(answer.status() == StatusCode::OK, "{answer:?}");

        std::fs::write(&scene.endless, "")?;
        drop(tokio::spawn(ask()));
        scene.hangs().await?;
        let process = scene.fleet.devices[0].process_mut();
        let status = process.stop().await.context("told to stop while an inference hangs")?;
        ensure!(status.success(), "{status}");
        Ok(())
    });
}

#[test]
fn a_model_whose_golden_examples_never_end_fails_and_the_one_before_goes_on_answering() {
    stage::run(async |binaries, folder| {
        let scene = Scene::begin(binaries, &folder, "[serve]\nload-within-ms = 10000\n").await?;
        let traffic = stage::traffic(&scene.fleet)?;
        stage::first_version(&scene.fleet, &traffic).await?;

        std::fs::write(&scene.endless, "")?;
        let rollout = scene.roll_out().await?;
        scene.hangs().await?;
        scene.fleet.wait_rollout(&rollout, RolloutStatus::RolledBack).await?;
        let shown = scene.fleet.operator.run(&["rollout", "show", &rollout]).await?;
        ensure!(shown.contains("running its golden examples took longer than 10 s"), "{shown}");
        scene.fleet.wait_committed("dev-1", "1.0.0").await?;
        stage::ensure_all_answered(&traffic)
    });
}
