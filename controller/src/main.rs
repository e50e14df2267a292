//! The Muster controller: one binary with the broker, the store, the API and the rollout loop in it.
//!
//! This file reads the command line and sets up what the whole process shares; `serve` decides in which order the
//! parts start and stop.

mod access;
mod admission;
mod alerts;
mod analysis;
mod api;
mod auth;
mod blobs;
mod broker;
mod card;
mod clock;
mod collections;
mod comparison;
mod config;
mod content;
mod director;
mod drift;
mod durable;
mod endpoints;
mod events;
mod executor;
mod feedback;
mod fleet;
mod ingest;
mod metrics;
mod orphans;
mod pki;
mod problem;
mod quality;
mod readiness;
mod serve;
mod state;
mod store;
#[cfg(test)]
mod testing;
mod trust;
mod windows;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use muster_manual::Section;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::Config;

/// Time that what still reads files gets to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Parser)]
#[command(name = "muster-controller", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller until it is told to stop
    Serve {
        /// The configuration file; every setting has a default
        #[arg(long, env = "MUSTER_CONTROLLER_CONFIG")]
        config: Option<PathBuf>,
        /// How the log is written; which of it, the environment variable RUST_LOG decides
        #[arg(long, value_enum, default_value_t = LogFormat::Text)]
        log_format: LogFormat,
    },
    /// Check a configuration file without running anything
    CheckConfig {
        /// The configuration file
        #[arg(long, env = "MUSTER_CONTROLLER_CONFIG")]
        config: PathBuf,
    },
    /// Write manual pages and shell completions into a folder
    #[command(hide = true)]
    Manual {
        /// The folder
        folder: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,rmqtt=warn,sled=warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where standard error is gone, so is the last place to say it.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    // Both ring and aws-lc-rs are linked; whoever asks rustls for its provider must get one answer.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider was installed first"))?;
    match Cli::parse().command {
        Command::Serve { config, log_format } => {
            start_log(log_format);
            let config = Config::load(config.as_deref())?;
            let runtime = tokio::runtime::Runtime::new().context("the asynchronous runtime cannot start")?;
            let outcome = runtime.block_on(async {
                let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be received")?;
                let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be received")?;
                let told_to_stop = async {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                };
                Ok(serve::serve(config, told_to_stop).await?)
            });
            // Reading from a disk that failed may never end, and nobody waits for it any more.
            runtime.shutdown_timeout(STOP_TIMEOUT);
            outcome
        }
        Command::CheckConfig { config } => {
            Config::load(Some(&config))?;
            writeln!(std::io::stdout(), "{} is valid", config.display()).context("cannot write to standard output")
        }
        Command::Manual { folder } => muster_manual::write(Cli::command(), Section::Administration, &folder)
            .with_context(|| format!("cannot write into {}", folder.display())),
    }
}
