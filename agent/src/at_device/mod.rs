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
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::config::{Config, ConfigError};

/// What of another program's answer is read, in bytes.
const MAX_PROGRAM_BYTES: usize = 1024 * 1024;

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

/// What `program` prints, the last [`MAX_PROGRAM_BYTES`] of it where there is more; none where it cannot be started or takes longer than `limit`.
async fn printed(program: &str, arguments: &[&str], limit: Duration) -> Option<Vec<u8>> {
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let out = child.stdout.take()?;
    tokio::time::timeout(limit, end_of_all(out)).await.ok()?.ok()
}

/// The last [`MAX_PROGRAM_BYTES`] of what comes.
async fn end_of_all(mut source: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    while source.read_buf(&mut kept).await? > 0 {
        if kept.len() > 2 * MAX_PROGRAM_BYTES {
            kept.drain(..kept.len() - MAX_PROGRAM_BYTES);
        }
    }
    kept.drain(..kept.len().saturating_sub(MAX_PROGRAM_BYTES));
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_much_that_is_printed_the_end_is_kept() {
        for length in [0, 5, MAX_PROGRAM_BYTES, MAX_PROGRAM_BYTES + 1, 5 * MAX_PROGRAM_BYTES + 7] {
            let all: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let kept = end_of_all(&all[..]).await.unwrap();
            assert_eq!(kept.len(), length.min(MAX_PROGRAM_BYTES));
            assert!(all.ends_with(&kept));
        }
    }
}
