//! The command line of the agent: its commands, their arguments and what `--help` says of them.
//!
//! What each does is elsewhere; man pages and completions are rendered from [`Arguments`] by clap's `CommandFactory`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::at_device::DeviceArgs;
use crate::at_device::enrol::EnrolArgs;
use crate::at_device::logs::LogsArgs;
use crate::at_device::support_bundle::SupportBundleArgs;
use crate::feedback::FeedbackArgs;

/// Brings signed models onto this device, serves them, watches them.
///
/// Without a command the agent runs, in the foreground, until it is told to stop.
///
/// Exit status: 0 when all is well, 1 when something is wrong, 2 when the command line is.
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
    /// Shows what runs on this device, why and since when, the link to the controller, what waits, and the last errors.
    ///
    /// The running agent is asked; where it does not run, its files say what they can. Status 0 when it answers and all of it is alive.
    Status(DeviceArgs),
    /// Looks at everything that has to be right on this device, and says what to do where it is not.
    ///
    /// Configuration, data folder, clock, certificate, network, broker, controller, bundle, service. Status 1 when there is a fault. To be run as root or as the service's user.
    Doctor(DeviceArgs),
    /// Joins the controller now, without starting the service.
    ///
    /// Root's papers are given to the service's user. A device that is enrolled already has nothing to do.
    Enrol(EnrolArgs),
    /// Shows the agent's log, by journalctl.
    Logs(LogsArgs),
    /// Runs the golden examples of the committed bundle with this program, beside the agent, which serves on.
    ///
    /// Status 1 when one of them fails.
    SelfTest(DeviceArgs),
    /// Writes one file to send to whoever helps: status, findings, settings, log and metrics, without keys, tokens or inputs.
    SupportBundle(SupportBundleArgs),
    /// Writes manual pages and shell completions into a folder.
    #[cfg(feature = "manual")]
    #[command(hide = true)]
    Manual {
        /// The folder.
        folder: PathBuf,
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
