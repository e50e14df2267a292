//! The configuration file: its settings, their defaults and their bounds.
//!
//! `agent.example.toml` documents every setting; a test holds it against this file.

mod changes;
mod delivery;
mod samples;
mod socket_mode;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use muster_shared::ids::DeviceId;
use muster_shared::limits::{MAX_LABEL_BYTES, MAX_LABELS};
use muster_shared::token::{EnrolmentToken, TokenError};
use serde::Deserialize;
use tracing_subscriber::filter::Targets;

pub(crate) use self::delivery::{DeliveryConfig, MeteredSetting, MeteredTelemetry};
pub(crate) use self::samples::SamplesConfig;
pub(crate) use self::socket_mode::SocketMode;
use crate::beside::BesideLimits;

/// Where packages put the configuration, and where commands for people at the device look for it.
pub(crate) const DEFAULT_PATH: &str = "/etc/muster-agent/agent.toml";
/// Larger than any configuration that names each setting once.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;
/// Room for a token and white space around it.
const MAX_TOKEN_FILE_BYTES: u64 = 16 * 1024;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: check that it exists and may be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The file is no text.
    #[error("the configuration {path} is not UTF-8 text of at most {MAX_CONFIG_BYTES} bytes: is it the right file?")]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// The file is not valid TOML, or names a setting that does not exist.
    #[error("the configuration {path} is malformed")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what; its text names line, column and field.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is out of its bounds.
    #[error("the configuration {path}: {field} {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The setting, as `section.name`.
        field: &'static str,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// The enrolment token cannot be read from its file.
    #[error("cannot read enrolment-token-file {path}: put into it what `muster token create` printed")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// What is in the enrolment token's file is no token.
    #[error("enrolment-token-file {path} holds no enrolment token")]
    TokenInFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: TokenError,
    },
    /// The enrolment token is not one.
    #[error("the configured enrolment token cannot be used")]
    Token(#[from] TokenError),
    /// The log filter does not parse.
    #[error(
        "log.filter {filter:?} is not a log filter: write a level (error, warn, info, debug, trace) or directives such as info,muster_agent=debug"
    )]
    LogFilter {
        /// What was given.
        filter: String,
    },
}

/// Where an enrolment token may lie when the configuration names none.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenPlaces {
    /// The file that `MUSTER_AGENT_ENROLMENT_TOKEN_FILE` names.
    pub(crate) file: Option<PathBuf>,
    /// The folder into which systemd puts this service's credentials; that of the token is `enrolment-token`.
    pub(crate) credentials: Option<PathBuf>,
}

impl TokenPlaces {
    /// As this process's environment says.
    pub(crate) fn of_environment() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self { file: set("MUSTER_AGENT_ENROLMENT_TOKEN_FILE"), credentials: set("CREDENTIALS_DIRECTORY") }
    }

    fn find(&self) -> Option<PathBuf> {
        let credential = || self.credentials.as_ref().map(|folder| folder.join("enrolment-token"));
        // A service may have other credentials and not this one, or a blank one where there was no token; a file that was named must be
        // there.
        let is_blank = |path: &PathBuf| read_start(path, MAX_TOKEN_FILE_BYTES).is_ok_and(|b| b.trim_ascii().is_empty());
        self.file.clone().or_else(|| credential().filter(|path| path.exists() && !is_blank(path)))
    }
}

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// Where the agent keeps everything it must not lose.
    pub(crate) data_dir: PathBuf,
    /// The name the device asks for when it enrols.
    pub(crate) device_id: Option<DeviceId>,
    /// The string `muster token create` printed; only needed until the device is enrolled.
    enrolment_token: Option<Secret>,
    /// A certificate the device was given by somebody else's authority, which stands for the secret of a token.
    pub(crate) provisioned: Option<ProvisionedConfig>,
    /// A file that holds that string instead.
    enrolment_token_file: Option<PathBuf>,
    /// The inference endpoint.
    pub(crate) serve: ServeConfig,
    /// Monitoring of inputs and outputs.
    pub(crate) monitor: MonitorConfig,
    /// Labels that come after their predictions.
    pub(crate) feedback: FeedbackConfig,
    /// A model that runs beside the one that answers.
    pub(crate) beside: BesideConfig,
    /// Room for bundles.
    pub(crate) storage: StorageConfig,
    /// What waits to be delivered.
    pub(crate) outbox: OutboxConfig,
    /// The connection to the controller.
    pub(crate) broker: BrokerConfig,
    /// When, how fast and over which links anything is fetched.
    pub(crate) delivery: DeliveryConfig,
    /// What may be kept of inputs, sealed, for collections of samples.
    pub(crate) samples: SamplesConfig,
    /// The log.
    pub(crate) log: LogConfig,
    /// Facts to report besides those the agent finds by itself.
    pub(crate) attributes: BTreeMap<String, String>,
}

/// A certificate of somebody else's authority.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ProvisionedConfig {
    /// It, and those between it and the authority, in PEM.
    pub(crate) certificate: PathBuf,
    /// Its key in PEM.
    pub(crate) key: PathBuf,
}

/// A string that must not show in a log.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The inference endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ServeConfig {
    /// Address to listen on; port 0 takes a free one.
    pub(crate) listen: SocketAddr,
    /// A Unix socket to listen on as well.
    pub(crate) unix_socket: Option<PathBuf>,
    /// The group it is given to; the agent's own where none is named.
    pub(crate) unix_socket_group: Option<String>,
    /// Who may use it.
    pub(crate) unix_socket_mode: SocketMode,
    /// Inferences that run at once.
    pub(crate) max_concurrency: usize,
    /// Requests that may wait for a turn; more are answered 503.
    pub(crate) max_queue: usize,
    /// Largest request body, in bytes.
    pub(crate) max_body_bytes: usize,
    /// After how long an inference is taken for stuck, in milliseconds.
    pub(crate) stuck_after_ms: u64,
    /// How long a model may take to load and to run its golden examples, in milliseconds.
    pub(crate) load_within_ms: u64,
}

/// Monitoring of inputs and outputs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct MonitorConfig {
    /// How long a window of counts is, in milliseconds.
    pub(crate) window_ms: u64,
}

/// Labels that come after their predictions.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct FeedbackConfig {
    /// Rows of answers that are remembered for their labels, in memory; the oldest is given up beyond.
    pub(crate) max_predictions: usize,
    /// How long after its answer a label may come, in milliseconds.
    pub(crate) horizon_ms: u64,
}

/// A model that runs beside the one that answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct BesideConfig {
    /// Share of one processor that a shadow may use, in percent.
    max_cpu_percent: u32,
    /// Requests that may wait for a shadow; what comes on top is skipped.
    max_queue: usize,
    /// Bytes of tensors that may wait for a shadow.
    max_queue_bytes: usize,
}

impl BesideConfig {
    /// What a model beside the one that answers may use.
    pub(crate) fn limits(&self) -> BesideLimits {
        let Self { max_cpu_percent, max_queue, max_queue_bytes } = *self;
        BesideLimits { max_cpu_percent, max_queue, max_queue_bytes }
    }
}

/// Room for bundles.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct StorageConfig {
    /// Bytes that bundles may take on disk in all: the one in use and the one beside it.
    pub(crate) max_bytes: u64,
}

/// What waits to be delivered.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct OutboxConfig {
    /// Bytes that may wait; the oldest telemetry is given up beyond.
    pub(crate) max_bytes: u64,
    /// Events that may wait.
    pub(crate) max_events: usize,
}

/// The connection to the controller.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct BrokerConfig {
    /// Where the broker is reached, if not where the controller said at enrolment (a proxy, a tunnel).
    pub(crate) host: Option<String>,
    /// Its port, if another than the controller said.
    pub(crate) port: Option<u16>,
    /// A dead connection shows after one to two of these, in seconds.
    pub(crate) keep_alive_s: u64,
    /// First pause before connecting again, in milliseconds; it doubles up to `reconnect-max-ms`.
    pub(crate) reconnect_min_ms: u64,
    /// Longest pause before connecting again, in milliseconds.
    pub(crate) reconnect_max_ms: u64,
    /// How long to wait for an acknowledgement before everything unacknowledged is sent again, in milliseconds.
    pub(crate) ack_timeout_ms: u64,
    /// How long to wait at least for wanted chunks before they are asked for again, in milliseconds; it doubles up to 8 times that,
    /// and is longer where chunks have been slow to come.
    pub(crate) chunk_timeout_ms: u64,
}

/// The log, on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LogConfig {
    /// A level, or directives by module.
    pub(crate) filter: String,
    /// How a line looks.
    pub(crate) format: LogFormat,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/muster-agent"),
            device_id: None,
            enrolment_token: None,
            enrolment_token_file: None,
            provisioned: None,
            serve: ServeConfig::default(),
            monitor: MonitorConfig::default(),
            feedback: FeedbackConfig::default(),
            beside: BesideConfig::default(),
            storage: StorageConfig::default(),
            outbox: OutboxConfig::default(),
            broker: BrokerConfig::default(),
            delivery: DeliveryConfig::default(),
            samples: SamplesConfig::default(),
            log: LogConfig::default(),
            attributes: BTreeMap::new(),
        }
    }
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8600)),
            unix_socket: None,
            unix_socket_group: None,
            unix_socket_mode: SocketMode::default(),
            max_concurrency: 2,
            max_queue: 64,
            max_body_bytes: 16 * 1024 * 1024,
            stuck_after_ms: 120_000,
            load_within_ms: 600_000,
        }
    }
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self { window_ms: 3_600_000 }
    }
}

impl Default for FeedbackConfig {
    fn default() -> Self {
        Self { max_predictions: 16_384, horizon_ms: 86_400_000 }
    }
}

impl Default for BesideConfig {
    fn default() -> Self {
        let BesideLimits { max_cpu_percent, max_queue, max_queue_bytes } = BesideLimits::default();
        Self { max_cpu_percent, max_queue, max_queue_bytes }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self { max_bytes: 4 << 30 }
    }
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self { max_bytes: 16 * 1024 * 1024, max_events: 4_096 }
    }
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            host: None,
            port: None,
            keep_alive_s: 60,
            reconnect_min_ms: 500,
            reconnect_max_ms: 60_000,
            ack_timeout_ms: 60_000,
            chunk_timeout_ms: 45_000,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

impl Config {
    /// Reads and checks the file at `path`; without one the file at [`DEFAULT_PATH`], where there is one.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn load_or_default(path: Option<&Path>) -> Result<Self, ConfigError> {
        match path {
            Some(path) => Self::load(path),
            None if Path::new(DEFAULT_PATH).exists() => Self::load(Path::new(DEFAULT_PATH)),
            None => Ok(Self::default()),
        }
    }

    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file and, where one is to blame, the line and the setting.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let bytes =
            read_start(path, MAX_CONFIG_BYTES).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let text = String::from_utf8(bytes).ok().filter(|text| text.len() as u64 <= MAX_CONFIG_BYTES);
        Self::parse(&text.ok_or_else(|| ConfigError::NotText { path: path.to_owned() })?, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        config.check().map_err(|(field, problem)| ConfigError::Value { path: path.to_owned(), field, problem })?;
        config.log.parse_filter()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let within = |field, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err((field, format!("is {value}, must be from {least} to {most}")))
            }
        };
        let size = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        within("serve.max-concurrency", size(self.serve.max_concurrency), 1, 256)?;
        within("serve.max-queue", size(self.serve.max_queue), 0, 65_536)?;
        within("serve.max-body-bytes", size(self.serve.max_body_bytes), 1_024, 1 << 30)?;
        within("serve.stuck-after-ms", self.serve.stuck_after_ms, 10_000, 86_400_000)?;
        within("serve.load-within-ms", self.serve.load_within_ms, 10_000, 86_400_000)?;
        within("monitor.window-ms", self.monitor.window_ms, 100, 7 * 86_400_000)?;
        within("feedback.max-predictions", size(self.feedback.max_predictions), 0, 10_000_000)?;
        within("feedback.horizon-ms", self.feedback.horizon_ms, 1_000, 90 * 86_400_000)?;
        within("beside.max-cpu-percent", self.beside.max_cpu_percent.into(), 1, 100)?;
        within("beside.max-queue", size(self.beside.max_queue), 1, 65_536)?;
        within("beside.max-queue-bytes", size(self.beside.max_queue_bytes), 1_024, 1 << 30)?;
        within("storage.max-bytes", self.storage.max_bytes, 1 << 20, 1 << 50)?;
        within("outbox.max-bytes", self.outbox.max_bytes, 64 * 1024, 1 << 34)?;
        within("outbox.max-events", size(self.outbox.max_events), 16, 1_000_000)?;
        within("broker.keep-alive-s", self.broker.keep_alive_s, 5, 65_535)?;
        within("broker.reconnect-min-ms", self.broker.reconnect_min_ms, 10, 3_600_000)?;
        within("broker.reconnect-max-ms", self.broker.reconnect_max_ms, self.broker.reconnect_min_ms, 86_400_000)?;
        within("broker.ack-timeout-ms", self.broker.ack_timeout_ms, 100, 3_600_000)?;
        within("broker.chunk-timeout-ms", self.broker.chunk_timeout_ms, 100, 3_600_000)?;
        self.delivery.check()?;
        self.samples.check()?;
        if self.enrolment_token.is_some() && self.enrolment_token_file.is_some() {
            return Err(("enrolment-token", "and enrolment-token-file are both set: keep one".to_owned()));
        }
        if self.attributes.len() > MAX_LABELS / 2 {
            return Err((
                "attributes",
                format!("has {} entries, at most {} are allowed", self.attributes.len(), MAX_LABELS / 2),
            ));
        }
        if let Some((key, _)) = self
            .attributes
            .iter()
            .find(|(key, value)| key.is_empty() || key.len() > MAX_LABEL_BYTES || value.len() > MAX_LABEL_BYTES)
        {
            let key: String = key.chars().take(40).collect();
            return Err((
                "attributes",
                format!("{key:?}: key and value have at most {MAX_LABEL_BYTES} bytes, and a key at least one"),
            ));
        }
        Ok(())
    }

    /// The enrolment token, from wherever it is configured, or else from `places`; `None` where there is none.
    ///
    /// # Errors
    /// [`ConfigError`] when its file cannot be read or it is not a token.
    pub(crate) fn enrolment_token(&self, places: &TokenPlaces) -> Result<Option<EnrolmentToken>, ConfigError> {
        match (&self.enrolment_token, self.enrolment_token_file.clone().or_else(|| places.find())) {
            (Some(Secret(text)), _) => Ok(Some(text.parse()?)),
            (None, Some(path)) => {
                let bytes = read_start(&path, MAX_TOKEN_FILE_BYTES)
                    .map_err(|source| ConfigError::TokenFile { path: path.clone(), source })?;
                // Whatever is no text has not the beginning of a token either.
                let token = String::from_utf8_lossy(&bytes).parse();
                token.map(Some).map_err(|source| ConfigError::TokenInFile { path: path.clone(), source })
            }
            (None, None) => Ok(None),
        }
    }
}

/// Reads at most one byte more than `max_bytes`. Links are followed: the file is the operator's.
fn read_start(path: &Path, max_bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl LogConfig {
    /// What is let through.
    ///
    /// # Errors
    /// [`ConfigError::LogFilter`].
    pub(crate) fn parse_filter(&self) -> Result<Targets, ConfigError> {
        self.filter.parse().map_err(|_| ConfigError::LogFilter { filter: self.filter.clone() })
    }
}

#[cfg(test)]
mod tests;
