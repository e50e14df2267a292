//! Runs a bundle on the rows of a table, its pipeline included, so that its answers can be scored too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use csv::StringRecord;
use muster_inference::{ColumnExtractor, Model, Tensor};
use muster_shared::bundle::{DataType, Manifest, TensorSpec};
use muster_shared::pipeline::Pipeline;
use muster_shared::profile::{Profile, Source};

use crate::bundle;
use crate::failure::Failure;
use crate::image_file;
use crate::table_file::{Value, value};

/// Rows run at once, where the model takes batches.
const BATCH_ROWS: usize = 64;
/// Cells of all series together that are kept until the table has ended.
const MAX_SERIES_CELLS: usize = 20_000_000;

/// One input of the bundle, and where in a row of the table its elements are.
struct Input {
    spec: TensorSpec,
    row_shape: Vec<usize>,
    positions: Vec<usize>,
    /// Whether the table names files.
    is_image: bool,
}

/// A row of the table, and the device it is from.
type Row = (String, StringRecord);

/// A bundle that waits for rows.
pub(super) struct Answers {
    model: Box<dyn Model>,
    extractor: ColumnExtractor,
    inputs: Vec<Input>,
    /// From where on files are found that the table names.
    folder: PathBuf,
    rows_at_once: usize,
    rows: Vec<Row>,
    /// Where windows are cut, the rows of each device, which belong together.
    series: Option<BTreeMap<String, Vec<Row>>>,
    cells: usize,
    /// Rows the model could not be run on.
    pub(super) failed: u64,
}

fn input(spec: &TensorSpec, manifest: &Manifest, header: &[String]) -> Result<Input, String> {
    let row_shape: Option<Vec<usize>> = spec.row_dimensions().iter().map(|d| usize::try_from(*d).ok()).collect();
    let Some((row_shape, width)) = row_shape.zip(spec.row_width()) else {
        return Err(format!("rows of input {:?} have no fixed shape", spec.name));
    };
    let name_of = |profile: &Profile, element: usize| {
        let named = profile.columns.iter().find(|column| {
            matches!(&column.source, Source::Input { tensor, index } if *tensor == spec.name && *index as usize == element)
        });
        named.map(|column| column.name.clone())
    };
    let position = |element: usize| {
        // What is not watched has no name in the profile; an input of one element may be called as it is.
        let name = name_of(&manifest.profile, element);
        let name = name.or_else(|| (width == 1).then(|| spec.name.clone()));
        let name = name.unwrap_or_else(|| format!("{}.{element}", spec.name));
        header.iter().position(|column| *column == name).ok_or_else(|| format!("the table has no column {name:?}"))
    };
    let positions = (0..width).map(position).collect::<Result<_, _>>()?;
    let is_image = manifest.pipeline.as_ref().is_some_and(|pipeline| pipeline.takes_images(&spec.name));
    Ok(Input { spec: spec.clone(), row_shape, positions, is_image })
}

impl Answers {
    /// The bundle in `dir`, if the columns of the table in `table` are all that it needs; else the reason why it cannot be run.
    ///
    /// # Errors
    /// [`Failure`] when the model itself is no good.
    pub(super) fn open(
        dir: &Path,
        manifest: &Manifest,
        table: &Path,
        header: &[String],
    ) -> Result<Result<Self, String>, Failure> {
        let signature = &manifest.signature;
        let inputs: Result<Vec<Input>, String> =
            signature.inputs.iter().map(|spec| input(spec, manifest, header)).collect();
        let inputs = match inputs {
            Ok(inputs) => inputs,
            Err(reason) => return Ok(Err(reason)),
        };
        let model = bundle::open::model(dir, manifest)?;
        let extractor = ColumnExtractor::new(&manifest.profile, signature)
            .map_err(|error| Failure::unmet("the profile does not fit the model").because(error))?;
        let batched = signature.inputs.iter().chain(&signature.outputs).all(TensorSpec::is_batched);
        // The images of one request have a bound together.
        let one_by_one = !batched || inputs.iter().any(|input| input.is_image);
        let cuts_windows = manifest.pipeline.as_ref().is_some_and(Pipeline::changes_rows);
        Ok(Ok(Self {
            model,
            extractor,
            inputs,
            folder: table.parent().unwrap_or_else(|| Path::new("")).to_owned(),
            rows_at_once: if one_by_one { 1 } else { BATCH_ROWS },
            rows: Vec::new(),
            series: cuts_windows.then(BTreeMap::new),
            cells: 0,
            failed: 0,
        }))
    }

    /// Whether the table's column at `position` is one of its inputs.
    pub(super) fn reads(&self, position: usize) -> bool {
        self.inputs.iter().any(|input| input.positions.contains(&position))
    }

    fn tensor(&self, input: &Input, rows: &[Row]) -> Option<Tensor> {
        let cells =
            || rows.iter().flat_map(|(_, row)| input.positions.iter().map(|at| row.get(*at).unwrap_or_default()));
        let batch = input.spec.is_batched().then_some(rows.len());
        let shape = batch.into_iter().chain(input.row_shape.iter().copied()).collect();
        let name = &input.spec.name;
        let tensor = match (input.spec.datatype, input.is_image) {
            (DataType::Bytes, true) => {
                let files = cells().map(|cell| image_file::read(&self.folder, cell));
                Tensor::from_byte_elements(name, shape, files.collect::<Result<Vec<_>, _>>().ok()?)
            }
            (DataType::Bytes, false) => Tensor::from_byte_elements(name, shape, cells()),
            (datatype, _) => Tensor::from_f64(name, datatype, shape, &cells().map(number).collect::<Vec<f64>>()),
        };
        tensor.ok()
    }

    /// Shows what the model answers to `rows`, each with its device; whether it could be run on them.
    fn run(&self, rows: &[Row], visit: &mut impl FnMut(&str, usize, Option<f64>)) -> bool {
        let inputs: Option<Vec<Tensor>> = self.inputs.iter().map(|input| self.tensor(input, rows)).collect();
        let Some(inputs) = inputs else { return false };
        let Ok(outputs) = self.model.run(&inputs) else { return false };
        // Windows have no rows of their own in the table, but the device of its first.
        let device = |row: usize| rows.get(row).filter(|_| self.series.is_none()).or_else(|| rows.first());
        self.extractor.visit(&inputs, &outputs, |row, column, value| {
            visit(device(row).map_or("", |(device, _)| device.as_str()), column, value);
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
        row: &StringRecord,
        visit: impl FnMut(&str, usize, Option<f64>),
    ) -> Result<(), Failure> {
        let entry = (device.to_owned(), row.clone());
        if let Some(series) = &mut self.series {
            self.cells += row.len();
            if self.cells > MAX_SERIES_CELLS {
                return Err(Failure::input(format!(
                    "windows are cut from whole series, and more than {MAX_SERIES_CELLS} values cannot be kept for that: score a part of \
                     the table, or --inputs-only"
                )));
            }
            series.entry(device.to_owned()).or_default().push(entry);
            return Ok(());
        }
        self.rows.push(entry);
        if self.rows.len() >= self.rows_at_once {
            self.flush(visit);
        }
        Ok(())
    }

    /// Runs the model on the rows that wait.
    pub(super) fn flush(&mut self, mut visit: impl FnMut(&str, usize, Option<f64>)) {
        for (_, rows) in self.series.as_mut().map(std::mem::take).unwrap_or_default() {
            if !self.run(&rows, &mut visit) {
                self.failed = self.failed.saturating_add(rows.len() as u64);
            }
        }
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() || self.run(&rows, &mut visit) {
            return;
        }
        // One row that the model cannot take must not cost the others their answers.
        for row in rows {
            if !self.run(&[row], &mut visit) {
                self.failed += 1;
            }
        }
    }
}

/// A cell as a number, NaN where it is none.
fn number(cell: &str) -> f64 {
    if let Value::Number(number) = value(cell) { number } else { f64::NAN }
}
