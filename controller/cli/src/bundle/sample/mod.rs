//! The reference sample: rows of numbers, one for each element of the model's inputs.
//!
//! A missing value is a NaN here, as models have it. Whatever else a tensor of the wanted type cannot hold is refused,
//! with the place it stands at.

mod csv_file;
mod image_folder;
mod npy_file;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use muster_shared::bundle::DataType;

/// Longest sample file, in bytes.
const MAX_SAMPLE_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// Most values of a sample that are kept: 400 MB of them.
const MAX_VALUES: usize = 50_000_000;
/// Most distinct texts of one column.
const MAX_TEXTS: usize = 100_000;
/// Integers past this are not exact as numbers of a sample.
const MAX_EXACT: f64 = muster_shared::limits::MAX_EXACT as f64;

/// One value wanted of every row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its column in a CSV file; in an NPY file the position counts.
    pub(crate) name: String,
    /// The type of tensor it goes into.
    pub(crate) datatype: DataType,
}

/// A sample as it was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    /// From where on files are found that it names.
    folder: PathBuf,
    /// Values wanted of each row.
    width: usize,
    /// Row by row; a text by its place among its column's.
    values: Vec<f64>,
    /// The texts of each column wanted.
    texts: Vec<Texts>,
}

/// The distinct texts of one column, in the order in which they came.
#[derive(Debug, Clone, PartialEq, Default)]
struct Texts {
    known: Vec<String>,
    places: BTreeMap<String, usize>,
}

impl Texts {
    /// The place of `text`; `None` when there are too many already.
    fn place(&mut self, text: &str) -> Option<f64> {
        if let Some(place) = self.places.get(text) {
            return Some(*place as f64);
        }
        let place = self.known.len();
        if place >= MAX_TEXTS {
            return None;
        }
        self.known.push(text.to_owned());
        self.places.insert(text.to_owned(), place);
        Some(place as f64)
    }
}

impl Sample {
    /// From where on files are found that it names.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.values.len().checked_div(self.width).unwrap_or(0)
    }

    /// The values of one row, in the order wanted.
    pub(crate) fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.width..(row + 1) * self.width]
    }

    /// The text that `value` stands for in column `column`, in the order wanted.
    pub(crate) fn text(&self, column: usize, value: f64) -> &str {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place, as it was given out")]
        let place = value as usize;
        self.texts.get(column).and_then(|texts| texts.known.get(place)).map_or("", String::as_str)
    }
}

/// Where in a sample something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The file as a whole.
    File,
    /// A line of a CSV file, counted from 1.
    Line(u64),
    /// A value of a CSV file.
    Cell {
        /// The line, counted from 1.
        line: u64,
        /// The column's name.
        column: String,
    },
    /// A value of an NPY file.
    Element {
        /// The row, counted from 0 as numpy does.
        row: usize,
        /// The column, counted from 0.
        column: usize,
    },
}

/// Why a file is not the sample that is wanted.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {reason}", path.display(), match place {
    Place::File => String::new(),
    Place::Line(line) => format!(", line {line}"),
    Place::Cell { line, column } => format!(", line {line}, column {column:?}"),
    Place::Element { row, column } => format!(", element [{row}, {column}]"),
})]
pub(crate) struct SampleError {
    path: PathBuf,
    place: Place,
    reason: String,
}

impl SampleError {
    fn new(path: &Path, place: Place, reason: impl Into<String>) -> Self {
        Self { path: path.to_owned(), place, reason: reason.into() }
    }
}

/// Reads the sample in `path`: a CSV file with a header, a two-dimensional NPY array, or a folder of images.
///
/// # Errors
/// [`SampleError`] with the first mistake and its place.
pub(crate) fn read(path: &Path, wanted: &[Wanted]) -> Result<Sample, SampleError> {
    let refuse = |reason: String| SampleError::new(path, Place::File, reason);
    if path.is_dir() {
        return image_folder::read(path, wanted);
    }
    let kind = path.extension().map(|extension| extension.to_ascii_lowercase());
    let is_npy = match kind.as_ref().and_then(|kind| kind.to_str()) {
        Some("csv") => false,
        Some("npy") => true,
        Some(_) | None => {
            return Err(refuse("a reference sample is a .csv or a .npy file, or a folder of images".into()));
        }
    };
    let file = File::open(path).map_err(|error| refuse(format!("cannot open it: {error}")))?;
    let length = file.metadata().map_err(|error| refuse(format!("cannot read it: {error}")))?.len();
    if length > MAX_SAMPLE_BYTES {
        return Err(refuse(format!("it is longer than {MAX_SAMPLE_BYTES} bytes: a smaller sample serves as well")));
    }
    let mut texts = vec![Texts::default(); wanted.len()];
    let values = if is_npy {
        npy_file::read(path, file, length, wanted)
    } else {
        csv_file::read(path, file, wanted, &mut texts)
    }?;
    if values.is_empty() {
        return Err(refuse("it holds no row".into()));
    }
    let folder = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
    Ok(Sample { folder, width: wanted.len(), values, texts })
}

/// `value`, if a tensor of `datatype` can hold it.
fn admit(value: f64, datatype: DataType) -> Result<f64, String> {
    if value.is_infinite() {
        return Err("infinite values are not allowed; leave the value out if there is none".into());
    }
    let whole = |least: f64, greatest: f64| {
        if value.is_nan() {
            Err(format!("the value is missing, and a tensor of {datatype} has no way to say so"))
        } else if value.fract() == 0.0 && (least..=greatest).contains(&value) {
            Ok(value)
        } else {
            Err(format!("{value} is not a whole number from {least} to {greatest}, which {datatype} needs"))
        }
    };
    let real = |greatest: f64| {
        if value.is_nan() || value.abs() <= greatest {
            Ok(value)
        } else {
            Err(format!("{value:e} is past what {datatype} holds"))
        }
    };
    match datatype {
        DataType::Bool => whole(0.0, 1.0),
        DataType::Uint8 => whole(0.0, f64::from(u8::MAX)),
        DataType::Uint16 => whole(0.0, f64::from(u16::MAX)),
        DataType::Uint32 => whole(0.0, f64::from(u32::MAX)),
        DataType::Uint64 => whole(0.0, MAX_EXACT),
        DataType::Int8 => whole(f64::from(i8::MIN), f64::from(i8::MAX)),
        DataType::Int16 => whole(f64::from(i16::MIN), f64::from(i16::MAX)),
        DataType::Int32 => whole(f64::from(i32::MIN), f64::from(i32::MAX)),
        DataType::Int64 => whole(-MAX_EXACT, MAX_EXACT),
        DataType::Fp16 => real(65_504.0),
        DataType::Fp32 => real(f64::from(f32::MAX)),
        DataType::Fp64 => Ok(value),
        DataType::Bytes => Err("texts can be taken from a CSV file only".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_take_what_they_hold() {
        for (value, datatype, ok) in [
            (255.0, DataType::Uint8, true),
            (256.0, DataType::Uint8, false),
            (-1.0, DataType::Uint32, false),
            (0.5, DataType::Int64, false),
            (MAX_EXACT * 2.0, DataType::Int64, false),
            (1e39, DataType::Fp32, false),
            (1e39, DataType::Fp64, true),
            (70_000.0, DataType::Fp16, false),
            (2.0, DataType::Bool, false),
            (f64::NAN, DataType::Fp32, true),
            (f64::NAN, DataType::Int32, false),
            (f64::INFINITY, DataType::Fp64, false),
            (1.0, DataType::Bytes, false),
        ] {
            assert_eq!(admit(value, datatype).is_ok(), ok, "{value} as {datatype}");
        }
    }

    #[test]
    fn the_kind_of_file_is_told_by_its_name() {
        let error = read(Path::new("x.parquet"), &[]).unwrap_err();
        assert_eq!(error.to_string(), "x.parquet: a reference sample is a .csv or a .npy file, or a folder of images");
        assert!(read(Path::new("/nowhere/x.csv"), &[]).unwrap_err().to_string().contains("cannot open it"));
    }
}
