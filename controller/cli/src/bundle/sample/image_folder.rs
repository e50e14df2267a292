//! Samples of images: a folder of PNG and JPEG files, each a row, in the order of their names.

use std::path::Path;

use muster_shared::bundle::DataType;

use super::{MAX_TEXTS, Place, Sample, SampleError, Texts, Wanted};
use crate::image_file;

/// Reads the names of the images in the folder `path`.
pub(super) fn read(path: &Path, wanted: &[Wanted]) -> Result<Sample, SampleError> {
    let refuse = |reason: String| SampleError::new(path, Place::File, reason);
    if !matches!(wanted, [Wanted { datatype: DataType::Bytes, .. }]) {
        return Err(refuse("a folder of images fills one input of BYTES with one element a row; a .csv file can name images beside other columns".into()));
    }
    let entries = std::fs::read_dir(path).map_err(|error| refuse(format!("cannot read it: {error}")))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| refuse(format!("cannot read it: {error}")))?.file_name();
        if !image_file::is_named_so(Path::new(&name)) {
            continue;
        }
        let name = name.into_string().map_err(|name| refuse(format!("{} is no UTF-8 text", name.display())))?;
        names.push(name);
        if names.len() > MAX_TEXTS {
            return Err(refuse(format!("it holds more than {MAX_TEXTS} images: a smaller sample serves as well")));
        }
    }
    if names.is_empty() {
        return Err(refuse("it holds no .png, .jpg or .jpeg file".into()));
    }
    names.sort_unstable();
    let mut texts = Texts::default();
    let values = names.iter().filter_map(|name| texts.place(name)).collect();
    Ok(Sample { folder: path.to_owned(), width: 1, values, texts: vec![texts] })
}
