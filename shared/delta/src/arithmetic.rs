//! Differences of single bytes, each coded with what it differs from in mind.
//!
//! Quantised weights change rarely, and large ones sooner than small ones: how likely a byte is to differ is learnt for each size of the
//! old byte as the stream goes, from the first guess that it grows with the size. That takes an arithmetic coder, which gives a likely
//! bit less than a bit of space; this is the range coder of LZMA (Igor Pavlov, LZMA specification, 2015). General compressors cannot
//! be told of the old byte, and take about a third more.
//!
//! As nearly all bytes stay, a group of them is coded at once: whether any differs, by the product of what is likely for each, and only
//! then which. That takes no more space, and one step in place of eight.

/// Below this, another byte of the number is settled.
const LEAST_RANGE: u32 = 1 << 24;
/// Certainty, as likelihoods are counted.
const ONE: u32 = 1 << 16;
/// Bytes coded at once, where few differ.
const GROUP: usize = 8;
/// Bytes after which likelihoods are reckoned anew: soon at first, and then each time as much again, up to the most.
const FIRST_BLOCK: usize = 64;
const LONGEST_BLOCK: usize = 2_048;
/// Where one of so many bytes or more differs, they are coded one by one.
const GROUPED_FROM: u64 = 8;
/// How many differing bytes of a size it takes to outweigh the guess from all sizes together.
const GUESS_COUNTS: u64 = 3;
/// The first guess, before anything is known: one differing byte among old ones whose weights sum up to this.
const FIRST_GUESS: u64 = 4_096;

/// Sizes of old bytes told apart: finer where most weights are.
const SIZES: usize = 23;

/// The number of each size, by the old byte.
const SIZE_OF: [u8; 256] = {
    let mut sizes = [0; 256];
    let mut byte = 0_u8;
    loop {
        let size = byte.cast_signed().unsigned_abs();
        sizes[byte as usize] = match size {
            0..8 => size,
            8..16 => 8 + (size - 8) / 2,
            16..32 => 12 + (size - 16) / 4,
            _ => 16 + (size - 32) / 16,
        };
        if byte == u8::MAX {
            break;
        }
        byte += 1;
    }
    sizes
};

/// How likely a byte of each size is to differ, in relation to the others, as a first guess: the scale of a tensor is chosen by its
/// largest weights, and a step of training moves these most.
const WEIGHTS: [u64; SIZES] =
    [1, 4, 7, 10, 13, 16, 19, 22, 26, 32, 38, 44, 52, 64, 76, 88, 110, 110, 110, 110, 110, 110, 110];

/// How likely the next bit is 0: the share so far, and once there have been many, with the older ones forgotten slowly.
#[derive(Clone, Copy)]
struct Chance {
    of_zero: u16,
    seen: u8,
}

/// 65536 / (n + 1.5): how much the bit after `n` others counts, by Krichevsky and Trofimov.
const SHARES: [u32; 256] = {
    let mut shares = [0; 256];
    let (mut at, mut seen) = (0, 0);
    while at < shares.len() {
        shares[at] = 131_072 / (2 * seen + 3);
        (at, seen) = (at + 1, seen + 1);
    }
    shares
};

impl Chance {
    const EVEN: Self = Self { of_zero: 1 << 15, seen: 0 };
    /// As if there had been 14 zeros of 15.
    const SELDOM: Self = Self { of_zero: 61_167, seen: 14 };

    fn code(&mut self, coder: &mut impl Coder, bit: bool) -> bool {
        let bit = coder.code(u32::from(self.of_zero).clamp(32, ONE - 32), bit);
        let change = |rest: u16| ((u32::from(rest) * SHARES[usize::from(self.seen)]) >> 16) as u16;
        if bit {
            self.of_zero -= change(self.of_zero);
        } else {
            self.of_zero += change(u16::MAX - self.of_zero);
        }
        self.seen = self.seen.saturating_add(1);
        bit
    }
}

/// What has been learnt so far.
struct Model {
    /// How likely a byte is to stay, by the old one.
    stays: [u32; 256],
    /// Bytes so far, and those of them that differed, by size.
    seen: [u64; SIZES],
    differed: [u64; SIZES],
    /// Whether a difference is larger than 1, whether one of 1 is up, by the sign of the old byte, and what a larger one is: a tree of
    /// bits, highest first.
    larger: Chance,
    up: [Chance; 2],
    by: [Chance; 256],
}

impl Model {
    fn new() -> Self {
        let mut model = Self {
            stays: [0; 256],
            seen: [0; SIZES],
            differed: [0; SIZES],
            larger: Chance::SELDOM,
            up: [Chance::EVEN; 2],
            by: [Chance::EVEN; 256],
        };
        model.reckon();
        model
    }

    /// How likely each byte is to stay, from what has been counted.
    fn reckon(&mut self) {
        let weighed: u64 = self.seen.iter().zip(WEIGHTS).map(|(seen, weight)| seen * weight).sum();
        let all: u64 = self.differed.iter().sum();
        let stays: [u32; SIZES] = std::array::from_fn(|size| {
            let guess = ((all + 1) * WEIGHTS[size] * u64::from(ONE) / (weighed + FIRST_GUESS)).clamp(4, 1 << 15);
            // As if a few more had differed, among as many bytes as the guess says it takes for that.
            let bytes = self.seen[size] + GUESS_COUNTS * u64::from(ONE) / guess;
            let differs = (self.differed[size] + GUESS_COUNTS) * u64::from(ONE) / bytes;
            ONE - u32::try_from(differs).unwrap_or(ONE).clamp(4, ONE - 1_024)
        });
        for (stay, size) in self.stays.iter_mut().zip(SIZE_OF) {
            *stay = stays[usize::from(size)];
        }
    }

    /// Counts a block that has been coded.
    fn count(&mut self, old: &[u8]) {
        // Apart, so that bytes of one size in a row do not wait for each other.
        let mut counts = [[0_u32; 32]; 4];
        let (fours, rest) = old.as_chunks::<4>();
        for four in fours {
            for (counts, byte) in counts.iter_mut().zip(four) {
                counts[usize::from(SIZE_OF[usize::from(*byte)] & 31)] += 1;
            }
        }
        for byte in rest {
            counts[0][usize::from(SIZE_OF[usize::from(*byte)] & 31)] += 1;
        }
        for (size, seen) in self.seen.iter_mut().enumerate() {
            *seen += counts.iter().map(|counts| u64::from(counts[size])).sum::<u64>();
        }
    }

    /// Codes `values`, which differ from `old`, through `coder`; a reader takes them for zeros and fills them in.
    fn code(&mut self, old: &[u8], values: &mut [u8], coder: &mut impl Coder) {
        let (mut begin, mut length) = (0, FIRST_BLOCK);
        while begin < old.len() {
            let end = old.len().min(begin + length);
            self.block(&old[begin..end], &mut values[begin..end], coder);
            self.count(&old[begin..end]);
            self.reckon();
            length = LONGEST_BLOCK.min(end);
            begin = end;
        }
    }

    fn block(&mut self, mut old: &[u8], mut values: &mut [u8], coder: &mut impl Coder) {
        let (seen, differed) = (self.seen.iter().sum::<u64>(), self.differed.iter().sum::<u64>());
        if differed * GROUPED_FROM <= seen {
            while let Some((group, _)) = old.split_first_chunk::<GROUP>() {
                let (value, _) = values.split_at_mut(GROUP);
                let done = self.group(group, value, coder);
                old = &old[done..];
                values = &mut values[done..];
            }
        }
        for (old, value) in old.iter().zip(values) {
            if coder.code(self.stays[usize::from(*old)], *value != 0) {
                *value = self.difference(*old, *value, coder);
            }
        }
    }

    /// Codes the bytes of a group up to the first that differs, and says how many that were.
    fn group(&mut self, old: &[u8; GROUP], values: &mut [u8], coder: &mut impl Coder) -> usize {
        let stay = old.map(|old| self.stays[usize::from(old)]);
        // The first of the two is below certainty, so that this does not overflow.
        let both = |a: u32, b: u32| (a * b) >> 16;
        let halves = [
            both(both(stay[0], stay[1]), both(stay[2], stay[3])),
            both(both(stay[4], stay[5]), both(stay[6], stay[7])),
        ];
        let all = both(halves[0], halves[1]).max(1);
        let first = values.iter().position(|value| *value != 0);
        if !coder.code(all, first.is_some()) {
            return GROUP;
        }
        // How likely it is that all from each one on stay.
        let mut rest = [ONE; GROUP + 1];
        for at in (0..GROUP).rev() {
            rest[at] = both(stay[at], rest[at + 1]);
        }
        let at = (0..GROUP - 1)
            .find(|at| {
                // One of those that are left differs, for certain.
                let differs = (u64::from(ONE - stay[*at]) << 16) / u64::from(ONE - rest[*at]).max(1);
                let stays = ONE - u32::try_from(differs).unwrap_or(ONE).clamp(1, ONE - 1);
                coder.code(stays, first == Some(*at))
            })
            .unwrap_or(GROUP - 1);
        values[at] = self.difference(old[at], values[at], coder);
        at + 1
    }

    /// Codes one difference from `old` that is not 0, and returns it.
    fn difference(&mut self, old: u8, value: u8, coder: &mut impl Coder) -> u8 {
        self.differed[usize::from(SIZE_OF[usize::from(old)])] += 1;
        // Differences are zigzag encoded: 1 is down by 1, 2 is up by 1.
        if !self.larger.code(coder, value > 2) {
            return 1 + u8::from(self.up[usize::from(old >> 7)].code(coder, value == 2));
        }
        let mut node = 1_usize;
        for shift in (0..8).rev() {
            node = node << 1 | usize::from(self.by[node].code(coder, value >> shift & 1 == 1));
        }
        node.to_le_bytes()[0]
    }
}

/// One side of the coding: a writer is told each bit, a reader finds it out. Bits are 0 with a likelihood of `of_zero`, above 0 and below
/// [`ONE`].
trait Coder {
    fn code(&mut self, of_zero: u32, bit: bool) -> bool;
}

impl Coder for Writer {
    fn code(&mut self, of_zero: u32, bit: bool) -> bool {
        self.bit(of_zero, bit);
        bit
    }
}

impl Coder for Reader<'_> {
    fn code(&mut self, of_zero: u32, _: bool) -> bool {
        self.bit(of_zero)
    }
}

/// Codes `differences`, each from the byte of `old` at its place.
pub(crate) fn encode(differences: &[u8], old: &[u8]) -> Vec<u8> {
    let mut writer = Writer { low: 0, range: u32::MAX, held: 0, held_count: 1, out: Vec::new() };
    Model::new().code(old, &mut differences.to_vec(), &mut writer);
    writer.end()
}

/// The differences from `old` that [`encode`] coded as `bytes`. Other bytes give other differences.
pub(crate) fn decode(bytes: &[u8], old: &[u8]) -> Vec<u8> {
    let mut differences = vec![0; old.len()];
    Model::new().code(old, &mut differences, &mut Reader::new(bytes));
    differences
}

struct Writer {
    low: u64,
    range: u32,
    /// The last byte settled but for a carry, and how many of 255 follow it.
    held: u8,
    held_count: u64,
    out: Vec<u8>,
}

impl Writer {
    fn bit(&mut self, of_zero: u32, bit: bool) {
        let bound = (self.range >> 16) * of_zero;
        if bit {
            self.low += u64::from(bound);
            self.range -= bound;
        } else {
            self.range = bound;
        }
        while self.range < LEAST_RANGE {
            self.range <<= 8;
            self.shift();
        }
    }

    fn shift(&mut self) {
        if self.low < 0xff00_0000 || self.low > u64::from(u32::MAX) {
            let [_, _, _, carry, settled, ..] = self.low.to_be_bytes();
            self.out.push(self.held.wrapping_add(carry));
            self.out.extend((1..self.held_count).map(|_| 0xff_u8.wrapping_add(carry)));
            self.held_count = 0;
            self.held = settled;
        }
        self.held_count += 1;
        self.low = (self.low & 0x00ff_ffff) << 8;
    }

    fn end(mut self) -> Vec<u8> {
        for _ in 0..5 {
            self.shift();
        }
        // The first byte stands before the number and no carry reaches it. A reader takes 0 for what is missing at the end.
        self.out.remove(0);
        while self.out.last() == Some(&0) {
            self.out.pop();
        }
        self.out
    }
}

struct Reader<'a> {
    code: u32,
    range: u32,
    bytes: std::slice::Iter<'a, u8>,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let mut reader = Self { code: 0, range: u32::MAX, bytes: bytes.iter() };
        for _ in 0..4 {
            reader.shift();
        }
        reader
    }

    fn shift(&mut self) {
        self.code = self.code << 8 | u32::from(self.bytes.next().copied().unwrap_or_default());
    }

    fn bit(&mut self, of_zero: u32) -> bool {
        let bound = (self.range >> 16) * of_zero;
        let bit = self.code >= bound;
        if bit {
            self.code -= bound;
            self.range -= bound;
        } else {
            self.range = bound;
        }
        while self.range < LEAST_RANGE {
            self.range <<= 8;
            self.shift();
        }
        bit
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn likely_bits_cost_little() {
        let mut state = 1_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16).to_le_bytes()[0]
        };
        let old: Vec<u8> = (0..65_536).map(|_| random()).collect();
        // Only bytes of a large size differ, one of 16 of them, by 1 in either direction.
        let differs = |old: u8| old.cast_signed().unsigned_abs() >= 96;
        let new: Vec<u8> =
            old.iter().map(|old| if differs(*old) && random() % 16 == 0 { 1 + random() % 2 } else { 0 }).collect();
        let large = old.iter().filter(|old| differs(**old)).count() as f64;
        // By Shannon: H(1/16) for each large byte, and a bit more for one that differs; learning what is what costs a sixth.
        let entropy_bytes = large * (0.3373 + 1.0 / 16.0) / 8.0;
        let coded = encode(&new, &old);
        assert_eq!(decode(&coded, &old), new);
        assert!((coded.len() as f64) < entropy_bytes * 1.2, "{} {entropy_bytes}", coded.len());
    }

    proptest! {
        #[test]
        fn differences_come_back(
            pairs in prop::collection::vec((any::<u8>(), prop_oneof![4 => Just(0u8), 1 => any::<u8>()]), 0..3_000),
        ) {
            let (old, new): (Vec<u8>, Vec<u8>) = pairs.into_iter().unzip();
            prop_assert_eq!(decode(&encode(&new, &old), &old), new);
        }

        /// Runs of the dearest kind make carries and long holds.
        #[test]
        fn carries_come_back(runs in prop::collection::vec((any::<u8>(), 1usize..2_000), 1..20)) {
            let new: Vec<u8> = runs.iter().flat_map(|(value, count)| std::iter::repeat_n(*value, *count)).collect();
            let old = vec![0; new.len()];
            prop_assert_eq!(decode(&encode(&new, &old), &old), new);
        }

        #[test]
        fn any_bytes_are_differences(bytes in prop::collection::vec(any::<u8>(), 0..300), old in prop::collection::vec(any::<u8>(), 0..500)) {
            prop_assert_eq!(decode(&bytes, &old).len(), old.len());
        }
    }
}
