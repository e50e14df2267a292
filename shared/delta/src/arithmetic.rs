//! Differences of single bytes, each coded with what it differs from in mind.
//!
//! Quantised weights change rarely, and large ones sooner than small ones: how likely a byte is to differ, and in which direction, is
//! learnt for each size of the old byte as the stream goes. That takes an arithmetic coder, which gives a likely bit less than a bit
//! of space; this is the range coder of LZMA (Igor Pavlov, LZMA specification, 2015) with probabilities of 16 bits that are
//! counted. General compressors cannot be told of the old byte, and take about a third more.

/// Below this, another byte of the number is settled.
const LEAST_RANGE: u32 = 1 << 24;
/// Sizes of old bytes told apart: with more, each is learnt too late in a chunk.
const SIZES: usize = 32;

/// How likely the next bit is 0, in 1/65536: the share so far, and once there have been many, with the older ones forgotten slowly.
#[derive(Clone, Copy)]
struct Chance {
    of_zero: u16,
    seen: u8,
}

/// 65536 / (n + 1.5): how much the bit after `n` others counts, by Krichevsky and Trofimov.
const WEIGHTS: [u32; 256] = {
    let mut weights = [0; 256];
    let (mut at, mut seen) = (0, 0);
    while at < weights.len() {
        weights[at] = 131_072 / (2 * seen + 3);
        (at, seen) = (at + 1, seen + 1);
    }
    weights
};

impl Chance {
    const EVEN: Self = Self { of_zero: 1 << 15, seen: 0 };

    fn of_zero(self) -> u32 {
        u32::from(self.of_zero).clamp(32, 65_504)
    }

    fn learn(&mut self, bit: bool) {
        let weight = WEIGHTS[usize::from(self.seen)];
        let change = |rest: u16| ((u32::from(rest) * weight) >> 16) as u16;
        if bit {
            self.of_zero -= change(self.of_zero);
        } else {
            self.of_zero += change(u16::MAX - self.of_zero);
        }
        self.seen = self.seen.saturating_add(1);
    }
}

/// What has been learnt so far.
struct Model {
    /// Whether a byte differs, by the size of the old one.
    differs: [Chance; SIZES],
    /// By how much: a tree of bits, highest first, by the sign of the old byte.
    by: [[Chance; 256]; 2],
}

impl Model {
    fn new() -> Self {
        Self { differs: [Chance::EVEN; SIZES], by: [[Chance::EVEN; 256]; 2] }
    }

    /// Codes one difference from `old` through `coder`, and returns it; a reader takes no notice of `value`.
    fn difference(&mut self, old: u8, value: u8, coder: &mut impl Coder) -> u8 {
        let old = old.cast_signed();
        let size = usize::from(old.unsigned_abs() / 4).min(SIZES - 1);
        if !coder.code(&mut self.differs[size], value != 0) {
            return 0;
        }
        let tree = &mut self.by[usize::from(old < 0)];
        let less_one = value.wrapping_sub(1);
        let mut node = 1_usize;
        let mut found = 0_u8;
        for shift in (0..8).rev() {
            let bit = coder.code(&mut tree[node], less_one >> shift & 1 == 1);
            node = node << 1 | usize::from(bit);
            found = found << 1 | u8::from(bit);
        }
        found.wrapping_add(1)
    }
}

/// One side of the coding: a writer is told each bit, a reader finds it out.
trait Coder {
    fn code(&mut self, chance: &mut Chance, bit: bool) -> bool;
}

impl Coder for Writer {
    fn code(&mut self, chance: &mut Chance, bit: bool) -> bool {
        self.bit(chance.of_zero(), bit);
        chance.learn(bit);
        bit
    }
}

impl Coder for Reader<'_> {
    fn code(&mut self, chance: &mut Chance, _: bool) -> bool {
        let bit = self.bit(chance.of_zero());
        chance.learn(bit);
        bit
    }
}

/// Codes `differences`, each from the byte of `old` at its place.
pub(crate) fn encode(differences: &[u8], old: &[u8]) -> Vec<u8> {
    let mut writer = Writer { low: 0, range: u32::MAX, held: 0, held_count: 1, out: Vec::new() };
    let mut model = Model::new();
    for (value, old) in differences.iter().zip(old) {
        model.difference(*old, *value, &mut writer);
    }
    writer.end()
}

/// The differences from `old` that [`encode`] coded as `bytes`. Other bytes give other differences.
pub(crate) fn decode(bytes: &[u8], old: &[u8]) -> Vec<u8> {
    let mut reader = Reader::new(bytes);
    let mut model = Model::new();
    old.iter().map(|old| model.difference(*old, 0, &mut reader)).collect()
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
