//! Which program a start of the packaged one is to run.
//!
//! A start of a program on trial is spent durably before it is begun, so that one that crashes, hangs or takes too much memory ends with the
//! committed one after a bounded number of starts, and is not tried again under its generation.

use muster_shared::messages::DeviceEventKind;

use super::record::{MAX_STARTS, Phase, Record};
use crate::slots::Slot;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The slot whose program is to run; none for the packaged one itself.
    pub run: Option<Slot>,
    /// What to make durable before. Where that fails, [`Self::otherwise`] is run instead.
    pub record: Option<Record>,
    /// What runs where nothing can be written: the committed one.
    pub otherwise: Option<Slot>,
}

/// Decides for a packaged program of version `package` that found `record`.
#[must_use]
pub fn launch(mut record: Record, package: &semver::Version) -> Launch {
    if record.package != *package {
        let detail =
            format!("the package {package} was installed over {}: it runs until another assignment", record.package);
        record.package = package.clone();
        record.committed = None;
        record.committed_generation = 0;
        match record.update.as_ref().map(|update| &update.phase) {
            Some(Phase::Fetching { .. } | Phase::Verified { .. } | Phase::Trial { .. } | Phase::Committed) => {
                let phase = Phase::Failed { reason: detail.clone(), refused: false };
                record.end(phase, DeviceEventKind::Failed, &detail);
            }
            Some(Phase::Reverted { .. } | Phase::Failed { .. } | Phase::Unknown) | None => {}
        }
        return Launch { run: None, record: Some(record), otherwise: None };
    }
    let committed = record.committed;
    let run_committed = Launch { run: committed, record: None, otherwise: committed };
    let Some(update) = &mut record.update else { return run_committed };
    let Phase::Trial { slot, starts_left, .. } = &mut update.phase else { return run_committed };
    let slot = *slot;
    let reason = match starts_left.checked_sub(1) {
        Some(left) if slot.is_none_or(|slot| record.slots.get(&slot).is_some_and(|c| c.have.is_full())) => {
            *starts_left = left;
            return Launch { run: slot, record: Some(record), otherwise: committed };
        }
        Some(_) => "its program is not there any more".to_owned(),
        None => format!("{MAX_STARTS} starts of this program ended before it had proved itself"),
    };
    record.revert(&reason);
    Launch { run: committed, record: Some(record), otherwise: committed }
}

/// The program of `slot` could not be started because of `reason`: gives the record to store, where there is news, and what runs instead.
#[must_use]
pub fn could_not_start(mut record: Record, slot: Slot, reason: &str) -> (Option<Record>, Option<Slot>) {
    if record.on_trial() == Some(Some(slot)) {
        record.revert(&format!("it could not be started: {reason}"));
        let committed = record.committed.filter(|committed| *committed != slot);
        return (Some(record), committed);
    }
    // What is committed may be there again at the next start: a disk that was not mounted, say.
    (None, None)
}
