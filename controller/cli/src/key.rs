//! `muster key`: signing keys.

use std::path::PathBuf;

use clap::Subcommand;
use muster_shared::trust::{KeyId, PublicKey};
use serde::Serialize;

use crate::command::Context;
use crate::disk::Existing;
use crate::failure::Failure;
use crate::{key_file, output};

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a signing key: FILE (private, readable by you alone) and FILE.pub.
    Generate {
        /// Where to write the private half.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Replace a key that is there already.
        #[arg(long)]
        force: bool,
    },
    /// Show a key's public half and its id.
    Show {
        /// A private or public key file.
        file: PathBuf,
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
}

fn show(context: &Context, view: &KeyView) -> Result<(), Failure> {
    context.output.show(view, |view| {
        let path = |path: &PathBuf| path.display().to_string();
        let mut pairs = vec![("key id", view.key_id.to_string()), ("public key", view.public_key.clone().into())];
        pairs.extend(view.private_file.as_ref().map(|file| ("private file", path(file))));
        pairs.extend(view.public_file.as_ref().map(|file| ("public file", path(file))));
        output::properties(&pairs)
    })
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when a file cannot be read or written.
pub(crate) fn run(context: &Context, command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Generate { out, force } => {
            let public_key = key_file::generate(&out, Existing::from_force(force))?;
            let public_file = Some(key_file::public_path(&out));
            show(context, &KeyView { key_id: public_key.id(), public_key, private_file: Some(out), public_file })
        }
        KeyCommand::Show { file } => {
            let public_key = key_file::read_public(&file)?;
            show(context, &KeyView { key_id: public_key.id(), public_key, private_file: None, public_file: None })
        }
    }
}
