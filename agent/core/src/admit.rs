//! Whether this device wants a genuine bundle.
//!
//! Signatures, device and date of the assignment have been checked before ([`muster_shared::trust`]); here it is held
//! against what the device is and has done. Three answers: take it, take note that it cannot run here (which the
//! operator must learn, as a failed update), or refuse it as if it had not come.

use muster_shared::bundle::Requirements;
use muster_shared::ids::{BundleRef, Digest};
use muster_shared::trust::{Assignment, VerifiedManifest};

use crate::record::{Record, Update};
use crate::slots::Slot;

/// Room that is left free on the device beyond a bundle's files, in bytes.
pub const DISK_RESERVE_BYTES: u64 = 8 * 1024 * 1024;

/// What the device is, and what time it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its architecture, as it reports it.
    pub arch: String,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
    /// The agent's version.
    pub agent_version: semver::Version,
    /// Free space where bundles go, in bytes.
    pub disk_free_bytes: u64,
    /// What bundles may take on disk in all, in bytes.
    pub disk_allowed_bytes: u64,
    /// The time to hold documents against, in milliseconds since the Unix epoch.
    pub now_ms: u64,
}

/// What an assignment brings, from its verified manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedManifest {
    /// Digest of the signed bytes.
    pub digest: Digest,
    /// Name and version.
    pub bundle: BundleRef,
    /// Its place among the releases of its name.
    pub release_counter: u64,
    /// The least release counter once it is committed.
    pub security_floor: u64,
    /// After this no device installs it, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// Which devices can run it.
    pub requirements: Requirements,
    /// How many chunks its files have.
    pub chunks: u32,
    /// Bytes of all its files.
    pub total_bytes: u64,
}

impl From<&VerifiedManifest> for OfferedManifest {
    fn from(verified: &VerifiedManifest) -> Self {
        let manifest = &verified.manifest;
        Self {
            digest: verified.digest,
            bundle: manifest.bundle(),
            release_counter: manifest.release_counter,
            security_floor: manifest.security_floor,
            expires_ms: manifest.expires_ms,
            requirements: manifest.requirements.clone(),
            chunks: manifest.chunk_count(),
            total_bytes: manifest.total_bytes(),
        }
    }
}

/// A verified assignment as it reached the device.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// The assignment.
    pub assignment: Assignment,
    /// What it brings; none when the device shall run nothing.
    pub manifest: Option<OfferedManifest>,
    /// Under which epoch of the director's keys it was verified.
    pub director_epoch: u64,
    /// What the device is.
    pub device: DeviceFacts,
}

/// What to do about an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is new and suits the device.
    Accept,
    /// It is the one the device works on or did last.
    Refresh,
    /// It is new, and cannot run here.
    Unsuitable(Unsuitable),
}

/// Why a bundle cannot run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsuitable {
    /// Its release counter is below the floor.
    #[error("release {counter} of {bundle} is below this device's security floor {floor}")]
    BelowFloor {
        /// The bundle.
        bundle: BundleRef,
        /// Its release counter.
        counter: u64,
        /// The device's floor.
        floor: u64,
    },
    /// It is out of date.
    #[error("the manifest of {bundle} expired at {expires_ms} ms, it is {now_ms} ms now")]
    Expired {
        /// The bundle.
        bundle: BundleRef,
        /// When it expired, in milliseconds since the Unix epoch.
        expires_ms: u64,
        /// The time it was held against.
        now_ms: u64,
    },
    /// Another architecture.
    #[error("{bundle} is for {wanted}, this device is {found}")]
    Architecture {
        /// The bundle.
        bundle: BundleRef,
        /// Its architectures.
        wanted: String,
        /// The device's.
        found: String,
    },
    /// Too little memory.
    #[error("{bundle} needs {need} bytes of memory, this device has {have}")]
    Memory {
        /// The bundle.
        bundle: BundleRef,
        /// What it needs, in bytes.
        need: u64,
        /// What there is, in bytes.
        have: u64,
    },
    /// The agent is too old.
    #[error("{bundle} needs muster-agent {need} or later, this is {have}")]
    AgentVersion {
        /// The bundle.
        bundle: BundleRef,
        /// The least version.
        need: semver::Version,
        /// This version.
        have: semver::Version,
    },
    /// More than its owner lets bundles take.
    #[error(
        "{bundle} needs {need} bytes of disk beside the {beside} of the bundle in use, storage.max-bytes allows {allowed} in all ({free} are free)"
    )]
    Quota {
        /// The bundle.
        bundle: BundleRef,
        /// What it needs, in bytes.
        need: u64,
        /// What the bundle in the other slot takes, in bytes.
        beside: u64,
        /// What both together may take, in bytes.
        allowed: u64,
        /// What there is, in bytes.
        free: u64,
    },
    /// Too little room.
    #[error(
        "{bundle} needs {need} bytes of disk with reserve, {free} are free (storage.max-bytes would allow {allowed})"
    )]
    DiskSpace {
        /// The bundle.
        bundle: BundleRef,
        /// What it needs, in bytes.
        need: u64,
        /// What there is, in bytes.
        free: u64,
        /// What bundles may take in all, in bytes.
        allowed: u64,
    },
}

/// Why an offer is treated as if it had not come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An assignment the device has gone past.
    #[error("assignment of generation {offered}: this device has accepted {accepted} already")]
    OldGeneration {
        /// Its generation.
        offered: u64,
        /// The highest accepted.
        accepted: u64,
    },
    /// Two assignments of one generation that say different things.
    #[error("a second assignment of generation {generation} names another bundle, part or time for it than the first")]
    ChangedGeneration {
        /// The generation.
        generation: u64,
    },
    /// The manifest that came is not the one named.
    #[error("the assignment names manifest {assigned}, {delivered} was delivered")]
    Manifest {
        /// What the assignment names.
        assigned: String,
        /// What came with it.
        delivered: String,
    },
}

/// Holds `offer` against what the device is and has done.
///
/// # Errors
/// [`Refusal`] when the offer is to be treated as if it had not come.
pub fn admit(record: &Record, offer: &Offer) -> Result<Admission, Refusal> {
    let assignment = &offer.assignment;
    let accepted = record.generation_under(offer.director_epoch);
    if assignment.generation < accepted {
        return Err(Refusal::OldGeneration { offered: assignment.generation, accepted });
    }
    let delivered = offer.manifest.as_ref().map(|m| m.digest);
    if delivered != assignment.manifest {
        let name = |digest: Option<Digest>| digest.map_or_else(|| "none".to_owned(), |d| d.short());
        return Err(Refusal::Manifest { assigned: name(assignment.manifest), delivered: name(delivered) });
    }
    if offer.director_epoch > record.director_epoch {
        let same = |u: &Update| u.generation == assignment.generation && says_the_same(u, assignment);
        if record.update.as_ref().is_some_and(same) {
            return Ok(Admission::Refresh);
        }
    } else if assignment.generation == accepted {
        return match &record.update {
            Some(update) if update.generation == assignment.generation => {
                if says_the_same(update, assignment) {
                    Ok(Admission::Refresh)
                } else {
                    Err(Refusal::ChangedGeneration { generation: assignment.generation })
                }
            }
            // Generations start at 1, so only a recovered record stands at one without an update: it has been past it.
            Some(_) | None => Err(Refusal::OldGeneration { offered: assignment.generation, accepted }),
        };
    }
    let Some(manifest) = &offer.manifest else { return Ok(Admission::Accept) };
    Ok(unsuitable(record, manifest, &offer.device).map_or(Admission::Accept, Admission::Unsuitable))
}

/// Whether the update is what the assignment asks for. One that has waited, or had not to, waits no more.
fn says_the_same(update: &Update, assignment: &Assignment) -> bool {
    (update.manifest, &update.stage) == (assignment.manifest, &assignment.stage)
        && (update.activation.is_at_once() || update.activation == assignment.activation)
}

fn unsuitable(record: &Record, manifest: &OfferedManifest, device: &DeviceFacts) -> Option<Unsuitable> {
    let bundle = || manifest.bundle.clone();
    let wants = &manifest.requirements;
    if manifest.release_counter < record.security_floor {
        return Some(Unsuitable::BelowFloor {
            bundle: bundle(),
            counter: manifest.release_counter,
            floor: record.security_floor,
        });
    }
    let runs_already = record.committed_bundle().is_some_and(|c| c.manifest == manifest.digest);
    if device.now_ms >= manifest.expires_ms && !runs_already {
        return Some(Unsuitable::Expired { bundle: bundle(), expires_ms: manifest.expires_ms, now_ms: device.now_ms });
    }
    if !wants.architectures.is_empty() && !wants.architectures.contains(&device.arch) {
        let wanted = wants.architectures.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
        return Some(Unsuitable::Architecture { bundle: bundle(), wanted, found: device.arch.clone() });
    }
    if device.memory_bytes < wants.min_memory_bytes {
        return Some(Unsuitable::Memory { bundle: bundle(), need: wants.min_memory_bytes, have: device.memory_bytes });
    }
    if let Some(need) = wants.min_agent_version.as_ref().filter(|need| device.agent_version < **need) {
        return Some(Unsuitable::AgentVersion {
            bundle: bundle(),
            need: need.clone(),
            have: device.agent_version.clone(),
        });
    }
    if record.slots.holding(&manifest.digest).is_some() {
        return None;
    }
    let target = crate::update::target_slot(record, &manifest.digest);
    no_room(record, manifest, device, record.committed.map(|_| target.other()))
}

/// Whether `manifest` fits only if the slot that is not its target is emptied, too. With a bundle committed that never comes about: it
/// stays. With none, what the other slot holds serves nobody: it failed, was withdrawn, or is on trial and left for this one.
pub(crate) fn needs_both_slots(record: &Record, manifest: &OfferedManifest, device: &DeviceFacts) -> bool {
    let beside = crate::update::target_slot(record, &manifest.digest).other();
    record.committed.is_none() && no_room(record, manifest, device, Some(beside)).is_some()
}

/// Why there is no room for `manifest` where everything goes but what the slot `stays` holds.
fn no_room(
    record: &Record,
    manifest: &OfferedManifest,
    device: &DeviceFacts,
    stays: Option<Slot>,
) -> Option<Unsuitable> {
    let bundle = || manifest.bundle.clone();
    let taken_by = |slot: Slot| record.slots.get(slot).map_or(0, |content| content.total_bytes);
    let cleared = Slot::ALL.into_iter().filter(|slot| Some(*slot) != stays).map(taken_by);
    let free = cleared.fold(device.disk_free_bytes, u64::saturating_add);
    let (beside, allowed) = (stays.map_or(0, taken_by), device.disk_allowed_bytes);
    if manifest.total_bytes.saturating_add(beside) > allowed {
        return Some(Unsuitable::Quota { bundle: bundle(), need: manifest.total_bytes, beside, allowed, free });
    }
    let need = manifest.total_bytes.saturating_add(DISK_RESERVE_BYTES);
    (free < need).then(|| Unsuitable::DiskSpace { bundle: bundle(), need, free, allowed })
}

#[cfg(test)]
mod tests {
    use muster_shared::chunk::ChunkSet;
    use muster_shared::ids::{DeviceId, RolloutId};
    use muster_shared::trust::{Activation, DeliveryPolicy, Stage, WatchPolicy};

    use super::*;
    use crate::record::Phase;
    use crate::slots::{Pointer, SlotContent};

    fn offer(generation: u64) -> Offer {
        let digest = Digest::of(b"m");
        Offer {
            assignment: Assignment {
                device: DeviceId::new("dev-1").unwrap(),
                rollout: RolloutId::new("r1").unwrap(),
                manifest: Some(digest),
                generation,
                issued_at_ms: 0,
                expires_ms: 1_000,
                watch: WatchPolicy::default(),
                delivery: DeliveryPolicy::default(),
                stage: Stage::Serve,
                activation: Activation::AtOnce,
            },
            manifest: Some(OfferedManifest {
                digest,
                bundle: "digits@1.0.0".parse().unwrap(),
                release_counter: 5,
                security_floor: 0,
                expires_ms: 1_000,
                requirements: Requirements {
                    architectures: ["aarch64".to_owned()].into(),
                    min_memory_bytes: 100,
                    min_agent_version: Some(semver::Version::new(0, 1, 0)),
                },
                chunks: 1,
                total_bytes: 50,
            }),
            director_epoch: 1,
            device: DeviceFacts {
                arch: "aarch64".to_owned(),
                memory_bytes: 100,
                agent_version: semver::Version::new(0, 1, 0),
                disk_free_bytes: 50 + DISK_RESERVE_BYTES,
                disk_allowed_bytes: 50,
                now_ms: 999,
            },
        }
    }

    fn refused_as(change: impl Fn(&mut Offer)) -> String {
        let mut changed = offer(2);
        change(&mut changed);
        match admit(&Record { security_floor: 5, ..Record::default() }, &changed) {
            Ok(Admission::Unsuitable(why)) => why.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_requirement_has_its_own_words() {
        assert_eq!(admit(&Record { security_floor: 5, ..Record::default() }, &offer(1)), Ok(Admission::Accept));
        let cases: [(String, &str); 7] = [
            (refused_as(|o| o.manifest.as_mut().unwrap().release_counter = 4), "security floor 5"),
            (refused_as(|o| o.device.now_ms = 1_000), "expired at 1000 ms"),
            (refused_as(|o| o.device.arch = "armv7".into()), "for aarch64, this device is armv7"),
            (refused_as(|o| o.device.memory_bytes = 99), "100 bytes of memory"),
            (refused_as(|o| o.device.agent_version = semver::Version::new(0, 0, 9)), "muster-agent 0.1.0 or later"),
            (refused_as(|o| o.device.disk_free_bytes -= 1), "8388658 bytes of disk with reserve, 8388657 are free"),
            (refused_as(|o| o.device.disk_allowed_bytes -= 1), "50 bytes of disk beside the 0 of the bundle in use"),
        ];
        for (text, expected) in cases {
            assert!(text.contains(expected), "{text:?} does not say {expected:?}");
        }
    }

    fn content(name: &[u8], total_bytes: u64) -> SlotContent {
        SlotContent {
            manifest: Digest::of(name),
            bundle: "digits@0.9.0".parse().unwrap(),
            release_counter: 5,
            security_floor: 0,
            total_bytes,
            have: ChunkSet::empty(0),
            never_served: false,
        }
    }

    #[test]
    fn where_nothing_is_committed_nothing_stays() {
        let mut record = Record::default();
        record.slots.set(Slot::A, Some(content(b"failed", 40)));
        let mut offered = offer(2);
        assert_eq!(admit(&record, &offered), Ok(Admission::Accept));
        let needs_both = |record: &Record, offered: &Offer| {
            needs_both_slots(record, offered.manifest.as_ref().unwrap(), &offered.device)
        };
        assert!(needs_both(&record, &offered), "the quota is one bundle");
        offered.device.disk_allowed_bytes = 90;
        assert!(!needs_both(&record, &offered), "it may be a base for the next");
        offered.device.disk_free_bytes -= 40;
        assert_eq!(admit(&record, &offered), Ok(Admission::Accept));
        assert!(needs_both(&record, &offered), "the disk is full");
        offered.device.disk_free_bytes -= 1;
        assert!(matches!(admit(&record, &offered), Ok(Admission::Unsuitable(Unsuitable::DiskSpace { .. }))));
        record.committed = Some(Pointer { slot: Slot::A, generation: 1 });
        assert!(!needs_both(&record, &offered), "what is committed stays");
    }

    #[test]
    fn a_quota_counts_the_bundle_that_stays_and_not_the_one_that_goes() {
        let mut record = Record { committed: Some(Pointer { slot: Slot::A, generation: 1 }), ..Record::default() };
        record.slots.set(Slot::A, Some(content(b"in use", 30)));
        record.slots.set(Slot::B, Some(content(b"before", 1_000)));
        let mut offered = offer(2);
        offered.device.disk_allowed_bytes = 80;
        assert_eq!(admit(&record, &offered), Ok(Admission::Accept));
        offered.device.disk_allowed_bytes = 79;
        let Ok(Admission::Unsuitable(why)) = admit(&record, &offered) else { panic!("it is taken") };
        let expected = "digits@1.0.0 needs 50 bytes of disk beside the 30 of the bundle in use, storage.max-bytes allows 79 in all \
                        (8389658 are free)";
        assert_eq!(why.to_string(), expected);
        // What is there already needs no more.
        record.slots.set(Slot::B, Some(content(b"m", 50)));
        assert_eq!(admit(&record, &offered), Ok(Admission::Accept));
    }

    /// An update to what [`offer`] brings that has ended well.
    fn done(generation: u64) -> Update {
        Update {
            generation,
            rollout: RolloutId::new("r1").unwrap(),
            manifest: Some(Digest::of(b"m")),
            bundle: None,
            watch: WatchPolicy::default(),
            delivery: DeliveryPolicy::default(),
            stage: Stage::Serve,
            activation: Activation::AtOnce,
            phase: Phase::Committed,
        }
    }

    #[test]
    fn old_changed_and_mismatched_assignments_are_refused() {
        let record = Record { generation: 3, update: Some(done(3)), ..Record::default() };
        assert_eq!(admit(&record, &offer(2)), Err(Refusal::OldGeneration { offered: 2, accepted: 3 }));
        assert_eq!(admit(&record, &offer(3)), Ok(Admission::Refresh));
        let mut changed = offer(3);
        changed.assignment.manifest = None;
        changed.manifest = None;
        assert_eq!(admit(&record, &changed), Err(Refusal::ChangedGeneration { generation: 3 }));
        let waits = |activation| Update { activation, ..done(3) };
        let holds = Record { update: Some(waits(Activation::Hold)), ..record.clone() };
        assert_eq!(admit(&holds, &offer(3)), Err(Refusal::ChangedGeneration { generation: 3 }));
        let mut at = offer(3);
        at.assignment.activation = Activation::At { at_ms: 9 };
        assert_eq!(admit(&holds, &at), Err(Refusal::ChangedGeneration { generation: 3 }));
        let due = Record { update: Some(waits(at.assignment.activation)), ..record.clone() };
        assert_eq!((admit(&due, &at), admit(&record, &at)), (Ok(Admission::Refresh), Ok(Admission::Refresh)));
        let mut mixed = offer(4);
        mixed.assignment.manifest = Some(Digest::of(b"other"));
        assert!(matches!(admit(&record, &mixed), Err(Refusal::Manifest { .. })));
        mixed.assignment.manifest = None;
        assert!(matches!(admit(&record, &mixed), Err(Refusal::Manifest { .. })));
        let bare = Record { generation: 3, ..Record::default() };
        assert!(matches!(admit(&bare, &offer(3)), Err(Refusal::OldGeneration { .. })));
    }

    #[test]
    fn once_another_director_signs_generations_begin_anew() {
        let stolen = |generation| Record { generation, update: Some(done(generation)), ..Record::default() };
        let by_the_next = |generation| Offer { director_epoch: 2, ..offer(generation) };
        assert!(admit(&stolen(u64::MAX), &offer(7)).is_err());
        assert_eq!(admit(&stolen(u64::MAX), &by_the_next(7)), Ok(Admission::Accept));
        assert_eq!(admit(&stolen(7), &by_the_next(7)), Ok(Admission::Refresh));
        let mut other = by_the_next(7);
        other.assignment.manifest = None;
        other.manifest = None;
        assert_eq!(admit(&stolen(7), &other), Ok(Admission::Accept));
        // It holds from then on, and a chain that lost its last document does not open it again.
        let known = Record { director_epoch: 2, ..stolen(7) };
        for epoch in [1, 2] {
            let older = Offer { director_epoch: epoch, ..offer(6) };
            assert_eq!(admit(&known, &older), Err(Refusal::OldGeneration { offered: 6, accepted: 7 }));
        }
    }
}
