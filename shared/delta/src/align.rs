//! Which part of the earlier file each part of the new one is like.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use crate::onnx::{Span, weights};
use crate::read::ReadAt;

/// Bytes compared at once where nothing is known of a file's structure.
const BLOCK_BYTES: usize = 16;
/// Shorter likenesses cost more to name than they save, in bytes.
const MIN_COPY_BYTES: usize = 24;
/// Most of either file, outside its weights, that is searched for likenesses, in bytes.
const MAX_SEARCHED_BYTES: u64 = 16 * 1024 * 1024;

/// A part of the new file and what it is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the new file.
    pub start: u64,
    /// Its length, in bytes.
    pub length: u64,
    /// Where the part it is like begins in the earlier file.
    pub base: Option<u64>,
    /// Width of its elements, in bytes: 1, 2, 4 or 8.
    pub element_bytes: u8,
}

impl Segment {
    fn end(&self) -> u64 {
        self.start + self.length
    }

    /// The part of it within `range`, where they meet.
    fn within(&self, range: &Range<u64>) -> Option<Self> {
        let start = self.start.max(range.start);
        let end = self.end().min(range.end);
        (start < end).then(|| Self {
            start,
            length: end - start,
            base: self.base.map(|base| base + (start - self.start)),
            element_bytes: self.element_bytes,
        })
    }
}

/// The parts of a file, in order and without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alignment {
    segments: Vec<Segment>,
}

impl Alignment {
    /// The parts of `target` by themselves.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn alone(target: &impl ReadAt) -> io::Result<Self> {
        let mut segments = Vec::new();
        each_part(target.length(), &weights(target)?, |part, span| {
            let element_bytes = span.map_or(1, |span| span.element_bytes);
            segments.push(Segment { start: part.start, length: part.end - part.start, base: None, element_bytes });
        });
        Ok(Self { segments })
    }

    /// The parts of `target`, each with what it is like in `base`. Weights are like those of the same name, type and size, or like the
    /// next of that type and size where names have changed; everything else is compared byte by byte.
    ///
    /// # Errors
    /// When either cannot be read.
    pub fn of(base: &impl ReadAt, target: &impl ReadAt) -> io::Result<Self> {
        let (base_spans, target_spans) = (weights(base)?, weights(target)?);
        let partners = partners(&base_spans, &target_spans);
        let searched = Searched::read(base, &base_spans)?;
        let (mut segments, mut gaps) = (Vec::new(), Vec::new());
        let mut next_span = 0;
        each_part(target.length(), &target_spans, |part, span| match span {
            Some(span) => {
                let (start, length, element_bytes) = (span.start, span.length, span.element_bytes);
                segments.push(Segment { start, length, base: partners[next_span], element_bytes });
                next_span += 1;
            }
            None => gaps.push(part),
        });
        let mut left = MAX_SEARCHED_BYTES;
        for gap in gaps {
            let length = gap.end - gap.start;
            if length > left {
                segments.push(Segment { start: gap.start, length, base: None, element_bytes: 1 });
                continue;
            }
            left -= length;
            let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
            target.read_at(gap.start, &mut bytes)?;
            searched.find_all(gap.start, &bytes, &mut segments);
        }
        segments.sort_unstable_by_key(|segment| segment.start);
        Ok(Self { segments })
    }

    /// The parts that lie within `range`, cut to it.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Segment> + '_ {
        let first = self.segments.partition_point(|segment| segment.end() <= range.start);
        self.segments[first..].iter().map_while(move |segment| segment.within(&range))
    }
}

/// Calls `found` for each of the `spans` and for what lies between them.
fn each_part(length: u64, spans: &[Span], mut found: impl FnMut(Range<u64>, Option<&Span>)) {
    let mut at = 0;
    for span in spans {
        if span.start > at {
            found(at..span.start, None);
        }
        found(span.start..span.end(), Some(span));
        at = span.end();
    }
    if at < length {
        found(at..length, None);
    }
}

/// For each of the target's spans, where its partner begins in the base.
fn partners(base: &[Span], target: &[Span]) -> Vec<Option<u64>> {
    let like = |a: &Span, b: &Span| (a.element_bytes, a.length) == (b.element_bytes, b.length);
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    for (at, span) in base.iter().enumerate() {
        by_name.entry(&span.name).or_insert(at);
    }
    let mut taken = vec![false; base.len()];
    let mut partners: Vec<Option<u64>> = Vec::with_capacity(target.len());
    for span in target {
        let found = by_name.get(span.name.as_str()).filter(|at| like(&base[**at], span) && !taken[**at]);
        partners.push(found.map(|at| {
            taken[*at] = true;
            base[*at].start
        }));
    }
    let mut left: HashMap<(u8, u64), Vec<u64>> = HashMap::new();
    for (span, _) in base.iter().zip(&taken).filter(|(_, taken)| !**taken).rev() {
        left.entry((span.element_bytes, span.length)).or_default().push(span.start);
    }
    for (span, partner) in target.iter().zip(&mut partners).filter(|(_, partner)| partner.is_none()) {
        *partner = left.get_mut(&(span.element_bytes, span.length)).and_then(Vec::pop);
    }
    partners
}

/// What of the earlier file is not weights, and where its blocks are.
struct Searched {
    bytes: Vec<u8>,
    /// Where the parts of `bytes` begin in it, and in the file.
    parts: Vec<(usize, u64)>,
    blocks: HashMap<[u8; BLOCK_BYTES], usize>,
}

impl Searched {
    fn read(file: &impl ReadAt, spans: &[Span]) -> io::Result<Self> {
        let mut ranges = Vec::new();
        let mut left = MAX_SEARCHED_BYTES;
        each_part(file.length(), spans, |part, span| {
            let length = (part.end - part.start).min(left);
            if span.is_none() && length > 0 {
                left -= length;
                ranges.push(part.start..part.start + length);
            }
        });
        let (mut bytes, mut parts, mut blocks) = (Vec::new(), Vec::new(), HashMap::new());
        for range in ranges {
            let begin = bytes.len();
            bytes.resize(begin + usize::try_from(range.end - range.start).unwrap_or_default(), 0);
            file.read_at(range.start, &mut bytes[begin..])?;
            parts.push((begin, range.start));
            for (number, block) in bytes[begin..].as_chunks::<BLOCK_BYTES>().0.iter().enumerate() {
                blocks.entry(*block).or_insert(begin + number * BLOCK_BYTES);
            }
        }
        Ok(Self { bytes, parts, blocks })
    }

    /// The part that holds `at`: where it begins and ends in `bytes`, and how far from there it is in the file.
    fn part(&self, at: usize) -> (Range<usize>, u64) {
        let next = self.parts.partition_point(|(begin, _)| *begin <= at);
        let (begin, start) = self.parts.get(next.wrapping_sub(1)).copied().unwrap_or_default();
        (begin..self.parts.get(next).map_or(self.bytes.len(), |(end, _)| *end), start)
    }

    /// Divides `target`, which begins at `start` in the new file, into what is copied from here and what is new.
    fn find_all(&self, start: u64, target: &[u8], into: &mut Vec<Segment>) {
        let mut new_from = 0;
        let mut at = 0;
        let mut segment = |from: usize, length: usize, base: Option<u64>| {
            if length > 0 {
                into.push(Segment { start: start + from as u64, length: length as u64, base, element_bytes: 1 });
            }
        };
        while let Some(block) = target.get(at..).and_then(|rest| rest.first_chunk::<BLOCK_BYTES>()) {
            let Some(found) = self.blocks.get(block).copied() else {
                at += 1;
                continue;
            };
            let (part, file_start) = self.part(found);
            let back = target[new_from..at]
                .iter()
                .rev()
                .zip(self.bytes[part.start..found].iter().rev())
                .take_while(|(a, b)| a == b)
                .count();
            let ahead = target[at..].iter().zip(&self.bytes[found..part.end]).take_while(|(a, b)| a == b).count();
            if back + ahead < MIN_COPY_BYTES {
                at += 1;
                continue;
            }
            segment(new_from, at - back - new_from, None);
            segment(at - back, back + ahead, Some(file_start + (found - back - part.start) as u64));
            at += ahead;
            new_from = at;
        }
        segment(new_from, target.len() - new_from, None);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::onnx::tests::file;

    fn based(alignment: &Alignment) -> u64 {
        alignment.segments.iter().filter(|s| s.base.is_some()).map(|s| s.length).sum()
    }

    #[test]
    fn weights_meet_by_name_and_then_in_order() {
        let (a, b, c) = (vec![1; 400], vec![2; 400], vec![3; 800]);
        let base = file("v1", &[("a", 1, &a), ("b", 1, &b), ("c", 1, &c)]);
        let target = file("v2 of a longer name", &[("b", 1, &c[..400]), ("renamed", 1, &a), ("c", 3, &c)]);
        let alignment = Alignment::of(&base, &target).unwrap();
        let starts: Vec<u64> = weights(&base).unwrap().iter().map(|s| s.start).collect();
        let found: Vec<_> = weights(&target)
            .unwrap()
            .iter()
            .map(|span| alignment.within(span.start..span.end()).map(|s| s.base).collect::<Vec<_>>())
            .collect();
        // Of another type, "c" has no partner.
        assert_eq!(found, [[Some(starts[1])], [Some(starts[0])], [None]]);
    }

    #[test]
    fn text_is_copied_around_a_change() {
        let base: Vec<u8> = (0..4_000u32).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        let mut target = base.clone();
        target.splice(1_000..1_003, *b"something else");
        let alignment = Alignment::of(&base, &target).unwrap();
        assert!(alignment.segments.len() <= 3, "{:?}", alignment.segments);
        assert!(based(&alignment) >= target.len() as u64 - 40);
    }

    proptest! {
        #[test]
        fn the_parts_are_the_whole_and_lie_in_the_base(
            base in prop::collection::vec(0u8..3, 0..600),
            target in prop::collection::vec(0u8..3, 0..600),
            tensors in any::<bool>(),
            from in 0u64..700,
            length in 0u64..300,
        ) {
            let (base, target) = match tensors {
                true => (file("a", &[("w", 1, &base)]), file("abc", &[("w", 1, &target)])),
                false => (base, target),
            };
            for alignment in [Alignment::of(&base, &target).unwrap(), Alignment::alone(&target).unwrap()] {
                let mut at = 0;
                for segment in &alignment.segments {
                    prop_assert_eq!(segment.start, at);
                    prop_assert!(segment.length > 0);
                    at = segment.end();
                    prop_assert!(segment.base.is_none_or(|b| b + segment.length <= base.len() as u64));
                }
                prop_assert_eq!(at, target.len() as u64);
                let end = (from + length).min(target.len() as u64);
                let covered: u64 = alignment.within(from..end).map(|s| s.length).sum();
                prop_assert_eq!(covered, end.saturating_sub(from));
            }
        }
    }
}
