//! Damage for property tests: what was good once and is nearly so reaches the checks behind a parser's first.

use proptest::prelude::*;
use proptest::sample::Index;

/// `good` with a few bytes replaced, put in or taken out, or cut short.
pub(crate) fn bytes(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let change = (0..8u8, any::<Index>(), any::<u8>());
    prop::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut bytes = good.clone();
        for (how, at, byte) in changes {
            let at = at.index(bytes.len() + 1);
            match how {
                0 => bytes.insert(at, byte),
                1 => bytes.truncate(at),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 if at < bytes.len() => bytes[at] ^= 1 << (byte % 8),
                _ if at < bytes.len() => bytes[at] = byte,
                _ => bytes.push(byte),
            }
        }
        bytes
    })
}

/// `good` with a few of its bytes replaced by what means something in configuration and key files.
pub(crate) fn text(good: String) -> impl Strategy<Value = String> {
    let piece =
        prop::sample::select(vec!["", "\n", "\"", "'", " ", "=", "[", "]", "#", "\\", "0", "a", "é", "\"\"\"", "."]);
    let change = (any::<Index>(), any::<bool>(), piece);
    prop::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut text = good.clone();
        for (at, replace, piece) in changes {
            let at = at.index(text.len() + 1);
            let end = if replace { at + 1 } else { at };
            if text.is_char_boundary(at) && text.is_char_boundary(end) {
                text.replace_range(at..end, piece);
            }
        }
        text
    })
}
