//! Asks the agent that runs on this device, by TCP or by its Unix socket.

use std::time::Duration;

use serde_json::Value;

use crate::config::Config;
use crate::endpoints;
use crate::identity::reason;

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Why there is no answer, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the agent does not answer ({0})")]
pub(super) struct NoAnswer(pub(super) String);

/// What the running agent answers to `GET path`, as text or as JSON.
///
/// # Errors
/// [`NoAnswer`] with what was tried last.
pub(super) async fn get(config: &Config, path: &str, is_text: bool) -> Result<String, NoAnswer> {
    let published = endpoints::published(&config.data_dir);
    let configured = (config.serve.listen.port() != 0).then(|| format!("http://{}", config.serve.listen));
    let client = || endpoints::client().timeout(TIMEOUT);
    let mut last = NoAnswer(format!("{} names no address", config.data_dir.join("endpoints.json").display()));
    if let Some(url) = published.or(configured) {
        match fetch(client(), &url, path, is_text).await {
            Ok(text) => return Ok(text),
            Err(error) => last = NoAnswer(format!("{url}: {error}")),
        }
    }
    if let Some(socket) = &config.serve.unix_socket {
        match fetch(client().unix_socket(socket.clone()), "http://localhost", path, is_text).await {
            Ok(text) => return Ok(text),
            Err(error) => last = NoAnswer(format!("{}; {}: {error}", last.0, socket.display())),
        }
    }
    Err(last)
}

/// The status of the running agent.
///
/// # Errors
/// [`NoAnswer`].
pub(super) async fn status(config: &Config) -> Result<Value, NoAnswer> {
    let text = get(config, "/status", false).await?;
    let status: Option<Value> = serde_json::from_str(&text).ok();
    // Any program may answer there.
    status
        .filter(|status| status.get("agent_version").is_some_and(Value::is_string))
        .ok_or_else(|| NoAnswer("what answers there is no Muster agent".to_owned()))
}

async fn fetch(client: reqwest::ClientBuilder, url: &str, path: &str, is_text: bool) -> Result<String, String> {
    let client = client.build().map_err(|error| reason(&error))?;
    let accept = if is_text { "text/plain" } else { "*/*" };
    let request = client.get(format!("{url}{path}")).header("accept", accept);
    let mut answer = request.send().await.map_err(|error| reason(&error))?;
    if !answer.status().is_success() {
        return Err(format!("it answers {}", answer.status()));
    }
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(|error| reason(&error))? {
        if body.len() + part.len() > MAX_ANSWER_BYTES {
            return Err("its answer is too large".to_owned());
        }
        body.extend_from_slice(&part);
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}
