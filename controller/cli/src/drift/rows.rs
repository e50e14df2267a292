//! Rows of a table as requests of one row, as callers of a bundle would send them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use csv::StringRecord;
use muster_inference::Tensor;
use muster_shared::bundle::{DataType, Manifest, TensorSpec};
use muster_shared::profile::Source;

use crate::image_file;
use crate::table_file::{Value, value};

/// One input of the bundle, and where in a row of the table its elements are.
struct Input {
    spec: TensorSpec,
    row_shape: Vec<usize>,
    /// By element; none where the table lacks its column.
    positions: Vec<Option<usize>>,
    /// Whether the table names files.
    is_image: bool,
}

/// Where in a table the inputs of a bundle are.
pub(super) struct Rows {
    inputs: Vec<Input>,
    /// From where on files are found that the table names.
    folder: PathBuf,
    /// Why the table does not hold all that a request needs, where it does not.
    pub(super) lacking: Option<String>,
}

impl Rows {
    /// Finds the inputs of the bundle of `manifest` in the table in `path`, or in the folder of images that stands for one.
    pub(super) fn of(manifest: &Manifest, path: &Path, header: &[String]) -> Self {
        let header: HashMap<&str, usize> = header.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        let mut rows = Self {
            inputs: Vec::new(),
            folder: if path.is_dir() { path } else { path.parent().unwrap_or_else(|| Path::new("")) }.to_owned(),
            lacking: None,
        };
        for spec in &manifest.signature.inputs {
            match input(spec, manifest, &header) {
                Ok((input, lacking)) => {
                    rows.inputs.push(input);
                    rows.lacking =
                        rows.lacking.or_else(|| lacking.map(|name| format!("the table has no column {name:?}")));
                }
                Err(reason) => rows.lacking = rows.lacking.or(Some(reason)),
            }
        }
        rows
    }

    /// The inputs, each with the shape of its rows.
    pub(super) fn inputs(&self) -> impl Iterator<Item = (&TensorSpec, &[usize])> {
        self.inputs.iter().map(|input| (&input.spec, &input.row_shape[..]))
    }

    /// Whether any of them is an image.
    pub(super) fn has_images(&self) -> bool {
        self.inputs.iter().any(|input| input.is_image)
    }

    /// Whether the table's column at `position` is one of its inputs.
    pub(super) fn reads(&self, position: usize) -> bool {
        self.inputs.iter().any(|input| input.positions.contains(&Some(position)))
    }

    /// Whether the table has the element at place `index` of a row of `tensor`.
    pub(super) fn has(&self, tensor: &str, index: usize) -> bool {
        let input = self.inputs.iter().find(|input| input.spec.name == tensor);
        input.and_then(|input| input.positions.get(index)).is_some_and(Option::is_some)
    }

    /// The tensors of one row, with zeros and empty texts for what the table does not have; an image is read from its file with `with_images`, else
    /// the file's name stands for it.
    ///
    /// # Errors
    /// [`NoRequest`].
    pub(super) fn tensors(&self, row: &StringRecord, with_images: bool) -> Result<Vec<Tensor>, NoRequest> {
        self.inputs.iter().map(|input| self.tensor(input, row, with_images)).collect()
    }

    fn tensor(&self, input: &Input, row: &StringRecord, with_images: bool) -> Result<Tensor, NoRequest> {
        let cells = || input.positions.iter().map(|at| at.map(|at| row.get(at).unwrap_or_default()));
        let batch = input.spec.is_batched().then_some(1);
        let shape = batch.into_iter().chain(input.row_shape.iter().copied()).collect();
        let name = &input.spec.name;
        let tensor = match (input.spec.datatype, input.is_image && with_images) {
            (DataType::Bytes, true) => {
                let files = cells().map(|cell| image_file::read(&self.folder, cell.unwrap_or_default()));
                let files: Vec<_> = files.collect::<Result<_, _>>().map_err(|_| NoRequest::File)?;
                Tensor::from_byte_elements(name, shape, files)
            }
            (DataType::Bytes, false) => Tensor::from_byte_elements(name, shape, cells().map(Option::unwrap_or_default)),
            (datatype, _) => {
                let numbers: Vec<f64> = cells().map(|cell| cell.map_or(0.0, number)).collect();
                Tensor::from_f64(name, datatype, shape, &numbers)
            }
        };
        tensor.map_err(|_| NoRequest::Value)
    }
}

/// Why a row of the table is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRequest {
    /// It holds what its input's element type cannot.
    Value,
    /// It names a file that cannot be read.
    File,
}

/// An input, and the name of the first of its columns that the table lacks.
fn input(
    spec: &TensorSpec,
    manifest: &Manifest,
    header: &HashMap<&str, usize>,
) -> Result<(Input, Option<String>), String> {
    let row_shape: Option<Vec<usize>> = spec.row_dimensions().iter().map(|d| usize::try_from(*d).ok()).collect();
    let Some((row_shape, width)) = row_shape.zip(spec.row_width()) else {
        return Err(format!("rows of input {:?} have no fixed shape", spec.name));
    };
    let mut watched: HashMap<usize, &str> = HashMap::new();
    for column in &manifest.profile.columns {
        if let Source::Input { tensor, index } = &column.source
            && *tensor == spec.name
        {
            watched.insert(*index as usize, &column.name);
        }
    }
    let expected: HashMap<usize, &str> = manifest
        .schema
        .iter()
        .flat_map(|schema| &schema.features)
        .filter(|rule| rule.tensor == spec.name)
        .map(|rule| (rule.index as usize, rule.name.as_str()))
        .collect();
    let (mut positions, mut lacking) = (Vec::with_capacity(width), None);
    for element in 0..width {
        // What is not watched has no name in the profile; an input of one element may be called as it is.
        let name = watched.get(&element).map(|name| (*name).to_owned());
        let name = name.or_else(|| (width == 1).then(|| spec.name.clone()));
        let name = name.unwrap_or_else(|| format!("{}.{element}", spec.name));
        let position = header.get(name.as_str()).or_else(|| header.get(expected.get(&element)?)).copied();
        if position.is_none() {
            lacking.get_or_insert(name);
        }
        positions.push(position);
    }
    let is_image = manifest.pipeline.as_ref().is_some_and(|pipeline| pipeline.takes_images(&spec.name));
    Ok((Input { spec: spec.clone(), row_shape, positions, is_image }, lacking))
}

/// A cell as a number, NaN where it is none.
fn number(cell: &str) -> f64 {
    if let Value::Number(number) = value(cell) { number } else { f64::NAN }
}
