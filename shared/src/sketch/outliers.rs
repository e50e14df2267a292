//! How many rows of a window were outliers of the reference sample, by what was odd about them.

use serde::{Deserialize, Serialize};

/// Counts of rows. One row may count for several causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutlierCounts {
    /// Rows that were held against the reference.
    pub rows: u64,
    /// Rows with any cause.
    pub flagged: u64,
    /// Rows with a number outside the reference's range.
    pub range: u64,
    /// Rows with a category that the reference does not name.
    pub category: u64,
    /// Rows that lack what the reference never lacks.
    pub missing: u64,
    /// Rows too far from the reference.
    pub distance: u64,
}

impl OutlierCounts {
    /// Adds what another window counted; counts stop at the greatest there is.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.rows, other.rows),
            (&mut self.flagged, other.flagged),
            (&mut self.range, other.range),
            (&mut self.category, other.category),
            (&mut self.missing, other.missing),
            (&mut self.distance, other.distance),
        ] {
            *mine = mine.saturating_add(theirs);
        }
    }

    /// Whether such counts can come about: nothing is counted more often than there are rows.
    #[must_use]
    pub fn fits(&self) -> bool {
        let causes = [self.range, self.category, self.missing, self.distance];
        self.flagged <= self.rows && causes.iter().all(|rows| *rows <= self.flagged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts() -> impl Strategy<Value = OutlierCounts> {
        prop::array::uniform6(prop_oneof![0..9u64, any::<u64>()]).prop_map(
            |[rows, flagged, range, category, missing, distance]| OutlierCounts {
                rows,
                flagged,
                range,
                category,
                missing,
                distance,
            },
        )
    }

    proptest! {
        #[test]
        fn counts_add_up_in_any_order(a in counts(), b in counts(), c in counts()) {
            let sum = |parts: [OutlierCounts; 3]| parts.iter().fold(OutlierCounts::default(), |mut sum, part| { sum.merge(part); sum });
            prop_assert_eq!(sum([a, b, c]), sum([c, a, b]));
            prop_assert_eq!(sum([a, b, c]).flagged, a.flagged.saturating_add(b.flagged).saturating_add(c.flagged));
        }
    }

    #[test]
    fn more_flags_than_rows_are_not_believed() {
        assert!(OutlierCounts { rows: 3, flagged: 2, range: 2, ..OutlierCounts::default() }.fits());
        assert!(!OutlierCounts { rows: 3, flagged: 4, ..OutlierCounts::default() }.fits());
        assert!(!OutlierCounts { rows: 3, flagged: 1, distance: 2, ..OutlierCounts::default() }.fits());
    }
}
