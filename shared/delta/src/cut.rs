//! Where a file is cut into chunks, so that the next version shares as many as it can.
//!
//! Weights are cut from where they begin: text that grows before them moves no cut. Everything else is cut where its content says
//! (FastCDC, <https://www.usenix.org/conference/atc16/technical-sessions/presentation/xia>).

use fastcdc::v2020::FastCDC;

use crate::MAX_CHUNK_BYTES;
use crate::onnx::weights;

/// Weights smaller than this are left to what lies around them, in bytes: a cut costs a digest in the manifest.
const MIN_CUT_BYTES: u64 = 32 * 1024;
/// Content-defined chunks: least, usual and largest length, in bytes.
const CONTENT_DEFINED: (usize, usize, usize) = (16 * 1024, 32 * 1024, MAX_CHUNK_BYTES);

/// Lengths of the chunks of `file`, in order; each is at most [`MAX_CHUNK_BYTES`].
#[must_use]
pub fn cut(file: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    let mut at = 0;
    // Reading from memory does not fail; if it did, the whole would be cut by its content.
    for span in weights(&file).unwrap_or_default().iter().filter(|span| span.length >= MIN_CUT_BYTES) {
        let (Ok(start), Ok(end)) = (usize::try_from(span.start), usize::try_from(span.end())) else { break };
        by_content(&file[at..start], &mut lengths);
        lengths.extend(file[start..end].chunks(MAX_CHUNK_BYTES).map(<[u8]>::len));
        at = end;
    }
    by_content(&file[at..], &mut lengths);
    lengths
}

fn by_content(part: &[u8], lengths: &mut Vec<usize>) {
    let (least, usual, largest) = CONTENT_DEFINED;
    lengths.extend(FastCDC::new(part, least, usual, largest).map(|chunk| chunk.length));
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::onnx::tests::file;

    fn noise(seed: u32, length: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn chunks(file: &[u8]) -> HashSet<Vec<u8>> {
        let mut at = 0;
        let mut chunk = |length: usize| {
            at += length;
            file[at - length..at].to_vec()
        };
        cut(file).into_iter().map(&mut chunk).collect()
    }

    #[test]
    fn what_did_not_change_stays_in_its_chunks() {
        let (a, b, c) = (noise(1, 200_000), noise(2, 90_000), noise(3, 200_000));
        let before = file("v1", &[("a", 1, &a), ("b", 1, &b), ("c", 1, &c)]);
        let after = file("a much longer name", &[("a", 1, &a), ("b", 1, &noise(4, 90_000)), ("c", 1, &c)]);
        let new: usize = chunks(&after).difference(&chunks(&before)).map(Vec::len).sum();
        assert!(new < 90_000 + 500, "{new}");
        let text = noise(5, 400_000);
        let longer = [&b"inserted at the front"[..], &text].concat();
        let new: usize = chunks(&longer).difference(&chunks(&text)).map(Vec::len).sum();
        assert!(new < 2 * MAX_CHUNK_BYTES, "{new}");
    }

    proptest! {
        #[test]
        fn chunks_are_the_whole_and_none_is_too_long(seed in any::<u32>(), length in 0usize..200_000, tensor in 0usize..150_000) {
            let content = match tensor {
                0..50_000 => noise(seed, length),
                _ => file("p", &[("w", 1, &noise(seed, tensor / 4 * 4)), ("v", 1, &noise(seed, length / 4 * 4))]),
            };
            let lengths = cut(&content);
            prop_assert_eq!(lengths.iter().sum::<usize>(), content.len());
            prop_assert!(lengths.iter().all(|length| (1..=MAX_CHUNK_BYTES).contains(length)));
            prop_assert!(lengths.len() <= content.len().div_ceil(MAX_CHUNK_BYTES) * 6 + 6);
        }
    }
}
