//! How often the statistics of a gate are wrong, and how often they see a loss: few draws here, many in `muster-bench gate`.

use muster_tests::gate_draws::{Drawn, Setting, draw};
use muster_tests::prediction_draws;
use muster_tests::random::Random;

const ALPHA: f64 = 0.05;

fn rate(setting: Setting, draws: u32, margin: f64, of: impl Fn(&Drawn) -> bool) -> anyhow::Result<f64> {
    let mut random = Random::new(20_261_122);
    let mut hits = 0;
    for _ in 0..draws {
        hits += u32::from(of(&draw(&mut random, &setting, ALPHA, margin)?));
    }
    Ok(f64::from(hits) / f64::from(draws))
}

/// Nothing has changed: looked at after each block, over five waves, a rollback is as rare as promised.
#[test]
fn equal_bundles_are_rolled_back_no_more_often_than_promised() -> anyhow::Result<()> {
    // Three standard errors of 400 draws at 5 %.
    let most = ALPHA + 3.0 * (ALPHA * (1.0 - ALPHA) / 400.0_f64).sqrt();
    for correlation in [0.0, 0.05] {
        for controls in [1, 4] {
            let one = Setting { controls, correlation, ..Setting::default() };
            let five = Setting { waves: 5, ..one };
            for setting in [one, five] {
                let wrong = rate(setting, 400, 0.02, |drawn| drawn.rolled_back)?;
                assert!(wrong <= most, "{setting:?}: {wrong}");
            }
        }
    }
    Ok(())
}

/// The figures that the specification of these statistics names, at a correlation of 0.05.
#[test]
fn losses_are_seen_as_often_as_is_known_of_these_statistics() -> anyhow::Result<()> {
    for (canaries, controls, candidate, power) in
        [(10, 1, 0.10, 0.28), (20, 1, 0.10, 0.53), (50, 1, 0.10, 0.93), (10, 4, 0.15, 0.91), (20, 4, 0.10, 0.73)]
    {
        let setting = Setting { canaries, controls, candidate, ..Setting::default() };
        let seen = rate(setting, 300, 0.02, |drawn| drawn.rolled_back)?;
        // Two standard errors of 300 draws.
        let error = 2.0 * (power * (1.0 - power) / 300.0_f64).sqrt();
        assert!(seen >= power - error, "{setting:?}: {seen}, expected {power}");
    }
    Ok(())
}

/// A loss of just the margin is promoted as rarely as promised, and equal bundles are promoted once there are enough devices.
#[test]
fn promotion_needs_proof() -> anyhow::Result<()> {
    let worse = Setting { canaries: 50, controls: 4, candidate: 0.08, ..Setting::default() };
    assert!(rate(worse, 300, 0.03, |drawn| drawn.promoted)? <= 0.08);
    let equal = Setting { canaries: 100, controls: 4, correlation: 0.01, ..Setting::default() };
    assert!(rate(equal, 100, 0.03, |drawn| drawn.promoted)? > 0.9);
    let few = Setting { canaries: 9, controls: 4, ..Setting::default() };
    assert!(rate(few, 50, 1.0, |drawn| drawn.promoted)? == 0.0, "fewer than ten blocks prove nothing");
    Ok(())
}

/// Why requests are not the unit: rules that take them for independent cry wolf.
#[test]
fn rules_that_ignore_the_device_are_wrong_far_more_often() -> anyhow::Result<()> {
    let null = Setting::default();
    assert!(rate(null, 300, 0.02, |drawn| drawn.pooled_z)? > 0.15);
    assert!(rate(null, 300, 0.02, |drawn| drawn.mann_whitney)? > 0.15);
    Ok(())
}

/// Predictions of equal bundles are called different no more often than promised, and those that moved are seen.
#[test]
fn predictions_that_drift_are_told_from_habits_of_devices() -> anyhow::Result<()> {
    use prediction_draws::{Setting, drifts};
    let mut random = Random::new(20_261_122);
    let mut rate = |setting: Setting, draws: u32| -> anyhow::Result<f64> {
        let mut hits = 0;
        for draw in 0..draws {
            hits += u32::from(drifts(&mut random, &setting, ALPHA, u64::from(draw))?);
        }
        Ok(f64::from(hits) / f64::from(draws))
    };
    let most = |draws: f64| ALPHA + 3.0 * (ALPHA * (1.0 - ALPHA) / draws).sqrt();
    for correlation in [0.01, 0.05] {
        let wrong = rate(Setting { correlation, ..Setting::default() }, 300)?;
        assert!(wrong <= most(300.0), "{correlation}: {wrong}");
    }
    // Choices of canaries are drawn here, not all looked at.
    let wrong = rate(Setting { canaries: 8, controls: 4, ..Setting::default() }, 40)?;
    assert!(wrong <= most(40.0), "{wrong}");
    let seen = rate(Setting { moved: 0.15, correlation: 0.01, ..Setting::default() }, 60)?;
    assert!(seen > 0.9, "{seen}");
    Ok(())
}
