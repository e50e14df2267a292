//! Adding counts up: cell by cell, stopping at the greatest number there is instead of wrapping.

/// Adds `more` to `count`.
pub(super) fn add(count: &mut u64, more: u64) {
    *count = count.saturating_add(more);
}

/// Adds `theirs` to `mine`, cell by cell. Whether the cells are the same is for the caller to have asked.
pub(super) fn add_all(mine: &mut [u64], theirs: &[u64]) {
    mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| add(mine, *theirs));
}

/// Sum of `counts`.
pub(super) fn total<'a>(counts: impl IntoIterator<Item = &'a u64>) -> u64 {
    counts.into_iter().fold(0, |sum, n| sum.saturating_add(*n))
}
