//! Rows of real data that are odd, and rows that are not, beside what scikit-learn says of the same rows.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use muster_inference::{Images, OutlierFinder, Tensor};
use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::profile::{Column, Distance, Outliers, Profile, Source};
use muster_shared::{outliers, reference};
use serde::Deserialize;

#[derive(Deserialize)]
struct Peer {
    flagged: f64,
    auroc: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Case {
    quantile: f64,
    reference: Vec<Vec<f64>>,
    classes: Vec<usize>,
    heldout: Vec<Vec<f64>>,
    odd: BTreeMap<String, Vec<Vec<f64>>>,
    squared: Vec<f64>,
    peers: BTreeMap<String, Peer>,
}

fn case(name: &str) -> Case {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/fixtures/outliers/{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn fitted(case: &Case) -> (Distance, OutlierFinder) {
    let width = case.reference[0].len();
    let column = |at: usize| -> Vec<f64> { case.reference.iter().map(|row| row[at]).collect() };
    let values: Vec<Vec<f64>> = (0..width).map(column).collect();
    let taken: Vec<(u16, &[f64])> = (0..).zip(&values).map(|(at, values)| (at, values.as_slice())).collect();
    let distance = outliers::fit(&taken, Some(&case.classes), case.quantile).unwrap();
    let columns = (0..).zip(&values).map(|(index, values)| Column {
        name: format!("x{index}"),
        source: Source::Input { tensor: "x".into(), index },
        reference: reference::numeric(values).unwrap(),
    });
    let profile = Profile {
        columns: columns.collect(),
        outliers: Some(Outliers { expected_share: 0.0, distance: Some(distance.clone()) }),
        ..Profile::default()
    };
    profile.validate().unwrap();
    // It is signed as JSON: what a device reads is what was fitted.
    let read: Profile = serde_json::from_slice(&serde_json::to_vec(&profile).unwrap()).unwrap();
    let read_distance = read.outliers.as_ref().and_then(|outliers| outliers.distance.as_ref()).unwrap();
    assert!(read_distance.whitening == distance.whitening && read_distance.centres == distance.centres);
    let shape = vec![-1, i64::try_from(width).unwrap()];
    let spec = TensorSpec { name: "x".into(), datatype: DataType::Fp64, shape };
    let signature = ModelSignature { inputs: vec![spec], outputs: Vec::new() };
    (distance, OutlierFinder::new(&read, &signature).unwrap().unwrap())
}

fn squared(distance: &Distance, rows: &[Vec<f64>]) -> Vec<f64> {
    let ready = distance.ready();
    let one = |row: &Vec<f64>| {
        let mut sums = ready.row();
        let places = distance.columns.iter().enumerate();
        places.for_each(|(place, column)| sums.add(place, Some(row[usize::from(*column)])));
        sums.squared()
    };
    rows.iter().map(one).collect()
}

/// The chance that an odd row is farther than a usual one: the area under the ROC curve.
fn auroc(usual: &[f64], odd: &[f64]) -> f64 {
    let wins = |odd: &f64| -> f64 {
        usual
            .iter()
            .map(|usual| {
                if odd > usual {
                    1.0
                } else if odd < usual {
                    0.0
                } else {
                    0.5
                }
            })
            .sum()
    };
    odd.iter().map(wins).sum::<f64>() / (usual.len() * odd.len()) as f64
}

fn flagged(finder: &OutlierFinder, rows: &[Vec<f64>]) -> f64 {
    let values: Vec<f64> = rows.iter().flatten().copied().collect();
    let tensor = Tensor::from_f64("x", DataType::Fp64, vec![rows.len(), rows[0].len()], &values).unwrap();
    let counts = finder.find(&[tensor], &Images::NONE).counts;
    assert_eq!(counts.rows, rows.len() as u64);
    counts.distance as f64 / counts.rows as f64
}

/// The greatest number of `n` rows that are flagged with more than one chance in a thousand, each with the chance `share`.
fn at_most(n: usize, share: f64) -> f64 {
    let (mut term, mut below, mut k) = ((1.0 - share).powi(i32::try_from(n).unwrap()), 0.0, 0.0);
    while below + term < 0.999 {
        below += term;
        term *= (n as f64 - k) / (k + 1.0) * share / (1.0 - share);
        k += 1.0;
    }
    k / n as f64
}

#[test]
fn rows_held_out_are_flagged_as_often_as_declared_and_odd_ones_are_found_as_by_scikit_learn() {
    // Of 58 rows of wine with 13 columns shuffled, few lie beyond: a hundredth of 120 rows is one row.
    for (name, least, found_at_least) in [("digits", 0.998, 0.85), ("breast-cancer", 0.99, 0.4), ("wine", 0.92, 0.0)] {
        let case = case(name);
        let (distance, finder) = fitted(&case);
        let usual = squared(&distance, &case.heldout);
        for (ours, theirs) in usual.iter().zip(&case.squared) {
            assert!((ours - theirs).abs() < 2e-3 * theirs, "{name}: {ours} for scikit-learn's {theirs}");
        }
        let share = flagged(&finder, &case.heldout);
        println!("{name}: {share:.4} of rows held out are flagged, {:.4} are declared", 1.0 - distance.quantile);
        assert!(share <= at_most(case.heldout.len(), 1.0 - distance.quantile), "{name}: {share}");
        for (kind, odd) in &case.odd {
            let (found, area) = (flagged(&finder, odd), auroc(&usual, &squared(&distance, odd)));
            println!("{name}, {kind}: {found:.3} are flagged; area {area:.4}");
            for (peer, Peer { flagged, auroc }) in &case.peers {
                println!("    {peer}: area {:.4}; {flagged:.4} of rows held out are flagged", auroc[kind]);
                assert!(area >= auroc[kind] - 0.005, "{name}, {kind}: {area} beside {} of the {peer}", auroc[kind]);
            }
            assert!(area >= least && found >= found_at_least, "{name}, {kind}: area {area}, {found} flagged");
        }
    }
}
