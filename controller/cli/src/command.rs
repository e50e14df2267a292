//! The commands there are, and what they share.

use clap::{Parser, Subcommand};

use crate::api_client::ApiClient;
use crate::failure::Failure;
use crate::output::{Format, Output};
use crate::settings::{Connection, Settings};
use crate::{
    access, alerts, analysis, broker, bundle, ca, completions, device, drift, events, feedback, freeze, gate, key,
    manual, quality, rollout, root, samples, token, trust,
};

/// Put machine-learning models on fleets of edge devices, and keep them honest there.
///
/// Exit codes: 0 done; 1 the thing asked for failed (a verification, a rollout that went back); 2 wrong usage or bad local
/// input; 3 the controller refused, or a scored table has drifted; 4 the controller cannot be reached or failed;
/// 5 scores show neither that a bundle is worse nor that it is not.
#[derive(Debug, Parser)]
#[command(name = "muster", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// How to print results.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make, show and protect signing keys.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Make, show and push root documents: who may sign what.
    #[command(subcommand)]
    Root(root::RootCommand),
    /// Show the keys and documents that the controller's trust rests on.
    #[command(subcommand)]
    Trust(trust::TrustCommand),
    /// Show, replace and retire the certificate authorities of devices and controller.
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Build, sign, verify and push bundles.
    #[command(subcommand)]
    Bundle(Box<bundle::BundleCommand>),
    /// Make profiles of tables, to score others against.
    #[command(subcommand)]
    Profile(crate::profile::ProfileCommand),
    /// Show, label, revoke and reinstate devices.
    #[command(subcommand)]
    Device(device::DeviceCommand),
    /// Make, list and revoke enrolment tokens.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Make, list and revoke access tokens of people and programs.
    #[command(subcommand)]
    Access(access::AccessCommand),
    /// Bring bundles out to devices, watch, stop, go back.
    #[command(subcommand)]
    Rollout(Box<rollout::RolloutCommand>),
    /// Let no further device be told to go forward for a time.
    #[command(subcommand)]
    Freeze(freeze::FreezeCommand),
    /// Judge files of device scores as a rollout's gate does.
    #[command(subcommand)]
    Gate(gate::GateCommand),
    /// Bring, show and try templates of what waves of a rollout must show.
    #[command(subcommand)]
    Analysis(Box<analysis::AnalysisCommand>),
    /// Show how far live data has moved from the reference, and score tables.
    #[command(subcommand)]
    Drift(Box<drift::DriftCommand>),
    /// Show how good a bundle is by its labels.
    #[command(subcommand)]
    Quality(quality::QualityCommand),
    /// Push labels to devices, and show what came of them.
    #[command(subcommand)]
    Feedback(feedback::FeedbackCommand),
    /// Show what fires, look after it, silence it, and bring rules.
    #[command(subcommand)]
    Alerts(alerts::AlertsCommand),
    /// Collect inputs and answers of devices for retraining, export and label them.
    #[command(subcommand)]
    Samples(samples::SamplesCommand),
    /// Print what a broker other than the controller's own needs: access rules and revoked certificates.
    #[command(subcommand)]
    Broker(broker::BrokerCommand),
    /// Show what happened in the fleet.
    Events(events::EventsArgs),
    /// Print a completion script for a shell.
    Completions(completions::CompletionsArgs),
    /// Write manual pages and shell completions into a folder, as packages want them.
    #[command(hide = true)]
    Manual(manual::ManualArgs),
}

/// What every command gets.
pub(crate) struct Context {
    /// Where results go.
    pub(crate) output: Output,
    connection: Connection,
}

impl Context {
    /// A client of the controller that flags, environment and configuration name.
    ///
    /// # Errors
    /// [`Failure`] when they name none, or not all of it.
    pub(crate) fn client(&self) -> Result<ApiClient, Failure> {
        ApiClient::new(&Settings::resolve(&self.connection)?)
    }
}

/// Runs `future` to its end on this thread.
///
/// # Errors
/// Whatever the future gives.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::unmet("the system gives no event loop").because(error))?
        .block_on(future)
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when that did not succeed.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    let context = Context { output: Output::new(cli.output), connection: cli.connection };
    match cli.command {
        Command::Key(command) => key::run(&context, command),
        Command::Root(command) => root::run(&context, command),
        Command::Trust(command) => trust::run(&context, command),
        Command::Ca(command) => ca::run(&context, command),
        Command::Profile(command) => crate::profile::run(&context, command),
        Command::Bundle(command) => bundle::run(&context, *command),
        Command::Device(command) => device::run(&context, command),
        Command::Token(command) => token::run(&context, command),
        Command::Access(command) => access::run(&context, command),
        Command::Rollout(command) => rollout::run(&context, *command),
        Command::Freeze(command) => freeze::run(&context, command),
        Command::Gate(command) => gate::run(&context, command),
        Command::Analysis(command) => analysis::run(&context, *command),
        Command::Drift(command) => drift::run(&context, *command),
        Command::Quality(command) => quality::run(&context, command),
        Command::Feedback(command) => feedback::run(&context, command),
        Command::Alerts(command) => alerts::run(&context, command),
        Command::Samples(command) => samples::run(&context, command),
        Command::Broker(command) => broker::run(&context, command),
        Command::Events(args) => events::run(&context, &args),
        Command::Completions(args) => completions::run(&context, &args),
        Command::Manual(args) => manual::run(&context, &args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }
}
