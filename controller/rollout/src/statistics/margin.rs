//! When canaries are not worse than their controls by more than is allowed.
//!
//! The upper end of a confidence sequence for the mean difference between a canary and its controls: it holds at every number of
//! blocks at once with probability 1 − α, so it may be looked at after each (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas,
//! "Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics 52(6), 2024, theorem 2.2).

use muster_shared::rollout::Block;

/// Blocks below which the sequence is not looked at: it holds asymptotically.
pub const MIN_BLOCKS: u32 = 10;
/// Where in the number of blocks the sequence is tightest; 0.3 is so for some dozens.
const RHO: f64 = 0.3;

/// Differences between canaries and the mean of their controls. Each block may be added once.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Margin {
    n: u32,
    mean: f64,
    /// Sum of squared deviations from the mean (Welford).
    squares: f64,
}

impl Margin {
    /// Adds one block. A block without controls, or with a score that is no finite number, says nothing and is left out.
    pub fn add(&mut self, block: &Block<f64>) {
        let controls = block.controls.iter().sum::<f64>() / block.controls.len() as f64;
        let difference = block.canary - controls;
        if !difference.is_finite() {
            return;
        }
        self.n += 1;
        let from_mean = difference - self.mean;
        self.mean += from_mean / f64::from(self.n);
        self.squares += from_mean * (difference - self.mean);
    }

    /// The mean difference, canary less control: above 0 where canaries score worse.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// By how much canaries may be worse at most, with confidence 1 − `alpha`; none below ten blocks.
    #[must_use]
    pub fn upper_bound(&self, alpha: f64) -> Option<f64> {
        let n = f64::from(self.n);
        let deviation = (self.n >= MIN_BLOCKS).then(|| (self.squares / (n - 1.0)).sqrt())?;
        Some(self.mean + deviation * half_width(n, alpha))
    }

    /// How many blocks it takes, of such differences as so far, for the bound to fall below `margin`. None where fewer than two
    /// blocks were added, or the mean itself is not below it.
    #[must_use]
    pub fn blocks_needed(&self, alpha: f64, margin: f64) -> Option<u32> {
        let room = margin - self.mean;
        if self.n < 2 || room <= 0.0 {
            return None;
        }
        let deviation = (self.squares / (f64::from(self.n) - 1.0)).sqrt();
        let is_enough = |n: u32| deviation * half_width(f64::from(n), alpha) < room;
        // The width falls with n: twice as many until it is enough, then the least by halving.
        let enough =
            std::iter::successors(Some(self.n.max(MIN_BLOCKS)), |n| n.checked_mul(2)).find(|n| is_enough(*n))?;
        let (mut low, mut high) = (self.n.max(MIN_BLOCKS), enough);
        while low < high {
            let middle = low + (high - low) / 2;
            if is_enough(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Some(low)
    }
}

/// Half the width of the sequence after `n` differences with standard deviation 1.
pub(crate) fn half_width(n: f64, alpha: f64) -> f64 {
    let t = n.mul_add(RHO * RHO, 1.0);
    (2.0 * t / (n * RHO).powi(2) * (t.sqrt() / alpha).ln()).sqrt()
}
