//! Asks a host for one measurement. Only hosts that the configuration names are asked, so that whoever may write a template cannot make the
//! controller call whom they like; what proves who asks comes from files that it names, and no answer leads elsewhere.

use std::time::Duration;

use muster_shared::limits::MAX_ANSWER_BYTES;
use muster_shared::rollout::{Provider, Question, Value, WebMethod};
use reqwest::{Certificate, Client, Method, Url};
use zeroize::Zeroizing;

use crate::config::{AnalysisConfig, CredentialConfig, is_loopback};
use crate::durable;
use crate::problem::chain;

/// Longest token in a file, in bytes.
const MAX_TOKEN_BYTES: usize = 4_096;

/// The host of `url` with its port, as the configuration names it.
fn host_of(url: &Url) -> Option<String> {
    let host = url.host_str()?.to_ascii_lowercase();
    Some(match url.port_or_known_default() {
        Some(port) => format!("{host}:{port}"),
        None => host,
    })
}

/// Whether `named`, which may leave the port out, is the host `host`.
fn is_same(named: &str, host: &str, url: &Url) -> bool {
    let named = named.to_ascii_lowercase();
    named == host || Some(named.as_str()) == url.host_str()
}

/// The address in `question`, if the configuration lets it be asked.
fn allowed(config: &AnalysisConfig, question: &Question) -> Result<(Url, String), String> {
    let url = Url::parse(&question.url).map_err(|error| format!("{:?} is no address: {error}", question.url))?;
    let host = host_of(&url).ok_or_else(|| format!("{:?} names no host", question.url))?;
    if !config.allowed_hosts.iter().any(|named| is_same(named, &host, &url)) {
        return Err(format!(
            "the host {host} is not allowed: the controller's configuration must name it in rollout.analysis.allowed-hosts"
        ));
    }
    match url.scheme() {
        "https" => Ok((url, host)),
        "http" if is_loopback(&url) || config.allow_plain_http => Ok((url, host)),
        "http" => Err(format!(
            "http:// to {host} can be read and changed on the way: use https://, or set rollout.analysis.allow-plain-http"
        )),
        other => Err(format!("https:// is expected, not {other}://")),
    }
}

fn file(path: &std::path::Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let read = durable::read(path).map_err(|error| chain(&error))?;
    read.map(Zeroizing::new).ok_or_else(|| format!("{} is not there", path.display()))
}

fn token(credential: &CredentialConfig) -> Result<Option<Zeroizing<String>>, String> {
    let Some(path) = &credential.bearer_token_file else { return Ok(None) };
    let bytes = file(path)?;
    let text = std::str::from_utf8(&bytes).map(str::trim).unwrap_or_default();
    let fine = (1..=MAX_TOKEN_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if !fine {
        return Err(format!(
            "{} holds no token: 1 to {MAX_TOKEN_BYTES} visible characters are expected",
            path.display()
        ));
    }
    Ok(Some(Zeroizing::new(text.to_owned())))
}

fn client(url: &Url, credential: Option<&CredentialConfig>, timeout_ms: u64) -> Result<Client, String> {
    let mut builder = Client::builder()
        .user_agent(concat!("muster-controller/", env!("CARGO_PKG_VERSION")))
        .timeout(Duration::from_millis(timeout_ms))
        .redirect(reqwest::redirect::Policy::none())
        .https_only(url.scheme() == "https");
    if is_loopback(url) {
        builder = builder.no_proxy();
    }
    if let Some(path) = credential.and_then(|credential| credential.ca_file.as_ref()) {
        let certificates = Certificate::from_pem_bundle(&file(path)?).unwrap_or_default();
        if certificates.is_empty() {
            return Err(format!("{} holds no certificate in PEM form", path.display()));
        }
        builder = builder.tls_certs_only(certificates);
    }
    builder.build().map_err(|error| format!("TLS cannot be set up: {error}"))
}

/// What `provider` says now.
///
/// # Errors
/// Why it says nothing, in words that hold no secret.
pub(crate) async fn ask(config: &AnalysisConfig, provider: &Provider) -> Result<Value, String> {
    let question = provider.question(config.prometheus_address.as_deref())?;
    let question = question.ok_or("the rollout itself is not asked by HTTP")?;
    let (url, host) = allowed(config, &question)?;
    let credential = config.credentials.iter().find(|credential| is_same(&credential.host, &host, &url));
    // Made each time: measurements are rare, and files can be exchanged while the controller runs.
    let client = client(&url, credential, question.timeout_ms)?;
    let method = match question.method {
        WebMethod::Get => Method::GET,
        WebMethod::Post => Method::POST,
        WebMethod::Put => Method::PUT,
    };
    let mut request = client.request(method, url);
    for header in &question.headers {
        request = request.header(&header.key, &header.value);
    }
    if let Some(token) = credential.map(token).transpose()?.flatten() {
        request = request.bearer_auth(token.as_str());
    }
    if let Some(body) = question.body {
        request = request.body(body);
    }
    let unreachable = |error: reqwest::Error| format!("{host} cannot be reached: {}", chain(&error.without_url()));
    let mut response = request.send().await.map_err(unreachable)?;
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(unreachable)? {
        body.extend_from_slice(&piece);
        if body.len() > MAX_ANSWER_BYTES {
            return Err(format!("the answer of {host} has more than {MAX_ANSWER_BYTES} bytes"));
        }
    }
    if response.status().is_redirection() {
        return Err(format!(
            "{host} leads elsewhere (HTTP status {}), where nobody is asked",
            response.status().as_u16()
        ));
    }
    provider.read(response.status().as_u16(), &body)
}
