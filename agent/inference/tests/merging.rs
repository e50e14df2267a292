//! Counting requests in parts and adding the parts up is counting them all, for every kind of column a profile can have.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use muster_inference::{Counted, Images, Tally, Tensor};
use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::profile::{Column, Probe, Profile, Reference, Side, SliceBy, Slicing, Source};
use muster_shared::sketch::ColumnSketch;
use proptest::prelude::*;

const WIDTH: usize = 48;

fn column(name: &str, source: Source) -> Column {
    let lower_edges = (-4i8..16).map(f32::from).collect();
    Column {
        name: name.into(),
        source,
        reference: Reference::Numeric { lower_edges, max: 16.0, counts: vec![10; 20], missing: 0 },
    }
}

fn class(name: &str, source: Source, classes: &[&str]) -> Column {
    let classes: Vec<String> = classes.iter().map(|class| (*class).to_owned()).collect();
    let counts = vec![1; classes.len()];
    Column { name: name.into(), source, reference: Reference::Class { classes, counts } }
}

/// One column of every kind: numbers, categories, probes and projections of images both of bytes and of floats, and what is read from
/// probabilities; two slicings; quantiles of two columns.
fn profile() -> Profile {
    let p = || "p".to_owned();
    let mut columns = vec![
        column("x", Source::Input { tensor: "x".into(), index: 0 }),
        column("y", Source::Output { tensor: "y".into(), index: 0 }),
        class("word", Source::Input { tensor: "word".into(), index: 0 }, &["north", "south"]),
        class("class", Source::PredictedClass { tensor: p() }, &["a", "b", "c"]),
        column("confidence", Source::Confidence { tensor: p() }),
        column("entropy", Source::Entropy { tensor: p() }),
        column("margin", Source::Margin { tensor: p() }),
    ];
    for tensor in ["pixels", "floats"] {
        let of = Side::Input;
        let mut probes =
            vec![Probe::Mean, Probe::Std, Probe::Min, Probe::Max, Probe::Norm, Probe::Roughness, Probe::Zeros];
        probes.push(Probe::Saturated { at: 9.0 });
        probes.extend((0..3).map(|channel| Probe::ChannelMean { channel, channels: 3, last: false }));
        let probes = probes.into_iter().map(|probe| Source::Probe { of, tensor: tensor.into(), probe });
        let projection = |number| Source::Projection { of, tensor: tensor.into(), seed: 7, number };
        let sources: Vec<Source> = probes.chain((0..16).map(projection)).collect();
        columns.extend(sources.into_iter().enumerate().map(|(at, source)| column(&format!("{tensor}.{at}"), source)));
    }
    let slices = vec![
        Slicing { name: "x".into(), by: SliceBy::Range { tensor: "x".into(), index: 0, edges: vec![1.0, 2.0] } },
        Slicing {
            name: "word".into(),
            by: SliceBy::Category { tensor: "word".into(), index: 0, values: vec!["north".into()] },
        },
    ];
    Profile { columns, slices, quantiles: vec![0, 4], ..Profile::default() }
}

fn signature() -> ModelSignature {
    let spec = |name: &str, datatype, row: &[i64]| TensorSpec {
        name: name.into(),
        datatype,
        shape: std::iter::once(-1).chain(row.iter().copied()).collect(),
    };
    ModelSignature {
        inputs: vec![
            spec("x", DataType::Fp64, &[1]),
            spec("word", DataType::Bytes, &[1]),
            spec("pixels", DataType::Uint8, &[3, 4, 4]),
            spec("floats", DataType::Fp32, &[3, 4, 4]),
        ],
        outputs: vec![spec("p", DataType::Fp32, &[3]), spec("y", DataType::Fp32, &[1])],
    }
}

#[derive(Debug, Clone)]
struct Row {
    x: f64,
    word: &'static str,
    pixels: Vec<u8>,
    floats: Vec<f32>,
    p: [f32; 3],
    y: f32,
}

fn row() -> impl Strategy<Value = Row> {
    let number = || prop_oneof![6 => -6.0..18.0f32, 1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::MAX])];
    let floats =
        prop_oneof![4 => prop::collection::vec(0.0..12.0f32, WIDTH), 1 => prop::collection::vec(number(), WIDTH)];
    let x = prop_oneof![6 => -6.0..18.0f64, 1 => any::<f64>()];
    let word = prop::sample::select(vec!["north", "south", "east", ""]);
    (x, word, prop::collection::vec(0..12u8, WIDTH), floats, prop::array::uniform3(number()), number())
        .prop_map(|(x, word, pixels, floats, p, y)| Row { x, word, pixels, floats, p, y })
}

fn count(tally: &Tally, profile: &Profile, rows: &[Row]) -> Counted {
    let mut counted = Counted::nothing(profile);
    // Requests of one, two, three rows and so on.
    let (mut left, mut take) = (rows, 1);
    while !left.is_empty() {
        let (batch, rest) = left.split_at(take.min(left.len()));
        (left, take) = (rest, take + 1);
        let n = batch.len();
        let gather = |of: fn(&Row) -> Vec<f32>| batch.iter().flat_map(of).collect::<Vec<f32>>();
        let x: Vec<f64> = batch.iter().map(|row| row.x).collect();
        let words: Vec<&str> = batch.iter().map(|row| row.word).collect();
        let pixels: Vec<u8> = batch.iter().flat_map(|row| row.pixels.clone()).collect();
        let inputs = [
            Tensor::from_f64("x", DataType::Fp64, vec![n, 1], &x).unwrap(),
            Tensor::from_byte_elements("word", vec![n, 1], words).unwrap(),
            Tensor::new("pixels", DataType::Uint8, vec![n, 3, 4, 4], pixels).unwrap(),
            Tensor::from_f32("floats", vec![n, 3, 4, 4], &gather(|row| row.floats.clone())).unwrap(),
        ];
        let outputs = [
            Tensor::from_f32("p", vec![n, 3], &gather(|row| row.p.to_vec())).unwrap(),
            Tensor::from_f32("y", vec![n, 1], &gather(|row| vec![row.y])).unwrap(),
        ];
        tally.count(&mut counted, &inputs, &Images::NONE, &outputs);
    }
    counted
}

/// Cells must be equal; means and squared deviations up to rounding.
fn assert_same(one: &[ColumnSketch], other: &[ColumnSketch], columns: &[Column]) -> Result<(), TestCaseError> {
    prop_assert_eq!(one.len(), other.len());
    for ((one, other), column) in one.iter().zip(other).zip(columns) {
        prop_assert!(one.fits(column), "{}", column.name);
        prop_assert_eq!(one.cells(), other.cells(), "{}", &column.name);
        if let (ColumnSketch::Numeric(one), ColumnSketch::Numeric(other)) = (one, other) {
            prop_assert_eq!((one.nan, one.missing, one.moments.n), (other.nan, other.missing, other.moments.n));
            let scale = 1.0 + one.moments.m2.sqrt() + one.moments.mean.abs();
            prop_assert!((one.moments.mean - other.moments.mean).abs() <= 1e-9 * scale, "{}", column.name);
            prop_assert!((one.moments.m2 - other.moments.m2).abs() <= 1e-6 * scale * scale, "{}", column.name);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn parts_in_any_order_add_up_to_the_whole(rows in prop::collection::vec(row(), 0..40), first in 0..40usize, second in 0..40usize) {
        let profile = Arc::new(profile());
        profile.validate().unwrap();
        let tally = Tally::new(Arc::clone(&profile), &signature()).unwrap();
        let (first, second) = (first.min(second).min(rows.len()), first.max(second).min(rows.len()));
        let [a, b, c] = [&rows[..first], &rows[first..second], &rows[second..]].map(|part| count(&tally, &profile, part));
        let whole = count(&tally, &profile, &rows);
        let sum = |parts: &[&Counted]| {
            let mut sum = Counted::nothing(&profile);
            assert!(parts.iter().all(|part| sum.merge(part)));
            sum
        };
        let bc = sum(&[&b, &c]);
        for merged in [sum(&[&a, &b, &c]), sum(&[&c, &a, &b]), sum(&[&a, &bc])] {
            assert_same(&merged.columns, &whole.columns, &profile.columns)?;
            for (merged, whole) in merged.slices.iter().zip(&whole.slices) {
                prop_assert_eq!(merged.rows, whole.rows);
                assert_same(&merged.columns, &whole.columns, &profile.columns)?;
            }
            for (merged, whole) in merged.quantiles.iter().zip(&whole.quantiles) {
                // So few values are all kept, so that even these are exact.
                let seen = |sketch: &Option<_>| sketch.as_ref().map(|sketch: &muster_shared::sketch::QuantileSketch| {
                    (sketch.n(), sketch.quantiles(&[0.0, 0.2, 0.5, 0.9, 1.0]))
                });
                prop_assert_eq!(seen(merged), seen(whole));
            }
        }
        let held: Vec<usize> = whole.quantiles.iter().enumerate().filter_map(|(at, kept)| kept.as_ref().map(|_| at)).collect();
        prop_assert_eq!(held, [0, 4]);
    }
}
