//! Samples of images: a folder of PNG and JPEG files, each a row, in the order of their names.

use std::path::Path;

use muster_shared::bundle::DataType;

use super::{Place, Sample, SampleError, Texts, Wanted};
use crate::image_file;

/// Reads the names of the images in the folder `path`.
pub(super) fn read(path: &Path, wanted: &[Wanted]) -> Result<Sample, SampleError> {
    let refuse = |reason: String| SampleError::new(path, Place::File, reason);
    if !matches!(wanted, [Wanted { datatype: DataType::Bytes, .. }]) {
        return Err(refuse("a folder of images fills one input of BYTES with one element a row; a .csv file can name images beside other columns".into()));
    }
    let names = image_file::names(path).map_err(refuse)?;
    let mut texts = Texts::default();
    let values = names.iter().filter_map(|name| texts.place(name)).collect();
    Ok(Sample { folder: path.to_owned(), width: 1, values, texts: vec![texts] })
}
