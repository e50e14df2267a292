//! What an agent that is at rest may have in its data folder, and what its record says.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use muster_shared::chunk::ChunkSet;
use serde::Deserialize;

/// As much of the update record as matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct Record {
    slots: Slots,
    update: Option<Update>,
}

#[derive(Debug, Deserialize)]
struct Slots {
    a: Option<Content>,
    b: Option<Content>,
}

#[derive(Debug, Deserialize)]
struct Content {
    have: ChunkSet,
}

#[derive(Debug, Deserialize)]
struct Update {
    generation: u64,
    phase: Phase,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Phase {
    state: String,
    slot: Option<String>,
    tries_left: Option<u32>,
}

impl Record {
    /// # Errors
    /// When it is not there whole.
    pub(crate) fn read(data: &Path) -> anyhow::Result<Self> {
        let path = data.join("slots/record.json");
        let text = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
        // Behind it comes its seal.
        let json = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        serde_json::from_slice(json).with_context(|| format!("{} is torn", path.display()))
    }

    /// The chunks that the update under way lacks, with its generation.
    pub(crate) fn missing(&self) -> Option<(u64, u32)> {
        let update = self.update.as_ref().filter(|update| update.phase.state == "fetching")?;
        let content = match update.phase.slot.as_deref() {
            Some("a") => self.slots.a.as_ref(),
            Some("b") => self.slots.b.as_ref(),
            Some(_) | None => None,
        }?;
        Some((update.generation, content.have.length() - content.have.count()))
    }

    /// Whether another death would be one too many for the bundle under test: the agent gives it up after three.
    pub(crate) fn is_at_its_last_try(&self) -> bool {
        self.update.as_ref().and_then(|update| update.phase.tries_left).is_some_and(|left| left <= 1)
    }

    /// Whether chunks of an update are on their way.
    pub(crate) fn is_half_fetched(&self) -> bool {
        let some =
            |content: &Option<Content>| content.as_ref().is_some_and(|c| c.have.count() > 0 && !c.have.is_full());
        self.missing().is_some() && (some(&self.slots.a) || some(&self.slots.b))
    }
}

/// Every file below `folder`, relative to it.
pub(crate) fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| format!("{}", next.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(folder)?.to_path_buf());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What lies in `data` that an agent at rest has no use for.
pub(crate) fn leftovers(data: &Path, damage_is_kept: bool) -> anyhow::Result<Vec<String>> {
    let found = files(data)?;
    let below = |folder: &str| found.iter().filter(|path| path.starts_with(folder)).count();
    let mut left: Vec<String> = found
        .iter()
        .filter(|path| {
            let text = path.to_string_lossy();
            let damaged = text.contains(".damaged");
            let known = ["identity/", "trust/", "run/", "slots/", "outbox/", "outbox.epoch", "endpoints.json", "lock"];
            let known = known.iter().any(|known| text.starts_with(known)) || damaged;
            let temporary = [".new", ".opening", ".generating", ".tmp"].iter().any(|end| text.ends_with(end));
            temporary || !known || damaged && !damage_is_kept
        })
        .map(|path| path.display().to_string())
        .collect();
    if below("slots/manifests") > 2 {
        left.push(format!("{} manifests for two slots", below("slots/manifests")));
    }
    let snapshots = found.iter().filter(|path| path.to_string_lossy().starts_with("outbox/snap")).count();
    if snapshots > 2 {
        left.push(format!("{snapshots} snapshots of the outbox"));
    }
    Ok(left)
}
