//! Templates and their versions, and a service that is asked.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_shared::rollout::{AnalysisTemplate, AnalysisUse, Provider, Value};

use super::*;
use crate::config::{AnalysisConfig, CredentialConfig};
use crate::testing::app;

/// A web service that answers what it is told to.
pub(crate) struct Service {
    /// Where it is, as `http://127.0.0.1:1234`.
    pub(crate) url: String,
    state: Arc<Said>,
}

#[derive(Default)]
struct Said {
    /// What it answers: status, header, body; without one it never answers.
    answer: Mutex<Option<(u16, &'static str, String)>>,
    /// The tokens and bodies of those who asked.
    asked: Mutex<Vec<(Option<String>, String)>>,
}

async fn say(State(said): State<Arc<Said>>, headers: HeaderMap, body: Bytes) -> Response {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    said.asked.lock().unwrap().push((token, String::from_utf8_lossy(&body).into_owned()));
    let answer = said.answer.lock().unwrap().clone();
    let Some((status, location, body)) = answer else { std::future::pending().await };
    (StatusCode::from_u16(status).unwrap(), [(header::LOCATION, location)], body).into_response()
}

impl Service {
    /// A service that never answers.
    pub(crate) async fn open() -> Self {
        // Another test may have done so.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let state = Arc::new(Said::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(say).with_state(Arc::clone(&state));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, state }
    }

    /// It answers this from now on.
    pub(crate) fn answers(&self, status: u16, body: &str) {
        *self.state.answer.lock().unwrap() = Some((status, "", body.to_owned()));
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.state.asked.lock().unwrap().len()
    }

    /// Its host and port.
    pub(crate) fn host(&self) -> String {
        self.url.trim_start_matches("http://").to_owned()
    }

    fn provider(&self) -> Provider {
        serde_json::from_value(serde_json::json!({
            "web": {"url": format!("{}/x", self.url), "jsonPath": "{$.share}", "timeoutSeconds": 1}
        }))
        .unwrap()
    }
}

fn template(name: &str, condition: &str) -> AnalysisTemplate {
    serde_json::from_value(serde_json::json!({
        "name": name, "args": [{"name": "most", "value": "1"}],
        "metrics": [{"name": "errors", "successCondition": condition, "provider": {"fleet": {}}}],
    }))
    .unwrap()
}

#[tokio::test]
async fn a_version_of_a_template_never_changes() {
    let test = app().await;
    let [one, two] =
        ["result.canary.errors < {{args.most}}", "result.canary.errors == 0"].map(|c| template("errors", c));
    assert_eq!(push(&test.app, one.clone(), "ana").await.unwrap().version, 1);
    assert_eq!(push(&test.app, one.clone(), "bob").await.unwrap().pushed_by, "ana", "the same is no other version");
    assert_eq!(push(&test.app, two.clone(), "bob").await.unwrap().version, 2);
    let shown = async |reference: &str| show(&test.app, &reference.parse().unwrap()).await.map(|view| view.template);
    assert_eq!(shown("errors@1").await.unwrap(), one);
    assert_eq!(shown("errors").await.unwrap(), two);
    assert!(shown("errors@3").await.unwrap_err().to_string().contains("errors@3"));
    assert_eq!(list(&test.app).await.unwrap().len(), 1);

    let used = |template: &str, args: &[(&str, &str)]| AnalysisUse {
        template: template.parse().unwrap(),
        args: args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        waves: vec![],
    };
    let resolved = resolve(&test.app, &[used("errors@1", &[("most", "7")]), used("errors", &[])]).await.unwrap();
    assert_eq!(resolved[0].metrics[0].success_condition.as_deref(), Some("result.canary.errors < 7"));
    assert_eq!(resolved[1].template.to_string(), "errors@2");
    let wrong = resolve(&test.app, &[used("errors", &[("least", "7")])]).await.unwrap_err();
    assert!(crate::problem::chain(&wrong).contains("analysis errors@2: args.least"), "{wrong}");

    delete(&test.app, &"errors".parse().unwrap(), "ana").await.unwrap();
    assert!(list(&test.app).await.unwrap().is_empty() && shown("errors@2").await.is_err());
    assert!(delete(&test.app, &"errors".parse().unwrap(), "ana").await.is_err());
    assert_eq!(push(&test.app, one.clone(), "ana").await.unwrap().version, 3, "a number is not given twice");
    for round in 0..40 {
        push(&test.app, template("errors", &format!("result.targeted > {round}")), "ana").await.unwrap();
    }
    assert!(shown("errors@43").await.is_ok() && shown("errors@3").await.is_err(), "the oldest go");
    let invalid = push(&test.app, template("errors", "result >"), "ana").await.unwrap_err().to_string();
    assert!(invalid.contains("metrics[0].successCondition"), "{invalid}");
}

#[tokio::test]
async fn nobody_is_asked_whom_the_configuration_does_not_name() {
    let service = Service::open().await;
    service.answers(200, r#"{"share": 0.5}"#);
    let provider = service.provider();
    let none = ask(&AnalysisConfig::default(), &provider).await.unwrap_err();
    assert!(none.contains(&service.host()) && none.contains("allowed-hosts"), "{none}");
    let config = |hosts: &[&str]| AnalysisConfig {
        allowed_hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        ..AnalysisConfig::default()
    };
    assert!(ask(&config(&["127.0.0.1:1", "example.com"]), &provider).await.is_err());
    assert_eq!(service.asked(), 0);
    for hosts in [&[service.host().as_str()][..], &["127.0.0.1"]] {
        assert_eq!(ask(&config(hosts), &provider).await, Ok(Value::Number(0.5)));
    }
    let plain: Provider = serde_json::from_str(r#"{"web": {"url": "http://example.com/"}}"#).unwrap();
    assert!(ask(&config(&["example.com"]), &plain).await.unwrap_err().contains("allow-plain-http"));
    // What a URL is to one parser, it is to the other: the host after @ is the one that counts.
    let posing: Provider = serde_json::from_str(r#"{"web": {"url": "http://127.0.0.1:1@example.com/"}}"#).unwrap();
    assert!(ask(&config(&["127.0.0.1"]), &posing).await.unwrap_err().contains("example.com"));
}

#[tokio::test]
async fn answers_that_are_none_are_errors_that_say_why() {
    let service = Service::open().await;
    let config = AnalysisConfig { allowed_hosts: vec![service.host()], ..AnalysisConfig::default() };
    let provider = service.provider();
    let late = ask(&config, &provider).await.unwrap_err();
    assert!(late.contains("cannot be reached") && late.contains("timed out"), "{late}");
    *service.state.answer.lock().unwrap() = Some((302, "http://127.0.0.1:1/", String::new()));
    assert!(ask(&config, &provider).await.unwrap_err().contains("leads elsewhere"));
    service.answers(200, &format!("\"{}\"", "x".repeat(300_000)));
    assert!(ask(&config, &provider).await.unwrap_err().contains("more than"));
    service.answers(503, "");
    assert!(ask(&config, &provider).await.unwrap_err().contains("503"));
    let gone = Provider::Web(serde_json::from_str(r#"{"url": "http://127.0.0.1:1/"}"#).unwrap());
    let nobody = AnalysisConfig { allowed_hosts: vec!["127.0.0.1:1".into()], ..AnalysisConfig::default() };
    assert!(ask(&nobody, &gone).await.unwrap_err().contains("127.0.0.1:1 cannot be reached"));
}

#[tokio::test]
async fn credentials_come_from_files_and_go_to_their_host_alone() {
    let (service, other) = (Service::open().await, Service::open().await);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "s3cret-token\n").unwrap();
    let credential = CredentialConfig { host: service.host(), bearer_token_file: Some(path.clone()), ca_file: None };
    let config = AnalysisConfig {
        allowed_hosts: vec![service.host(), other.host()],
        prometheus_address: Some(service.url.clone()),
        credentials: vec![credential],
        ..AnalysisConfig::default()
    };
    let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}"#;
    for asked in [&service, &other] {
        asked.answers(200, r#"{"share": 1}"#);
        ask(&config, &asked.provider()).await.unwrap();
    }
    service.answers(200, scalar);
    let prometheus: Provider = serde_json::from_str(r#"{"prometheus": {"query": "scalar(up) + 1"}}"#).unwrap();
    assert_eq!(ask(&config, &prometheus).await, Ok(Value::Number(3.0)));
    let seen = service.state.asked.lock().unwrap().clone();
    assert_eq!(seen[0].0.as_deref(), Some("Bearer s3cret-token"));
    assert_eq!(seen[1].1, "query=scalar%28up%29%20%2B%201");
    assert_eq!(other.state.asked.lock().unwrap()[0].0, None);
    std::fs::remove_file(&path).unwrap();
    let error = ask(&config, &service.provider()).await.unwrap_err();
    assert!(error.contains("token is not there") && !error.contains("s3cret"), "{error}");
}
