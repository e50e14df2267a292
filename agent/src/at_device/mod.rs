//! The commands for somebody who stands at the device: what runs, what is wrong, and what to do.
//!
//! They ask the running agent where there is one, and read its files where there is none. Only `enrol` writes any.

mod ask;
pub(crate) mod doctor;
pub(crate) mod enrol;
pub(crate) mod logs;
pub(crate) mod self_test;
pub(crate) mod status;
pub(crate) mod support_bundle;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::io::AsyncReadExt as _;

use crate::config::{Config, ConfigError};

/// What of another program's answer is read, in bytes.
const MAX_PROGRAM_BYTES: u64 = 1024 * 1024;

/// Which agent, and in which form to answer.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeviceArgs {
    /// The agent's configuration file [default: /etc/muster-agent/agent.toml, where there is one].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Lines for people, or JSON for programs.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

impl DeviceArgs {
    /// The configuration.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn load(&self) -> Result<Config, ConfigError> {
        Config::load_or_default(self.config.as_deref())
    }
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Lines for people.
    Text,
    /// JSON for programs.
    Json,
}

/// What a command has to say.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Goes to standard output.
    pub(crate) text: String,
    /// Whether all is well; the exit status says so too.
    pub(crate) is_well: bool,
}

/// `answer` as JSON, or as `text` has it.
fn formed<T: Serialize>(output: Output, answer: &T, text: impl FnOnce(&T) -> String) -> String {
    match output {
        Output::Text => text(answer),
        Output::Json => serde_json::to_string_pretty(answer).unwrap_or_default(),
    }
}

/// Runs `work` on a small runtime of its own.
fn block_on<T>(work: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

/// What `program` prints, at most its first [`MAX_PROGRAM_BYTES`]; none where it cannot be started or takes longer than `limit`.
async fn printed(program: &str, arguments: &[&str], limit: Duration) -> Option<Vec<u8>> {
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let mut bytes = Vec::new();
    let mut out = child.stdout.take()?.take(MAX_PROGRAM_BYTES);
    tokio::time::timeout(limit, out.read_to_end(&mut bytes)).await.ok()?.ok()?;
    Some(bytes)
}
