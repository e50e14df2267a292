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

mod arguments;
mod attributes;
mod beside;
mod boot;
mod causes;
mod config;
mod daemon;
mod endpoints;
mod feedback;
mod files;
mod garbage;
mod host;
mod identity;
mod metered;
mod metrics;
mod monitor;
mod mqtt;
mod notify;
mod outbox;
mod resources;
mod samples;
mod sealed;
mod serve;
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
use crate::config::Config;

fn main() -> ExitCode {
    // Two TLS users in one process (broker and enrolment) must agree on the cryptography before either starts.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed already");
    }
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    #[cfg(feature = "crash-points")]
    if crash_points::begin()? {
        return Ok(());
    }
    match arguments.command {
        Some(Subcommands::CheckConfig { config }) => {
            Config::load(&config)?;
            say(&format!("{} is right", config.display()));
            Ok(())
        }
        Some(Subcommands::Feedback(arguments)) => {
            say(&feedback::run(&arguments)?);
            Ok(())
        }
        None => {
            let config = arguments.config.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
            config.log.install()?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(config.worker_threads())
                .enable_all()
                .build()?;
            let ended = runtime.block_on(daemon::run(config));
            // A model that is still computing must not hold the exit back.
            runtime.shutdown_background();
            Ok(ended?)
        }
    }
}

#[expect(clippy::print_stdout, reason = "the answer of a command goes to standard output")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "the reason for failing must show even where the log is off")]
fn complain(error: &anyhow::Error) {
    eprintln!("muster-agent: {error:#}");
}
