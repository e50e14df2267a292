//! From a chunk to its shortest form.

use std::io;

use crate::MAX_CHUNK_BYTES;
use crate::align::{Alignment, Segment};
use crate::format::{Part, WIDTHS_LOG2, put_parts};
use crate::read::ReadAt;
use crate::streams::Packer;

/// zstd's effort: higher ones find little more within a chunk.
const LEVEL: i32 = 9;

/// A chunk in its shortest form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The form.
    pub bytes: Vec<u8>,
    /// Whether it takes the base to read it.
    pub needs_base: bool,
}

/// Encodes chunks. Keeps its working memory from one to the next.
pub struct Encoder {
    packer: Packer,
}

impl Encoder {
    /// A new one.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> io::Result<Self> {
        Ok(Self { packer: Packer::new(LEVEL)? })
    }

    /// Encodes `chunk`, which begins at `start` of the file that `alignment` divides; `base` is the file it was aligned with. None when
    /// no form is shorter than the chunk itself.
    ///
    /// # Errors
    /// When the base cannot be read.
    pub fn encode<B: ReadAt + ?Sized>(
        &mut self,
        chunk: &[u8],
        start: u64,
        alignment: &Alignment,
        base: Option<&B>,
    ) -> io::Result<Option<Encoded>> {
        if chunk.is_empty() || chunk.len() > MAX_CHUNK_BYTES {
            return Ok(None);
        }
        let segments: Vec<Segment> = alignment.within(start..start + chunk.len() as u64).collect();
        let alone = Encoded { bytes: self.pack(chunk, start, &parts(&segments, false), &[]), needs_base: false };
        let mut best = alone;
        if let Some(base) = base.filter(|_| segments.iter().any(|segment| segment.base.is_some())) {
            let parts = parts(&segments, true);
            let mut old = vec![0; chunk.len()];
            let mut at = 0;
            for part in &parts {
                if let Some(start) = part.base {
                    base.read_at(start, &mut old[at..at + part.length])?;
                }
                at += part.length;
            }
            let bytes = self.pack(chunk, start, &parts, &old);
            if bytes.len() < best.bytes.len() {
                best = Encoded { bytes, needs_base: true };
            }
        }
        Ok((best.bytes.len() < chunk.len()).then_some(best))
    }

    /// `old` lies beside `chunk`, byte for byte; it may be empty when no part has a base.
    fn pack(&mut self, chunk: &[u8], start: u64, parts: &[Part], old: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_parts(&mut out, parts, start);
        let (mut stream, mut before) = (Vec::new(), Vec::new());
        for width_log2 in WIDTHS_LOG2 {
            for based in [false, true] {
                for plane in 0..1 << width_log2 {
                    stream.clear();
                    before.clear();
                    let mut at = 0;
                    for part in parts {
                        let range = at..at + part.length;
                        at = range.end;
                        if part.width_log2 != width_log2 || part.base.is_some() != based {
                            continue;
                        }
                        let new = chunk[range.clone()].chunks_exact(part.element_bytes());
                        if based {
                            if width_log2 == 0 {
                                before.extend_from_slice(&old[range.clone()]);
                            }
                            let old = old[range].chunks_exact(part.element_bytes());
                            stream.extend(new.zip(old).map(|(new, old)| difference(new, old)[plane]));
                        } else {
                            stream.extend(new.map(|element| element[plane]));
                        }
                    }
                    if !stream.is_empty() {
                        self.packer.put(&mut out, &stream, &before);
                    }
                }
            }
        }
        out
    }
}

/// The segments as parts to write; elements cut by the chunk's ends become single bytes.
fn parts(segments: &[Segment], with_base: bool) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::with_capacity(segments.len());
    for segment in segments {
        let length = usize::try_from(segment.length).unwrap_or_default();
        let width_log2 = segment.element_bytes.trailing_zeros().min(3) as u8;
        let whole = length - length % (1 << width_log2);
        let base = segment.base.filter(|_| with_base);
        for (length, width_log2, base) in
            [(whole, width_log2, base), (length - whole, 0, base.map(|base| base + whole as u64))]
        {
            match parts.last_mut() {
                _ if length == 0 => {}
                Some(last) if (last.width_log2, last.base, base) == (width_log2, None, None) => last.length += length,
                _ => parts.push(Part { length, base, width_log2 }),
            }
        }
    }
    parts
}

/// `new` less `old` as whole numbers of their width, zigzag encoded, little endian.
fn difference(new: &[u8], old: &[u8]) -> [u8; 8] {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let unused = 64 - 8 * new.len();
    // Shifted up and down again, the difference wraps at the width of its elements and keeps its sign.
    let difference = (number(new).wrapping_sub(number(old)) << unused).cast_signed() >> unused;
    crate::format::zigzag(difference).to_le_bytes()
}
