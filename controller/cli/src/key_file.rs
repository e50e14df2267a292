//! Signing keys on disk.
//!
//! A private key is a small TOML file in the clear, PKCS#8 in PEM with a passphrase, or a TOML file that names a command
//! which signs; the public half, beside it with `.pub` added to the name, is one line of 64 hexadecimal digits.
//! PKCS#8 in the clear and public keys in PEM are read as well.

mod form;
mod pkcs8_form;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use muster_shared::trust::{PublicKey, SigningKey};
use zeroize::Zeroizing;

pub(crate) use self::form::CommandKey;
use self::form::Form;
use crate::disk::{self, Existing, Exposure, Privacy};
use crate::failure::Failure;
use crate::output;
use crate::passphrase::{self, Passphrase, Unlock};
use crate::signer::{CommandSigner, Signer};

const MAX_KEY_BYTES: usize = 16 * 1024;

/// What stands between a private key's file and whoever has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protection {
    /// Nothing but the file's rights.
    None,
    /// A passphrase.
    Passphrase,
}

/// Where the public half of the key in `private` is.
pub(crate) fn public_path(private: &Path) -> PathBuf {
    let mut name: OsString = private.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// Makes a key from the system's random source and writes both halves, the private one with `passphrase` if there is one.
///
/// # Errors
/// [`Failure`] when a file is there already and to be kept, or cannot be written.
pub(crate) fn generate(
    private: &Path,
    passphrase: Option<&Passphrase>,
    existing: Existing,
) -> Result<PublicKey, Failure> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice())
        .map_err(|error| Failure::unmet("the system gives no random numbers").because(error))?;
    let key = SigningKey::from_seed(&seed);
    write_both(private, &private_text(&key, passphrase)?, &key.public(), existing)?;
    Ok(key.public())
}

/// Writes the file of a key that a command signs with, and its public half.
///
/// # Errors
/// [`Failure`] when a file is there already and to be kept, or cannot be written.
pub(crate) fn write_command(private: &Path, key: &CommandKey, existing: Existing) -> Result<(), Failure> {
    let text = form::command_text(key).map_err(no_text)?;
    write_both(private, &text, &key.public_key, existing)
}

/// Refuses to make a key where one is, before anything is asked of anybody.
///
/// # Errors
/// [`Failure`] when a file is there already and to be kept.
pub(crate) fn check_free(private: &Path, existing: Existing) -> Result<(), Failure> {
    let taken = [private.to_owned(), public_path(private)].into_iter().find(|path| path.exists());
    match taken {
        Some(path) if existing == Existing::Keep => Err(Failure::input(format!(
            "{} is there already: give another name, or --force to replace the key",
            path.display()
        ))),
        Some(_) | None => Ok(()),
    }
}

fn write_both(private: &Path, text: &str, public_key: &PublicKey, existing: Existing) -> Result<(), Failure> {
    check_free(private, existing)?;
    let public = public_path(private);
    let private = disk::prepare(private, text.as_bytes(), Privacy::Secret, existing)?;
    let public = disk::prepare(&public, public_text(public_key).as_bytes(), Privacy::Public, existing)?;
    // The private half last: as long as the old one is there nothing is lost, for a public half can be had from it.
    public.commit()?;
    private.commit()
}

fn no_text(why: String) -> Failure {
    Failure::unmet(format!("the key has no text form: {why}"))
}

fn private_text(key: &SigningKey, passphrase: Option<&Passphrase>) -> Result<Zeroizing<String>, Failure> {
    match passphrase {
        Some(passphrase) => form::locked_text(key, passphrase),
        None => form::plain_text(key),
    }
    .map_err(no_text)
}

fn public_text(key: &PublicKey) -> String {
    format!("{}\n", String::from(key.clone()))
}

/// Writes a public key.
///
/// # Errors
/// [`Failure`] when the file is there already and to be kept, or cannot be written.
pub(crate) fn write_public(path: &Path, key: &PublicKey, existing: Existing) -> Result<(), Failure> {
    disk::write(path, public_text(key).as_bytes(), Privacy::Public, existing)
}

/// Protects the private key in `path` otherwise. The file is replaced once the new one is durable and opens.
///
/// # Errors
/// [`Failure`] when that cannot be done; the file is as before.
pub(crate) fn rewrite(path: &Path, key: &SigningKey, passphrase: Option<&Passphrase>) -> Result<(), Failure> {
    let text = private_text(key, passphrase)?;
    let opened = match (form::parse(&text), passphrase) {
        (Ok(Form::Locked(locked)), Some(passphrase)) => locked.open(passphrase).ok(),
        (Ok(Form::Plain(key)), None) => Some(key),
        (_, _) => None,
    };
    if opened.is_none_or(|opened| opened.public() != key.public()) {
        return Err(Failure::unmet(format!("{} was not changed: the new file would not open", path.display())));
    }
    // The file that a link leads to, or the key would stay as it was behind the link.
    let place = fs::canonicalize(path)
        .map_err(|error| Failure::input(format!("cannot write {}", path.display())).because(error))?;
    disk::write(&place, text.as_bytes(), Privacy::Secret, Existing::Replace)
}

fn refuse(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::input(format!("{} is not a Muster signing key: {why}", path.display()))
}

fn read(path: &Path) -> Result<Form, Failure> {
    let secret = disk::read_secret(path, MAX_KEY_BYTES)?;
    let form = form::parse(&secret.content).map_err(|why| refuse(path, why))?;
    check_exposure(path, &form, secret.exposure)?;
    Ok(form)
}

fn check_exposure(path: &Path, form: &Form, exposure: Exposure) -> Result<(), Failure> {
    match form {
        Form::Public(_) => Ok(()),
        Form::Plain(_) => passphrase::refuse_readable(path, "a private key", exposure),
        Form::Locked(_) => {
            if exposure.readable || exposure.writable {
                output::warn(&format!(
                    "others can read or change {}: only its passphrase protects the key; run chmod 600 on it",
                    path.display()
                ));
            }
            Ok(())
        }
        // Whoever can write it has us run what they like.
        Form::Command(_) if exposure.writable => Err(Failure::input(format!(
            "others can change {}, which names a command to run: run chmod go-w on it",
            path.display()
        ))),
        Form::Command(_) => Ok(()),
    }
}

fn open(path: &Path, locked: &form::Locked, unlock: &Unlock) -> Result<SigningKey, Failure> {
    let passphrase = unlock.existing(path)?;
    locked.open(&passphrase).map_err(|why| Failure::input(format!("cannot open {}: {why}", path.display())))
}

/// Reads what signs in the name of a key.
///
/// # Errors
/// [`Failure`] when the file is none, or damaged, or its passphrase wrong.
pub(crate) fn read_signer(path: &Path, unlock: &Unlock) -> Result<Signer, Failure> {
    match read(path)? {
        Form::Command(key) => Ok(Signer::Command(CommandSigner::new(path, key))),
        Form::Plain(key) => Ok(Signer::Key(key)),
        Form::Locked(locked) => open(path, &locked, unlock).map(Signer::Key),
        Form::Public(_) => Err(public_half(path)),
    }
}

/// Reads a private key and how it is protected, to protect it otherwise.
///
/// # Errors
/// [`Failure`] when the file is none, or damaged, or its passphrase wrong.
pub(crate) fn read_private(path: &Path, unlock: &Unlock) -> Result<(SigningKey, Protection), Failure> {
    match read(path)? {
        Form::Plain(key) => Ok((key, Protection::None)),
        Form::Locked(locked) => Ok((open(path, &locked, unlock)?, Protection::Passphrase)),
        Form::Command(_) => Err(refuse(path, "it names a command, and the key is where that gets it from")),
        Form::Public(_) => Err(public_half(path)),
    }
}

/// How the private key in `path` is protected.
///
/// # Errors
/// [`Failure`] when the file is no private key.
pub(crate) fn protection(path: &Path) -> Result<Protection, Failure> {
    match read(path)? {
        Form::Locked(_) => Ok(Protection::Passphrase),
        Form::Plain(_) | Form::Command(_) => Ok(Protection::None),
        Form::Public(_) => Err(public_half(path)),
    }
}

fn public_half(path: &Path) -> Failure {
    refuse(path, "it is the public half; give the private file, whose name has no .pub")
}

/// Reads a public key from a `.pub` file, or the public half of a private one.
///
/// # Errors
/// [`Failure`] when the file is neither.
pub(crate) fn read_public(path: &Path, unlock: &Unlock) -> Result<PublicKey, Failure> {
    let secret = disk::read_secret(path, MAX_KEY_BYTES)?;
    match form::parse(&secret.content) {
        Ok(Form::Public(key)) => Ok(key),
        Ok(Form::Plain(key)) => Ok(key.public()),
        Ok(Form::Command(key)) => Ok(key.public_key),
        Ok(Form::Locked(locked)) => match locked.public_key() {
            Some(key) => Ok(key.clone()),
            None => Ok(open(path, &locked, unlock)?.public()),
        },
        Err(why) => Err(Failure::input(format!(
            "{} is not a public key: {why}; one is 64 hexadecimal digits, or PEM",
            path.display()
        ))),
    }
}

/// Reads a public key given as a file or as its digits.
///
/// # Errors
/// [`Failure`] when it is neither.
pub(crate) fn read_public_or_digits(text: &str, unlock: &Unlock) -> Result<PublicKey, Failure> {
    let digits = text.trim();
    if digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return PublicKey::try_from(digits.to_owned())
            .map_err(|error| Failure::input(format!("{digits} is not a public key")).because(error));
    }
    read_public(Path::new(text), unlock)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::pkcs8_form::tests::{cheap, passphrase};
    use super::*;
    use crate::damage;

    /// A key and its file.
    fn key() -> (SigningKey, String) {
        let key = SigningKey::from_seed(&Zeroizing::new([7; 32]));
        let seed = hex::encode(key.seed().as_slice());
        let public = String::from(key.public());
        let text = format!("# Keep it.\nalgorithm = \"ed25519\"\npublic-key = \"{public}\"\nseed = \"{seed}\"\n");
        assert!(matches!(form::parse(&text), Ok(Form::Plain(_))));
        (key, text)
    }

    /// `text` must be the file of [`key`] or refused, without showing the seed.
    fn check_private(text: &str) -> Result<(), TestCaseError> {
        match form::parse(text) {
            Ok(Form::Plain(read)) => prop_assert_eq!(read.public(), key().0.public()),
            Ok(other) => prop_assert!(!text.contains("seed"), "{:?}", other),
            Err(why) => prop_assert!(!why.contains("07070707"), "{}", why),
        }
        Ok(())
    }

    #[test]
    fn a_key_survives_its_files() {
        let (folder, unlock) = (tempfile::tempdir().unwrap(), Unlock::default());
        let path = folder.path().join("release.key");
        let public = generate(&path, None, Existing::Keep).unwrap();
        assert_eq!(read_signer(&path, &unlock).unwrap().public(), public);
        assert_eq!(read_public(&path, &unlock).unwrap(), public);
        assert_eq!(read_public(&public_path(&path), &unlock).unwrap(), public);
        assert_eq!(read_public_or_digits(&String::from(public.clone()), &unlock).unwrap(), public);
        assert!(read_signer(&public_path(&path), &unlock).unwrap_err().to_string().contains("public half"));
        assert!(generate(&path, None, Existing::Keep).is_err());
        assert_ne!(generate(&path, None, Existing::Replace).unwrap(), public);
    }

    #[test]
    fn damage_is_found_and_the_seed_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        generate(&path, None, Existing::Keep).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let seed = text.split("seed = \"").nth(1).unwrap()[..64].to_owned();
        for damaged in [
            text.replace(&seed, &seed[1..]),
            text.replace(&seed, &format!("{}{}", &seed[1..], if seed.starts_with('0') { '1' } else { '0' })),
            text.replace("ed25519", "rsa"),
            format!("{text}more = 1\n"),
            text.replace("seed =", "seed"),
        ] {
            let error = form::parse(&damaged).unwrap_err();
            assert!(!error.contains(&seed[1..32]), "{error}");
        }
    }

    #[test]
    fn digits_of_a_seed_that_lost_its_quotes_are_not_shown() {
        let (_, text) = key();
        let head = text.split("seed = ").next().unwrap();
        for seed in ["107070707", "[107070707]", "1070.70707", "2026-07-07", "107070707\n107070707 = 1"] {
            let why = form::parse(&format!("{head}seed = {seed}\n")).unwrap_err();
            assert!(why.starts_with("line ") && !why.contains("70707") && !why.contains("07-07"), "{why}");
        }
        let unknown = form::parse(&format!("{text}107070707 = 1\n")).unwrap_err();
        assert_eq!(
            unknown,
            "line 5: unknown field, expected one of `algorithm`, `public-key`, `seed`, `command`, `time-limit-s`"
        );
    }

    #[test]
    fn an_encrypted_key_survives_its_file_and_tells_its_public_half() {
        let folder = tempfile::tempdir().unwrap();
        let (path, passphrase) = (folder.path().join("release.key"), folder.path().join("passphrase"));
        disk::write(&passphrase, b"correct horse\n", Privacy::Secret, Existing::Keep).unwrap();
        let unlock = Unlock::with_file(&passphrase);
        let public = generate(&path, Some(&unlock.new_one(&path).unwrap()), Existing::Keep).unwrap();
        assert_eq!(read_signer(&path, &unlock).unwrap().public(), public);
        assert_eq!(read_public(&path, &Unlock::with_file(Path::new("nowhere"))).unwrap(), public);
        assert_eq!(protection(&path).unwrap(), Protection::Passphrase);
        let (key, protected) = read_private(&path, &unlock).unwrap();
        assert_eq!(protected, Protection::Passphrase);
        rewrite(&path, &key, None).unwrap();
        assert_eq!(protection(&path).unwrap(), Protection::None);
        let form = read(&path).unwrap();
        for shown in [format!("{form:?}"), format!("{key:?}"), format!("{:?}", read_signer(&path, &unlock).unwrap())] {
            assert!(!shown.contains(&hex::encode(key.seed().as_slice())[..16]), "{shown}");
        }
    }

    /// An encrypted key with the public half before it, as [`form::locked_text`] writes it, but quick to open.
    fn locked() -> String {
        let public = String::from(key().0.public());
        format!("# Keep it.\n# public-key = \"{public}\"\n{}", cheap(&key().0))
    }

    #[test]
    fn another_public_half_before_an_encrypted_key_is_found() {
        let other = String::from(SigningKey::from_seed(&Zeroizing::new([8; 32])).public());
        let Ok(Form::Locked(form)) = form::parse(&locked().replace(&String::from(key().0.public()), &other)) else {
            panic!("it is an encrypted key still");
        };
        assert!(form.open(&passphrase()).unwrap_err().contains("does not belong to its public key"));
    }

    #[test]
    fn a_key_is_in_the_file_or_elsewhere() {
        let (key, text) = key();
        let public = String::from(key.public());
        let seed = hex::encode(key.seed().as_slice());
        let head = format!("algorithm = \"ed25519\"\npublic-key = \"{public}\"\n");
        let Ok(Form::Command(command)) =
            form::parse(&format!("{head}command = [\"sign\", \"a b\"]\ntime-limit-s = 5\n"))
        else {
            panic!("it names a command");
        };
        assert_eq!((command.public_key, command.command), (key.public(), vec!["sign".to_owned(), "a b".to_owned()]));
        for (text, part) in [
            (format!("{text}command = [\"sign\"]\n"), "a seed and a command"),
            (head.clone(), "neither a seed nor a command"),
            (format!("{head}command = []\n"), "no program"),
            (format!("{head}command = [\"\"]\n"), "no program"),
            (format!("{head}command = \"sign\"\n"), "line 3"),
            (format!("{head}command = [\"sign\"]\ntime-limit-s = 0\n"), "line 4"),
        ] {
            let why = form::parse(&text).unwrap_err();
            assert!(why.contains(part) && !why.contains(&seed[..16]), "{why}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_encrypted_key_is_the_same_key_or_refused(
            bytes in damage::bytes(locked().into_bytes()),
            text in damage::text(locked()),
        ) {
            let unchanged = format!("# public-key = \"{}\"\n", String::from(key().0.public()));
            for text in [String::from_utf8_lossy(&bytes).into_owned(), text] {
                let Ok(Form::Locked(form)) = form::parse(&text) else { continue };
                match form.open(&passphrase()) {
                    Ok(read) => prop_assert!(read.public() == key().0.public() || !text.contains(&unchanged)),
                    Err(why) => prop_assert!(!why.contains("horse") && !why.contains("07070707"), "{}", why),
                }
            }
        }

        #[test]
        fn any_text_is_a_key_or_refused(text in ".{0,200}") {
            let _ = form::parse(&text);
        }

        #[test]
        fn a_damaged_private_key_is_the_same_key_or_refused(
            bytes in damage::bytes(key().1.into_bytes()),
            text in damage::text(key().1),
        ) {
            check_private(&String::from_utf8_lossy(&bytes))?;
            check_private(&text)?;
        }

        #[test]
        fn any_file_is_a_public_key_or_refused(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..100),
                damage::bytes(String::from(key().0.public()).into_bytes()),
                damage::bytes(key().1.into_bytes()),
                damage::text(key().1).prop_map(String::into_bytes),
            ],
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("k.pub");
            fs::write(&path, &bytes).unwrap();
            match read_public(&path, &Unlock::default()) {
                Ok(key) => {
                    let text = String::from_utf8(bytes).unwrap();
                    prop_assert!(text.to_ascii_lowercase().contains(&String::from(key)));
                }
                Err(failure) => {
                    prop_assert!(failure.exit_code() == 2 && failure.to_string().contains("k.pub"), "{}", failure);
                    prop_assert!(!failure.chain().contains("07070707"), "{}", failure.chain());
                }
            }
        }
    }
}
