//! Small files that show whether they are what was written.
//!
//! A torn write may leave a file that still parses: a number with a digit less, or another one. A time floor that is a day ahead would keep
//! every assignment out until then. So a last line holds the digest of all before it.

use muster_shared::ids::Digest;

const MARK: &[u8] = b"\nsha256 ";

/// `content` as it is to be written.
pub(crate) fn seal(content: &[u8]) -> Vec<u8> {
    [content, MARK, Digest::of(content).to_string().as_bytes(), b"\n"].concat()
}

/// The content of a file that was sealed and is as it was written.
pub(crate) fn open(bytes: &[u8]) -> Option<&[u8]> {
    let content = bytes.get(..mark(bytes)?)?;
    (seal(content) == bytes).then_some(content)
}

/// As [`open`], for content that shows by itself that it is whole: without a seal it is taken as it is.
pub(crate) fn open_if_sealed(bytes: &[u8]) -> Option<&[u8]> {
    if mark(bytes).is_some() { open(bytes) } else { Some(bytes) }
}

fn mark(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MARK.len()).rposition(|window| window == MARK)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_torn_shows(content: Vec<u8>, cut: prop::sample::Index, at: prop::sample::Index, bit in 0..8u8) {
            let whole = seal(&content);
            prop_assert_eq!(open(&whole), Some(content.as_slice()));
            prop_assert_eq!(open_if_sealed(&whole), Some(content.as_slice()));
            prop_assert_eq!(open(&whole[..cut.index(whole.len())]), None);
            let mut changed = whole.clone();
            changed[at.index(whole.len())] ^= 1 << bit;
            prop_assert_eq!(open(&changed), None);
        }
    }

    #[test]
    fn what_was_never_sealed_is_taken_only_where_that_is_allowed() {
        assert_eq!((open(b"{}"), open_if_sealed(b"{}")), (None, Some(&b"{}"[..])));
        assert_eq!(open_if_sealed(b"{}\nsha256 00\n"), None);
    }
}
