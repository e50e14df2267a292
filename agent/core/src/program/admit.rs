//! Whether this device wants a genuine program.

use muster_shared::bundle::Requirements;
use muster_shared::ids::{BundleRef, Digest};
use muster_shared::trust::{Assignment, VerifiedManifest};

use super::record::{Content, Record};
use crate::admit::{DISK_RESERVE_BYTES, DeviceFacts, Refusal, Unsuitable, unmet};
use crate::slots::Slot;

/// What an assignment brings, from its verified manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedProgram {
    /// What its slot will hold.
    pub content: Content,
    /// After this no device installs it, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// Which devices can run it.
    pub requirements: Requirements,
    /// The oldest agent it can take over from.
    pub takes_over_from: semver::Version,
}

impl OfferedProgram {
    /// What `verified` says; none when it brings no program.
    #[must_use]
    pub fn of(verified: &VerifiedManifest) -> Option<Self> {
        let manifest = &verified.manifest;
        let program = manifest.program.as_ref()?;
        Some(Self {
            content: Content {
                manifest: verified.digest,
                bundle: manifest.bundle(),
                sha256: manifest.file(muster_shared::bundle::PROGRAM_PATH)?.sha256,
                release_counter: manifest.release_counter,
                security_floor: manifest.security_floor,
                max_memory_bytes: manifest.budgets.max_memory_bytes,
                total_bytes: manifest.total_bytes(),
                have: muster_shared::chunk::ChunkSet::empty(manifest.chunk_count()),
            },
            expires_ms: manifest.expires_ms,
            requirements: manifest.requirements.clone(),
            takes_over_from: program.takes_over_from.clone(),
        })
    }
}

/// A verified assignment of the program's track as it reached the device.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// The assignment.
    pub assignment: Assignment,
    /// What it brings; none for what the package installed.
    pub program: Option<OfferedProgram>,
    /// Under which epoch of the director's keys it was verified.
    pub director_epoch: u64,
    /// What the device is.
    pub device: DeviceFacts,
}

/// What to do about an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is new and suits the device.
    Accept,
    /// It is the one the device works on or did last.
    Refresh,
    /// It is new, and cannot run here, in words.
    Unsuitable(String),
}

/// The slot a program goes to: never the committed one, and the one that holds it already where there is one.
pub(super) fn target_slot(record: &Record, manifest: &Digest) -> Slot {
    if let Some(committed) = record.committed {
        return committed.other();
    }
    let free = || Slot::ALL.into_iter().find(|slot| !record.slots.contains_key(slot));
    record.holding(manifest).or_else(free).unwrap_or(Slot::A)
}

pub(super) fn admit(record: &Record, offer: &Offer) -> Result<Admission, Refusal> {
    let assignment = &offer.assignment;
    let accepted = record.generation_under(offer.director_epoch);
    let delivered = offer.program.as_ref().map(|program| program.content.manifest);
    if assignment.generation < accepted {
        return Err(Refusal::OldGeneration { offered: assignment.generation, accepted });
    }
    if delivered != assignment.manifest {
        let name = |digest: Option<Digest>| digest.map_or_else(|| "none".to_owned(), |d| d.short());
        return Err(Refusal::Manifest { assigned: name(assignment.manifest), delivered: name(delivered) });
    }
    let known = record.update.as_ref().filter(|update| update.generation == assignment.generation);
    let says_the_same = known.is_some_and(|update| update.manifest == assignment.manifest);
    if offer.director_epoch > record.director_epoch {
        if says_the_same {
            return Ok(Admission::Refresh);
        }
    } else if assignment.generation == accepted {
        return match known {
            Some(_) if says_the_same => Ok(Admission::Refresh),
            Some(_) => Err(Refusal::ChangedGeneration { generation: assignment.generation }),
            None => Err(Refusal::OldGeneration { offered: assignment.generation, accepted }),
        };
    }
    let Some(program) = &offer.program else { return Ok(Admission::Accept) };
    Ok(unsuitable(record, program, &offer.device).map_or(Admission::Accept, Admission::Unsuitable))
}

fn unsuitable(record: &Record, program: &OfferedProgram, device: &DeviceFacts) -> Option<String> {
    let Content { bundle, release_counter, total_bytes, manifest, .. } = &program.content;
    let bundle = || -> BundleRef { bundle.clone() };
    let holds = record.holding(manifest).is_some_and(|slot| record.holds_whole(slot));
    if *release_counter < record.security_floor {
        let (counter, floor) = (*release_counter, record.security_floor);
        return Some(Unsuitable::BelowFloor { bundle: bundle(), counter, floor }.to_string());
    }
    if device.now_ms >= program.expires_ms && !holds {
        let (expires_ms, now_ms) = (program.expires_ms, device.now_ms);
        return Some(Unsuitable::Expired { bundle: bundle(), expires_ms, now_ms }.to_string());
    }
    if let Some(why) = unmet(&program.requirements, &program.content.bundle, device) {
        return Some(why.to_string());
    }
    if device.agent_version < program.takes_over_from {
        return Some(format!(
            "{} takes over from muster-agent {} or later, this is {}: a version in between has to come first",
            bundle(),
            program.takes_over_from,
            device.agent_version
        ));
    }
    let freed = record.slots.get(&target_slot(record, manifest)).map_or(0, |content| content.total_bytes);
    let need = total_bytes.saturating_add(DISK_RESERVE_BYTES);
    let free = device.disk_free_bytes.saturating_add(freed);
    if !holds && free < need {
        let allowed = device.disk_allowed_bytes;
        return Some(Unsuitable::DiskSpace { bundle: bundle(), need, free, allowed }.to_string());
    }
    None
}
