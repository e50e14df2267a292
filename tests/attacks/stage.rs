//! The set-up all attacks share: a fleet brought by its real controller to where an attacker finds it.
//!
//! Two release keys must both sign, root document 2 has dropped a third one, the devices have run digits 1.0.0 and run 1.1.0, which
//! forbids 1.0.0 by its security floor, and digits 1.2.0 is published and assigned to nobody. Each attack begins with a copy of
//! the device's data folder as it is then, so that none sees what another has left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_shared::ids::Digest;
use muster_shared::rollout::RolloutStatus;
use muster_shared::trust::{Envelope, SigningKey};
use muster_tests::binaries::Binaries;
use muster_tests::device::DeviceSetup;
use muster_tests::fixtures::{self, Image};
use muster_tests::fleet::{Fleet, PACE, PATIENCE};
use muster_tests::traffic::{self, Traffic};
use muster_tests::{keys, wait};

use crate::attack::Key;
use crate::forge::{Content, digest_of};

/// The device under attack.
pub(crate) const DEVICE: &str = "dev-1";
/// The device whose certificate is stolen.
pub(crate) const STOLEN: &str = "dev-2";
/// What the device under attack runs.
pub(crate) const INCUMBENT: &str = "digits-1.1.0";
/// What each device is told beside what the harness tells it: nothing here should wait for long.
pub(crate) const SETTINGS: &str = "[broker]\nreconnect-min-ms = 100\nreconnect-max-ms = 1000\n";

/// What every attack begins with.
pub(crate) struct Ground {
    pub(crate) fleet: Fleet,
    pub(crate) token: String,
    pub(crate) keys: BTreeMap<Key, SigningKey>,
    /// Published releases by name and version, with their content.
    pub(crate) releases: BTreeMap<String, (Envelope, Content)>,
    /// Published root documents.
    pub(crate) roots: BTreeMap<String, Envelope>,
    /// The generation the device has accepted.
    pub(crate) generation: u64,
    /// Held-out images that the incumbent answers rightly.
    pub(crate) images: Vec<Image>,
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

fn read_envelope(path: &Path) -> anyhow::Result<Envelope> {
    let text = std::fs::read(path).with_context(|| format!("{}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))
}

impl Ground {
    /// Sets everything up in `folder`.
    ///
    /// # Errors
    /// When a step fails.
    pub(crate) async fn prepare(binaries: &Binaries, folder: &Path) -> anyhow::Result<Self> {
        let fleet = Fleet::found(binaries, folder, "[rollout]\ntick-ms = 100\n").await?;
        let mut ground = Self {
            fleet,
            token: String::new(),
            keys: BTreeMap::new(),
            releases: BTreeMap::new(),
            roots: BTreeMap::new(),
            generation: 0,
            images: Vec::new(),
        };
        ground.rotate_root().await?;
        ground.collect_keys()?;
        ground.enrol().await?;
        for (version, floor) in [("1.0.0", 0), ("1.1.0", 2), ("1.2.0", 2)] {
            ground.release(version, floor).await?;
        }
        let mut traffic = Traffic::new(fixtures::held_out()?, Duration::from_millis(10));
        for device in &ground.fleet.devices {
            traffic.start(&device.id, &device.inference_url);
        }
        for bundle in ["digits@1.0.0", "digits@1.1.0"] {
            let create = [&["--bundle", bundle, "--selector", "*", "--wave", "100%"], &PACE[..]].concat();
            let id = ground.fleet.roll_out(&create).await?;
            ground.fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
        }
        drop(traffic);
        let reported = ground.fleet.operator.device(DEVICE).await?.reported.context("no report")?;
        ground.generation = reported.generation;
        ensure!(reported.security_floor == 2, "the security floor is {}", reported.security_floor);
        ground.images = ground.images_answered_rightly().await?;
        let stolen = ground.fleet.device(STOLEN)?;
        stolen.process_mut().stop().await?;
        wait::until("the stolen device is offline", PATIENCE, async || {
            Ok((!ground.fleet.operator.device(STOLEN).await?.online).then_some(()))
        })
        .await?;
        Ok(ground)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.fleet.folder.join("keys").join(name)
    }

    /// Root document 2: two new release keys, both needed, in place of the first.
    async fn rotate_root(&mut self) -> anyhow::Result<()> {
        let operator = &self.fleet.operator;
        for name in ["release-1.key", "release-2.key", "own.key"] {
            operator.run(&["key", "generate", "--out", text(&self.path(name))?]).await?;
        }
        let (first, second) = (self.path("root.json"), self.path("root-2.json"));
        operator
            .run(&[
                "root",
                "rotate",
                text(&first)?,
                "--add-release-key",
                text(&self.path("release-1.key.pub"))?,
                text(&self.path("release-2.key.pub"))?,
                "--remove-release-key",
                text(&self.path("release.key.pub"))?,
                "--release-threshold",
                "2",
                "--sign-with",
                text(&self.path("root.key"))?,
                "--out",
                text(&second)?,
            ])
            .await?;
        operator.run(&["root", "push", text(&second)?]).await?;
        self.roots.insert("root-1".to_owned(), read_envelope(&first)?);
        self.roots.insert("root-2".to_owned(), read_envelope(&second)?);
        Ok(())
    }

    fn collect_keys(&mut self) -> anyhow::Result<()> {
        for (key, name) in [
            (Key::Own, "own.key"),
            (Key::Root, "root.key"),
            (Key::Release1, "release-1.key"),
            (Key::Release2, "release-2.key"),
            (Key::RetiredRelease, "release.key"),
        ] {
            self.keys.insert(key, keys::read(&self.path(name))?);
        }
        let director = self.fleet.controller.folder().join("data/director.key");
        self.keys.insert(Key::Director, keys::read(&director)?);
        Ok(())
    }

    async fn enrol(&mut self) -> anyhow::Result<()> {
        self.token = self.fleet.enrolment_token(2).await?;
        for id in [DEVICE, STOLEN] {
            let setup = DeviceSetup { id, token: &self.token, window_ms: 500, settings: SETTINGS };
            self.fleet.add_device(&setup, false).await?;
        }
        self.fleet.wait_online(2).await
    }

    async fn release(&mut self, version: &str, security_floor: u64) -> anyhow::Result<()> {
        let name = format!("digits-{version}");
        let source = self.fleet.folder.join("descriptions").join(version);
        std::fs::create_dir_all(&source)?;
        for file in ["reference.csv".to_owned(), format!("golden-{version}.json"), format!("{name}.onnx")] {
            std::fs::copy(fixtures::digits().join(&file), source.join(&file))?;
        }
        let description = std::fs::read_to_string(fixtures::digits().join(format!("bundle-{version}.toml")))?;
        let description = description.replace("security-floor = 0", &format!("security-floor = {security_floor}"));
        std::fs::write(source.join("bundle.toml"), description)?;
        let out = self.fleet.folder.join("bundles").join(&name);
        std::fs::create_dir_all(self.fleet.folder.join("bundles"))?;
        let operator = &self.fleet.operator;
        operator.run(&["bundle", "build", text(&source.join("bundle.toml"))?, "--out", text(&out)?]).await?;
        for key in ["release-1.key", "release-2.key"] {
            operator.run(&["bundle", "sign", text(&out)?, "--key", text(&self.path(key))?]).await?;
        }
        operator.run(&["bundle", "push", text(&out)?]).await?;
        let envelope = read_envelope(&out.join("manifest.json"))?;
        let manifest: muster_shared::bundle::Manifest = serde_json::from_slice(&envelope.payload_bytes()?)?;
        let mut files = BTreeMap::new();
        for file in &manifest.files {
            files.insert(file.path.clone(), std::fs::read(out.join("files").join(&file.path))?);
        }
        self.releases.insert(name, (envelope, Content { manifest, files }));
        Ok(())
    }

    async fn images_answered_rightly(&self) -> anyhow::Result<Vec<Image>> {
        let device = self.fleet.devices.iter().find(|device| device.id == DEVICE).context("no device")?;
        let url = format!("{}/v2/models/digits/infer", device.inference_url);
        let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
        let mut right = Vec::new();
        for image in fixtures::held_out()?.into_iter().take(200) {
            let (version, class) = traffic::ask(&client, &url, &image).await.map_err(anyhow::Error::msg)?;
            ensure!(format!("digits-{version}") == INCUMBENT, "{version} answers");
            if class == image.label {
                right.push(image);
            }
        }
        ensure!(right.len() > 150, "the incumbent is right on {} of 200 images", right.len());
        Ok(right)
    }

    /// The digest of the incumbent's manifest.
    ///
    /// # Errors
    /// Never after [`Self::prepare`].
    pub(crate) fn incumbent(&self) -> anyhow::Result<Digest> {
        digest_of(&self.releases[INCUMBENT].0)
    }

    /// Stops the device and the controller, whose place and papers are the attacker's from then on.
    ///
    /// # Errors
    /// When one does not stop.
    pub(crate) async fn hand_over(&mut self) -> anyhow::Result<()> {
        self.fleet.device(DEVICE)?.process_mut().stop().await?;
        self.fleet.controller.process_mut().stop().await?;
        Ok(())
    }

    /// The data folder of the device as every attack finds it.
    pub(crate) fn baseline(&self) -> PathBuf {
        self.fleet.folder.join(DEVICE).join("data")
    }
}
