//! How the columns of a window or of a slice are read: as many as a profile can have, and not one more, as a few bytes of a message can
//! stand for thousands of cells.

use std::fmt;

use serde::Deserializer;
use serde::de::{Error as _, SeqAccess, Visitor};

use super::column::ColumnSketch;
use crate::limits::MAX_COLUMNS;

/// Those of `columns`; none where there are too many.
fn gather<E>(columns: impl Iterator<Item = Result<ColumnSketch, E>>) -> Result<Option<Vec<ColumnSketch>>, E> {
    let mut gathered = Vec::new();
    for column in columns {
        let column = column?;
        if gathered.len() == MAX_COLUMNS {
            return Ok(None);
        }
        gathered.push(column);
    }
    Ok(Some(gathered))
}

/// Reads a list of columns.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ColumnSketch>, D::Error> {
    struct Columns;
    impl<'de> Visitor<'de> for Columns {
        type Value = Vec<ColumnSketch>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_COLUMNS} columns")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut columns: A) -> Result<Vec<ColumnSketch>, A::Error> {
            let gathered = gather(std::iter::from_fn(|| columns.next_element().transpose()))?;
            gathered.ok_or_else(|| A::Error::custom("there are more columns than a profile can have"))
        }
    }
    deserializer.deserialize_seq(Columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sketch::ClassSketch;

    #[test]
    fn no_more_is_read_than_a_profile_can_have() {
        let column = || ColumnSketch::Class(ClassSketch::default());
        let mut read = 0;
        let endless = std::iter::repeat_with(|| {
            read += 1;
            Ok::<_, ()>(column())
        });
        assert_eq!(gather(endless), Ok(None));
        assert_eq!(read, MAX_COLUMNS + 1);
        let as_many_as_may = std::iter::repeat_with(|| Ok::<_, ()>(column())).take(MAX_COLUMNS);
        assert_eq!(gather(as_many_as_may).unwrap().map(|columns| columns.len()), Some(MAX_COLUMNS));
    }
}
