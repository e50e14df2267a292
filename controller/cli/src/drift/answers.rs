//! Runs a bundle on the rows of a table, its pipeline included, so that its answers can be scored too.

use std::collections::BTreeMap;
use std::path::Path;

use muster_inference::{ColumnExtractor, Images, Model, Tensor};
use muster_shared::bundle::{Manifest, TensorSpec};
use muster_shared::pipeline::Pipeline;

use super::rows::Rows;
use crate::bundle;
use crate::failure::Failure;

/// Rows run at once, where the model takes batches.
const BATCH_ROWS: usize = 64;
/// Elements of all series together that are kept until the table has ended.
const MAX_SERIES_ELEMENTS: usize = 20_000_000;

/// Rows that are given to the model together.
#[derive(Default)]
struct Batch {
    /// The device of each; of a series of the first row alone.
    devices: Vec<String>,
    rows: usize,
    /// The elements of each input.
    data: Vec<Vec<u8>>,
}

impl Batch {
    fn push(&mut self, tensors: Vec<Tensor>) {
        self.rows += 1;
        self.data.resize(tensors.len().max(self.data.len()), Vec::new());
        for (data, tensor) in self.data.iter_mut().zip(tensors) {
            if data.is_empty() { *data = tensor.into_data() } else { data.extend_from_slice(tensor.data()) }
        }
    }
}

/// One input of the model.
struct Input {
    spec: TensorSpec,
    row_shape: Vec<usize>,
}

/// A bundle that waits for rows.
pub(super) struct Answers {
    model: Box<dyn Model>,
    extractor: ColumnExtractor,
    inputs: Vec<Input>,
    rows_at_once: usize,
    /// Each with its device.
    rows: Vec<(String, Vec<Tensor>)>,
    /// Where windows are cut, the rows of each device, which belong together; in several parts where some between them are not there.
    series: Option<BTreeMap<String, Vec<Batch>>>,
    elements: usize,
    /// Rows the model could not be run on.
    pub(super) failed: u64,
}

impl Answers {
    /// The bundle in `dir`, for rows that have all that it needs.
    ///
    /// # Errors
    /// [`Failure`] when the model itself is no good.
    pub(super) fn open(dir: &Path, manifest: &Manifest, rows: &Rows) -> Result<Self, Failure> {
        let signature = &manifest.signature;
        let model = bundle::open::model(dir, manifest)?;
        let extractor = ColumnExtractor::new(&manifest.profile, signature)
            .map_err(|error| Failure::unmet("the profile does not fit the model").because(error))?;
        let batched = signature.inputs.iter().chain(&signature.outputs).all(TensorSpec::is_batched);
        // The images of one request have a bound together.
        let one_by_one = !batched || rows.has_images();
        let cuts_windows = manifest.pipeline.as_ref().is_some_and(Pipeline::changes_rows);
        let inputs = rows.inputs().map(|(spec, row_shape)| Input { spec: spec.clone(), row_shape: row_shape.to_vec() });
        Ok(Self {
            model,
            extractor,
            inputs: inputs.collect(),
            rows_at_once: if one_by_one { 1 } else { BATCH_ROWS },
            rows: Vec::new(),
            series: cuts_windows.then(BTreeMap::new),
            elements: 0,
            failed: 0,
        })
    }

    fn tensors(&self, batch: Batch) -> Option<Vec<Tensor>> {
        let tensor = |(input, data): (&Input, Vec<u8>)| {
            let rows = input.spec.is_batched().then_some(batch.rows);
            let shape = rows.into_iter().chain(input.row_shape.iter().copied()).collect();
            Tensor::new(&input.spec.name, input.spec.datatype, shape, data).ok()
        };
        self.inputs.iter().zip(batch.data).map(tensor).collect()
    }

    /// Shows what the model answers to a batch, each row with its device; whether it could be run on it.
    fn run(&self, mut batch: Batch, visit: &mut impl FnMut(&str, usize, Option<f64>)) -> bool {
        let devices = std::mem::take(&mut batch.devices);
        let Some(inputs) = self.tensors(batch) else { return false };
        let mut images = Images::NONE;
        let ran = self.model.run_seen(&inputs, &mut |decoded| self.extractor.measure(decoded, &mut images));
        let Ok(outputs) = ran else { return false };
        // Windows have no rows of their own in the table, but the device of its first.
        let device = |row: usize| devices.get(row).filter(|_| self.series.is_none()).or_else(|| devices.first());
        self.extractor.visit(&inputs, &images, &outputs, |row, column, value| {
            visit(device(row).map_or("", String::as_str), column, value);
        });
        true
    }

    /// Takes one more row of the table, and shows what the model answered to those that were ready: `visit(device, column, value)`.
    ///
    /// # Errors
    /// [`Failure`] of bad input when series get too long to be kept.
    pub(super) fn push(
        &mut self,
        device: &str,
        tensors: Vec<Tensor>,
        visit: impl FnMut(&str, usize, Option<f64>),
    ) -> Result<(), Failure> {
        let Some(series) = &mut self.series else {
            self.rows.push((device.to_owned(), tensors));
            if self.rows.len() >= self.rows_at_once {
                self.flush(visit);
            }
            return Ok(());
        };
        self.elements += tensors.iter().map(Tensor::element_count).sum::<usize>();
        if self.elements > MAX_SERIES_ELEMENTS {
            return Err(Failure::input(format!(
                "windows are cut from whole series, and more than {MAX_SERIES_ELEMENTS} values cannot be kept for that: score a part of \
                 the table, or --inputs-only"
            )));
        }
        let parts = series.entry(device.to_owned()).or_default();
        if parts.is_empty() {
            parts.push(Batch::default());
        }
        if let Some(part) = parts.last_mut() {
            if part.rows == 0 {
                part.devices.push(device.to_owned());
            }
            part.push(tensors);
        }
        Ok(())
    }

    /// Notes that the next row of `device` is not there for the model. No window spans it.
    pub(super) fn pass_over(&mut self, device: &str) {
        let parts = self.series.as_mut().and_then(|series| series.get_mut(device));
        if let Some(parts) = parts.filter(|parts| parts.last().is_some_and(|part| part.rows > 0)) {
            parts.push(Batch::default());
        }
    }

    /// Runs the model on the rows that wait.
    pub(super) fn flush(&mut self, mut visit: impl FnMut(&str, usize, Option<f64>)) {
        let series = self.series.as_mut().map(std::mem::take).unwrap_or_default();
        for part in series.into_values().flatten().filter(|part| part.rows > 0) {
            let rows = part.rows as u64;
            if !self.run(part, &mut visit) {
                self.failed = self.failed.saturating_add(rows);
            }
        }
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return;
        }
        let mut batch = Batch::default();
        for (device, tensors) in &rows {
            batch.devices.push(device.clone());
            batch.push(tensors.clone());
        }
        if self.run(batch, &mut visit) {
            return;
        }
        // One row that the model cannot take must not cost the others their answers.
        for (device, tensors) in rows {
            let mut batch = Batch { devices: vec![device], ..Batch::default() };
            batch.push(tensors);
            if !self.run(batch, &mut visit) {
                self.failed += 1;
            }
        }
    }
}
