//! Fleets whose devices predict classes with habits of their own, for how often canaries are said to predict other ones.
//!
//! A device's habit is a Dirichlet distribution around the common shares. What decides is the production's [`judge`].

use muster_rollout::judge;
use muster_shared::ids::DeviceId;
use muster_shared::rollout::{
    Block, GateSpec, Guardrail, Metric, Outcome, PredictedClasses, PredictedColumn, ScoredDevice,
};

use crate::random::Random;

/// Shares of the classes on the incumbent.
pub const SHARES: [f64; 10] = [0.4, 0.2, 0.1, 0.08, 0.07, 0.05, 0.04, 0.03, 0.02, 0.01];

/// A setting of the simulation.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Canaries.
    pub canaries: usize,
    /// Controls for each canary.
    pub controls: usize,
    /// Correlation of two predictions of one device; above 0.
    pub correlation: f64,
    /// Predictions of each device.
    pub predictions: u32,
    /// Share of predictions that move from the second class to the third on the new bundle.
    pub moved: f64,
}

impl Default for Setting {
    /// Ten pairs of equal bundles, 200 predictions a device, devices with a correlation of 0.05.
    fn default() -> Self {
        Self { canaries: 10, controls: 1, correlation: 0.05, predictions: 200, moved: 0.0 }
    }
}

fn device(random: &mut Random, setting: &Setting, moved: f64) -> Vec<u64> {
    let mut shares = SHARES;
    shares[1] -= moved;
    shares[2] += moved;
    let size = (1.0 - setting.correlation) / setting.correlation;
    let habit = shares.map(|share| random.gamma(share * size));
    let (mut left, mut mass) = (setting.predictions, habit.iter().sum::<f64>());
    // Class by class, of those that are left, and at the end the rest of the column, which has none.
    let counts = habit.map(|own| {
        let n = if own >= mass { left } else { random.binomial(left, own / mass) };
        left -= n;
        mass -= own;
        u64::from(n)
    });
    [&counts[..], &[0]].concat()
}

/// Whether canaries are said to predict other classes than their controls, at the level `alpha`.
///
/// # Errors
/// Never; the name of a device is one.
pub fn drifts(random: &mut Random, setting: &Setting, alpha: f64, seed: u64) -> anyhow::Result<bool> {
    let name = DeviceId::new("d")?;
    let mut scored = |moved| ScoredDevice {
        device: name.clone(),
        silent: false,
        scores: vec![Some(0.0)],
        predicted: device(random, setting, moved),
    };
    let blocks: Vec<_> = (0..setting.canaries)
        .map(|_| Block {
            canary: scored(setting.moved),
            controls: (0..setting.controls).map(|_| scored(0.0)).collect(),
        })
        .collect();
    let classes = (0..SHARES.len()).map(|class| format!("c{class}")).collect();
    let classes = PredictedClasses { columns: vec![PredictedColumn { column: "class".to_owned(), classes }], seed };
    let gate = GateSpec::of(vec![Guardrail::of(Metric::PredictionDrift, None)]);
    Ok(judge(&gate, alpha, &blocks, blocks.len(), Some(&classes)).outcome == Outcome::Failed)
}
