//! How often drift is seen where there is none. `muster-bench false-alarms` does the same at length.

use muster_shared::drift::Criteria;
use muster_tests::null_draws::{Kind, Random, Setting};

/// Of one setting. At a rate of 5 %, more than five false alarms among twenty have a chance of three in ten thousand.
const DRAWS: usize = 20;
const MOST_OF_ONE: usize = 5;

#[test]
fn verdicts_are_false_no_more_often_than_promised() {
    // Every move matters here, which is harder than the verdict that people see.
    let criteria = Criteria { alpha: 0.05, min_effect: 0.0, min_share_effect: 0.0 };
    let mut random = Random::new(1);
    let (mut all, mut draws) = (0, 0);
    for kind in [Kind::Number, Kind::Classes] {
        for (devices, ungrouped) in [(1, false), (1, true), (100, false)] {
            for rows in [50, 200, 1_000] {
                for correlation in [0.0, 0.01, 0.05] {
                    if ungrouped && correlation > 0.0 {
                        continue;
                    }
                    let setting = Setting { kind, devices, rows, correlation, ungrouped };
                    let drifted = |_: &usize| random.verdict(&setting, &criteria).unwrap().drifted;
                    let false_alarms = (0..DRAWS).filter(drifted).count();
                    assert!(false_alarms <= MOST_OF_ONE, "{false_alarms} of {DRAWS} in {setting:?}");
                    all += false_alarms;
                    draws += DRAWS;
                }
            }
        }
    }
    // Five per cent, and three standard deviations.
    let most = 0.05 * draws as f64 + 3.0 * (0.05 * 0.95 * draws as f64).sqrt();
    assert!(all as f64 <= most, "{all} of {draws}");
}
