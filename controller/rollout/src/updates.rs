//! How updates went on each device, and when it is quarantined for that.
//!
//! A plan notes of every device that it told to run a bundle whether that went well, once a generation; the log is the device's and
//! outlives its rollouts. A device on which updates fail again and again is left aside until an operator releases it: it would be told,
//! fail and go back with every rollout there is. Ways back and emergencies reach it all the same.

use muster_shared::ids::{BundleRef, DeviceId, Digest};
use muster_shared::limits::bounded_text;
use muster_shared::rollout::Quarantine;
use serde::{Deserialize, Serialize};

use crate::fleet::Fleet;
use crate::rollout::{Errand, GAVE_UP_ASTRAY, Rollout, Target};
use crate::standing::{Standing, is_taken, standing};
use crate::walk::side_by_side;
use crate::wording::counted;

/// Bundles whose failures are remembered of a device; the oldest go first.
const MAX_REMEMBERED: usize = 8;

/// Failures of one bundle after which a device is quarantined.
const SAME_BUNDLE: u32 = 2;

/// How one update went on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The generation of the update.
    pub generation: u64,
    /// Digest of the bundle's manifest.
    pub manifest: Digest,
    /// Its name and version.
    pub bundle: BundleRef,
    /// Why it failed; none where it went well.
    pub failure: Option<String>,
}

/// What is remembered of the updates of one device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateLog {
    /// Failures since the last update that went well.
    in_a_row: u32,
    /// Failures of each bundle, the one that failed last at the end; at most [`MAX_REMEMBERED`].
    failed: Vec<(Digest, u32)>,
    /// The generation that was noted last, and whether it failed.
    noted: (u64, bool),
    /// Set while it is quarantined.
    quarantine: Option<Quarantine>,
}

impl UpdateLog {
    /// Whether nothing was ever noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The quarantine, while it stands.
    #[must_use]
    pub fn quarantine(&self) -> Option<&Quarantine> {
        self.quarantine.as_ref()
    }

    /// Whether an update under `generation` that failed, or did not, is no news: it is known, or a later one is. What had gone well may
    /// fail yet, and what failed stays so.
    #[must_use]
    pub fn knows(&self, generation: u64, has_failed: bool) -> bool {
        self.noted.0 > generation || (self.noted.0 == generation && (self.noted.1 || !has_failed))
    }

    /// The log with `note`. After `most` failures in a row, or two of the same bundle, the device is quarantined.
    #[must_use]
    pub fn with(&self, note: &Note, most: u32, now_ms: u64) -> Self {
        let mut next = self.clone();
        if self.knows(note.generation, note.failure.is_some()) {
            return next;
        }
        next.noted = (note.generation, note.failure.is_some());
        let before = self.failed.iter().find(|(manifest, _)| *manifest == note.manifest).map_or(0, |(_, times)| *times);
        next.failed.retain(|(manifest, _)| *manifest != note.manifest);
        let Some(failure) = &note.failure else {
            next.in_a_row = 0;
            return next;
        };
        let times = before.saturating_add(1);
        next.in_a_row = self.in_a_row.saturating_add(1);
        next.failed.push((note.manifest, times));
        let surplus = next.failed.len().saturating_sub(MAX_REMEMBERED);
        next.failed.drain(..surplus);
        let after = if next.in_a_row >= most {
            counted(u64::from(next.in_a_row), "failed update")
        } else if times >= SAME_BUNDLE {
            format!("{} of the same bundle", counted(u64::from(times), "failed update"))
        } else {
            return next;
        };
        let why = format!("after {after}, the last: {} {failure}", note.bundle);
        next.quarantine.get_or_insert_with(|| Quarantine { since_ms: now_ms, why: bounded_text(&why) });
        next
    }

    /// The log of a device that an operator released: what failed before counts no more.
    #[must_use]
    pub fn released(&self) -> Self {
        Self { noted: self.noted, ..Self::default() }
    }
}

/// What is to be noted of the devices of `before`, which becomes `next`.
pub(crate) fn notes(before: &Rollout, next: &Rollout, fleet: &Fleet) -> Vec<(DeviceId, Note)> {
    let mut notes = Vec::new();
    for (id, target, facts) in side_by_side(&next.targets, &fleet.devices) {
        let Some(facts) = facts.filter(|facts| !facts.revoked) else { continue };
        // Who turns back in this very plan failed under the generation it had before.
        let told = if target.errand == Errand::Forward { Some(target) } else { before.targets.get(id) };
        let Some(told) = told.filter(|told| told.errand == Errand::Forward) else { continue };
        let is_known = facts.updates.knows(told.generation, target.failure.is_some());
        let says_nothing = target.failure.is_none() && target.done_at_ms.is_none() && !next.status.is_terminal();
        if is_known || says_nothing || is_taken(&next.id, told, facts) {
            continue;
        }
        let failure = match (&target.failure, next.status.is_terminal()) {
            (Some(failure), _) => Some(failure.clone()).filter(|failure| failure != GAVE_UP_ASTRAY),
            // A finished rollout changes no more, and still brings its bundle to devices that return.
            (None, true) => match standing(told, facts) {
                Standing::Failed(failure) => Some(failure),
                Standing::Unheard | Standing::Working | Standing::Trial | Standing::Done | Standing::Astray => None,
            },
            (None, false) => None,
        };
        let well = |target: &Target| target.done_at_ms.is_some() || standing(told, facts) == Standing::Done;
        if failure.is_none() && (target.failure.is_some() || !well(target)) {
            continue;
        }
        let (generation, manifest, bundle) = (told.generation, next.bundle.manifest, next.bundle.bundle.clone());
        notes.push((id.clone(), Note { generation, manifest, bundle, failure }));
    }
    notes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn note(generation: u64, bundle: u8, failure: Option<&str>) -> Note {
        let (manifest, bundle) = (Digest::of(&[bundle]), format!("digits@1.{bundle}.0").parse().unwrap());
        Note { generation, manifest, bundle, failure: failure.map(str::to_owned) }
    }

    fn after(notes: &[Note]) -> UpdateLog {
        notes.iter().fold(UpdateLog::default(), |log, note| log.with(note, 3, note.generation * 10))
    }

    #[test]
    fn three_failures_in_a_row_or_two_of_a_bundle_are_enough() {
        let bad = Some("reverted: smoke");
        let two = after(&[note(1, 1, bad), note(2, 2, bad)]);
        assert_eq!(two.quarantine(), None);
        let quarantine = two.with(&note(3, 3, bad), 3, 30).quarantine().cloned().unwrap();
        assert_eq!(quarantine.since_ms, 30);
        assert_eq!(quarantine.why, "after 3 failed updates, the last: digits@1.3.0 reverted: smoke");
        assert_eq!(after(&[note(1, 1, bad), note(2, 2, bad), note(3, 9, None), note(4, 3, bad)]).quarantine(), None);
        let same = after(&[note(1, 1, bad), note(2, 9, None), note(3, 1, bad)]);
        assert!(same.quarantine().unwrap().why.starts_with("after 2 failed updates of the same bundle"), "{same:?}");
        assert_eq!(after(&[note(1, 1, bad), note(2, 1, None), note(3, 1, bad)]).quarantine(), None);
        assert_eq!(same.released().quarantine(), None);
        assert_eq!(same.released().with(&note(3, 1, bad), 1, 40).quarantine(), None, "it is no news");
    }

    #[test]
    fn what_went_well_may_fail_yet_and_not_the_other_way_round() {
        let log = after(&[note(4, 1, None)]);
        assert!(log.knows(4, false) && !log.knows(4, true) && log.knows(3, true));
        assert_eq!(log.with(&note(4, 1, Some("crashed")), 1, 0).quarantine().map(|q| q.since_ms), Some(0));
        assert!(after(&[note(4, 1, Some("crashed"))]).knows(4, false));
    }

    proptest! {
        #[test]
        fn a_log_stays_small_and_counts_each_generation_once(
            notes in prop::collection::vec((0u64..40, 0u8..20, any::<bool>()), 0..80),
        ) {
            let mut log = UpdateLog::default();
            for (generation, bundle, fails) in notes {
                let note = note(generation, bundle, fails.then_some("failed"));
                log = log.with(&note, 3, 7);
                prop_assert_eq!(&log.with(&note, 3, 8), &log);
                prop_assert!(log.failed.len() <= MAX_REMEMBERED && log.knows(generation, fails));
                prop_assert!(log.in_a_row < 3 || log.quarantine.is_some());
            }
        }
    }
}
