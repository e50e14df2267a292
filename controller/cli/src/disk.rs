//! Files: read with a bound, written whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

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

/// A file with a secret in it, and who else may see or change it.
#[derive(Debug)]
pub(crate) struct Secret {
    /// The content; wiped when it is dropped.
    pub(crate) content: SecretText,
    /// What others may do with the file.
    pub(crate) exposure: Exposure,
}

/// Text that is shown nowhere and wiped when it is dropped.
pub(crate) struct SecretText(Zeroizing<String>);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText(..)")
    }
}

impl std::ops::Deref for SecretText {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// What users other than its owner may do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exposure {
    /// They may read it.
    pub(crate) readable: bool,
    /// They may change it.
    pub(crate) writable: bool,
    /// Whether the owner is who runs this, and so could put that right.
    pub(crate) own: bool,
}

#[cfg(unix)]
fn exposure(metadata: &fs::Metadata) -> Exposure {
    use std::os::unix::fs::MetadataExt as _;
    let mode = metadata.mode();
    // What is no file, as the pipe of a shell's <(...), has no rights that mean anything.
    Exposure {
        readable: metadata.is_file() && mode & 0o044 != 0,
        writable: metadata.is_file() && mode & 0o022 != 0,
        own: metadata.uid() == rustix::process::geteuid().as_raw(),
    }
}

#[cfg(not(unix))]
fn exposure(_: &fs::Metadata) -> Exposure {
    Exposure { readable: false, writable: false, own: true }
}

/// Reads a text file of at most `max_bytes` that holds a secret, leaving no copy of it in memory.
///
/// # Errors
/// [`Failure`] when it cannot be read, is longer, or is not UTF-8. None of its content is in there.
pub(crate) fn read_secret(path: &Path, max_bytes: usize) -> Result<Secret, Failure> {
    let mut file = File::open(path).map_err(|error| cannot("open", path, error))?;
    let exposure = exposure(&file.metadata().map_err(|error| cannot("read", path, error))?);
    // All the room at once: a buffer that grows leaves its content behind where it was.
    let mut content = Zeroizing::new(vec![0; max_bytes.saturating_add(1)]);
    let mut length = 0;
    while length < content.len() {
        match file.read(&mut content[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(cannot("read", path, error)),
        }
    }
    if length > max_bytes {
        return Err(Failure::input(format!("{} is longer than {max_bytes} bytes", path.display())));
    }
    let text = std::str::from_utf8(&content[..length]).map_err(|error| {
        let line = content[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        Failure::input(format!("{}, line {line}: this is not UTF-8 text", path.display()))
    })?;
    Ok(Secret { content: SecretText(Zeroizing::new(text.to_owned())), exposure })
}

/// Reads TOML that holds a secret. The fault names its line and does not repeat it, as the parser's own words would.
pub(crate) fn parse_secret_toml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        format!("line {}: {}", before.matches('\n').count() + 1, without_what_was_found(error.message()))
    })
}

/// ``invalid type: integer `7`, expected a string`` without the `7`: it may be a part of the secret. The name of a field stays, unless it has digits.
fn without_what_was_found(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    if found.starts_with("unknown field") && !found.contains(|c: char| c.is_ascii_digit()) {
        return message.to_owned();
    }
    let kind = found.split(['`', '"']).next().unwrap_or_default().trim_end();
    format!("{kind}, expected {expected}")
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

/// A file whose content is on the disk and not yet in its place. Dropped, it leaves everything as it was.
#[derive(Debug)]
#[must_use]
pub(crate) struct Pending {
    written: PathBuf,
    place: PathBuf,
    committed: bool,
}

impl Pending {
    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`Failure`] when that cannot be done; what was there stays.
    pub(crate) fn commit(mut self) -> Result<(), Failure> {
        if self.written != self.place {
            fs::rename(&self.written, &self.place).map_err(|error| cannot("write", &self.place, error))?;
        }
        self.committed = true;
        // The content is durable; its name is so from here on, where the file system can promise that at all.
        let _ = File::open(folder_of(&self.place)).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.committed {
            // Ours since create_new; half of it is worth nothing.
            let _ = fs::remove_file(&self.written);
        }
    }
}

/// The name under which the successor of `path` is written, in the same folder so that a rename is enough.
fn beside(path: &Path) -> Result<PathBuf, Failure> {
    let name = path.file_name().ok_or_else(|| Failure::input(format!("{} is not a file's name", path.display())))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.part", std::process::id()));
    Ok(folder_of(path).join(hidden))
}

/// Does all of writing `content` as the file `path` that can fail for want of space or rights, and leaves the rest to
/// [`Pending::commit`]: several files are written together by preparing all of them first.
///
/// # Errors
/// [`Failure`] when it cannot be written, or is there and to be kept.
pub(crate) fn prepare(path: &Path, content: &[u8], privacy: Privacy, existing: Existing) -> Result<Pending, Failure> {
    let written = match existing {
        Existing::Keep => path.to_owned(),
        Existing::Replace => {
            // A rename would put the file where a device or a pipe was.
            if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
                return Err(Failure::input(format!(
                    "{} is there and not a file, so it is not replaced: give another name",
                    path.display()
                )));
            }
            let hidden = beside(path)?;
            let _ = fs::remove_file(&hidden);
            hidden
        }
    };
    let mut file = create_new(&written, privacy).map_err(|error| {
        if existing == Existing::Keep && error.kind() == io::ErrorKind::AlreadyExists {
            let hint = "is there already: give another name, or --force to replace it";
            Failure::input(format!("{} {hint}", path.display()))
        } else {
            cannot("write", path, error)
        }
    })?;
    let pending = Pending { written, place: path.to_owned(), committed: false };
    file.write_all(content).and_then(|()| file.sync_all()).map_err(|error| cannot("write", path, error))?;
    Ok(pending)
}

/// Writes `content` as the file `path`. One that was there already is as before or complete whenever it is looked at.
///
/// # Errors
/// [`Failure`] when it cannot be written, or is there and to be kept.
pub(crate) fn write(path: &Path, content: &[u8], privacy: Privacy, existing: Existing) -> Result<(), Failure> {
    prepare(path, content, privacy, existing)?.commit()
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

    #[test]
    fn what_is_prepared_and_not_committed_never_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        drop(prepare(&path, b"one", Privacy::Public, Existing::Keep).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        write(&path, b"one", Privacy::Public, Existing::Keep).unwrap();
        let pending = prepare(&path, b"two", Privacy::Public, Existing::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        drop(pending);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_files_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(folder.path(), b"x", Privacy::Public, Existing::Replace).unwrap_err();
        assert!(error.to_string().contains("not a file"), "{error}");
        #[cfg(unix)]
        {
            let path = folder.path().join("socket");
            let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
            assert_eq!(write(&path, b"x", Privacy::Public, Existing::Replace).unwrap_err().exit_code(), 2);
            assert!(!fs::symlink_metadata(&path).unwrap().is_file());
        }
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
