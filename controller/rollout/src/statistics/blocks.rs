//! Which devices are compared with which.
//!
//! Devices are ordered by a hash that knows nothing of how they behave, and a wave takes the first of them. So within a
//! stratum, devices that are alike in what is known of them, every device was as likely to become the canary as any other, and a block
//! of one canary and some controls of its stratum is a small randomised experiment. Who is in which block rests on the order
//! alone, never on a score.

use std::collections::{BTreeMap, VecDeque};

use muster_shared::rollout::Block;

/// A device that may stand in a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<T, S> {
    /// Who.
    pub device: T,
    /// What it shares with those it is compared with: hardware, site, labels.
    pub stratum: S,
    /// Whether it has the new bundle.
    pub is_canary: bool,
}

/// Blocks of one canary and at most `controls` controls of its stratum each. `members` come in the order of the hash by which canaries
/// were taken. Controls are dealt in turns, so that no canary has two while another of its stratum has none; each stands in one
/// block. A canary whose stratum has no control left has no block: nothing can be said of it.
pub fn blocks<T, S: Ord>(members: impl IntoIterator<Item = Member<T, S>>, controls: usize) -> Vec<Block<T>> {
    struct Stratum<T> {
        /// Positions of its blocks.
        blocks: Vec<usize>,
        controls: VecDeque<T>,
    }
    let mut made: Vec<Block<T>> = Vec::new();
    let mut strata: BTreeMap<S, Stratum<T>> = BTreeMap::new();
    for Member { device, stratum, is_canary } in members {
        let stratum =
            strata.entry(stratum).or_insert_with(|| Stratum { blocks: Vec::new(), controls: VecDeque::new() });
        if is_canary {
            stratum.blocks.push(made.len());
            made.push(Block { canary: device, controls: Vec::new() });
        } else {
            stratum.controls.push_back(device);
        }
    }
    for mut stratum in strata.into_values() {
        for at in std::iter::repeat_n(&stratum.blocks, controls).flatten() {
            let Some((block, control)) = made.get_mut(*at).zip(stratum.controls.pop_front()) else { break };
            block.controls.push(control);
        }
    }
    made.retain(|block| !block.controls.is_empty());
    made
}

/// How far scores lie from the mean of their block, as a standard deviation; none where they never do. It stays the same whoever of a
/// block is the canary, so it may be taken from the very blocks that are judged.
pub fn spread<'b>(blocks: impl IntoIterator<Item = &'b Block<f64>>) -> Option<f64> {
    let (mut squares, mut freedom) = (0.0, 0.0);
    for block in blocks {
        let n = block.controls.len() as f64 + 1.0;
        let mean = block.members().sum::<f64>() / n;
        squares += block.members().map(|score| (score - mean).powi(2)).sum::<f64>();
        freedom += n - 1.0;
    }
    let spread = (squares / f64::max(freedom, 1.0)).sqrt();
    (spread > 0.0 && spread.is_finite()).then_some(spread)
}
