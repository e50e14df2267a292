//! How a chunk is written for those who take it: as it is, or packed against a file that they hold.
//!
//! Each frame is made once, however many ask for it at the same time, and kept within a number of bytes; all who get it share its
//! memory. Who may have which, and against what, is decided elsewhere.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use muster_delta::{Alignment, Encoder};
use muster_shared::chunk::{ChunkEncoding, ChunkFrame};
use muster_shared::ids::Digest;
use muster_shared::limits::CHUNK_BYTES;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::catalogue::{Listed, Piece};
use crate::blobs::{BlobError, Blobs};

const _: () = assert!(CHUNK_BYTES <= muster_delta::MAX_CHUNK_BYTES);

/// Pairs of files whose likenesses are kept: few bundles are on their way at once, and few versions are in the field.
const ALIGNMENTS: usize = 64;
/// What keeping a chunk takes besides its bytes.
const ENTRY_BYTES: usize = 256;

/// Why a chunk cannot be given out.
#[derive(Debug, thiserror::Error)]
pub(super) enum FormError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] BlobError),
    /// The file has changed on the disk.
    #[error("its bytes are not what the manifest describes")]
    Damaged,
}

/// For whom a chunk is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum For {
    /// For all: as it is.
    All,
    /// For those who can unpack it, and hold this file where there is one.
    Unpacking(Option<Digest>),
}

/// A bundle's manifest, the chunk's number, and for whom.
type Key = (Digest, u32, For);

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Key, Bytes> for ByBytes {
    fn weight(&self, _: &Key, frame: &Bytes) -> u64 {
        (frame.len() + ENTRY_BYTES) as u64
    }
}

/// The forms in use.
pub(super) struct Forms {
    blobs: Blobs,
    frames: Cache<Key, Bytes, ByBytes>,
    alignments: Cache<(Digest, Option<Digest>), Arc<Alignment>>,
    /// Those not at work; each has a megabyte of working memory.
    encoders: Mutex<Vec<Encoder>>,
}

impl Forms {
    /// Of the files in `blobs`; `capacity_bytes` of them are kept in memory.
    pub(super) fn new(blobs: Blobs, capacity_bytes: usize) -> Self {
        Self {
            blobs,
            frames: Cache::with_weighter(capacity_bytes / CHUNK_BYTES, capacity_bytes as u64, ByBytes),
            alignments: Cache::new(ALIGNMENTS),
            encoders: Mutex::default(),
        }
    }

    /// The frame with `piece`, which is chunk `index` of the bundle `listed`, in its shortest form. One that cannot be packed goes as
    /// it is.
    ///
    /// # Errors
    /// [`FormError`] when the chunk itself cannot be read.
    pub(super) async fn frame(
        &self,
        listed: &Listed,
        index: u32,
        piece: Piece,
        reader: For,
    ) -> Result<Bytes, FormError> {
        let make = async {
            let plain = self.read(piece).await?;
            let packed = match reader {
                For::All => None,
                For::Unpacking(base) => self.pack(piece, base, plain.clone()).await.unwrap_or_else(|error| {
                    tracing::warn!(file = %piece.file, ?base, %error, "a chunk cannot be packed and goes as it is");
                    None
                }),
            };
            let (encoding, bytes) = match &packed {
                Some(bytes) => (ChunkEncoding::Packed, bytes),
                None => (ChunkEncoding::Plain, &plain),
            };
            Ok(ChunkFrame { manifest: listed.digest, index, encoding, bytes }.encode().into())
        };
        self.frames.get_or_insert_async(&(listed.digest, index, reader), make).await
    }

    async fn read(&self, piece: Piece) -> Result<Bytes, FormError> {
        let bytes = self.blobs.read_at(&piece.file, piece.start_bytes, piece.length_bytes).await?;
        if Digest::of(&bytes) != piece.sha256 {
            return Err(FormError::Damaged);
        }
        Ok(bytes.into())
    }

    async fn pack(&self, piece: Piece, base: Option<Digest>, plain: Bytes) -> io::Result<Option<Bytes>> {
        let alignment = self.alignment(piece.file, base).await?;
        let base = base.map(|base| self.blobs.open_blocking(&base)).transpose()?;
        let free = self.encoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (encoded, encoder) = blocking(move || {
            let mut encoder = free.map_or_else(Encoder::new, Ok)?;
            let encoded = encoder.encode(&plain, piece.start_bytes, &alignment, base.as_ref())?;
            Ok((encoded, encoder))
        })
        .await?;
        self.encoders.lock().unwrap_or_else(PoisonError::into_inner).push(encoder);
        Ok(encoded.map(|encoded| encoded.bytes.into()))
    }

    async fn alignment(&self, file: Digest, base: Option<Digest>) -> io::Result<Arc<Alignment>> {
        let make = async {
            let target = self.blobs.open_blocking(&file)?;
            let base = base.map(|base| self.blobs.open_blocking(&base)).transpose()?;
            let align = move |base: Option<File>| match base {
                Some(base) => Alignment::of(&base, &target),
                None => Alignment::alone(&target),
            };
            blocking(move || align(base)).await.map(Arc::new)
        };
        self.alignments.get_or_insert_async(&(file, base), make).await
    }
}

/// Runs `work` where it may take its time.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
