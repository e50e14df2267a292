//! Cells put together, so that each holds enough to be tested.
//!
//! Which ones is decided by the counts of both sides together, never by their difference.

use super::layout::Layout;

/// Values that a tested cell is expected to hold on the smaller side.
const LEAST_EXPECTED: f64 = 5.0;

/// Where each cell goes, and how many there are then. Neighbours of a number join; classes with few values become one. Cells that the
/// reference leaves empty by its making (past its extremes, in no known class) never stand alone, and the missing ones do or are left out: both have
/// tests of their own.
pub(super) fn merged(layout: &Layout, reference: &[u64], current: &[u64]) -> (Vec<Option<usize>>, usize) {
    let sum = |counts: &[u64]| counts.iter().map(|n| *n as f64).sum::<f64>();
    let (n_reference, n) = (sum(reference), sum(current));
    let least = n_reference.min(n);
    let at = |counts: &[u64], cell: usize| counts.get(cell).map_or(0.0, |n| *n as f64);
    let pooled = |cell: usize| (at(reference, cell) + at(current, cell)) / (n_reference + n) * least;
    let found = put_together(layout, pooled);
    if found.1 > 1 {
        return found;
    }
    // What the smaller side has and the larger has not is too little of both together, and would go untested: weigh both sides alike.
    put_together(layout, |cell| (at(reference, cell) / n_reference + at(current, cell) / n) / 2.0 * least)
}

fn put_together(layout: &Layout, expected: impl Fn(usize) -> f64) -> (Vec<Option<usize>>, usize) {
    let stands = |cell: usize| !layout.unexpected().contains(&cell);
    let mut map = vec![None; layout.cells()];
    let mut cells: usize = 0;
    if layout.scale().is_some() {
        let mut held = 0.0;
        for cell in layout.order() {
            map[*cell] = Some(if stands(*cell) { cells } else { cells.saturating_sub(usize::from(held <= 0.0)) });
            if stands(*cell) {
                held += expected(*cell);
            }
            if held >= LEAST_EXPECTED {
                cells += 1;
                held = 0.0;
            }
        }
        // What is left at the end is too little to stand alone.
        if held > 0.0 && cells > 0 {
            map.iter_mut().filter(|to| **to == Some(cells)).for_each(|to| *to = Some(cells - 1));
        } else if held > 0.0 {
            cells = 1;
        }
    } else {
        let mut known: Vec<usize> = layout.order().iter().copied().filter(|cell| stands(*cell)).collect();
        known.sort_by(|a, b| expected(*b).total_cmp(&expected(*a)));
        let mut held = LEAST_EXPECTED;
        for cell in known {
            // Each large one, then the small ones until they are enough.
            if held >= LEAST_EXPECTED {
                cells += 1;
                held = 0.0;
            }
            held += expected(cell);
            map[cell] = Some(cells - 1);
        }
        if held < LEAST_EXPECTED && cells > 1 {
            map.iter_mut().filter(|to| **to == Some(cells - 1)).for_each(|to| *to = Some(cells - 2));
            cells -= 1;
        }
        layout.unexpected().iter().for_each(|cell| map[*cell] = cells.checked_sub(1));
    }
    if expected(layout.missing()) >= LEAST_EXPECTED {
        map[layout.missing()] = Some(cells);
        cells += 1;
    }
    (map, cells.max(1))
}
