//! The fleet in memory: every device's record, last report, presence and recent evidence.
//!
//! A view of the store, rebuilt at the start and changed only after the store has been. Whether a device is connected
//! is known here alone: after a start every device is away until it is heard. What follows from all this is
//! `muster-rollout`'s decision.

mod aside;
mod evidence;
mod facts;
mod health;
mod load;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use muster_rollout::{KnownFacts, Shared};
use muster_shared::api::{DesiredView, DeviceView};
use muster_shared::collection::SamplesReport;
use muster_shared::ids::{BundleRef, DeviceId, Digest, RolloutId};
use muster_shared::messages::StateReport;
use muster_shared::selector::Selector;

pub(crate) use evidence::{Observation, reference_predictions};
pub(crate) use health::DeviceHealth;

use crate::pki::{AuthoritiesVersion, RevokedCertificate};
use crate::store::records::{Desired, DeviceRecord, SupersededCertificate};
use evidence::EvidenceLog;

/// Windows this fresh are never added up: a rollout may yet ask for those since a moment among them.
const FRESH_MS: u64 = 60_000;

/// The fleet. Clones share it.
#[derive(Clone)]
pub(crate) struct FleetIndex {
    inner: Arc<RwLock<Inner>>,
}

#[derive(Default)]
struct Inner {
    devices: BTreeMap<DeviceId, Entry>,
    bundles: BTreeMap<Digest, BundleRef>,
}

struct Entry {
    record: DeviceRecord,
    /// The record's version in the store.
    version: u64,
    /// What rollouts are shown of record and report, made when one of them changes and not at every look. The report lies here alone.
    known: Shared<KnownFacts>,
    online: bool,
    last_seen_ms: Option<u64>,
    evidence: EvidenceLog,
}

impl Entry {
    fn new(record: DeviceRecord, version: u64) -> Self {
        let known = facts::known(&record, None).into();
        Self { record, version, known, online: false, last_seen_ms: None, evidence: EvidenceLog::default() }
    }

    fn report(&self) -> Option<&StateReport> {
        self.known.reported.as_ref()
    }

    fn is_behind(&self) -> bool {
        let accepted = self.report().filter(|report| !report.awaits_director).map_or(0, |report| report.generation);
        let desired = self.record.desired.as_ref();
        !self.record.is_revoked() && desired.is_some_and(|desired| desired.generation > accepted)
    }

    /// Whether it counts as reachable. One that keeps its quiet hours, or waits for another link, has said so and then has nothing to say
    /// for as long as it waits, so its connection is all there is to go by.
    fn is_there(&self, heard_since_ms: u64) -> bool {
        let waits = self.report().is_some_and(|report| report.update.held_back.is_some());
        self.online && (waits || self.last_seen_ms.is_some_and(|seen| seen >= heard_since_ms))
    }

    fn selected_by(&self, selector: &Selector) -> bool {
        self.known.is_meant_by(selector, &self.record.id)
    }

    fn view(&self, bundles: &BTreeMap<Digest, BundleRef>) -> DeviceView {
        DeviceView {
            id: self.record.id.clone(),
            labels: self.record.labels.clone(),
            enrolled_at_ms: self.record.enrolled_at_ms,
            online: self.online,
            last_seen_ms: self.last_seen_ms,
            desired: self.record.desired.as_ref().map(|desired| DesiredView {
                manifest: desired.manifest,
                bundle: desired.manifest.and_then(|manifest| bundles.get(&manifest).cloned()),
                generation: desired.generation,
                rollout: desired.rollout.clone(),
                stage: desired.stage.clone(),
                activation: desired.activation,
            }),
            reported: self.known.reported.clone(),
            revoked: self.record.revocation.clone(),
            quarantined: self.record.updates.quarantine().cloned(),
            pinned: self.record.pin.clone(),
        }
    }
}

/// How many devices there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FleetCounts {
    /// Enrolled.
    pub(crate) known: usize,
    /// Connected.
    pub(crate) online: usize,
}

impl FleetIndex {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device as operators see it.
    pub(crate) fn view(&self, device: &DeviceId) -> Option<DeviceView> {
        let inner = self.read();
        inner.devices.get(device).map(|entry| entry.view(&inner.bundles))
    }

    /// Up to `limit` selected devices after `after`, in order of their names.
    pub(crate) fn views(&self, selector: &Selector, after: Option<&DeviceId>, limit: usize) -> Vec<DeviceView> {
        let inner = self.read();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        inner
            .devices
            .range::<DeviceId, _>((from, Bound::Unbounded))
            .filter(|(_, entry)| entry.selected_by(selector))
            .take(limit)
            .map(|(_, entry)| entry.view(&inner.bundles))
            .collect()
    }

    /// The selected devices that take part, in order of their names.
    pub(crate) fn selected(&self, selector: &Selector) -> Vec<DeviceId> {
        let inner = self.read();
        let meant = inner.devices.iter().filter(|(_, entry)| !entry.record.is_revoked() && entry.selected_by(selector));
        meant.map(|(device, _)| device.clone()).collect()
    }

    /// Whether the device is among the selected ones.
    pub(crate) fn is_selected(&self, device: &DeviceId, selector: &Selector) -> bool {
        self.read().devices.get(device).is_some_and(|entry| entry.selected_by(selector))
    }

    /// What the device said last of its collections; none where it has not reported.
    pub(crate) fn samples_of(&self, device: &DeviceId) -> Option<SamplesReport> {
        self.read().devices.get(device)?.report().map(|report| report.samples.clone())
    }

    /// Takes over a record that has been stored under `version`: of a new device, or a changed one. What is older than
    /// what is known is left aside, in whatever order two changes come here.
    pub(crate) fn update_record(&self, record: &DeviceRecord, version: u64) {
        let mut inner = self.write();
        match inner.devices.get_mut(&record.id) {
            Some(entry) if entry.version >= version => {}
            Some(entry) => {
                entry.take_record(record.clone(), version);
            }
            None => {
                inner.devices.insert(record.id.clone(), Entry::new(record.clone(), version));
            }
        }
    }

    /// Remembers what a manifest is called.
    pub(crate) fn update_bundle(&self, manifest: Digest, bundle: &BundleRef) {
        self.write().bundles.insert(manifest, bundle.clone());
    }

    /// How many devices there are.
    pub(crate) fn counts(&self) -> FleetCounts {
        let inner = self.read();
        FleetCounts { known: inner.devices.len(), online: inner.devices.values().filter(|entry| entry.online).count() }
    }

    /// Every certificate that is refused and may not have ended: all of the devices that are shut out, and of the others those that
    /// were superseded.
    pub(crate) fn revoked_certificates(&self) -> Vec<RevokedCertificate> {
        let inner = self.read();
        let refused = |record: &DeviceRecord| -> Vec<RevokedCertificate> {
            let superseded = record.superseded.iter().map(|SupersededCertificate { serial, since_ms, .. }| {
                RevokedCertificate { serial: serial.clone(), since_ms: *since_ms }
            });
            let shut_out = record.revocation.iter().flat_map(|revocation| {
                record
                    .serials()
                    .map(|serial| RevokedCertificate { serial: serial.to_owned(), since_ms: revocation.since_ms })
            });
            superseded.chain(shut_out).collect()
        };
        inner.devices.values().flat_map(|entry| refused(&entry.record)).collect()
    }

    /// Whether the device is enrolled and not revoked.
    pub(crate) fn is_member(&self, device: &DeviceId) -> bool {
        self.read().devices.get(device).is_some_and(|entry| !entry.record.is_revoked())
    }

    /// Whether the device is connected.
    pub(crate) fn is_online(&self, device: &DeviceId) -> bool {
        self.read().devices.get(device).is_some_and(|entry| entry.online)
    }

    /// What the device shall run.
    pub(crate) fn desired(&self, device: &DeviceId) -> Option<Desired> {
        self.read().devices.get(device).and_then(|entry| entry.record.desired.clone())
    }

    /// Whether the last that `rollout`, or any other, has told the device is to run `manifest` under `generation`.
    pub(crate) fn is_assigned(
        &self,
        device: &DeviceId,
        manifest: Option<Digest>,
        generation: u64,
        rollout: &RolloutId,
    ) -> bool {
        let inner = self.read();
        let desired = inner.devices.get(device).and_then(|entry| entry.record.desired.as_ref());
        desired.is_some_and(|desired| {
            (desired.manifest, desired.generation, &desired.rollout) == (manifest, generation, rollout)
        })
    }

    /// Whether the device was told to run the bundle with this manifest, as far as that is remembered.
    pub(crate) fn was_assigned(&self, device: &DeviceId, manifest: &Digest) -> bool {
        self.read().devices.get(device).is_some_and(|entry| entry.record.assigned.contains(manifest))
    }

    /// The device's value of a label, else of an attribute.
    pub(crate) fn label(&self, device: &DeviceId, label: &str) -> Option<String> {
        let inner = self.read();
        let entry = inner.devices.get(device)?;
        let attribute = || entry.report().and_then(|report| report.attributes.get(label));
        entry.record.labels.get(label).or_else(attribute).cloned()
    }

    /// The manifest that the device ran under `generation`, as far as its reports tell.
    pub(crate) fn manifest_of(&self, device: &DeviceId, generation: u64) -> Option<Digest> {
        let inner = self.read();
        let entry = inner.devices.get(device)?;
        let report = entry.report();
        let installed = report.into_iter().flat_map(|r| [&r.running, &r.committed]).flatten();
        let update = report.map(|r| &r.update).filter(|u| u.generation == generation).and_then(|u| u.manifest);
        let desired = entry.record.desired.as_ref().filter(|d| d.generation == generation).and_then(|d| d.manifest);
        installed.into_iter().find(|i| i.generation == generation).map(|i| i.manifest).or(update).or(desired)
    }

    /// Notes whether the device is connected, and that it was heard. True when that is new. Unknown devices are left
    /// alone.
    pub(crate) fn set_online(&self, device: &DeviceId, online: bool, now_ms: u64) -> bool {
        let mut inner = self.write();
        let Some(entry) = inner.devices.get_mut(device) else { return false };
        if online {
            entry.last_seen_ms = Some(now_ms);
        }
        std::mem::replace(&mut entry.online, online) != online
    }

    /// Takes over a report that has been stored.
    pub(crate) fn update_report(&self, device: &DeviceId, report: StateReport) {
        if let Some(entry) = self.write().devices.get_mut(device) {
            entry.take_report(report);
        }
    }

    /// Takes over an observation that has been stored.
    pub(crate) fn observe(&self, device: &DeviceId, observation: Observation) {
        if let Some(entry) = self.write().devices.get_mut(device) {
            entry.evidence.add(observation);
        }
    }

    /// Forgets what no rollout asks for. `cuts`: the moments since which rollouts want evidence.
    pub(crate) fn compact(&self, mut cuts: Vec<u64>, now_ms: u64) {
        cuts.sort_unstable();
        cuts.dedup();
        let settled_ms = now_ms.saturating_sub(FRESH_MS);
        for entry in self.write().devices.values_mut() {
            entry.evidence.compact(&cuts, settled_ms);
        }
    }

    /// The devices that are meant, by their names.
    fn those(&self, is_meant: impl Fn(&Entry) -> bool) -> Vec<DeviceId> {
        let inner = self.read();
        inner.devices.iter().filter(|(_, entry)| is_meant(entry)).map(|(device, _)| device.clone()).collect()
    }

    /// Whether the device has not accepted what it shall run.
    pub(crate) fn is_behind(&self, device: &DeviceId) -> bool {
        self.read().devices.get(device).is_some_and(Entry::is_behind)
    }

    /// Connected devices that have not accepted what they shall run.
    pub(crate) fn behind(&self) -> Vec<DeviceId> {
        self.those(|entry| entry.online && entry.is_behind())
    }

    /// Whether the device's last update is the one `desired` says. It may be behind all the same: when those who assigned it are trusted
    /// no more, devices want it said again by those who are.
    pub(crate) fn has_taken_up(&self, device: &DeviceId, desired: &Desired) -> bool {
        let inner = self.read();
        let report = inner.devices.get(device).and_then(Entry::report);
        report.is_some_and(|r| (r.update.generation, r.update.manifest) == (desired.generation, desired.manifest))
    }

    /// Connected devices that have accepted what they shall run.
    pub(crate) fn converged(&self) -> Vec<DeviceId> {
        self.those(|entry| {
            entry.online && !entry.record.is_revoked() && entry.record.desired.is_some() && !entry.is_behind()
        })
    }

    /// Which authorities there were when the device was given the certificate it uses.
    pub(crate) fn authorities_of(&self, device: &DeviceId) -> Option<AuthoritiesVersion> {
        self.read().devices.get(device).map(|entry| entry.record.authorities)
    }

    /// Connected devices that were given their certificates before `version`.
    pub(crate) fn online_with_authorities_before(&self, version: AuthoritiesVersion) -> Vec<DeviceId> {
        self.those(|entry| entry.online && entry.record.authorities < version)
    }

    /// Devices that use a certificate of an authority before `generation`, revoked ones left out.
    pub(crate) fn certified_before(&self, generation: u64) -> Vec<DeviceId> {
        self.those(|entry| !entry.record.is_revoked() && entry.record.authorities.generation() < generation)
    }

    /// How many devices use certificates of each authority, by its generation, revoked ones left out.
    pub(crate) fn certified_by(&self) -> BTreeMap<u64, usize> {
        let mut counts = BTreeMap::new();
        for entry in self.read().devices.values().filter(|entry| !entry.record.is_revoked()) {
            *counts.entry(entry.record.authorities.generation()).or_default() += 1;
        }
        counts
    }

    /// Connected devices that say they trust a root document before `version`.
    pub(crate) fn online_with_root_before(&self, version: u64) -> Vec<DeviceId> {
        self.those(|entry| {
            entry.online && entry.report().is_some_and(|report| (1..version).contains(&report.root_version))
        })
    }

    /// Connected devices.
    pub(crate) fn online(&self) -> Vec<DeviceId> {
        self.those(|entry| entry.online)
    }
}

#[cfg(test)]
mod tests;
