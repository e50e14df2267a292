//! `muster key`: signing keys.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use muster_shared::trust::{KeyId, PublicKey};
use serde::Serialize;

use crate::command::Context;
use crate::disk::Existing;
use crate::failure::Failure;
use crate::key_file::{self, CommandKey, Protection};
use crate::output;
use crate::passphrase::{self, Unlock};

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a signing key: FILE (private, readable by you alone) and FILE.pub.
    Generate {
        /// Where to write the private half.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Protect it with a passphrase: PKCS#8 with scrypt and AES-256, which `openssl pkey` reads too.
        #[arg(long)]
        encrypt: bool,
        #[command(flatten)]
        unlock: Unlock,
        /// Replace a key that is there already.
        #[arg(long)]
        force: bool,
    },
    /// Show a key's public half and its id.
    Show {
        /// A private or public key file.
        file: PathBuf,
        #[command(flatten)]
        unlock: Unlock,
    },
    /// Protect a key that is in the clear with a passphrase.
    ///
    /// What was in the file may stay on the disk, and in copies of it. A key that must never have been in the clear is made with
    /// `muster key generate --encrypt`.
    Encrypt {
        /// The private key file.
        file: PathBuf,
        #[command(flatten)]
        unlock: Unlock,
    },
    /// Take a key's passphrase away: whoever has the file then has the key.
    Decrypt {
        /// The private key file.
        file: PathBuf,
        #[command(flatten)]
        unlock: Unlock,
    },
    /// Change a key's passphrase. Copies of the file keep the old one.
    Passwd {
        /// The private key file.
        file: PathBuf,
        #[command(flatten)]
        unlock: Unlock,
        /// File whose first line is the new passphrase; it is asked for on the terminal otherwise.
        #[arg(long, value_name = "FILE")]
        new_passphrase_file: Option<PathBuf>,
    },
    /// Make a key file for a key that is kept elsewhere, in an HSM, a token or a key service: a command signs with it.
    ///
    /// The command gets what is to be signed (DSSE's PAE) on its standard input and prints the ed25519 signature, as 64 bytes or in base64.
    /// It runs in the folder of the key file. Its signature is checked before it is used.
    External {
        /// The public half: a file, in PEM too, or its digits.
        #[arg(long, value_name = "FILE.pub|HEX")]
        public_key: String,
        /// Where to write the key file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Seconds that the command may take [default: 60].
        #[arg(long, value_name = "N")]
        time_limit_s: Option<NonZeroU32>,
        /// Replace a key that is there already.
        #[arg(long)]
        force: bool,
        /// The program and its arguments, after `--`. No shell is between.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
}

#[derive(Serialize)]
struct KeyView {
    key_id: KeyId,
    public_key: PublicKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protection: Option<&'static str>,
}

impl KeyView {
    fn public(public_key: PublicKey) -> Self {
        Self { key_id: public_key.id(), public_key, private_file: None, public_file: None, protection: None }
    }

    fn new_key(public_key: PublicKey, file: PathBuf, protection: &'static str) -> Self {
        let public_file = Some(key_file::public_path(&file));
        Self { private_file: Some(file), public_file, protection: Some(protection), ..Self::public(public_key) }
    }

    fn changed(public_key: PublicKey, file: PathBuf, protection: &'static str) -> Self {
        Self { private_file: Some(file), protection: Some(protection), ..Self::public(public_key) }
    }
}

const IN_THE_CLEAR: &str = "none: whoever can read the file has the key";
const ENCRYPTED: &str = "passphrase";
const ELSEWHERE: &str = "elsewhere: the file names a command";

fn show(context: &Context, view: &KeyView) -> Result<(), Failure> {
    context.output.show(view, |view| {
        let path = |path: &PathBuf| path.display().to_string();
        let mut pairs = vec![("key id", view.key_id.to_string()), ("public key", view.public_key.clone().into())];
        pairs.extend(view.private_file.as_ref().map(|file| ("private file", path(file))));
        pairs.extend(view.public_file.as_ref().map(|file| ("public file", path(file))));
        pairs.extend(view.protection.map(|protection| ("protection", protection.to_owned())));
        output::properties(&pairs)
    })
}

fn generate(out: PathBuf, encrypt: bool, unlock: &Unlock, existing: Existing) -> Result<KeyView, Failure> {
    // Before a passphrase is thought of.
    key_file::check_free(&out, existing)?;
    let passphrase = encrypt.then(|| unlock.new_one(&out)).transpose()?;
    if passphrase.is_none() && unlock.file().is_some() {
        output::warn("the key is written in the clear: a passphrase is only used with --encrypt");
    }
    let public_key = key_file::generate(&out, passphrase.as_ref(), existing)?;
    Ok(KeyView::new_key(public_key, out, if encrypt { ENCRYPTED } else { IN_THE_CLEAR }))
}

fn encrypt(file: PathBuf, unlock: &Unlock) -> Result<KeyView, Failure> {
    // An encrypted one is refused before its passphrase is asked for.
    if key_file::protection(&file)? == Protection::Passphrase {
        let hint = "has a passphrase already: `muster key passwd` changes it";
        return Err(Failure::input(format!("{} {hint}", file.display())));
    }
    let (key, _) = key_file::read_private(&file, unlock)?;
    key_file::rewrite(&file, &key, Some(&unlock.new_one(&file)?))?;
    Ok(KeyView::changed(key.public(), file, ENCRYPTED))
}

fn decrypt(file: PathBuf, unlock: &Unlock) -> Result<KeyView, Failure> {
    let (key, protection) = key_file::read_private(&file, unlock)?;
    if protection == Protection::None {
        return Err(Failure::input(format!("{} has no passphrase", file.display())));
    }
    key_file::rewrite(&file, &key, None)?;
    Ok(KeyView::changed(key.public(), file, IN_THE_CLEAR))
}

fn passwd(file: PathBuf, unlock: &Unlock, new: Option<&Path>) -> Result<KeyView, Failure> {
    let (key, protection) = key_file::read_private(&file, unlock)?;
    if protection == Protection::None {
        let hint = "has no passphrase: `muster key encrypt` gives it one";
        return Err(Failure::input(format!("{} {hint}", file.display())));
    }
    key_file::rewrite(&file, &key, Some(&passphrase::new_from(new, &file)?))?;
    Ok(KeyView::changed(key.public(), file, ENCRYPTED))
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when a file cannot be read or written, or a passphrase is wrong.
pub(crate) fn run(context: &Context, command: KeyCommand) -> Result<(), Failure> {
    let view = match command {
        KeyCommand::Generate { out, encrypt, unlock, force } => {
            generate(out, encrypt, &unlock, Existing::from_force(force))?
        }
        KeyCommand::Show { file, unlock } => KeyView::public(key_file::read_public(&file, &unlock)?),
        KeyCommand::Encrypt { file, unlock } => encrypt(file, &unlock)?,
        KeyCommand::Decrypt { file, unlock } => decrypt(file, &unlock)?,
        KeyCommand::Passwd { file, unlock, new_passphrase_file } => {
            passwd(file, &unlock, new_passphrase_file.as_deref())?
        }
        KeyCommand::External { public_key, out, time_limit_s, force, command } => {
            let public_key = key_file::read_public_or_digits(&public_key, &Unlock::default())?;
            let key = CommandKey { public_key, command, time_limit_s };
            key_file::write_command(&out, &key, Existing::from_force(force))?;
            KeyView::new_key(key.public_key, out, ELSEWHERE)
        }
    };
    show(context, &view)
}
