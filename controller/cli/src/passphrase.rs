//! Passphrases of encrypted keys: from a file, or asked for on the terminal. Never from the command line, which every
//! process on the machine can read.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use clap::builder::OsStringValueParser;
use clap::{Args, ValueHint};
use zeroize::Zeroizing;

use crate::disk::{self, Exposure};
use crate::failure::Failure;
use crate::output;

const MAX_FILE_BYTES: usize = 4 * 1024;
/// Shorter ones are guessed whatever is done to slow the guessing down.
const MIN_NEW_CHARS: usize = 8;

/// A passphrase. It is shown nowhere and wiped when it is dropped.
pub(crate) struct Passphrase(Zeroizing<String>);

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

impl Passphrase {
    /// What the key is derived from.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    #[cfg(test)]
    pub(crate) fn of(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }
}

/// Where the passphrases of encrypted keys come from.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Unlock {
    /// File whose first line is the passphrase of the encrypted keys; it is asked for on the terminal otherwise.
    // Not a path to clap, which would refuse an empty variable; here that is an unset one.
    #[arg(long, env = "MUSTER_KEY_PASSPHRASE_FILE", value_name = "FILE",
        value_parser = OsStringValueParser::new(), value_hint = ValueHint::FilePath)]
    key_passphrase_file: Option<OsString>,
}

impl Unlock {
    /// With the passphrase in `file`.
    #[cfg(test)]
    pub(crate) fn with_file(file: &Path) -> Self {
        Self { key_passphrase_file: Some(file.into()) }
    }

    /// The file that holds the passphrase, if one does.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        self.key_passphrase_file.clone().filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// The passphrase of the key in `key`.
    ///
    /// # Errors
    /// [`Failure`] when its file cannot be used, or there is no terminal to ask on.
    pub(crate) fn existing(&self, key: &Path) -> Result<Passphrase, Failure> {
        match self.file() {
            Some(file) => read(&file),
            None => ask(&format!("Passphrase of {}: ", key.display()), key),
        }
    }

    /// The passphrase that shall protect the key in `key`.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be had, is too short, or was not typed the same twice.
    pub(crate) fn new_one(&self, key: &Path) -> Result<Passphrase, Failure> {
        new_from(self.file().as_deref(), key)
    }
}

/// The passphrase that shall protect the key in `key`: from `file`, or asked for twice.
///
/// # Errors
/// [`Failure`] when it cannot be had, is too short, or was not typed the same twice.
pub(crate) fn new_from(file: Option<&Path>, key: &Path) -> Result<Passphrase, Failure> {
    let passphrase = match file {
        Some(file) => read(file)?,
        None => {
            let passphrase = ask(&format!("New passphrase for {}: ", key.display()), key)?;
            if passphrase.0 != ask("The same again: ", key)?.0 {
                return Err(Failure::input("the two passphrases differ; nothing was changed"));
            }
            passphrase
        }
    };
    if passphrase.0.chars().count() < MIN_NEW_CHARS {
        return Err(Failure::input(format!(
            "the passphrase has fewer than {MIN_NEW_CHARS} characters: take several words"
        )));
    }
    Ok(passphrase)
}

fn read(file: &Path) -> Result<Passphrase, Failure> {
    let secret = disk::read_secret(file, MAX_FILE_BYTES)?;
    refuse_readable(file, "a passphrase", secret.exposure)?;
    let line = secret.content.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(Failure::input(format!("{}: its first line, which is the passphrase, is empty", file.display())));
    }
    Ok(Passphrase(Zeroizing::new(line.to_owned())))
}

/// Refuses a secret in the clear that others can read. A file of another owner's is only warned of: whoever mounted it for us decided
/// who reads it, and we could not change that.
///
/// # Errors
/// [`Failure`] with what to do.
pub(crate) fn refuse_readable(path: &Path, what: &str, exposure: Exposure) -> Result<(), Failure> {
    let Exposure { readable, writable, own } = exposure;
    if !(readable || writable) {
        return Ok(());
    }
    let path = path.display();
    if own {
        return Err(Failure::input(format!(
            "others can read or change {path}, which holds {what} in the clear: run chmod 600 on it; if they could all \
             along, take another one"
        )));
    }
    output::warn(&format!("others can read or change {path}, which holds {what} in the clear"));
    Ok(())
}

fn ask(prompt: &str, key: &Path) -> Result<Passphrase, Failure> {
    match rpassword::prompt_password(prompt) {
        Ok(text) => Ok(Passphrase(Zeroizing::new(text))),
        Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::UnexpectedEof) => {
            Err(Failure::input("no passphrase was given; nothing was changed"))
        }
        Err(error) => Err(Failure::input(format!(
            "there is no terminal to ask for the passphrase of {} on: give --key-passphrase-file, or set \
             MUSTER_KEY_PASSPHRASE_FILE",
            key.display()
        ))
        .because(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        disk::write(&path, content, disk::Privacy::Secret, disk::Existing::Keep).unwrap();
        (folder, path)
    }

    #[test]
    fn the_first_line_is_the_passphrase() {
        for (content, passphrase) in [
            (&b"correct horse"[..], "correct horse"),
            (b"correct horse\n", "correct horse"),
            (b"correct horse\r\nmore\n", "correct horse"),
            (b" correct h\xc3\xb6rse \n", " correct hörse "),
        ] {
            let (_folder, path) = file(content);
            assert_eq!(read(&path).unwrap().as_bytes(), passphrase.as_bytes());
        }
        for (content, part) in [
            (&b""[..], "empty"),
            (b"\ncorrect horse", "empty"),
            (b"correct horse\xff", "line 1: this is not UTF-8"),
            (&[b'x'; MAX_FILE_BYTES + 1], "longer than"),
        ] {
            let (_folder, path) = file(content);
            let failure = read(&path).unwrap_err();
            assert!(failure.exit_code() == 2 && failure.chain().contains(part), "{failure}");
            assert!(!failure.chain().contains("horse"), "{failure}");
        }
    }

    #[test]
    fn a_new_one_has_some_length() {
        let (_folder, path) = file("sieben7".as_bytes());
        assert!(new_from(Some(&path), Path::new("k")).unwrap_err().to_string().contains("fewer than 8"));
        let (_folder, path) = file("öööööööö".as_bytes());
        assert!(new_from(Some(&path), Path::new("k")).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_folder, path) = file(b"correct horse\n");
        for (mode, taken) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            match read(&path) {
                Ok(_) => assert!(taken, "{mode:o}"),
                Err(failure) => assert!(!taken && failure.to_string().contains("chmod 600"), "{mode:o}: {failure}"),
            }
        }
        let foreign = Exposure { readable: true, writable: false, own: false };
        assert!(refuse_readable(&path, "a passphrase", foreign).is_ok());
    }

    #[test]
    fn nothing_shows_it() {
        let passphrase = Passphrase::of("correct horse");
        assert!(!format!("{passphrase:?}").contains("horse"));
        let (_folder, path) = file(b"correct horse\n");
        assert!(!format!("{:?}", disk::read_secret(&path, 100).unwrap()).contains("horse"));
    }
}
