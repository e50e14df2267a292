//! Numbers that an application sends.

use muster_shared::messages::Resources;
use muster_shared::numbers::Summary;

use super::*;
use crate::host::fixtures::doubling;

const PATH: &str = "/v2/models/scripted/metrics";

#[tokio::test]
async fn numbers_are_added_up_in_the_window_of_the_model_that_serves() {
    let endpoint = Endpoint::serving(doubling("1.0.0", 3));
    let reply = endpoint.post(PATH, json!({"metrics": {"line_stops": 3, "oven_c": 71.5}}).to_string()).await;
    assert_eq!((reply.status, reply.json()), (StatusCode::OK, json!({"counted": 2})));
    endpoint.post(PATH, json!({"metrics": {"line_stops": -1}}).to_string()).await;
    let told = endpoint.get("/metrics").await;
    let text = String::from_utf8_lossy(&told.body).into_owned();
    for line in [
        "muster_agent_application_metric{name=\"line_stops\"} -1.0",
        "muster_agent_application_metric{name=\"oven_c\"} 71.5",
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
    let windows = endpoint.host.monitor().close_all(2, Resources::default());
    let sent: Vec<_> = windows
        .iter()
        .flat_map(|window| {
            window.telemetry.numbers.iter().map(|(name, sum)| (window.telemetry.key.generation, name.as_str(), *sum))
        })
        .collect();
    let stops = Summary { count: 2, sum: 2.0, min: -1.0, max: 3.0, last: -1.0 };
    assert_eq!(sent, [(3, "line_stops", stops), (3, "oven_c", Summary::of(71.5))]);
}

#[tokio::test]
async fn what_is_no_number_is_refused_and_nothing_of_it_counted() {
    let endpoint = Endpoint::new(1, 1);
    let good = json!({"metrics": {"a": 1}}).to_string();
    endpoint.post(PATH, good.clone()).await.refused(503, "no model");
    endpoint.host.activate(doubling("1.0.0", 1), 1);
    endpoint.post("/v2/models/digits/metrics", good.clone()).await.refused(404, "\"scripted\" is served");
    endpoint.get(PATH).await.refused(405, "GET");
    let many: serde_json::Map<String, Value> = (0..33).map(|at| (format!("m{at}"), json!(1))).collect();
    for (body, reason) in [
        ("nothing".to_owned(), "names with numbers"),
        (json!({"metrics": {"a": 1}, "time": 5}).to_string(), "unknown field `time`"),
        (json!({"metrics": {"a": "1"}}).to_string(), "invalid type"),
        (json!({"metrics": {"a": null}}).to_string(), "invalid type"),
        ("{\"metrics\": {\"a\": 1e999}}".to_owned(), "out of range"),
        (json!({"metrics": {"a": 1, "b": 1e16}}).to_string(), "metric b: a number from -1e15 to 1e15"),
        (json!({"metrics": {"line stops": 1}}).to_string(), "metric name \"line stops\" is not valid"),
        (json!({"metrics": {}}).to_string(), "no metric is named"),
        (json!({"metrics": many}).to_string(), "32 others were sent in this window"),
    ] {
        endpoint.post(PATH, body).await.refused(400, reason);
    }
    endpoint.post(PATH, " ".repeat(17_000)).await.refused(413, "16384 bytes");
    let windows = endpoint.host.monitor().close_all(2, Resources::default());
    assert!(windows.iter().all(|window| window.telemetry.numbers.is_empty()), "{windows:?}");
}
