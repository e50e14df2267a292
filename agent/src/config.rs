//! The configuration file: its settings, their defaults and their bounds.
//!
//! `agent.example.toml` documents every setting; a test holds it against this file.

mod delivery;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use muster_shared::ids::DeviceId;
use muster_shared::limits::{MAX_LABEL_BYTES, MAX_LABELS};
use muster_shared::token::{EnrolmentToken, TokenError};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

pub(crate) use self::delivery::{DeliveryConfig, MeteredSetting, MeteredTelemetry};

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
        // A service may have other credentials and not this one; a file that was named must be there.
        self.file.clone().or_else(|| credential().filter(|path| path.exists()))
    }
}

/// Everything that can be configured.
#[derive(Debug, Clone, Deserialize)]
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
    /// Room for bundles.
    pub(crate) storage: StorageConfig,
    /// What waits to be delivered.
    pub(crate) outbox: OutboxConfig,
    /// The connection to the controller.
    pub(crate) broker: BrokerConfig,
    /// When, how fast and over which links anything is fetched.
    pub(crate) delivery: DeliveryConfig,
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
#[derive(Clone, Deserialize)]
#[serde(transparent)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The inference endpoint.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ServeConfig {
    /// Address to listen on; port 0 takes a free one.
    pub(crate) listen: SocketAddr,
    /// A Unix socket to listen on as well.
    pub(crate) unix_socket: Option<PathBuf>,
    /// Inferences that run at once.
    pub(crate) max_concurrency: usize,
    /// Requests that may wait for a turn; more are answered 503.
    pub(crate) max_queue: usize,
    /// Largest request body, in bytes.
    pub(crate) max_body_bytes: usize,
}

/// Monitoring of inputs and outputs.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct MonitorConfig {
    /// How long a window of counts is, in milliseconds.
    pub(crate) window_ms: u64,
}

/// Room for bundles.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct StorageConfig {
    /// Bytes that bundles may take on disk in all: the one in use and the one beside it.
    pub(crate) max_bytes: u64,
}

/// What waits to be delivered.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct OutboxConfig {
    /// Bytes that may wait; the oldest telemetry is given up beyond.
    pub(crate) max_bytes: u64,
    /// Events that may wait.
    pub(crate) max_events: usize,
}

/// The connection to the controller.
#[derive(Debug, Clone, Deserialize)]
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
#[derive(Debug, Clone, Deserialize)]
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
            storage: StorageConfig::default(),
            outbox: OutboxConfig::default(),
            broker: BrokerConfig::default(),
            delivery: DeliveryConfig::default(),
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
            max_concurrency: 2,
            max_queue: 64,
            max_body_bytes: 16 * 1024 * 1024,
        }
    }
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self { window_ms: 3_600_000 }
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
        EnvFilter::try_new(&config.log.filter)
            .map_err(|_| ConfigError::LogFilter { filter: config.log.filter.clone() })?;
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
        within("monitor.window-ms", self.monitor.window_ms, 100, 7 * 86_400_000)?;
        within("storage.max-bytes", self.storage.max_bytes, 1 << 20, 1 << 50)?;
        within("outbox.max-bytes", self.outbox.max_bytes, 64 * 1024, 1 << 34)?;
        within("outbox.max-events", size(self.outbox.max_events), 16, 1_000_000)?;
        within("broker.keep-alive-s", self.broker.keep_alive_s, 5, 65_535)?;
        within("broker.reconnect-min-ms", self.broker.reconnect_min_ms, 10, 3_600_000)?;
        within("broker.reconnect-max-ms", self.broker.reconnect_max_ms, self.broker.reconnect_min_ms, 86_400_000)?;
        within("broker.ack-timeout-ms", self.broker.ack_timeout_ms, 100, 3_600_000)?;
        within("broker.chunk-timeout-ms", self.broker.chunk_timeout_ms, 100, 3_600_000)?;
        self.delivery.check()?;
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

    /// Threads that drive connections; inference runs on threads of its own.
    #[must_use]
    pub(crate) fn worker_threads(&self) -> usize {
        std::thread::available_parallelism().map_or(1, |n| n.get().min(2))
    }
}

/// Reads at most one byte more than `max_bytes`. Links are followed: the file is the operator's.
fn read_start(path: &Path, max_bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl LogConfig {
    /// Starts logging to standard error.
    ///
    /// # Errors
    /// [`ConfigError::LogFilter`].
    pub(crate) fn install(&self) -> Result<(), ConfigError> {
        let filter =
            EnvFilter::try_new(&self.filter).map_err(|_| ConfigError::LogFilter { filter: self.filter.clone() })?;
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
        match self.format {
            LogFormat::Text => log.init(),
            LogFormat::Json => log.json().init(),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("agent.toml"))
    }

    fn chain(error: &dyn std::error::Error) -> String {
        std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }

    #[test]
    fn an_empty_file_is_every_default() {
        let config = parse("").unwrap();
        assert_eq!(config.serve.listen.to_string(), "127.0.0.1:8600");
        assert_eq!(config.monitor.window_ms, 3_600_000);
        assert!(config.enrolment_token(&TokenPlaces::default()).unwrap().is_none());
    }

    /// The example documents every setting and its default: uncommented, it is what an empty file gives.
    #[test]
    fn the_example_is_complete_and_true() {
        let example = include_str!("../agent.example.toml");
        assert_eq!(format!("{:?}", parse(example).unwrap()), format!("{:?}", Config::default()));
        let shown =
            |line: &str| line.strip_prefix("# ").unwrap_or(line).split_once(" = ").map(|(key, _)| key.to_owned());
        let keys: Vec<String> = example.lines().filter_map(shown).collect();
        let unknown = chain(&parse("nonsense = 1").unwrap_err());
        let expected = unknown.split("expected one of").nth(1).unwrap();
        for section in
            ["", "[serve]\n", "[monitor]\n", "[storage]\n", "[outbox]\n", "[broker]\n", "[delivery]\n", "[log]\n"]
        {
            let text = chain(&parse(&format!("{section}nonsense = 1")).unwrap_err());
            let listed = text.split("expected").nth(1).unwrap_or(expected);
            for name in listed.split('`').skip(1).step_by(2) {
                let documented = keys.iter().any(|key| key == name) || example.contains(&format!("[{name}]"));
                assert!(documented, "{name:?} of {section:?} is not in agent.example.toml");
            }
        }
    }

    #[test]
    fn faults_name_the_line_and_the_setting() {
        for (text, expected) in [
            ("\n\nwindow = 3", &["line 3", "window"][..]),
            ("[monitor]\nwindow-ms = \"an hour\"", &["line 2", "window-ms"]),
            ("device-id = \"Not Valid\"", &["line 1", "device id"]),
            ("[serve]\nlisten = \"nowhere\"", &["line 2", "listen"]),
            ("[serve]\nmax-concurrency = 0", &["serve.max-concurrency", "from 1 to 256"]),
            ("[storage]\nmax-bytes = 1", &["storage.max-bytes", "from 1048576"]),
            ("[broker]\nreconnect-max-ms = 20", &["broker.reconnect-max-ms"]),
            ("[delivery]\nquiet-hours = [\"22-06\"]", &["line 2", "22-06", "22:00-06:00"]),
            ("[delivery]\nmetered = \"maybe\"", &["line 2", "metered", "auto"]),
            ("[delivery]\nmax-download-bytes-per-s = 3", &["delivery.max-download-bytes-per-s", "256 or more"]),
            ("[delivery]\nmetered-interfaces = [\"w*an\"]", &["delivery.metered-interfaces", "w*an"]),
            ("[attributes]\n\"\" = \"x\"", &["attributes"]),
            ("[log]\nfilter = \"muster=loud\"", &["log.filter"]),
            ("enrolment-token = \"a\"\nenrolment-token-file = \"b\"", &["enrolment-token"]),
        ] {
            let error = chain(&parse(text).unwrap_err());
            for part in expected {
                assert!(error.contains(part), "{text:?} gave {error:?}, which does not name {part:?}");
            }
        }
    }

    #[test]
    fn a_token_never_shows() {
        let config = parse("enrolment-token = \"hunter2\"").unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        let error = chain(&config.enrolment_token(&TokenPlaces::default()).unwrap_err());
        assert!(error.contains("muster1.") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_token_file_is_named_whatever_is_wrong_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let config = parse(&format!("enrolment-token-file = {path:?}")).unwrap();
        let told = || chain(&config.enrolment_token(&TokenPlaces::default()).unwrap_err());
        assert!(told().contains(path.to_str().unwrap()) && told().contains("No such file"), "{}", told());
        let token = EnrolmentToken {
            url: "https://c:1".into(),
            ca_sha256: muster_shared::ids::Digest::of(b"ca"),
            root_sha256: muster_shared::ids::Digest::of(b"root"),
            secret: Some("hunter2".into()),
        };
        let whole = token.to_token_string();
        let huge = whole.repeat(100_000);
        for content in [&b""[..], b"hunter2", &[0xff, 0xfe, 0x68], &whole.as_bytes()[..20], huge.as_bytes()] {
            std::fs::write(&path, content).unwrap();
            assert!(told().contains(path.to_str().unwrap()) && !told().contains("hunter2"), "{}", told());
        }
        std::fs::write(&path, format!("  {whole}\n")).unwrap();
        assert_eq!(config.enrolment_token(&TokenPlaces::default()).unwrap(), Some(token));
    }

    #[test]
    fn a_token_may_lie_where_the_environment_says() {
        let folder = tempfile::tempdir().unwrap();
        let token = |secret: &str| EnrolmentToken {
            url: "https://c:1".into(),
            ca_sha256: muster_shared::ids::Digest::of(b"ca"),
            root_sha256: muster_shared::ids::Digest::of(b"root"),
            secret: Some(secret.into()),
        };
        let write = |name: &str| {
            std::fs::write(folder.path().join(name), token(name).to_token_string()).unwrap();
            folder.path().join(name)
        };
        let found = |config: &str, places: &TokenPlaces| {
            parse(config).unwrap().enrolment_token(places).map(|token| token.and_then(|token| token.secret))
        };
        let (file, set) = (write("named"), write("set"));
        let credentials = TokenPlaces { file: None, credentials: Some(folder.path().to_owned()) };
        assert_eq!(found("", &credentials).unwrap(), None, "other credentials are no token");
        write("enrolment-token");
        assert_eq!(found("", &credentials).unwrap().as_deref(), Some("enrolment-token"));
        let named = TokenPlaces { file: Some(file), ..credentials };
        assert_eq!(found("", &named).unwrap().as_deref(), Some("named"));
        assert_eq!(found(&format!("enrolment-token-file = {set:?}"), &named).unwrap().as_deref(), Some("set"));
        let gone = TokenPlaces { file: Some(folder.path().join("gone")), ..named };
        assert!(chain(&found("", &gone).unwrap_err()).contains("gone"));
    }

    #[test]
    fn a_configuration_that_is_no_text_is_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        for content in [vec![0xff, 0xfe, b'x'], vec![b'\n'; 2_000_000]] {
            std::fs::write(&path, content).unwrap();
            let text = chain(&Config::load(&path).unwrap_err());
            assert!(text.contains("agent.toml") && text.contains("UTF-8 text of at most"), "{text}");
        }
        let text = chain(&Config::load(folder.path()).unwrap_err());
        assert!(text.contains("cannot read the configuration") && text.contains("directory"), "{text}");
    }

    proptest::proptest! {
        #[test]
        fn a_damaged_example_is_right_or_refused_by_name(at: proptest::sample::Index, text in ".{0,3}", cut in 0..20usize) {
            // Settings that are commented out for want of a default count, too; of the two tokens there may be one.
            let example: String = include_str!("../agent.example.toml")
                .lines()
                .map(|line| line.strip_prefix("# ").filter(|l| l.contains(" = ")).unwrap_or(line))
                .filter(|line| !line.starts_with("enrolment-token ="))
                .map(|line| format!("{line}\n"))
                .collect();
            proptest::prop_assert!(parse(&example).is_ok(), "{:?}", parse(&example));
            let mut chars: Vec<char> = example.chars().collect();
            let at = at.index(chars.len());
            let end = (at + cut).min(chars.len());
            chars.splice(at..end, text.chars());
            let damaged: String = chars.into_iter().collect();
            if let Err(error) = parse(&damaged) {
                let told = chain(&error);
                proptest::prop_assert!(told.contains("agent.toml") || told.contains("log.filter"), "{}", told);
            }
        }

        #[test]
        fn any_text_is_a_configuration_or_refused(text in "[a-z\\[\\]=\".0-9\n-]{0,120}") {
            let _ = parse(&text);
        }
    }
}
