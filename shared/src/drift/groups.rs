//! Counts of every column by device, scored.

use super::clusters::{Clusters, total};
use super::report::column_drift;
use super::verdict::{Criteria, by_devices};
use crate::api::ColumnDrift;
use crate::profile::{Column, Profile};
use crate::sketch::ColumnSketch;

/// Counts of every column of a profile, by device or by random groups of them: of each the cells of all columns, one after the other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeviceGroups {
    counts: Clusters,
}

/// Where the cells of the column at position `at` begin.
fn start_of(profile: &Profile, at: usize) -> usize {
    profile.columns.iter().take(at).map(|column| column.reference.cells().len()).sum()
}

impl DeviceGroups {
    /// Adds what `device` counted in one window: one sketch a column of the profile, which they must fit.
    pub fn add(&mut self, device: &str, columns: &[ColumnSketch]) {
        let counts: Vec<u64> = columns.iter().flat_map(ColumnSketch::cells).collect();
        self.counts.add(device, &counts);
    }

    /// Adds what others counted against the same profile.
    pub fn merge(&mut self, other: &Self) {
        self.counts.merge(&other.counts);
    }

    /// How many devices counted.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.counts.devices()
    }

    /// The counts of each column of `profile`, over all devices.
    #[must_use]
    pub fn totals(&self, profile: &Profile) -> Vec<Vec<u64>> {
        let sum = total(self.counts.vectors());
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
        self.counts.vectors().filter_map(|counts| counts.get(start..start + cells)).map(<[u64]>::to_vec).collect()
    }

    fn score_cells(&self, column: &Column, start: usize, criteria: &Criteria) -> (ColumnDrift, usize) {
        let reference = column.reference.cells();
        let apart = self.cells(start, reference.len());
        let mut current = total(&apart);
        current.resize(reference.len(), 0);
        let scored = column_drift(column, &reference, &current, by_devices(&apart), criteria);
        (scored, reference.len())
    }
}
