//! How an encoded chunk is laid out.
//!
//! ```text
//! count            varint: segments
//! segment × count  varint: length << 3 | log2(element width) << 1 | has base
//!                  with a base, signed varint: where it begins in the base, less where the segment before with a base ended
//!                  (for the first one, less where the chunk begins in its file)
//! stream × 0..=30  byte: method, then what the method says
//! ```
//!
//! A stream is one plane of bytes of all segments of one element width, with or without a base, in their order: first the planes of
//! width 1, then of 2, 4 and 8, each from the lowest byte up, without a base and then with. With a base, elements are differences to
//! it, as whole numbers of their width, zigzag encoded. Empty streams are left out. Numbers are little endian base 128, as in
//! protocol buffers.

/// A part of a chunk, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) length: usize,
    pub(crate) base: Option<u64>,
    /// The element's width is 1 << this.
    pub(crate) width_log2: u8,
}

impl Part {
    pub(crate) fn element_bytes(&self) -> usize {
        1 << self.width_log2
    }
}

/// Widths of elements, as powers of two.
pub(crate) const WIDTHS_LOG2: std::ops::Range<u8> = 0..4;

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// Reads a number off the front of `bytes`.
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if shift == 63 && *byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Small for numbers near 0 on either side.
pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// The number that [`zigzag`] gave `value` for.
pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

/// Writes the parts of a chunk that begins at `chunk_start` of its file.
pub(crate) fn put_parts(out: &mut Vec<u8>, parts: &[Part], chunk_start: u64) {
    put_varint(out, parts.len() as u64);
    let mut expected = chunk_start;
    for part in parts {
        put_varint(out, (part.length as u64) << 3 | u64::from(part.width_log2) << 1 | u64::from(part.base.is_some()));
        if let Some(base) = part.base {
            put_varint(out, zigzag(base.wrapping_sub(expected).cast_signed()));
            expected = base.wrapping_add(part.length as u64);
        }
    }
}

/// Reads the parts of a chunk of `length` bytes; none when they do not add up to it.
pub(crate) fn take_parts(bytes: &mut &[u8], length: usize, chunk_start: u64) -> Option<Vec<Part>> {
    // Each part takes a byte of both at least.
    let most = length.min(bytes.len());
    let count = usize::try_from(take_varint(bytes)?).ok().filter(|count| *count <= most)?;
    let mut parts = Vec::with_capacity(count);
    let (mut left, mut expected) = (length, chunk_start);
    for _ in 0..count {
        let head = take_varint(bytes)?;
        let length = usize::try_from(head >> 3).ok().filter(|length| (1..=left).contains(length))?;
        left -= length;
        let width_log2 = (head >> 1 & 3) as u8;
        let mut base = None;
        if head & 1 == 1 {
            let start = expected.wrapping_add(unzigzag(take_varint(bytes)?).cast_unsigned());
            expected = start.checked_add(length as u64)?;
            base = Some(start);
        }
        let part = Part { length, base, width_log2 };
        if !length.is_multiple_of(part.element_bytes()) {
            return None;
        }
        parts.push(part);
    }
    (left == 0).then_some(parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(value in any::<u64>(), signed in any::<i64>()) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut bytes = out.as_slice();
            prop_assert_eq!((take_varint(&mut bytes), bytes.len()), (Some(value), 0));
            prop_assert_eq!(unzigzag(zigzag(signed)), signed);
        }

        #[test]
        fn parts_come_back(
            parts in prop::collection::vec((1usize..100, prop::option::of(0u64..1 << 40), 0u8..4), 0..20),
            chunk_start in 0u64..1 << 40,
        ) {
            let parts: Vec<Part> = parts
                .into_iter()
                .map(|(elements, base, width_log2)| Part { length: elements << width_log2, base, width_log2 })
                .collect();
            let length = parts.iter().map(|part| part.length).sum();
            let mut out = Vec::new();
            put_parts(&mut out, &parts, chunk_start);
            prop_assert_eq!(take_parts(&mut out.as_slice(), length, chunk_start), Some(parts.clone()));
            prop_assert_eq!(take_parts(&mut out.as_slice(), length + 1, chunk_start), None);
        }

        #[test]
        fn any_bytes_are_parts_or_not(bytes in prop::collection::vec(any::<u8>(), 0..60), length in 0usize..70_000) {
            if let Some(parts) = take_parts(&mut bytes.as_slice(), length, 7) {
                prop_assert_eq!(parts.iter().map(|part| part.length).sum::<usize>(), length);
            }
        }
    }
}
