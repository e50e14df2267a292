//! Which of the inferences that match a collection's rule are kept: an unbiased choice of bounded size.
//!
//! Vitter's Algorithm R (ACM TOMS 11(1), 1985), on whole numbers throughout: after any number of inferences each of them is kept with the
//! same probability. What is accepted is placed later, once it has been sealed and its size is known. Where samples are so large that
//! their bytes are the tighter limit, some are given up at random and the reservoir is that much smaller from then on: what is left is
//! an unbiased choice still, as far as size and content have nothing to do with each other.
//!
//! Random numbers come from SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), started from a seed of the caller's: nothing secret rests on
//! them. How samples are written is the caller's matter.

use serde::{Deserialize, Serialize};

/// A random number generator of 64 bits of state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Random(u64);

impl Random {
    /// One that starts from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, each with the same probability (Lemire, ACM TOMACS 29(1), 2019); 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            // The low half decides whether the high half is one of those that would come too often.
            let [high, low] = [product >> 64, product & u128::from(u64::MAX)];
            if low >= u128::from(threshold) {
                return u64::try_from(high).unwrap_or(u64::MAX);
            }
        }
    }

    /// Whether something of probability `share` happens.
    pub fn happens(&mut self, share: f64) -> bool {
        // 53 bits are what a double holds exactly.
        #[expect(clippy::cast_precision_loss, reason = "a number below 2^53 is exact")]
        let drawn = (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        drawn < share
    }
}

/// A sample that is kept: its number, and its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Grows with every sample placed.
    pub number: u64,
    /// What it takes, in bytes.
    pub bytes: u64,
}

/// What comes of placing a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placed {
    /// It is kept under this number, and then those named are given up, which may be itself.
    Kept {
        /// Its number.
        number: u64,
        /// Numbers of samples that go.
        given_up: Vec<u64>,
    },
    /// It alone is larger than all may be.
    TooLarge,
}

/// A reservoir.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservoir {
    capacity: u64,
    max_bytes: u64,
    seen: u64,
    random: Random,
    next_number: u64,
    bytes: u64,
    kept: Vec<Kept>,
}

impl Reservoir {
    /// An empty one for at most `max_count` samples (at least 1) of at most `max_bytes` bytes together.
    #[must_use]
    pub fn new(max_count: u32, max_bytes: u64, seed: u64) -> Self {
        Self {
            capacity: u64::from(max_count.max(1)),
            max_bytes,
            seen: 0,
            random: Random::new(seed),
            next_number: 1,
            bytes: 0,
            kept: Vec::new(),
        }
    }

    /// Whether the next inference that matches is to be kept. It counts as seen either way.
    pub fn accepts(&mut self) -> bool {
        self.seen = self.seen.saturating_add(1);
        self.seen <= self.capacity || self.random.below(self.seen) < self.capacity
    }

    /// Places an accepted sample of `bytes` bytes.
    pub fn place(&mut self, bytes: u64) -> Placed {
        if bytes > self.max_bytes {
            return Placed::TooLarge;
        }
        let mut given_up = Vec::new();
        if self.held() >= self.capacity {
            given_up.extend(self.give_one_up());
        }
        let number = self.next_number;
        self.next_number += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.kept.push(Kept { number, bytes });
        // The new one is among those that may go: it has no better right to stay than the others.
        while self.bytes > self.max_bytes && self.held() > 0 {
            given_up.extend(self.give_one_up());
            self.capacity = self.held().max(1);
        }
        Placed::Kept { number, given_up }
    }

    fn give_one_up(&mut self) -> Option<u64> {
        let at = usize::try_from(self.random.below(self.held())).unwrap_or_default();
        if at >= self.kept.len() {
            return None;
        }
        let gone = self.kept.swap_remove(at);
        self.bytes = self.bytes.saturating_sub(gone.bytes);
        Some(gone.number)
    }

    /// Forgets samples that turned out to be lost.
    pub fn retain(&mut self, is_there: impl Fn(u64) -> bool) {
        self.kept.retain(|kept| is_there(kept.number));
        self.bytes = self.kept.iter().map(|kept| kept.bytes).sum();
    }

    /// Inferences that matched so far.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// How many samples are kept.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.kept.len() as u64
    }

    /// What they take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The samples kept, in no order that means anything.
    #[must_use]
    pub fn kept(&self) -> &[Kept] {
        &self.kept
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_numbers_are_those_of_splitmix64() {
        // The reference implementation's first numbers from the seed 1234567 (Rosetta Code, "Pseudo-random numbers/Splitmix64").
        let mut random = Random::new(1_234_567);
        let first: Vec<u64> = (0..5).map(|_| random.next_u64()).collect();
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821
            ]
        );
        assert_eq!(Random::new(1).below(0), 0);
    }

    /// Pearson's statistic of `counts` against equal shares.
    fn chi_square(counts: &[u64]) -> f64 {
        let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        counts.iter().map(|count| (*count as f64 - expected).powi(2) / expected).sum()
    }

    #[test]
    fn every_inference_is_kept_as_often_as_any_other() {
        // 99.9 % points of the chi-square distribution with 99 and 49 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.4).
        for (inferences, capacity, point) in [(100_usize, 10, 148.23), (50, 20, 85.351)] {
            let mut counts = vec![0_u64; inferences];
            for seed in 0..4_000 {
                let mut reservoir = Reservoir::new(capacity, u64::MAX, seed);
                let mut held = BTreeMap::new();
                for inference in 0..inferences {
                    if reservoir.accepts()
                        && let Placed::Kept { number, given_up } = reservoir.place(1)
                    {
                        held.insert(number, inference);
                        held.retain(|number, _| !given_up.contains(number));
                    }
                }
                assert_eq!(held.len(), capacity as usize);
                held.values().for_each(|inference| counts[*inference] += 1);
            }
            // Without replacement the counts vary less than Pearson has it, by (N - n) / (N - 1).
            let n = inferences as f64;
            let corrected = chi_square(&counts) * (n - 1.0) / (n - f64::from(capacity));
            assert!(corrected < point, "{corrected} of {inferences}");
            assert!(corrected > point / 3.0, "too even to be random: {corrected}");
        }
    }

    #[test]
    fn what_bytes_leave_room_for_is_chosen_without_favour() {
        // Room for 8 of 60 that are all of the same size, though 20 would be allowed by their number.
        let mut counts = vec![0_u64; 60];
        for seed in 0..4_000 {
            let mut reservoir = Reservoir::new(20, 800, seed);
            let mut held = BTreeMap::new();
            for inference in 0..60 {
                if reservoir.accepts()
                    && let Placed::Kept { number, given_up } = reservoir.place(100)
                {
                    held.insert(number, inference);
                    held.retain(|number, _| !given_up.contains(number));
                }
            }
            assert_eq!((held.len(), reservoir.bytes()), (8, 800));
            held.values().for_each(|inference| counts[*inference] += 1);
        }
        // 59 degrees of freedom at 99.9 %: 98.324.
        let corrected = chi_square(&counts) * 59.0 / 52.0;
        assert!(corrected < 98.324, "{corrected}: {counts:?}");
    }

    #[test]
    fn a_share_is_kept() {
        let mut random = Random::new(3);
        let kept = (0..100_000).filter(|_| random.happens(0.25)).count();
        assert!((24_500..25_500).contains(&kept), "{kept}");
        assert!((0..1_000).all(|_| random.happens(1.0)) && !(0..1_000).any(|_| random.happens(0.0)));
    }

    proptest! {
        #[test]
        fn no_order_of_events_passes_the_bounds(
            max_count in 0..20u32,
            max_bytes in 0..2_000u64,
            seed: u64,
            steps in prop::collection::vec((0..3u8, 0..1_500u64), 0..300),
        ) {
            let mut reservoir = Reservoir::new(max_count, max_bytes, seed);
            let mut held: BTreeMap<u64, u64> = BTreeMap::new();
            for (step, bytes) in steps {
                match step {
                    0 => _ = reservoir.accepts(),
                    1 => match reservoir.place(bytes) {
                        Placed::Kept { number, given_up } => {
                            prop_assert!(held.insert(number, bytes).is_none());
                            for gone in given_up {
                                prop_assert!(held.remove(&gone).is_some());
                            }
                        }
                        Placed::TooLarge => prop_assert!(bytes > max_bytes),
                    },
                    _ => {
                        let lost = held.keys().next().copied();
                        held.retain(|number, _| Some(*number) != lost);
                        reservoir.retain(|number| Some(number) != lost);
                    }
                }
                prop_assert_eq!(reservoir.held(), held.len() as u64);
                prop_assert_eq!(reservoir.bytes(), held.values().sum::<u64>());
                prop_assert!(reservoir.held() <= u64::from(max_count.max(1)) && reservoir.bytes() <= max_bytes);
                let json = serde_json::to_vec(&reservoir).unwrap();
                prop_assert_eq!(&serde_json::from_slice::<Reservoir>(&json).unwrap(), &reservoir);
            }
        }
    }
}
