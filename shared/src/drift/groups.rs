//! Counts of many devices in bounded memory.
//!
//! How devices differ can be told from their counts, one vector each, or from those of random groups of them: the sums of
//! groups vary as much as their devices make them (Wolter, Introduction to Variance Estimation, 2007, chapter 2). So the first
//! [`RANDOM_GROUPS`] devices are kept apart, and when there are more, all fall into as many groups, by a hash of
//! their names. Adding is exact, and its order does not matter.

use std::collections::{BTreeMap, BTreeSet};

use super::report::column_drift;
use super::verdict::{Criteria, by_devices};
use crate::api::ColumnDrift;
use crate::ids::Digest;
use crate::profile::{Column, Profile};
use crate::sketch::ColumnSketch;

/// Vectors of counts kept at most, whatever the number of devices.
pub const RANDOM_GROUPS: usize = 128;

/// Counts of every column of a profile, by device or by random groups of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeviceGroups {
    /// Everything a device or random group counted: the cells of all columns, one after the other.
    counts: BTreeMap<u64, Vec<u64>>,
    devices: BTreeSet<u64>,
    grouped: bool,
}

fn hash(device: &str) -> u64 {
    let digest = Digest::of(device.as_bytes());
    digest.as_bytes().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Where the cells of the column at position `at` begin.
fn start_of(profile: &Profile, at: usize) -> usize {
    profile.columns.iter().take(at).map(|column| column.reference.cells().len()).sum()
}

fn add_to(sum: &mut Vec<u64>, counts: &[u64]) {
    if sum.len() < counts.len() {
        sum.resize(counts.len(), 0);
    }
    for (sum, n) in sum.iter_mut().zip(counts) {
        *sum = sum.saturating_add(*n);
    }
}

impl DeviceGroups {
    /// Adds what `device` counted in one window: one sketch a column of the profile, which they must fit.
    pub fn add(&mut self, device: &str, columns: &[ColumnSketch]) {
        let counts: Vec<u64> = columns.iter().flat_map(ColumnSketch::cells).collect();
        let device = hash(device);
        self.devices.insert(device);
        let key = self.key(device);
        add_to(self.counts.entry(key).or_default(), &counts);
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

    /// Adds what others counted against the same profile.
    pub fn merge(&mut self, other: &Self) {
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
    #[must_use]
    pub fn devices(&self) -> usize {
        self.devices.len()
    }

    /// The counts of each column of `profile`, over all devices.
    #[must_use]
    pub fn totals(&self, profile: &Profile) -> Vec<Vec<u64>> {
        let mut sum = Vec::new();
        self.counts.values().for_each(|counts| add_to(&mut sum, counts));
        let mut start = 0;
        let of = |column: &Column| {
            let cells = column.reference.cells().len();
            start += cells;
            sum.get(start - cells..start).map_or_else(|| vec![0; cells], <[u64]>::to_vec)
        };
        profile.columns.iter().map(of).collect()
    }

    /// Scores every column of `profile`, in its order.
    #[must_use]
    pub fn score(&self, profile: &Profile, criteria: &Criteria) -> Vec<ColumnDrift> {
        let mut start = 0;
        let scored = profile.columns.iter().map(|column| {
            let (scored, cells) = self.score_cells(column, start, criteria);
            start += cells;
            scored
        });
        scored.collect()
    }

    /// Scores the column at position `at` of `profile`; `None` past its columns.
    #[must_use]
    pub fn score_one(&self, profile: &Profile, at: usize, criteria: &Criteria) -> Option<ColumnDrift> {
        profile.columns.get(at).map(|column| self.score_cells(column, start_of(profile, at), criteria).0)
    }

    /// What each device, or random group of them, counted of the column at position `at` of `profile`.
    #[must_use]
    pub fn column(&self, profile: &Profile, at: usize) -> Vec<Vec<u64>> {
        let cells = profile.columns.get(at).map_or(0, |column| column.reference.cells().len());
        self.cells(start_of(profile, at), cells)
    }

    fn cells(&self, start: usize, cells: usize) -> Vec<Vec<u64>> {
        self.counts.values().filter_map(|counts| counts.get(start..start + cells)).map(<[u64]>::to_vec).collect()
    }

    fn score_cells(&self, column: &Column, start: usize, criteria: &Criteria) -> (ColumnDrift, usize) {
        let reference = column.reference.cells();
        let apart = self.cells(start, reference.len());
        let mut current = vec![0; reference.len()];
        apart.iter().for_each(|counts| add_to(&mut current, counts));
        let scored = column_drift(column, &reference, &current, by_devices(&apart), criteria);
        (scored, reference.len())
    }
}
