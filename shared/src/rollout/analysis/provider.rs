//! Whom a metric asks, what, and what the answer says. Who carries questions and answers is another's matter.

use serde::{Deserialize, Serialize};

use super::{Value, path};
use crate::limits::MAX_ANSWER_BYTES;

/// Longest time an answer may take, in seconds.
const MAX_TIMEOUT_SECONDS: u32 = 60;
/// Time an answer may take where nothing is said, in seconds.
const TIMEOUT_SECONDS: u32 = 10;
/// Series of one answer of Prometheus.
const MAX_SERIES: usize = 1_000;
/// Headers of one request.
const MAX_HEADERS: usize = 16;
/// Headers that a template must not set: those that prove who asks, which the controller's configuration names, and those that belong to
/// the connection.
const OWN_HEADERS: [&str; 9] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "x-api-key",
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
];

/// Whom a metric asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Provider {
    /// A Prometheus, by its query API. `result` is a list with the value of each series, or a number where the query gives one.
    Prometheus(PrometheusQuestion),
    /// Any service that answers with JSON. `result` is the answer, or what it has at `jsonPath`.
    Web(WebQuestion),
    /// The rollout itself. `result` has its counts: `targeted`, `succeeded`, `successRate`, and `canary` and `control`, each with `devices`,
    /// `reporting`, `reports`, `requests`, `errors`, `errorRate`, `failures` and `latencyP99Us`.
    Fleet(FleetQuestion),
}

/// What a Prometheus is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PrometheusQuestion {
    /// Its base address, as `https://prometheus.example.com:9090`. Without one, that of the controller's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The query, in PromQL.
    pub query: String,
}

/// What a web service is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebQuestion {
    /// Where.
    pub url: String,
    /// How.
    #[serde(default)]
    pub method: WebMethod,
    /// Headers of the request. Those that prove who asks come from the controller's configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
    /// What is sent along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Where in the answer the value is, as `{$.data.share}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_path: Option<String>,
    /// After this the question is given up, in seconds; 10 where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// How a web service is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum WebMethod {
    /// `GET`.
    #[default]
    Get,
    /// `POST`.
    Post,
    /// `PUT`.
    Put,
}

/// One header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Header {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// What the rollout itself is asked: nothing has to be said, the condition picks what it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetQuestion {}

/// A request that some host must be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// How.
    pub method: WebMethod,
    /// Where.
    pub url: String,
    /// With which headers.
    pub headers: Vec<Header>,
    /// With which body.
    pub body: Option<String>,
    /// After this it is given up, in milliseconds.
    pub timeout_ms: u64,
}

fn is_address(text: &str) -> bool {
    let host = ["https://", "http://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let host = host.and_then(|rest| rest.split(['/', '?', '#']).next());
    host.is_some_and(|host| !host.is_empty() && !host.contains('@')) && text.bytes().all(|b| b.is_ascii_graphic())
}

fn is_header_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// `text` as a form's value.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

impl Provider {
    /// Every text in it that may name arguments, with what `change` makes of it.
    ///
    /// # Errors
    /// The field, and what `change` says.
    pub(super) fn map(&self, change: &impl Fn(&str) -> Result<String, String>) -> Result<Self, (&'static str, String)> {
        let of = |field: &'static str, text: &str| change(text).map_err(|why| (field, why));
        Ok(match self {
            Self::Prometheus(PrometheusQuestion { address, query }) => Self::Prometheus(PrometheusQuestion {
                address: address.as_ref().map(|text| of("prometheus.address", text)).transpose()?,
                query: of("prometheus.query", query)?,
            }),
            Self::Web(web) => Self::Web(WebQuestion {
                url: of("web.url", &web.url)?,
                headers: web
                    .headers
                    .iter()
                    .map(|Header { key, value }| {
                        Ok(Header { key: key.clone(), value: of("web.headers.value", value)? })
                    })
                    .collect::<Result<_, _>>()?,
                body: web.body.as_ref().map(|text| of("web.body", text)).transpose()?,
                json_path: web.json_path.as_ref().map(|text| of("web.jsonPath", text)).transpose()?,
                ..web.clone()
            }),
            Self::Fleet(fleet) => Self::Fleet(*fleet),
        })
    }

    /// Checks what the types alone do not express, arguments filled in.
    ///
    /// # Errors
    /// The field, and what is expected.
    pub(super) fn validate(&self) -> Result<(), (&'static str, String)> {
        let expect = |ok: bool, field, reason: &str| if ok { Ok(()) } else { Err((field, reason.to_owned())) };
        let address = "https://HOST or http://HOST is expected, without user and password";
        match self {
            Self::Prometheus(PrometheusQuestion { address: at, query }) => {
                expect(at.as_ref().is_none_or(|at| is_address(at)), "prometheus.address", address)?;
                expect(!query.trim().is_empty(), "prometheus.query", "a query is expected, it is empty")
            }
            Self::Web(web) => {
                expect(is_address(&web.url), "web.url", address)?;
                expect(web.headers.len() <= MAX_HEADERS, "web.headers", "at most 16 are expected")?;
                for Header { key, value } in &web.headers {
                    expect(is_header_name(key), "web.headers.key", "the name of a header is expected, as Accept")?;
                    expect(
                        !OWN_HEADERS.contains(&key.to_ascii_lowercase().as_str()),
                        "web.headers.key",
                        "credentials come from files that the controller's configuration names, under rollout.analysis",
                    )?;
                    let visible = value.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
                    expect(visible, "web.headers.value", "visible ASCII characters are expected")?;
                }
                let sends = web.body.is_none() || web.method != WebMethod::Get;
                expect(sends, "web.body", "a GET has none: set method to POST or PUT")?;
                let path = web.json_path.as_ref().is_none_or(|text| path::is_path(text));
                expect(path, "web.jsonPath", "one place is expected, as {$.data.items[0].share}")?;
                let timeout = web.timeout_seconds.is_none_or(|s| (1..=MAX_TIMEOUT_SECONDS).contains(&s));
                expect(timeout, "web.timeoutSeconds", "1 to 60 is expected")
            }
            Self::Fleet(_) => Ok(()),
        }
    }

    /// What must be asked of some host; none where the rollout itself knows. `prometheus` is the address of Prometheus where the template names
    /// none.
    ///
    /// # Errors
    /// That there is no such address.
    pub fn question(&self, prometheus: Option<&str>) -> Result<Option<Question>, String> {
        let seconds = |seconds: Option<u32>| u64::from(seconds.unwrap_or(TIMEOUT_SECONDS)) * 1_000;
        match self {
            Self::Prometheus(PrometheusQuestion { address, query }) => {
                let base = address.as_deref().or(prometheus).ok_or(
                    "neither the template nor the controller's configuration (rollout.analysis.prometheus-address) says where Prometheus is",
                )?;
                let kind = "application/x-www-form-urlencoded".to_owned();
                Ok(Some(Question {
                    method: WebMethod::Post,
                    url: format!("{}/api/v1/query", base.trim_end_matches('/')),
                    headers: vec![Header { key: "content-type".to_owned(), value: kind }],
                    body: Some(format!("query={}", encoded(query))),
                    timeout_ms: seconds(None),
                }))
            }
            Self::Web(web) => Ok(Some(Question {
                method: web.method,
                url: web.url.clone(),
                headers: web.headers.clone(),
                body: web.body.clone(),
                timeout_ms: seconds(web.timeout_seconds),
            })),
            Self::Fleet(_) => Ok(None),
        }
    }

    /// What an answer with this HTTP status and body says.
    ///
    /// # Errors
    /// Why it says nothing, in words.
    pub fn read(&self, status: u16, body: &[u8]) -> Result<Value, String> {
        if body.len() > MAX_ANSWER_BYTES {
            return Err(format!("the answer has more than {MAX_ANSWER_BYTES} bytes"));
        }
        let json = serde_json::from_slice::<serde_json::Value>(body);
        let fine = (200..300).contains(&status);
        match self {
            Self::Prometheus(_) => match json {
                Ok(json) => prometheus(json),
                Err(_) if !fine => Err(format!("it answered with HTTP status {status}")),
                Err(error) => Err(format!("the answer is not Prometheus': {error}")),
            },
            Self::Web(_) if !fine => Err(format!("it answered with HTTP status {status}")),
            Self::Web(web) => {
                let whole = Value::from(json.map_err(|error| format!("the answer is not JSON: {error}"))?);
                match &web.json_path {
                    Some(text) => path::follow(text, &whole),
                    None => Ok(whole),
                }
            }
            Self::Fleet(_) => Err("the rollout itself is not asked by HTTP".to_owned()),
        }
    }
}

/// What Prometheus' query API answered: <https://prometheus.io/docs/prometheus/latest/querying/api/>.
fn prometheus(mut json: serde_json::Value) -> Result<Value, String> {
    if json["status"] != "success" {
        let text = |field: &str| json[field].as_str().unwrap_or("no reason").chars().take(200).collect::<String>();
        return Err(format!("Prometheus says {}: {}", text("errorType"), text("error")));
    }
    let number = |sample: &serde_json::Value| {
        let text = sample.get(1).and_then(serde_json::Value::as_str);
        text.and_then(|text| text.parse().ok()).ok_or_else(|| "a sample of Prometheus is no number".to_owned())
    };
    let result = json["data"]["result"].take();
    match json["data"]["resultType"].as_str() {
        Some("scalar") => number(&result).map(Value::Number),
        Some("vector") => {
            let series = result.as_array().map(Vec::as_slice).unwrap_or_default();
            if series.len() > MAX_SERIES {
                return Err(format!("the query gives {} series, {MAX_SERIES} at most are read", series.len()));
            }
            let values: Result<Vec<Value>, _> =
                series.iter().map(|series| number(&series["value"]).map(Value::Number)).collect();
            values.map(Value::List)
        }
        Some(other) => Err(format!("the query gives a {other}: one that gives a vector or a scalar is expected")),
        None => Err("the answer is not Prometheus': it has no resultType".to_owned()),
    }
}
