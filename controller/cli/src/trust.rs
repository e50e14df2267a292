//! `muster trust`: what the controller's trust rests on.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use muster_shared::api::TrustView;
use muster_shared::trust::{PublicKey, TrustedRoot};

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
    /// Have the controller make its next director key, unless there is one, and print it or write it to a file for `muster root rotate`.
    NewDirectorKey {
        /// Where to write it.
        #[arg(long, value_name = "FILE.pub")]
        out: Option<PathBuf>,
        /// Replace a file that is there already.
        #[arg(long)]
        force: bool,
    },
    /// Have the controller give its next director key up.
    DiscardDirectorKey,
}

fn trust_text(view: &TrustView) -> String {
    let mut pairs = vec![
        ("director key", view.director_public_key.clone().into()),
        ("director key id", view.director_public_key.id().to_string()),
    ];
    if let Some(next) = &view.next_director_public_key {
        pairs.extend([("next director key", next.clone().into()), ("its id", next.id().to_string())]);
    }
    pairs.push(("root documents", view.roots.len().to_string()));
    let mut text = output::properties(&pairs);
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
    let view = async || client.get::<TrustView>(&["trust"], &[]).await;
    match command {
        TrustCommand::Show => context.output.show(&block_on(view())?, trust_text),
        TrustCommand::DirectorKey { out, force } => {
            give(context, &block_on(view())?.director_public_key, out.as_deref(), force)
        }
        TrustCommand::NewDirectorKey { out, force } => {
            let view: TrustView = block_on(client.post(&["trust", "director"], &()))?;
            let next = view
                .next_director_public_key
                .ok_or_else(|| Failure::unmet("the controller names no next director key: it may be too old"))?;
            give(context, &next, out.as_deref(), force)
        }
        TrustCommand::DiscardDirectorKey => {
            let view: TrustView = block_on(client.delete(&["trust", "director"]))?;
            context.output.show(&view, trust_text)
        }
    }
}

/// Writes a public key where it was asked for, or prints it.
fn give(context: &Context, key: &PublicKey, out: Option<&Path>, force: bool) -> Result<(), Failure> {
    let Some(path) = out else { return context.output.show(key, |key| String::from(key.clone())) };
    key_file::write_public(path, key, Existing::from_force(force))?;
    output::note(&format!("wrote {}", path.display()));
    Ok(())
}
