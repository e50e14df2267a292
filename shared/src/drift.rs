//! How far counts have moved from a reference, and whether that can be chance.
//!
//! A score alone says little: its null distribution depends on how much was counted, and on how much of it by the same
//! device. So each comes with the value it would exceed by chance with probability α only, and a column gets one verdict.
//! `docs/drift.md` gives every formula, its source and the false-alarm rates that were measured.

mod cells;
mod clusters;
mod distance;
mod evidence;
mod explain;
mod groups;
mod homogeneity;
mod inputs;
mod layout;
mod limit;
mod proportion;
mod report;
mod small_counts;
mod tail;
#[cfg(test)]
mod tests;
mod verdict;

pub use clusters::RANDOM_GROUPS;
pub use distance::{PSI_FLOOR, jensen_shannon, kolmogorov_smirnov, l_infinity, psi, wasserstein};
pub use evidence::{ASSUMED_CORRELATION, Draws, MIN_DEVICES};
pub use explain::{Surroundings, cell_changes, cell_names, contribution, kind_of, sentence};
pub use groups::DeviceGroups;
pub use homogeneity::{Homogeneity, effective_size, homogeneity};
pub use inputs::{InputCounts, adjust_inputs, adjust_limits};
pub use layout::{Layout, Scale};
pub use limit::{AboveLimit, above_limit};
pub use proportion::Proportion;
pub use report::{adjust, column_drift};
pub use verdict::{ChiSquare, Clustering, ColumnVerdict, Criteria, Score, by_devices, false_discovery_rates, judge};
