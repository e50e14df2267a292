//! Latency sketches held against numpy on an hour of three kinds (`tests/fixtures/make_latency.py`), and against another DDSketch.

use serde::Deserialize;
use sketches_ddsketch::{Config, DDSketch};

use super::{LATENCY_RELATIVE_ERROR, LatencySketch};

/// An hour of latencies, in microseconds.
#[derive(Deserialize)]
pub(super) struct Hour {
    pub(super) name: String,
    pub(super) latencies_us: Vec<u64>,
    /// Shares and the order statistics that numpy gives for them.
    quantiles: Vec<(f64, f64)>,
}

pub(super) fn hours() -> Vec<Hour> {
    #[derive(Deserialize)]
    struct Fixture {
        cases: Vec<Hour>,
    }
    let text = include_str!("../../../tests/fixtures/latency/samples.json");
    serde_json::from_str::<Fixture>(text).unwrap().cases
}

pub(super) fn sketched(latencies_us: &[u64]) -> LatencySketch {
    let mut sketch = LatencySketch::default();
    latencies_us.iter().for_each(|latency| sketch.add(*latency));
    sketch
}

#[test]
fn quantiles_are_numpys_within_the_relative_error() {
    let mut compared = 0;
    for hour in hours() {
        let ours = sketched(&hour.latencies_us);
        let mut peer = DDSketch::new(Config::new(LATENCY_RELATIVE_ERROR, 2_048, 1.0));
        hour.latencies_us.iter().for_each(|latency| peer.add(*latency as f64));
        assert_eq!(ours.count(), peer.count() as u64);
        for (q, exact) in &hour.quantiles {
            let within = |estimate: f64| (estimate - exact).abs() <= LATENCY_RELATIVE_ERROR * exact * 1.000_001;
            let estimate = ours.quantile_us(*q).unwrap();
            assert!(within(estimate), "{} at {q}: {estimate}, numpy has {exact}", hour.name);
            let theirs = peer.quantile(*q).unwrap().unwrap();
            assert!(within(theirs), "{} at {q}: sketches-ddsketch has {theirs}, numpy {exact}", hour.name);
            compared += 1;
        }
    }
    assert_eq!(compared, 36);
}

#[test]
fn merged_is_whole() {
    for hour in hours() {
        let whole = sketched(&hour.latencies_us);
        let mut merged = LatencySketch::default();
        for part in hour.latencies_us.chunks(617).rev() {
            merged.merge(&sketched(part));
        }
        assert_eq!(merged, whole, "{}", hour.name);
        assert_eq!(serde_json::to_string(&merged).unwrap(), serde_json::to_string(&whole).unwrap());
    }
}
