//! `muster manual`: manual pages and completions in a folder, for those who make packages.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use muster_manual::Section;

use crate::command::{Cli, Context};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct ManualArgs {
    /// The folder.
    folder: PathBuf,
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the folder cannot be written.
pub(crate) fn run(_: &Context, args: &ManualArgs) -> Result<(), Failure> {
    muster_manual::write(Cli::command(), Section::Commands, &args.folder)
        .map_err(|error| Failure::input(format!("cannot write into {}", args.folder.display())).because(error))
}
