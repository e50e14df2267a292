//! Runs a bundle's model on the rows of a table, so that its answers can be scored too.

use std::path::Path;

use muster_inference::{ColumnExtractor, Model, Tensor};
use muster_shared::bundle::{Manifest, TensorSpec};
use muster_shared::profile::{Profile, Source};

use crate::bundle;
use crate::failure::Failure;

/// Rows run at once, where the model takes batches.
const BATCH_ROWS: usize = 64;

/// One input of the model, and where in a row of the table its elements are.
struct Input {
    spec: TensorSpec,
    row_shape: Vec<usize>,
    positions: Vec<usize>,
}

/// A model that waits for rows.
pub(super) struct Answers {
    model: Box<dyn Model>,
    extractor: ColumnExtractor,
    inputs: Vec<Input>,
    batched: bool,
    rows: Vec<Vec<f64>>,
    /// Rows the model could not be run on.
    pub(super) failed: u64,
}

fn input(spec: &TensorSpec, profile: &Profile, header: &[String]) -> Result<Input, String> {
    let row_shape: Option<Vec<usize>> = spec.row_dimensions().iter().map(|d| usize::try_from(*d).ok()).collect();
    let Some((row_shape, width)) = row_shape.zip(spec.row_width()) else {
        return Err(format!("rows of input {:?} have no fixed shape", spec.name));
    };
    let name_of = |element: usize| {
        let named = profile.columns.iter().find(|column| {
            matches!(&column.source, Source::Input { tensor, index } if *tensor == spec.name && *index as usize == element)
        });
        named.map_or_else(|| format!("{}.{element}", spec.name), |column| column.name.clone())
    };
    let position = |element: usize| {
        let name = name_of(element);
        header.iter().position(|column| *column == name).ok_or_else(|| format!("the table has no column {name:?}"))
    };
    let positions = (0..width).map(position).collect::<Result<_, _>>()?;
    Ok(Input { spec: spec.clone(), row_shape, positions })
}

impl Answers {
    /// The model of the bundle in `dir`, if the table's columns are all that it needs; else the reason why it cannot be run.
    ///
    /// # Errors
    /// [`Failure`] when the model itself is no good.
    pub(super) fn open(dir: &Path, manifest: &Manifest, header: &[String]) -> Result<Result<Self, String>, Failure> {
        if manifest.pipeline.is_some() {
            return Ok(Err("a pipeline surrounds the model".into()));
        }
        let signature = &manifest.signature;
        let inputs: Result<Vec<Input>, String> =
            signature.inputs.iter().map(|spec| input(spec, &manifest.profile, header)).collect();
        let inputs = match inputs {
            Ok(inputs) => inputs,
            Err(reason) => return Ok(Err(reason)),
        };
        let model = bundle::open::model(dir, manifest)?;
        let extractor = ColumnExtractor::new(&manifest.profile, signature)
            .map_err(|error| Failure::unmet("the profile does not fit the model").because(error))?;
        let batched = signature.inputs.iter().chain(&signature.outputs).all(TensorSpec::is_batched);
        Ok(Ok(Self { model, extractor, inputs, batched, rows: Vec::new(), failed: 0 }))
    }

    fn tensors(&self, rows: &[Vec<f64>]) -> Option<Vec<Tensor>> {
        let mut tensors = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            let values: Vec<f64> = rows
                .iter()
                .flat_map(|row| input.positions.iter().map(|at| row.get(*at).copied().unwrap_or(f64::NAN)))
                .collect();
            let batch = input.spec.is_batched().then_some(rows.len());
            let shape = batch.into_iter().chain(input.row_shape.iter().copied()).collect();
            tensors.push(Tensor::from_f64(&input.spec.name, input.spec.datatype, shape, &values).ok()?);
        }
        Some(tensors)
    }

    fn run(&mut self, rows: &[Vec<f64>], visit: &mut impl FnMut(usize, usize, Option<f64>)) -> bool {
        let Some(inputs) = self.tensors(rows) else { return false };
        let Ok(outputs) = self.model.run(&inputs) else { return false };
        self.extractor.visit(&inputs, &outputs, visit);
        true
    }

    /// Takes one more row, by the table's columns, and shows what the model answered to those that were ready: `visit(row, column, value)`
    /// with the row's place in the batch.
    pub(super) fn push(&mut self, row: Vec<f64>, visit: impl FnMut(usize, usize, Option<f64>)) -> bool {
        self.rows.push(row);
        let full = self.rows.len() >= if self.batched { BATCH_ROWS } else { 1 };
        if full {
            self.flush(visit);
        }
        full
    }

    /// Runs the model on the rows that wait.
    pub(super) fn flush(&mut self, mut visit: impl FnMut(usize, usize, Option<f64>)) {
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() || self.run(&rows, &mut visit) {
            return;
        }
        // One row that the model cannot take must not cost the others their answers.
        for (at, row) in rows.into_iter().enumerate() {
            if !self.run(&[row], &mut |_, column, value| visit(at, column, value)) {
                self.failed += 1;
            }
        }
    }
}
