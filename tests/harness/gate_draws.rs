//! Rollouts on fleets whose devices have habits of their own, for how often a gate is wrong and how often it sees a loss.
//!
//! Every device serves the same number of requests, spread over [`WINDOWS`] windows of time, and fails each with a probability of
//! its own, drawn from a beta distribution. The functions that decide are the production's; beside them stand three rules in common use.

use muster_rollout::statistics::{Member, blocks, wave_alpha};
use muster_rollout::{Gate, scales};
use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Block, GateSpec, Guardrail, Metric, Outcome, ScoredDevice};

use crate::random::Random;

/// Windows of time in which each device reports.
pub const WINDOWS: usize = 12;

/// A setting of the simulation.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Canaries of each wave.
    pub canaries: usize,
    /// Controls for each canary.
    pub controls: usize,
    /// Share of requests that fail on the incumbent.
    pub incumbent: f64,
    /// Share of requests that fail on the new bundle.
    pub candidate: f64,
    /// Share of devices on which the new bundle fails every request instead: a subgroup that is broken.
    pub broken: f64,
    /// Correlation of two requests of one device.
    pub correlation: f64,
    /// Requests of each device in each window.
    pub requests: u32,
    /// Waves, each with fresh canaries.
    pub waves: u32,
}

impl Default for Setting {
    /// Twenty pairs in one wave, equal bundles that fail 5 % of each device's 204 requests, devices with a correlation of 0.05.
    fn default() -> Self {
        Self {
            canaries: 20,
            controls: 1,
            incumbent: 0.05,
            candidate: 0.05,
            broken: 0.0,
            correlation: 0.05,
            requests: 17,
            waves: 1,
        }
    }
}

/// What the rules made of one rollout.
#[derive(Debug, Clone, Copy, Default)]
pub struct Drawn {
    /// Looked at after every block, evidence exceeded the wave's share of α.
    pub rolled_back: bool,
    /// Blocks after which it did, in the wave in which it did.
    pub blocks_seen: Option<usize>,
    /// At the end of every wave the canaries were shown to be worse by less than the margin, and never rolled back.
    pub promoted: bool,
    /// More than half as many errors again as the controls in at least half of the windows (in Flagger's style: checks with a constant
    /// threshold, of which some may fail).
    pub fixed_threshold: bool,
    /// Mann and Whitney's test on the windows' error rates, as Kayenta judges a metric, at 5 % two-sided.
    pub mann_whitney: bool,
    /// Two proportions of pooled requests, at 5 % one-sided.
    pub pooled_z: bool,
}

/// Errors of one device in each window.
type Windows = [u32; WINDOWS];

fn device(random: &mut Random, setting: &Setting, rate: f64, broken: f64) -> Windows {
    let is_broken = random.uniform() < broken;
    let habit = if is_broken { 1.0 } else { random.beta(rate, setting.correlation) };
    std::array::from_fn(|_| random.binomial(setting.requests, habit))
}

/// One rollout: `alpha` is the chance of a false rollback over all waves, `margin` by how much the error rate may rise.
///
/// # Errors
/// Never; the name of a device is one.
pub fn draw(random: &mut Random, setting: &Setting, alpha: f64, margin: f64) -> anyhow::Result<Drawn> {
    let mut drawn = Drawn { promoted: true, ..Drawn::default() };
    let (mut canaries, mut controls): (Vec<Windows>, Vec<Windows>) = (Vec::new(), Vec::new());
    let gate = GateSpec {
        alpha,
        controls: u32::try_from(setting.controls)?,
        match_on: Vec::new(),
        guardrails: vec![Guardrail::of(Metric::ErrorRate, Some(margin))],
    };
    let name = DeviceId::new("d")?;
    let requests = f64::from(setting.requests) * WINDOWS as f64;
    let scored = |windows: &Windows| ScoredDevice {
        device: name.clone(),
        silent: false,
        scores: vec![Some(f64::from(windows.iter().sum::<u32>()) / requests)],
        predicted: Vec::new(),
    };
    for wave in 0..setting.waves {
        let size = setting.canaries * (setting.controls + 1);
        let members = (0..size).map(|at| {
            let is_canary = at < setting.canaries;
            let (rate, broken) = if is_canary { (setting.candidate, setting.broken) } else { (setting.incumbent, 0.0) };
            Member { device: device(random, setting, rate, broken), stratum: (), is_canary }
        });
        let made = blocks(members.collect::<Vec<_>>(), setting.controls);
        let all: Vec<Block<ScoredDevice>> = made.iter().map(|block| block.map(scored)).collect();
        let alpha = wave_alpha(alpha, wave, setting.waves);
        let mut process = Gate::new(&gate, alpha, &scales(&gate, &all), u32::try_from(all.len())?);
        for (seen, block) in all.iter().enumerate() {
            process.add(block);
            if process.log_e() >= -alpha.ln() && !drawn.rolled_back {
                drawn.rolled_back = true;
                drawn.blocks_seen = Some(seen + 1);
            }
        }
        drawn.promoted &= !drawn.rolled_back && process.report(false).outcome == Outcome::Successful;
        for block in made {
            canaries.push(block.canary);
            controls.extend(&block.controls);
        }
    }
    let each = f64::from(setting.requests);
    let rates = |devices: &[Windows]| -> Vec<f64> {
        let total = |at: usize| devices.iter().map(|windows| f64::from(windows[at])).sum::<f64>();
        (0..WINDOWS).map(|at| total(at) / (each * devices.len() as f64)).collect()
    };
    let (new, old) = (rates(&canaries), rates(&controls));
    let above = new.iter().zip(&old).filter(|(new, old)| **new > **old * 1.5).count();
    drawn.fixed_threshold = above * 2 >= WINDOWS;
    drawn.mann_whitney = mann_whitney(&new, &old) > 1.96;
    let requests = |devices: &[Windows]| each * WINDOWS as f64 * devices.len() as f64;
    drawn.pooled_z = pooled_z(mean(&new), requests(&canaries), mean(&old), requests(&controls)) > 1.645;
    Ok(drawn)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mann and Whitney's U as a standard normal number, above 0 where `new` is larger; ties count half.
fn mann_whitney(new: &[f64], old: &[f64]) -> f64 {
    let wins = |x: f64| {
        old.iter().map(|y| f64::from(u8::from(x > *y)) + 0.5 * f64::from(u8::from(x.total_cmp(y).is_eq()))).sum::<f64>()
    };
    let u: f64 = new.iter().map(|x| wins(*x)).sum();
    let (n, m) = (new.len() as f64, old.len() as f64);
    (u - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}

/// Two proportions, as a standard normal number.
fn pooled_z(new: f64, n: f64, old: f64, m: f64) -> f64 {
    let pooled = (new * n + old * m) / (n + m);
    (new - old) / (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt()
}
