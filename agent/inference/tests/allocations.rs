//! Counting a request takes no memory: the hot path of monitoring, under an allocator that counts.

use std::alloc::System;
use std::sync::Arc;

use muster_inference::{Counted, Decoded, Images, OutlierFinder, Tally, Tensor};
use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::profile::{
    Centre, Column, Distance, Outliers, Probe, Profile, Reference, Side, SliceBy, Slicing, Source,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn column(name: &str, source: Source) -> Column {
    let lower_edges = (0u8..20).map(f32::from).collect();
    Column {
        name: name.into(),
        source,
        reference: Reference::Numeric { lower_edges, max: 20.0, counts: vec![10; 20], missing: 0 },
    }
}

fn class(name: &str, source: Source, classes: &[&str]) -> Column {
    let classes: Vec<String> = classes.iter().map(|class| (*class).to_owned()).collect();
    let counts = vec![1; classes.len()];
    Column { name: name.into(), source, reference: Reference::Class { classes, counts } }
}

// One test alone: the allocator counts for the whole process.
#[test]
fn a_request_is_counted_without_allocating() {
    let x = || "x".to_owned();
    let p = || "p".to_owned();
    let mut columns: Vec<Column> =
        (0..64).map(|index| column(&format!("x{index}"), Source::Input { tensor: x(), index })).collect();
    columns.push(class("class", Source::PredictedClass { tensor: p() }, &["a", "b", "c"]));
    columns.push(column("confidence", Source::Confidence { tensor: p() }));
    columns.push(column("entropy", Source::Entropy { tensor: p() }));
    columns.push(column("margin", Source::Margin { tensor: p() }));
    columns.push(class("word", Source::Input { tensor: "word".into(), index: 0 }, &["north", "south"]));
    columns.push(column("mean", Source::Probe { of: Side::Input, tensor: "image".into(), probe: Probe::Mean }));
    let projection = Source::Projection { of: Side::Input, tensor: "image".into(), seed: 3, number: 5 };
    columns.push(column("projection", projection));
    let slices = vec![
        Slicing { name: "x3".into(), by: SliceBy::Range { tensor: x(), index: 3, edges: vec![1.0, 2.0] } },
        Slicing {
            name: "word".into(),
            by: SliceBy::Category { tensor: "word".into(), index: 0, values: vec!["north".into()] },
        },
    ];
    let centre = Centre { mean: vec![2.5; 64], variance: vec![1.0; 64] };
    let whitening = (0..64).flat_map(|row| (0..=row).map(move |column| f32::from(u8::from(row == column)))).collect();
    let distance =
        Distance { columns: (0..64).collect(), centres: vec![centre; 3], threshold: 1.0, quantile: 0.99, whitening };
    let outliers = Some(Outliers { expected_share: 0.0, distance: Some(distance) });
    let profile = Arc::new(Profile { columns, slices, outliers, ..Profile::default() });
    profile.validate().unwrap();
    let spec = |name: &str, datatype, width| TensorSpec { name: name.into(), datatype, shape: vec![-1, width] };
    let signature = ModelSignature {
        inputs: vec![
            spec("x", DataType::Fp32, 64),
            spec("word", DataType::Bytes, 1),
            spec("image", DataType::Uint8, 300),
        ],
        outputs: vec![spec("p", DataType::Fp32, 3)],
    };
    let tally = Tally::new(Arc::clone(&profile), &signature).unwrap();
    let finder = OutlierFinder::new(&profile, &signature).unwrap().unwrap();
    let rows = 64;
    let inputs = [
        Tensor::from_f32("x", vec![rows, 64], &vec![2.5; rows * 64]).unwrap(),
        Tensor::from_byte_elements("word", vec![rows, 1], vec!["north"; rows]).unwrap(),
        Tensor::new("image", DataType::Uint8, vec![rows, 300], vec![7; rows * 300]).unwrap(),
    ];
    let outputs = [Tensor::from_f32("p", vec![rows, 3], &[0.25, 0.5, 0.25].repeat(rows)).unwrap()];
    let mut counted = Counted::nothing(&profile);

    let region = Region::new(ALLOCATOR);
    for _ in 0..10 {
        tally.count(&mut counted, &inputs, &Images::NONE, &outputs);
        assert_eq!(finder.find(&inputs, &Images::NONE).counts.flagged, 0);
    }
    let taken = region.change();
    assert_eq!((taken.allocations, taken.reallocations), (0, 0));
    assert_eq!(counted.columns[0].total(), 640);
    assert_eq!(counted.slices[2].rows, 640);

    // An image that a pipeline decodes is measured while it is there, and counted later.
    let probe = |probe| Source::Probe { of: Side::Input, tensor: "photo".into(), probe };
    let columns = vec![column("photo.mean", probe(Probe::Mean)), column("photo.std", probe(Probe::Std))];
    let profile = Arc::new(Profile { columns, ..Profile::default() });
    let signature = ModelSignature { inputs: vec![spec("photo", DataType::Bytes, 1)], outputs: Vec::new() };
    let tally = Tally::new(Arc::clone(&profile), &signature).unwrap();
    let inputs = [Tensor::from_byte_elements("photo", vec![1, 1], ["file"]).unwrap()];
    let data = vec![3.5; 300];
    let mut counted = Counted::nothing(&profile);
    let region = Region::new(ALLOCATOR);
    for _ in 0..10 {
        let mut images = Images::NONE;
        tally.measure(&Decoded { input: "photo", rows: 1, data: &data }, &mut images);
        tally.count(&mut counted, &inputs, &images, &[]);
    }
    let taken = region.change();
    assert_eq!((taken.allocations, taken.reallocations), (0, 0));
    // Behind what is below the least of the reference.
    assert_eq!(counted.columns[0].cells()[1 + 3], 10);
}
