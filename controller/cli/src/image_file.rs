//! Encoded images, by their files: of a folder, or as a table names them.

use std::path::Path;

use crate::disk;
use crate::failure::Failure;

/// Longest file that a pipeline decodes, in bytes.
const MAX_IMAGE_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Images of one folder that are looked for.
const MAX_IMAGES: usize = 100_000;

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

/// The names of the PNG and JPEG files in `folder`, in order.
///
/// # Errors
/// What is wrong with the folder.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, String> {
    let cannot = |error: std::io::Error| format!("cannot read it: {error}");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(cannot)? {
        let name = entry.map_err(cannot)?.file_name();
        if !is_named_so(Path::new(&name)) {
            continue;
        }
        names.push(name.into_string().map_err(|name| format!("{} is no UTF-8 text", name.display()))?);
        if names.len() > MAX_IMAGES {
            return Err(format!("it holds more than {MAX_IMAGES} images: a smaller sample serves as well"));
        }
    }
    if names.is_empty() {
        return Err("it holds no .png, .jpg or .jpeg file".into());
    }
    names.sort_unstable();
    Ok(names)
}
