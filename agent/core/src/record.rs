//! The durable record: both slots, the pointer, the update under way and the tries it has left.
//!
//! This is everything that has to survive a crash, and it is written in one piece: the pointer in it is what makes a
//! switch atomic. How it changes is [`crate::update`]'s matter.

use muster_shared::ids::{BundleRef, Digest, RolloutId};
use muster_shared::messages::{DeviceEventKind, InstalledBundle, UpdateReport, UpdateState};
use muster_shared::trust::{Activation, DeliveryPolicy, Stage, WatchPolicy};
use serde::{Deserialize, Serialize};

use crate::slots::{Pointer, Slot, Slots};

/// How often a new bundle may be loaded before it is given up: a bundle that takes the agent down with it must not do
/// so for ever.
pub const MAX_TRIES: u32 = 3;
/// How often damaged files are fetched again before the update is given up.
pub const MAX_REPAIRS: u32 = 3;
/// Events kept while the outbox takes none, as with a full disk.
const MAX_UNTOLD: usize = 64;
const FORMAT: u32 = 1;

/// How far an update is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "state", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Phase {
    /// The device was told to run nothing, and does.
    Withdrawn,
    /// Chunks are on their way, or the files are being checked.
    Fetching {
        /// Where they go.
        slot: Slot,
        /// How often damaged files had to be fetched again.
        repairs: u32,
    },
    /// All files are there and right; the model is being tested, or waits to take its part.
    Verified {
        /// Where it is.
        slot: Slot,
        /// How often it may still be loaded.
        tries_left: u32,
    },
    /// The model runs beside the committed one, as the update's stage says; only another assignment ends that.
    Beside {
        /// Where it is.
        slot: Slot,
        /// How often it may still be loaded; all of them again once it has lived through a probation.
        tries_left: u32,
    },
    /// The model serves under watch.
    Trial {
        /// Where it is.
        slot: Slot,
        /// How often it may still be loaded.
        tries_left: u32,
        /// How long it has been watched before the agent last stopped in order, in milliseconds.
        watched_ms: u64,
    },
    /// It passed its probation.
    Committed,
    /// It failed while it served, and what ran before serves again.
    Reverted {
        /// Why.
        reason: String,
    },
    /// It failed before it served.
    Failed {
        /// Why.
        reason: String,
        /// It was refused before anything of it began.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        refused: bool,
    },
}

impl Phase {
    /// The slot the update works in, while it does.
    #[must_use]
    pub fn working_slot(&self) -> Option<Slot> {
        match self {
            Self::Fetching { slot, .. }
            | Self::Verified { slot, .. }
            | Self::Beside { slot, .. }
            | Self::Trial { slot, .. } => Some(*slot),
            Self::Withdrawn | Self::Committed | Self::Reverted { .. } | Self::Failed { .. } => None,
        }
    }
}

/// The update under way, or the last one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Update {
    /// The assignment's generation.
    pub generation: u64,
    /// The rollout it belongs to.
    pub rollout: RolloutId,
    /// Digest of the manifest it brings; none when the device is told to run nothing.
    pub manifest: Option<Digest>,
    /// The bundle's name and version.
    pub bundle: Option<BundleRef>,
    /// How the bundle is watched before it is committed.
    pub watch: WatchPolicy,
    /// When and how fast it may be fetched.
    #[serde(default, skip_serializing_if = "DeliveryPolicy::is_default")]
    pub delivery: DeliveryPolicy,
    /// In which part the bundle is to run.
    #[serde(default, skip_serializing_if = "Stage::is_serve")]
    pub stage: Stage,
    /// When it is to take that part; at once when it has.
    #[serde(default, skip_serializing_if = "Activation::is_at_once")]
    pub activation: Activation,
    /// How far it is.
    pub phase: Phase,
}

/// Something that happened and has not reached the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Untold {
    /// What kind of thing.
    pub kind: DeviceEventKind,
    /// The generation concerned.
    pub generation: u64,
    /// The bundle concerned.
    pub bundle: Option<BundleRef>,
    /// The rest, in words.
    pub detail: String,
}

/// Everything about updates that survives a crash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Record {
    /// The version of this form; records of another are not read.
    pub format: u32,
    /// The highest generation accepted.
    pub generation: u64,
    /// Under which [`muster_shared::trust::TrustedRoot::director_epoch`] it was. Records from before there were epochs belong to the first.
    #[serde(default = "first_epoch")]
    pub director_epoch: u64,
    /// The least release counter that may run.
    pub security_floor: u64,
    /// What both slots hold.
    pub slots: Slots,
    /// The bundle to fall back to.
    pub committed: Option<Pointer>,
    /// The update under way, or the last one.
    pub update: Option<Update>,
    /// What happened and has not reached the outbox. It is written together with the change it tells about, so that
    /// a crash between the two cannot lose it.
    pub untold: Vec<Untold>,
}

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// They do not parse.
    #[error("it does not parse: {0}")]
    Parse(String),
    /// A later agent wrote them.
    #[error("its format is {0}, this agent knows {FORMAT}: install the newer agent again")]
    Format(u32),
    /// They contradict themselves.
    #[error("it contradicts itself: {0}")]
    Content(&'static str),
}

impl Default for Record {
    fn default() -> Self {
        Self {
            format: FORMAT,
            generation: 0,
            director_epoch: first_epoch(),
            security_floor: 0,
            slots: Slots::default(),
            committed: None,
            update: None,
            untold: Vec::new(),
        }
    }
}

/// The part of a record that keeps old assignments and releases out. It is kept a second time, so that losing the record
/// opens no door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Barrier {
    /// The highest generation accepted.
    pub generation: u64,
    /// Under which epoch of the director's keys.
    #[serde(default = "first_epoch")]
    pub director_epoch: u64,
    /// The least release counter that may run.
    pub security_floor: u64,
}

/// Root documents begin with version 1.
fn first_epoch() -> u64 {
    1
}

impl Default for Barrier {
    fn default() -> Self {
        Self { generation: 0, director_epoch: first_epoch(), security_floor: 0 }
    }
}

impl Barrier {
    /// The one that keeps out what either does.
    #[must_use]
    pub fn strictest(self, other: Self) -> Self {
        let (director_epoch, generation) =
            (self.director_epoch, self.generation).max((other.director_epoch, other.generation));
        Self { generation, director_epoch, security_floor: self.security_floor.max(other.security_floor) }
    }
}

impl Record {
    /// Whether what was accepted came from those who may not assign any more under `director_epoch`.
    #[must_use]
    pub fn awaits_director(&self, director_epoch: u64) -> bool {
        self.generation > self.generation_under(director_epoch)
    }

    /// The highest generation accepted from those who are trusted to assign under `director_epoch`; 0 when all of it came before.
    #[must_use]
    pub fn generation_under(&self, director_epoch: u64) -> u64 {
        if director_epoch > self.director_epoch { 0 } else { self.generation }
    }

    /// The record of a device whose record was lost: nothing is installed, and nothing older than before is taken. The last
    /// assignment itself is taken again, since what it brought is gone.
    #[must_use]
    pub fn recovered(barrier: Barrier) -> Self {
        Self {
            generation: barrier.generation.saturating_sub(1),
            director_epoch: barrier.director_epoch,
            security_floor: barrier.security_floor,
            ..Self::default()
        }
    }

    /// This record, where it is an earlier one of a device that has accepted what `barrier` says since: the last assignment is taken
    /// again, and nothing older. An update of a release that is kept out by now ends, and where such a one is committed there is none.
    #[must_use]
    pub fn held_to(self, barrier: Barrier) -> Option<Self> {
        let may_stay =
            |slot: Slot| self.slots.get(slot).is_none_or(|content| content.release_counter >= barrier.security_floor);
        let stands = self.committed.is_none_or(|pointer| may_stay(pointer.slot));
        let goes_on = self.update.as_ref().and_then(|update| update.phase.working_slot()).is_none_or(may_stay);
        let since = (barrier.director_epoch, barrier.generation.saturating_sub(1));
        let (director_epoch, generation) = since.max((self.director_epoch, self.generation));
        stands.then(|| Self {
            generation,
            director_epoch,
            security_floor: self.security_floor.max(barrier.security_floor),
            update: self.update.filter(|_| goes_on),
            ..self
        })
    }

    /// Something happened: it is to be told once the outbox takes it. Of too much of that the oldest is forgotten.
    pub fn note(&mut self, untold: Untold) {
        if self.untold.len() >= MAX_UNTOLD {
            self.untold.remove(0);
        }
        self.untold.push(untold);
    }

    /// What the bytes of a record that cannot be used still say about what is to be kept out.
    #[must_use]
    pub fn salvaged(bytes: &[u8]) -> Option<Barrier> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Salvage {
            generation: u64,
            #[serde(default = "first_epoch")]
            director_epoch: u64,
            security_floor: u64,
        }
        let Salvage { generation, director_epoch, security_floor } = serde_json::from_slice(bytes).ok()?;
        Some(Barrier { generation, director_epoch, security_floor })
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

    /// The record as bytes.
    ///
    /// # Errors
    /// When serialisation fails, which no content of a record gives cause for.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Reads what [`Self::to_json`] wrote, and checks it.
    ///
    /// # Errors
    /// [`RecordError`] with what is wrong.
    pub fn from_json(bytes: &[u8]) -> Result<Self, RecordError> {
        let record: Self = serde_json::from_slice(bytes).map_err(|e| RecordError::Parse(e.to_string()))?;
        if record.format != FORMAT {
            return Err(RecordError::Format(record.format));
        }
        if record.committed.is_some_and(|p| record.slots.get(p.slot).is_none_or(|c| !c.have.is_full())) {
            return Err(RecordError::Content("the committed slot is not complete"));
        }
        if let Some(update) = &record.update {
            if let Some(slot) = update.phase.working_slot() {
                if record.committed.is_some_and(|p| p.slot == slot) {
                    return Err(RecordError::Content("the update works in the committed slot"));
                }
                if record.slots.get(slot).map(|c| c.manifest) != update.manifest {
                    return Err(RecordError::Content("the update's slot holds another bundle"));
                }
            }
            let tries_left = match update.phase {
                Phase::Verified { tries_left, .. }
                | Phase::Beside { tries_left, .. }
                | Phase::Trial { tries_left, .. } => tries_left,
                Phase::Withdrawn
                | Phase::Fetching { .. }
                | Phase::Committed
                | Phase::Reverted { .. }
                | Phase::Failed { .. } => 0,
            };
            if update.stage.validate().is_err() {
                return Err(RecordError::Content("the update is to run in a part that there is not"));
            }
            let is_beside = matches!(update.phase, Phase::Beside { .. });
            if is_beside && update.stage.is_serve() {
                return Err(RecordError::Content("the update runs beside another and is to serve"));
            }
            if tries_left > MAX_TRIES {
                return Err(RecordError::Content("the update has more tries left than there are"));
            }
        }
        Ok(record)
    }

    /// The bundle in `slot`, as reports name it.
    #[must_use]
    pub fn installed(&self, pointer: Pointer) -> Option<InstalledBundle> {
        self.slots.get(pointer.slot).map(|content| InstalledBundle {
            manifest: content.manifest,
            bundle: content.bundle.clone(),
            generation: pointer.generation,
        })
    }

    /// The bundle to fall back to, as reports name it.
    #[must_use]
    pub fn committed_bundle(&self) -> Option<InstalledBundle> {
        self.committed.and_then(|pointer| self.installed(pointer))
    }

    /// The bundle that a crash now would be held against: the one on trial, beside the incumbent, or tested to take its part at once, or else
    /// the committed one. One that waits for a switch answers nobody, and devices may lose their power while they wait: it fails once it has used
    /// up its tries, and not before.
    #[must_use]
    pub fn exposed_bundle(&self) -> Option<InstalledBundle> {
        let on_trial = self.update.as_ref().and_then(|update| match update.phase {
            Phase::Verified { .. } if !update.activation.is_at_once() => None,
            Phase::Verified { slot, .. } | Phase::Beside { slot, .. } | Phase::Trial { slot, .. } => {
                self.installed(Pointer { slot, generation: update.generation })
            }
            Phase::Withdrawn
            | Phase::Fetching { .. }
            | Phase::Committed
            | Phase::Reverted { .. }
            | Phase::Failed { .. } => None,
        });
        on_trial.or_else(|| self.committed_bundle())
    }

    /// The update, as reports show it.
    #[must_use]
    pub fn update_report(&self) -> UpdateReport {
        let Some(update) = &self.update else { return UpdateReport::default() };
        let (state, reason) = match &update.phase {
            Phase::Withdrawn => (UpdateState::Idle, None),
            Phase::Fetching { .. } => (UpdateState::Fetching, None),
            Phase::Verified { .. } => (UpdateState::Verified, None),
            Phase::Beside { .. } => (UpdateState::Beside, None),
            Phase::Trial { .. } => (UpdateState::Trial, None),
            Phase::Committed => (UpdateState::Committed, None),
            Phase::Reverted { reason } => (UpdateState::Reverted, Some(reason.clone())),
            Phase::Failed { reason, .. } => (UpdateState::Failed, Some(reason.clone())),
        };
        let content = update.manifest.and_then(|digest| self.slots.holding(&digest)).and_then(|s| self.slots.get(s));
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

#[cfg(test)]
mod tests {
    use muster_shared::chunk::ChunkSet;
    use proptest::prelude::*;

    use super::*;
    use crate::slots::SlotContent;

    #[test]
    fn a_record_that_contradicts_itself_is_refused() {
        let mut record = Record { committed: Some(Pointer { slot: Slot::A, generation: 1 }), ..Record::default() };
        let read = |record: &Record| Record::from_json(&record.to_json().unwrap());
        assert!(matches!(read(&record), Err(RecordError::Content(_))));
        record.committed = None;
        assert_eq!(read(&record), Ok(record.clone()));
        record.format = 2;
        assert_eq!(read(&record), Err(RecordError::Format(2)));
    }

    #[test]
    fn a_crash_is_held_against_what_is_tried_and_not_against_what_waits() {
        let mut record = full();
        let committed = record.committed_bundle();
        let exposed = |record: &Record| record.exposed_bundle();
        let update = record.update.as_mut().unwrap();
        update.phase = Phase::Verified { slot: Slot::B, tries_left: 2 };
        assert_eq!(exposed(&record).map(|b| b.manifest), Some(Digest::of(&[2])));
        for activation in [Activation::Hold, Activation::At { at_ms: 7 }] {
            record.update.as_mut().unwrap().activation = activation;
            assert_eq!(exposed(&record), committed);
        }
    }

    #[test]
    fn a_record_says_of_a_bundle_beside_the_incumbent_what_it_is_there_for() {
        let mut record = full();
        let update = record.update.as_mut().unwrap();
        update.stage = Stage::Split { share_bp: 500, experiment: "warm".into() };
        update.phase = Phase::Beside { slot: Slot::B, tries_left: 2 };
        let read = |record: &Record| Record::from_json(&record.to_json().unwrap());
        assert_eq!(read(&record), Ok(record.clone()));
        assert_eq!(record.update_report().state, UpdateState::Beside);
        assert_eq!(record.exposed_bundle().map(|b| b.manifest), Some(Digest::of(&[2])));
        for stage in [Stage::Serve, Stage::Shadow { share_bp: 0 }] {
            record.update.as_mut().unwrap().stage = stage;
            assert!(matches!(read(&record), Err(RecordError::Content(_))));
        }
        // A bundle that serves is written as it always was.
        assert!(!String::from_utf8(full().to_json().unwrap()).unwrap().contains("stage"));
    }

    #[test]
    fn a_lost_record_opens_no_door() {
        let recovered = Record::recovered(Barrier { generation: 7, director_epoch: 2, security_floor: 3 });
        assert_eq!((recovered.generation, recovered.director_epoch, recovered.security_floor), (6, 2, 3));
        assert_eq!(Record::recovered(Barrier::default()), Record::default());
    }

    #[test]
    fn an_earlier_record_stands_as_far_as_the_barrier_lets_it() {
        let mut earlier = full();
        earlier.committed = Some(Pointer { slot: Slot::A, generation: 10 });
        let barrier = |generation, security_floor| Barrier { generation, director_epoch: 3, security_floor };
        // Of a later assignment it knows nothing: that one is taken again, and none before it.
        let held = earlier.clone().held_to(barrier(earlier.generation + 5, 4)).unwrap();
        assert_eq!((held.generation, held.security_floor), (earlier.generation + 4, 4));
        assert_eq!((held.committed, held.slots), (earlier.committed, earlier.slots.clone()));
        assert_eq!(earlier.clone().held_to(Barrier::default()), Some(earlier.clone()));
        // Another director has signed since: that one's generations count, however low they are.
        let later = earlier.clone().held_to(Barrier { generation: 2, director_epoch: 4, security_floor: 0 }).unwrap();
        assert_eq!((later.generation, later.director_epoch), (1, 4));
        // What it ran has release counter 4.
        assert_eq!(earlier.clone().held_to(barrier(1, 5)), None);
        let on_trial = earlier.held_to(barrier(1, 4)).unwrap();
        assert!(on_trial.update.is_some());
        let alone = Record { committed: None, ..on_trial };
        assert_eq!(alone.held_to(barrier(1, 5)).unwrap().update, None, "it would be committed below the floor");
    }

    /// A record with something of everything in it.
    fn full() -> Record {
        let mut have = ChunkSet::empty(70);
        for chunk in 0..70 {
            have.insert(chunk);
        }
        let content = |n: u8| SlotContent {
            manifest: Digest::of(&[n]),
            bundle: format!("digits@1.{n}.0").parse().unwrap(),
            release_counter: 4,
            security_floor: 2,
            total_bytes: 4_000_000,
            have: have.clone(),
            never_served: false,
        };
        let mut slots = Slots::default();
        slots.set(Slot::A, Some(content(1)));
        slots.set(Slot::B, Some(content(2)));
        let watch = WatchPolicy { probation_ms: 1_000, max_error_rate: 0.5, min_requests: 7 };
        let update = Update {
            generation: 12,
            rollout: RolloutId::new("r1").unwrap(),
            manifest: Some(Digest::of(&[2])),
            bundle: Some("digits@1.2.0".parse().unwrap()),
            watch,
            delivery: DeliveryPolicy { ignore_quiet_hours: true, ..DeliveryPolicy::default() },
            stage: Stage::Serve,
            activation: Activation::AtOnce,
            phase: Phase::Trial { slot: Slot::B, tries_left: 2, watched_ms: 300 },
        };
        let untold =
            Untold { kind: DeviceEventKind::Trial, generation: 12, bundle: update.bundle.clone(), detail: "x".into() };
        Record {
            generation: 12,
            director_epoch: 3,
            security_floor: 2,
            slots,
            committed: Some(Pointer { slot: Slot::A, generation: 11 }),
            update: Some(update),
            untold: vec![untold],
            ..Record::default()
        }
    }

    #[test]
    fn what_keeps_others_out_is_salvaged_from_a_record_that_contradicts_itself() {
        let mut record = full();
        record.slots.set(Slot::A, None);
        let bytes = record.to_json().unwrap();
        assert!(matches!(Record::from_json(&bytes), Err(RecordError::Content(_))));
        assert_eq!(Record::salvaged(&bytes), Some(Barrier { generation: 12, director_epoch: 3, security_floor: 2 }));
        assert_eq!(Record::salvaged(&bytes[1..]), None);
        assert_eq!(Record::salvaged(b"{\"generation\":3}"), None);
    }

    #[test]
    fn of_two_barriers_the_later_epoch_counts_and_the_higher_floor() {
        let one = Barrier { generation: u64::MAX, director_epoch: 1, security_floor: 9 };
        let two = Barrier { generation: 7, director_epoch: 2, security_floor: 3 };
        assert_eq!(one.strictest(two), Barrier { security_floor: 9, ..two });
        assert_eq!(two.strictest(one), one.strictest(two));
        assert_eq!(two.strictest(Barrier { generation: 8, ..two }).generation, 8);
    }

    proptest! {
        #[test]
        fn a_damaged_record_is_refused_or_holds_together(at: prop::sample::Index, byte: u8, cut in 0..4u8) {
            let record = full();
            let mut bytes = record.to_json().unwrap();
            let at = at.index(bytes.len());
            match cut {
                0 => bytes.truncate(at),
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, byte),
                _ => bytes[at] = byte,
            }
            let _ = Record::salvaged(&bytes);
            if let Ok(read) = Record::from_json(&bytes) {
                // What passes is a record that says one thing, and says it again.
                prop_assert_eq!(Record::from_json(&read.to_json().unwrap()), Ok(read.clone()));
                let committed = read.committed.and_then(|p| read.slots.get(p.slot));
                prop_assert!(read.committed.is_none() || committed.is_some_and(|c| c.have.is_full()));
                let _ = (read.update_report(), read.exposed_bundle(), read.committed_bundle());
            }
        }

        #[test]
        fn any_bytes_are_a_record_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::from_json(&bytes);
        }
    }
}
