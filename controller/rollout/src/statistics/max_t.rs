//! Whether canaries differ from their controls in any of many numbers at once.
//!
//! Within a block the canary was chosen at random, so if the two bundles are equal any other of its devices might as well have been it. The
//! statistic is the greatest over numbers of |Σ over blocks of (canary − mean of its controls)|, divided by that sum's standard deviation over
//! all choices; how often other choices reach as much is its p-value, which is exact whatever the numbers are and however they hang together
//! (Westfall and Young, "Resampling-based multiple testing", 1993: the single-step max-T). It is for one look: not for after every block.

use muster_shared::rollout::Block;

use super::random::SplitMix;

/// Up to so many choices of canaries, all of them are looked at.
const MOST_CHOICES: u64 = 10_000;
/// Choices drawn where there are more.
const DRAWN: u32 = 4_999;
/// By which part less still counts as the same statistic: sums are rounded.
const ROUNDING: f64 = 1e-9;

/// What came of a comparison of many numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaxT {
    /// How often equal bundles would differ by as much.
    pub p_value: f64,
    /// The least p-value that so many blocks can give.
    pub least: f64,
    /// The greatest difference, in standard deviations.
    pub statistic: f64,
    /// In which number.
    pub at: usize,
    /// Mean over blocks of that number, canary less the mean of its controls.
    pub difference: f64,
    /// Choices of canaries looked at, the one that was made included.
    pub choices: u32,
    /// They were all that there are; else they were drawn.
    pub exact: bool,
}

/// Compares the canary of each block with its controls in every number of its vector. All vectors are as long as each other, and finite; a
/// block without controls says nothing. None where no number differs within any block. `seed` decides which choices are drawn, where not
/// all are looked at: draw by draw and block by block, the next number of SplitMix64 modulo the block's devices is the place of the canary.
#[must_use]
pub fn max_t(blocks: &[Block<Vec<f64>>], seed: u64) -> Option<MaxT> {
    let numbers = blocks.first()?.canary.len();
    let deviations: Vec<Vec<Vec<f64>>> =
        blocks.iter().filter(|block| !block.controls.is_empty()).map(from_others).collect();
    // The variance of a sum of independent choices is the sum of theirs.
    let variance = |at: usize| -> f64 {
        deviations.iter().map(|block| block.iter().map(|own| own[at].powi(2)).sum::<f64>() / block.len() as f64).sum()
    };
    let spreads: Vec<Option<f64>> = (0..numbers)
        .map(|at| Some(variance(at).sqrt()).filter(|spread| *spread > 1e-12 && spread.is_finite()))
        .collect();
    let kept: Vec<(usize, f64)> =
        spreads.iter().enumerate().filter_map(|(at, spread)| Some((at, (*spread)?))).collect();
    if kept.is_empty() {
        return None;
    }
    let standardised: Vec<Vec<Vec<f64>>> = deviations
        .iter()
        .map(|block| block.iter().map(|own| kept.iter().map(|(at, spread)| own[*at] / spread).collect()).collect())
        .collect();
    let mut sums = vec![0.0; kept.len()];
    let mut statistic = |choice: &[usize]| {
        sums.fill(0.0);
        for (block, canary) in standardised.iter().zip(choice) {
            for (sum, own) in sums.iter_mut().zip(&block[*canary]) {
                *sum += own;
            }
        }
        let greatest = sums.iter().enumerate().max_by(|(_, a), (_, b)| a.abs().total_cmp(&b.abs()));
        greatest.map_or((0, 0.0), |(at, sum)| (at, sum.abs()))
    };
    let sizes: Vec<usize> = standardised.iter().map(Vec::len).collect();
    let mut choice = vec![0; sizes.len()];
    let (at, observed) = statistic(&choice);
    let (at, _) = *kept.get(at)?;
    let all = sizes.iter().try_fold(1u64, |all, size| all.checked_mul(*size as u64).filter(|all| *all <= MOST_CHOICES));
    let mut reached = 0u32;
    let mut look = |choice: &[usize]| reached += u32::from(statistic(choice).1 >= observed * (1.0 - ROUNDING));
    let choices = match all {
        Some(all) => {
            for _ in 0..all {
                look(&choice);
                // The next, as a number whose digits have as many values as blocks have devices.
                for (digit, size) in choice.iter_mut().zip(&sizes) {
                    *digit = (*digit + 1) % size;
                    if *digit > 0 {
                        break;
                    }
                }
            }
            u32::try_from(all).unwrap_or(u32::MAX)
        }
        None => {
            look(&choice);
            let mut random = SplitMix::new(seed);
            for _ in 0..DRAWN {
                for (place, size) in choice.iter_mut().zip(&sizes) {
                    *place = usize::try_from(random.next() % *size as u64).unwrap_or_default();
                }
                look(&choice);
            }
            DRAWN + 1
        }
    };
    let mean: f64 = deviations.iter().map(|block| block[0][at]).sum::<f64>() / deviations.len() as f64;
    // Of pairs, the choice of everybody else gives the same sums with the other sign.
    let mirrored = all.is_some() && sizes.iter().all(|size| *size == 2);
    Some(MaxT {
        p_value: f64::from(reached) / f64::from(choices),
        least: if mirrored { 2.0 } else { 1.0 } / f64::from(choices),
        statistic: observed,
        at,
        difference: mean,
        choices,
        exact: all.is_some(),
    })
}

/// Of each device of a block, canary first, by how much its numbers lie above the mean of the others'.
fn from_others(block: &Block<Vec<f64>>) -> Vec<Vec<f64>> {
    let others = block.controls.len() as f64;
    let all: Vec<&Vec<f64>> = block.members().collect();
    let sums: Vec<f64> = (0..block.canary.len()).map(|at| all.iter().map(|own| own[at]).sum()).collect();
    all.iter().map(|own| own.iter().zip(&sums).map(|(own, sum)| own - (sum - own) / others).collect()).collect()
}
