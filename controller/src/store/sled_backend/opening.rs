//! The files as they were before sled opened them.
//!
//! Opening a damaged log is not harmless: sled writes zeros over what comes after the damage, and forgets the index from
//! before. Until the store has proven whole, what sled may touch is kept, so that a store that is refused is left as it was
//! found. Mostly that is the end of the log, a few segments. Where the log's end cannot be told, all of it is copied.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::durable;

/// sled's files with the documents.
pub(super) const LOG: &str = "db";
/// Where sled puts documents too large for its log, each in a file that never changes.
pub(super) const LARGE: &str = "blobs";
const LOG_COPY: &str = "db.before";
const LOG_COPY_UNFINISHED: &str = "db.before.new";
const LARGE_LINKS: &str = "blobs.before";

/// sled's default, which is never set otherwise.
const SEGMENT_BYTES: u64 = 512 * 1024;
/// Checksum, number of the first byte, number up to which all was durable.
const HEADER_BYTES: usize = 20;
/// Segments kept below the one where sled looks for the end: a batch that was cut short may begin there.
const BELOW_THE_END: usize = 8;
/// More than the end of a log ever is: sled fills a few segments at once.
const MAX_KEPT_SEGMENTS: usize = 64;

/// What sled may overwrite, remove or leave out.
pub(super) struct Opening {
    folder: PathBuf,
    log_bytes: u64,
    /// Where each starts in the log, and its content; none when the whole log was copied.
    segments: Option<Vec<(u64, Vec<u8>)>>,
    /// Index files, whole.
    snapshots: Vec<(PathBuf, Vec<u8>)>,
}

fn is_snapshot(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"snap."))
}

/// Names in a folder; none when it is not there.
fn entries(folder: &Path) -> io::Result<BTreeSet<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The checksum that sled uses.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// The number of a segment's first byte, and the number up to which all was durable when it was begun; none where sled
/// does not take it for a segment either.
fn header(log: &File, at: u64) -> Option<(u64, u64)> {
    let mut bytes = [0_u8; HEADER_BYTES];
    log.read_exact_at(&mut bytes, at).ok()?;
    let (check, rest) = bytes.split_first_chunk()?;
    let (first, rest_after) = rest.split_first_chunk()?;
    let number = |bytes: [u8; 8]| u64::try_from(i64::from_le_bytes(bytes) ^ i64::MAX).ok();
    let known = !u32::from_le_bytes(*check) == crc32(rest);
    known.then_some((number(*first)?, number(rest_after.try_into().ok()?)?))
}

/// Where the segments start that sled reads as the log's end; none when that cannot be told.
fn end_of(log: &File, log_bytes: u64) -> Option<Vec<u64>> {
    let starts = (0..log_bytes.div_ceil(SEGMENT_BYTES)).map(|index| index * SEGMENT_BYTES);
    let mut segments: Vec<(u64, u64, u64)> =
        starts.filter_map(|at| header(log, at).map(|(first, durable)| (first, durable, at))).collect();
    segments.sort_unstable();
    let durable = segments.iter().map(|(_, durable, _)| *durable).max()? / SEGMENT_BYTES * SEGMENT_BYTES;
    let end = segments.iter().position(|(first, ..)| *first == durable)?.saturating_sub(BELOW_THE_END);
    let kept: Vec<u64> = segments.get(end..)?.iter().map(|(.., at)| *at).collect();
    // Where the file ends within a segment from before, sled takes all later ones for torn.
    let torn = log_bytes / SEGMENT_BYTES * SEGMENT_BYTES;
    let plain = torn == log_bytes || kept.contains(&torn);
    (plain && kept.len() <= MAX_KEPT_SEGMENTS).then_some(kept)
}

/// Whether every large document is whole. Where one is not, sled takes the log for torn at the place that names it.
fn large_are_whole(large: &BTreeSet<PathBuf>) -> io::Result<bool> {
    for path in large {
        let bytes = fs::read(path)?;
        let whole = bytes.split_first_chunk().is_some_and(|(check, rest)| u32::from_le_bytes(*check) == crc32(rest));
        if !whole {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Opening {
    /// Keeps what is there. Whoever calls must hold the folder.
    pub(super) fn of(folder: &Path, log: &File) -> io::Result<Self> {
        let log_bytes = log.metadata()?.len();
        let large = entries(&folder.join(LARGE))?;
        let end = if large_are_whole(&large)? { end_of(log, log_bytes) } else { None };
        let segments = match end {
            Some(starts) => Some(starts.into_iter().map(|at| Ok((at, read(log, at)?))).collect::<io::Result<_>>()?),
            None => {
                let unfinished = folder.join(LOG_COPY_UNFINISHED);
                fs::copy(folder.join(LOG), &unfinished)?;
                File::open(&unfinished)?.sync_all()?;
                fs::rename(unfinished, folder.join(LOG_COPY))?;
                durable::sync_folder(folder)?;
                None
            }
        };
        let snapshots = entries(folder)?
            .into_iter()
            .filter(|path| is_snapshot(path))
            .map(|path| Ok((path.clone(), fs::read(path)?)))
            .collect::<io::Result<_>>()?;
        if !large.is_empty() {
            let links = folder.join(LARGE_LINKS);
            fs::create_dir_all(&links)?;
            for (path, name) in large.iter().filter_map(|path| Some((path, path.file_name()?))) {
                fs::hard_link(path, links.join(name))?;
            }
        }
        Ok(Self { folder: folder.to_owned(), log_bytes, segments, snapshots })
    }

    /// Takes up what a start that was cut short had kept.
    pub(super) fn resume(folder: &Path) -> io::Result<()> {
        remove(&folder.join(LOG_COPY_UNFINISHED))?;
        let copy = folder.join(LOG_COPY);
        if copy.exists() {
            fs::rename(copy, folder.join(LOG))?;
        }
        put_back_large(folder)?;
        durable::sync_folder(folder)
    }

    /// Puts everything back. The store must be closed.
    pub(super) fn restore(self) -> io::Result<()> {
        match &self.segments {
            Some(segments) => {
                let log = OpenOptions::new().write(true).open(self.folder.join(LOG))?;
                for (at, bytes) in segments {
                    log.write_all_at(bytes, *at)?;
                }
                log.set_len(self.log_bytes)?;
                log.sync_all()?;
            }
            None => fs::rename(self.folder.join(LOG_COPY), self.folder.join(LOG))?,
        }
        for path in entries(&self.folder)?.iter().filter(|path| is_snapshot(path)) {
            if !self.snapshots.iter().any(|(kept, _)| kept == path) {
                fs::remove_file(path)?;
            }
        }
        for (path, bytes) in &self.snapshots {
            fs::write(path, bytes)?;
            File::open(path)?.sync_all()?;
        }
        put_back_large(&self.folder)?;
        durable::sync_folder(&self.folder)
    }

    /// The store is whole: nothing of it is needed.
    pub(super) fn forget(self) -> io::Result<()> {
        remove(&self.folder.join(LOG_COPY))?;
        remove_links(&self.folder)
    }
}

fn read(log: &File, at: u64) -> io::Result<Vec<u8>> {
    let room = log.metadata()?.len().saturating_sub(at).min(SEGMENT_BYTES);
    let mut bytes = vec![0; usize::try_from(room).unwrap_or(0)];
    log.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn put_back_large(folder: &Path) -> io::Result<()> {
    for link in entries(&folder.join(LARGE_LINKS))? {
        let Some(name) = link.file_name() else { continue };
        let path = folder.join(LARGE).join(name);
        if !path.exists() {
            fs::hard_link(&link, path)?;
        }
    }
    remove_links(folder)
}

fn remove_links(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder.join(LARGE_LINKS)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
