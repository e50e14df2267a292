//! Signing keys on disk.
//!
//! The private half is a small TOML file that only its owner can read; the public half, beside it with `.pub`
//! added to the name, is one line of 64 hexadecimal digits.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use muster_shared::trust::{PublicKey, SigningKey, TrustError};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::disk::{self, Existing, Privacy};
use crate::failure::Failure;
use crate::output;

const MAX_KEY_BYTES: u64 = 4 * 1024;
const ALGORITHM: &str = "ed25519";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PrivateKeyFile {
    algorithm: String,
    /// Tells a damaged seed from a good one.
    public_key: PublicKey,
    seed: String,
}

impl Drop for PrivateKeyFile {
    fn drop(&mut self) {
        self.seed.zeroize();
    }
}

/// Where the public half of the key in `private` is.
pub(crate) fn public_path(private: &Path) -> PathBuf {
    let mut name: OsString = private.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// Makes a key from the system's random source and writes both halves.
///
/// # Errors
/// [`Failure`] when a file is there already and to be kept, or cannot be written.
pub(crate) fn generate(private: &Path, existing: Existing) -> Result<PublicKey, Failure> {
    let public = public_path(private);
    if existing == Existing::Keep && public.exists() {
        return Err(Failure::input(format!(
            "{} is there already: give another name, or --force to replace the key",
            public.display()
        )));
    }
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice())
        .map_err(|error| Failure::unmet("the system gives no random numbers").because(error))?;
    let key = SigningKey::from_seed(&seed);
    let file = PrivateKeyFile {
        algorithm: ALGORITHM.to_owned(),
        public_key: key.public(),
        seed: hex::encode(key.seed().as_slice()),
    };
    let body = toml::to_string(&file).map_err(|error| Failure::unmet("the key has no text form").because(error))?;
    let text = Zeroizing::new(format!(
        "# Muster signing key. Whoever has this file can sign in its name: keep it offline, and keep a copy.\n{}",
        Zeroizing::new(body).as_str()
    ));
    let private = disk::prepare(private, text.as_bytes(), Privacy::Secret, existing)?;
    let public = disk::prepare(&public, public_text(&key.public()).as_bytes(), Privacy::Public, existing)?;
    // The private half last: as long as the old one is there nothing is lost, for a public half can be had from it.
    public.commit()?;
    private.commit()?;
    Ok(key.public())
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

/// Reads a private key.
///
/// # Errors
/// [`Failure`] when the file is none, or damaged.
pub(crate) fn read_private(path: &Path) -> Result<SigningKey, Failure> {
    warn_if_open(path);
    let text = Zeroizing::new(disk::read_text(path, MAX_KEY_BYTES)?);
    parse_private(&text, path)
}

fn parse_private(text: &str, path: &Path) -> Result<SigningKey, Failure> {
    let refuse = |why: String| Failure::input(format!("{} is not a Muster signing key: {why}", path.display()));
    if text.trim().parse_public().is_ok() {
        return Err(refuse("it is the public half; give the private file, whose name has no .pub".into()));
    }
    let file: PrivateKeyFile = disk::parse_secret_toml(text).map_err(refuse)?;
    if file.algorithm != ALGORITHM {
        return Err(refuse("its algorithm is not ed25519".into()));
    }
    let mut seed = Zeroizing::new([0; 32]);
    hex::decode_to_slice(&file.seed, seed.as_mut_slice())
        .map_err(|_| refuse("its seed is not 64 hexadecimal digits".into()))?;
    let key = SigningKey::from_seed(&seed);
    if key.public() != file.public_key {
        return Err(refuse("its seed does not belong to its public key; it is damaged".into()));
    }
    Ok(key)
}

/// Reads a public key from a `.pub` file, or the public half of a private one.
///
/// # Errors
/// [`Failure`] when the file is neither.
pub(crate) fn read_public(path: &Path) -> Result<PublicKey, Failure> {
    let text = Zeroizing::new(disk::read_text(path, MAX_KEY_BYTES)?);
    match text.trim().parse_public() {
        Ok(key) => Ok(key),
        Err(_) if text.contains("seed") => parse_private(&text, path).map(|key| key.public()),
        Err(error) => Err(Failure::input(format!("{} is not a public key", path.display())).because(error)),
    }
}

/// Reads a public key given as a file or as its digits.
///
/// # Errors
/// [`Failure`] when it is neither.
pub(crate) fn read_public_or_digits(text: &str) -> Result<PublicKey, Failure> {
    let digits = text.trim();
    match digits.parse_public() {
        Ok(key) => Ok(key),
        Err(error) if digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Err(Failure::input(format!("{digits} is not a public key")).because(error))
        }
        Err(_) => read_public(Path::new(text)),
    }
}

trait ParsePublic {
    fn parse_public(&self) -> Result<PublicKey, TrustError>;
}

impl ParsePublic for str {
    fn parse_public(&self) -> Result<PublicKey, TrustError> {
        PublicKey::try_from(self.to_owned())
    }
}

#[cfg(unix)]
fn warn_if_open(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
        output::warn(&format!("others can read {}: run chmod 600 on it", path.display()));
    }
}

#[cfg(not(unix))]
fn warn_if_open(_: &Path) {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::damage;

    /// A key and its file.
    fn key() -> (SigningKey, String) {
        let key = SigningKey::from_seed(&Zeroizing::new([7; 32]));
        let seed = hex::encode(key.seed().as_slice());
        let public = String::from(key.public());
        let text = format!("# Keep it.\nalgorithm = \"ed25519\"\npublic-key = \"{public}\"\nseed = \"{seed}\"\n");
        assert!(parse_private(&text, Path::new("k")).is_ok());
        (key, text)
    }

    /// `text` must be the file of [`key`] or refused, without showing the seed.
    fn check_private(text: &str) -> Result<(), TestCaseError> {
        match parse_private(text, Path::new("k")) {
            Ok(read) => prop_assert_eq!(read.public(), key().0.public()),
            Err(failure) => {
                prop_assert_eq!(failure.exit_code(), 2);
                prop_assert!(!failure.chain().contains("07070707"), "{}", failure.chain());
            }
        }
        Ok(())
    }

    #[test]
    fn a_key_survives_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("release.key");
        let public = generate(&path, Existing::Keep).unwrap();
        assert_eq!(read_private(&path).unwrap().public(), public);
        assert_eq!(read_public(&path).unwrap(), public);
        assert_eq!(read_public(&public_path(&path)).unwrap(), public);
        assert_eq!(read_public_or_digits(&String::from(public.clone())).unwrap(), public);
        assert!(read_private(&public_path(&path)).unwrap_err().to_string().contains("public half"));
        assert!(generate(&path, Existing::Keep).is_err());
        assert_ne!(generate(&path, Existing::Replace).unwrap(), public);
    }

    #[test]
    fn damage_is_found_and_the_seed_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        generate(&path, Existing::Keep).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let seed = text.split("seed = \"").nth(1).unwrap()[..64].to_owned();
        for damaged in [
            text.replace(&seed, &seed[1..]),
            text.replace(&seed, &format!("{}{}", &seed[1..], if seed.starts_with('0') { '1' } else { '0' })),
            text.replace("ed25519", "rsa"),
            format!("{text}more = 1\n"),
            text.replace("seed =", "seed"),
        ] {
            let error = parse_private(&damaged, &path).unwrap_err().to_string();
            assert!(!error.contains(&seed[1..32]), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_or_refused(text in ".{0,200}") {
            let _ = parse_private(&text, Path::new("k"));
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
            std::fs::write(&path, &bytes).unwrap();
            match read_public(&path) {
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
