//! How often a rollout's gate is wrong, and how often it sees a loss, beside rules in common use on the same draws.

use muster_tests::gate_draws::{Drawn, Setting, draw};
use muster_tests::prediction_draws::{self, drifts};
use muster_tests::random::Random;

use crate::report::{self, Table};

const ALPHA: f64 = 0.05;
const MARGIN: f64 = 0.03;
const CORRELATIONS: [f64; 3] = [0.0, 0.01, 0.05];

/// Rates over many draws.
#[derive(Default)]
struct Rates {
    draws: u32,
    rolled_back: u32,
    promoted: u32,
    blocks_seen: usize,
    fixed_threshold: u32,
    mann_whitney: u32,
    pooled_z: u32,
}

impl Rates {
    fn of(random: &mut Random, setting: &Setting, draws: u32) -> anyhow::Result<Self> {
        let mut rates = Self { draws, ..Self::default() };
        for _ in 0..draws {
            let Drawn { rolled_back, blocks_seen, promoted, fixed_threshold, mann_whitney, pooled_z } =
                draw(random, setting, ALPHA, MARGIN)?;
            rates.rolled_back += u32::from(rolled_back);
            rates.promoted += u32::from(promoted);
            rates.blocks_seen += blocks_seen.unwrap_or_default();
            rates.fixed_threshold += u32::from(fixed_threshold);
            rates.mann_whitney += u32::from(mann_whitney);
            rates.pooled_z += u32::from(pooled_z);
        }
        Ok(rates)
    }

    fn percent(&self, count: u32) -> f64 {
        100.0 * f64::from(count) / f64::from(self.draws)
    }

    fn peers(&self) -> String {
        format!(
            "{:.1} / {:.1} / {:.1} %",
            self.percent(self.fixed_threshold),
            self.percent(self.mann_whitney),
            self.percent(self.pooled_z)
        )
    }
}

/// Rates of every setting.
pub(crate) fn measure(draws: u32) -> anyhow::Result<Vec<Table>> {
    let mut random = Random::new(20_261_122);
    let mut null = Table::new(format!("Equal bundles rolled back, {draws} draws each, looked at after every block"));
    for (controls, canaries) in
        [1, 4].into_iter().flat_map(|controls| [10, 20, 50].map(|canaries| (controls, canaries)))
    {
        for correlation in CORRELATIONS {
            for waves in [1, 5] {
                let setting = Setting { canaries, controls, correlation, waves, ..Setting::default() };
                let rates = Rates::of(&mut random, &setting, draws)?;
                let what = format!("{canaries} canaries, 1:{controls}, {waves} wave(s), correlation {correlation}");
                null.goal(&what, rates.percent(rates.rolled_back), 100.0 * ALPHA, "%");
                null.text("  fixed threshold / Mann-Whitney / pooled z", &rates.peers());
            }
        }
        report::line(&format!("equal bundles, {canaries} canaries, 1:{controls}: done"));
    }
    let mut power = Table::new(format!("Losses seen, {draws} draws each, one wave, correlation 0.05"));
    let mut proof =
        Table::new(format!("Promoted at a margin of {MARGIN}, {draws} draws each, one wave, correlation 0.05"));
    for (controls, canaries) in
        [1, 4].into_iter().flat_map(|controls| [10, 20, 50].map(|canaries| (controls, canaries)))
    {
        let of = Setting { canaries, controls, ..Setting::default() };
        for (loss, setting) in [
            ("errors 5 % to 10 %", Setting { candidate: 0.10, ..of }),
            ("errors 5 % to 15 %", Setting { candidate: 0.15, ..of }),
            ("accuracy 90 % to 85 %", Setting { incumbent: 0.10, candidate: 0.15, ..of }),
            // Of log-normal latencies with a deviation of 0.5, those above the control's 95th percentile.
            ("latency x 1.5", Setting { candidate: 0.202, ..of }),
            ("8 % of devices broken", Setting { broken: 0.08, ..of }),
        ] {
            let rates = Rates::of(&mut random, &setting, draws)?;
            let what = format!("{loss}, {canaries} canaries, 1:{controls}");
            let blocks = rates.blocks_seen as f64 / f64::from(rates.rolled_back.max(1));
            let seen = format!("{:.1} %, on average after {blocks:.0} block(s)", rates.percent(rates.rolled_back));
            power.text(&what, &seen);
            power.text("  fixed threshold / Mann-Whitney / pooled z", &rates.peers());
            proof.text(&what, &format!("{:.1} %", rates.percent(rates.promoted)));
        }
        let rates = Rates::of(&mut random, &Setting { candidate: 0.05 + MARGIN, ..of }, draws)?;
        let what = format!("worse by just the margin, {canaries} canaries, 1:{controls}");
        proof.goal(&what, rates.percent(rates.promoted), 100.0 * ALPHA, "%");
        let rates = Rates::of(&mut random, &of, draws)?;
        proof.text(
            &format!("equal, {canaries} canaries, 1:{controls}"),
            &format!("{:.1} %", rates.percent(rates.promoted)),
        );
        report::line(&format!("losses, {canaries} canaries, 1:{controls}: done"));
    }
    Ok(vec![null, power, proof, predictions(&mut random, draws)?])
}

/// How often predictions are said to have drifted: of equal bundles, and of those that say another class now and then.
fn predictions(random: &mut Random, draws: u32) -> anyhow::Result<Table> {
    let mut table = Table::new(format!(
        "Predictions called different, {draws} draws of equal bundles, ten classes, 200 predictions a device"
    ));
    for (controls, canaries) in
        [1, 4].into_iter().flat_map(|controls| [10, 20, 50].map(|canaries| (controls, canaries)))
    {
        for (correlation, moved) in [(0.01, 0.0), (0.05, 0.0), (0.05, 0.05), (0.05, 0.1)] {
            let setting = prediction_draws::Setting {
                canaries,
                controls,
                correlation,
                moved,
                ..prediction_draws::Setting::default()
            };
            // A power needs fewer draws than a level that must be kept.
            let draws = if moved > 0.0 { draws.div_ceil(10) } else { draws };
            let mut hits = 0;
            for draw in 0..draws {
                hits += u32::from(drifts(random, &setting, ALPHA, u64::from(draw))?);
            }
            let percent = 100.0 * f64::from(hits) / f64::from(draws.max(1));
            let of = format!("{canaries} canaries, 1:{controls}, correlation {correlation}");
            if moved > 0.0 {
                table.text(&format!("{:.0} % of predictions moved, {of}", moved * 100.0), &format!("{percent:.1} %"));
            } else {
                table.goal(&format!("equal, {of}"), percent, 100.0 * ALPHA, "%");
            }
        }
        report::line(&format!("predictions, {canaries} canaries, 1:{controls}: done"));
    }
    Ok(table)
}
