//! The files of bundles, by digest: `<folder>/<first two digits>/<sha256>`.
//!
//! A file is there whole and right, or not at all: it is hashed while it arrives in a temporary file, synced,
//! and then renamed. Which files a bundle needs is decided elsewhere.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use muster_shared::ids::{Digest, Hasher};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::durable::{self, FileError};

const INCOMING: &str = "incoming";

/// Why a file could not be taken in or given out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    /// More bytes than allowed.
    #[error("the file is larger than {limit_bytes} bytes, the controller's api.max-file-bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// Other content than announced.
    #[error("the file's digest is {found}, not {expected}: it was damaged on the way, or another file was sent")]
    Digest {
        /// What was announced.
        expected: Digest,
        /// What arrived.
        found: Digest,
    },
    /// The sender stopped.
    #[error("the file did not arrive completely: {0}")]
    Interrupted(String),
    /// The disk is full.
    #[error("the controller's disk is full: make room in its data-dir and try again")]
    Full,
    /// Such a file is not there.
    #[error("there is no file {0}")]
    Missing(Digest),
    /// Reading or writing failed.
    #[error("the controller cannot read or write its file {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What came of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// It is new.
    New,
    /// It was there already.
    Known,
}

/// The files. Clones share the folder.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    folder: Arc<Path>,
    max_bytes: u64,
    idle_timeout: Duration,
    /// Held while it is decided whether a file goes, so that none goes that has just been asked for.
    removing: Arc<Mutex<()>>,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BlobError {
    let path = path.to_owned();
    move |source| {
        if durable::is_full(&source) { BlobError::Full } else { BlobError::Io { path, source } }
    }
}

fn is_older(path: &Path, before_ms: u64) -> io::Result<bool> {
    let since = std::fs::metadata(path)?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(since.as_millis() < u128::from(before_ms))
}

impl Blobs {
    /// Makes the folder where needed, and removes uploads that a crash cut short.
    ///
    /// # Errors
    /// [`FileError`] when the folder cannot be used.
    pub(crate) fn open(folder: &Path, max_bytes: u64, idle_timeout: Duration) -> Result<Self, FileError> {
        let incoming = folder.join(INCOMING);
        match std::fs::remove_dir_all(&incoming) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::at("clear", &incoming)(error));
            }
            _ => {}
        }
        durable::make_folder(&incoming)?;
        Ok(Self { folder: folder.into(), max_bytes, idle_timeout, removing: Arc::default() })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.folder.join(&name[..2]).join(name)
    }

    /// Notes that a file is wanted now, and tells its length in bytes; none when it is not there.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub(crate) async fn touch(&self, digest: &Digest) -> Result<Option<u64>, BlobError> {
        self.alone(self.path(digest), |path| {
            let file = std::fs::File::open(path)?;
            file.set_modified(SystemTime::now())?;
            Ok(file.metadata()?.len())
        })
        .await
    }

    /// Files that nobody has asked for since `before_ms`, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub(crate) async fn untouched_since(&self, before_ms: u64) -> Result<BTreeSet<Digest>, BlobError> {
        let found = self
            .alone(self.folder.to_path_buf(), move |folder| {
                let mut found = BTreeSet::new();
                for parent in std::fs::read_dir(folder)?.flatten().filter(|parent| parent.file_name() != INCOMING) {
                    for file in std::fs::read_dir(parent.path()).into_iter().flatten().flatten() {
                        let digest = file.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
                        found.extend(digest.filter(|_| is_older(&file.path(), before_ms).unwrap_or(false)));
                    }
                }
                Ok(found)
            })
            .await?;
        Ok(found.unwrap_or_default())
    }

    /// Removes a file, unless somebody has asked for it since `before_ms`; tells whether it was removed.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub(crate) async fn remove_untouched(&self, digest: &Digest, before_ms: u64) -> Result<bool, BlobError> {
        let removed = self.alone(self.path(digest), move |path| {
            let goes = is_older(path, before_ms)?;
            if goes {
                std::fs::remove_file(path)?;
            }
            Ok(goes)
        });
        Ok(removed.await?.unwrap_or(false))
    }

    /// Does `work` on `path` where it may wait, and while no other such work is done; none when nothing is there.
    async fn alone<T: Send + 'static>(
        &self,
        path: PathBuf,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, BlobError> {
        let (removing, at) = (Arc::clone(&self.removing), path.clone());
        let done = tokio::task::spawn_blocking(move || {
            let _held = removing.lock().unwrap_or_else(PoisonError::into_inner);
            work(&at)
        });
        match done.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            done => done.map(Some).map_err(io_error(&path)),
        }
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// [`BlobError::Missing`], or what the system says.
    pub(crate) async fn open_file(&self, digest: &Digest) -> Result<File, BlobError> {
        let path = self.path(digest);
        match File::open(&path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(BlobError::Missing(*digest)),
            opened => opened.map_err(io_error(&path)),
        }
    }

    /// Opens a file for work that may wait.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn open_blocking(&self, digest: &Digest) -> io::Result<std::fs::File> {
        std::fs::File::open(self.path(digest))
    }

    /// `length` bytes of a file from `offset` on.
    ///
    /// # Errors
    /// [`BlobError::Missing`], or what the system says, also when the file is shorter.
    pub(crate) async fn read_at(&self, digest: &Digest, offset: u64, length: u32) -> Result<Vec<u8>, BlobError> {
        let path = self.path(digest);
        let mut file = self.open_file(digest).await?;
        let mut bytes = vec![0; length as usize];
        let filled = async {
            file.seek(io::SeekFrom::Start(offset)).await?;
            file.read_exact(&mut bytes).await
        };
        filled.await.map_err(io_error(&path))?;
        Ok(bytes)
    }

    /// Takes a file in. It is durable when this returns.
    ///
    /// # Errors
    /// [`BlobError`]; nothing is kept then.
    pub(crate) async fn receive<S, E>(&self, digest: &Digest, mut content: S) -> Result<Received, BlobError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        if self.touch(digest).await?.is_some() {
            // Read to its end all the same: a client in the middle of sending does not hear an early answer.
            self.copy(&mut content, &mut tokio::io::sink(), &self.folder).await?;
            return Ok(Received::Known);
        }
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random).map_err(|error| io_error(&self.folder)(io::Error::other(error.to_string())))?;
        let temporary = self.folder.join(INCOMING).join(hex::encode(random));
        let result = self.receive_new(digest, &mut content, &temporary).await;
        if let Err(error) = &result {
            // Best effort: what stays is removed at the next start.
            let _ = fs::remove_file(&temporary).await;
            if matches!(error, BlobError::Full | BlobError::Io { .. }) {
                // Nor does it hear of this one before it has sent everything.
                let _ = self.copy(&mut content, &mut tokio::io::sink(), &self.folder).await;
            }
        }
        result.map(|()| Received::New)
    }

    async fn receive_new<S, E>(&self, digest: &Digest, content: &mut S, temporary: &Path) -> Result<(), BlobError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let mut file = File::create_new(temporary).await.map_err(io_error(temporary))?;
        let found = self.copy(content, &mut file, temporary).await?;
        if found != *digest {
            return Err(BlobError::Digest { expected: *digest, found });
        }
        file.sync_all().await.map_err(io_error(temporary))?;
        let path = self.path(digest);
        let folders = (path.parent().unwrap_or(&self.folder).to_owned(), Arc::clone(&self.folder));
        let (from, to) = (temporary.to_owned(), path.clone());
        let place = tokio::task::spawn_blocking(move || {
            let (own, above) = folders;
            if !own.is_dir() {
                std::fs::create_dir_all(&own)?;
                durable::sync_folder(&above)?;
            }
            std::fs::rename(from, to)?;
            durable::sync_folder(&own)
        });
        place.await.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(io_error(&path))
    }

    /// Copies everything, and tells its digest.
    async fn copy<S, E, W>(&self, content: &mut S, to: &mut W, path: &Path) -> Result<Digest, BlobError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
        W: AsyncWrite + Unpin,
    {
        let mut hasher = Hasher::default();
        let mut total_bytes = 0_u64;
        loop {
            let piece = match tokio::time::timeout(self.idle_timeout, content.next()).await {
                Ok(None) => break,
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(error))) => return Err(BlobError::Interrupted(error.to_string())),
                Err(_) => {
                    let seconds = self.idle_timeout.as_secs();
                    return Err(BlobError::Interrupted(format!("nothing came for {seconds} s")));
                }
            };
            total_bytes = total_bytes.saturating_add(piece.len() as u64);
            if total_bytes > self.max_bytes {
                return Err(BlobError::TooLarge { limit_bytes: self.max_bytes });
            }
            hasher.update(&piece);
            to.write_all(&piece).await.map_err(io_error(path))?;
        }
        to.flush().await.map_err(io_error(path))?;
        Ok(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;

    use super::*;
    use crate::testing::{SmallDisk, small_disk};

    fn blobs(folder: &Path, max_bytes: u64) -> Blobs {
        Blobs::open(folder, max_bytes, Duration::from_secs(30)).unwrap()
    }

    fn pieces(content: &[u8]) -> impl Stream<Item = Result<Bytes, Infallible>> + Unpin + use<> {
        stream::iter(content.chunks(7).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect::<Vec<_>>())
    }

    fn left_over(folder: &Path) -> usize {
        std::fs::read_dir(folder.join(INCOMING)).unwrap().count()
    }

    #[tokio::test]
    async fn a_file_is_taken_in_once_and_read_in_parts() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = blobs(folder.path(), 1_000);
        let content: Vec<u8> = (0..200).collect();
        let digest = Digest::of(&content);
        assert_eq!(blobs.touch(&digest).await.unwrap(), None);
        assert!(matches!(blobs.read_at(&digest, 0, 1).await, Err(BlobError::Missing(_))));
        assert_eq!(blobs.receive(&digest, pieces(&content)).await.unwrap(), Received::New);
        assert_eq!(blobs.receive(&digest, pieces(&content)).await.unwrap(), Received::Known);
        assert_eq!(blobs.touch(&digest).await.unwrap(), Some(200));
        assert_eq!(blobs.read_at(&digest, 190, 10).await.unwrap(), content[190..]);
        assert!(matches!(blobs.read_at(&digest, 195, 10).await, Err(BlobError::Io { .. })));
    }

    #[tokio::test]
    async fn what_is_wrong_is_refused_and_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = blobs(folder.path(), 100);
        let digest = Digest::of(b"right");
        assert!(matches!(blobs.receive(&digest, pieces(b"wrong")).await, Err(BlobError::Digest { .. })));
        assert!(matches!(
            blobs.receive(&digest, pieces(&[0; 101])).await,
            Err(BlobError::TooLarge { limit_bytes: 100 })
        ));
        let broken = stream::iter([Ok(Bytes::from_static(b"ri")), Err("connection reset")]);
        assert!(matches!(blobs.receive(&digest, broken).await, Err(BlobError::Interrupted(_))));
        assert_eq!(blobs.touch(&digest).await.unwrap(), None);
        assert_eq!(left_over(folder.path()), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_falls_silent_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = blobs(folder.path(), 100);
        let silent = stream::pending::<Result<Bytes, Infallible>>();
        assert!(matches!(blobs.receive(&Digest::of(b""), silent).await, Err(BlobError::Interrupted(_))));
    }

    #[tokio::test]
    async fn a_full_disk_is_called_so() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = blobs(folder.path(), 100);
        let mut full = fs::OpenOptions::new().write(true).open("/dev/full").await.unwrap();
        let result = blobs.copy(&mut pieces(b"content"), &mut full, Path::new("/dev/full")).await;
        assert!(matches!(result, Err(BlobError::Full)), "{result:?}");
    }

    #[tokio::test]
    async fn an_upload_to_a_full_disk_is_read_to_its_end_and_leaves_nothing() {
        const TEST: &str = "blobs::tests::an_upload_to_a_full_disk_is_read_to_its_end_and_leaves_nothing";
        let SmallDisk::Seen { disk, .. } = small_disk(TEST, 1) else { return };
        let blobs = blobs(&disk.join("blobs"), 10_000_000);
        let small = Digest::of(b"small");
        blobs.receive(&small, pieces(b"small")).await.unwrap();
        let mut sent = 0;
        let large =
            stream::iter((0..40).map(|_| Ok::<_, Infallible>(Bytes::from(vec![7; 100_000])))).inspect(|_| sent += 1);
        let refused = blobs.receive(&Digest::of(b"large"), large).await;
        assert!(matches!(refused, Err(BlobError::Full)), "{refused:?}");
        assert_eq!((sent, left_over(&disk.join("blobs"))), (40, 0));
        assert_eq!(blobs.read_at(&small, 0, 5).await.unwrap(), b"small");
        blobs.receive(&Digest::of(b"next"), pieces(b"next")).await.unwrap();
    }

    #[tokio::test]
    async fn uploads_cut_short_by_a_crash_are_cleared() {
        let folder = tempfile::tempdir().unwrap();
        blobs(folder.path(), 100);
        std::fs::write(folder.path().join(INCOMING).join("abc"), "half").unwrap();
        blobs(folder.path(), 100);
        assert_eq!(left_over(folder.path()), 0);
    }
}
