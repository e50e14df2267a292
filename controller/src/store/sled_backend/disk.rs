//! The files below sled: made durable, and kept from filling the disk.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::opening::{LARGE, LOG};
use super::{from_io, from_sled};
use crate::durable;
use crate::store::{Change, StoreError};

/// Files that must be left to the disk: sled puts large documents into files of their own.
const RESERVE_FILES: u64 = 64;

/// Whether there is room for `bytes` more, with `reserve_bytes` left over.
///
/// # Errors
/// [`StoreError::Full`] when there is not.
pub(super) fn check_room(folder: &Path, bytes: u64, reserve_bytes: u64) -> Result<(), StoreError> {
    let room = rustix::fs::statvfs(folder).map_err(|error| from_io(folder, &error.into()))?;
    let enough = room.f_bavail.saturating_mul(room.f_frsize) >= reserve_bytes.saturating_add(bytes);
    // Some file systems make room for files as they are needed, and say that they have none at all.
    let files = room.f_files == 0 || reserve_bytes == 0 || room.f_favail >= RESERVE_FILES;
    if enough && files { Ok(()) } else { Err(StoreError::Full { folder: folder.display().to_string() }) }
}

/// What makes sled's files durable.
pub(super) struct Disk {
    pub(super) folder: PathBuf,
    reserve_bytes: u64,
    log: File,
    large: PathBuf,
    large_synced: HashSet<OsString>,
}

impl Disk {
    pub(super) fn open(folder: &Path, reserve_bytes: u64) -> io::Result<Self> {
        durable::sync_folder(folder)?;
        let (log, large) = (File::open(folder.join(LOG))?, folder.join(LARGE));
        Ok(Self { folder: folder.to_owned(), reserve_bytes, log, large, large_synced: HashSet::new() })
    }

    /// Refuses what makes the store grow when there is little room.
    pub(super) fn check_room(&self, changes: &[Change]) -> Result<(), StoreError> {
        let grown_bytes: Option<u64> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Put { value, .. } => Some(value.len() as u64),
                Change::Delete { .. } => None,
            })
            .reduce(u64::saturating_add);
        // Without a reserve, as in tests of what comes then, the disk is left to fill up.
        let looked_for = grown_bytes.filter(|_| self.reserve_bytes > 0);
        looked_for.map_or(Ok(()), |bytes| check_room(&self.folder, bytes, self.reserve_bytes))
    }

    pub(super) fn sync(&mut self, db: &sled::Db) -> Result<(), StoreError> {
        db.flush().map_err(|error| from_sled(&self.folder, &error))?;
        self.sync_files().map_err(|error| from_io(&self.folder, &error))
    }

    fn sync_files(&mut self) -> io::Result<()> {
        let mut present = HashSet::new();
        let mut new = false;
        for entry in std::fs::read_dir(&self.large)? {
            let name = entry?.file_name();
            if !self.large_synced.contains(&name) {
                match File::open(self.large.join(&name)) {
                    Ok(file) => file.sync_all()?,
                    // sled removed it meanwhile: nothing refers to it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
                new = true;
            }
            present.insert(name);
        }
        if new {
            durable::sync_folder(&self.large)?;
        }
        self.large_synced = present;
        self.log.sync_all()
    }
}
