//! `muster samples`: inputs and answers of devices, collected for retraining, for the eyes of one key's owner.

mod export;
mod key;
mod label;
mod open;
mod parquet_file;
mod rows;
mod show;

use clap::Subcommand;
use muster_shared::api::Page;
use muster_shared::collection::{CloseCollection, CollectionView};
use muster_shared::ids::CollectionId;

use crate::command::{Context, block_on};
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum SamplesCommand {
    /// Make and show keys that samples are sealed to.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Open a collection: devices that match, and whose owners allow it, keep samples from now on.
    Open(Box<open::OpenArgs>),
    /// List collections.
    List,
    /// Show how far a collection is, on each device.
    Show(show::ShowArgs),
    /// Close a collection: devices take no more samples and upload what they have.
    Close {
        /// The collection.
        id: CollectionId,
        /// Devices delete what they have instead.
        #[arg(long)]
        discard: bool,
        /// Why, for the records.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Delete a collection with all its samples, here and on devices.
    Delete {
        /// The collection.
        id: CollectionId,
    },
    /// Fetch the samples of a collection, open them, and write them to a Parquet file.
    Export(export::ExportArgs),
    /// Bring labels for the inferences of a collection, from a CSV file with the columns id, label and, where ids are not unique, device.
    Label(label::LabelArgs),
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when that did not succeed.
pub(crate) fn run(context: &Context, command: SamplesCommand) -> Result<(), Failure> {
    match command {
        SamplesCommand::Key(command) => key::run(context, command),
        SamplesCommand::Open(args) => open::run(context, &args),
        SamplesCommand::List => {
            let page: Page<CollectionView> = block_on(context.client()?.get(&["collections"], &[]))?;
            if page.items.is_empty() {
                output::note("there are no collections");
            }
            context.output.show(&page.items, |items| show::table(items))
        }
        SamplesCommand::Show(args) => show::run(context, &args),
        SamplesCommand::Close { id, discard, reason } => {
            let wish = CloseCollection { discard, reason };
            let view: CollectionView = block_on(context.client()?.post(&["collections", id.as_str(), "close"], &wish))?;
            context.output.show(&view, show::text)
        }
        SamplesCommand::Delete { id } => {
            let view: CollectionView = block_on(context.client()?.delete(&["collections", id.as_str()]))?;
            context.output.show(&view, |view| format!("{} is deleted, with {} samples", view.id, view.samples))
        }
        SamplesCommand::Export(args) => export::run(context, &args),
        SamplesCommand::Label(args) => label::run(context, &args),
    }
}
