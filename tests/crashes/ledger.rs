//! What was asked of a device, against what its controller has counted.
//!
//! A request that was answered is *settled* once the window it was counted in is known to be in the device's outbox; whatever happens
//! to the device then, it must be counted, and once. When the agent dies, what was answered and had not settled is *at risk*: it may be
//! counted once or not at all, as its window was still in memory. So, for each version,
//! `settled <= counted <= settled + at risk + unanswered`, and without a death both ends are the same.

use std::collections::BTreeMap;

/// Requests to one version since the last reckoning.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    settled: u64,
    open: u64,
    at_risk: u64,
}

/// Requests of one device.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    counts: BTreeMap<String, Counts>,
    counted: BTreeMap<String, u64>,
    /// Sent, and nobody knows whether they were served, or by what.
    unanswered: u64,
    /// The version of the last answer.
    last: Option<String>,
    /// Answered in all, and how many of these were ever at risk.
    answered: u64,
    risked: u64,
}

impl Ledger {
    /// A request was answered by `version`.
    pub(crate) fn answered(&mut self, version: &str) {
        if let Some(last) = self.last.replace(version.to_owned()).filter(|last| last != version) {
            // It may have been under way when the pointer moved, and such requests wait in a window of their own.
            let before = self.counts.entry(last).or_default();
            let under_way = before.open.min(1);
            before.at_risk += under_way;
            before.open -= under_way;
            self.risked += under_way;
        }
        self.counts.entry(version.to_owned()).or_default().open += 1;
        self.answered += 1;
    }

    /// A request was sent and not answered.
    pub(crate) fn unanswered(&mut self) {
        self.unanswered += 1;
    }

    /// Windows have been closed and stored since the last answer. That one may still turn out to have been under way when the pointer
    /// moved.
    pub(crate) fn settle(&mut self) {
        let last = self.last.clone();
        for (version, counts) in &mut self.counts {
            let kept = u64::from(Some(version) == last.as_ref()).min(counts.open);
            counts.settled += counts.open - kept;
            counts.open = kept;
        }
    }

    /// The agent died.
    pub(crate) fn died(&mut self) {
        for counts in self.counts.values_mut() {
            self.risked += counts.open;
            counts.at_risk += std::mem::take(&mut counts.open);
        }
        self.last = None;
    }

    /// Holds what the controller has counted in all against what was asked, everything having settled and been delivered, and begins
    /// anew from there. Without `complete`, messages may have been lost, and only too much is wrong.
    ///
    /// # Errors
    /// What does not add up.
    pub(crate) fn reckon(&mut self, counted: BTreeMap<String, u64>, complete: bool) -> Result<(), String> {
        for counts in self.counts.values_mut() {
            counts.settled += std::mem::take(&mut counts.open);
        }
        for (version, counts) in &self.counts {
            let before = self.counted.get(version).copied().unwrap_or_default();
            let now = counted.get(version).copied().unwrap_or_default();
            let least = before + if complete { counts.settled } else { 0 };
            let most = before + counts.settled + counts.at_risk + self.unanswered;
            if now < least || now > most {
                return Err(format!(
                    "the controller has counted {now} requests to {version}, which must be {least} to {most}: {before} before, \
                     since then {counts:?}, {} unanswered",
                    self.unanswered
                ));
            }
        }
        // One that was under way when the pointer moved may be counted a moment later.
        for counts in self.counts.values_mut() {
            *counts = Counts { at_risk: counts.at_risk.min(1), ..Counts::default() };
        }
        self.counted = counted;
        self.unanswered = 0;
        Ok(())
    }

    /// Requests answered in all, and how many of these may have been lost.
    pub(crate) fn total(&self) -> (u64, u64) {
        (self.answered, self.risked)
    }
}
