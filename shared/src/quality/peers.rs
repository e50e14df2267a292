//! Held against scikit-learn, numpy and statsmodels on real data (`tests/fixtures/make_quality.py`).

use serde::Deserialize;
use serde_json::Value;

use super::*;
use crate::labels::{LabelSpec, LabelTask, Prediction};
use crate::profile::SliceSet;
use crate::sketch::{LabelCounts, LabelSketch};

/// Windows the labels come in.
const WINDOWS: usize = 5;

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    task: LabelTask,
    /// Answer, confidence, label if it is known, and the window in which that came.
    rows: Vec<(Value, Option<f64>, Value, usize)>,
    expected: Value,
}

impl Case {
    /// Every label, counted in its window, and the windows added up.
    fn counts(&self) -> LabelCounts {
        let spec = LabelSpec::new("y", self.task.clone());
        let mut windows = vec![LabelSketch::empty(&spec); WINDOWS];
        for (answer, confidence, label, window) in &self.rows {
            let answer = match answer.as_array() {
                Some(numbers) => Prediction::Numbers(numbers.iter().map(|number| number.as_f64().unwrap()).collect()),
                None => {
                    let class = u16::try_from(answer.as_u64().unwrap()).unwrap();
                    Prediction::Class(Some((class, confidence.unwrap())))
                }
            };
            if label.is_null() {
                continue;
            }
            let truth = spec.read(label).unwrap();
            windows[*window].join(&spec, (&answer, &truth), SliceSet::default(), 1_000 * *window as u64);
        }
        let mut sum = LabelSketch::empty(&spec);
        windows.iter().rev().for_each(|window| sum.merge(window).unwrap());
        sum.all
    }

    fn expected(&self, metric: &str) -> Vec<f64> {
        let found = &self.expected[metric];
        match found.as_array() {
            Some(numbers) => numbers.iter().map(|number| number.as_f64().unwrap()).collect(),
            None => vec![found.as_f64().unwrap_or_else(|| panic!("{}: no {metric}", self.name))],
        }
    }

    #[track_caller]
    fn check(&self, metric: &str, found: &[f64], tolerance: f64) {
        let expected = self.expected(metric);
        assert_eq!(found.len(), expected.len(), "{}: {metric}", self.name);
        for (found, expected) in found.iter().zip(expected) {
            let distance = (found - expected).abs() / expected.abs().max(1.0);
            assert!(distance <= tolerance, "{}: {metric} is {found}, and {expected} elsewhere", self.name);
        }
    }
}

fn cases() -> Vec<Case> {
    let text = include_str!("../../../tests/fixtures/quality/cases.json");
    serde_json::from_str::<Cases>(text).unwrap().cases
}

#[test]
fn classifiers_have_scikit_learns_metrics() {
    let mut seen = 0;
    for case in cases() {
        let (LabelCounts::Classes(counts), LabelTask::Classification { classes }) = (case.counts(), &case.task) else {
            continue;
        };
        seen += 1;
        let quality = measure_classes(&[&counts], classes).unwrap();
        let value = |estimate: Option<Estimate>| estimate.map_or(0.0, |estimate| estimate.value);
        case.check("n", &[counts.total() as f64], 0.0);
        case.check("accuracy", &[quality.accuracy.value], 1e-12);
        case.check("low", &[quality.accuracy.low.unwrap()], 1e-9);
        case.check("high", &[quality.accuracy.high.unwrap()], 1e-9);
        let by_class = |metric: fn(&ClassQuality) -> Option<Estimate>| -> Vec<f64> {
            quality.classes.iter().map(|class| value(metric(class))).collect()
        };
        case.check("precision", &by_class(|class| class.precision), 1e-12);
        case.check("recall", &by_class(|class| class.recall), 1e-12);
        case.check("f1", &by_class(|class| class.f1), 1e-12);
        case.check("support", &quality.classes.iter().map(|c| c.support as f64).collect::<Vec<_>>(), 0.0);
        case.check("macro_precision", &[quality.macro_precision], 1e-12);
        case.check("macro_recall", &[quality.macro_recall], 1e-12);
        case.check("macro_f1", &[quality.macro_f1], 1e-12);
        // Confidences are counted in millionths.
        case.check("calibration_error", &[quality.calibration_error.unwrap()], 1e-6);
        let width = classes.len() + 1;
        for (truth, row) in case.expected["confusion"].as_array().unwrap().iter().enumerate() {
            for (answer, n) in row.as_array().unwrap().iter().enumerate().filter(|(answer, _)| *answer != truth) {
                let pair = u32::try_from(truth * width + answer).unwrap();
                assert_eq!(counts.confused.get(&pair).copied().unwrap_or(0), n.as_u64().unwrap(), "{}", case.name);
            }
        }
    }
    assert_eq!(seen, 5);
}

#[test]
fn regressions_have_scikit_learns_metrics() {
    let mut seen = 0;
    for case in cases() {
        let (LabelCounts::Targets(counts), LabelTask::Regression { targets }) = (case.counts(), &case.task) else {
            continue;
        };
        seen += 1;
        let measured: Vec<TargetQuality> =
            counts.iter().zip(targets).map(|(counts, target)| measure_target(&[counts], target).unwrap()).collect();
        let of = |metric: fn(&TargetQuality) -> f64| -> Vec<f64> { measured.iter().map(metric).collect() };
        case.check("n", &[measured[0].n as f64], 0.0);
        // Numbers are counted in 2^-20 of the scale.
        case.check("mae", &of(|target| target.mae.value), 1e-6);
        case.check("rmse", &of(|target| target.rmse.value), 1e-6);
        case.check("bias", &of(|target| target.bias.value), 1e-4);
        case.check("r2", &of(|target| target.r2.unwrap()), 1e-5);
    }
    assert_eq!(seen, 3);
}
