//! The command line of the agent: its commands, their arguments and what `--help` says of them.
//!
//! What each does is elsewhere; man pages and completions are rendered from [`Arguments`] by clap's `CommandFactory`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::feedback::FeedbackArgs;

/// Brings signed models onto this device, serves them, watches them.
///
/// Without a command the agent runs, in the foreground, until it is told to stop.
#[derive(Debug, Parser)]
#[command(name = "muster-agent", version, about, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    /// What to do instead of running.
    #[command(subcommand)]
    pub(crate) command: Option<Subcommands>,
    /// The configuration file to run with; every setting has a default.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// What the agent's program does instead of running.
#[derive(Debug, Subcommand)]
pub(crate) enum Subcommands {
    /// Gives labels from a file to the agent that runs on this device: the truth about inferences it has answered.
    Feedback(FeedbackArgs),
    /// Checks a configuration file and ends: status 0 when it is right.
    CheckConfig {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_and_argument_says_what_it_is_for() {
        let command = Arguments::command();
        command.clone().debug_assert();
        for part in std::iter::once(&command).chain(command.get_subcommands()) {
            assert!(part.get_about().is_some(), "{} says nothing of itself", part.get_name());
            for argument in part.get_arguments() {
                assert!(argument.get_help().is_some(), "{} of {} has no help", argument.get_id(), part.get_name());
            }
        }
    }
}
