//! What the controllers share: records that change by compare-and-swap, and what was heard from devices.

use std::collections::BTreeMap;

use muster_rollout::{Desired, DeviceFacts, Evidence, Fleet, KnownFacts, QueuedRollout, Rollout, UpdateLog};
use muster_shared::ids::{DeviceId, Digest, RolloutId};
use muster_shared::messages::StateReport;
use muster_shared::protocol::number_of;
use muster_shared::rollout::Freeze;
use muster_shared::trust::{Activation, Assignment, DeliveryPolicy, Stage, WatchPolicy};

/// A device numbers its windows; a window that comes twice counts once.
pub(crate) type WindowKey = u64;

/// After this without a word a device counts as away, in milliseconds.
const DEVICE_TIMEOUT_MS: u64 = 5_000;

/// A record and how often it was changed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored<T> {
    pub(crate) version: u64,
    pub(crate) value: T,
}

/// What a device shall run, as the store has it and as messages bring it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Told {
    pub(crate) manifest: Option<Digest>,
    pub(crate) generation: u64,
    pub(crate) rollout: RolloutId,
    pub(crate) watch: WatchPolicy,
    pub(crate) delivery: DeliveryPolicy,
    pub(crate) stage: Stage,
    pub(crate) activation: Activation,
}

impl Told {
    /// What says so to `device`.
    pub(crate) fn assignment(&self, device: &DeviceId, now_ms: u64) -> Assignment {
        Assignment {
            device: device.clone(),
            rollout: self.rollout.clone(),
            manifest: self.manifest,
            generation: self.generation,
            issued_at_ms: now_ms,
            expires_ms: u64::MAX,
            watch: self.watch,
            delivery: self.delivery,
            stage: self.stage.clone(),
            activation: self.activation,
            track: Default::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct DeviceRecord {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) revoked: bool,
    pub(crate) pinned: bool,
    pub(crate) updates: UpdateLog,
    pub(crate) desired: Option<Told>,
}

/// A window as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    /// By the controller's clock, in milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
    /// By the number of the event that brought it, which no clock disturbs.
    pub(crate) event: u64,
    pub(crate) evidence: Evidence,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    pub(crate) online: bool,
    pub(crate) last_seen_ms: Option<u64>,
    pub(crate) report: Option<StateReport>,
    pub(crate) windows: BTreeMap<WindowKey, Received>,
}

/// Changes that are made together or not at all, each with the version it was made from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Commit {
    pub(crate) rollouts: Vec<Stored<Rollout>>,
    pub(crate) devices: Vec<(DeviceId, Stored<DeviceRecord>)>,
    /// How many freezes there were when it was planned, where it takes devices in.
    pub(crate) freezes: Option<usize>,
}

/// Somebody changed a record meanwhile.
#[derive(Debug)]
pub(crate) struct Conflict;

#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    pub(crate) rollouts: BTreeMap<RolloutId, Stored<Rollout>>,
    pub(crate) devices: BTreeMap<DeviceId, Stored<DeviceRecord>>,
    pub(crate) heard: BTreeMap<DeviceId, Heard>,
    /// Every freeze that was ordered.
    pub(crate) freezes: Vec<Freeze>,
}

impl Store {
    /// The protocol number of the device, as it said last.
    pub(crate) fn protocol(&self, device: &DeviceId) -> u32 {
        self.heard.get(device).and_then(|heard| heard.report.as_ref()).map_or(0, number_of)
    }

    pub(crate) fn commit(&mut self, commit: Commit) -> Result<(), Conflict> {
        let known = |id: &RolloutId| self.rollouts.get(id).map_or(0, |rollout| rollout.version);
        let known_device = |id: &DeviceId| self.devices.get(id).map_or(0, |device| device.version);
        let current = commit.rollouts.iter().all(|change| known(&change.value.id) == change.version)
            && commit.devices.iter().all(|(id, change)| known_device(id) == change.version);
        let heeds = commit.freezes.is_none_or(|known| known == self.freezes.len());
        if !current || !heeds {
            return Err(Conflict);
        }
        for Stored { version, value } in commit.rollouts {
            self.rollouts.insert(value.id.clone(), Stored { version: version + 1, value });
        }
        for (id, Stored { version, value }) in commit.devices {
            self.devices.insert(id, Stored { version: version + 1, value });
        }
        Ok(())
    }

    /// The other rollouts that wait in the queue.
    fn queue(&self, rollout: &Rollout) -> Vec<QueuedRollout> {
        let others = self.rollouts.values().filter(|other| other.value.id != rollout.id);
        others.filter_map(|other| other.value.queued()).collect()
    }

    /// The fleet as `rollout` sees it at `now_ms`: the devices it means or has reached.
    pub(crate) fn fleet(&self, rollout: &Rollout, held_by: &BTreeMap<DeviceId, RolloutId>, now_ms: u64) -> Fleet {
        let since_ms = rollout.evidence_since_ms();
        let mut devices = BTreeMap::new();
        for (id, record) in &self.devices {
            let heard = self.heard.get(id);
            let report = heard.and_then(|heard| heard.report.clone());
            let attributes = report.as_ref().map(|report| report.attributes.clone()).unwrap_or_default();
            let record = &record.value;
            if !rollout.takes_part(id) && !rollout.spec.selector.matches(id.as_str(), &record.labels, &attributes) {
                continue;
            }
            let last_seen_ms = heard.and_then(|heard| heard.last_seen_ms);
            let is_recent = last_seen_ms.is_some_and(|seen_ms| seen_ms >= now_ms.saturating_sub(DEVICE_TIMEOUT_MS));
            let known = KnownFacts {
                labels: record.labels.clone(),
                attributes,
                revoked: record.revoked,
                pinned: record.pinned.then(|| "pinned by alice".to_owned()),
                quarantined: record.updates.quarantine().map(|quarantine| format!("quarantined {}", quarantine.why)),
                updates: record.updates.clone(),
                desired: record.desired.as_ref().map(|told| Desired {
                    manifest: told.manifest,
                    generation: told.generation,
                    rollout: told.rollout.clone(),
                }),
                reported: report,
            };
            let soak = heard.zip(rollout.scored_since_ms()).map_or_else(Vec::new, |(heard, at_ms)| sums(heard, at_ms));
            let facts = DeviceFacts {
                known: known.into(),
                online: heard.is_some_and(|heard| heard.online) && is_recent,
                last_seen_ms,
                held_by: held_by.get(id).cloned(),
                evidence: heard.map_or_else(Vec::new, |heard| sums(heard, since_ms)).into(),
                soak: soak.into(),
            };
            devices.insert(id.clone(), facts);
        }
        Fleet { devices, queue: self.queue(rollout), freezes: self.freezes.clone() }
    }

    /// Whether the device can be reached and has not accepted what it shall run.
    pub(crate) fn is_behind(&self, id: &DeviceId) -> bool {
        let (Some(record), Some(heard)) = (self.devices.get(id), self.heard.get(id)) else { return false };
        let accepted = heard.report.as_ref().map_or(0, |report| report.generation);
        let desired = record.value.desired.as_ref();
        heard.online && !record.value.revoked && desired.is_some_and(|desired| desired.generation > accepted)
    }
}

/// Everything received at or after `since_ms`, added up by bundle and generation.
fn sums(heard: &Heard, since_ms: u64) -> Vec<Evidence> {
    let mut sums: Vec<Evidence> = Vec::new();
    for Received { evidence, .. } in heard.windows.values().filter(|received| received.at_ms >= since_ms) {
        let key = (evidence.manifest, evidence.generation);
        match sums.iter_mut().find(|sum| (sum.manifest, sum.generation) == key) {
            None => sums.push(evidence.clone()),
            Some(sum) => {
                sum.reports += evidence.reports;
                sum.crashes += evidence.crashes;
                sum.requests.merge(&evidence.requests);
                sum.latency_us.merge(&evidence.latency_us);
                sum.beside.merge(&evidence.beside);
            }
        }
    }
    sums
}
