//! The durable record of the program's track: two slots, the pointer, the trial under way and the tries it has left.
//!
//! The packaged program reads it at each start and may be years older than the one that wrote it. So, unlike the model's record, it is read
//! leniently: fields it does not know are passed over, and a state it does not know is none. What is added later must be something that an
//! older program may forget.

use std::collections::BTreeMap;

use muster_shared::chunk::ChunkSet;
use muster_shared::ids::{BundleRef, Digest, RolloutId};
use muster_shared::limits::bounded_text;
use muster_shared::messages::{DeviceEventKind, InstalledBundle, TrackReport, UpdateReport, UpdateState};
use muster_shared::trust::DeliveryPolicy;
use serde::{Deserialize, Deserializer, Serialize};

use crate::record::{Barrier, Untold};
use crate::slots::Slot;

/// How often a program on trial may be started.
pub const MAX_STARTS: u32 = 3;
/// Events kept while the outbox takes none.
const MAX_UNTOLD: usize = 64;
const FORMAT: u32 = 1;

/// What a slot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Content {
    /// Digest of the bundle's manifest.
    pub manifest: Digest,
    /// Its name and version.
    pub bundle: BundleRef,
    /// Digest of the program's file: what is not that is not started.
    pub sha256: Digest,
    /// Its place among the releases of its name.
    pub release_counter: u64,
    /// The least release counter the device will run once it has committed this program.
    pub security_floor: u64,
    /// The most memory it may take, in bytes; none for no bound.
    pub max_memory_bytes: Option<u64>,
    /// Bytes of its file.
    pub total_bytes: u64,
    /// The chunks whose bytes are durable.
    pub have: ChunkSet,
}

/// How far an update is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Phase {
    /// Chunks are on their way, or the file is being checked.
    Fetching {
        /// Where they go.
        slot: Slot,
        /// How often damage had to be fetched again.
        repairs: u32,
    },
    /// The file is there and right; it is tried apart from the running agent.
    Verified {
        /// Where it is.
        slot: Slot,
        /// How often it may still be tried.
        tries_left: u32,
    },
    /// It is started in place of the committed one, under watch.
    Trial {
        /// Where it is; none for what the package installed.
        slot: Option<Slot>,
        /// How often it may still be started.
        starts_left: u32,
        /// How long it has been waited for in starts that ended in order, in milliseconds.
        waited_ms: u64,
    },
    /// It passed its probation.
    Committed,
    /// It failed on trial, and what was committed runs again.
    Reverted {
        /// Why.
        reason: String,
    },
    /// It failed before its trial.
    Failed {
        /// Why.
        reason: String,
        /// It was refused before anything of it began.
        #[serde(default)]
        refused: bool,
    },
    /// A later program's word.
    #[serde(other)]
    Unknown,
}

/// The update under way, or the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Update {
    /// The assignment's generation.
    pub generation: u64,
    /// The rollout it belongs to.
    pub rollout: RolloutId,
    /// Digest of the manifest it brings; none for what the package installed.
    pub manifest: Option<Digest>,
    /// The bundle's name and version.
    pub bundle: Option<BundleRef>,
    /// How long the program must do well before it is committed, in milliseconds.
    pub probation_ms: u64,
    /// When and how fast it may be fetched; as a rollout that says nothing where this program does not know what it says.
    #[serde(default, deserialize_with = "known_or_default")]
    pub delivery: DeliveryPolicy,
    /// How far it is.
    pub phase: Phase,
}

/// Everything about the program's track that survives a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    /// The version of this form.
    pub format: u32,
    /// The version of the packaged program this rests on: whoever installs another package wants that one to run.
    pub package: semver::Version,
    /// The highest generation accepted.
    #[serde(default)]
    pub generation: u64,
    /// Under which epoch of the director's keys.
    #[serde(default)]
    pub director_epoch: u64,
    /// The least release counter that may run.
    #[serde(default)]
    pub security_floor: u64,
    /// What the slots hold.
    #[serde(default)]
    pub slots: BTreeMap<Slot, Content>,
    /// The slot to fall back to; none for what the package installed.
    #[serde(default)]
    pub committed: Option<Slot>,
    /// The generation under which that came to run.
    #[serde(default)]
    pub committed_generation: u64,
    /// The update under way, or the last one.
    #[serde(default)]
    pub update: Option<Update>,
    /// What happened and has not reached the outbox.
    #[serde(default, deserialize_with = "known_untold")]
    pub untold: Vec<Untold>,
}

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// They do not parse.
    #[error("it does not parse: {0}")]
    Parse(String),
    /// It is of another form.
    #[error("its format is {0}, this program knows {FORMAT}")]
    Format(u32),
}

fn known_or_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DeliveryPolicy, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// What a later program left to be told: as much of it as this one knows.
fn known_untold<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Untold>, D::Error> {
    #[derive(Deserialize)]
    struct Known {
        kind: DeviceEventKind,
        generation: u64,
        #[serde(default)]
        bundle: Option<BundleRef>,
        #[serde(default)]
        detail: String,
    }
    let all = Vec::<serde_json::Value>::deserialize(deserializer)?;
    let known = all.into_iter().filter_map(|one| serde_json::from_value::<Known>(one).ok());
    Ok(known.map(|Known { kind, generation, bundle, detail }| Untold { kind, generation, bundle, detail }).collect())
}

impl Record {
    /// The record of a device whose package is of this version and that has never been told to run anything else.
    #[must_use]
    pub fn new(package: semver::Version) -> Self {
        Self {
            format: FORMAT,
            package,
            generation: 0,
            director_epoch: 0,
            security_floor: 0,
            slots: BTreeMap::new(),
            committed: None,
            committed_generation: 0,
            update: None,
            untold: Vec::new(),
        }
    }

    /// Reads what [`Self::to_json`] wrote. A pointer to a slot that holds no whole program is one to the package.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut record: Self = serde_json::from_slice(bytes).map_err(|error| RecordError::Parse(error.to_string()))?;
        if record.format != FORMAT {
            return Err(RecordError::Format(record.format));
        }
        if record.committed.is_some_and(|slot| !record.holds_whole(slot)) {
            record.committed = None;
        }
        Ok(record)
    }

    /// The record of a device whose record was lost, with what was kept a second time: the package's program runs, nothing older than before
    /// is taken, and the last assignment is taken again.
    #[must_use]
    pub fn recovered(package: semver::Version, barrier: Barrier) -> Self {
        Self::new(package).held_to(barrier)
    }

    /// The part that is kept a second time.
    #[must_use]
    pub fn barrier(&self) -> Barrier {
        Barrier {
            generation: self.generation,
            director_epoch: self.director_epoch,
            security_floor: self.security_floor,
        }
    }

    /// This record, where it may be an earlier one of a device that has accepted what `barrier` says since: the last assignment is taken again,
    /// and nothing older. A program that is kept out by now is neither committed nor tried any more; the package's is kept out by nothing.
    #[must_use]
    pub fn held_to(mut self, barrier: Barrier) -> Self {
        let since = (barrier.director_epoch, barrier.generation.saturating_sub(1));
        (self.director_epoch, self.generation) = since.max((self.director_epoch, self.generation));
        self.security_floor = self.security_floor.max(barrier.security_floor);
        let floor = barrier.security_floor;
        let is_kept_out = |slot: Slot| self.slots.get(&slot).is_some_and(|content| content.release_counter < floor);
        if self.committed.is_some_and(is_kept_out) {
            self.committed = None;
            self.committed_generation = 0;
        }
        let works_in = self.update.as_ref().and_then(|update| match update.phase {
            Phase::Fetching { slot, .. } | Phase::Verified { slot, .. } => Some(slot),
            Phase::Trial { slot, .. } => slot,
            Phase::Committed | Phase::Reverted { .. } | Phase::Failed { .. } | Phase::Unknown => None,
        });
        if works_in.is_some_and(is_kept_out) {
            self.update = None;
        }
        self
    }

    /// The bytes to store.
    ///
    /// # Errors
    /// What the serialiser says.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// The highest generation accepted, for an assignment of this epoch.
    #[must_use]
    pub fn generation_under(&self, director_epoch: u64) -> u64 {
        if director_epoch > self.director_epoch { 0 } else { self.generation }
    }

    /// The slot that holds the program with this manifest.
    #[must_use]
    pub fn holding(&self, manifest: &Digest) -> Option<Slot> {
        Slot::ALL.into_iter().find(|slot| self.slots.get(slot).is_some_and(|content| content.manifest == *manifest))
    }

    /// Whether all chunks of what `slot` holds are there.
    #[must_use]
    pub fn holds_whole(&self, slot: Slot) -> bool {
        self.slots.get(&slot).is_some_and(|content| content.have.is_full())
    }

    /// What is on trial: a slot or, within, none for the package.
    #[must_use]
    pub fn on_trial(&self) -> Option<Option<Slot>> {
        let Phase::Trial { slot, .. } = self.update.as_ref()?.phase else { return None };
        Some(slot)
    }

    /// Notes something to be told; the oldest goes where there is too much.
    pub fn note(&mut self, kind: DeviceEventKind, detail: &str) {
        let (generation, bundle) = self.update.as_ref().map_or((0, None), |u| (u.generation, u.bundle.clone()));
        if self.untold.len() >= MAX_UNTOLD {
            self.untold.remove(0);
        }
        self.untold.push(Untold { kind, generation, bundle, detail: bounded_text(detail) });
    }

    /// Ends the update for good under its generation: what is committed runs.
    pub(super) fn end(&mut self, phase: Phase, kind: DeviceEventKind, detail: &str) {
        if let Some(update) = &mut self.update {
            update.phase = phase;
        }
        self.slots.retain(|slot, content| content.have.is_full() || self.committed == Some(*slot));
        self.note(kind, detail);
    }

    /// The program on trial is given up.
    pub(super) fn revert(&mut self, reason: &str) {
        let reason = bounded_text(reason);
        self.end(Phase::Reverted { reason: reason.clone() }, DeviceEventKind::Reverted, &reason);
    }

    fn installed(&self, slot: Option<Slot>, generation: u64) -> Option<InstalledBundle> {
        let content = self.slots.get(&slot?)?;
        Some(InstalledBundle { manifest: content.manifest, bundle: content.bundle.clone(), generation })
    }

    /// What the controller is told while the program of `running` runs.
    #[must_use]
    pub fn report(&self, running: Option<Slot>) -> TrackReport {
        let on_trial = self.on_trial() == Some(running);
        let update = self.update.as_ref().map(|update| self.update_report(update)).unwrap_or_default();
        TrackReport {
            generation: self.generation,
            running: self.installed(running, if on_trial { update.generation } else { self.committed_generation }),
            update,
            committed: self.installed(self.committed, self.committed_generation),
            package_version: self.package.to_string(),
            security_floor: self.security_floor,
        }
    }

    fn update_report(&self, update: &Update) -> UpdateReport {
        let (state, reason) = match &update.phase {
            Phase::Fetching { .. } => (UpdateState::Fetching, None),
            Phase::Verified { .. } => (UpdateState::Verified, None),
            Phase::Trial { .. } => (UpdateState::Trial, None),
            Phase::Committed => (UpdateState::Committed, None),
            Phase::Reverted { reason } => (UpdateState::Reverted, Some(reason.clone())),
            Phase::Failed { reason, .. } => (UpdateState::Failed, Some(reason.clone())),
            Phase::Unknown => (UpdateState::Other, None),
        };
        let content = update.manifest.and_then(|digest| self.slots.get(&self.holding(&digest)?));
        UpdateReport {
            state,
            generation: update.generation,
            manifest: update.manifest,
            chunks_done: content.map_or(0, |c| c.have.count()),
            chunks_total: content.map_or(0, |c| c.have.length()),
            reason,
            refused: matches!(update.phase, Phase::Failed { refused: true, .. }),
            held_back: None,
        }
    }
}
