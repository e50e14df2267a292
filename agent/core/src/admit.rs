//! Whether this device wants a genuine bundle.
//!
//! Signatures, device and date of the assignment have been checked before ([`muster_shared::trust`]); here it is held
//! against what the device is and has done. Three answers: take it, take note that it cannot run here (which the
//! operator must learn, as a failed update), or refuse it as if it had not come.

mod unsuitable;

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::bundle::{MODEL_PATH, Manifest, Requirements};
use muster_shared::ids::{BundleRef, Digest};
use muster_shared::trust::{Assignment, VerifiedManifest};

pub use self::unsuitable::Unsuitable;
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
    /// What of it this service may ever have, in bytes; none where nobody says.
    pub memory_allowed_bytes: Option<u64>,
    /// What of it could be taken now without anything being pushed out, in bytes; none where nobody says.
    pub memory_available_bytes: Option<u64>,
    /// Instructions of its processor that matter to inference ([`muster_shared::bundle::CPU_FEATURES`]).
    pub cpu_features: BTreeSet<&'static str>,
    /// Its attributes, as it reports them.
    pub attributes: BTreeMap<String, String>,
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
    /// Bytes of its model's file, which its weights take in memory at least.
    pub model_bytes: u64,
    /// The memory it is known to need before it is loaded, in bytes ([`needed_memory_bytes`]).
    pub needed_memory_bytes: u64,
}

/// The memory that is known to be needed before a model is loaded, in bytes: what its manifest lets it use, and its weights take no less
/// than their file.
#[must_use]
pub fn needed_memory_bytes(manifest: &Manifest) -> u64 {
    manifest.budgets.max_memory_bytes.unwrap_or(0).max(model_bytes(manifest))
}

fn model_bytes(manifest: &Manifest) -> u64 {
    manifest.file(MODEL_PATH).map_or(0, |file| file.length)
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
            model_bytes: model_bytes(manifest),
            needed_memory_bytes: needed_memory_bytes(manifest),
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
    let is_beside = !assignment.stage.is_serve();
    Ok(unsuitable(record, manifest, &offer.device, is_beside).map_or(Admission::Accept, Admission::Unsuitable))
}

/// Whether the update is what the assignment asks for. One that has waited, or had not to, waits no more.
fn says_the_same(update: &Update, assignment: &Assignment) -> bool {
    (update.manifest, &update.stage) == (assignment.manifest, &assignment.stage)
        && (update.activation.is_at_once() || update.activation == assignment.activation)
}

fn unsuitable(
    record: &Record,
    manifest: &OfferedManifest,
    device: &DeviceFacts,
    is_beside: bool,
) -> Option<Unsuitable> {
    let bundle = || manifest.bundle.clone();
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
    if let Some(why) = unmet(&manifest.requirements, &manifest.bundle, device) {
        return Some(why);
    }
    if record.slots.holding(&manifest.digest).is_some() {
        return None;
    }
    if let Some(have) = device.memory_allowed_bytes.filter(|have| *have < manifest.model_bytes) {
        return Some(Unsuitable::MemoryLimit { bundle: bundle(), need: manifest.model_bytes, have });
    }
    // What a model beside holds now goes when another comes, and nobody knows how much that is: then it is found out before loading.
    let is_first = record.update.as_ref().is_none_or(|update| update.stage.is_serve());
    let need = manifest.needed_memory_bytes;
    if let Some(have) = device.memory_available_bytes.filter(|have| is_beside && is_first && *have < need) {
        return Some(Unsuitable::MemoryBeside { bundle: bundle(), need, have });
    }
    let target = crate::update::target_slot(record, &manifest.digest);
    no_room(record, manifest, device, record.committed.map(|_| target.other()))
}

/// What of `wants`, which `bundle` asks for, the device does not meet.
pub(crate) fn unmet(wants: &Requirements, bundle: &BundleRef, device: &DeviceFacts) -> Option<Unsuitable> {
    let bundle = || bundle.clone();
    if !wants.architectures.is_empty() && !wants.architectures.contains(&device.arch) {
        let wanted = wants.architectures.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
        return Some(Unsuitable::Architecture { bundle: bundle(), wanted, found: device.arch.clone() });
    }
    if device.memory_bytes < wants.min_memory_bytes {
        return Some(Unsuitable::Memory { bundle: bundle(), need: wants.min_memory_bytes, have: device.memory_bytes });
    }
    let missing = wants.cpu_features.iter().map(String::as_str).filter(|f| !device.cpu_features.contains(f)).take(8);
    let missing = missing.collect::<Vec<_>>().join(", ");
    if !missing.is_empty() {
        return Some(Unsuitable::CpuFeatures { bundle: bundle(), missing });
    }
    let missing = wants.attributes.iter().flat_map(|wanted| wanted.unmet(&device.attributes)).take(8);
    let missing = missing.collect::<Vec<_>>().join(", ");
    if !missing.is_empty() {
        return Some(Unsuitable::Attributes { bundle: bundle(), missing });
    }
    let need = wants.min_agent_version.as_ref().filter(|need| device.agent_version < **need)?;
    Some(Unsuitable::AgentVersion { bundle: bundle(), need: need.clone(), have: device.agent_version.clone() })
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
mod tests;
