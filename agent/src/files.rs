//! Small files that must never be half written, and the lock that keeps a second agent out.
//!
//! A file is written beside its place, made durable, moved there, and the folder made durable: after a power cut it
//! is the old one or the new one. What the files say is their owners' matter.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Only the agent's own user may read or write.
pub(crate) const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_FOLDER: u32 = 0o700;

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file is larger than anything it could rightly hold.
    #[error("{path} is larger than {max_bytes} bytes: it is damaged")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound, in bytes.
        max_bytes: u64,
    },
    /// Another agent uses the folder.
    #[error("another agent runs on {path}: stop it, or give this one a data-dir of its own")]
    Locked {
        /// The data folder.
        path: PathBuf,
    },
}

impl FileError {
    /// What makes a system's error one of ours.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// Makes the folder `path` and those above it; nobody else may look into it.
pub(crate) fn make_folder(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_FOLDER)
        .create(path)
        .map_err(FileError::io("make the folder", path))
}

/// Opens a file for writing that must not be a link.
pub(crate) fn open_for_writing(path: &Path, create_new: bool) -> Result<File, FileError> {
    OpenOptions::new()
        .write(true)
        .create_new(create_new)
        .mode(PRIVATE_FILE)
        .custom_flags(no_follow())
        .open(path)
        .map_err(FileError::io("open for writing", path))
}

/// Opens a file for reading that must not be a link; `None` when it is not there.
pub(crate) fn open_for_reading(path: &Path) -> Result<Option<File>, FileError> {
    match OpenOptions::new().read(true).custom_flags(no_follow()).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::io("open", path)(error)),
    }
}

fn no_follow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default()
}

/// Makes the entries of a folder durable.
pub(crate) fn sync_folder(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(FileError::io("make durable", path))
}

/// As [`write_durably`]; what was there before stays at [`one_before`], where the file system has such links.
pub(crate) fn write_durably_keeping_one(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let temporary = write_beside(path, bytes)?;
    let before = one_before(path);
    // A second name for the old bytes costs no writing of them. Without one there is just nothing to fall back to.
    if remove(&before).is_ok() {
        let _ = fs::hard_link(path, &before);
        passing!(BeforeKept);
    }
    put_into_place(&temporary, path)
}

/// Where [`write_durably_keeping_one`] keeps what was at `path`.
pub(crate) fn one_before(path: &Path) -> PathBuf {
    beside(path, "before")
}

/// Puts `bytes` at `path`, durably and at once or not at all.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    put_into_place(&write_beside(path, bytes)?, path)
}

/// Writes `bytes` durably to a file beside `path`; gives that file.
fn write_beside(path: &Path, bytes: &[u8]) -> Result<PathBuf, FileError> {
    let temporary = beside(path, "new");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(PRIVATE_FILE)
        .custom_flags(no_follow())
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            passing!(FileWritten);
            file.sync_all()
        });
    if let Err(error) = written {
        // What was begun would take room that is missing already.
        let _ = fs::remove_file(&temporary);
        return Err(FileError::io("write", &temporary)(error));
    }
    passing!(FileSynced);
    Ok(temporary)
}

fn put_into_place(temporary: &Path, path: &Path) -> Result<(), FileError> {
    fs::rename(temporary, path).map_err(FileError::io("put into place", path))?;
    passing!(FileRenamed);
    path.parent().map_or(Ok(()), sync_folder)
}

/// Reads `path`, of which no more than `max_bytes` and one are looked at; `None` when it is not there. For files that do not
/// stop anything when they are damaged: one that is cut off here does not parse either.
pub(crate) fn read_start(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
    let Some(file) = open_for_reading(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(FileError::io("read", path))?;
    Ok(Some(bytes))
}

/// Reads `path`, which must not have more than `max_bytes`; `None` when it is not there.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
    let Some(bytes) = read_start(path, max_bytes)? else { return Ok(None) };
    if bytes.len() as u64 > max_bytes {
        return Err(FileError::TooLarge { path: path.to_owned(), max_bytes });
    }
    Ok(Some(bytes))
}

/// Removes a file or folder with all in it; fine when it is not there.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::io("remove", path)(error)),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// Removes what [`write_durably`] put at `path`, and what it had begun to put there when the process died.
pub(crate) fn remove_written(path: &Path) -> Result<(), FileError> {
    remove(&beside(path, "new"))?;
    remove(path)
}

/// Moves something damaged out of the way, for people to look at, and says where to. One set aside before is dropped, so
/// that damage cannot fill the disk.
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf, FileError> {
    let aside = place_aside(path);
    remove(&aside)?;
    fs::rename(path, &aside).map_err(FileError::io("set aside", path))?;
    path.parent().map_or(Ok(()), sync_folder)?;
    Ok(aside)
}

/// Where [`set_aside`] puts what is at `path`.
pub(crate) fn place_aside(path: &Path) -> PathBuf {
    beside(path, "damaged")
}

/// Keeps what is at `path` for people to look at, as [`set_aside`] does, while it stays in its place until something is written
/// there. Where the file system has no such links, it is set aside.
pub(crate) fn keep_aside(path: &Path) -> Result<(), FileError> {
    let aside = place_aside(path);
    remove(&aside)?;
    fs::hard_link(path, &aside).or_else(|_| set_aside(path).map(drop))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

/// Takes the data folder for this process alone, for as long as the result is kept.
pub(crate) fn lock(data_dir: &Path) -> Result<File, FileError> {
    let path = data_dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE_FILE)
        .open(&path)
        .or_else(|error| {
            // What was installed before the disk became read-only is served on, and a lock needs nothing written.
            if error.kind() == io::ErrorKind::ReadOnlyFilesystem { File::open(&path) } else { Err(error) }
        })
        .map_err(FileError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(FileError::Locked { path: data_dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(FileError::io("lock", &path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::tiny_disk::TinyDisk;

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pointer.json");
        assert!(read_bounded(&path, 10).unwrap().is_none());
        write_durably(&path, b"one").unwrap();
        write_durably(&path, b"two").unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap().unwrap(), b"two");
        assert!(matches!(read_bounded(&path, 2), Err(FileError::TooLarge { max_bytes: 2, .. })));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, PRIVATE_FILE);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_leaves_the_file_before_and_nothing_else() {
        TinyDisk::run("files::tests::a_full_disk_leaves_the_file_before_and_nothing_else", 1, |disk| {
            let path = disk.dir().join("pointer.json");
            write_durably(&path, b"one").unwrap();
            disk.fill();
            let text = crate::causes::with_source(&write_durably(&path, &[b'x'; 9_000]).unwrap_err());
            assert!(text.contains("pointer.json") && text.contains("No space left"), "{text}");
            assert_eq!(read_bounded(&path, 10).unwrap().unwrap(), b"one");
            assert!(!beside(&path, "new").exists());
        });
    }

    #[test]
    fn what_is_kept_aside_stays_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        for content in ["first", "second"] {
            fs::write(&path, content).unwrap();
            keep_aside(&path).unwrap();
            write_durably(&path, b"new").unwrap();
            assert_eq!(fs::read_to_string(beside(&path, "damaged")).unwrap(), content);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        fs::write(&target, "secret").unwrap();
        let link = folder.path().join("link");
        symlink(&target, &link).unwrap();
        assert!(open_for_reading(&link).is_err());
        assert!(open_for_writing(&link, false).is_err());
        write_durably(&link, b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"secret");
    }

    #[test]
    fn a_second_lock_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        let text = lock(folder.path()).unwrap_err().to_string();
        assert!(text.contains("another agent runs on"), "{text}");
        drop(first);
        lock(folder.path()).unwrap();
    }

    #[test]
    fn a_disk_that_has_become_read_only_can_be_locked() {
        TinyDisk::run("files::tests::a_disk_that_has_become_read_only_can_be_locked", 1, |disk| {
            drop(lock(disk.dir()).unwrap());
            let mut remount = std::process::Command::new("mount");
            assert!(remount.args(["-o", "remount,ro"]).arg(disk.dir()).status().unwrap().success());
            assert!(write_durably(&disk.dir().join("pointer.json"), b"one").is_err());
            let _first = lock(disk.dir()).unwrap();
            assert!(matches!(lock(disk.dir()), Err(FileError::Locked { .. })));
        });
    }

    #[test]
    fn what_is_set_aside_does_not_pile_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        for _ in 0..3 {
            fs::create_dir(&path).unwrap();
            fs::write(path.join("db"), "x").unwrap();
            assert_eq!(set_aside(&path).unwrap(), folder.path().join("store.damaged"));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
