//! What is measured in a round, and what each measured thing is called.

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::alert::{AlertEvidence, FINGERPRINT_DIGITS};
use muster_shared::ids::{Digest, RuleName};

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// What it was measured of: `bundle`, `column`, `device`, a group's label. Together with the rule they name the alert.
    pub labels: BTreeMap<String, String>,
    /// In the signal's unit.
    pub value: f64,
    /// Chance of a value at least as large when nothing has moved; none where the threshold is a limit that needs no test.
    pub p_value: Option<f64>,
    /// What it rests on. Its `n` is held against the rule's `min_count`.
    pub evidence: AlertEvidence,
}

/// Everything measured at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Round {
    /// By rule.
    pub observations: BTreeMap<RuleName, Vec<Observation>>,
    /// Rules that could not be measured: their alerts stay as they are.
    pub unmeasured: BTreeSet<RuleName>,
}

/// The name of the alert that `rule` raises for what has these labels: the beginning of the SHA-256 of both, each with its length
/// before it so that no two lists of labels are written alike.
#[must_use]
pub fn fingerprint(rule: &RuleName, labels: &BTreeMap<String, String>) -> String {
    let mut bytes = Vec::new();
    let mut add = |text: &str| {
        bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
    };
    add(rule.as_str());
    for (key, value) in labels {
        add(key);
        add(value);
    }
    let mut text = Digest::of(&bytes).to_string();
    text.truncate(FINGERPRINT_DIGITS);
    text
}
