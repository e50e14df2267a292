//! Small chunks for a device that holds an earlier version of a bundle.
//!
//! A fine-tune moves every weight a little, so that no two chunks of two versions are alike and chunk reuse wins nothing. Yet most
//! of each weight stays: its sign, its exponent, the upper bits of its mantissa. So weights are encoded as the differences of
//! whole numbers of their own width, tensor by tensor, their bytes sorted into planes, and each plane compressed by itself: the
//! upper planes are nearly all zero. Everything else is encoded as copies from the earlier file and what is new.
//!
//! Each chunk is encoded alone: a device that applies one holds that chunk and nothing else in memory, and goes on after a crash
//! where it was. Nothing here is trusted: whoever decodes checks the digest of the result, and asks for the plain chunk when that is
//! wrong. This crate decides how bytes are written; who holds which base, and when to send what, is decided elsewhere.

mod align;
mod arithmetic;
mod cut;
mod decode;
mod encode;
mod format;
mod onnx;
mod read;
mod streams;

pub use align::{Alignment, Segment};
pub use cut::cut;
pub use decode::{DecodeError, Decoder};
pub use encode::{Encoded, Encoder};
pub use read::ReadAt;

/// Longest chunk that is encoded or decoded, in bytes.
pub const MAX_CHUNK_BYTES: usize = 64 * 1024;
