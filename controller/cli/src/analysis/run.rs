//! `muster analysis run`: measures each metric of a template once, from here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use muster_shared::limits::MAX_ANSWER_BYTES;
use muster_shared::rollout::{Measurement, MetricTemplate, Outcome, Question, Value, WebMethod};
use reqwest::{Client, Method};
use serde::Serialize;

use super::{read, words};
use crate::command::{Context, block_on};
use crate::disk;
use crate::failure::Failure;
use crate::output::{self, cell, toned};
use crate::rollout::outcome_tone;

const MAX_TOKEN_BYTES: u64 = 4_096;

/// An argument, as `service=press`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    name: String,
    value: String,
}

impl FromStr for Given {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is no argument: write NAME=VALUE"))?;
        Ok(Self { name: name.to_owned(), value: value.to_owned() })
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The template, in YAML (.yaml), JSON (.json) or TOML.
    file: PathBuf,
    /// An argument of the template; once for each.
    #[arg(long = "arg", value_name = "NAME=VALUE")]
    args: Vec<Given>,
    /// Where Prometheus is, for metrics that do not say.
    #[arg(long, value_name = "URL")]
    prometheus: Option<String>,
    /// A file with a bearer token to show to those who are asked.
    #[arg(long, value_name = "FILE")]
    bearer_token_file: Option<PathBuf>,
}

/// What one metric came to.
#[derive(Debug, Serialize)]
struct Tried {
    metric: String,
    asks: &'static str,
    /// None of metrics that only a rollout can answer.
    measurement: Option<Measurement>,
}

fn token(path: Option<&Path>) -> Result<Option<String>, Failure> {
    let text = path.map(|path| disk::read_text(path, MAX_TOKEN_BYTES)).transpose()?;
    Ok(text.map(|text| text.trim().to_owned()))
}

async fn ask(question: &Question, token: Option<&str>) -> Result<(u16, Vec<u8>), reqwest::Error> {
    let client = Client::builder()
        .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
        .timeout(Duration::from_millis(question.timeout_ms))
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    let method = match question.method {
        WebMethod::Get => Method::GET,
        WebMethod::Post => Method::POST,
        WebMethod::Put => Method::PUT,
    };
    let mut request = client.request(method, &question.url);
    for header in &question.headers {
        request = request.header(&header.key, &header.value);
    }
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if let Some(body) = &question.body {
        request = request.body(body.clone());
    }
    let mut response = request.send().await?;
    let mut body = Vec::new();
    // What is too long is refused by whoever reads it.
    while let Some(piece) = response.chunk().await? {
        body.extend_from_slice(&piece);
        if body.len() > MAX_ANSWER_BYTES {
            break;
        }
    }
    Ok((response.status().as_u16(), body))
}

async fn answer(
    metric: &MetricTemplate,
    prometheus: Option<&str>,
    token: Option<&str>,
) -> Result<Option<Value>, String> {
    let question = metric.provider.question(prometheus);
    let without_default = |why: String| format!("{why}; here, --prometheus says it");
    let Some(question) = question.map_err(without_default)? else { return Ok(None) };
    let asked = ask(&question, token).await;
    let (status, body) = asked.map_err(|error| {
        let failure = Failure::unavailable("it cannot be reached").because(error.without_url());
        failure.chain()
    })?;
    metric.provider.read(status, &body).map(Some)
}

fn text(tried: &[Tried]) -> String {
    let rows = tried.iter().map(|tried| {
        let (outcome, said) = match &tried.measurement {
            None => (cell("-"), "only a rollout can answer this"),
            Some(measurement) => {
                let said = measurement.message.as_ref().or(measurement.value.as_ref());
                let outcome = measurement.outcome;
                (toned(outcome.to_string(), outcome_tone(outcome)), said.map_or("-", String::as_str))
            }
        };
        vec![cell(&tried.metric), cell(tried.asks), outcome, cell(said)]
    });
    output::table(&["metric", "asks", "outcome", "answer"], rows)
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the file is wrong, or a metric is not successful.
pub(super) fn run(context: &Context, args: &RunArgs) -> Result<(), Failure> {
    let template = read(&args.file)?;
    let given: BTreeMap<String, String> =
        args.args.iter().map(|given| (given.name.clone(), given.value.clone())).collect();
    let fault = |error| Failure::input(format!("{}: {error}", args.file.display()));
    let metrics = template.resolve(&given).map_err(fault)?;
    let token = token(args.bearer_token_file.as_deref())?;
    // A second installation finds the first, which is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tried: Vec<Tried> = block_on(async {
        let mut tried = Vec::new();
        for metric in &metrics {
            let answer = answer(metric, args.prometheus.as_deref(), token.as_deref()).await.transpose();
            tried.push(Tried {
                metric: metric.name.clone(),
                asks: words::provider(&metric.provider),
                measurement: answer.map(|answer| metric.measure(output::now_ms(), answer)),
            });
        }
        Ok(tried)
    })?;
    context.output.show(&tried, |tried| text(tried))?;
    let came = |outcome: Outcome| {
        let those = tried.iter().filter(|tried| tried.measurement.as_ref().is_some_and(|m| m.outcome == outcome));
        let names: Vec<&str> = those.map(|tried| tried.metric.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    if let Some(names) = came(Outcome::Failed) {
        return Err(Failure::unmet(format!("failed: {names}")));
    }
    match (came(Outcome::Error), came(Outcome::Inconclusive)) {
        (Some(names), _) => Err(Failure::undecided(format!("could not be measured: {names}"))),
        (None, Some(names)) => Err(Failure::undecided(format!("inconclusive: {names}"))),
        (None, None) if tried.iter().all(|tried| tried.measurement.is_none()) => {
            Err(Failure::undecided("only a rollout can answer what this template asks"))
        }
        (None, None) => Ok(()),
    }
}
