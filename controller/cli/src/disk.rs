//! Files: read with a bound, written whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The least private a new file may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privacy {
    /// Anybody may read it.
    Public,
    /// Its owner alone may read it.
    Secret,
}

/// Whether a file that is there already may be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It stays, and writing fails.
    Keep,
    /// It is replaced.
    Replace,
}

impl Existing {
    /// What `--force` means.
    pub(crate) fn from_force(force: bool) -> Self {
        if force { Self::Replace } else { Self::Keep }
    }
}

fn cannot(what: &str, path: &Path, error: io::Error) -> Failure {
    Failure::input(format!("cannot {what} {}", path.display())).because(error)
}

/// Reads a file of at most `max_bytes`.
///
/// # Errors
/// [`Failure`] when it cannot be read or is longer.
pub(crate) fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>, Failure> {
    let file = File::open(path).map_err(|error| cannot("open", path, error))?;
    let mut content = Vec::new();
    // One byte more, so that a file that is too long is told from one that just fits.
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut content).map_err(|error| cannot("read", path, error))?;
    if content.len() as u64 > max_bytes {
        return Err(Failure::input(format!("{} is longer than {max_bytes} bytes", path.display())));
    }
    Ok(content)
}

/// Reads a text file of at most `max_bytes`.
///
/// # Errors
/// [`Failure`] when it cannot be read, is longer, or is not UTF-8.
pub(crate) fn read_text(path: &Path, max_bytes: u64) -> Result<String, Failure> {
    String::from_utf8(read(path, max_bytes)?).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        Failure::input(format!("{}, line {line}: this is not UTF-8 text", path.display()))
    })
}

fn create_new(path: &Path, privacy: Privacy) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(match privacy {
            Privacy::Public => 0o666,
            Privacy::Secret => 0o600,
        });
    }
    options.open(path)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Writes `content` as the file `path`, which is either as before or complete whenever it is looked at.
///
/// # Errors
/// [`Failure`] when it cannot be written, or is there and to be kept.
pub(crate) fn write(path: &Path, content: &[u8], privacy: Privacy, existing: Existing) -> Result<(), Failure> {
    let name = path.file_name().ok_or_else(|| Failure::input(format!("{} is not a file's name", path.display())))?;
    match existing {
        Existing::Keep => {
            let mut file = create_new(path, privacy).map_err(|error| {
                if error.kind() == io::ErrorKind::AlreadyExists {
                    let hint = "is there already: give another name, or --force to replace it";
                    Failure::input(format!("{} {hint}", path.display()))
                } else {
                    cannot("write", path, error)
                }
            })?;
            file.write_all(content).and_then(|()| file.sync_all()).map_err(|error| {
                // Ours since create_new; half of it is worth nothing.
                let _ = fs::remove_file(path);
                cannot("write", path, error)
            })
        }
        Existing::Replace => {
            let mut temporary = OsString::from(".");
            temporary.push(name);
            temporary.push(format!(".{}.part", std::process::id()));
            let temporary: PathBuf = folder_of(path).join(temporary);
            let _ = fs::remove_file(&temporary);
            create_new(&temporary, privacy)
                .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
                .and_then(|()| fs::rename(&temporary, path))
                .map_err(|error| {
                    let _ = fs::remove_file(&temporary);
                    cannot("write", path, error)
                })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_kept_unless_replaced_and_read_with_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write(&path, b"one", Privacy::Secret, Existing::Keep).unwrap();
        let error = write(&path, b"two", Privacy::Secret, Existing::Keep).unwrap_err();
        assert!(error.to_string().contains("--force"), "{error}");
        assert_eq!(read(&path, 3).unwrap(), b"one");
        assert!(read(&path, 2).unwrap_err().to_string().contains("longer than 2 bytes"));
        write(&path, b"two", Privacy::Secret, Existing::Replace).unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
        assert_eq!(read(&folder.path().join("b"), 3).unwrap_err().exit_code(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn secrets_are_the_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        for existing in [Existing::Keep, Existing::Replace] {
            let path = folder.path().join("secret");
            write(&path, b"x", Privacy::Secret, existing).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn text_that_is_none_names_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        fs::write(&path, b"a\nb\n\xff").unwrap();
        assert!(read_text(&path, 100).unwrap_err().to_string().contains("line 3"));
    }
}
