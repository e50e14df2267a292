//! What is watched of a tensor with too many elements to watch one by one: figures over all of them, and random projections.
//!
//! **Projections.** A row of n elements is taken in blocks of 16. Block b (counted from 0) draws the 64-bit word w that SplitMix64 (Steele, Lea and
//! Flood, OOPSLA 2014) gives for the state `seed` + (b + 1) · 0x9E3779B97F4A7C15; with r the bits 16 to 19 of w, projection l adds element
//! l xor r of the block, negated when bit l of w is 1. So each element counts in one projection, with a random sign: a sparse
//! Johnson–Lindenstrauss transform with one entry a column (Achlioptas, JCSS 66(4), 2003; Kane and Nelson, JACM 61(1), 2014). The squares of
//! the sixteen sums add up to the row's squared norm on average, as with Gaussian projections, and with the same variance where no few
//! elements dominate; a sixteenth of the sums are taken, and no matrix is stored.
//!
//! Sums are taken in a fixed order, in lanes of FP32 that are emptied into FP64: the same bits come out on every machine.

use muster_shared::bundle::DataType;
use muster_shared::limits::PROJECTIONS;
use muster_shared::profile::Probe;

use crate::tensor::Tensor;

/// Elements taken at once.
const LANES: usize = PROJECTIONS;
/// Blocks after which lanes are emptied, so that their rounding errors stay small.
const BLOCKS_A_LANE: usize = 64;
const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
/// The sign bits of four lanes, by four bits of a word.
const SIGNS: [[u32; 4]; 16] = {
    let mut signs = [[0_u32; 4]; 16];
    let (mut at, mut bits) = (0, 0_u32);
    while at < 16 {
        signs[at] = [(bits & 1) << 31, (bits >> 1 & 1) << 31, (bits >> 2 & 1) << 31, (bits >> 3 & 1) << 31];
        at += 1;
        bits += 1;
    }
    signs
};

/// SplitMix64's output for `state`.
const fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What is asked of each row of one tensor.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wide {
    /// The seed of the projections, where there are any.
    pub(crate) seed: Option<u64>,
    /// What counts as saturated, where that is asked.
    pub(crate) saturated_at: Option<f32>,
    /// How many channels and whether they are the last dimension, where their means are asked.
    pub(crate) channels: Option<(usize, bool)>,
}

/// What was found of one row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    n: f64,
    shift: f64,
    /// Of x − shift.
    sum: f64,
    sum_of_squares: f64,
    steps: f64,
    zeros: f64,
    saturated: f64,
    min: f32,
    max: f32,
    channels: [f64; 4],
    projections: [f64; LANES],
}

/// Sums of up to [`BLOCKS_A_LANE`] blocks.
#[derive(Clone, Copy)]
struct Lanes {
    sum: [f32; LANES],
    sum_of_squares: [f32; LANES],
    steps: [f32; LANES],
    zeros: [f32; LANES],
    saturated: [f32; LANES],
    projections: [f32; LANES],
}

impl Lanes {
    const EMPTY: Self = Self {
        sum: [0.0; LANES],
        sum_of_squares: [0.0; LANES],
        steps: [0.0; LANES],
        zeros: [0.0; LANES],
        saturated: [0.0; LANES],
        projections: [0.0; LANES],
    };

    fn empty_into(&mut self, figures: &mut Figures) {
        let total = |lanes: &[f32; LANES]| lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
        figures.sum += total(&self.sum);
        figures.sum_of_squares += total(&self.sum_of_squares);
        figures.steps += total(&self.steps);
        figures.zeros += total(&self.zeros);
        figures.saturated += total(&self.saturated);
        for (sum, lane) in figures.projections.iter_mut().zip(&self.projections) {
            *sum += f64::from(*lane);
        }
        *self = Self::EMPTY;
    }
}

impl Wide {
    /// Measures the row of `width` elements that starts at element `start`; `None` for texts and past the end.
    pub(crate) fn measure(&self, tensor: &Tensor, start: usize, width: usize) -> Option<Figures> {
        let data = tensor.data();
        match tensor.datatype() {
            DataType::Bytes => None,
            DataType::Fp32 => {
                let row = data.get(start * 4..(start + width) * 4)?;
                let (row, _) = row.as_chunks::<4>();
                Some(self.of(row.len(), |at| row.get(at).map_or(f32::NAN, |bytes| f32::from_le_bytes(*bytes))))
            }
            DataType::Uint8 => {
                let row = data.get(start..start + width)?;
                Some(self.of(row.len(), |at| row.get(at).map_or(f32::NAN, |byte| f32::from(*byte))))
            }
            #[expect(clippy::cast_possible_truncation, reason = "rounding to the nearest is what is wanted")]
            DataType::Bool
            | DataType::Uint16
            | DataType::Uint32
            | DataType::Uint64
            | DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Fp16
            | DataType::Fp64 => {
                Some(self.of(width, |at| tensor.value(start + at).map_or(f32::NAN, |value| value as f32)))
            }
        }
    }

    /// Measures a row of a decoded image, each element as FP32 would hold it.
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the nearest is what is wanted")]
    pub(crate) fn measure_decoded(&self, row: &[f64]) -> Figures {
        self.of(row.len(), |at| row.get(at).map_or(f32::NAN, |value| *value as f32))
    }

    #[inline]
    fn of(&self, n: usize, get: impl Fn(usize) -> f32) -> Figures {
        // Squares are taken about an element of the row, so that they lose nothing to a large mean.
        let shift = Some(get(0)).filter(|first| n > 0 && first.is_finite()).unwrap_or(0.0);
        let mut figures = Figures {
            n: n as f64,
            shift: f64::from(shift),
            sum: 0.0,
            sum_of_squares: 0.0,
            steps: 0.0,
            zeros: 0.0,
            saturated: 0.0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            channels: [0.0; 4],
            projections: [0.0; LANES],
        };
        let saturated_at = self.saturated_at.unwrap_or(f32::INFINITY);
        let (mut min, mut max) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
        let mut lanes = Lanes::EMPTY;
        let mut last = shift;
        let blocks = n / LANES;
        for block in 0..blocks {
            let x: [f32; LANES] = std::array::from_fn(|lane| get(block * LANES + lane));
            let mut before = [last; LANES];
            before[1..].copy_from_slice(&x[..LANES - 1]);
            last = x[LANES - 1];
            for lane in 0..LANES {
                let from_shift = x[lane] - shift;
                lanes.sum[lane] += from_shift;
                lanes.sum_of_squares[lane] += from_shift * from_shift;
                lanes.steps[lane] += (x[lane] - before[lane]).abs();
                lanes.zeros[lane] += f32::from(u8::from(x[lane] == 0.0));
                lanes.saturated[lane] += f32::from(u8::from(x[lane] >= saturated_at));
                min[lane] = if x[lane] < min[lane] { x[lane] } else { min[lane] };
                max[lane] = if x[lane] > max[lane] { x[lane] } else { max[lane] };
            }
            if let Some(seed) = self.seed {
                let word = mix(seed.wrapping_add((block as u64 + 1).wrapping_mul(GOLDEN_GAMMA)));
                let turn = (word >> 16 & 15) as usize;
                let turned: [f32; LANES] = std::array::from_fn(|lane| x[lane ^ turn]);
                for quarter in 0..LANES / 4 {
                    let signs = &SIGNS[(word >> (4 * quarter) & 15) as usize];
                    for (lane, sign) in signs.iter().enumerate() {
                        let at = 4 * quarter + lane;
                        lanes.projections[at] += f32::from_bits(turned[at].to_bits() ^ sign);
                    }
                }
            }
            if block % BLOCKS_A_LANE == BLOCKS_A_LANE - 1 {
                lanes.empty_into(&mut figures);
            }
        }
        lanes.empty_into(&mut figures);
        let word = self.seed.map(|seed| mix(seed.wrapping_add((blocks as u64 + 1).wrapping_mul(GOLDEN_GAMMA))));
        for at in blocks * LANES..n {
            let x = get(at);
            let from_shift = f64::from(x) - figures.shift;
            figures.sum += from_shift;
            figures.sum_of_squares += from_shift * from_shift;
            figures.steps += f64::from((x - last).abs());
            figures.zeros += f64::from(u8::from(x == 0.0));
            figures.saturated += f64::from(u8::from(x >= saturated_at));
            last = x;
            min[0] = if x < min[0] { x } else { min[0] };
            max[0] = if x > max[0] { x } else { max[0] };
            if let Some(word) = word {
                let lane = (at % LANES) ^ (word >> 16 & 15) as usize;
                figures.projections[lane] += if word >> lane & 1 == 1 { -f64::from(x) } else { f64::from(x) };
            }
        }
        figures.min = min.into_iter().fold(f32::INFINITY, f32::min);
        figures.max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
        if let Some((channels, last)) = self.channels {
            figures.channels = channel_means(n, channels, last, &get);
        }
        figures
    }
}

/// The mean of each of up to four channels.
#[inline]
fn channel_means(n: usize, channels: usize, last: bool, get: &impl Fn(usize) -> f32) -> [f64; 4] {
    let mut sums = [0.0; 4];
    let channels = channels.clamp(1, 4);
    let plane = n / channels;
    if last {
        // As many lanes as make whole pixels.
        let step = LANES * channels;
        let mut lanes = [0.0_f32; LANES * 4];
        for block in 0..n / step {
            for (lane, sum) in lanes[..step].iter_mut().enumerate() {
                *sum += get(block * step + lane);
            }
            if block % BLOCKS_A_LANE == BLOCKS_A_LANE - 1 || block + 1 == n / step {
                for (lane, sum) in lanes[..step].iter_mut().enumerate() {
                    sums[lane % channels] += f64::from(std::mem::take(sum));
                }
            }
        }
        for at in n / step * step..n {
            sums[at % channels] += f64::from(get(at));
        }
    } else {
        for (channel, sum) in sums[..channels].iter_mut().enumerate() {
            let start = channel * plane;
            let mut lanes = [0.0_f32; LANES];
            for block in 0..plane / LANES {
                for (lane, sum) in lanes.iter_mut().enumerate() {
                    *sum += get(start + block * LANES + lane);
                }
                if block % BLOCKS_A_LANE == BLOCKS_A_LANE - 1 || block + 1 == plane / LANES {
                    *sum += lanes.iter_mut().map(|lane| f64::from(std::mem::take(lane))).sum::<f64>();
                }
            }
            *sum += (start + plane / LANES * LANES..start + plane).map(|at| f64::from(get(at))).sum::<f64>();
        }
    }
    sums.map(|sum| sum / plane.max(1) as f64)
}

impl Figures {
    fn is_finite(&self) -> bool {
        // Any element that is not finite leaves its mark on both sums.
        self.sum.is_finite() && self.sum_of_squares.is_finite() && self.n > 0.0
    }

    /// A figure over all elements; NaN when one is not finite, or there is none.
    pub(crate) fn probe(&self, probe: Probe) -> f64 {
        if !self.is_finite() {
            return f64::NAN;
        }
        let mean = self.sum / self.n;
        match probe {
            Probe::Mean => self.shift + mean,
            Probe::Std => (self.sum_of_squares / self.n - mean * mean).max(0.0).sqrt(),
            Probe::Min => f64::from(self.min),
            Probe::Max => f64::from(self.max),
            // Σx² = Σ(x − s)² + 2s·Σ(x − s) + n·s²
            Probe::Norm => {
                (self.sum_of_squares + 2.0 * self.shift * self.sum + self.n * self.shift * self.shift).max(0.0).sqrt()
            }
            Probe::Roughness => self.steps / (self.n - 1.0).max(1.0),
            Probe::Zeros => self.zeros / self.n,
            Probe::Saturated { .. } => self.saturated / self.n,
            Probe::ChannelMean { channel, .. } => self.channels.get(usize::from(channel)).copied().unwrap_or(f64::NAN),
        }
    }

    /// Projection `number`; NaN when an element is not finite.
    pub(crate) fn projection(&self, number: u8) -> f64 {
        let value = self.projections.get(usize::from(number)).copied();
        value.filter(|_| self.is_finite()).unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn figures(row: &[f32], wide: &Wide) -> Figures {
        let tensor = Tensor::from_f32("x", vec![row.len()], row).unwrap();
        wide.measure(&tensor, 0, row.len()).unwrap()
    }

    fn projections(row: &[f32], seed: u64) -> Vec<f64> {
        let found = figures(row, &Wide { seed: Some(seed), ..Wide::default() });
        (0..16).map(|number| found.projection(number)).collect()
    }

    #[test]
    fn figures_of_a_known_row() {
        // numpy: x = np.array([0, 3, 0, 4, 255, 255, 7, 1], 'f4'); x.mean(), x.std(), np.linalg.norm(x), np.abs(np.diff(x)).mean()
        let row = [0.0, 3.0, 0.0, 4.0, 255.0, 255.0, 7.0, 1.0];
        let wide = Wide { saturated_at: Some(255.0), channels: Some((2, true)), ..Wide::default() };
        let found = figures(&row, &wide);
        let near = |probe, expected: f64| {
            let value = found.probe(probe);
            assert!((value - expected).abs() < 1e-6 * expected.max(1.0), "{probe:?}: {value} for {expected}");
        };
        near(Probe::Mean, 65.625);
        near(Probe::Std, 109.357_141_399);
        near(Probe::Norm, 360.728_429_709);
        near(Probe::Roughness, 73.571_428_571);
        near(Probe::Min, 0.0);
        near(Probe::Max, 255.0);
        near(Probe::Zeros, 0.25);
        near(Probe::Saturated { at: 255.0 }, 0.25);
        near(Probe::ChannelMean { channel: 0, channels: 2, last: true }, 65.5);
        near(Probe::ChannelMean { channel: 1, channels: 2, last: true }, 65.75);
        let first = figures(&row, &Wide { channels: Some((2, false)), ..Wide::default() });
        assert!((first.probe(Probe::ChannelMean { channel: 1, channels: 2, last: false }) - 129.5).abs() < 1e-9);
    }

    #[test]
    fn splitmix64_is_the_published_one() {
        // The first outputs for the state 1234567 (Vigna's splitmix64.c; java.util.SplittableRandom).
        let outputs: Vec<u64> =
            (1..=3).map(|n: u64| mix(1_234_567_u64.wrapping_add(n.wrapping_mul(GOLDEN_GAMMA)))).collect();
        assert_eq!(outputs, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    /// What the theory says of the squared norm of a projection: right on average, with variance 2/16 of its square.
    #[test]
    fn projections_keep_norms_as_gaussian_ones_do() {
        let row: Vec<f32> = (0u16..1_000).map(|n| (f32::from(n) * 0.7).sin() + 0.3).collect();
        let norm: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let seeds = 2_000_u32;
        let ratios: Vec<f64> = (0..seeds)
            .map(|seed| projections(&row, u64::from(seed)).iter().map(|y| y * y).sum::<f64>() / norm)
            .collect();
        let mean = ratios.iter().sum::<f64>() / f64::from(seeds);
        let variance = ratios.iter().map(|ratio| (ratio - mean) * (ratio - mean)).sum::<f64>() / f64::from(seeds);
        // Standard errors are 0.008 and about 0.005.
        assert!((mean - 1.0).abs() < 0.032, "{mean}");
        assert!((variance - 0.125).abs() < 0.025, "{variance}");
    }

    #[test]
    fn what_is_not_finite_leaves_no_figure() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 17, 66] {
                let mut row = vec![1.0; 67];
                row[at] = bad;
                let found = figures(&row, &Wide { seed: Some(1), ..Wide::default() });
                assert!(
                    found.probe(Probe::Mean).is_nan()
                        && found.probe(Probe::Zeros).is_nan()
                        && found.projection(3).is_nan()
                );
            }
        }
        assert!(figures(&[], &Wide::default()).probe(Probe::Mean).is_nan());
    }

    #[test]
    fn every_type_is_measured_alike() {
        let values: Vec<f64> = (0..100).map(|n| f64::from(n % 7)).collect();
        let wide = Wide { seed: Some(5), saturated_at: Some(6.0), channels: Some((4, true)) };
        let shown = |datatype| {
            let tensor = Tensor::from_f64("x", datatype, vec![100], &values).unwrap();
            format!("{:?}", wide.measure(&tensor, 0, 100).unwrap())
        };
        let expected = shown(DataType::Fp32);
        for datatype in [DataType::Uint8, DataType::Int64, DataType::Fp64, DataType::Fp16] {
            assert_eq!(shown(datatype), expected);
        }
    }

    proptest! {
        /// Against the definitions, in 64 bits and one element after another.
        #[test]
        fn figures_are_those_of_their_definitions(
            row in prop::collection::vec(prop_oneof![-3.0..3.0f32, Just(0.0), 100.0..101.0f32], 1..2_100),
            channels in 1usize..5,
            last: bool,
        ) {
            let row = &row[..(row.len() / channels).max(1) * channels.min(row.len())];
            let n = row.len() as f64;
            let x: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            let mean = x.iter().sum::<f64>() / n;
            let found = figures(row, &Wide { seed: None, saturated_at: Some(100.5), channels: Some((channels, last)) });
            let near = |value: f64, expected: f64| (value - expected).abs() <= 2e-4 * expected.abs().max(1.0);
            prop_assert!(near(found.probe(Probe::Mean), mean));
            let std = (x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n).sqrt();
            prop_assert!(near(found.probe(Probe::Std), std), "{} {std}", found.probe(Probe::Std));
            prop_assert!(near(found.probe(Probe::Norm), x.iter().map(|x| x * x).sum::<f64>().sqrt()));
            let saturated = x.iter().filter(|x| **x >= f64::from(100.5f32)).count() as f64 / n;
            let at_most = found.probe(Probe::Saturated { at: 100.5 });
            prop_assert!(near(at_most, saturated));
            prop_assert!(near(found.probe(Probe::Zeros), row.iter().filter(|x| **x == 0.0).count() as f64 / n));
            let plane = row.len() / channels;
            for channel in 0..channels.min(if plane == 0 { 0 } else { 4 }) {
                let of = |at: usize| if last { at % channels == channel } else { at / plane == channel };
                let expected = (0..x.len()).filter(|at| of(*at)).map(|at| x[at]).sum::<f64>() / plane as f64;
                let probe = Probe::ChannelMean { channel: u8::try_from(channel).unwrap(), channels: 4, last };
                prop_assert!(near(found.probe(probe), expected), "{} {expected}", found.probe(probe));
            }
        }

        /// The projection is linear, and each element counts in one of the sixteen with its own size.
        #[test]
        fn each_element_counts_once(n in 1usize..200, at in 0usize..200, seed: u64) {
            let mut row = vec![0.0; n];
            row[at % n] = 3.0;
            let sums = projections(&row, seed);
            prop_assert_eq!(sums.iter().filter(|y| y.abs() > 0.0).count(), 1);
            prop_assert!((sums.iter().map(|y| y.abs()).sum::<f64>() - 3.0).abs() < 1e-12);
        }
    }
}
