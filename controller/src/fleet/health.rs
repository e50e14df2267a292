//! How single devices are, for alerts.

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::ids::{BundleRef, DeviceId, Digest};
use muster_shared::messages::UpdateState;
use muster_shared::selector::Selector;

use super::{Entry, FleetIndex};

/// A device that is not shut out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DeviceHealth {
    /// Its name.
    pub(crate) id: DeviceId,
    labels: BTreeMap<String, String>,
    attributes: BTreeMap<String, String>,
    /// When it was heard last, or enrolled where it never was, in milliseconds since the Unix epoch; none for one that has said
    /// that it keeps quiet, and is connected.
    pub(crate) heard_ms: Option<u64>,
    /// Its last update did not hold, and why.
    pub(crate) update_failed: Option<String>,
    /// No rollout takes it in, and why.
    pub(crate) quarantined: Option<String>,
    /// Since when its last assignment has been out of date, in milliseconds since the Unix epoch.
    pub(crate) stale_since_ms: Option<u64>,
    /// When its certificate ends, in milliseconds since the Unix epoch; none where that was not kept.
    pub(crate) certificate_ends_ms: Option<u64>,
}

impl DeviceHealth {
    fn of(entry: &Entry) -> Self {
        let report = entry.report();
        let waits = entry.online && report.is_some_and(|report| report.update.held_back.is_some());
        let failed = report.map(|report| &report.update).filter(|update| match update.state {
            UpdateState::Reverted | UpdateState::Failed => true,
            UpdateState::Idle
            | UpdateState::Fetching
            | UpdateState::Verified
            | UpdateState::Trial
            | UpdateState::Beside
            | UpdateState::Committed
            | UpdateState::Other => false,
        });
        Self {
            id: entry.record.id.clone(),
            labels: entry.record.labels.clone(),
            attributes: report.map(|report| report.attributes.clone()).unwrap_or_default(),
            heard_ms: (!waits).then(|| entry.last_seen_ms.unwrap_or(entry.record.enrolled_at_ms)),
            update_failed: failed.map(|update| update.reason.clone().unwrap_or_else(|| "no reason given".into())),
            quarantined: entry.record.updates.quarantine().map(|quarantine| quarantine.why.clone()),
            stale_since_ms: report.and_then(|report| report.stale_since_ms),
            certificate_ends_ms: entry.record.certificate_ends_ms,
        }
    }

    /// Whether the selector means it.
    pub(crate) fn is_selected_by(&self, selector: &Selector) -> bool {
        selector.matches(self.id.as_str(), &self.labels, &self.attributes)
    }

    /// Its value of a label, else of an attribute.
    pub(crate) fn label(&self, label: &str) -> Option<&String> {
        self.labels.get(label).or_else(|| self.attributes.get(label))
    }
}

/// Who runs a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Runners {
    /// Devices that say they do.
    pub(crate) running: u32,
    /// Devices that are to.
    pub(crate) assigned: u32,
    /// When the first of those that do was told to, in milliseconds since the Unix epoch.
    pub(crate) since_ms: Option<u64>,
}

impl FleetIndex {
    /// Who runs the bundle with this manifest, shut out devices left aside.
    pub(crate) fn runners(&self, manifest: &Digest) -> Runners {
        let inner = self.read();
        let mut runners = Runners::default();
        for entry in inner.devices.values().filter(|entry| !entry.record.is_revoked()) {
            let desired = entry.record.desired.as_ref().filter(|desired| desired.manifest == Some(*manifest));
            let running = entry.report().and_then(|report| report.running.as_ref());
            runners.assigned += u32::from(desired.is_some());
            if running.is_some_and(|installed| installed.manifest == *manifest) {
                runners.running += 1;
                runners.since_ms = runners.since_ms.into_iter().chain(desired.map(|desired| desired.since_ms)).min();
            }
        }
        runners
    }

    /// How every device is that is not shut out.
    pub(crate) fn health(&self) -> BTreeMap<DeviceId, DeviceHealth> {
        let inner = self.read();
        let members = inner.devices.iter().filter(|(_, entry)| !entry.record.is_revoked());
        members.map(|(device, entry)| (device.clone(), DeviceHealth::of(entry))).collect()
    }

    /// The bundles that devices say they run, shut out ones left aside.
    pub(crate) fn bundles_running(&self) -> BTreeSet<BundleRef> {
        let inner = self.read();
        let running = inner.devices.values().filter(|entry| !entry.record.is_revoked());
        let manifests: BTreeSet<Digest> = running
            .filter_map(|entry| entry.report().and_then(|report| report.running.as_ref()))
            .map(|installed| installed.manifest)
            .collect();
        manifests.iter().filter_map(|manifest| inner.bundles.get(manifest).cloned()).collect()
    }

    /// What the bundle with this manifest is called.
    pub(crate) fn bundle_of(&self, manifest: &Digest) -> Option<BundleRef> {
        self.read().bundles.get(manifest).cloned()
    }
}
