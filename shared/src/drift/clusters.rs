//! Counts of many devices in bounded memory.
//!
//! How devices differ can be told from their counts, one vector each, or from those of random groups of them: the sums of
//! groups vary as much as their devices make them (Wolter, Introduction to Variance Estimation, 2007, chapter 2). So the first
//! [`RANDOM_GROUPS`] devices are kept apart, and when there are more, all fall into as many groups, by a hash of
//! their names. Adding is exact, and its order does not matter.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::Digest;

/// Vectors of counts kept at most, whatever the number of devices.
pub const RANDOM_GROUPS: usize = 128;

/// Vectors of counts, by device or by random groups of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Clusters {
    counts: BTreeMap<u64, Vec<u64>>,
    devices: BTreeSet<u64>,
    grouped: bool,
}

fn hash(device: &str) -> u64 {
    let digest = Digest::of(device.as_bytes());
    digest.as_bytes().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn add_to(sum: &mut Vec<u64>, counts: &[u64]) {
    if sum.len() < counts.len() {
        sum.resize(counts.len(), 0);
    }
    for (sum, n) in sum.iter_mut().zip(counts) {
        *sum = sum.saturating_add(*n);
    }
}

/// The sum of `vectors`, place by place. Counts stop at the greatest there is.
pub(super) fn total<'v>(vectors: impl IntoIterator<Item = &'v Vec<u64>>) -> Vec<u64> {
    let mut sum = Vec::new();
    vectors.into_iter().for_each(|counts| add_to(&mut sum, counts));
    sum
}

impl Clusters {
    /// Adds what `device` counted in one window.
    pub(super) fn add(&mut self, device: &str, counts: &[u64]) {
        let device = hash(device);
        self.devices.insert(device);
        let key = self.key(device);
        add_to(self.counts.entry(key).or_default(), counts);
        if self.counts.len() > RANDOM_GROUPS {
            self.group();
        }
    }

    fn key(&self, device: u64) -> u64 {
        if self.grouped { device % RANDOM_GROUPS as u64 } else { device }
    }

    fn group(&mut self) {
        self.grouped = true;
        for (device, counts) in std::mem::take(&mut self.counts) {
            add_to(self.counts.entry(device % RANDOM_GROUPS as u64).or_default(), &counts);
        }
    }

    /// Adds what others counted.
    pub(super) fn merge(&mut self, other: &Self) {
        self.devices.extend(&other.devices);
        if other.grouped && !self.grouped {
            self.group();
        }
        for (key, counts) in &other.counts {
            let key = if other.grouped { *key } else { self.key(*key) };
            add_to(self.counts.entry(key).or_default(), counts);
        }
        if self.counts.len() > RANDOM_GROUPS {
            self.group();
        }
    }

    /// How many devices counted.
    pub(super) fn devices(&self) -> usize {
        self.devices.len()
    }

    /// What each device, or random group of them, counted.
    pub(super) fn vectors(&self) -> impl Iterator<Item = &Vec<u64>> {
        self.counts.values()
    }
}
