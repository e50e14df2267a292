//! `muster samples key`: the keys that samples are sealed to.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use muster_shared::collection::{RecipientKey, RecipientSecret};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::command::Context;
use crate::disk::{self, Existing, Privacy};
use crate::failure::Failure;
use crate::{key_file, output};

const MAX_KEY_BYTES: usize = 4 * 1024;

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key: FILE (private, readable by you alone; who has it reads samples) and FILE.pub.
    Create {
        /// Where to write the private half.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Replace a key that is there already: what was sealed to it is lost.
        #[arg(long)]
        force: bool,
    },
    /// Show a key's public half.
    Show {
        /// A private or public key file.
        file: PathBuf,
    },
}

#[derive(Serialize)]
struct KeyView {
    id: String,
    public_key: RecipientKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_file: Option<PathBuf>,
}

/// The private key in the file `path`.
///
/// # Errors
/// [`Failure`] when it holds none, or others could read it.
pub(super) fn read_private(path: &Path) -> Result<RecipientSecret, Failure> {
    let secret = disk::read_secret(path, MAX_KEY_BYTES)?;
    if secret.exposure.own && (secret.exposure.readable || secret.exposure.writable) {
        let what = format!("others can read or change the private key {}: run chmod 600 on it", path.display());
        return Err(Failure::input(what));
    }
    RecipientSecret::parse(secret.content.trim())
        .map_err(|error| Failure::input(format!("{} holds no private key", path.display())).because(error))
}

/// The public key that `text` says, or the file that it names holds.
///
/// # Errors
/// [`Failure`] when it is neither.
pub(super) fn recipient(text: &str) -> Result<RecipientKey, Failure> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let path = Path::new(text);
    let held = disk::read_text(path, MAX_KEY_BYTES as u64)?;
    held.trim().parse().map_err(|error| {
        Failure::input(format!("{text} holds no public key: name the .pub file beside the private one")).because(error)
    })
}

fn show(context: &Context, view: &KeyView) -> Result<(), Failure> {
    context.output.show(view, |view| {
        let mut pairs = vec![("id", view.id.clone()), ("public key", view.public_key.to_string())];
        pairs.extend(view.private_file.as_ref().map(|file| ("private file", file.display().to_string())));
        output::properties(&pairs)
    })
}

pub(super) fn run(context: &Context, command: KeyCommand) -> Result<(), Failure> {
    let view = match command {
        KeyCommand::Create { out, force } => {
            let existing = Existing::from_force(force);
            key_file::check_free(&out, existing)?;
            let mut seed = Zeroizing::new([0; 32]);
            getrandom::fill(seed.as_mut_slice())
                .map_err(|error| Failure::unmet("the system gives no random numbers").because(error))?;
            let secret = RecipientSecret::from_seed(&seed);
            let text = Zeroizing::new(format!("{}\n", *secret.digits()));
            disk::write(&out, text.as_bytes(), Privacy::Secret, existing)?;
            let public = format!("{}\n", secret.public());
            disk::write(&key_file::public_path(&out), public.as_bytes(), Privacy::Public, existing)?;
            KeyView { id: secret.public().id(), public_key: secret.public(), private_file: Some(out) }
        }
        KeyCommand::Show { file } => {
            let text = Zeroizing::new(disk::read_text(&file, MAX_KEY_BYTES as u64)?);
            let is_public = file.extension().is_some_and(|end| end == "pub");
            let public_key = if is_public { recipient(text.trim())? } else { read_private(&file)?.public() };
            KeyView { id: public_key.id(), public_key, private_file: None }
        }
    };
    show(context, &view)
}
