//! What a comparison of so many blocks can tell, before it is made.
//!
//! Scores of devices are drawn from a normal distribution with the same spread on either side, and losses and margins are given in such
//! spreads, so nothing has to be known of the metric. What judges the draws is what judges waves.

use std::f64::consts::TAU;

use muster_shared::rollout::Block;

use super::random::SplitMix;
use super::{EProcess, Margin, spread};

/// Comparisons drawn for each loss.
const DRAWS: usize = 200;
/// Steps of halving between no loss and [`MOST_SPREADS`].
const STEPS: u32 = 7;
/// Losses beyond this are not looked for.
const MOST_SPREADS: f64 = 8.0;
/// How often a loss is to be seen, and an equal bundle to be let through.
const WANTED: f64 = 0.8;

/// What a comparison can tell, in spreads of scores between devices.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Power {
    /// The least loss that is seen four times in five; none where even a very large one is not.
    pub least_loss: Option<f64>,
    /// The least margin that an equal bundle is shown to keep four times in five; none with fewer blocks than prove anything.
    pub least_margin: Option<f64>,
}

/// What `blocks` blocks of one canary and `controls` controls each can tell at the level `alpha`. The same every time.
#[must_use]
pub fn power(blocks: u32, controls: u32, alpha: f64) -> Power {
    if blocks == 0 || controls == 0 {
        return Power::default();
    }
    let sees = |loss: f64| {
        let mut normal = Normal(SplitMix::new(u64::from(blocks)));
        let seen = (0..DRAWS).filter(|_| {
            let drawn = draw(&mut normal, blocks, controls, loss);
            let process = spread(&drawn).and_then(|scale| EProcess::new(scale, blocks));
            process.is_some_and(|mut process| {
                drawn.iter().any(|block| {
                    process.add(block);
                    process.rejects(alpha)
                })
            })
        });
        seen.count() as f64 >= WANTED * DRAWS as f64
    };
    let least_loss = sees(MOST_SPREADS).then(|| {
        let (mut low, mut high) = (0.0, MOST_SPREADS);
        for _ in 0..STEPS {
            let middle = f64::midpoint(low, high);
            if sees(middle) { high = middle } else { low = middle }
        }
        high
    });
    let mut normal = Normal(SplitMix::new(u64::from(blocks)));
    let bounds = (0..DRAWS).map(|_| {
        let mut margin = Margin::default();
        draw(&mut normal, blocks, controls, 0.0).iter().for_each(|block| margin.add(block));
        margin.upper_bound(alpha)
    });
    let mut bounds: Vec<f64> = bounds.flatten().collect();
    bounds.sort_by(f64::total_cmp);
    Power { least_loss, least_margin: bounds.get(DRAWS * 4 / 5).copied() }
}

fn draw(normal: &mut Normal, blocks: u32, controls: u32, loss: f64) -> Vec<Block<f64>> {
    let block = |_| Block { canary: loss + normal.next(), controls: (0..controls).map(|_| normal.next()).collect() };
    (0..blocks).map(block).collect()
}

/// Normal numbers from a seed, through Box and Muller's transform.
struct Normal(SplitMix);

impl Normal {
    fn uniform(&mut self) -> f64 {
        // Above 0, for the logarithm.
        ((self.0.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn next(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (TAU * self.uniform()).cos()
    }
}
