//! The log: where it goes, how much of it, and the last troubles in it, which the status shows.
//!
//! Under systemd it goes to the journal with its fields, elsewhere to standard error. What may be logged is everybody's own matter;
//! secrets are kept out by their types, which do not show them.

mod journal;
mod recent;

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};

pub(crate) use self::recent::{Trouble, troubles};
use crate::config::{ConfigError, LogConfig, LogFormat};

/// Lets the filter be changed while the agent runs. Cloning gives another handle to the same.
#[derive(Clone)]
pub(crate) struct LogHandle(reload::Handle<Targets, Registry>);

impl LogHandle {
    /// Lets through what `config` says from now on.
    ///
    /// # Errors
    /// [`ConfigError::LogFilter`].
    pub(crate) fn change_filter(&self, config: &LogConfig) -> Result<(), ConfigError> {
        // The subscriber lives as long as the process.
        let _ = self.0.reload(config.parse_filter()?);
        Ok(())
    }
}

/// Starts logging as `config` says.
///
/// # Errors
/// [`ConfigError::LogFilter`].
pub(crate) fn install(config: &LogConfig) -> Result<LogHandle, ConfigError> {
    let (filter, handle) = reload::Layer::new(config.parse_filter()?);
    let plain = || tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let out: Box<dyn Layer<_> + Send + Sync> = match (config.format, journal::Journal::of_standard_error()) {
        (LogFormat::Json, _) => Box::new(plain().json()),
        (LogFormat::Text, Some(journal)) => Box::new(journal),
        (LogFormat::Text, None) => Box::new(plain()),
    };
    tracing_subscriber::registry().with(filter).with(recent::Recent).with(out).init();
    Ok(LogHandle(handle))
}

/// One event of the log: its text with all fields behind it, as people read it, and the fields by themselves.
#[derive(Debug, Default)]
struct Line {
    text: String,
    fields: Vec<(&'static str, String)>,
}

impl Line {
    fn of(event: &tracing::Event<'_>) -> Self {
        let mut line = Self::default();
        event.record(&mut line);
        let Self { text, fields } = &mut line;
        for (name, value) in fields.iter() {
            // Writing to a string cannot fail.
            let _ = write!(text, " {name}={value}");
        }
        line
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.text, "{value:?}");
        } else {
            self.fields.push((field.name(), format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}
