//! `muster bundle`: from a trained model to a signed bundle on the controller.

mod build;
mod card;
mod columns;
mod description;
mod folder;
mod labels;
mod list;
mod new_folder;
pub(crate) mod open;
mod outliers;
mod pipeline;
mod profile;
mod program;
mod push;
mod sample;
mod schema;
mod sign;
mod slices;
mod verify;

use std::path::PathBuf;

use clap::Subcommand;

use crate::command::Context;
use crate::duration::Millis;
use crate::failure::Failure;
use crate::passphrase::Unlock;

#[derive(Debug, Subcommand)]
pub(crate) enum BundleCommand {
    /// Build an unsigned bundle from a description: check the model and its golden examples, compute the monitoring profile.
    Build {
        /// The description, in TOML.
        description: PathBuf,
        /// The folder to write the bundle to.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Replace a bundle that is in the folder already.
        #[arg(long)]
        force: bool,
    },
    /// Work with data schemas: what devices expect of inputs.
    #[command(subcommand)]
    Schema(SchemaCommand),
    /// Sign a bundle. The private key never leaves this machine, or the device that a command asks for the signature.
    Sign {
        /// The bundle's folder.
        dir: PathBuf,
        /// Private release keys.
        #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
        key: Vec<PathBuf>,
        #[command(flatten)]
        unlock: Unlock,
    },
    /// Check a bundle: signatures, files, manifest, golden examples.
    Verify {
        /// The bundle's folder.
        dir: PathBuf,
        /// The root document that says whose signatures count.
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
    },
    /// Give a signed bundle to the controller.
    Push {
        /// The bundle's folder.
        dir: PathBuf,
    },
    /// List the bundles that the controller holds.
    List,
    /// Show a bundle.
    Show {
        /// A bundle of the controller, or a folder.
        #[arg(value_name = "NAME@VERSION|DIR")]
        bundle: String,
    },
    /// Show a bundle's model card in Markdown: what its manifest says, and how it does in the field.
    Card {
        /// A bundle of the controller, or a folder, which has no figures from the field.
        #[arg(value_name = "NAME@VERSION|DIR")]
        bundle: String,
        /// Leave out windows older than this; a week when not given.
        #[arg(long, value_name = "DURATION")]
        since: Option<Millis>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SchemaCommand {
    /// Write the schema that a description's reference sample suggests, to be edited and named in the description.
    Infer {
        /// The description, in TOML.
        description: PathBuf,
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Replace the file if it is there already.
        #[arg(long)]
        force: bool,
    },
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when that did not succeed.
pub(crate) fn run(context: &Context, command: BundleCommand) -> Result<(), Failure> {
    match command {
        BundleCommand::Build { description, out, force } => build::run(context, &description, &out, force),
        BundleCommand::Schema(SchemaCommand::Infer { description, out, force }) => {
            schema::run(context, &description, &out, force)
        }
        BundleCommand::Sign { dir, key, unlock } => sign::run(context, &dir, &key, &unlock),
        BundleCommand::Verify { dir, root } => verify::run(context, &dir, root.as_deref()),
        BundleCommand::Push { dir } => push::run(context, &dir),
        BundleCommand::List => list::run(context),
        BundleCommand::Show { bundle } => list::show(context, &bundle),
        BundleCommand::Card { bundle, since } => card::run(context, &bundle, since),
    }
}
