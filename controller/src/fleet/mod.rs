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
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use muster_rollout::{KnownFacts, Shared};
use muster_shared::api::{DesiredView, DeviceView};
use muster_shared::collection::SamplesReport;
use muster_shared::ids::{BundleRef, DeviceId, Digest, RolloutId};
use muster_shared::messages::{ProgramKey, StateReport};
use muster_shared::selector::Selector;
use muster_shared::trust::Track;

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
    /// The same of its program, made when a rollout of programs looks at it first.
    program: OnceLock<Shared<KnownFacts>>,
    online: bool,
    last_seen_ms: Option<u64>,
    evidence: EvidenceLog,
}

impl Entry {
    fn new(record: DeviceRecord, version: u64) -> Self {
        let known = facts::known(&record, None).into();
        let (program, evidence) = (OnceLock::new(), EvidenceLog::default());
        Self { record, version, known, program, online: false, last_seen_ms: None, evidence }
    }

    fn report(&self) -> Option<&StateReport> {
        self.known.reported.as_ref()
    }

    /// The generation of `track` that the device says it has accepted; 0 for none.
    fn accepted(&self, track: Track) -> u64 {
        let Some(report) = self.report().filter(|report| !report.awaits_director) else { return 0 };
        match track {
            Track::Model => report.generation,
            Track::Program => report.program.as_ref().map_or(0, |program| program.generation),
        }
    }

    /// Whether it has yet to accept what it shall run on `track`. One whose agent cannot exchange its program, as after an earlier package was
    /// installed, does not hear of one: it would not understand it.
    fn is_behind(&self, track: Track) -> bool {
        let desired = self.record.desired(track).filter(|_| self.understands(track));
        !self.record.is_revoked() && desired.is_some_and(|desired| desired.generation > self.accepted(track))
    }

    /// Whether the device can be told of `track`.
    fn understands(&self, track: Track) -> bool {
        track.is_model() || self.report().is_some_and(|report| report.program.is_some())
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
        let desired = |track| {
            self.record.desired(track).map(|desired| DesiredView {
                manifest: desired.manifest,
                bundle: desired.manifest.and_then(|manifest| bundles.get(&manifest).cloned()),
                generation: desired.generation,
                rollout: desired.rollout.clone(),
                stage: desired.stage.clone(),
                activation: desired.activation,
            })
        };
        DeviceView {
            id: self.record.id.clone(),
            labels: self.record.labels.clone(),
            enrolled_at_ms: self.record.enrolled_at_ms,
            online: self.online,
            last_seen_ms: self.last_seen_ms,
            desired: desired(Track::Model),
            desired_program: desired(Track::Program),
            reported: self.known.reported.clone(),
            protocol: self.known.protocol(),
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

    /// What the device shall run on `track`.
    pub(crate) fn desired(&self, device: &DeviceId, track: Track) -> Option<Desired> {
        self.read().devices.get(device).and_then(|entry| entry.record.desired(track).cloned())
    }

    /// Whether the device is to run the bundle with this manifest, on whichever track.
    pub(crate) fn is_to_run(&self, device: &DeviceId, manifest: &Digest) -> bool {
        let inner = self.read();
        let Some(entry) = inner.devices.get(device) else { return false };
        let desired = Track::ALL.into_iter().filter_map(|track| entry.record.desired(track));
        desired.filter_map(|desired| desired.manifest.as_ref()).any(|wanted| wanted == manifest)
    }

    /// Whether the last that `rollout`, or any other, has told the device of `track` is to run `manifest` under `generation`.
    pub(crate) fn is_assigned(
        &self,
        device: &DeviceId,
        track: Track,
        (manifest, generation): (Option<Digest>, u64),
        rollout: &RolloutId,
    ) -> bool {
        let inner = self.read();
        let desired = inner.devices.get(device).and_then(|entry| entry.record.desired(track));
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

    /// The program that the device said last it runs; none for the one that the package installed.
    pub(crate) fn program_of(&self, device: &DeviceId) -> Option<ProgramKey> {
        let inner = self.read();
        let running = inner.devices.get(device)?.report()?.program.as_ref()?.running.as_ref()?;
        Some(ProgramKey { manifest: running.manifest, generation: running.generation })
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

    /// Whether the device has not accepted what it shall run on `track`.
    pub(crate) fn is_behind(&self, device: &DeviceId, track: Track) -> bool {
        self.read().devices.get(device).is_some_and(|entry| entry.is_behind(track))
    }

    /// Whether the device can be told of `track`, as far as it has said.
    pub(crate) fn understands(&self, device: &DeviceId, track: Track) -> bool {
        self.read().devices.get(device).is_some_and(|entry| entry.understands(track))
    }

    /// What the device understands of the wire contract, as far as it has said.
    pub(crate) fn protocol(&self, device: &DeviceId) -> u32 {
        self.read().devices.get(device).map_or(0, |entry| entry.known.protocol())
    }

    /// What connected devices shall run, track by track, where `is_meant`.
    fn told(&self, is_meant: impl Fn(&Entry, Track) -> bool) -> Vec<(DeviceId, Desired)> {
        let inner = self.read();
        let online = inner.devices.iter().filter(|(_, entry)| entry.online && !entry.record.is_revoked());
        let each = online.flat_map(|(device, entry)| Track::ALL.into_iter().map(move |track| (device, entry, track)));
        let meant = each.filter(|(_, entry, track)| is_meant(entry, *track));
        meant.filter_map(|(id, entry, track)| Some((id.clone(), entry.record.desired(track)?.clone()))).collect()
    }

    /// What connected devices have not accepted of what they shall run.
    pub(crate) fn behind(&self) -> Vec<(DeviceId, Desired)> {
        self.told(Entry::is_behind)
    }

    /// Whether the device's last update is the one `desired` says. It may be behind all the same: when those who assigned it are trusted
    /// no more, devices want it said again by those who are.
    pub(crate) fn has_taken_up(&self, device: &DeviceId, desired: &Desired) -> bool {
        let inner = self.read();
        let report = inner.devices.get(device).and_then(Entry::report);
        let update = report.and_then(|report| match desired.track {
            Track::Model => Some(&report.update),
            Track::Program => report.program.as_ref().map(|program| &program.update),
        });
        update.is_some_and(|update| (update.generation, update.manifest) == (desired.generation, desired.manifest))
    }

    /// What connected devices have accepted of what they shall run.
    pub(crate) fn converged(&self) -> Vec<(DeviceId, Desired)> {
        self.told(|entry, track| entry.understands(track) && !entry.is_behind(track))
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
