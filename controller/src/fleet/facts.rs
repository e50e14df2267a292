//! What rollouts are shown of the fleet. What does not depend on the rollout is made when a device changes, and shared by all that look.

use muster_rollout::{DeviceFacts, Evidence, Fleet, KnownFacts, Rollout, Shared};
use muster_shared::ids::{DeviceId, RolloutId};
use muster_shared::messages::{StateReport, TrackReport};
use muster_shared::trust::Track;

use super::{Entry, FleetIndex, aside};
use crate::store::records::DeviceRecord;

/// What every rollout sees alike of a device with this record and this last report.
pub(super) fn known(record: &DeviceRecord, reported: Option<StateReport>) -> KnownFacts {
    KnownFacts {
        labels: record.labels.clone(),
        attributes: reported.as_ref().map(|report| report.attributes.clone()).unwrap_or_default(),
        revoked: record.is_revoked(),
        pinned: record.pin.as_ref().map(aside::pinned),
        quarantined: record.updates.quarantine().map(aside::quarantined),
        updates: record.updates.clone(),
        desired: desired(record, Track::Model),
        reported,
    }
}

fn desired(record: &DeviceRecord, track: Track) -> Option<muster_rollout::Desired> {
    record.desired(track).map(|desired| muster_rollout::Desired {
        manifest: desired.manifest,
        generation: desired.generation,
        rollout: desired.rollout.clone(),
    })
}

/// The same where a rollout is about programs: what the store and the device say of its program stands where what they say of its model stood.
fn of_program(known: &KnownFacts, record: &DeviceRecord) -> KnownFacts {
    let reported = known.reported.clone().map(|report| {
        let program = report.program.clone().unwrap_or_default();
        let TrackReport { generation, update, running, committed, security_floor, .. } = program;
        StateReport { generation, update, running, committed, security_floor, ..report }
    });
    KnownFacts { desired: desired(record, Track::Program), reported, ..known.clone() }
}

impl Entry {
    pub(super) fn take_record(&mut self, record: DeviceRecord, version: u64) {
        let reported = self.known.reported.take();
        self.known = known(&record, reported).into();
        (self.record, self.version) = (record, version);
        self.program.take();
    }

    pub(super) fn take_report(&mut self, report: StateReport) {
        self.known.attributes = report.attributes.clone();
        self.known.reported = Some(report);
        self.program.take();
    }

    /// What every rollout about `track` sees alike.
    fn known(&self, track: Track) -> Shared<KnownFacts> {
        match track {
            Track::Model => self.known.clone(),
            Track::Program => self.program.get_or_init(|| of_program(&self.known, &self.record).into()).clone(),
        }
    }
}

impl FleetIndex {
    /// The fleet as `rollout` must see it: the devices it means or has reached, with the evidence it may use.
    /// `held_by` names the other rollout of a device that has one; devices not heard since `heard_since_ms` count
    /// as away, unless they said that they wait.
    pub(crate) fn facts(
        &self,
        rollout: &Rollout,
        held_by: impl Fn(&DeviceId) -> Option<RolloutId>,
        heard_since_ms: u64,
    ) -> Fleet {
        let inner = self.read();
        let (track, since_ms) = (rollout.track(), rollout.evidence_since_ms());
        let (scored_since_ms, scored) = (rollout.scored_since_ms(), rollout.scored_devices());
        let nothing: Shared<Vec<Evidence>> = Shared::default();
        // Both in the order of names: to look each up would take a walk down a tree for each device of the fleet.
        let mut members = rollout.targets.keys().peekable();
        let devices = inner.devices.iter().filter_map(|(device, entry)| {
            while members.next_if(|member| *member < device).is_some() {}
            let takes_part = members.peek() == Some(&device);
            if !takes_part && !entry.selected_by(&rollout.spec.selector) {
                return None;
            }
            let held_by = held_by(device);
            let is_anothers = held_by.is_some() && !takes_part;
            let is_scored = |_: &u64| scored.contains(device);
            let facts = DeviceFacts {
                known: entry.known(track),
                online: entry.is_there(heard_since_ms),
                last_seen_ms: entry.last_seen_ms,
                held_by,
                evidence: if is_anothers { nothing.clone() } else { entry.evidence.since(track, since_ms) },
                soak: scored_since_ms
                    .filter(is_scored)
                    .map_or_else(|| nothing.clone(), |ms| entry.evidence.since(track, ms)),
            };
            Some((device.clone(), facts))
        });
        Fleet { devices: devices.collect(), ..Fleet::default() }
    }
}
