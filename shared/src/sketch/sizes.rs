//! How much each kind of column takes on the wire for an hour of ordinary traffic, held against what docs/monitoring.md promises.

use super::peers::{hours, sketched};
use super::{
    ColumnSketch, LatencySketch, ObjectiveCounts, OutlierCounts, QuantileSketch, QuantileSketches, SketchWindow,
};
use crate::ids::Digest;
use crate::messages::{Position, RequestCounts, Resources, Sequenced, TelemetryWindow, WindowKey};
use crate::numbers::Numbers;
use crate::profile::{Column, Objectives, Probe, Profile, Reference, Side, Source};
use crate::reference;
use crate::topics::{Kind, Topic, Up};

/// An hour at one request a second.
const HOUR: usize = 3_600;

/// Normal deviates by the sum of twelve uniform ones, from splitmix64.
struct Draws(u64);

impl Draws {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / crate::limits::MAX_EXACT as f64
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// A number whose reference was drawn by `draw`.
fn number(name: &str, source: Source, mut draw: impl FnMut() -> f64) -> Column {
    let sample: Vec<f64> = (0..1_000).map(|_| draw()).collect();
    Column { name: name.into(), source, reference: reference::numeric(&sample).unwrap() }
}

fn input(index: u32) -> Source {
    Source::Input { tensor: "in".into(), index }
}

fn classes(count: usize) -> Column {
    let classes = (0..count).map(|class| format!("c{class}")).collect();
    Column {
        name: "class".into(),
        source: Source::PredictedClass { tensor: "out".into() },
        reference: Reference::Class { classes, counts: vec![9; count] },
    }
}

fn counted(column: &Column, rows: usize, mut draw: impl FnMut() -> f64) -> ColumnSketch {
    let mut sketch = ColumnSketch::empty(column);
    (0..rows).for_each(|_| sketch.add(column, draw()));
    sketch
}

fn bytes(sketch: &ColumnSketch) -> usize {
    postcard::to_stdvec(sketch).unwrap().len()
}

/// Answers of a classifier that is mostly sure of itself.
fn confidence(draws: &mut Draws) -> f64 {
    1.0 - 0.9 * draws.uniform().powi(3)
}

#[test]
fn a_number_takes_75_bytes() {
    let mut draws = Draws(1);
    let column = number("x", input(0), || draws.normal());
    // As the reference, shifted, and ten times as often.
    for (rows, shift) in [(HOUR, 0.0), (HOUR, 2.0), (10 * HOUR, 0.0)] {
        let size = bytes(&counted(&column, rows, || shift + draws.normal()));
        assert!((40..=75).contains(&size), "{rows} rows, shifted by {shift}: {size} bytes");
    }
}

#[test]
fn confidence_entropy_and_margin_take_75_bytes_each() {
    let mut draws = Draws(2);
    let tensor = || "out".to_owned();
    for source in [
        Source::Confidence { tensor: tensor() },
        Source::Entropy { tensor: tensor() },
        Source::Margin { tensor: tensor() },
    ] {
        let column = number("sure", source, || confidence(&mut draws));
        let size = bytes(&counted(&column, HOUR, || confidence(&mut draws)));
        assert!((40..=75).contains(&size), "{size} bytes");
    }
}

#[test]
fn a_wide_tensor_takes_two_kilobytes() {
    let mut draws = Draws(3);
    let of = Side::Input;
    let probe = |probe| Source::Probe { of, tensor: "image".into(), probe };
    let channel = |channel| probe(Probe::ChannelMean { channel, channels: 4, last: false });
    let plain = [Probe::Mean, Probe::Std, Probe::Min, Probe::Max, Probe::Norm, Probe::Roughness, Probe::Zeros];
    let probes = plain.into_iter().chain([Probe::Saturated { at: 1.0 }]).map(probe).chain((0..4).map(channel));
    let projection = |number| Source::Projection { of, tensor: "image".into(), seed: 1, number };
    let columns: Vec<Column> =
        probes.chain((0..16).map(projection)).map(|source| number("p", source, || draws.normal())).collect();
    assert_eq!(columns.len(), 28, "an image of four channels has the most");
    let size: usize = columns.iter().map(|column| bytes(&counted(column, HOUR, || draws.normal()))).sum();
    assert!((1_000..=2_048).contains(&size), "{size} bytes");
}

#[test]
fn a_class_takes_one_or_two_bytes() {
    let mut draws = Draws(4);
    for count in [2, 10, 100, 256] {
        let size = bytes(&counted(&classes(count), HOUR, || (draws.uniform() * count as f64).floor()));
        // Which kind of column it is, how many numbers follow, other and missing.
        assert!((count..=2 * count + 5).contains(&size), "{count} classes: {size} bytes");
    }
}

fn objectives(latencies_us: &[u64]) -> ObjectiveCounts {
    let mut counts = ObjectiveCounts::empty(&Objectives { latency_us: vec![20_000, 50_000, 100_000] });
    latencies_us.iter().for_each(|latency| counts.add(*latency));
    counts
}

#[test]
fn latency_and_three_objectives_take_half_a_kilobyte() {
    for hour in hours() {
        let sketch = serde_json::to_vec(&sketched(&hour.latencies_us)).unwrap().len();
        let counts = serde_json::to_vec(&objectives(&hour.latencies_us)).unwrap().len();
        assert!(sketch + counts <= 512, "{}: {sketch} and {counts} bytes", hour.name);
    }
}

#[test]
fn quantiles_take_a_kilobyte_and_a_half() {
    let mut draws = Draws(5);
    let mut sketch = QuantileSketch::default();
    for rows in 1..=1_000_000_u32 {
        sketch.add(draws.uniform());
        if rows == 100 {
            assert_eq!(sketch.to_bytes().len(), 32 + 4 * 100, "of few rows it keeps all");
        }
        // As long as an hour can be, and now and then on the way to a million.
        if rows <= 10_000 && rows.is_multiple_of(7) || rows.is_multiple_of(9_973) {
            let size = sketch.to_bytes().len();
            assert!(size <= 1_536, "{size} bytes for {rows} rows");
        }
    }
}

/// A packet of MQTT 3.1.1 that publishes `payload` with QoS 1 (OASIS standard, section 3.3).
fn packet(kind: Up, payload: &[u8]) -> usize {
    let device = "press-7-hall-3-plant-lyon-north".parse().unwrap();
    let topic = Topic { device, kind: Kind::Up(kind) }.to_string();
    let remaining = 2 + topic.len() + 2 + payload.len();
    let length_bytes = match remaining {
        0..128 => 1,
        128..16_384 => 2,
        16_384..2_097_152 => 3,
        _ => 4,
    };
    1 + length_bytes + remaining
}

fn report(rows: usize, quantiles: &[u16]) -> (Sequenced<TelemetryWindow>, Sequenced<SketchWindow>) {
    let mut draws = Draws(6);
    let mut columns: Vec<Column> =
        (0..64).map(|index| number(&format!("x{index}"), input(index), || draws.normal())).collect();
    columns.push(classes(10));
    let tensor = || "out".to_owned();
    for (name, source) in [
        ("confidence", Source::Confidence { tensor: tensor() }),
        ("entropy", Source::Entropy { tensor: tensor() }),
        ("margin", Source::Margin { tensor: tensor() }),
    ] {
        columns.push(number(name, source, || confidence(&mut draws)));
    }
    let profile = Profile { columns, quantiles: quantiles.to_vec(), ..Profile::default() };
    profile.validate().unwrap();
    let key = WindowKey {
        manifest: Digest::of(b"m"),
        generation: 1_234,
        start_ms: 1_700_000_000_000,
        duration_ms: 3_600_000,
    };
    let mut body = SketchWindow::empty(key, &profile);
    let mut kept = vec![None; profile.columns.len()];
    for (at, (sketch, column)) in body.columns.iter_mut().zip(&profile.columns).enumerate() {
        for _ in 0..rows {
            let x = match at {
                0..64 => 0.3 + draws.normal(),
                64 => (draws.uniform() * 10.0).floor(),
                _ => confidence(&mut draws),
            };
            sketch.add(column, x);
            if quantiles.iter().any(|wanted| usize::from(*wanted) == at) {
                kept[at].get_or_insert_with(QuantileSketch::default).add(x);
            }
        }
    }
    body.quantiles = QuantileSketches::of_counted(kept);
    let rows = rows as u64;
    body.outliers = OutlierCounts { rows, flagged: 90, range: 80, distance: 30, ..OutlierCounts::default() };
    assert!(body.fits(&profile));
    let hour = &hours()[0].latencies_us;
    let latency_us: LatencySketch = sketched(hour);
    let telemetry = TelemetryWindow {
        key,
        requests: RequestCounts { served: rows, failed: 3, non_finite: 1, rejected: 12, overloaded: 4 },
        latency_us,
        resources: Resources {
            resident_bytes: 45_678_592,
            cpu_ms: 86_400_123,
            uptime_ms: 864_001_234,
            disk_free_bytes: 12_345_678_901,
            temperature_mc: Some(61_500),
            throttled_ms: Some(3_600_000),
        },
        comparison: None,
        objectives: objectives(hour),
        numbers: Numbers::default(),
        program: None,
    };
    let position = Position { epoch: u64::MAX / 3, sequence: 70_000, oldest: 69_990 };
    (Sequenced { position, body: telemetry }, Sequenced { position, body })
}

/// Both messages of the hour, with everything that MQTT puts around them.
fn report_bytes(rows: usize, quantiles: &[u16]) -> usize {
    let (telemetry, sketch) = report(rows, quantiles);
    let telemetry = serde_json::to_vec(&telemetry).unwrap();
    packet(Up::Telemetry, &telemetry) + packet(Up::Sketch, &sketch.encode())
}

#[test]
fn the_hourly_report_of_64_features_and_10_classes_takes_6_kibibytes() {
    // Once, and three times a second.
    for rows in [HOUR, 3 * HOUR] {
        let size = report_bytes(rows, &[]);
        assert!((4_096..=6_144).contains(&size), "{rows} rows: {size} bytes");
    }
    let with_two = report_bytes(HOUR, &[3, 9]) - report_bytes(HOUR, &[]);
    assert!(with_two <= 2 * 1_545, "{with_two} bytes for quantiles of two features");
}
