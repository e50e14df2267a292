//! How often drift is seen where there is none. `muster-bench false-alarms` does the same at length.

use muster_shared::drift::{Criteria, Draws, Layout, false_discovery_rates, judge};
use muster_tests::fixtures;
use muster_tests::null_draws::{Kind, Setting};
use muster_tests::random::Random;
use serde_json::Value;

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

/// Real data from scikit-learn; scores by numpy and scipy from the same counts (`tests/fixtures/make_drift.py`).
#[test]
fn scores_are_those_of_numpy_and_scipy() {
    let text = std::fs::read_to_string(fixtures::folder().join("drift/scenarios.json")).unwrap();
    let fixture: Value = serde_json::from_str(&text).unwrap();
    let counts = |side: &Value| -> Vec<u64> { side.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect() };
    let (mut scenarios, mut compared) = (0, 0);
    for scenario in fixture["scenarios"].as_array().unwrap() {
        scenarios += 1;
        let (mut drifted, mut p_values) = (Vec::new(), Vec::new());
        for column in scenario["columns"].as_array().unwrap() {
            let named = format!("{} {}", scenario["name"], column["name"]);
            let edges =
                column["edges"].as_array().map(|edges| edges.iter().map(|edge| edge.as_f64().unwrap()).collect());
            let layout = match edges {
                Some(edges) => Layout::numeric(edges),
                None => Layout::classes(column["classes"].as_array().unwrap().len()),
            };
            let (reference, current) = (counts(&column["reference"]), counts(&column["current"]));
            let verdict = judge(&layout, &reference, &current, Draws::Rows, &Criteria::default()).unwrap();
            drifted.push(verdict.drifted);
            p_values.push(verdict.p_value);
            let chi_square = verdict.chi_square;
            let ours = [
                ("/psi", Some(verdict.psi.value), 1e-9),
                ("/jensen_shannon", Some(verdict.jensen_shannon.value), 1e-9),
                ("/l_infinity", Some(verdict.l_infinity.value), 1e-9),
                ("/kolmogorov_smirnov", verdict.kolmogorov_smirnov.map(|score| score.value), 1e-9),
                // scipy's is that of many points to a bin.
                ("/wasserstein", verdict.wasserstein.map(|score| score.value), 1e-3),
                ("/chi_square/statistic", chi_square.map(|test| test.statistic), 1e-9),
                ("/chi_square/degrees_of_freedom", chi_square.map(|test| test.degrees_of_freedom), 1e-9),
                ("/chi_square/p_value", chi_square.map(|test| test.p_value), 1e-6),
            ];
            for (score, ours, tolerance) in ours {
                let expected = column["expected"].pointer(score).and_then(Value::as_f64);
                let same = match (ours, expected) {
                    (Some(ours), Some(expected)) => (ours - expected).abs() <= tolerance * (1.0 + expected.abs()),
                    (ours, expected) => ours.is_none() && expected.is_none(),
                };
                assert!(same, "{named}{score}: {ours:?}, expected {expected:?}");
                compared += 1;
            }
        }
        // As `adjust` does for a report.
        let alpha = Criteria::default().alpha;
        let any = drifted.iter().zip(false_discovery_rates(&p_values)).any(|(drifted, rate)| *drifted && rate <= alpha);
        assert_eq!(scenario["null"], !any, "{}", scenario["name"]);
    }
    assert!(scenarios >= 6 && compared > 300);
}
