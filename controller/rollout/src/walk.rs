//! Two sorted maps walked together. A rollout over a whole fleet asks for every device several times in a tick; the next one lies beside
//! the last, while to look it up takes a comparison a level of the tree, each somewhere else in memory.

use std::collections::BTreeMap;

/// Steps after which the rest of the way is looked up.
const NEAR: usize = 8;

/// Every item of `left`, which comes in the order of its keys, with what `right` has under the same key.
pub(crate) fn side_by_side<'l, 'r, K: Ord + 'l, A, B>(
    left: impl IntoIterator<Item = (&'l K, A)>,
    right: &'r BTreeMap<K, B>,
) -> impl Iterator<Item = (&'l K, A, Option<&'r B>)> {
    let mut ahead = right.range::<K, _>(..).peekable();
    left.into_iter().map(move |(key, value)| {
        let mut steps = 0;
        while ahead.next_if(|(next, _)| *next < key).is_some() {
            steps += 1;
            if steps == NEAR {
                ahead = right.range(key..).peekable();
            }
        }
        let found = ahead.peek().filter(|(next, _)| *next == key).map(|(_, found)| *found);
        (key, value, found)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn walking_finds_what_looking_up_finds(
            left in prop::collection::btree_map(0u32..300, any::<u8>(), 0..60),
            right in prop::collection::btree_map(0u32..300, any::<u8>(), 0..200),
        ) {
            let walked: Vec<_> = side_by_side(&left, &right).collect();
            let looked_up: Vec<_> = left.iter().map(|(key, value)| (key, value, right.get(key))).collect();
            prop_assert_eq!(walked, looked_up);
        }
    }
}
