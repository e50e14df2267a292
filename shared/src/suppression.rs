//! Which slices may be shown, and in which order.
//!
//! A figure over few rows says little, and may say it of one person. Cells of fewer than `k_min` rows are therefore kept back, and so
//! that they cannot be found by subtracting the others from a total that is shown, what is kept back is at least two cells of
//! `k_min` rows together (complementary suppression; Hundepool and others, Statistical Disclosure Control, 2012, 4.3). This guards one table at a
//! time: who compares tables of several slicings over the same rows may still learn more.

/// Rows a slice needs at least to be shown.
pub const K_MIN: u64 = 20;

/// Which of `counts`, the rows of all slices of one slicing, are to be kept back. Empty cells tell of nobody and are never kept back.
#[must_use]
pub fn suppressed(counts: &[u64], k_min: u64) -> Vec<bool> {
    let mut kept_back: Vec<bool> = counts.iter().map(|n| (1..k_min).contains(n)).collect();
    loop {
        let hidden = counts.iter().zip(&kept_back).filter(|(_, hidden)| **hidden);
        let (cells, rows) = hidden.fold((0, 0_u64), |(cells, rows), (n, _)| (cells + 1, rows.saturating_add(*n)));
        if cells == 0 || (cells >= 2 && rows >= k_min) {
            return kept_back;
        }
        let shown = counts.iter().enumerate().filter(|(at, n)| **n > 0 && !kept_back[*at]);
        match shown.min_by_key(|(_, n)| **n).map(|(at, _)| at) {
            Some(smallest) => kept_back[smallest] = true,
            None => return kept_back,
        }
    }
}

/// Puts the worst first: the largest `badness`, ties in the order given, those without a figure last.
pub fn worst_first<T>(cells: &mut [T], badness: impl Fn(&T) -> Option<f64>) {
    let of = |cell: &T| badness(cell).filter(|badness| !badness.is_nan());
    cells.sort_by(|one, other| match (of(one), of(other)) {
        (Some(one), Some(other)) => other.total_cmp(&one),
        (one, other) => other.is_some().cmp(&one.is_some()),
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_cells_take_the_next_smallest_with_them() {
        for (counts, expected) in [
            (&[20, 100, 30][..], &[false, false, false][..]),
            // One small cell alone would be the total less the others.
            (&[5, 100, 30], &[true, false, true]),
            // Two small cells of 20 rows and more hide each other.
            (&[15, 100, 16], &[true, false, true]),
            // Two of less than 20 together would still be a group that is too small.
            (&[3, 100, 4, 90], &[true, false, true, true]),
            (&[0, 100, 0], &[false, false, false]),
            (&[7, 0], &[true, false]),
            (&[19, 40, 40], &[true, true, false]),
            (&[], &[]),
        ] {
            assert_eq!(suppressed(counts, 20), expected, "{counts:?}");
        }
    }

    #[test]
    fn the_worst_comes_first_and_what_has_no_figure_last() {
        let mut cells = [("a", Some(0.1)), ("b", None), ("c", Some(f64::NAN)), ("d", Some(0.9)), ("e", Some(0.1))];
        worst_first(&mut cells, |cell| cell.1);
        assert_eq!(cells.map(|cell| cell.0), ["d", "a", "e", "b", "c"]);
    }

    proptest! {
        #[test]
        fn nothing_small_is_shown_or_can_be_found_by_subtraction(
            counts in prop::collection::vec(prop_oneof![0u64..30, 0u64..500, any::<u64>()], 0..12),
            k_min in 1u64..40,
        ) {
            let kept_back = suppressed(&counts, k_min);
            let pairs: Vec<(u64, bool)> = counts.iter().copied().zip(kept_back.iter().copied()).collect();
            prop_assert!(pairs.iter().all(|(n, hidden)| *hidden || *n == 0 || *n >= k_min));
            let hidden: Vec<u64> = pairs.iter().filter(|(_, hidden)| *hidden).map(|(n, _)| *n).collect();
            let rows = hidden.iter().fold(0u64, |sum, n| sum.saturating_add(*n));
            let everything = hidden.len() == counts.iter().filter(|n| **n > 0).count();
            prop_assert!(hidden.is_empty() || everything || (hidden.len() >= 2 && rows >= k_min), "{:?}", pairs);
        }
    }
}
