//! The settings `[alerts]` and `[[alerts.receivers]]`: how often alerts are looked at, how many there may be, and who is told.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use muster_shared::alert::Severity;
use muster_shared::ids::RuleName;
use reqwest::Url;
use serde::Deserialize;

/// Receivers there may be.
const MAX_RECEIVERS: usize = 32;

/// Alerts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct AlertsConfig {
    /// How often everything is measured, in milliseconds.
    pub(crate) interval_ms: u64,
    /// Whether the built-in rules are looked at.
    pub(crate) built_in_rules: bool,
    /// Alerts that may be pending or firing at once.
    pub(crate) max_active: usize,
    /// Alerts that are over and kept to be shown.
    pub(crate) max_resolved: usize,
    /// How long those are kept, in milliseconds.
    pub(crate) resolved_kept_ms: u64,
    /// Expected share of false ones among the alerts that statistical tests begin.
    pub(crate) false_discovery_rate: f64,
    /// Messages that may wait for one receiver; the oldest are given up.
    pub(crate) max_queued: usize,
    /// How long the first wait before another try is, in milliseconds; each further one is twice as long.
    pub(crate) retry_after_ms: u64,
    /// How long such a wait is at most, in milliseconds.
    pub(crate) retry_at_most_ms: u64,
    /// A message that was not taken for this long is given up, in milliseconds.
    pub(crate) give_up_after_ms: u64,
    /// Series of drift shown to Prometheus at most; each column of each bundle and group is one.
    pub(crate) max_drift_series: usize,
    /// Who is told.
    pub(crate) receivers: Vec<ReceiverConfig>,
}

impl Default for AlertsConfig {
    fn default() -> Self {
        Self {
            interval_ms: 60_000,
            built_in_rules: true,
            max_active: 2_000,
            max_resolved: 2_000,
            resolved_kept_ms: 7 * 24 * 3_600_000,
            false_discovery_rate: 0.05,
            max_queued: 1_000,
            retry_after_ms: 1_000,
            retry_at_most_ms: 300_000,
            give_up_after_ms: 24 * 3_600_000,
            max_drift_series: 2_000,
            receivers: Vec::new(),
        }
    }
}

/// What a receiver understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReceiverKind {
    /// Prometheus' Alertmanager, API v2.
    Alertmanager,
    /// Anything that takes our JSON, signed.
    Webhook,
    /// Slack's incoming webhooks.
    Slack,
    /// Something that trains models: told once of each incident of rules with `retrain`.
    Retraining,
}

impl ReceiverKind {
    /// As it is written.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Alertmanager => "alertmanager",
            Self::Webhook => "webhook",
            Self::Slack => "slack",
            Self::Retraining => "retraining",
        }
    }
}

fn info() -> Severity {
    Severity::Info
}

fn ten_seconds() -> u64 {
    10_000
}

fn one_minute() -> u64 {
    60_000
}

/// Somebody who is told.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct ReceiverConfig {
    /// What it is called here.
    pub(crate) name: RuleName,
    /// What it understands.
    pub(crate) kind: ReceiverKind,
    /// Where it is told; Alertmanager's base address.
    #[serde(default)]
    pub(crate) url: Option<String>,
    /// A file with that address, where it is a secret, as Slack's are.
    #[serde(default)]
    pub(crate) url_file: Option<PathBuf>,
    /// A file with the secret that messages are signed with.
    #[serde(default)]
    pub(crate) secret_file: Option<PathBuf>,
    /// A file with a bearer token.
    #[serde(default)]
    pub(crate) bearer_token_file: Option<PathBuf>,
    /// The only authority its certificate may come from, in PEM; those of the system otherwise.
    #[serde(default)]
    pub(crate) ca_file: Option<PathBuf>,
    /// Whether http:// may leave this machine.
    #[serde(default)]
    pub(crate) allow_plain_http: bool,
    /// What is less bad than this is not told.
    #[serde(default = "info")]
    pub(crate) min_severity: Severity,
    /// A try is given up after this, in milliseconds.
    #[serde(default = "ten_seconds")]
    pub(crate) timeout_ms: u64,
    /// How often Alertmanager is told again of what fires, in milliseconds.
    #[serde(default = "one_minute")]
    pub(crate) resend_ms: u64,
}

/// Whether `host` is this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        host == "localhost"
            || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// The address in `text`, where such a receiver may be told.
///
/// # Errors
/// What is expected, without the address, which may be a secret.
pub(crate) fn receiver_url(text: &str, allow_plain_http: bool) -> Result<Url, String> {
    let url = Url::parse(text.trim()).map_err(|error| format!("the address is no URL: {error}"))?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err("the address names no host".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the address holds a user or password: use bearer-token-file".to_owned());
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) || allow_plain_http => Ok(url),
        "http" => {
            Err("http:// to another machine can be read and changed on the way: use https://, or set allow-plain-http"
                .to_owned())
        }
        other => Err(format!("https:// is expected, not {other}://")),
    }
}

/// Whether these settings make sense: the setting at fault, and what is expected.
pub(super) fn check(config: &AlertsConfig) -> Result<(), (&'static str, String)> {
    let expect =
        |ok: bool, setting: &'static str, reason: &str| if ok { Ok(()) } else { Err((setting, reason.to_owned())) };
    expect((100..=3_600_000).contains(&config.interval_ms), "alerts.interval-ms", "100 to 3600000 is expected")?;
    expect((1..=100_000).contains(&config.max_active), "alerts.max-active", "1 to 100000 is expected")?;
    expect(config.max_resolved <= 100_000, "alerts.max-resolved", "at most 100000 is expected")?;
    expect(
        config.false_discovery_rate > 0.0 && config.false_discovery_rate < 1.0,
        "alerts.false-discovery-rate",
        "a share above 0 and below 1 is expected",
    )?;
    expect((1..=100_000).contains(&config.max_queued), "alerts.max-queued", "1 to 100000 is expected")?;
    expect(
        config.retry_after_ms > 0 && config.retry_after_ms <= config.retry_at_most_ms,
        "alerts.retry-after-ms",
        "it must be above 0, and no more than alerts.retry-at-most-ms",
    )?;
    expect(config.retry_at_most_ms <= 24 * 3_600_000, "alerts.retry-at-most-ms", "a day at most is expected")?;
    expect(config.give_up_after_ms > 0, "alerts.give-up-after-ms", "it must be above 0")?;
    expect(config.max_drift_series <= 100_000, "alerts.max-drift-series", "at most 100000 is expected")?;
    expect(config.receivers.len() <= MAX_RECEIVERS, "alerts.receivers", "32 at most are expected")?;
    let mut names = BTreeSet::new();
    for receiver in &config.receivers {
        let fail = |reason: &str| Err(("alerts.receivers", format!("receiver {}: {reason}", receiver.name)));
        if !names.insert(&receiver.name) {
            return fail("two have this name");
        }
        match (&receiver.url, &receiver.url_file) {
            (Some(url), None) => {
                if let Err(reason) = receiver_url(url, receiver.allow_plain_http) {
                    return fail(&reason);
                }
            }
            (None, Some(_)) => {}
            (None, None) | (Some(_), Some(_)) => return fail("either url or url-file is expected"),
        }
        let signs = matches!(receiver.kind, ReceiverKind::Webhook | ReceiverKind::Retraining);
        if signs && receiver.secret_file.is_none() {
            return fail("secret-file is needed: what it is told is signed, so that it can tell us from others");
        }
        if !signs && receiver.secret_file.is_some() {
            return fail("secret-file belongs to the kinds webhook and retraining");
        }
        if !(100..=300_000).contains(&receiver.timeout_ms) {
            return fail("timeout-ms: 100 to 300000 is expected");
        }
        if !(1_000..=3_600_000).contains(&receiver.resend_ms) {
            return fail("resend-ms: 1000 to 3600000 is expected");
        }
    }
    Ok(())
}
