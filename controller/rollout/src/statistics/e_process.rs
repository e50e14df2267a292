//! When canaries are worse than their controls.
//!
//! Within a block the canary was chosen at random, so if the two bundles are equal its score is as likely to stand at
//! any place among the block's. Then exp(λ x_c / s) over the mean of exp(λ x_j / s) is on average 1 whatever the scores
//! are, their products over blocks are a martingale, and so is the mean of these over several λ. It exceeds 1/α at any
//! time with probability α at most (Ville's inequality; Ramdas, Grünwald, Vovk and Shafer, "Game-theoretic statistics and
//! safe anytime-valid inference", Statistical Science 38(4), 2023). Nothing is assumed on how scores are distributed, and it may
//! be looked at after every block.

use muster_shared::rollout::Block;

/// How many λ are averaged.
const LAMBDAS: usize = 5;
/// The middle of them, where all blocks were one: √n blocks of a spread of 1 add up to one of √n, and 5 is about ln(1/α) and some more.
const LAMBDA_OF_ONE_BLOCK: f64 = 5.0;
/// The least and the greatest of them, as parts of the middle.
const LAMBDA_PARTS: (f64, f64) = (0.5, 3.0);

/// Evidence that canaries score worse than their controls. Each block may be added once.
#[derive(Debug, Clone, PartialEq)]
pub struct EProcess {
    scale: f64,
    lambdas: [f64; LAMBDAS],
    /// The logarithm of the product over blocks, for each λ.
    log_products: [f64; LAMBDAS],
    blocks: u32,
}

impl EProcess {
    /// No evidence yet. `scale` is a spread of scores that does not depend on who is a canary: one known before the first block, or
    /// that of the scores within blocks. `expected` is about how many blocks there will be: few are judged sharply, many finely. Both
    /// decide how fast evidence grows and not how often it is wrong.
    ///
    /// Returns `None` unless `scale` is a finite number above 0.
    #[must_use]
    pub fn new(scale: f64, expected: u32) -> Option<Self> {
        let middle = LAMBDA_OF_ONE_BLOCK / f64::from(expected.max(1)).sqrt();
        let step = (LAMBDA_PARTS.1 / LAMBDA_PARTS.0).powf(1.0 / (LAMBDAS - 1) as f64);
        let lambdas = std::array::from_fn(|at| middle * LAMBDA_PARTS.0 * step.powf(at as f64));
        (scale.is_finite() && scale > 0.0).then_some(Self { scale, lambdas, log_products: [0.0; LAMBDAS], blocks: 0 })
    }

    /// Adds one block. A block without controls, or with a score that is no finite number, says nothing and is left out.
    pub fn add(&mut self, block: &Block<f64>) {
        let scores = || block.members().copied();
        if block.controls.is_empty() || !scores().all(f64::is_finite) {
            return;
        }
        // Only differences count; taken from the worst score, none of them is above 0 and no exponential overflows.
        let worst = scores().fold(f64::NEG_INFINITY, f64::max);
        for (log_product, lambda) in self.log_products.iter_mut().zip(self.lambdas) {
            let exponent = |score: f64| lambda * ((score - worst) / self.scale);
            *log_product += exponent(block.canary) - log_mean_exp(|| scores().map(exponent));
        }
        self.blocks += 1;
    }

    /// The evidence so far, as a natural logarithm: 0 for none.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        log_mean_exp(|| self.log_products.iter().copied())
    }

    /// Whether equal bundles would have brought so much evidence with probability `alpha` at most.
    #[must_use]
    pub fn rejects(&self, alpha: f64) -> bool {
        self.log_e() >= -alpha.ln()
    }

    /// Blocks that were added.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }
}

/// ln of the mean of exp(x), where exp(x) itself might overflow. `x` holds at least one number.
pub(crate) fn log_mean_exp<I: Iterator<Item = f64>>(x: impl Fn() -> I) -> f64 {
    let greatest = x().fold(f64::NEG_INFINITY, f64::max);
    if !greatest.is_finite() {
        return greatest;
    }
    let (sum, n) = x().fold((0.0, 0.0), |(sum, n), x| (sum + (x - greatest).exp(), n + 1.0));
    greatest + (sum / n).ln()
}
