//! A bundle on this disk, for commands that look into it: its manifest, and its model made ready to run.

use std::path::Path;

use muster_inference::{Model, TractRuntime, pipeline};
use muster_shared::bundle::{GOLDEN_PATH, MODEL_PATH, Manifest};

use super::build::read_golden;
use super::folder::Folder;
use crate::disk;
use crate::failure::Failure;

/// The manifest of the bundle in `dir`. Its signatures are not checked.
///
/// # Errors
/// [`Failure`] when there is none, or it is not valid.
pub(crate) fn manifest(dir: &Path) -> Result<Manifest, Failure> {
    Ok(Folder::open(dir)?.manifest()?.manifest)
}

/// Loads the model of the bundle in `dir`, after its files were held against the manifest.
///
/// # Errors
/// [`Failure`] when a file is not what the manifest says, or the model cannot be loaded.
pub(crate) fn model(dir: &Path, manifest: &Manifest) -> Result<Box<dyn Model>, Failure> {
    let folder = Folder::open(dir)?;
    folder.check_files(manifest)?;
    let read = |path: &str| {
        let file = folder.file_path(path);
        disk::read(&file, manifest.file(path).map_or(0, |described| described.length)).map(|content| (file, content))
    };
    let (golden_path, golden) = read(GOLDEN_PATH)?;
    let (model_path, onnx) = read(MODEL_PATH)?;
    let golden = read_golden(&golden_path, &golden)?;
    pipeline::load(&TractRuntime, &onnx, &manifest.signature, manifest.pipeline.as_ref(), &golden)
        .map(|loaded| loaded.model)
        .map_err(|error| Failure::unmet(format!("{} cannot be loaded", model_path.display())).because(error))
}
