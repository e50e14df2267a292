//! The configuration file: what can be set, what holds when it is not, and which values make no sense.
//!
//! Nothing here touches the network or the data folder; a file that parses and passes [`Config::check`] may
//! still name a port that is taken, and the part that binds it says so.

mod alerts;
mod analysis;
mod outside;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use muster_shared::limits::{MAX_APPROVERS, MAX_PACKET_BYTES};
use serde::Deserialize;

pub(crate) use alerts::{AlertsConfig, ReceiverConfig, ReceiverKind, is_loopback, receiver_url};
pub(crate) use analysis::{AnalysisConfig, CredentialConfig};
pub(crate) use outside::{DeviceIdFrom, OutsideConfig};

use crate::pki::DAY_MS;

/// The shortest life of a device's certificate: certificates count in whole seconds.
const MIN_DEVICE_CERTIFICATE_MS: u64 = 6_000;
/// The longest: that of the authority is twenty years.
pub(crate) const MAX_DEVICE_CERTIFICATE_MS: u64 = 10 * 365 * DAY_MS;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Where keys, store and files live.
    pub(crate) data_dir: PathBuf,
    /// The HTTPS API.
    pub(crate) api: ApiConfig,
    /// The MQTT broker.
    pub(crate) broker: BrokerConfig,
    /// The rollout loop.
    pub(crate) rollout: RolloutConfig,
    /// Certificates.
    pub(crate) pki: PkiConfig,
    /// What devices report.
    pub(crate) telemetry: TelemetryConfig,
    /// Bundles on their way to devices.
    pub(crate) content: ContentConfig,
    /// Labels on their way to devices.
    pub(crate) feedback: FeedbackConfig,
    /// What is told of on its own.
    pub(crate) alerts: AlertsConfig,
    /// Samples for retraining.
    pub(crate) samples: SamplesConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/muster-controller"),
            api: ApiConfig::default(),
            broker: BrokerConfig::default(),
            rollout: RolloutConfig::default(),
            pki: PkiConfig::default(),
            telemetry: TelemetryConfig::default(),
            content: ContentConfig::default(),
            feedback: FeedbackConfig::default(),
            alerts: AlertsConfig::default(),
            samples: SamplesConfig::default(),
        }
    }
}

/// The HTTPS API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct ApiConfig {
    /// Where it listens; port 0 picks a free one.
    pub(crate) listen: SocketAddr,
    /// How devices and people reach it; made from `listen` when absent.
    pub(crate) public_url: Option<String>,
    /// A file that holds the administrator's token; the controller makes one when absent.
    pub(crate) admin_token_file: Option<PathBuf>,
    /// Largest JSON body, in bytes.
    pub(crate) max_body_bytes: usize,
    /// Largest file of a bundle, in bytes.
    pub(crate) max_file_bytes: u64,
    /// After this a request is given up, in milliseconds. File transfers may last longer, as long as bytes arrive.
    pub(crate) request_timeout_ms: u64,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443),
            public_url: None,
            admin_token_file: None,
            max_body_bytes: 2 * 1024 * 1024,
            max_file_bytes: 1024 * 1024 * 1024,
            request_timeout_ms: 30_000,
        }
    }
}

/// The MQTT broker.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct BrokerConfig {
    /// Where it listens; port 0 picks a free one.
    pub(crate) listen: SocketAddr,
    /// The host devices connect to.
    pub(crate) public_host: String,
    /// The port devices connect to; that of `listen` when absent.
    pub(crate) public_port: Option<u16>,
    /// Devices that may be connected at once.
    pub(crate) max_connections: usize,
    /// Largest MQTT packet, in bytes.
    pub(crate) max_packet_bytes: u32,
    /// Plain MQTT without certificates, for a developer's own machine only: anyone who connects may claim any id.
    pub(crate) insecure_dev: bool,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8883),
            public_host: "127.0.0.1".into(),
            public_port: None,
            max_connections: 10_000,
            max_packet_bytes: u32::try_from(MAX_PACKET_BYTES).unwrap_or(u32::MAX),
            insecure_dev: false,
        }
    }
}

/// The rollout loop.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct RolloutConfig {
    /// How often every rollout is looked at when nothing happens, in milliseconds.
    pub(crate) tick_ms: u64,
    /// How long a signed assignment is good for, in milliseconds.
    pub(crate) assignment_valid_for_ms: u64,
    /// A device that has said nothing for this long counts as away, even where its connection still stands, in
    /// milliseconds.
    pub(crate) device_timeout_ms: u64,
    /// Whom analyses may ask.
    pub(crate) analysis: AnalysisConfig,
    /// Approvals that every rollout needs before it begins. A rollout can ask for more, and never for fewer.
    pub(crate) approvals_needed: u32,
    /// Updates that fail in a row on a device before no rollout takes it in any more, emergencies aside.
    pub(crate) quarantine_after: u32,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            tick_ms: 1_000,
            assignment_valid_for_ms: 7 * 24 * 3_600_000,
            device_timeout_ms: 3 * 3_600_000,
            analysis: AnalysisConfig::default(),
            approvals_needed: 0,
            quarantine_after: 3,
        }
    }
}

/// Certificates.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct PkiConfig {
    /// DNS names in the server's certificate. The hosts of `api.public-url` and `broker.public-host` are added.
    pub(crate) names: Vec<String>,
    /// Addresses in the server's certificate.
    pub(crate) addresses: Vec<IpAddr>,
    /// How long a device's certificate is good for, in milliseconds. Devices renew theirs at two thirds of that.
    pub(crate) device_certificate_valid_for_ms: u64,
    /// Authorities of others, whose certificates stand for an enrolment token.
    pub(crate) outside: Vec<OutsideConfig>,
}

impl Default for PkiConfig {
    fn default() -> Self {
        Self {
            names: vec!["localhost".into()],
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            device_certificate_valid_for_ms: 365 * DAY_MS,
            outside: Vec::new(),
        }
    }
}

/// What devices report.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct TelemetryConfig {
    /// How long windows are kept, in milliseconds.
    pub(crate) retention_ms: u64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { retention_ms: 30 * 24 * 3_600_000 }
    }
}

/// Bundles on their way to devices.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct ContentConfig {
    /// Bytes of chunks sent to all devices together, per second.
    pub(crate) send_bytes_per_s: u64,
    /// Bytes of chunks that may be sent at once after a quiet time.
    pub(crate) burst_bytes: u64,
}

impl Default for ContentConfig {
    fn default() -> Self {
        Self { send_bytes_per_s: 100 * 1024 * 1024, burst_bytes: 16 * 1024 * 1024 }
    }
}

/// Labels on their way to devices.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct FeedbackConfig {
    /// How long labels wait for a device that is away, in milliseconds.
    pub(crate) valid_for_ms: u64,
}

impl Default for FeedbackConfig {
    fn default() -> Self {
        Self { valid_for_ms: 7 * DAY_MS }
    }
}

/// Samples for retraining.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct SamplesConfig {
    /// Bytes that the samples of all collections may take.
    pub(crate) max_bytes: u64,
    /// Collections that are kept, open or not.
    pub(crate) max_collections: usize,
    /// How long a collection is kept once it is closed, in milliseconds.
    pub(crate) retention_ms: u64,
}

impl Default for SamplesConfig {
    fn default() -> Self {
        Self { max_bytes: 10 * 1024 * 1024 * 1024, max_collections: 100, retention_ms: 30 * DAY_MS }
    }
}

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration file {path} is not valid")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value that makes no sense.
    #[error("the configuration file {path} is not valid: setting {setting}: {reason}")]
    InFile {
        /// The file.
        path: PathBuf,
        /// Its name, as in the file.
        setting: &'static str,
        /// What is expected.
        reason: String,
    },
    /// As [`ConfigError::InFile`], of settings that are in no file.
    #[error("setting {setting}: {reason}")]
    Value {
        /// Its name, as in the file.
        setting: &'static str,
        /// What is expected.
        reason: String,
    },
}

impl Config {
    /// Reads and checks the file; without one, every setting has its default.
    ///
    /// # Errors
    /// [`ConfigError`] with the setting at fault.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let config = match path {
            None => Self::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
                toml::from_str(&text)
                    .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?
            }
        };
        config.check().map_err(|error| match (error, path) {
            (ConfigError::Value { setting, reason }, Some(path)) => {
                ConfigError::InFile { path: path.to_owned(), setting, reason }
            }
            (error, _) => error,
        })?;
        Ok(config)
    }

    /// Checks what the types alone do not express.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the first fault found.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let expect = |ok: bool, setting: &'static str, reason: &str| {
            if ok { Ok(()) } else { Err(ConfigError::Value { setting, reason: reason.to_owned() }) }
        };
        expect(!self.data_dir.as_os_str().is_empty(), "data-dir", "a folder is expected, it is empty")?;
        if let Some(url) = &self.api.public_url {
            expect(
                host_of_url(url).is_some(),
                "api.public-url",
                "https://host or https://host:port is expected, without a path",
            )?;
        }
        expect(self.api.max_body_bytes >= 64 * 1024, "api.max-body-bytes", "at least 65536 is needed for a manifest")?;
        expect(self.api.max_file_bytes > 0, "api.max-file-bytes", "it must be above 0")?;
        expect(self.api.request_timeout_ms > 0, "api.request-timeout-ms", "it must be above 0")?;
        expect(is_host(&self.broker.public_host), "broker.public-host", "a host name or an address is expected")?;
        expect(self.broker.public_port != Some(0), "broker.public-port", "it must be above 0")?;
        expect(self.broker.max_connections > 0, "broker.max-connections", "it must be above 0")?;
        expect(
            (128 * 1024..=MAX_PACKET_BYTES).contains(&(self.broker.max_packet_bytes as usize)),
            "broker.max-packet-bytes",
            "131072 to 1048576 is expected: a chunk must fit, and devices take no more",
        )?;
        expect(
            !self.broker.insecure_dev || self.broker.listen.ip().is_loopback(),
            "broker.insecure-dev",
            "it is allowed only where broker.listen is a loopback address",
        )?;
        expect((10..=3_600_000).contains(&self.rollout.tick_ms), "rollout.tick-ms", "10 to 3600000 is expected")?;
        expect(
            self.rollout.assignment_valid_for_ms >= 10_000,
            "rollout.assignment-valid-for-ms",
            "at least 10000 is expected, or devices get assignments that have expired",
        )?;
        expect(self.feedback.valid_for_ms > 0, "feedback.valid-for-ms", "it must be above 0")?;
        expect(self.rollout.device_timeout_ms > 0, "rollout.device-timeout-ms", "it must be above 0")?;
        expect(
            self.rollout.approvals_needed as usize <= MAX_APPROVERS,
            "rollout.approvals-needed",
            "0 to 32 is expected",
        )?;
        if let Some(name) = self.pki.names.iter().find(|name| !is_host(name)) {
            return Err(ConfigError::Value {
                setting: "pki.names",
                reason: format!("{name:?} is not a host name; addresses belong in pki.addresses"),
            });
        }
        expect(
            (MIN_DEVICE_CERTIFICATE_MS..=MAX_DEVICE_CERTIFICATE_MS).contains(&self.pki.device_certificate_valid_for_ms),
            "pki.device-certificate-valid-for-ms",
            "6000 to 315360000000 (ten years) is expected",
        )?;
        analysis::check(&self.rollout.analysis).map_err(|(setting, reason)| ConfigError::Value { setting, reason })?;
        alerts::check(&self.alerts).map_err(|(setting, reason)| ConfigError::Value { setting, reason })?;
        outside::check(&self.pki.outside).map_err(|reason| ConfigError::Value { setting: "pki.outside", reason })?;
        expect(self.telemetry.retention_ms > 0, "telemetry.retention-ms", "it must be above 0")?;
        expect(
            self.content.send_bytes_per_s >= 64 * 1024,
            "content.send-bytes-per-s",
            "at least 65536 is expected, the size of one chunk",
        )?;
        expect(
            self.content.burst_bytes >= 128 * 1024,
            "content.burst-bytes",
            "at least 131072 is expected, or no chunk fits",
        )
    }
}

/// The host in `https://host[:port]`, or none when the text is anything else.
pub(crate) fn host_of_url(url: &str) -> Option<&str> {
    let authority = url.strip_prefix("https://")?.strip_suffix('/').unwrap_or(url.strip_prefix("https://")?);
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    (port_ok && is_host(host)).then_some(host)
}

/// Whether `text` is an address or could be a DNS name.
fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
        || ((1..=253).contains(&text.len())
            && text.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = include_str!("../controller.example.toml");

    #[test]
    fn the_defaults_are_sound() {
        Config::default().check().unwrap();
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let example: Config = toml::from_str(EXAMPLE).unwrap();
        assert_eq!(example, Config::default());
        // What is commented out must be right as well.
        let all: String = EXAMPLE
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        toml::from_str::<Config>(&all).unwrap().check().unwrap();
    }

    #[test]
    fn the_example_shows_every_setting() {
        let listed = |section: &str| {
            let error = toml::from_str::<Config>(&format!("{section}nonsense = 1")).unwrap_err().to_string();
            let (_, listed) = error.split_once("expected").unwrap();
            listed.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
        };
        let shows =
            |start: &str| EXAMPLE.lines().any(|line| line.strip_prefix("#: ").unwrap_or(line).starts_with(start));
        for name in listed("") {
            if shows(&format!("{name} = ")) {
                continue;
            }
            for setting in listed(&format!("[{name}]\n")) {
                let is_shown = shows(&format!("{setting} = "))
                    || [format!("[{name}.{setting}"), format!("[[{name}.{setting}")].iter().any(|table| shows(table));
                assert!(is_shown, "{setting:?} of [{name}] is not in controller.example.toml");
            }
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, named) in [
            ("data-dirs = '/x'", "data-dirs"),
            ("[api]\nlisten = 'nowhere'", "listen"),
            ("[api]\nlisten = 5", "line 2"),
            ("[rollout]\ntick-ms = -1", "tick-ms"),
            ("[rollout", "line 1"),
        ] {
            let error = toml::from_str::<Config>(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        for (text, named) in [
            ("[rollout]\ntick-ms = 0", "rollout.tick-ms"),
            ("[api]\npublic-url = 'http://x'", "api.public-url"),
            ("[api]\npublic-url = 'https://x/path'", "api.public-url"),
            ("[pki]\nnames = ['a b']", "pki.names"),
            ("[pki]\ndevice-certificate-valid-for-ms = 5999", "pki.device-certificate-valid-for-ms"),
            ("[broker]\ninsecure-dev = true\nlisten = '0.0.0.0:1883'", "broker.insecure-dev"),
            ("[broker]\nmax-packet-bytes = 4294967295", "broker.max-packet-bytes"),
            ("[content]\nsend-bytes-per-s = 1", "content.send-bytes-per-s"),
            ("[alerts]\ninterval-ms = 0", "alerts.interval-ms"),
            ("[alerts]\nfalse-discovery-rate = nan", "alerts.false-discovery-rate"),
            ("[[alerts.receivers]]\nname = 'a'\nkind = 'slack'", "either url or url-file"),
            ("[[alerts.receivers]]\nname = 'a'\nkind = 'slack'\nurl = 'http://hooks.example.org'", "allow-plain-http"),
            ("[[alerts.receivers]]\nname = 'a'\nkind = 'webhook'\nurl = 'http://127.0.0.1:9'", "secret-file is needed"),
            ("[[alerts.receivers]]\nname = 'a'\nkind = 'slack'\nurl = 'https://u:p@h'", "user or password"),
            ("[[alerts.receivers]]\nname = 'a'\nkind = 'slack'\nurl = 'ftp://h'", "https:// is expected"),
        ] {
            let error = toml::from_str::<Config>(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Config::load(Some(Path::new("no/such/file.toml"))).unwrap_err();
        assert!(error.to_string().contains("no/such/file.toml"));
    }

    #[test]
    fn every_fault_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("odd.toml");
        for (bytes, words) in [
            (&b"[rollout]\ntick-ms = 0"[..], "rollout.tick-ms"),
            (b"data-dir = '\xff\xfe'", "UTF-8"),
            (b"[rollout", "line 1"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = anyhow::Error::from(Config::load(Some(&path)).unwrap_err());
            let said = format!("{error:#}");
            assert!(said.contains("odd.toml") && said.contains(words), "{said}");
        }
    }

    #[test]
    fn hosts_of_urls() {
        for (url, host) in [
            ("https://a.example:8443", Some("a.example")),
            ("https://a.example/", Some("a.example")),
            ("https://10.0.0.1:1", Some("10.0.0.1")),
            ("https://[::1]:8443", Some("::1")),
            ("http://a", None),
            ("https://", None),
            ("https://a:0", None),
            ("https://a/b", None),
            ("https://[::1", None),
        ] {
            assert_eq!(host_of_url(url), host, "{url}");
        }
    }

    proptest! {
        /// The file that is shipped, with bytes lost, doubled or changed.
        #[test]
        fn a_damaged_file_is_read_or_refused_by_name(at in 0..EXAMPLE.len(), gone in 0_usize..40, new in prop::collection::vec(any::<u8>(), 0..8)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("odd.toml");
            let rest = &EXAMPLE.as_bytes()[(at + gone).min(EXAMPLE.len())..];
            std::fs::write(&path, [&EXAMPLE.as_bytes()[..at], &new, rest].concat()).unwrap();
            match Config::load(Some(&path)) {
                Ok(config) => prop_assert!(config.check().is_ok()),
                Err(error) => prop_assert!(error.to_string().contains("odd.toml")),
            }
        }

        #[test]
        fn any_text_is_a_configuration_or_refused(text in "(\\[(api|broker|rollout)\\]\n)?.{0,60}") {
            if let Ok(config) = toml::from_str::<Config>(&text) {
                let _ = config.check();
            }
            let _ = host_of_url(&text);
        }
    }
}
