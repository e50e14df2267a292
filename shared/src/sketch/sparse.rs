//! Counts on the wire: as numbers of variable length, and a run of zeros as a zero and its length. A sketch that saw little is mostly
//! zeros.

use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserializer, Serializer};

use crate::limits::MAX_CLASSES;

/// More cells than any sketch has, so that a few bytes cannot ask for much memory.
const MAX_CELLS: usize = MAX_CLASSES;

/// The numbers that stand for `counts`.
pub(super) fn runs(counts: &[u64]) -> Vec<u64> {
    let mut numbers = Vec::with_capacity(counts.len());
    let mut left = counts.iter().peekable();
    while let Some(n) = left.next() {
        numbers.push(*n);
        if *n == 0 {
            let mut run = 1;
            while left.next_if_eq(&&0).is_some() {
                run += 1;
            }
            numbers.push(run);
        }
    }
    numbers
}

/// Puts the counts that `numbers` stand for behind `counts`; `None` where these would be more than `max_cells` then.
///
/// # Errors
/// Those of `numbers`.
pub(super) fn extend<E>(
    counts: &mut Vec<u64>,
    mut numbers: impl Iterator<Item = Result<u64, E>>,
    max_cells: usize,
) -> Result<Option<()>, E> {
    while let Some(n) = numbers.next().transpose()? {
        let run = if n == 0 {
            let run = numbers.next().transpose()?.and_then(|run| usize::try_from(run).ok());
            run.filter(|run| (1..=max_cells).contains(run))
        } else {
            Some(1)
        };
        let Some(length) = run.map(|run| counts.len() + run).filter(|length| *length <= max_cells) else {
            return Ok(None);
        };
        counts.resize(length, n);
    }
    Ok(Some(()))
}

/// Writes `counts`.
pub(super) fn serialize<S: Serializer>(counts: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(runs(counts))
}

/// Reads what [`serialize`] wrote.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct Counts;
    impl<'de> Visitor<'de> for Counts {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_CELLS} counts, a run of zeros being written as a zero and its length")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Vec<u64>, A::Error> {
            let mut counts = Vec::new();
            let numbers = std::iter::from_fn(|| numbers.next_element::<u64>().transpose());
            let fits = extend(&mut counts, numbers, MAX_CELLS)?;
            fits.map(|()| counts).ok_or_else(|| A::Error::custom("counts are out of bounds"))
        }
    }
    deserializer.deserialize_seq(Counts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Sparse(#[serde(with = "super")] Vec<u64>);

    fn bytes(counts: &[u64]) -> Vec<u8> {
        postcard::to_stdvec(&Sparse(counts.to_vec())).unwrap()
    }

    #[test]
    fn empty_cells_cost_next_to_nothing() {
        assert_eq!(bytes(&[0; 256]).len(), 4);
        assert_eq!(bytes(&[0, 0, 0, 5, 0]), [5, 0, 3, 5, 0, 1]);
        assert_eq!(bytes(&[]), [0]);
    }

    #[test]
    fn a_run_past_the_bound_is_refused() {
        for numbers in [vec![0, 257], vec![0, 200, 0, 57], vec![0, 0], vec![0], vec![0, u64::MAX], vec![1; 257]] {
            let wire = postcard::to_stdvec(&numbers).unwrap();
            assert!(postcard::from_bytes::<Sparse>(&wire).is_err(), "{numbers:?}");
        }
    }

    proptest! {
        #[test]
        fn counts_come_back(counts in prop::collection::vec(prop_oneof![3 => Just(0), 1 => any::<u64>(), 1 => 0u64..3], 0..256)) {
            let back: Sparse = postcard::from_bytes(&bytes(&counts)).unwrap();
            prop_assert_eq!(back.0, counts);
        }

        #[test]
        fn any_bytes_are_few_counts_or_refused(wire in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(back) = postcard::from_bytes::<Sparse>(&wire) {
                prop_assert!(back.0.len() <= super::MAX_CELLS);
            }
        }
    }
}
