//! The settings `[rollout.analysis]`: whom analyses may ask, and how the controller proves who asks.

use std::path::PathBuf;

use reqwest::Url;
use serde::Deserialize;

/// Hosts and credentials there may be.
const MAX_HOSTS: usize = 64;

/// Whom analyses may ask.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct AnalysisConfig {
    /// Hosts that may be asked, as `prometheus.example.com:9090`, or without a port for any of the host's; nobody else is.
    pub(crate) allowed_hosts: Vec<String>,
    /// Where Prometheus is, for templates that do not say.
    pub(crate) prometheus_address: Option<String>,
    /// Whether http:// may leave this machine.
    pub(crate) allow_plain_http: bool,
    /// What some of the hosts want to see.
    pub(crate) credentials: Vec<CredentialConfig>,
}

/// What one host wants to see.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct CredentialConfig {
    /// The host, as in `allowed-hosts`.
    pub(crate) host: String,
    /// A file with a bearer token, read for each question.
    #[serde(default)]
    pub(crate) bearer_token_file: Option<PathBuf>,
    /// The only authority its certificate may come from, in PEM; those of the system otherwise.
    #[serde(default)]
    pub(crate) ca_file: Option<PathBuf>,
}

/// Whether `text` is a host, with or without a port.
fn is_host(text: &str) -> bool {
    let plain = !text.contains(['/', '@', '?', '#']) && text.bytes().all(|b| b.is_ascii_graphic());
    plain
        && Url::parse(&format!("https://{text}/")).is_ok_and(|url| url.host_str().is_some_and(|host| !host.is_empty()))
}

/// Whether these settings make sense: the setting at fault, and what is expected.
pub(super) fn check(config: &AnalysisConfig) -> Result<(), (&'static str, String)> {
    let host = "a host is expected, as prometheus.example.com:9090";
    let fail = |setting, reason: String| Err((setting, reason));
    if config.allowed_hosts.len() > MAX_HOSTS || config.credentials.len() > MAX_HOSTS {
        return fail("rollout.analysis.allowed-hosts", format!("at most {MAX_HOSTS} are expected"));
    }
    if let Some(named) = config.allowed_hosts.iter().find(|named| !is_host(named)) {
        return fail("rollout.analysis.allowed-hosts", format!("{named:?}: {host}"));
    }
    let url = config.prometheus_address.as_ref().map(|address| Url::parse(address));
    if url
        .is_some_and(|url| !url.is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.username().is_empty()))
    {
        let reason = "https://HOST or http://HOST is expected, without user and password".to_owned();
        return fail("rollout.analysis.prometheus-address", reason);
    }
    if let Some(wrong) = config.credentials.iter().find(|credential| !config.allowed_hosts.contains(&credential.host)) {
        return fail(
            "rollout.analysis.credentials",
            format!("the host {:?} is not among rollout.analysis.allowed-hosts", wrong.host),
        );
    }
    if config.credentials.iter().any(|known| known.bearer_token_file.is_none() && known.ca_file.is_none()) {
        return fail("rollout.analysis.credentials", "bearer-token-file or ca-file is expected".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_hosts_and_credentials_are_of_hosts() {
        let good = AnalysisConfig {
            allowed_hosts: vec!["prometheus.example.com:9090".into(), "[::1]:80".into(), "localhost".into()],
            prometheus_address: Some("https://prometheus.example.com:9090".into()),
            ..AnalysisConfig::default()
        };
        check(&good).unwrap();
        let with = |change: &dyn Fn(&mut AnalysisConfig)| {
            let mut config = good.clone();
            change(&mut config);
            check(&config).unwrap_err()
        };
        for bad in ["", "https://example.com", "me@example.com", "example.com/x", "a b"] {
            assert_eq!(with(&|c| c.allowed_hosts.push(bad.into())).0, "rollout.analysis.allowed-hosts", "{bad}");
        }
        assert_eq!(with(&|c| c.prometheus_address = Some("ftp://x".into())).0, "rollout.analysis.prometheus-address");
        let credential = |host: &str, file: Option<&str>| CredentialConfig {
            host: host.into(),
            bearer_token_file: file.map(Into::into),
            ca_file: None,
        };
        assert!(with(&|c| c.credentials.push(credential("other", Some("/x")))).1.contains("not among"));
        assert!(with(&|c| c.credentials.push(credential("localhost", None))).1.contains("bearer-token-file"));
    }
}
