//! Small files that must never be half written: temp, fsync, rename, fsync of the folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// The owner only (0600).
    Secret,
    /// Everybody (0644, less the umask).
    Public,
}

/// A file or folder, and why it could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub(crate) struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// Names what failed, to be used with `map_err`.
    pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }

    /// What the system says.
    pub(crate) fn cause(&self) -> &io::Error {
        &self.source
    }
}

/// Whether there is no room for more: the disk is full, or a quota is used up.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Replaces the file's content, or leaves what was there before.
///
/// # Errors
/// [`FileError`] with the file and what the system says.
pub(crate) fn write(path: &Path, content: &[u8], access: Access) -> Result<(), FileError> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let fill = || -> io::Result<()> {
        // A leftover of a crash may have other rights than the new file shall have.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mode = match access {
            Access::Secret => 0o600,
            Access::Public => 0o644,
        };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(folder)
    };
    fill().map_err(|error| {
        // Half a file would take the room that is missing. What stays all the same is replaced by the next write.
        let _ = fs::remove_file(&temporary);
        FileError::at("write", path)(error)
    })
}

/// The file's content; none when there is no such file.
///
/// # Errors
/// [`FileError`] when it is there and cannot be read.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::at("read", path)(error)),
    }
}

/// Removes the file, if it is there, for good.
///
/// # Errors
/// [`FileError`] with the file and what the system says.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    let gone = match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_folder(path.parent().unwrap_or_else(|| Path::new("."))),
    };
    gone.map_err(FileError::at("remove", path))
}

/// Makes the folder, with those above it, for the owner alone (0700); one that is there stays as it is.
///
/// # Errors
/// [`FileError`] with the folder and what the system says.
pub(crate) fn make_folder(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(FileError::at("make the folder", path))
}

/// Makes renames within the folder durable.
///
/// # Errors
/// What the system says.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::testing::{SmallDisk, small_disk};

    #[test]
    fn a_file_is_replaced_whole_and_secrets_are_the_owners() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert_eq!(read(&path).unwrap(), None);
        fs::write(folder.path().join("key.new"), "left over").unwrap();
        write(&path, b"one", Access::Secret).unwrap();
        write(&path, b"two", Access::Secret).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn failures_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing/key");
        assert!(write(&path, b"x", Access::Public).unwrap_err().to_string().contains("missing/key"));
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(make_folder(&folder.path().join("file/below")).unwrap_err().to_string().contains("file/below"));
    }

    #[test]
    fn a_full_disk_leaves_the_old_content_and_no_half_file() {
        const TEST: &str = "durable::tests::a_full_disk_leaves_the_old_content_and_no_half_file";
        let SmallDisk::Seen { disk, .. } = small_disk(TEST, 1) else { return };
        for name in ["ca.key", "director.key", "admin.token", "endpoints.json"] {
            let path = disk.join(name);
            write(&path, b"old", Access::Secret).unwrap();
            let error = write(&path, &vec![7; 2_000_000], Access::Secret).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()) && is_full(error.cause()), "{error:?}");
            assert_eq!(read(&path).unwrap().unwrap(), b"old");
            assert!(!disk.join(format!("{name}.new")).exists());
        }
    }
}
