//! A fixed amount of the work an agent does for a request, so that its instructions can be counted: `cross/count.sh` runs it under an
//! emulator and holds the counts against those of before.
//!
//! `fixed_work PART TIMES FOLDER`, where PART is `load`, `infer`, `check` or `monitor` and FOLDER holds the digits model. With 0 TIMES it
//! does what comes before, which is then taken off.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use muster_inference::{Counted, Images, LoadOptions, Runtime as _, Tally, Tensor, TractRuntime};
use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::ids::Digest;
use muster_shared::profile::{Column, Profile, Source};
use muster_shared::reference;
use muster_shared::trust::SigningKey;

const FEATURES: u16 = 64;

/// A row of an image, the same in every run; another for each `number`.
fn row(number: u32) -> Vec<f32> {
    (0..u32::from(FEATURES)).map(|at| f32::from(u8::try_from((number * 31 + at * 7) % 17).unwrap_or(0))).collect()
}

fn load(onnx: &[u8], times: u32) -> Result<(), Box<dyn Error>> {
    for _ in 0..times {
        TractRuntime.load(onnx, &LoadOptions::default())?;
    }
    Ok(())
}

fn infer(onnx: &[u8], times: u32) -> Result<(), Box<dyn Error>> {
    let model = TractRuntime.load(onnx, &LoadOptions::default())?;
    let name = model.signature().inputs.first().map(|input| input.name.clone()).unwrap_or_default();
    for number in 0..times {
        model.run(&[Tensor::from_f32(&name, vec![1, usize::from(FEATURES)], &row(number))?])?;
    }
    Ok(())
}

fn check(onnx: &[u8], times: u32) -> Result<(), Box<dyn Error>> {
    let key = SigningKey::from_seed(&[7; 32].into());
    let (signature, public, digest) = (key.sign(onnx), key.public(), Digest::of(onnx));
    for _ in 0..times {
        if !public.verifies(onnx, &signature) || Digest::of(onnx) != digest {
            return Err("what was signed does not verify".into());
        }
    }
    Ok(())
}

fn monitor(times: u32) -> Result<(), Box<dyn Error>> {
    let mut columns = Vec::new();
    for index in 0..FEATURES {
        let sample: Vec<f64> = (0..200).map(|number| f64::from(row(number)[usize::from(index)])).collect();
        let source = Source::Input { tensor: "x".into(), index: index.into() };
        columns.push(Column { name: format!("x{index}"), source, reference: reference::numeric(&sample)? });
    }
    let shape = vec![-1, i64::from(FEATURES)];
    let signature = ModelSignature {
        inputs: vec![TensorSpec { name: "x".into(), datatype: DataType::Fp32, shape }],
        outputs: Vec::new(),
    };
    let profile = Arc::new(Profile { columns, ..Profile::default() });
    let tally = Tally::new(Arc::clone(&profile), &signature)?;
    let mut counted = Counted::nothing(&profile);
    for number in 0..times {
        let input = Tensor::from_f32("x", vec![1, usize::from(FEATURES)], &row(number))?;
        tally.count(&mut counted, &[input], &Images::NONE, &[]);
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [part, times, folder] = arguments.as_slice() else { return Err("fixed_work PART TIMES FOLDER".into()) };
    let times: u32 = times.parse()?;
    let onnx = std::fs::read(Path::new(folder).join("digits-1.1.0.onnx"))?;
    match part.as_str() {
        "load" => load(&onnx, times),
        "infer" => infer(&onnx, times),
        "check" => check(&onnx, times),
        "monitor" => monitor(times),
        other => Err(format!("{other:?} is no part").into()),
    }
}
