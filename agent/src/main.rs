//! The Muster agent: brings signed models onto this device, serves them, watches them, and goes back when one fails.
//!
//! This file reads the command line, installs what must exist once per process (TLS provider, log, runtime) and hands
//! over to [`daemon`].

/// Marks a step of an update in `muster-agent-crashing`; in the agent it is nothing at all.
#[cfg(not(feature = "crash-points"))]
macro_rules! passing {
    ($($step:tt)+) => {};
}
#[cfg(feature = "crash-points")]
#[macro_use]
mod crash_points;

mod accounts;
mod arguments;
mod at_device;
mod attributes;
mod beside;
mod boot;
mod causes;
mod condition;
mod config;
mod daemon;
mod endpoints;
mod feedback;
mod files;
mod garbage;
mod heartbeat;
mod host;
mod identity;
mod log;
mod metered;
mod metrics;
mod monitor;
mod mqtt;
mod notify;
mod outbox;
mod pressure;
mod program;
mod reload;
mod resources;
mod samples;
mod sealed;
mod serve;
mod status;
mod system;
mod telemetry;
mod time;
#[cfg(test)]
mod tiny_disk;
mod trust_store;
mod updater;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Subcommands};
use crate::at_device::Outcome;
use crate::config::Config;
use crate::daemon::{DaemonError, Ended};
use crate::program::Handover;
use crate::reload::Source;

/// Status when there is nothing to enrol with (`EX_CONFIG` of sysexits.h): the service's unit takes it for no failure, and does not start again.
const NOT_ENROLLED: u8 = 78;
/// Status of an end in order after which another program is to run (`EX_TEMPFAIL`), where this process cannot become it: the service manager
/// starts the agent again.
const ANOTHER_PROGRAM: u8 = 75;
/// Threads that drive connections, on boards with one core too: while one computes a request that is quick ([`host`]), another is there.
const RUNTIME_THREADS: usize = 2;

fn main() -> ExitCode {
    // Two TLS users in one process (broker and enrolment) must agree on the cryptography before either starts.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed already");
    }
    match run(Arguments::parse()) {
        Ok(End::Well) => ExitCode::SUCCESS,
        Ok(End::Badly) => ExitCode::FAILURE,
        Ok(End::AnotherProgram(handover)) => {
            if let Some(handover) = handover {
                let why = anyhow::Error::new(handover.carry_out());
                complain(&why.context("the packaged program cannot take over this process, so that ends"));
            }
            ExitCode::from(ANOTHER_PROGRAM)
        }
        Err(error) => {
            complain(&error);
            match error.downcast_ref() {
                Some(DaemonError::NoToken) => ExitCode::from(NOT_ENROLLED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// How the process ends.
enum End {
    /// All is well.
    Well,
    /// Something is not, and has been said.
    Badly,
    /// In order, and another program is to run: the packaged one takes over this process where it can, or is started again.
    AnotherProgram(Option<Handover>),
}

/// Does what was asked for.
fn run(arguments: Arguments) -> anyhow::Result<End> {
    #[cfg(feature = "crash-points")]
    if crash_points::begin()? {
        return Ok(End::Well);
    }
    let Outcome { text, is_well } = match arguments.command {
        Some(Subcommands::CheckConfig { config }) => {
            Config::load(&config)?;
            Outcome { text: format!("{} is right", config.display()), is_well: true }
        }
        #[cfg(feature = "manual")]
        Some(Subcommands::Manual { folder }) => {
            let command = <Arguments as clap::CommandFactory>::command();
            muster_manual::write(command, muster_manual::Section::Administration, &folder)?;
            return Ok(End::Well);
        }
        Some(Subcommands::Feedback(arguments)) => Outcome { text: feedback::run(&arguments)?, is_well: true },
        Some(Subcommands::Status(arguments)) => at_device::status::run(&arguments)?,
        Some(Subcommands::Doctor(arguments)) => at_device::doctor::run(&arguments)?,
        Some(Subcommands::Enrol(arguments)) => at_device::enrol::run(&arguments)?,
        Some(Subcommands::Logs(arguments)) => at_device::logs::run(&arguments)?,
        Some(Subcommands::SelfTest(arguments)) => at_device::self_test::run(&arguments)?,
        Some(Subcommands::SupportBundle(arguments)) => at_device::support_bundle::run(&arguments)?,
        None => {
            let program = program::launch(arguments.config.as_deref());
            let config = arguments.config.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
            let log = log::install(&config.log)?;
            let source = Source { file: arguments.config, log };
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(RUNTIME_THREADS).enable_all().build()?;
            let ended = runtime.block_on(daemon::run(config, source, program));
            // A model that is still computing must not hold the exit back.
            runtime.shutdown_background();
            return Ok(match ended? {
                Ended::ByRequest => End::Well,
                Ended::ForAnotherProgram(handover) => End::AnotherProgram(handover),
            });
        }
    };
    if !text.is_empty() {
        say(&text);
    }
    Ok(if is_well { End::Well } else { End::Badly })
}

#[expect(clippy::print_stdout, reason = "the answer of a command goes to standard output")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "the reason for failing must show even where the log is off")]
fn complain(error: &anyhow::Error) {
    eprintln!("muster-agent: {error:#}");
}
