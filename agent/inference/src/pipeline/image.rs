//! Encoded images to numbers.
//!
//! How large an image is, is read and held against the bound before any pixel is decoded. Resizing is Pillow's
//! (`src/libImaging/Resample.c` and `Geometry.c`), in the same fixed point, so that pixels are equal and not merely close.

mod resample;

use std::io::Cursor;

use ::image::{DynamicImage, ImageDecoder as _, ImageReader, Limits};
use muster_shared::pipeline::{Colour, ImageOperation, Layout, Resize, Size};

use self::resample::Pixels;
use super::value::{Numbers, Texts, room};
use crate::guard::{self, Stopped};

/// Bytes one file may have.
const MAX_FILE_BYTES: usize = 64 * 1024 * 1024;
/// Bytes that decoding may take for each pixel: four channels of 16 bits.
const PIXEL_BYTES: u64 = 8;
/// Bytes that decoding may take besides.
const EXTRA_BYTES: u64 = 4 * 1024 * 1024;

pub(super) fn decode(operation: &ImageOperation, files: &Texts<'_>) -> Result<Numbers, String> {
    let count = files.data.len();
    let channels = operation.colour.channels();
    let mut pixels_left = u64::from(operation.max_pixels);
    let mut data: Vec<f64> = Vec::new();
    let mut size = None;
    for (at, file) in files.data.iter().enumerate() {
        let in_words = |reason: String| format!("image {}: {reason}", at + 1);
        let pixels = pixels(operation, file, &mut pixels_left).map_err(in_words)?;
        let (width, height) = (pixels.width, pixels.height);
        if size.is_none() {
            let elements = room(count, width.saturating_mul(height).saturating_mul(channels))?;
            data.reserve_exact(elements);
        }
        if *size.get_or_insert((width, height)) != (width, height) {
            return Err(in_words("it has another size than the first".into()));
        }
        append(operation, &pixels, &mut data);
    }
    let Some((width, height)) = size else { return Err("there is no image".into()) };
    let shape = match operation.layout {
        Layout::Nchw => vec![count, channels, height, width],
        Layout::Nhwc => vec![count, height, width, channels],
    };
    Ok(Numbers { shape, data })
}

/// Decodes one file, converts its colours, resizes and crops it.
fn pixels(operation: &ImageOperation, file: &[u8], pixels_left: &mut u64) -> Result<Pixels, String> {
    if file.len() > MAX_FILE_BYTES {
        return Err(format!("a file of {} bytes; at most {MAX_FILE_BYTES} are allowed", file.len()));
    }
    let image = match guard::here(|| open(file, operation.max_pixels, pixels_left)) {
        Ok(image) => image?,
        Err(Stopped::Panicked(reason) | Stopped::NoThread(reason)) => return Err(reason),
        Err(Stopped::TooSlow) => return Err("decoding takes too long".into()),
    };
    let (width, height) = (image.width() as usize, image.height() as usize);
    let rgb = image.into_rgb8().into_raw();
    let data = if operation.colour == Colour::Gray { luma(&rgb) } else { rgb };
    let mut pixels = Pixels { width, height, channels: operation.colour.channels(), data };
    if let Some(resize) = operation.resize {
        let (width, height) = target(resize, pixels.width, pixels.height);
        // Rows are resized first: of a very tall image that can be more than either end.
        room(width.max(pixels.width), pixels.height.max(height))
            .map_err(|_| "its sides are too unequal to be resized".to_owned())?;
        pixels = resample::resize(&pixels, width, height, resize.mode);
    }
    if let Some([width, height]) = operation.crop {
        pixels = crop(&pixels, width as usize, height as usize)?;
    }
    Ok(pixels)
}

fn open(file: &[u8], max_pixels: u32, pixels_left: &mut u64) -> Result<DynamicImage, String> {
    let words = |error: ::image::ImageError| muster_shared::limits::bounded_text(&error.to_string());
    let reader = ImageReader::new(Cursor::new(file)).with_guessed_format().map_err(|error| error.to_string())?;
    if reader.format().is_none() {
        return Err("this is neither PNG nor JPEG".into());
    }
    let mut decoder = reader.into_decoder().map_err(words)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    *pixels_left = pixels_left.checked_sub(pixels).ok_or_else(|| {
        format!("{width} × {height} pixels; the images of one request may have {max_pixels} together")
    })?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(width);
    limits.max_image_height = Some(height);
    limits.max_alloc = Some(pixels * PIXEL_BYTES + EXTRA_BYTES);
    decoder.set_limits(limits).map_err(words)?;
    DynamicImage::from_decoder(decoder).map_err(words)
}

/// ITU-R 601-2 luma in Pillow's fixed point.
fn luma(rgb: &[u8]) -> Vec<u8> {
    let (pixels, _) = rgb.as_chunks::<3>();
    let luma = |[r, g, b]: &[u8; 3]| {
        let sum = u32::from(*r) * 19_595 + u32::from(*g) * 38_470 + u32::from(*b) * 7_471 + 0x8000;
        u8::try_from(sum >> 16).unwrap_or(u8::MAX)
    };
    pixels.iter().map(luma).collect()
}

/// The size to resize to: torchvision's `Resize` cuts the longer side to whole pixels.
fn target(resize: Resize, width: usize, height: usize) -> (usize, usize) {
    match resize.size {
        Size::Exact([width, height]) => (width as usize, height as usize),
        Size::Shorter(side) => {
            let side = side as usize;
            let longer = |long: usize, short: usize| side * long / short.max(1);
            if width <= height { (side, longer(height, width)) } else { (longer(width, height), side) }
        }
    }
}

/// The middle, halves going to the even side as torchvision's `CenterCrop` has it.
fn crop(pixels: &Pixels, width: usize, height: usize) -> Result<Pixels, String> {
    let (Some(free_x), Some(free_y)) = (pixels.width.checked_sub(width), pixels.height.checked_sub(height)) else {
        return Err(format!(
            "{} × {} pixels are left, fewer than the {width} × {height} that are kept",
            pixels.width, pixels.height
        ));
    };
    let half = |free: usize| if free % 4 == 3 { free.div_ceil(2) } else { free / 2 };
    let (left, top, channels) = (half(free_x), half(free_y), pixels.channels);
    let mut data = Vec::with_capacity(width * height * channels);
    for row in top..top + height {
        let start = (row * pixels.width + left) * channels;
        data.extend_from_slice(&pixels.data[start..start + width * channels]);
    }
    Ok(Pixels { width, height, channels, data })
}

/// Appends the pixels as numbers, in the channels' and dimensions' order.
fn append(operation: &ImageOperation, pixels: &Pixels, out: &mut Vec<f64>) {
    let channels = pixels.channels;
    let source = |channel: usize| match operation.colour {
        Colour::Bgr => 2 - channel,
        Colour::Rgb | Colour::Gray => channel,
    };
    // A byte has 256 values, so each is computed once.
    let table = |channel: usize| -> Vec<f64> { (0..=u8::MAX).map(|byte| operation.value(byte, channel)).collect() };
    let tables: Vec<Vec<f64>> = (0..channels).map(table).collect();
    match operation.layout {
        Layout::Nchw => {
            for (channel, table) in tables.iter().enumerate() {
                let bytes = pixels.data.iter().skip(source(channel)).step_by(channels);
                out.extend(bytes.map(|byte| table[usize::from(*byte)]));
            }
        }
        Layout::Nhwc => {
            for pixel in pixels.data.chunks_exact(channels) {
                out.extend(
                    tables.iter().enumerate().map(|(channel, table)| table[usize::from(pixel[source(channel)])]),
                );
            }
        }
    }
}
