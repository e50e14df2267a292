//! `muster trust`: what the controller's trust rests on.

use std::path::PathBuf;

use clap::Subcommand;
use muster_shared::api::TrustView;
use muster_shared::trust::TrustedRoot;

use crate::command::{Context, block_on};
use crate::disk::Existing;
use crate::failure::Failure;
use crate::{key_file, output, root};

#[derive(Debug, Subcommand)]
pub(crate) enum TrustCommand {
    /// Show the director key and every root document.
    Show,
    /// Print the controller's public director key, or write it to a file for `muster root init`.
    DirectorKey {
        /// Where to write it.
        #[arg(long, value_name = "FILE.pub")]
        out: Option<PathBuf>,
        /// Replace a file that is there already.
        #[arg(long)]
        force: bool,
    },
}

fn trust_text(view: &TrustView) -> String {
    let mut text = output::properties(&[
        ("director key", view.director_public_key.clone().into()),
        ("director key id", view.director_public_key.id().to_string()),
        ("root documents", view.roots.len().to_string()),
    ]);
    let mut trusted: Option<TrustedRoot> = None;
    for envelope in &view.roots {
        let next = match &trusted {
            None => TrustedRoot::first(envelope.clone(), None),
            Some(before) => before.next(envelope.clone()),
        };
        match next {
            Ok(next) => {
                text.push_str("\n\n");
                text.push_str(&root::root_text(&root::root_view(&next)));
                trusted = Some(next);
            }
            Err(error) => {
                text.push_str(&format!("\n\nthe next document is not trusted: {}", root::trust_words(&error)));
                break;
            }
        }
    }
    text
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when that did not succeed.
pub(crate) fn run(context: &Context, command: TrustCommand) -> Result<(), Failure> {
    let client = context.client()?;
    let view: TrustView = block_on(client.get(&["trust"], &[]))?;
    match command {
        TrustCommand::Show => context.output.show(&view, trust_text),
        TrustCommand::DirectorKey { out: Some(path), force } => {
            key_file::write_public(&path, &view.director_public_key, Existing::from_force(force))?;
            output::note(&format!("wrote {}", path.display()));
            Ok(())
        }
        TrustCommand::DirectorKey { out: None, .. } => {
            context.output.show(&view.director_public_key, |key| String::from(key.clone()))
        }
    }
}
