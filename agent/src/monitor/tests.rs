use std::collections::BTreeMap;

use muster_shared::ids::Digest;
use muster_shared::profile::{Objectives, Profile};
use muster_shared::sketch::{ColumnSketch, LatencySketch, SketchWindow};
use proptest::prelude::*;

use super::*;
use crate::host::fixtures::{column_of, doubling};

const WINDOW_MS: u64 = 1_000;

fn resources() -> Resources {
    Resources { resident_bytes: 7, ..Resources::default() }
}

/// Counts a request with these values, as the doubling model answers it.
fn serve(monitor: &Monitor, watch: &Arc<ModelWatch>, now_ms: u64, values: &[f64]) {
    let doubled: Vec<f64> = values.iter().map(|x| 2.0 * x).collect();
    let inputs = [column_of("x", values)];
    let served = Served {
        inputs: &inputs,
        outputs: &[column_of("y", &doubled)],
        failed: false,
        latency: Duration::from_micros(100),
        outliers: watch.outliers(&inputs, &Images::NONE).map(|found| found.counts),
        ..Served::default()
    };
    monitor.served(watch, now_ms, &served);
}

fn served(window: &ClosedWindow) -> u64 {
    window.telemetry.requests.served
}

#[test]
fn windows_tumble_at_multiples_of_their_length_and_silence_shows() {
    let monitor = Monitor::new(WINDOW_MS);
    assert_eq!(monitor.next_close_ms(), None);
    assert!(monitor.close_due(5_000, resources()).is_empty(), "nothing is watched yet");
    let model = doubling("1.0.0", 3);
    let watch = monitor.watch(&model, 10_400);
    assert_eq!(monitor.next_close_ms(), Some(11_000));
    serve(&monitor, &watch, 10_500, &[1.0, 2.0, 30.0]);
    assert!(monitor.close_due(10_999, resources()).is_empty());

    let closed = monitor.close_due(11_000, resources());
    let [window] = closed.as_slice() else { panic!("{closed:?}") };
    let key = window.telemetry.key;
    assert_eq!((key.manifest, key.generation, key.start_ms, key.duration_ms), (model.manifest, 3, 10_400, 600));
    assert_eq!(window.telemetry.requests, RequestCounts { served: 1, ..RequestCounts::default() });
    assert_eq!(window.telemetry.latency_us.count(), 1);
    assert_eq!(window.telemetry.resources, resources());
    let sketch = window.sketch.as_ref().unwrap();
    assert!(sketch.fits(&model.profile));
    assert_eq!(sketch.key, key);
    assert_eq!(sketch.columns.iter().map(ColumnSketch::total).collect::<Vec<_>>(), [3, 3]);

    assert_eq!(monitor.next_close_ms(), Some(12_000));
    let closed = monitor.close_due(12_003, resources());
    let [silent] = closed.as_slice() else { panic!("{closed:?}") };
    assert_eq!((silent.telemetry.key.start_ms, silent.telemetry.key.duration_ms), (11_000, 1_000));
    assert_eq!((silent.telemetry.requests, &silent.sketch), (RequestCounts::default(), &None));
    assert_eq!(monitor.closed_total(), 2);
}

#[test]
fn raw_values_and_slow_requests_are_counted_where_the_bundle_asks() {
    let monitor = Monitor::new(WINDOW_MS);
    let mut model = doubling("1.0.0", 3);
    let objectives = Objectives { latency_us: vec![50, 100] };
    model.profile = Arc::new(Profile { quantiles: vec![1], objectives, ..Profile::clone(&model.profile) });
    let watch = monitor.watch(&model, 0);
    serve(&monitor, &watch, 100, &[1.0, f64::NAN, 2.5]);
    // Enough of them that they are counted apart first.
    serve(&monitor, &watch, 200, &vec![4.0; 5_000]);
    let closed = monitor.close_due(1_000, resources());
    let [window] = closed.as_slice() else { panic!("{closed:?}") };
    // Each took 100 µs: above the first edge, and not above the second.
    let above: Vec<_> = window.telemetry.objectives.iter().map(|count| (count.served, count.above)).collect();
    assert_eq!(above, [(2, 2), (2, 0)]);
    let sketch = window.sketch.as_ref().unwrap();
    assert!(sketch.fits(&model.profile));
    assert!(sketch.quantiles.get(0).is_none(), "nobody asked for the input's");
    let kept = sketch.quantiles.get(1).unwrap();
    assert_eq!((kept.n(), kept.quantiles(&[0.0, 0.5, 1.0])), (5_002, Some(vec![2.0, 8.0, 8.0])));
}

#[test]
fn a_request_after_the_end_is_not_counted_before_it() {
    let monitor = Monitor::new(WINDOW_MS);
    let watch = monitor.watch(&doubling("1.0.0", 1), 0);
    serve(&monitor, &watch, 10, &[1.0]);
    serve(&monitor, &watch, 5_500, &[1.0]);
    serve(&monitor, &watch, 5_600, &[1.0]);
    assert!(monitor.next_close_ms().unwrap() <= 5_600, "one is waiting to be fetched");
    let closed = monitor.close_due(6_000, resources());
    let spans: Vec<_> = closed
        .iter()
        .map(|w| (w.telemetry.key.start_ms, w.telemetry.key.duration_ms, w.telemetry.requests.served))
        .collect();
    assert_eq!(spans, [(0, 1_000, 1), (5_000, 1_000, 2)]);
}

#[test]
fn a_change_of_model_ends_the_window_and_late_answers_keep_their_model() {
    let monitor = Monitor::new(WINDOW_MS);
    let old = monitor.watch(&doubling("1.0.0", 1), 0);
    serve(&monitor, &old, 100, &[1.0]);
    let new = monitor.watch(&doubling("2.0.0", 2), 300);
    assert!(monitor.next_close_ms().unwrap() <= 300, "the old window is waiting to be fetched");
    serve(&monitor, &old, 310, &[1.0, 1.0]);
    serve(&monitor, &new, 320, &[1.0]);
    assert_eq!(monitor.counts_since_watch().served, 1, "only the new model's requests");

    let closed = monitor.close_due(300, resources());
    let [window] = closed.as_slice() else { panic!("{closed:?}") };
    let key = window.telemetry.key;
    assert_eq!((key.generation, key.start_ms, key.duration_ms, served(window)), (1, 0, 300, 1));

    // Long after its end, from a model that took its time.
    serve(&monitor, &old, 20_000, &[1.0]);
    monitor.unwatch(20_500);
    let closed = monitor.close_all(21_000, resources());
    let mut of_old = 0;
    for window in closed.iter().filter(|w| w.telemetry.key.generation == 1) {
        assert_eq!(window.telemetry.key.manifest, Digest::of(b"1.0.0"));
        of_old += served(window);
    }
    assert_eq!(of_old, 2);
    assert_eq!(closed.iter().filter(|w| w.telemetry.key.generation == 2).map(served).sum::<u64>(), 1);
    assert_eq!(monitor.next_close_ms(), None, "nothing is watched and nothing is open");
}

#[test]
fn every_outcome_has_its_count_and_only_served_rows_are_sketched() {
    let monitor = Monitor::new(WINDOW_MS);
    let watch = monitor.watch(&doubling("1.0.0", 1), 0);
    monitor.turned_away(&watch, 1, TurnedAway::Rejected, None);
    monitor.turned_away(&watch, 2, TurnedAway::Overloaded, None);
    let closed = monitor.close_due(1_000, resources());
    assert_eq!(closed[0].sketch, None, "nothing reached the model");

    let inputs = [column_of("x", &[1.0, f64::NAN])];
    let latency = Duration::from_millis(2);
    let failed = Served { inputs: &inputs, outputs: &[], failed: true, latency, ..Served::default() };
    monitor.served(&watch, 1_001, &failed);
    let outputs = [column_of("y", &[2.0, f64::NAN])];
    let non_finite = Served { inputs: &inputs, outputs: &outputs, non_finite: true, latency, ..Served::default() };
    monitor.served(&watch, 1_002, &non_finite);
    monitor.turned_away(&watch, 1_003, TurnedAway::Rejected, None);
    assert_eq!(
        monitor.counts_since_watch(),
        RequestCounts { served: 2, failed: 1, non_finite: 1, rejected: 2, overloaded: 1 }
    );
    let closed = monitor.close_due(2_000, resources());
    assert_eq!(
        closed[0].telemetry.requests,
        RequestCounts { served: 2, failed: 1, non_finite: 1, rejected: 1, overloaded: 0 }
    );
    assert_eq!(closed[0].telemetry.latency_us.count(), 2);
    let columns = &closed[0].sketch.as_ref().unwrap().columns;
    let (ColumnSketch::Numeric(x), ColumnSketch::Numeric(y)) = (&columns[0], &columns[1]) else { panic!() };
    assert_eq!((x.total(), x.nan, x.missing), (4, 2, 0));
    assert_eq!((y.total(), y.nan, y.missing), (4, 1, 2), "what a failed run did not give is missing");
}

#[test]
fn a_clock_set_back_neither_stops_nor_stretches_windows() {
    let monitor = Monitor::new(WINDOW_MS);
    let watch = monitor.watch(&doubling("1.0.0", 1), 1_000_000);
    serve(&monitor, &watch, 1_000_100, &[1.0]);
    serve(&monitor, &watch, 5_500, &[1.0]);
    assert_eq!(monitor.next_close_ms(), Some(6_000));
    let closed = monitor.close_due(6_000, resources());
    assert_eq!(closed.iter().map(served).collect::<Vec<_>>(), [1, 1]);
    assert!(closed.iter().all(|w| (1..=WINDOW_MS).contains(&w.telemetry.key.duration_ms)));
    // A step back within the length is left alone: the window simply ends when its time has come.
    serve(&monitor, &watch, 5_900, &[1.0]);
    assert_eq!(monitor.next_close_ms(), Some(7_000));
}

#[test]
fn closed_windows_that_nobody_fetches_are_bounded() {
    let monitor = Monitor::new(WINDOW_MS);
    let watch = monitor.watch(&doubling("1.0.0", 1), 0);
    for window in 0..1_000 {
        serve(&monitor, &watch, window * WINDOW_MS, &[1.0]);
    }
    let closed = monitor.close_due(1_000 * WINDOW_MS, resources());
    assert_eq!(closed.len(), MAX_CLOSED);
    assert_eq!(closed.last().unwrap().telemetry.key.start_ms, 999 * WINDOW_MS, "the newest are kept");
}

#[test]
fn many_rows_count_as_few_do() {
    let values: Vec<f64> = (0..20_000).map(|i| f64::from(i % 14)).collect();
    let one_at_a_time = Monitor::new(WINDOW_MS);
    let watch = one_at_a_time.watch(&doubling("1.0.0", 1), 0);
    values.iter().for_each(|value| serve(&one_at_a_time, &watch, 1, &[*value]));
    let at_once = Monitor::new(WINDOW_MS);
    let watch = at_once.watch(&doubling("1.0.0", 1), 0);
    serve(&at_once, &watch, 1, &values);
    let cells = |monitor: &Monitor| {
        let closed = monitor.close_due(1_000, resources());
        closed[0].sketch.as_ref().unwrap().columns.iter().map(ColumnSketch::cells).collect::<Vec<_>>()
    };
    assert_eq!(cells(&one_at_a_time), cells(&at_once));
}

#[test]
fn absurd_numbers_do_not_spoil_a_window() {
    let monitor = Monitor::new(WINDOW_MS);
    let model = doubling("1.0.0", 1);
    let watch = monitor.watch(&model, 0);
    serve(&monitor, &watch, 1, &[f64::MAX, f64::MIN, 1.0, f64::INFINITY]);
    let closed = monitor.close_due(1_000, resources());
    let sketch = closed[0].sketch.as_ref().unwrap();
    assert!(sketch.fits(&model.profile), "the controller must be able to read it: {sketch:?}");
    let ColumnSketch::Numeric(x) = &sketch.columns[0] else { panic!() };
    assert_eq!((x.above_max, x.below_min, x.pos_inf), (1, 1, 1));
}

#[test]
fn a_profile_that_does_not_fit_leaves_the_counts() {
    let monitor = Monitor::new(WINDOW_MS);
    let mut model = doubling("1.0.0", 1);
    model.signature.inputs[0].name = "other".into();
    let watch = monitor.watch(&model, 0);
    serve(&monitor, &watch, 1, &[1.0]);
    let closed = monitor.close_due(1_000, resources());
    assert_eq!((served(&closed[0]), &closed[0].sketch), (1, &None));
}

#[derive(Debug, Clone)]
enum Step {
    Serve(Vec<f64>),
    ServeOld(Vec<f64>),
    Switch,
    CloseDue,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let values = || prop::collection::vec(prop_oneof![5 => -1.0..12.0f64, 1 => Just(f64::NAN)], 1..5);
    prop_oneof![
        6 => values().prop_map(Step::Serve),
        2 => values().prop_map(Step::ServeOld),
        1 => Just(Step::Switch),
        3 => Just(Step::CloseDue),
        4 => (0u64..1_500).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever the order of requests, switches and closings, every request is in exactly one window of its own model, and
    /// the windows together hold what one sketch of everything would.
    #[test]
    fn the_windows_together_hold_what_was_served(steps in prop::collection::vec(step(), 1..60)) {
        let monitor = Monitor::new(WINDOW_MS);
        let model = |generation: u64| doubling(&format!("{generation}.0.0"), generation);
        let mut now_ms = 10_000;
        let mut generation = 1;
        let mut current = (generation, monitor.watch(&model(generation), now_ms));
        let mut old = current.clone();
        let mut expected: BTreeMap<u64, (u64, Vec<f64>)> = BTreeMap::new();
        let mut closed = Vec::new();
        for step in steps {
            match step {
                Step::Serve(values) => {
                    serve(&monitor, &current.1, now_ms, &values);
                    let of_model = expected.entry(current.0).or_default();
                    of_model.0 += 1;
                    of_model.1.extend(values);
                }
                Step::ServeOld(values) => {
                    serve(&monitor, &old.1, now_ms, &values);
                    let of_model = expected.entry(old.0).or_default();
                    of_model.0 += 1;
                    of_model.1.extend(values);
                }
                Step::Switch => {
                    generation += 1;
                    old = current;
                    current = (generation, monitor.watch(&model(generation), now_ms));
                }
                Step::CloseDue => {
                    closed.extend(monitor.close_due(now_ms, resources()));
                    prop_assert!(monitor.next_close_ms().unwrap() > now_ms, "everything due was closed");
                }
                Step::Wait(ms) => now_ms += ms,
            }
        }
        closed.extend(monitor.close_all(now_ms, resources()));

        let mut found: BTreeMap<u64, (u64, LatencySketch, Option<SketchWindow>)> = BTreeMap::new();
        for window in closed {
            let key = window.telemetry.key;
            prop_assert!((1..=WINDOW_MS).contains(&key.duration_ms), "{key:?}");
            let of_model = found.entry(key.generation).or_default();
            of_model.0 += served(&window);
            of_model.1.merge(&window.telemetry.latency_us);
            prop_assert_eq!(window.sketch.is_some(), served(&window) > 0);
            match (&mut of_model.2, window.sketch) {
                (Some(sum), Some(sketch)) => sum.merge(&sketch).unwrap(),
                (sum @ None, sketch) => *sum = sketch,
                (Some(_), None) => {}
            }
        }
        for (generation, (requests, values)) in expected {
            let (served, latency, sketch) = &found[&generation];
            prop_assert_eq!((*served, latency.count()), (requests, requests));
            let profile = &model(generation).profile;
            for (factor, (sketch, column)) in [1.0, 2.0].iter().zip(sketch.as_ref().unwrap().columns.iter().zip(&profile.columns)) {
                let mut union = ColumnSketch::empty(column);
                values.iter().for_each(|value| union.add(column, factor * value));
                prop_assert_eq!(sketch.cells(), union.cells());
            }
            // Each row is in one slice of the slicing, so that the slices add up to the whole.
            let sketch = sketch.as_ref().unwrap();
            let rows = |number| sketch.slices.get(number).map_or(0, |slice| slice.rows);
            let within = |slice: fn(f64) -> bool| values.iter().filter(|value| slice(**value)).count() as u64;
            prop_assert_eq!((rows(0), rows(1), rows(2)), (within(|x| x < 5.0), within(|x| x >= 5.0), within(f64::is_nan)));
            // The reference is 0 to 10, without a missing value.
            let odd = values.iter().filter(|value| !(0.0..=10.0).contains(*value)).count() as u64;
            prop_assert_eq!(sketch.outliers.flagged, odd);
            let mut sum = vec![0; sketch.columns[1].cells().len()];
            for (_, slice) in sketch.slices.iter() {
                prop_assert_eq!(slice.columns[1].total(), slice.rows);
                sum.iter_mut().zip(slice.columns[1].cells()).for_each(|(sum, n)| *sum += n);
            }
        }
    }
}

#[test]
fn numbers_come_only_so_often_and_each_window_has_its_own() {
    let monitor = Monitor::new(WINDOW_MS);
    let watch = monitor.watch(&doubling("1.0.0", 3), 10_400);
    let sent = |value: f64| BTreeMap::from([("stops".parse().unwrap(), value)]);
    for _ in 0..MAX_METRIC_REQUESTS_PER_S {
        monitor.sent(&watch, 10_500, &sent(1.0)).unwrap();
    }
    assert_eq!(monitor.sent(&watch, 10_999, &sent(1.0)), Err(NumbersRefused::TooOften));
    monitor.sent(&watch, 11_000, &sent(7.0)).unwrap();
    assert_eq!(monitor.last_sent(), sent(7.0));
    let closed = monitor.close_due(12_000, resources());
    let counts: Vec<Vec<(u64, f64)>> = closed
        .iter()
        .map(|window| window.telemetry.numbers.iter().map(|(_, sum)| (sum.count, sum.sum)).collect())
        .collect();
    assert_eq!(counts, [vec![(100, 100.0)], vec![(1, 7.0)]]);
    // What was said last shows until another window has passed.
    assert_eq!(monitor.last_sent(), sent(7.0));
    monitor.close_due(13_000, resources());
    assert_eq!(monitor.last_sent(), BTreeMap::new());
    // A model that has been replaced says nothing more unless it is sent something.
    monitor.unwatch(13_500);
    monitor.sent(&watch, 13_600, &sent(2.0)).unwrap();
    let closed = monitor.close_all(13_700, resources());
    assert!(closed.iter().any(|window| !window.telemetry.numbers.is_empty()), "{closed:?}");
}
