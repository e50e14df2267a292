//! `muster completions`: scripts that let a shell complete commands.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::command::{Cli, Context};
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when standard output cannot be written.
pub(crate) fn run(_: &Context, args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "muster", &mut script);
    output::print(String::from_utf8_lossy(&script).trim_end())
}
