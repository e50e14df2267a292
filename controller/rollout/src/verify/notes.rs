//! Rules about what is kept of how updates went.

use std::collections::BTreeSet;

use super::{Case, Violation};
use crate::rollout::Errand;

impl Case<'_> {
    /// A failure that comes up is kept with its device, once; and nothing is kept of what a device was not told.
    pub(super) fn notes(&mut self) {
        let wrong = |device: &_, why| Violation::Noted { device: Clone::clone(device), why };
        let mut noted = BTreeSet::new();
        for (id, note) in &self.decision.notes {
            self.expect(noted.insert(id), || wrong(id, "it is noted twice"));
            let told = [self.before, self.next].into_iter().filter_map(|rollout| rollout.targets.get(id));
            let was_told = told
                .filter(|target| target.errand == Errand::Forward && target.generation == note.generation)
                .any(|target| target.manifest == Some(note.manifest));
            self.expect(was_told, || wrong(id, "it was not told that"));
            let known = self
                .fleet
                .devices
                .get(id)
                .is_none_or(|facts| facts.revoked || facts.updates.knows(note.generation, note.failure.is_some()));
            self.expect(!known, || wrong(id, "that is no news"));
        }
        for (id, old) in &self.before.targets {
            let Some(new) = self.next.targets.get(id) else { continue };
            let Some(facts) = self.fleet.devices.get(id) else { continue };
            let fails_now = old.errand == Errand::Forward && old.failure.is_none() && new.failure.is_some();
            // A device that claims generations of its own has failed on nothing.
            let claims = facts.reported.as_ref().is_some_and(|report| report.generation > old.generation);
            if fails_now && !claims && !facts.updates.knows(old.generation, true) {
                self.expect(noted.contains(id), || wrong(id, "it failed, and nobody keeps that"));
            }
        }
    }
}
