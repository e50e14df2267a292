//! What is watched of images that a pipeline decodes: the same as of the same images sent as numbers.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::io::Cursor;

use image::{DynamicImage, ImageFormat, RgbImage};
use muster_inference::images::MAX_IMAGES;
use muster_inference::pipeline::surround;
use muster_inference::{ColumnExtractor, Decoded, Images, Model, RunError, Tensor};
use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::pipeline::{Colour, ImageOperation, Layout, Operation, Pipeline, Step};
use muster_shared::profile::{Column, Probe, Profile, Reference, Side, Source};
use proptest::prelude::*;

const WIDTH: u32 = 7;
const HEIGHT: u32 = 5;

/// Gives back the one tensor it gets.
struct Echo(ModelSignature);

impl Model for Echo {
    fn signature(&self) -> &ModelSignature {
        &self.0
    }

    fn memory_bytes(&self) -> u64 {
        0
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        Ok(vec![Tensor::new("y", DataType::Fp32, inputs[0].shape().to_vec(), inputs[0].data().to_vec()).unwrap()])
    }
}

fn spec(name: &str, datatype: DataType, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype, shape: shape.to_vec() }
}

fn columns(channels: Option<(u8, bool)>) -> Profile {
    let (of, tensor) = (Side::Input, || "photo".to_owned());
    let plain = [Probe::Mean, Probe::Std, Probe::Min, Probe::Max, Probe::Norm, Probe::Roughness, Probe::Zeros];
    let (count, last) = channels.unwrap_or_default();
    let means = (0..count).map(|channel| Probe::ChannelMean { channel, channels: count, last });
    let probes = plain.into_iter().chain([Probe::Saturated { at: 1.0 }]).chain(means);
    let probes = probes.map(|probe| Source::Probe { of, tensor: tensor(), probe });
    let projections = (0..16).map(|number| Source::Projection { of, tensor: tensor(), seed: 11, number });
    let column = |(at, source)| Column {
        name: format!("c{at}"),
        source,
        reference: Reference::Numeric { lower_edges: vec![0.0], max: 1.0, counts: vec![1], missing: 0 },
    };
    Profile { columns: probes.chain(projections).enumerate().map(column).collect(), ..Profile::default() }
}

/// The value of each row and column.
fn values(extractor: &ColumnExtractor, inputs: &[Tensor], images: &Images) -> BTreeMap<(usize, usize), Option<u64>> {
    let mut values = BTreeMap::new();
    extractor.visit(inputs, images, &[], |row, column, value| {
        values.insert((row, column), value.map(f64::to_bits));
    });
    values
}

/// A model behind a pipeline that decodes `photo` with `image` and scales what comes of it, and what it takes.
fn behind(image: &ImageOperation, shape: &[i64]) -> (Box<dyn Model>, ModelSignature) {
    let model = ModelSignature {
        inputs: vec![spec("x", DataType::Fp32, shape)],
        outputs: vec![spec("y", DataType::Fp32, shape)],
    };
    let outer = ModelSignature { inputs: vec![spec("photo", DataType::Bytes, &[-1])], outputs: model.outputs.clone() };
    let step = |from: &str, to: &str, operation| Step { from: vec![from.into()], to: to.into(), operation };
    // The image takes the name of the file, and is changed afterwards: what is watched is what the step gave.
    let pre = vec![
        step("photo", "photo", Operation::Image(image.clone())),
        step("photo", "x", Operation::Scale { center: vec![3.0], scale: vec![0.5] }),
    ];
    let pipeline = Pipeline { model: model.clone(), pre, post: Vec::new() };
    (surround(Box::new(Echo(model)), &outer, &pipeline).unwrap(), outer)
}

fn png(pixels: &[u8]) -> Vec<u8> {
    let image = RgbImage::from_raw(WIDTH, HEIGHT, pixels.to_vec()).unwrap();
    let mut file = Cursor::new(Vec::new());
    DynamicImage::from(image).write_to(&mut file, ImageFormat::Png).unwrap();
    file.into_inner()
}

fn operation(colour: Colour, layout: Layout) -> ImageOperation {
    ImageOperation {
        colour,
        resize: None,
        crop: Some([WIDTH, HEIGHT]),
        layout,
        divide_by: 255.0,
        mean: vec![0.485, 0.456, 0.406],
        std: vec![0.229, 0.224, 0.225],
        max_pixels: 1_000,
    }
}

proptest! {
    #[test]
    fn a_decoded_png_is_watched_like_the_same_numbers(
        photos in prop::collection::vec(prop::collection::vec(any::<u8>(), (WIDTH * HEIGHT * 3) as usize), 1..4),
        blue_first: bool,
        channels_last: bool,
    ) {
        let colour = if blue_first { Colour::Bgr } else { Colour::Rgb };
        let layout = if channels_last { Layout::Nhwc } else { Layout::Nchw };
        let image = operation(colour, layout);
        let (width, height) = (i64::from(WIDTH), i64::from(HEIGHT));
        let shape = if channels_last { [-1, height, width, 3] } else { [-1, 3, height, width] };
        let (model, outer) = behind(&image, &shape);
        let profile = columns(Some((3, channels_last)));
        let watched = ColumnExtractor::new(&profile, &outer).unwrap();
        let files: Vec<Vec<u8>> = photos.iter().map(|pixels| png(pixels)).collect();
        let inputs = [Tensor::from_byte_elements("photo", vec![files.len()], files).unwrap()];
        let mut images = Images::NONE;
        model.run_seen(&inputs, &mut |decoded| watched.measure(decoded, &mut images)).unwrap();

        let number = |pixels: &[u8], pixel: usize, channel: usize| {
            let byte = pixels[pixel * 3 + if blue_first { 2 - channel } else { channel }];
            (f64::from(byte) / 255.0 - image.mean[channel]) / image.std[channel]
        };
        let size = (WIDTH * HEIGHT) as usize;
        let numbers: Vec<f64> = photos
            .iter()
            .flat_map(|pixels| {
                (0..3 * size).map(|at| {
                    let (pixel, channel) = if channels_last { (at / 3, at % 3) } else { (at % size, at / size) };
                    number(pixels, pixel, channel)
                })
            })
            .collect();
        let given = spec("photo", DataType::Fp32, &shape);
        let dimensions = std::iter::once(photos.len()).chain(shape[1..].iter().map(|size| usize::try_from(*size).unwrap()));
        let tensor = Tensor::from_f64("photo", DataType::Fp32, dimensions.collect(), &numbers).unwrap();
        let signature = ModelSignature { inputs: vec![given], outputs: Vec::new() };
        let as_numbers = ColumnExtractor::new(&profile, &signature).unwrap();
        let expected = values(&as_numbers, &[tensor], &Images::NONE);
        prop_assert_eq!(expected.len(), photos.len() * profile.columns.len());
        prop_assert_eq!(values(&watched, &inputs, &images), expected);
    }
}

#[test]
fn what_cannot_be_decoded_is_missing() {
    let (model, outer) = behind(&operation(Colour::Rgb, Layout::Nchw), &[-1, 3, 5, 7]);
    let watched = ColumnExtractor::new(&columns(None), &outer).unwrap();
    let files = [png(&[9; 105]), b"no image".to_vec()];
    let inputs = [Tensor::from_byte_elements("photo", vec![2], files).unwrap()];
    let mut images = Images::NONE;
    let error = model.run_seen(&inputs, &mut |decoded| watched.measure(decoded, &mut images)).unwrap_err();
    assert!(error.is_request_fault() && error.to_string().contains("neither PNG nor JPEG"), "{error}");
    let found = values(&watched, &inputs, &images);
    assert!(found.len() == 2 * 24 && found.values().all(Option::is_none), "{found:?}");
    // Of a text there are no figures where several stand in a row.
    let outer = ModelSignature { inputs: vec![spec("photo", DataType::Bytes, &[-1, 2])], outputs: Vec::new() };
    assert!(ColumnExtractor::new(&columns(None), &outer).unwrap_err().reason.contains("holds no numbers"));
}

#[test]
fn the_images_of_a_request_that_are_measured_are_bounded() {
    let outer = ModelSignature { inputs: vec![spec("photo", DataType::Bytes, &[-1])], outputs: Vec::new() };
    let watched = ColumnExtractor::new(&columns(None), &outer).unwrap();
    let rows = MAX_IMAGES + 6;
    let mut images = Images::NONE;
    watched.measure(&Decoded { input: "other", rows, data: &vec![1.0; rows] }, &mut images);
    watched.measure(&Decoded { input: "photo", rows, data: &vec![1.0; rows] }, &mut images);
    let inputs = [Tensor::from_byte_elements("photo", vec![rows], vec!["file"; rows]).unwrap()];
    let found = values(&watched, &inputs, &images);
    assert!(found.len() == MAX_IMAGES * 24 && found.values().all(Option::is_some), "{}", found.len());
}
