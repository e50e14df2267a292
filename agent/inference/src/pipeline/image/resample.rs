//! Pillow's resizing of images of 8 bits a channel.

use muster_shared::pipeline::ResizeMode;

/// Bits after the point of a weight (`PRECISION_BITS` in Pillow).
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// An image of 8 bits a channel, row by row, the channels of a pixel together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pixels {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) channels: usize,
    pub(super) data: Vec<u8>,
}

pub(super) fn resize(pixels: &Pixels, width: usize, height: usize, mode: ResizeMode) -> Pixels {
    match mode {
        ResizeMode::Nearest => nearest(pixels, width, height),
        ResizeMode::Bilinear => {
            // Pillow leaves a direction alone that keeps its size, and goes along rows first.
            let across = if width == pixels.width { None } else { Some(horizontal(pixels, width)) };
            let pixels = across.as_ref().unwrap_or(pixels);
            if height == pixels.height { pixels.clone() } else { vertical(pixels, height) }
        }
    }
}

/// Which pixel each result takes: positions are added up as Pillow adds them, rounding and all.
fn nearest_positions(from: usize, to: usize) -> Vec<usize> {
    let step = from as f64 / to as f64;
    let mut place = step * 0.5;
    let mut positions = Vec::with_capacity(to);
    for _ in 0..to {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a position, never negative")]
        positions.push((place as usize).min(from.saturating_sub(1)));
        place += step;
    }
    positions
}

fn nearest(pixels: &Pixels, width: usize, height: usize) -> Pixels {
    let columns = nearest_positions(pixels.width, width);
    let channels = pixels.channels;
    let mut data = Vec::with_capacity(width * height * channels);
    for row in nearest_positions(pixels.height, height) {
        for column in &columns {
            let at = (row * pixels.width + column) * channels;
            data.extend_from_slice(&pixels.data[at..at + channels]);
        }
    }
    Pixels { width, height, channels, data }
}

/// The first source of a result, and the weight of it and those after it.
struct Weights {
    start: usize,
    weights: Vec<i32>,
}

/// `precompute_coeffs` and `normalize_coeffs_8bpc` with the triangle filter.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positions within an image, as Pillow has them"
)]
fn weights(from: usize, to: usize) -> Vec<Weights> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = filter_scale;
    let of = |at: usize| {
        let center = (at as f64 + 0.5) * scale;
        let start = ((center - support + 0.5) as i64).max(0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let triangle = |x: usize| (1.0 - ((x as f64 - center + 0.5) / filter_scale).abs()).max(0.0);
        let raw: Vec<f64> = (start..end).map(triangle).collect();
        let sum: f64 = raw.iter().sum();
        let fixed = |weight: &f64| {
            let weight = if sum == 0.0 { *weight } else { weight / sum };
            (0.5 + weight * f64::from(1_u32 << PRECISION_BITS)) as i32
        };
        Weights { start, weights: raw.iter().map(fixed).collect() }
    };
    (0..to).map(of).collect()
}

/// A weighted sum of bytes `stride` apart, from `first` on.
fn weighted(data: &[u8], first: usize, stride: usize, weights: &[i32]) -> u8 {
    let half = 1_i32 << (PRECISION_BITS - 1);
    let bytes = data.get(first..).unwrap_or_default().iter().step_by(stride);
    // At most 255 times weights that add up to about 1: it fits.
    let sum = bytes.zip(weights).fold(half, |sum, (byte, weight)| sum.wrapping_add(i32::from(*byte) * weight));
    u8::try_from((sum >> PRECISION_BITS).clamp(0, 255)).unwrap_or(u8::MAX)
}

fn horizontal(pixels: &Pixels, width: usize) -> Pixels {
    let channels = pixels.channels;
    let weights = weights(pixels.width, width);
    let mut data = Vec::with_capacity(width * pixels.height * channels);
    for row in pixels.data.chunks_exact(pixels.width * channels) {
        for Weights { start, weights } in &weights {
            for channel in 0..channels {
                data.push(weighted(row, start * channels + channel, channels, weights));
            }
        }
    }
    Pixels { width, height: pixels.height, channels, data }
}

fn vertical(pixels: &Pixels, height: usize) -> Pixels {
    let row = pixels.width * pixels.channels;
    let mut data = Vec::with_capacity(row * height);
    for Weights { start, weights } in weights(pixels.height, height) {
        for at in 0..row {
            data.push(weighted(&pixels.data, start * row + at, row, &weights));
        }
    }
    Pixels { width: pixels.width, height, channels: pixels.channels, data }
}
