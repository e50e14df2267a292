//! How a chunk is written for those who take it: as it is, or packed against a file that they hold.
//!
//! Each form is made once, however many ask for it at the same time, and kept within a number of bytes. Who may have which, and
//! against what, is decided elsewhere.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use muster_delta::{Alignment, Encoder};
use muster_shared::chunk::ChunkEncoding;
use muster_shared::ids::Digest;
use muster_shared::limits::CHUNK_BYTES;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::catalogue::Piece;
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

/// A chunk as it goes on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) encoding: ChunkEncoding,
    pub(super) bytes: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Form {
    /// By the digest of the chunk.
    Plain(Digest),
    /// Of the chunk that begins at `start_bytes` of `file`, for those who hold `base`.
    Packed { file: Digest, start_bytes: u64, base: Option<Digest> },
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Form, Written> for ByBytes {
    fn weight(&self, _: &Form, written: &Written) -> u64 {
        (written.bytes.len() + ENTRY_BYTES) as u64
    }
}

/// The forms in use.
pub(super) struct Forms {
    blobs: Blobs,
    written: Cache<Form, Written, ByBytes>,
    alignments: Cache<(Digest, Option<Digest>), Arc<Alignment>>,
    /// Those not at work; each has a megabyte of working memory.
    encoders: Mutex<Vec<Encoder>>,
}

impl Forms {
    /// Of the files in `blobs`; `capacity_bytes` of them are kept in memory.
    pub(super) fn new(blobs: Blobs, capacity_bytes: usize) -> Self {
        Self {
            blobs,
            written: Cache::with_weighter(capacity_bytes / CHUNK_BYTES, capacity_bytes as u64, ByBytes),
            alignments: Cache::new(ALIGNMENTS),
            encoders: Mutex::default(),
        }
    }

    /// The chunk as it is.
    ///
    /// # Errors
    /// [`FormError`].
    pub(super) async fn plain(&self, piece: Piece) -> Result<Written, FormError> {
        self.written.get_or_insert_async(&Form::Plain(piece.sha256), self.read(piece)).await
    }

    /// The chunk in its shortest form for those who hold the file `base`.
    ///
    /// # Errors
    /// [`FormError`] when the chunk itself cannot be read. One that cannot be packed is given as it is.
    pub(super) async fn packed(&self, piece: Piece, base: Option<Digest>) -> Result<Written, FormError> {
        let form = Form::Packed { file: piece.file, start_bytes: piece.start_bytes, base };
        let make = async {
            let plain = self.read(piece).await?;
            match self.pack(piece, base, plain.bytes.clone()).await {
                Ok(Some(bytes)) => Ok(Written { encoding: ChunkEncoding::Packed, bytes }),
                Ok(None) => Ok(plain),
                Err(error) => {
                    tracing::warn!(file = %piece.file, base = ?base, %error, "a chunk cannot be packed and goes as it is");
                    Ok(plain)
                }
            }
        };
        self.written.get_or_insert_async(&form, make).await
    }

    async fn read(&self, piece: Piece) -> Result<Written, FormError> {
        let bytes = self.blobs.read_at(&piece.file, piece.start_bytes, piece.length_bytes).await?;
        if Digest::of(&bytes) != piece.sha256 {
            return Err(FormError::Damaged);
        }
        Ok(Written { encoding: ChunkEncoding::Plain, bytes: bytes.into() })
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
