//! What an attack's `attack.json` may say. `README.md` beside this file explains every field.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use muster_shared::messages::DeviceEventKind;
use serde::Deserialize;
use serde_json::Value;

/// One directory of the corpus.
#[derive(Debug)]
pub(crate) struct Attack {
    /// The directory's name.
    pub(crate) name: String,
    /// The directory.
    pub(crate) folder: PathBuf,
    /// What its `attack.json` says.
    pub(crate) plan: Plan,
}

/// `attack.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// Keys the attacker has stolen; signing with another one is a mistake in the attack.
    #[serde(default)]
    pub(crate) holds: BTreeSet<Key>,
    /// Where it happens, and how.
    pub(crate) scene: Scene,
}

/// A key of the fleet, or the attacker's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Key {
    /// Made by the attacker; no root document names it.
    Own,
    /// The one root key.
    Root,
    /// The first of two release keys, both of which must sign.
    #[serde(rename = "release-1")]
    Release1,
    /// The second of them.
    #[serde(rename = "release-2")]
    Release2,
    /// A release key that root document 1 named and root document 2 dropped.
    RetiredRelease,
    /// The controller's director key.
    Director,
}

/// Where an attack happens.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scene {
    /// At a device whose broker is the attacker's.
    Device(AtDevice),
    /// At the controller's own broker, with the certificate of the device `dev-2`.
    Controller(AtController),
}

/// What is said to the device, and what is expected of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AtDevice {
    /// What the attacker's broker says, in this order.
    pub(crate) steps: Vec<Step>,
    /// What it answers to requests for chunks; nothing when this is missing.
    pub(crate) chunks: Option<Chunks>,
    /// Events the device must tell.
    #[serde(default)]
    pub(crate) refusals: Vec<Told>,
    /// Lines its log must have, each given by words on it.
    #[serde(default)]
    pub(crate) log: Vec<Vec<String>>,
    /// What its last state report must say, by JSON pointer.
    #[serde(default)]
    pub(crate) reported: BTreeMap<String, Value>,
    /// Whether the incumbent is asked for a self-test at the end.
    #[serde(default = "yes")]
    pub(crate) self_test: bool,
    /// Files in its data folder that may change, besides those that do in every life of an agent.
    #[serde(default)]
    pub(crate) writes: Vec<PathBuf>,
}

/// One thing the attacker does to the device.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Step {
    /// Delivers an assignment, with the manifest that comes with it.
    Assign {
        /// The assignment.
        assignment: Box<Document>,
        /// The manifest.
        manifest: Option<Box<Document>>,
    },
    /// Delivers root documents.
    Roots(Vec<Document>),
    /// Tells the device what it may collect.
    Collect(Box<Document>),
    /// Publishes a file of the attack's directory as it is.
    Say {
        /// The last level of the topic.
        kind: String,
        /// The file.
        file: String,
        /// Appended once more until the message has this many bytes.
        #[serde(default)]
        fill_bytes: usize,
        /// How often it is said.
        #[serde(default = "once")]
        times: usize,
        /// It is said again and again until the attack is refused.
        #[serde(default)]
        over_and_over: bool,
    },
    /// Cuts the device's power and lets it start again.
    Restart,
}

/// A signed document, made when the attack is run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    /// What it begins as: `assignment`, a release (`digits-1.2.0`), or a root document (`root-2`).
    pub(crate) from: String,
    /// What is changed in it, by JSON pointer.
    #[serde(default)]
    pub(crate) set: BTreeMap<String, Value>,
    /// In a manifest: files described anew after a file of the attack's directory.
    #[serde(default)]
    pub(crate) files: BTreeMap<String, String>,
    /// The envelope's payload type, where it is not the kind's own.
    pub(crate) payload_type: Option<String>,
    /// The signed bytes are followed by so much white space that there are this many.
    #[serde(default)]
    pub(crate) fill_bytes: usize,
    /// It keeps the signatures it was published with, whatever is changed in it.
    #[serde(default)]
    pub(crate) keeps_signatures: bool,
    /// Who signs it. The attacker must hold the key.
    #[serde(default)]
    pub(crate) signatures: Vec<SignatureBy>,
    /// Made and signed by the fleet's owner in the ordinary course; the attacker only repeats it.
    #[serde(default)]
    pub(crate) genuine: bool,
}

/// A signature.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignatureBy {
    /// The key that makes it.
    pub(crate) key: Key,
    /// The key the envelope says has made it, where that is not the same; or any other text.
    pub(crate) named: Option<String>,
}

/// How the attacker answers requests for chunks.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Chunks {
    /// The release whose files are sent, those of the same name as the file asked for; the bundle's own when missing.
    pub(crate) of: Option<String>,
    /// What is changed in each.
    #[serde(default)]
    pub(crate) change: Change,
    /// A file of the attack's directory that is sent in place of every chunk.
    pub(crate) body: Option<String>,
    /// The encodings the frames name, one frame each.
    #[serde(default = "plain")]
    pub(crate) encodings: Vec<u8>,
    /// How often each frame is sent.
    #[serde(default = "once")]
    pub(crate) times: usize,
}

fn plain() -> Vec<u8> {
    vec![0]
}

fn yes() -> bool {
    true
}

fn once() -> usize {
    1
}

/// What is done to a chunk's bytes.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    /// Nothing.
    #[default]
    None,
    /// One bit in the middle is another.
    Flip,
    /// The last byte is missing.
    Cut,
    /// They go on to as many bytes as one packet takes.
    Extend,
}

/// An event the device must tell.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Told {
    /// Its kind.
    pub(crate) kind: DeviceEventKind,
    /// Words its text must have.
    pub(crate) says: Vec<String>,
}

/// What a stranger with a stolen certificate does at the controller's broker.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AtController {
    /// The MQTT client id; the certificate's own device when missing.
    pub(crate) client_id: Option<String>,
    /// A topic on which it leaves a will.
    pub(crate) will: Option<String>,
    /// Filters it subscribes with, each of which must be refused.
    #[serde(default)]
    pub(crate) subscribe: Vec<String>,
    /// Messages it publishes: topic and JSON body.
    #[serde(default)]
    pub(crate) publish: Vec<(String, Value)>,
    /// A release it was not assigned and whose chunks it asks for.
    pub(crate) chunks_of: Option<String>,
    /// Lines the controller's log must have, each given by words on it.
    #[serde(default)]
    pub(crate) log: Vec<Vec<String>>,
}

impl Attack {
    /// Every attack below `corpus`, by name.
    ///
    /// # Errors
    /// When a directory is not an attack.
    pub(crate) fn all(corpus: &Path) -> anyhow::Result<Vec<Self>> {
        let mut attacks = Vec::new();
        for entry in std::fs::read_dir(corpus)? {
            let folder = entry?.path();
            if folder.is_dir() {
                let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                attacks.push(Self::read(&name, &folder).with_context(|| format!("tests/attacks/{name}"))?);
            }
        }
        attacks.sort_by(|a, b| a.name.cmp(&b.name));
        ensure!(!attacks.is_empty(), "{} holds no attacks", corpus.display());
        Ok(attacks)
    }

    /// What is no attack, and must be taken.
    ///
    /// # Errors
    /// When `control.json` cannot be used.
    pub(crate) fn control(corpus: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(corpus.join("control.json")).context("control.json cannot be read")?;
        let plan = serde_json::from_slice(&text).context("control.json")?;
        Ok(Self { name: "control".to_owned(), folder: corpus.to_path_buf(), plan })
    }

    fn read(name: &str, folder: &Path) -> anyhow::Result<Self> {
        ensure!(folder.join("README.md").is_file(), "README.md is missing: say who attacks, how, and what is expected");
        let text = std::fs::read(folder.join("attack.json")).context("attack.json cannot be read")?;
        let plan: Plan = serde_json::from_slice(&text).context("attack.json")?;
        let expects_something = match &plan.scene {
            Scene::Device(scene) => !scene.refusals.is_empty() || !scene.log.is_empty(),
            // MQTT has no answer that says no to a request for chunks: silence is the refusal.
            Scene::Controller(scene) => !scene.log.is_empty() || scene.chunks_of.is_some(),
        };
        ensure!(expects_something, "attack.json expects no refusal: give refusals or log");
        Ok(Self { name: name.to_owned(), folder: folder.to_path_buf(), plan })
    }

    /// The bytes of one of its files.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn file(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let path = self.folder.join(name);
        std::fs::read(&path).with_context(|| format!("{}", path.display()))
    }
}
