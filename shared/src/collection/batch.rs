//! How sealed samples travel: one after the other, each behind its length in four bytes (little-endian).

use crate::limits::{MAX_BATCH_BYTES, MAX_SAMPLE_BYTES};

use super::seal::OVERHEAD_BYTES;

/// What stands before each sealed sample, in bytes.
pub const FRAME_HEAD_BYTES: usize = 4;

/// Why bytes are no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// More than one may have.
    #[error("a batch of samples has at most {MAX_BATCH_BYTES} bytes")]
    TooLarge,
    /// Nothing in it.
    #[error("the batch holds no sample")]
    Empty,
    /// A length that the rest does not have, or that no sealed sample can have.
    #[error("the batch breaks off, or is none, at byte {0}")]
    Frame(usize),
}

/// Sealed samples on their way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch(Vec<u8>);

impl Batch {
    /// Whether a sealed sample of so many bytes still finds room. The first always does.
    #[must_use]
    pub fn has_room_for(&self, sealed_bytes: usize) -> bool {
        self.0.is_empty() || self.0.len() + FRAME_HEAD_BYTES + sealed_bytes <= MAX_BATCH_BYTES
    }

    /// Adds a sealed sample, which must not be longer than [`MAX_SAMPLE_BYTES`] sealed.
    pub fn push(&mut self, sealed: &[u8]) {
        self.0.extend_from_slice(&u32::try_from(sealed.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.0.extend_from_slice(sealed);
    }

    /// The bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The sealed samples in `bytes`.
    ///
    /// # Errors
    /// [`BatchError`].
    pub fn frames(bytes: &[u8]) -> Result<Vec<&[u8]>, BatchError> {
        if bytes.len() > MAX_BATCH_BYTES {
            return Err(BatchError::TooLarge);
        }
        if bytes.is_empty() {
            return Err(BatchError::Empty);
        }
        let (mut rest, mut frames) = (bytes, Vec::new());
        while !rest.is_empty() {
            let broken = || BatchError::Frame(bytes.len() - rest.len());
            let (length, after) = rest.split_first_chunk::<FRAME_HEAD_BYTES>().ok_or_else(broken)?;
            let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| broken())?;
            if !(OVERHEAD_BYTES..=MAX_SAMPLE_BYTES + OVERHEAD_BYTES).contains(&length) {
                return Err(broken());
            }
            let (frame, after) = after.split_at_checked(length).ok_or_else(broken)?;
            frames.push(frame);
            rest = after;
        }
        Ok(frames)
    }
}
