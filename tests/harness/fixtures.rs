//! The models and images under `tests/fixtures`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// One held-out image with its label.
#[derive(Debug, Clone)]
pub struct Image {
    /// What it shows.
    pub label: usize,
    /// 64 grey values, row by row.
    pub pixels: Vec<f32>,
}

/// Where all of them are.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The folder of the digits models.
#[must_use]
pub fn digits() -> PathBuf {
    folder().join("digits")
}

/// The folder of the models that have a pipeline.
#[must_use]
pub fn pipelines() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pipelines")
}

/// The images no model was trained on.
///
/// # Errors
/// When the file is damaged.
pub fn held_out() -> anyhow::Result<Vec<Image>> {
    let path = digits().join("heldout.csv");
    let mut reader = csv::Reader::from_path(&path).with_context(|| format!("{}", path.display()))?;
    reader
        .deserialize::<Vec<f32>>()
        .map(|row| {
            let row = row?;
            let (label, pixels) = row.split_first().context("an empty row")?;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "labels are 0 to 9")]
            Ok(Image { label: *label as usize, pixels: pixels.to_vec() })
        })
        .collect()
}

/// Bytes in which no compressor finds anything, the same ones each time.
#[must_use]
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        // xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_be_bytes()[0]
    };
    (0..bytes).map(|_| next()).collect()
}

/// Writes a calibration set: every held-out image shifted and dimmed in `copies` ways, as a float32 NPY array of
/// shape (rows, 64). Real bundles carry such files, and they compress well.
///
/// # Errors
/// When it cannot be written.
pub fn write_calibration_set(path: &Path, copies: usize) -> anyhow::Result<()> {
    use npyz::WriterBuilder as _;

    let images = held_out()?;
    let rows = images.len() * copies;
    let file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&[rows as u64, 64]).writer(file).begin_nd()?;
    for copy in 0..copies {
        let shift = copy % 64;
        let gain = 1.0 - copy as f32 / (2 * copies) as f32;
        for image in &images {
            writer.extend((0..64).map(|at| image.pixels[(at + shift) % 64] * gain))?;
        }
    }
    writer.finish()?;
    Ok(())
}
