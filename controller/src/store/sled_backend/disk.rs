//! The files below sled: made durable, and kept from filling the disk.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::{from_io, from_sled};
use crate::durable;
use crate::store::{Change, StoreError};

/// What makes sled's files durable.
pub(super) struct Disk {
    pub(super) folder: PathBuf,
    reserve_bytes: u64,
    log: File,
    /// Where sled puts documents too large for its log, each in a file that never changes.
    large: PathBuf,
    large_synced: HashSet<OsString>,
}

impl Disk {
    pub(super) fn open(folder: &Path, reserve_bytes: u64) -> io::Result<Self> {
        durable::sync_folder(folder)?;
        let (log, large) = (File::open(folder.join("db"))?, folder.join("blobs"));
        Ok(Self { folder: folder.to_owned(), reserve_bytes, log, large, large_synced: HashSet::new() })
    }

    /// Refuses what makes the store grow when there is little room.
    pub(super) fn check_room(&self, changes: &[Change]) -> Result<(), StoreError> {
        let grows = changes.iter().any(|change| matches!(change, Change::Put { .. }));
        if !grows {
            return Ok(());
        }
        let room = rustix::fs::statvfs(&self.folder).map_err(|error| from_io(&self.folder, &error.into()))?;
        if room.f_bavail.saturating_mul(room.f_frsize) < self.reserve_bytes {
            return Err(StoreError::Full { folder: self.folder.display().to_string() });
        }
        Ok(())
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
