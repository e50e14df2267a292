//! What a key file can say: a seed in the clear, a key in PEM, a command that signs, or a public key.

use std::fmt;
use std::num::NonZeroU32;

use muster_shared::trust::{PublicKey, SigningKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::pkcs8_form::{self, Kind};
use crate::disk;
use crate::passphrase::Passphrase;

const ALGORITHM: &str = "ed25519";
const KEEP: &str =
    "# Muster signing key. Whoever has this file can sign in its name: keep it offline, and keep a copy.";
const KEEP_ENCRYPTED: &str =
    "# Muster signing key, encrypted. Keep it offline, and keep a copy of it and of its passphrase.";
const COMMAND: &str = "# Muster signing key that is kept elsewhere: the command gets what is to be signed on its standard input, and \
                       prints the signature.";
/// Before the PEM in an encrypted key's file. OpenSSL skips it.
const PUBLIC_LINE: &str = "# public-key = ";

/// The file of a key in the clear, or of one that a command signs with.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TomlKey {
    algorithm: String,
    /// Tells a damaged seed from a good one, and a wrong command from the right one.
    public_key: PublicKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seed: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_limit_s: Option<NonZeroU32>,
}

impl Drop for TomlKey {
    fn drop(&mut self) {
        self.seed.zeroize();
    }
}

/// A key that a command signs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandKey {
    /// Whose signatures are expected.
    pub(crate) public_key: PublicKey,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// How long it may take, in seconds; none for the usual time.
    pub(crate) time_limit_s: Option<NonZeroU32>,
}

/// A key encrypted with a passphrase.
pub(super) struct Locked {
    block: String,
    /// As the file says in the clear, where it does.
    public_key: Option<PublicKey>,
}

/// What a file turned out to hold.
pub(super) enum Form {
    /// A private key in the clear.
    Plain(SigningKey),
    /// A private key that takes a passphrase.
    Locked(Locked),
    /// A key kept elsewhere.
    Command(CommandKey),
    /// A public key.
    Public(PublicKey),
}

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(key) => write!(f, "Plain({key:?})"),
            Self::Locked(locked) => write!(f, "Locked({:?})", locked.public_key),
            Self::Command(key) => write!(f, "Command({key:?})"),
            Self::Public(key) => write!(f, "Public({key:?})"),
        }
    }
}

impl Locked {
    /// The public half, where the file tells it without its passphrase.
    pub(super) fn public_key(&self) -> Option<&PublicKey> {
        self.public_key.as_ref()
    }

    /// The key.
    ///
    /// # Errors
    /// Why the passphrase does not open it, in words that tell nothing of either.
    pub(super) fn open(&self, passphrase: &Passphrase) -> Result<SigningKey, String> {
        let key = pkcs8_form::decrypt(&self.block, passphrase)?;
        match &self.public_key {
            Some(public) if *public != key.public() => {
                Err("its seed does not belong to its public key; it is damaged".into())
            }
            Some(_) | None => Ok(key),
        }
    }
}

/// Reads any form of key.
///
/// # Errors
/// Why it is none, without a word of a secret in it.
pub(super) fn parse(text: &str) -> Result<Form, String> {
    let digits = text.trim();
    if let Some((kind, block)) = pkcs8_form::find(text) {
        return match kind {
            Kind::Encrypted => Ok(Form::Locked(Locked { block: block.to_owned(), public_key: public_line(text)? })),
            Kind::Plain => pkcs8_form::plain(block).map(Form::Plain),
            Kind::Public => pkcs8_form::public(block).map(Form::Public),
            Kind::Other => Err("its PEM is no private or public key in PKCS#8".into()),
        };
    }
    if digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return PublicKey::try_from(digits.to_owned()).map(Form::Public).map_err(|error| error.to_string());
    }
    parse_toml(text)
}

/// The public key named before an encrypted one.
fn public_line(text: &str) -> Result<Option<PublicKey>, String> {
    let Some(line) = text.lines().find_map(|line| line.strip_prefix(PUBLIC_LINE)) else { return Ok(None) };
    let digits = line.trim().trim_matches('"').to_owned();
    PublicKey::try_from(digits).map(Some).map_err(|error| format!("the public key before the PEM: {error}"))
}

fn parse_toml(text: &str) -> Result<Form, String> {
    let mut file: TomlKey = disk::parse_secret_toml(text)?;
    if file.algorithm != ALGORITHM {
        return Err("its algorithm is not ed25519".into());
    }
    let public_key = file.public_key.clone();
    match (file.seed.take().map(Zeroizing::new), file.command.take()) {
        (Some(digits), None) => {
            let mut seed = Zeroizing::new([0; 32]);
            hex::decode_to_slice(digits.as_str(), seed.as_mut_slice())
                .map_err(|_| "its seed is not 64 hexadecimal digits".to_owned())?;
            let key = SigningKey::from_seed(&seed);
            if key.public() != public_key {
                return Err("its seed does not belong to its public key; it is damaged".into());
            }
            Ok(Form::Plain(key))
        }
        (None, Some(command)) => {
            if command.first().is_none_or(String::is_empty) {
                return Err("its command names no program".into());
            }
            Ok(Form::Command(CommandKey { public_key, command, time_limit_s: file.time_limit_s }))
        }
        (Some(_), Some(_)) => Err("it has a seed and a command; one of them must go".into()),
        (None, None) => Err("it has neither a seed nor a command".into()),
    }
}

/// The file of a key in the clear.
pub(super) fn plain_text(key: &SigningKey) -> Result<Zeroizing<String>, String> {
    let file = TomlKey {
        algorithm: ALGORITHM.to_owned(),
        public_key: key.public(),
        seed: Some(hex::encode(key.seed().as_slice())),
        command: None,
        time_limit_s: None,
    };
    let body = Zeroizing::new(toml::to_string(&file).map_err(|error| error.to_string())?);
    Ok(Zeroizing::new(format!("{KEEP}\n{}", body.as_str())))
}

/// The file of a key that takes a passphrase.
pub(super) fn locked_text(key: &SigningKey, passphrase: &Passphrase) -> Result<Zeroizing<String>, String> {
    let block = pkcs8_form::encrypt(key, passphrase)?;
    Ok(Zeroizing::new(format!("{KEEP_ENCRYPTED}\n{PUBLIC_LINE}\"{}\"\n{block}", String::from(key.public()))))
}

/// The file of a key that is kept elsewhere.
pub(super) fn command_text(key: &CommandKey) -> Result<String, String> {
    let file = TomlKey {
        algorithm: ALGORITHM.to_owned(),
        public_key: key.public_key.clone(),
        seed: None,
        command: Some(key.command.clone()),
        time_limit_s: key.time_limit_s,
    };
    let body = toml::to_string(&file).map_err(|error| error.to_string())?;
    Ok(format!("{COMMAND}\n{body}"))
}
