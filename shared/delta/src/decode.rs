//! From its short form back to a chunk.

use std::io;
use std::ops::Range;

use crate::MAX_CHUNK_BYTES;
use crate::format::{Part, WIDTHS_LOG2, take_parts, unzigzag};
use crate::read::ReadAt;
use crate::streams::Unpacker;

/// Why bytes are not an encoded chunk.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// They do not follow the format, or not to the given length.
    #[error("the encoded chunk is malformed: {0}")]
    Malformed(&'static str),
    /// The earlier version is not there.
    #[error("the encoded chunk needs an earlier version, and there is none")]
    NoBase,
    /// The earlier version cannot be read, or not where the chunk says.
    #[error("the earlier version cannot be read")]
    Base(#[source] io::Error),
}

/// Decodes chunks. Keeps its working memory from one to the next.
pub struct Decoder {
    unpacker: Unpacker,
}

impl Decoder {
    /// A new one.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> io::Result<Self> {
        Ok(Self { unpacker: Unpacker::new()? })
    }

    /// The chunk of `length` bytes that begins at `start` of its file, from its encoded form. Takes about three times `length` of
    /// memory and 32 bytes for each part, whatever `encoded` says: of these it has no more than `length`, nor than it has bytes.
    ///
    /// # Errors
    /// [`DecodeError`]; that the result is right is for its digest to say.
    pub fn decode<B: ReadAt + ?Sized>(
        &mut self,
        mut encoded: &[u8],
        start: u64,
        length: usize,
        base: Option<&B>,
    ) -> Result<Vec<u8>, DecodeError> {
        if length > MAX_CHUNK_BYTES {
            return Err(DecodeError::Malformed("it is longer than a chunk may be"));
        }
        let parts = take_parts(&mut encoded, length, start)
            .ok_or(DecodeError::Malformed("its parts do not add up to its length"))?;
        let mut old = vec![0; if parts.iter().any(|part| part.base.is_some()) { length } else { 0 }];
        for (part, range) in with_ranges(&parts) {
            if let Some(start) = part.base {
                let base = base.ok_or(DecodeError::NoBase)?;
                base.read_at(start, &mut old[range]).map_err(DecodeError::Base)?;
            }
        }
        let mut chunk = vec![0; length];
        for width_log2 in WIDTHS_LOG2 {
            for based in [false, true] {
                self.planes(&mut encoded, &parts, width_log2, based, &old, &mut chunk)?;
            }
        }
        if !encoded.is_empty() {
            return Err(DecodeError::Malformed("there is more than its parts take"));
        }
        for (part, range) in with_ranges(&parts).filter(|(part, _)| part.base.is_some()) {
            add(&mut chunk[range.clone()], &old[range], part.element_bytes());
        }
        Ok(chunk)
    }

    fn planes(
        &mut self,
        encoded: &mut &[u8],
        parts: &[Part],
        width_log2: u8,
        based: bool,
        old: &[u8],
        chunk: &mut [u8],
    ) -> Result<(), DecodeError> {
        let belonging =
            || with_ranges(parts).filter(|(part, _)| (part.width_log2, part.base.is_some()) == (width_log2, based));
        let elements = belonging().map(|(part, _)| part.length >> width_log2).sum();
        if elements == 0 {
            return Ok(());
        }
        let mut before = Vec::new();
        if (width_log2, based) == (0, true) {
            belonging().for_each(|(_, range)| before.extend_from_slice(&old[range]));
        }
        for plane in 0..1 << width_log2 {
            let stream = self
                .unpacker
                .take(encoded, elements, &before)
                .ok_or(DecodeError::Malformed("a stream is damaged or has another length"))?;
            let mut rest = stream.as_slice();
            for (part, range) in belonging() {
                let (bytes, left) = rest.split_at(part.length >> width_log2);
                rest = left;
                if part.element_bytes() == 1 {
                    chunk[range].copy_from_slice(bytes);
                    continue;
                }
                for (element, byte) in chunk[range].chunks_exact_mut(part.element_bytes()).zip(bytes) {
                    element[plane] = *byte;
                }
            }
        }
        Ok(())
    }
}

/// Each part with where it lies in the chunk.
fn with_ranges(parts: &[Part]) -> impl Iterator<Item = (&Part, Range<usize>)> {
    parts.iter().scan(0, |at, part| {
        let start = *at;
        *at += part.length;
        Some((part, start..*at))
    })
}

/// Turns differences into what they are differences of, given the `old`.
fn add(chunk: &mut [u8], old: &[u8], element_bytes: usize) {
    match element_bytes {
        1 => {
            // As `unzigzag`, in a form of which sixteen are done at once.
            for (new, old) in chunk.iter_mut().zip(old) {
                *new = old.wrapping_add(*new >> 1 ^ 0_u8.wrapping_sub(*new & 1));
            }
        }
        2 => add_wide::<2>(chunk, old),
        4 => add_wide::<4>(chunk, old),
        _ => add_wide::<8>(chunk, old),
    }
}

fn add_wide<const WIDTH: usize>(chunk: &mut [u8], old: &[u8]) {
    let wide = |bytes: &[u8; WIDTH]| {
        let mut number = [0; 8];
        number[..WIDTH].copy_from_slice(bytes);
        u64::from_le_bytes(number)
    };
    for (new, old) in chunk.as_chunks_mut::<WIDTH>().0.iter_mut().zip(old.as_chunks::<WIDTH>().0) {
        let sum = wide(old).wrapping_add(unzigzag(wide(new)).cast_unsigned()).to_le_bytes();
        new.copy_from_slice(&sum[..WIDTH]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::onnx::tests::file;
    use crate::{Alignment, Encoder};

    /// Encodes every chunk of `target`, checks that each comes back, and returns the bytes it took.
    fn both_ways(base: Option<&[u8]>, target: &[u8], chunk_bytes: usize) -> usize {
        let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new().unwrap());
        let alignment = match base {
            Some(base) => Alignment::of(&base, &target).unwrap(),
            None => Alignment::alone(&target).unwrap(),
        };
        let mut total = 0;
        for (number, chunk) in target.chunks(chunk_bytes).enumerate() {
            let start = (number * chunk_bytes) as u64;
            let Some(encoded) = encoder.encode(chunk, start, &alignment, base).unwrap() else {
                total += chunk.len();
                continue;
            };
            total += encoded.bytes.len();
            let back = decoder.decode(&encoded.bytes, start, chunk.len(), base).unwrap();
            assert!(back == chunk, "chunk {number}");
            if encoded.needs_base {
                let without = decoder.decode::<[u8]>(&encoded.bytes, start, chunk.len(), None);
                assert!(matches!(without, Err(DecodeError::NoBase)));
            }
        }
        total
    }

    fn weights(seed: u32, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| (random() + random() + random()) * 0.1).collect()
    }

    fn bytes(weights: &[f32]) -> Vec<u8> {
        weights.iter().flat_map(|weight| weight.to_le_bytes()).collect()
    }

    #[test]
    fn nudged_weights_cost_a_part_of_themselves_and_a_new_name_next_to_nothing() {
        let old = weights(1, 40_000);
        let nudged: Vec<f32> =
            old.iter().zip(weights(2, 40_000)).map(|(old, noise)| old * (1.0 + noise * 1e-3)).collect();
        let base = file("v1", &[("w", 1, &bytes(&old))]);
        let target = file("v2", &[("w", 1, &bytes(&nudged))]);
        let size = target.len();
        // 10 bits and a sign of 24 stay, by the size of the noise.
        assert!(both_ways(Some(&base), &target, 64 * 1024) < size * 7 / 10);
        let renamed = file("v1.1", &[("w", 1, &bytes(&old))]);
        assert!(both_ways(Some(&base), &renamed, 64 * 1024) < 200);
        // Alone, exponents still compress.
        assert!(both_ways(None, &target, 64 * 1024) < size * 95 / 100);
    }

    proptest! {
        #[test]
        fn every_chunk_comes_back(
            old in prop::collection::vec(any::<u8>(), 0..900),
            edits in prop::collection::vec((0usize..900, any::<u8>(), 0usize..3), 0..6),
            data_type in prop::sample::select(vec![1u8, 3, 10, 11]),
            tensors in any::<bool>(),
            chunk_bytes in 1usize..700,
        ) {
            let mut new = old.clone();
            for (at, byte, how) in edits {
                let at = at.min(new.len());
                match how {
                    0 => new.insert(at, byte),
                    1 if at < new.len() => _ = new.remove(at),
                    _ if at < new.len() => new[at] = byte,
                    _ => {}
                }
            }
            let (base, target) = match tensors {
                true => (file("a", &[("w", data_type, &old)]), file("ab", &[("w", data_type, &new)])),
                false => (old, new),
            };
            both_ways(Some(&base), &target, chunk_bytes);
            both_ways(None, &target, chunk_bytes);
        }

        #[test]
        fn any_bytes_are_a_chunk_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), length in 0usize..70_000) {
            let base = [7; 500];
            if let Ok(chunk) = Decoder::new().unwrap().decode(&bytes, 100, length, Some(&base[..])) {
                prop_assert_eq!(chunk.len(), length);
            }
        }

        #[test]
        fn a_damaged_form_is_another_chunk_or_an_error(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let (old, new) = (weights(1, 500), weights(1, 501));
            let (base, target) = (file("a", &[("w", 1, &bytes(&old))]), file("b", &[("w", 1, &bytes(&new[1..]))]));
            let alignment = Alignment::of(&base, &target).unwrap();
            let encoded = Encoder::new().unwrap().encode(&target, 0, &alignment, Some(&base)).unwrap().unwrap();
            let mut damaged = encoded.bytes;
            let at = at.index(damaged.len());
            damaged[at] = byte;
            damaged.truncate(1 + cut.index(damaged.len()));
            if let Ok(chunk) = Decoder::new().unwrap().decode(&damaged, 0, target.len(), Some(&base)) {
                prop_assert_eq!(chunk.len(), target.len());
            }
        }
    }
}
