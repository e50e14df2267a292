//! Lists in pages: how long a page may be, and where the next one starts.

use muster_shared::api::Page;

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;

/// How many items a page shall have, when `limit` was asked for.
pub(super) fn page_size(limit: Option<usize>) -> usize {
    limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT)
}

/// The page of `size` items, of which `found` holds one more where there are more. `key` is what the next page starts after.
pub(super) fn page<T>(mut found: Vec<T>, size: usize, key: impl Fn(&T) -> String) -> Page<T> {
    let more = found.len() > size;
    found.truncate(size);
    let next_cursor = if more { found.last().map(key) } else { None };
    Page { items: found, next_cursor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_has_no_cursor() {
        let numbers = |n: u32| (1..=n).collect::<Vec<_>>();
        assert_eq!(page(numbers(3), 2, ToString::to_string).next_cursor.as_deref(), Some("2"));
        assert_eq!(page(numbers(2), 2, ToString::to_string).next_cursor, None);
        assert_eq!(page(Vec::<u32>::new(), 2, ToString::to_string).items, Vec::<u32>::new());
        assert_eq!((page_size(None), page_size(Some(0)), page_size(Some(usize::MAX))), (100, 1, 1_000));
    }
}
