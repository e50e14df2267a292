//! Assignments as they come in: signatures, device and dates first, then the machine decides.

use std::collections::BTreeMap;

use muster_agent_core::admit::{DeviceFacts, Offer, OfferedManifest};
use muster_agent_core::update::Event;
use muster_shared::ids::Digest;
use muster_shared::messages::{AssignmentDelivery, DeviceEventKind};
use muster_shared::trust::{Assignment, Envelope, Track};

use super::Updater;
use crate::causes::with_source;
use crate::{attributes, resources};

impl Updater {
    pub(super) fn assignment(&mut self, payload: &[u8]) {
        let delivery: AssignmentDelivery = match serde_json::from_slice(payload) {
            Ok(delivery) => delivery,
            Err(error) => return self.refuse(0, None, &format!("an assignment does not parse: {error}")),
        };
        if !self.check_root_date() {
            return;
        }
        let now_ms = self.parts.trust.now_ms();
        let root = self.parts.trust.root();
        let assignment = match root.verify_assignment(&delivery.assignment, &self.parts.device, now_ms) {
            Ok(assignment) => assignment,
            Err(error) => return self.refuse(0, None, &format!("an assignment is not trusted: {error}")),
        };
        if assignment.track == Track::Program {
            return self.program_assignment(assignment, delivery.manifest);
        }
        // Its date is the machine's matter: a genuine bundle that is out of date is a failed update, not a forgery.
        let verified = delivery.manifest.as_ref().map(|envelope| root.verify_undated_manifest(envelope, Track::Model));
        let verified = match verified.transpose() {
            Ok(verified) => verified,
            Err(error) => {
                let reason = format!("the manifest of an assignment is not trusted: {error}");
                return self.refuse(assignment.generation, None, &reason);
            }
        };
        let made_at_ms = verified.as_ref().map_or(0, |v| v.manifest.created_at_ms).max(assignment.issued_at_ms);
        if let Err(error) = self.parts.trust.learn_time(made_at_ms) {
            tracing::error!(error = %with_source(&error), "the time floor could not be raised");
        }
        let offer = Offer {
            assignment,
            manifest: verified.as_ref().map(OfferedManifest::from),
            director_epoch: self.parts.trust.root().director_epoch(),
            device: self.device_facts(now_ms),
        };
        let assignment = offer.assignment.clone();
        self.offered = verified.map(|v| v.digest).zip(delivery.manifest);
        passing!(AssignmentVerified);
        self.dispatch(Event::Offered(Box::new(offer)));
        let offered = self.offered.take();
        let record = self.machine.record();
        let holds = record
            .update
            .as_ref()
            .is_some_and(|u| (u.generation, u.manifest) == (assignment.generation, assignment.manifest));
        if holds && offered.as_ref().map(|(digest, _)| *digest) == assignment.manifest {
            self.keep_signatures(offered);
            self.renew(&assignment);
        }
    }

    /// What this device is, at `now_ms` by the time documents are held against.
    pub(super) fn device_facts(&self, now_ms: u64) -> DeviceFacts {
        let system = &self.parts.system;
        DeviceFacts {
            arch: attributes::arch().to_owned(),
            memory_bytes: resources::memory_bytes(system),
            memory_allowed_bytes: resources::memory_allowed_bytes(system),
            memory_available_bytes: resources::memory_available_bytes(system),
            cpu_features: attributes::cpu_features(system),
            attributes: self.attributes(),
            agent_version: attributes::AGENT_VERSION.parse().unwrap_or_else(|_| semver::Version::new(0, 0, 0)),
            disk_free_bytes: resources::disk_free_bytes(self.data_dir()),
            disk_allowed_bytes: self.parts.disk_allowed_bytes,
            now_ms,
        }
    }

    /// The device's attributes, with the condition it is in.
    pub(super) fn attributes(&self) -> BTreeMap<String, String> {
        let mut attributes = self.parts.attributes.clone();
        attributes.extend(attributes::of_condition(self.parts.host.pressed()));
        attributes
    }

    /// Takes the signatures a known manifest came with, where those it has count no more: keys may have been replaced. Others are not
    /// written down, or whoever repeats messages could wear the disk out.
    fn keep_signatures(&self, offered: Option<(Digest, Envelope)>) {
        let Some((digest, envelope)) = offered else { return };
        let Ok(Some((stored, _))) = self.records.manifest(&digest) else { return };
        if self.parts.trust.root().verify_undated_manifest(&stored, Track::Model).is_ok() {
            return;
        }
        match self.records.store_manifest(&digest, &envelope) {
            Ok(()) => tracing::info!(device = %self.parts.device, manifest = %digest, "a manifest was signed again"),
            Err(error) => {
                tracing::error!(error = %with_source(&error), "a manifest's new signatures could not be stored")
            }
        }
    }

    /// `assignment` is the last one, and holds.
    fn renew(&mut self, assignment: &Assignment) {
        let was_stale = self.parts.trust.stale_since_ms().is_some();
        if let Err(error) = self.parts.trust.learn_assignment(assignment.issued_at_ms, assignment.expires_ms) {
            tracing::error!(error = %with_source(&error), "how long the assignment holds could not be stored");
        }
        if was_stale && self.parts.trust.stale_since_ms().is_none() {
            tracing::info!(device = %self.parts.device, "the assignment is renewed");
            self.report();
        }
    }

    /// Says when the last assignment has ended. Serving goes on.
    pub(super) fn check_assignment_date(&mut self) {
        let Some(since_ms) = self.parts.trust.stale_news() else { return };
        let reason = format!(
            "the assignment ended at {since_ms} ms and was not renewed: the device serves on, and does not know whether it still should"
        );
        tracing::warn!(device = %self.parts.device, %reason, "stale metadata");
        let generation = self.machine.record().generation;
        self.put(DeviceEventKind::StaleMetadata, generation, None, &reason);
        self.report();
    }

    /// Whether the root document is in date; says so when it is not.
    pub(super) fn check_root_date(&mut self) -> bool {
        let Err(error) = self.parts.trust.root().check_date(self.parts.trust.now_ms()) else { return true };
        let reason = format!("no assignment is taken any more: {error}");
        if self.refusals.tell(&reason_without_now(&reason), self.clock.now_ms()) {
            tracing::warn!(device = %self.parts.device, %reason, "stale metadata");
            self.put(DeviceEventKind::StaleMetadata, 0, None, &reason);
        }
        false
    }
}

/// The part of an expiry's text that stays the same from one moment to the next.
fn reason_without_now(reason: &str) -> String {
    reason.split(", it is").next().unwrap_or(reason).to_owned()
}
