//! Templates, questions and answers. What conditions make of an answer follows the table in Argo Rollouts' documentation.

use std::collections::BTreeMap;

use super::*;
use crate::rollout::Outcome;

fn template() -> AnalysisTemplate {
    serde_json::from_value(serde_json::json!({
        "name": "success-rate",
        "args": [{"name": "service"}, {"name": "least", "value": "0.95"}],
        "metrics": [{
            "name": "success-rate", "initialDelay": "1m", "interval": "5m", "count": 3,
            "successCondition": "result[0] >= {{args.least}}", "failureLimit": 2,
            "provider": {"prometheus": {"query": "sum(up{service=\"{{args.service}}\"})"}},
        }],
    }))
    .unwrap()
}

fn args(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn arguments_come_from_who_uses_a_template_or_from_itself() {
    let template = template();
    assert_eq!(template.validate(), Ok(()));
    let metric = template.resolve(&args(&[("service", "press")])).unwrap().remove(0);
    assert_eq!(metric.success_condition.as_deref(), Some("result[0] >= 0.95"));
    let question = metric.provider.question(Some("http://localhost:9090/")).unwrap().unwrap();
    assert_eq!(question.url, "http://localhost:9090/api/v1/query");
    assert_eq!(question.body.as_deref(), Some("query=sum%28up%7Bservice%3D%22press%22%7D%29"));
    assert!(metric.provider.question(None).unwrap_err().contains("prometheus-address"));
    assert_eq!((metric.needed(), metric.pause_ms(), metric.consecutive_error_limit), (3, 300_000, 4));

    let missing = template.resolve(&args(&[])).unwrap_err().to_string();
    assert!(missing.contains("args.service") && missing.contains("needs it"), "{missing}");
    let unknown = template.resolve(&args(&[("sevice", "press")])).unwrap_err().to_string();
    assert!(unknown.contains("args.sevice") && unknown.contains("least, service"), "{unknown}");
    let wrong = template.resolve(&args(&[("service", "press"), ("least", "much")])).unwrap_err().to_string();
    assert!(wrong.contains("metrics[0].successCondition"), "{wrong}");
}

#[test]
fn what_makes_no_sense_is_refused_by_field() {
    let with = |change: &dyn Fn(&mut AnalysisTemplate)| {
        let mut template = template();
        change(&mut template);
        template.validate().unwrap_err().to_string()
    };
    for (error, part) in [
        (with(&|t| t.metrics.clear()), "metrics: 1 to 16"),
        (with(&|t| t.args[1].name = "a b".into()), "args[1].name"),
        (with(&|t| t.args[1].name = "service".into()), "service is there twice"),
        (with(&|t| t.metrics.push(t.metrics[0].clone())), "metrics[1].name"),
        (with(&|t| t.metrics[0].count = None), "metrics[0].count"),
        (with(&|t| t.metrics[0].interval = None), "metrics[0].interval"),
        (with(&|t| t.metrics[0].count = Some(0)), "metrics[0].count: 1 to"),
        (with(&|t| t.metrics[0].failure_limit = 3), "metrics[0].failureLimit"),
        (with(&|t| t.metrics[0].inconclusive_limit = 3), "metrics[0].inconclusiveLimit"),
        (with(&|t| t.metrics[0].success_condition = None), "no data must never promote"),
        (with(&|t| t.metrics[0].success_condition = Some("result[0 >= 1".into())), "metrics[0].successCondition"),
        (with(&|t| t.metrics[0].failure_condition = Some("result < {{args.x}}".into())), "there is no argument x"),
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let web = |web: serde_json::Value| {
        let mut template = template();
        template.args.clear();
        template.metrics[0].success_condition = Some("result > 1".into());
        template.metrics[0].provider = serde_json::from_value(serde_json::json!({ "web": web })).unwrap();
        template.validate().map_err(|error| error.to_string())
    };
    assert_eq!(web(serde_json::json!({"url": "https://example.com/x", "jsonPath": "{$.a}"})), Ok(()));
    for (wish, part) in [
        (serde_json::json!({"url": "file:///etc/passwd"}), "provider.web.url"),
        (serde_json::json!({"url": "https://me:secret@example.com/"}), "without user and password"),
        (serde_json::json!({"url": "https://example.com/\r\nx"}), "provider.web.url"),
        (serde_json::json!({"url": "https://example.com/", "body": "x"}), "provider.web.body"),
        (serde_json::json!({"url": "https://example.com/", "jsonPath": "{$..a}"}), "provider.web.jsonPath"),
        (serde_json::json!({"url": "https://example.com/", "timeoutSeconds": 0}), "provider.web.timeoutSeconds"),
        (
            serde_json::json!({"url": "https://example.com/", "headers": [{"key": "Authorization", "value": "x"}]}),
            "configuration",
        ),
        (
            serde_json::json!({"url": "https://example.com/", "headers": [{"key": "Accept", "value": "a\nb"}]}),
            "headers.value",
        ),
    ] {
        let error = web(wish).unwrap_err();
        assert!(error.contains(part), "{part}: {error}");
    }
    let unknown = serde_json::from_str::<AnalysisTemplate>(r#"{"name": "a", "metrics": [], "metric": 1}"#);
    assert!(unknown.unwrap_err().to_string().contains("unknown field `metric`, expected one of"));
}

#[test]
fn conditions_make_of_an_answer_what_argo_documents() {
    let metric = |success: Option<&str>, failure: Option<&str>| MetricTemplate {
        success_condition: success.map(str::to_owned),
        failure_condition: failure.map(str::to_owned),
        ..template().metrics.remove(0)
    };
    let answer = |n: f64| Ok(Value::List(vec![Value::Number(n)]));
    // https://argo-rollouts.readthedocs.io/en/stable/features/analysis/: success and failure conditions, inconclusive measurements.
    for (success, failure, value, expected) in [
        (Some("result[0] >= 0.95"), None, 0.97, Outcome::Successful),
        (Some("result[0] >= 0.95"), None, 0.90, Outcome::Failed),
        (None, Some("result[0] >= 0.5"), 0.4, Outcome::Successful),
        (None, Some("result[0] >= 0.5"), 0.6, Outcome::Failed),
        (Some("result[0] <= 0.5"), Some("result[0] >= 0.8"), 0.4, Outcome::Successful),
        (Some("result[0] <= 0.5"), Some("result[0] >= 0.8"), 0.9, Outcome::Failed),
        (Some("result[0] <= 0.5"), Some("result[0] >= 0.8"), 0.6, Outcome::Inconclusive),
        (Some("result[0] > 0"), Some("result[0] > 0"), 0.6, Outcome::Failed),
        (Some("result[1] > 0"), None, 0.6, Outcome::Error),
        (Some("result[0] >= 0.95"), None, f64::NAN, Outcome::Failed),
    ] {
        let measured = metric(success, failure).measure(7, answer(value));
        assert_eq!((measured.outcome, measured.at_ms), (expected, 7), "{success:?} {failure:?} {value}");
        assert!(measured.value.is_some() && measured.message.is_some() == (expected == Outcome::Error));
    }
    let silent = metric(Some("result[0] > 0"), None).measure(7, Err("no route".to_owned()));
    assert_eq!((silent.outcome, silent.value, silent.message.as_deref()), (Outcome::Error, None, Some("no route")));
    let long = metric(Some("len(result) > 9"), None).measure(7, Ok(Value::Text("ä".repeat(90_000))));
    assert!(long.outcome == Outcome::Successful && long.value.unwrap().len() <= 600);
}

#[test]
fn answers_of_prometheus_are_read_as_its_documentation_has_them() {
    let provider = template().metrics.remove(0).provider;
    let read = |status: u16, text: &str| provider.read(status, text.as_bytes());
    let vector = r#"{"status":"success","data":{"resultType":"vector","result":[
        {"metric":{"job":"a"},"value":[1435781451.781,"1"]},{"metric":{},"value":[1435781451.781,"NaN"]}]}}"#;
    let Ok(Value::List(values)) = read(200, vector) else { panic!("a list is expected") };
    assert!(values[0] == Value::Number(1.0) && matches!(values[1], Value::Number(n) if n.is_nan()));
    let none = r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;
    assert_eq!(read(200, none), Ok(Value::List(Vec::new())));
    let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1435781451.781,"+Inf"]}}"#;
    assert_eq!(read(200, scalar), Ok(Value::Number(f64::INFINITY)));
    for (status, text, part) in [
        (400, r#"{"status":"error","errorType":"bad_data","error":"unexpected end"}"#, "bad_data: unexpected end"),
        (200, r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#, "a vector or a scalar"),
        (200, "<html>", "not Prometheus'"),
        (502, "<html>", "HTTP status 502"),
        (200, r#"{"status":"success","data":{"resultType":"vector","result":[{"value":[1]}]}}"#, "no number"),
    ] {
        let error = read(status, text).unwrap_err();
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn answers_of_a_service_are_read_where_the_path_says() {
    let web = |path: Option<&str>| {
        Provider::Web(WebQuestion {
            url: "https://example.com/".to_owned(),
            method: WebMethod::Get,
            headers: Vec::new(),
            body: None,
            json_path: path.map(str::to_owned),
            timeout_seconds: None,
        })
    };
    let text = br#"{"data": {"ok": true}}"#;
    assert_eq!(web(Some("{$.data.ok}")).read(200, text), Ok(Value::Flag(true)));
    assert_eq!(web(None).read(200, b"3"), Ok(Value::Number(3.0)));
    assert!(web(Some("{$.none}")).read(200, text).unwrap_err().contains("nothing at"));
    assert!(web(None).read(500, text).unwrap_err().contains("HTTP status 500"));
    assert!(web(None).read(200, b"ok").unwrap_err().contains("not JSON"));
    assert!(web(None).read(200, &vec![b' '; 300_000]).unwrap_err().contains("bytes"));
}

#[test]
fn templates_are_named_with_or_without_a_version() {
    for text in ["errors", "errors@12"] {
        assert_eq!(text.parse::<TemplateRef>().unwrap().to_string(), text);
    }
    for bad in ["", "Errors", "errors@", "errors@0", "errors@1.2", "@1", "errors@99999999999"] {
        assert!(bad.parse::<TemplateRef>().is_err(), "{bad}");
    }
}
