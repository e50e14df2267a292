//! Encoded images that a table names by their files.

use std::path::Path;

use crate::disk;
use crate::failure::Failure;

/// Longest file that a pipeline decodes, in bytes.
const MAX_IMAGE_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// The bytes of the file `name`, which is looked for from `folder` on.
///
/// # Errors
/// [`Failure`] of bad input when no file is named, it cannot be read, or it is too long.
pub(crate) fn read(folder: &Path, name: &str) -> Result<Vec<u8>, Failure> {
    if name.is_empty() {
        return Err(Failure::input(format!("a row of a table in {} names no image", folder.display())));
    }
    disk::read(&folder.join(name), MAX_IMAGE_FILE_BYTES)
}

/// Whether the file `name` is to be an image, by the end of its name.
pub(crate) fn is_named_so(name: &Path) -> bool {
    let end = name.extension().and_then(|end| end.to_str()).map(str::to_ascii_lowercase);
    matches!(end.as_deref(), Some("png" | "jpg" | "jpeg"))
}
