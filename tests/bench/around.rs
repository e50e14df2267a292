//! What stands around a model costs: the steps of a pipeline outside it and folded into it, the checks of a data schema,
//! and the search for outliers.

use std::hint::black_box;
use std::time::Instant;

use anyhow::ensure;
use muster_inference::quality::QualityGate;
use muster_inference::{
    GoldenSet, Images, LoadOptions, Model, OutlierFinder, Runtime as _, Tensor, TractRuntime, pipeline,
};
use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::data_schema::{DataSchema, Duplicates, FeatureRule, OnViolation};
use muster_shared::outliers;
use muster_shared::pipeline::{Operation, Pipeline, Step};
use muster_shared::profile::{Column, Outliers, Profile, Source};
use muster_shared::reference;
use muster_tests::fixtures;

use crate::report::Table;
use crate::samples::Samples;

const FEATURES: u32 = 64;
const REPEATS: usize = 4_000;
/// Between the two ways to compute the same, in probabilities.
const LARGEST_DIFFERENCE: f64 = 1e-6;

fn rows() -> anyhow::Result<Vec<Vec<f32>>> {
    Ok(fixtures::held_out()?.into_iter().map(|image| image.pixels).collect())
}

fn batch(name: &str, rows: &[Vec<f32>]) -> anyhow::Result<Tensor> {
    Ok(Tensor::from_f32(name, vec![rows.len(), rows.first().map_or(0, Vec::len)], &rows.concat())?)
}

/// The network behind a pipeline that scales pixels and takes the softmax: its steps outside the model, and folded into it. And the
/// network that does both itself.
fn three_ways() -> anyhow::Result<[Box<dyn Model>; 3]> {
    let whole = std::fs::read(fixtures::digits().join("digits-1.1.0.onnx"))?;
    let whole = TractRuntime.load(&whole, &LoadOptions::default())?;
    let onnx = std::fs::read(fixtures::pipelines().join("digits-bare.onnx"))?;
    let bare = TractRuntime.load(&onnx, &LoadOptions::default())?;
    let step = |from: &str, to: &str, operation| Step { from: vec![from.into()], to: to.into(), operation };
    let pipeline = Pipeline {
        model: bare.signature().clone(),
        pre: vec![step("image", "scaled", Operation::Scale { center: vec![0.0], scale: vec![16.0] })],
        post: vec![step("linear1", "probabilities", Operation::Softmax)],
    };
    let outside = pipeline::surround(bare, whole.signature(), &pipeline)?;
    let golden = GoldenSet::parse(&std::fs::read(fixtures::digits().join("golden-1.1.0.json"))?)?;
    let inside = pipeline::load(&TractRuntime, &onnx, whole.signature(), Some(&pipeline), &golden)?;
    ensure!(inside.folded.len() == 2, "both steps fold");
    Ok([outside, inside.model, whole])
}

fn folding(table: &mut Table) -> anyhow::Result<()> {
    let all = rows()?;
    let ways = three_ways()?;
    for count in [1, 64] {
        let input = [batch("image", &all[..count])?];
        let probabilities = |model: &dyn Model| anyhow::Ok(model.run(&input)?.remove(0).values().collect::<Vec<f64>>());
        let expected = probabilities(&*ways[2])?;
        for way in &ways[..2] {
            let pairs = probabilities(&**way)?.into_iter().zip(&expected);
            let off = pairs.map(|(one, other)| (one - other).abs()).fold(0.0, f64::max);
            ensure!(off <= LARGEST_DIFFERENCE, "two ways differ by {off}");
        }
        let mut times: [Samples; 3] = Default::default();
        // In turns, so that whatever else runs meets all.
        for _ in 0..REPEATS {
            for (way, times) in ways.iter().zip(&mut times) {
                times.time(|| way.run(&input))?;
            }
        }
        let [outside_us, inside_us, whole_us] = times.map(|times| times.median_us());
        table.figure(&format!("digits, batch {count}: scaling and softmax outside the model"), outside_us, "us");
        table.figure(&format!("digits, batch {count}: the same steps folded into it"), inside_us, "us");
        table.figure(&format!("digits, batch {count}: the same as its own nodes"), whole_us, "us");
        table.text(&format!("digits, batch {count}: folded / outside"), &format!("{:.2}", inside_us / outside_us));
    }
    Ok(())
}

fn signature() -> ModelSignature {
    let spec = TensorSpec { name: "image".into(), datatype: DataType::Fp32, shape: vec![-1, i64::from(FEATURES)] };
    ModelSignature { inputs: vec![spec], outputs: Vec::new() }
}

/// Nanoseconds that `look` takes, one request of one row after the other.
fn each_ns(inputs: &[Tensor], mut look: impl FnMut(&[Tensor])) -> f64 {
    let mut rounds = Samples::default();
    for _ in 0..21 {
        let started = Instant::now();
        inputs.iter().for_each(|input| look(std::slice::from_ref(input)));
        rounds.push(started.elapsed() / u32::try_from(inputs.len()).unwrap_or(1));
    }
    rounds.percentile(50).as_secs_f64() * 1e9
}

fn checks(table: &mut Table, inputs: &[Tensor]) {
    let rule = |index: u32, stuck_after| {
        let range = FeatureRule {
            min: Some(0.0),
            max: Some(16.0),
            ..FeatureRule::of(&format!("p{index}"), "image", index, DataType::Fp32)
        };
        FeatureRule { stuck_after, ..range }
    };
    let gate = |stuck_after, duplicates| {
        let features = (0..FEATURES).map(|index| rule(index, stuck_after)).collect();
        QualityGate::new(&DataSchema { duplicates, features }, &signature())
    };
    let duplicates = Some(Duplicates { among_last: 64, on_violation: OnViolation::Flag });
    for (what, gate) in [
        ("type, range, missing and infinite", gate(None, None)),
        ("the same and stuck sensors", gate(Some(1_000_000), None)),
        ("the same and duplicates among 64 rows", gate(Some(1_000_000), duplicates)),
    ] {
        let row_ns = each_ns(inputs, |input| drop(black_box(gate.check(input))));
        table.figure(&format!("a data schema of 64 features, {what}"), row_ns / f64::from(FEATURES), "ns a feature");
    }
}

fn search(table: &mut Table, inputs: &[Tensor]) -> anyhow::Result<()> {
    let images = fixtures::held_out()?;
    let column = |at: usize| -> Vec<f64> { images.iter().map(|image| f64::from(image.pixels[at])).collect() };
    let values: Vec<Vec<f64>> = (0..FEATURES as usize).map(column).collect();
    let taken: Vec<(u16, &[f64])> = (0..).zip(&values).map(|(at, values)| (at, values.as_slice())).collect();
    let classes: Vec<usize> = images.iter().map(|image| image.label).collect();
    let columns = (0..)
        .zip(&values)
        .map(|(index, values)| {
            let source = Source::Input { tensor: "image".into(), index };
            Ok(Column { name: format!("p{index}"), source, reference: reference::numeric(values)? })
        })
        .collect::<anyhow::Result<Vec<Column>>>()?;
    for (what, distance) in
        [("range alone", None), ("and the distance to 10 centres", outliers::fit(&taken, Some(&classes), 0.99))]
    {
        let outliers = Some(Outliers { expected_share: 0.0, distance });
        let profile = Profile { columns: columns.clone(), outliers, ..Profile::default() };
        let Some(finder) = OutlierFinder::new(&profile, &signature())? else { continue };
        let row_ns = each_ns(inputs, |input| drop(black_box(finder.find(input, &Images::NONE))));
        table.figure(&format!("outliers of 64 features: {what}"), row_ns / 1e3, "us");
    }
    Ok(())
}

pub(crate) fn measure() -> anyhow::Result<Table> {
    let mut table = Table::new("Around a model");
    folding(&mut table)?;
    let inputs =
        rows()?.iter().map(|row| batch("image", std::slice::from_ref(row))).collect::<anyhow::Result<Vec<_>>>()?;
    checks(&mut table, &inputs);
    search(&mut table, &inputs)?;
    Ok(table)
}
