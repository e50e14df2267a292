//! A whole fleet: keys, trust, a controller, devices, and bundles made from the digits fixtures.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use muster_shared::api::CreatedToken;
use muster_shared::rollout::{RolloutStatus, RolloutView};

use crate::binaries::Binaries;
use crate::controller::Controller;
use crate::device::{Device, DeviceSetup};
use crate::fixtures;
use crate::link::Link;
use crate::operator::Operator;
use crate::wait;

/// How long any single step may take before it counts as failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Arguments that make a rollout quick enough for a test.
pub const PACE: [&str; 12] = [
    "--soak",
    "1s",
    "--max-duration",
    "60s",
    "--probation",
    "1s",
    "--min-reports",
    "2",
    "--min-requests",
    "20",
    "--max-latency-p99-ratio",
    "100",
];

/// A controller whose trust is set up, and its operator.
#[derive(Debug)]
pub struct Fleet {
    /// The programs.
    pub binaries: Binaries,
    /// The folder of everything.
    pub folder: PathBuf,
    /// The controller.
    pub controller: Controller,
    /// Its operator.
    pub operator: Operator,
    /// Its devices, in the order in which they were started.
    pub devices: Vec<Device>,
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

impl Fleet {
    /// Starts a controller in `folder`, makes the offline keys and brings the root document to it.
    ///
    /// # Errors
    /// When a step fails.
    pub async fn found(binaries: &Binaries, folder: &Path, settings: &str) -> anyhow::Result<Self> {
        let controller = Controller::start(binaries, &folder.join("controller"), settings).await?;
        let operator = Operator::of(&controller, &binaries.muster);
        let fleet = Self {
            binaries: binaries.clone(),
            folder: folder.to_path_buf(),
            controller,
            operator,
            devices: Vec::new(),
        };
        std::fs::create_dir_all(folder.join("keys"))?;
        for role in ["root", "release"] {
            fleet.operator.run(&["key", "generate", "--out", text(&fleet.key(role))?]).await?;
        }
        let director = folder.join("keys/director.pub");
        fleet.operator.run(&["trust", "director-key", "--out", text(&director)?]).await?;
        let root = folder.join("keys/root.json");
        let release = folder.join("keys/release.key.pub");
        fleet
            .operator
            .run(&[
                "root",
                "init",
                "--root-key",
                text(&fleet.key("root"))?,
                "--release-key",
                text(&release)?,
                "--director-key",
                text(&director)?,
                "--out",
                text(&root)?,
            ])
            .await?;
        fleet.operator.run(&["root", "push", text(&root)?]).await?;
        Ok(fleet)
    }

    fn key(&self, role: &str) -> PathBuf {
        self.folder.join(format!("keys/{role}.key"))
    }

    /// Builds the description `description`, signs and pushes it; `name` names the folder it is built in.
    ///
    /// # Errors
    /// When a step fails.
    pub async fn release(&self, name: &str, description: &Path) -> anyhow::Result<()> {
        let out = self.folder.join("bundles").join(name);
        std::fs::create_dir_all(self.folder.join("bundles"))?;
        self.operator.run(&["bundle", "build", text(description)?, "--out", text(&out)?]).await?;
        self.operator.run(&["bundle", "sign", text(&out)?, "--key", text(&self.key("release"))?]).await?;
        self.operator.run(&["bundle", "push", text(&out)?]).await?;
        Ok(())
    }

    /// Releases the digits model of `version` from the fixtures.
    ///
    /// # Errors
    /// When a step fails.
    pub async fn release_digits(&self, version: &str) -> anyhow::Result<()> {
        let description = fixtures::digits().join(format!("bundle-{version}.toml"));
        self.release(&format!("digits-{version}"), &description).await
    }

    /// Releases the digits model of `version` with so many bytes of noise beside it: nothing makes them less on the way, so that
    /// fetching it takes long enough to be interrupted.
    ///
    /// # Errors
    /// When a step fails.
    pub async fn release_large_digits(&self, version: &str, bytes: usize) -> anyhow::Result<()> {
        let write = |path: &Path| Ok(std::fs::write(path, fixtures::noise(bytes))?);
        self.release_digits_with(version, "noise.bin", write).await
    }

    /// Releases the digits model of `version` with the file beside it that `write` writes.
    ///
    /// # Errors
    /// When a step fails.
    pub async fn release_digits_with(
        &self,
        version: &str,
        attachment: &str,
        write: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let folder = self.digits_folder(version)?;
        let description = std::fs::read_to_string(fixtures::digits().join(format!("bundle-{version}.toml")))?;
        write(&folder.join(attachment))?;
        let path = folder.join("bundle.toml");
        std::fs::write(&path, format!("attachments = [{attachment:?}]\n{description}"))?;
        self.release(&format!("digits-{version}"), &path).await
    }

    /// Releases the digits model of `version`, described by `description`.
    ///
    /// # Errors
    /// When a step fails.
    pub async fn release_digits_as(&self, version: &str, description: &str) -> anyhow::Result<()> {
        let path = self.digits_folder(version)?.join("bundle.toml");
        std::fs::write(&path, description)?;
        self.release(&format!("digits-{version}"), &path).await
    }

    /// A folder with the files that a description of the digits model of `version` names.
    fn digits_folder(&self, version: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join("descriptions").join(version);
        std::fs::create_dir_all(&folder)?;
        for file in ["reference.csv".to_owned(), format!("golden-{version}.json"), format!("digits-{version}.onnx")] {
            std::fs::copy(fixtures::digits().join(&file), folder.join(&file))?;
        }
        Ok(folder)
    }

    /// A token with which `uses` devices may enrol.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn enrolment_token(&self, uses: usize) -> anyhow::Result<String> {
        let created: CreatedToken = self.operator.json(&["token", "create", "--uses", &uses.to_string()]).await?;
        Ok(created.token)
    }

    /// Starts a device; with `cuttable` it reaches the broker through a link of its own.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn add_device(&mut self, setup: &DeviceSetup<'_>, cuttable: bool) -> anyhow::Result<()> {
        let endpoints = &self.controller.endpoints;
        let link = if cuttable {
            Some(Link::open(format!("{}:{}", endpoints.broker_host, endpoints.broker_port)).await?)
        } else {
            None
        };
        let device = Device::start(&self.binaries, &self.folder.join(setup.id), setup, link).await?;
        self.devices.push(device);
        Ok(())
    }

    /// The device `id`.
    ///
    /// # Errors
    /// When there is none.
    pub fn device(&mut self, id: &str) -> anyhow::Result<&mut Device> {
        self.devices.iter_mut().find(|device| device.id == id).with_context(|| format!("there is no device {id}"))
    }

    /// Waits until `count` devices are connected.
    ///
    /// # Errors
    /// When they are not in time.
    pub async fn wait_online(&self, count: usize) -> anyhow::Result<()> {
        wait::until(&format!("{count} devices are online"), PATIENCE, async || {
            let online = self.operator.devices().await?.iter().filter(|device| device.online).count();
            Ok((online == count).then_some(()))
        })
        .await
    }

    /// Cuts the device's link, and waits until the controller has noticed.
    ///
    /// # Errors
    /// When it has no link, or that is not noticed in time.
    pub async fn cut_off(&mut self, id: &str) -> anyhow::Result<()> {
        self.device(id)?.link()?.cut();
        wait::until(&format!("{id} is offline"), PATIENCE, async || {
            Ok((!self.operator.device(id).await?.online).then_some(()))
        })
        .await
    }

    /// Starts a rollout with `args` of `muster rollout create` and gives its id.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn roll_out(&self, args: &[&str]) -> anyhow::Result<String> {
        let rollout: RolloutView = self.operator.json(&[&["rollout", "create"], args].concat()).await?;
        Ok(rollout.id.to_string())
    }

    /// Waits until the rollout `id` stands at `status`.
    ///
    /// # Errors
    /// When it comes to rest elsewhere, or does not get there in time.
    pub async fn wait_rollout(&self, id: &str, status: RolloutStatus) -> anyhow::Result<RolloutView> {
        wait::until_explained(
            &format!("rollout {id} is {status}"),
            PATIENCE,
            async || {
                let view = self.operator.rollout(id).await?;
                let resting = view.status.is_terminal() || view.status == RolloutStatus::Paused;
                if resting && view.status != status {
                    anyhow::bail!(
                        "rollout {id} is {} where {status} was expected: {}",
                        view.status,
                        view.status_reason
                    );
                }
                Ok((view.status == status).then_some(view))
            },
            async || match self.operator.rollout(id).await {
                Ok(view) => {
                    let waiting: Vec<String> = view.waiting.iter().map(ToString::to_string).collect();
                    format!("It is {} in wave {}: {}", view.status, view.current_wave + 1, waiting.join("; "))
                }
                Err(error) => format!("{error:#}"),
            },
        )
        .await
    }

    /// Waits until `device` has committed `version`.
    ///
    /// # Errors
    /// When it has not in time.
    pub async fn wait_committed(&self, device: &str, version: &str) -> anyhow::Result<()> {
        wait::until(&format!("{device} commits {version}"), PATIENCE, async || {
            let view = self.operator.device(device).await?;
            let committed = view.reported.and_then(|reported| reported.committed);
            Ok(committed.filter(|installed| installed.bundle.version.to_string() == version).map(|_| ()))
        })
        .await
    }
}
