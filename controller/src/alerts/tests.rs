//! Alerts over a real store, told to a real HTTP server.

use std::sync::Mutex;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use muster_shared::alert::{AlertState, CreateSilence, Matcher, Signal, Told};
use muster_shared::data_schema::DataSchema;
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::messages::{
    InstalledBundle, Position, RequestCounts, Resources, Sequenced, StateReport, Stream, TelemetryWindow, WindowKey,
};
use muster_shared::profile::Objectives;
use muster_shared::sketch::{
    Cause, ClassPairs, ColumnComparison, Comparison, LatencySketch, ObjectiveCounts, QualitySketch, SketchWindow,
};
use serde_json::Value;

use super::desk::{acknowledge, apply_rules, end_silence, silence};
use super::*;
use crate::config::{Config, ReceiverConfig};
use crate::quality::tests::{labelled, window};
use crate::store::Expect;
use crate::store::records::{WindowRecord, window_key};
use crate::testing::{self, TestApp};

const SECRET: &str = "a secret of some length";

/// What a receiver was sent, and what it answers.
#[derive(Default)]
struct Desk {
    taken: Mutex<Vec<(HeaderMap, Value)>>,
    refused: Mutex<u32>,
    refuses: Mutex<bool>,
    /// Requests that bring no message, but what fires once more.
    told_again: Mutex<u32>,
    changed: Notify,
}

impl Desk {
    async fn until<T>(&self, what: &str, wanted: impl Fn(&Self) -> Option<T>) -> T {
        let found = async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = wanted(self) {
                    return found;
                }
                changed.await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(20), found).await;
        found.unwrap_or_else(|_| panic!("{what}: not in time; {:?} was taken", self.states()))
    }

    fn states(&self) -> Vec<String> {
        self.taken
            .lock()
            .unwrap()
            .iter()
            .map(|(_, body)| body["state"].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}

async fn take(Shared(desk): Shared<Arc<Desk>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let refuses = *desk.refuses.lock().unwrap();
    *desk.told_again.lock().unwrap() += u32::from(!headers.contains_key("muster-delivery"));
    let status = if refuses {
        *desk.refused.lock().unwrap() += 1;
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        desk.taken.lock().unwrap().push((headers, serde_json::from_slice(&body).unwrap()));
        StatusCode::OK
    };
    desk.changed.notify_waiters();
    status
}

async fn desk() -> (Arc<Desk>, String) {
    let desk = Arc::new(Desk::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let router =
        Router::new().route("/hook", post(take)).route("/hook/api/v2/alerts", post(take)).with_state(Arc::clone(&desk));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (desk, url)
}

/// Waits until no message waits.
async fn is_empty(alerts: &Alerts) {
    let empty = async {
        while alerts.queued()["on-call"] > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), empty).await.expect("messages go on waiting");
}

fn receiver(folder: &std::path::Path, url: &str, more: &str) -> ReceiverConfig {
    let secret = folder.join("hook.secret");
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let text = format!("name = 'on-call'\nkind = 'webhook'\nurl = '{url}'\nsecret-file = {secret:?}\n{more}");
    toml::from_str(&text).unwrap()
}

fn rule(signal: Signal, more: Value) -> AlertRule {
    let mut rule = serde_json::json!({
        "name": "own", "signal": signal, "fire_at": 0.2, "severity": "critical",
        "annotations": { "summary": "{value} in {group}" },
    });
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(rule).unwrap()
}

async fn controller(change: impl FnOnce(&mut Config)) -> TestApp {
    // Another test may have done so.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    testing::app_with(|config| {
        config.alerts.built_in_rules = false;
        // These tests live in 1970.
        config.alerts.give_up_after_ms = u64::MAX;
        (config.alerts.retry_after_ms, config.alerts.retry_at_most_ms) = (10, 50);
        change(config);
    })
    .await
}

/// A bundle, and a device that runs it.
async fn runs(test: &TestApp, name: &str, manifest: Digest, site: &str) -> DeviceId {
    let device = test.enrol(name, &[("site", site)]).await;
    let installed = InstalledBundle { manifest, bundle: "digits@1.0.0".parse().unwrap(), generation: 1 };
    test.app.fleet.update_report(&device, StateReport { running: Some(installed), ..StateReport::default() });
    device
}

async fn keep(test: &TestApp, record: WindowRecord, stream: Stream) {
    let key = window_key(record.received_at_ms, &record.device, stream, &record.position);
    let put = Records::put(Table::Windows, key, Expect::Absent, &record).unwrap();
    test.app.records.commit(vec![put]).await.unwrap();
}

async fn sketch(test: &TestApp, device: &DeviceId, manifest: Digest, at_ms: u64, classes: &[f64]) {
    let profile = testing::profile();
    let key = WindowKey { manifest, generation: 1, start_ms: at_ms, duration_ms: 1 };
    let mut window = SketchWindow::empty(key, &profile);
    classes.iter().cycle().take(400).for_each(|class| window.columns[1].add(&profile.columns[1], *class));
    let position = Position { epoch: 1, sequence: at_ms, oldest: 1 };
    let record = WindowRecord {
        device: device.clone(),
        received_at_ms: at_ms,
        position,
        key,
        telemetry: None,
        sketch: Some(Sequenced { position, body: window }.encode()),
        crash: false,
        program: None,
    };
    keep(test, record, Stream::Sketch).await;
}

/// A quarter of the requests took 50 ms.
fn telemetry_window(manifest: Digest, at_ms: u64, requests: RequestCounts) -> TelemetryWindow {
    let mut latency_us = LatencySketch::default();
    (0..requests.served).for_each(|n| latency_us.add(if n % 4 == 0 { 50_000 } else { 100 }));
    TelemetryWindow {
        key: WindowKey { manifest, generation: 1, start_ms: at_ms, duration_ms: 1 },
        requests,
        latency_us,
        resources: Resources { disk_free_bytes: 5_000, ..Resources::default() },
        comparison: None,
        objectives: ObjectiveCounts::default(),
        numbers: Default::default(),
        program: None,
    }
}

async fn keep_telemetry(test: &TestApp, device: &DeviceId, telemetry: TelemetryWindow) {
    let at_ms = telemetry.key.start_ms;
    let record = WindowRecord {
        device: device.clone(),
        received_at_ms: at_ms,
        position: Position { epoch: 1, sequence: at_ms, oldest: 1 },
        key: telemetry.key,
        telemetry: Some(telemetry),
        sketch: None,
        crash: false,
        program: None,
    };
    keep(test, record, Stream::Telemetry).await;
}

async fn telemetry(test: &TestApp, device: &DeviceId, manifest: Digest, at_ms: u64, requests: RequestCounts) {
    keep_telemetry(test, device, telemetry_window(manifest, at_ms, requests)).await;
}

async fn only_alert(test: &TestApp) -> Alert {
    let mut alerts = test.app.alerts.list(|_| true).await;
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    alerts.remove(0)
}

/// Kinds of the events about alerts, in order.
async fn events(test: &TestApp) -> Vec<String> {
    let page = test.app.events.list(0, None, None, 1_000).await.unwrap();
    page.events.into_iter().map(|event| event.kind).filter(|kind| kind.starts_with("alert.")).collect()
}

#[tokio::test]
async fn drift_of_predictions_is_told_and_its_end_too_through_a_receiver_that_was_down() {
    let (desk, url) = desk().await;
    let folder = tempfile::tempdir().unwrap();
    let test = controller(|config| config.alerts.receivers = vec![receiver(folder.path(), &url, "")]).await;
    let manifest = testing::digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let (a, b) = (runs(&test, "dev-a", manifest, "lyon").await, runs(&test, "dev-b", manifest, "lyon").await);
    let own = rule(Signal::PredictionDrift, serde_json::json!({ "group_by": "site", "over_ms": 1_000, "for_ms": 50 }));
    apply_rules(&test.app, vec![own], "ana").await.unwrap();
    let (_stop, stopping) = watch::channel(false);
    tokio::spawn(delivery::serve(Arc::clone(&test.app), Arc::clone(&test.app.alerts.receivers[0]), stopping));

    // The reference has 60 cats and 40 dogs.
    for device in [&a, &b] {
        sketch(&test, device, manifest, 10_000, &[0.0, 0.0, 0.0, 1.0, 1.0]).await;
    }
    round::run(&test.app, 10_100).await.unwrap();
    assert_eq!(test.app.alerts.list(|_| true).await, []);
    for device in [&a, &b] {
        sketch(&test, device, manifest, 11_500, &[1.0]).await;
    }
    *desk.refuses.lock().unwrap() = true;
    round::run(&test.app, 12_000).await.unwrap();
    assert_eq!(only_alert(&test).await.state, AlertState::Pending);
    round::run(&test.app, 12_050).await.unwrap();
    let alert = only_alert(&test).await;
    assert_eq!((alert.state, alert.told, alert.fired_ms), (AlertState::Firing, Told::Firing, Some(12_050)));
    let labels = [("bundle", "digits@1.0.0"), ("column", "class"), ("site", "lyon")];
    assert!(labels.iter().all(|(key, value)| alert.labels[*key] == *value), "{alert:?}");
    assert_eq!((alert.evidence.n, alert.evidence.devices), (Some(800), Some(2)));
    desk.until("three refusals", |desk| (*desk.refused.lock().unwrap() >= 3).then_some(())).await;
    assert!(test.app.alerts.receivers()[0].last_error.as_deref().unwrap().contains("503"));
    *desk.refuses.lock().unwrap() = false;
    desk.until("the beginning", |desk| (desk.states() == ["firing"]).then_some(())).await;
    is_empty(&test.app.alerts).await;

    for device in [&a, &b] {
        sketch(&test, device, manifest, 13_500, &[0.0, 0.0, 0.0, 1.0, 1.0]).await;
    }
    round::run(&test.app, 14_000).await.unwrap();
    desk.until("the end", |desk| (desk.states() == ["firing", "resolved"]).then_some(())).await;
    let expected = ["alert.rules-applied", "alert.pending", "alert.firing", "alert.resolved"];
    assert_eq!(events(&test).await, expected);
    let taken = desk.taken.lock().unwrap();
    for (headers, body) in taken.iter() {
        assert_eq!(headers["muster-delivery"], body["delivery"].as_str().unwrap());
        assert!(headers["muster-signature"].to_str().unwrap().starts_with("t="));
        assert_eq!(body["alerts"][0]["fingerprint"], alert.fingerprint);
    }
    assert_ne!(taken[0].1["delivery"], taken[1].1["delivery"]);
}

#[tokio::test]
async fn alertmanager_is_told_again_what_fires_while_a_message_is_not_taken() {
    let (desk, url) = desk().await;
    let am = format!("name = 'on-call'\nkind = 'alertmanager'\nurl = '{url}'\nresend-ms = 1000\n");
    let test = controller(|config| config.alerts.receivers = vec![toml::from_str(&am).unwrap()]).await;
    let manifest = testing::digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let mut devices = Vec::new();
    for (name, site) in [("dev-a", "lyon"), ("dev-b", "lyon"), ("dev-c", "oslo"), ("dev-d", "oslo")] {
        devices.push(runs(&test, name, manifest, site).await);
    }
    let own = rule(Signal::PredictionDrift, serde_json::json!({ "group_by": "site", "over_ms": 1_000, "for_ms": 50 }));
    apply_rules(&test.app, vec![own], "ana").await.unwrap();
    let (_stop, stopping) = watch::channel(false);
    tokio::spawn(delivery::serve(Arc::clone(&test.app), Arc::clone(&test.app.alerts.receivers[0]), stopping));

    for device in &devices {
        sketch(&test, device, manifest, 11_500, &[1.0]).await;
    }
    round::run(&test.app, 12_000).await.unwrap();
    round::run(&test.app, 12_050).await.unwrap();
    desk.until("the beginning", |desk| (!desk.taken.lock().unwrap().is_empty()).then_some(())).await;
    is_empty(&test.app.alerts).await;

    // Those in Lyon are as they should be again, and nobody takes word of it.
    *desk.refuses.lock().unwrap() = true;
    for (at, device) in devices.iter().enumerate() {
        sketch(&test, device, manifest, 13_500, if at < 2 { &[0.0, 0.0, 0.0, 1.0, 1.0] } else { &[1.0] }).await;
    }
    round::run(&test.app, 14_000).await.unwrap();
    desk.until("refusals", |desk| (*desk.refused.lock().unwrap() > 0).then_some(())).await;
    assert!(test.app.alerts.queued()["on-call"] > 0);
    let before = *desk.told_again.lock().unwrap();
    desk.until("what fires, told again", |desk| (*desk.told_again.lock().unwrap() > before).then_some(())).await;
}

#[tokio::test]
async fn a_rule_on_columns_looks_at_the_devices_its_selector_means() {
    let test = controller(|_| {}).await;
    let manifest = testing::digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let (a, b) = (runs(&test, "dev-a", manifest, "lyon").await, runs(&test, "dev-b", manifest, "oslo").await);
    let named = |name: &str, selector: &str| {
        rule(Signal::PredictionDrift, serde_json::json!({ "name": name, "selector": selector }))
    };
    let rules = vec![named("in-lyon", "site=lyon"), named("in-oslo", "site=oslo"), named("whole", "*")];
    apply_rules(&test.app, rules, "ana").await.unwrap();
    sketch(&test, &a, manifest, 10_000, &[0.0, 0.0, 0.0, 1.0, 1.0]).await;
    sketch(&test, &b, manifest, 10_000, &[1.0]).await;
    round::run(&test.app, 10_100).await.unwrap();
    let oslo = test.app.alerts.list(|alert| alert.rule.as_str() == "in-oslo").await;
    assert_eq!((oslo.len(), oslo[0].evidence.n, oslo[0].evidence.devices), (1, Some(400), Some(1)));
    assert_eq!(test.app.alerts.list(|alert| alert.rule.as_str() == "in-lyon").await, []);
    // Prometheus is shown the fleet, not what one rule looks at.
    let shown = test.app.alerts.last_round().await;
    let class = shown.drift.iter().find(|series| series.column == "class").unwrap();
    assert!(class.group.is_empty() && class.psi.unwrap() < oslo[0].value, "{class:?}");
}

#[tokio::test]
async fn labels_that_show_a_loss_raise_an_alert_and_better_ones_end_it() {
    let test = controller(|_| {}).await;
    let manifest = testing::digest_of(&test.bundle_with("pets", "1.0.0", labelled()).await);
    let mut devices = Vec::new();
    for (name, site) in [("dev-a", "lyon"), ("dev-b", "lyon"), ("dev-c", "oslo")] {
        devices.push(runs(&test, name, manifest, site).await);
    }
    let with = |signal: Signal, name: &str, mut more: Value| {
        more["name"] = name.into();
        more["over_ms"] = 1_000.into();
        if signal == Signal::QualityLoss {
            more["annotations"]["summary"] = "{detail} on {devices}".into();
        }
        rule(signal, more)
    };
    let rules = vec![
        with(Signal::QualityLoss, "loss", serde_json::json!({ "fire_at": 0.05, "for_ms": 50 })),
        with(Signal::Accuracy, "slices", serde_json::json!({ "fire_at": 0.9, "by_slice": true })),
        with(Signal::Accuracy, "calm", serde_json::json!({ "fire_at": 0.5 })),
        with(Signal::Accuracy, "in-oslo", serde_json::json!({ "fire_at": 0.9, "selector": "site=oslo" })),
        with(Signal::Recall, "recall", serde_json::json!({ "fire_at": 0.9, "group_by": "site" })),
        with(Signal::Mae, "other-task", serde_json::json!({ "fire_at": 0.0 })),
    ];
    apply_rules(&test.app, rules, "ana").await.unwrap();
    for (device, right) in devices.iter().zip([60, 62, 61]) {
        window(&test, device, manifest, (1_000, 0), (right, 100 - right)).await;
    }
    let of = async |name: &str| test.app.alerts.list(|alert| alert.rule.as_str() == name).await;
    round::run(&test.app, 1_900).await.unwrap();
    assert_eq!(of("loss").await[0].state, AlertState::Pending);
    round::run(&test.app, 1_950).await.unwrap();
    let [loss] = &of("loss").await[..] else { panic!("{:?}", of("loss").await) };
    assert_eq!((loss.state, loss.evidence.n, loss.evidence.devices), (AlertState::Firing, Some(300), Some(3)));
    assert!((loss.value - 0.34).abs() < 1e-9 && loss.evidence.p_value.unwrap() < 0.01, "{loss:?}");
    assert_eq!(loss.annotations["summary"], "accuracy 0.6100 against 0.9500 on 3");
    let slices: Vec<String> = of("slices").await.iter().map(|alert| alert.labels["slice"].clone()).collect();
    assert!(slices.contains(&"x=< 1".to_owned()) && slices.contains(&"site=oslo".to_owned()), "{slices:?}");
    assert_eq!((of("calm").await, of("other-task").await), (Vec::new(), Vec::new()));
    let oslo = of("in-oslo").await;
    assert!(oslo.len() == 1 && (oslo[0].value - 0.61).abs() < 1e-9, "{oslo:?}");
    let recall: Vec<_> =
        of("recall").await.iter().map(|a| (a.labels["site"].clone(), a.labels["class"].clone())).collect();
    assert_eq!(recall.len(), 2, "no label is of the second class: {recall:?}");
    assert!(recall.contains(&("lyon".into(), "cat".into())), "{recall:?}");

    for device in &devices {
        window(&test, device, manifest, (3_000, 0), (96, 4)).await;
    }
    round::run(&test.app, 3_500).await.unwrap();
    let all = test.app.alerts.list(|_| true).await;
    assert!(all.iter().all(|alert| alert.state == AlertState::Resolved), "{all:?}");
}

#[tokio::test]
async fn violations_of_a_schema_and_disagreement_of_a_shadow_are_told_by_column() {
    let test = controller(|_| {}).await;
    let manifest = test.bundle_with_schema("pets", "1.0.0", schema()).await;
    let digest = testing::digest_of(&manifest);
    let rules = vec![
        rule(Signal::SchemaViolations, serde_json::json!({ "fire_at": 0.1, "group_by": "site" })),
        rule(Signal::ShadowDisagreement, serde_json::json!({ "name": "beside", "fire_at": 0.1 })),
    ];
    apply_rules(&test.app, rules, "ana").await.unwrap();
    for (name, site, low, other) in
        [("a", "lyon", 30, 40), ("b", "lyon", 31, 41), ("c", "lyon", 32, 42), ("d", "oslo", 2, 39)]
    {
        let device = runs(&test, name, digest, site).await;
        let key = WindowKey { manifest: digest, generation: 1, start_ms: 1_000, duration_ms: 1 };
        let mut window = SketchWindow::empty(key, &manifest.profile);
        window.quality = QualitySketch::empty(manifest.schema.as_ref().map(DataSchema::digest));
        window.quality.rows = 100;
        window.quality.add(0, Cause::BelowMin, low);
        let position = Position { epoch: 1, sequence: 1, oldest: 1 };
        let mut comparison = Comparison::empty(Digest::of(b"incumbent"));
        let classes = ClassPairs { agreed: 100 - other, disagreed: other, ..ClassPairs::default() };
        comparison.columns.insert("class".into(), ColumnComparison::Classes(classes));
        let telemetry = TelemetryWindow {
            key,
            requests: RequestCounts::default(),
            latency_us: LatencySketch::default(),
            resources: Resources::default(),
            comparison: Some(comparison),
            objectives: Default::default(),
            numbers: Default::default(),
            program: None,
        };
        let record = WindowRecord {
            device: device.clone(),
            received_at_ms: 1_000,
            position,
            key,
            telemetry: Some(telemetry),
            sketch: None,
            crash: false,
            program: None,
        };
        keep(&test, record.clone(), Stream::Telemetry).await;
        let sketch = Some(Sequenced { position, body: window }.encode());
        keep(&test, WindowRecord { telemetry: None, sketch, ..record }, Stream::Sketch).await;
    }
    round::run(&test.app, 1_100).await.unwrap();
    let alerts = test.app.alerts.list(|_| true).await;
    let [violations] = &alerts.iter().filter(|alert| alert.rule.as_str() == "own").collect::<Vec<_>>()[..] else {
        panic!("{alerts:?}")
    };
    let labels = [("bundle", "pets@1.0.0"), ("column", "x"), ("cause", "below-min"), ("site", "lyon")];
    assert!(labels.iter().all(|(key, value)| violations.labels[*key] == *value), "{violations:?}");
    assert!((violations.value - 0.31).abs() < 1e-12 && violations.evidence.n == Some(300), "{violations:?}");
    let [beside] = &alerts.iter().filter(|alert| alert.rule.as_str() == "beside").collect::<Vec<_>>()[..] else {
        panic!("{alerts:?}")
    };
    assert!((beside.value - 0.405).abs() < 1e-12 && beside.labels["column"] == "class", "{beside:?}");
    assert_eq!((beside.evidence.n, beside.evidence.devices), (Some(400), Some(4)));
}

/// One feature, of which nothing below 0 is expected.
fn schema() -> DataSchema {
    let json = serde_json::json!({
        "features": [{ "name": "x", "tensor": "x", "datatype": "FP32", "min": 0.0, "on-violation": "flag" }],
    });
    serde_json::from_value(json).unwrap()
}

#[tokio::test]
async fn a_message_outlasts_a_restart_and_keeps_its_key() {
    let (desk, url) = desk().await;
    let folder = tempfile::tempdir().unwrap();
    let test = controller(|config| config.alerts.receivers = vec![receiver(folder.path(), &url, "")]).await;
    let manifest = testing::digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let device = runs(&test, "dev-a", manifest, "lyon").await;
    apply_rules(&test.app, vec![rule(Signal::ErrorRate, serde_json::json!({}))], "ana").await.unwrap();
    telemetry(&test, &device, manifest, 1_000, RequestCounts { served: 10, failed: 9, ..RequestCounts::default() })
        .await;
    round::run(&test.app, 1_001).await.unwrap();
    let (_, before) = test.app.alerts.queues.first("on-call").unwrap();

    // Nobody has sent it when the next controller starts over the same store. Its round finds nothing new to tell.
    let config = test.app.config.clone();
    let again = testing::open_over(config, Arc::clone(&test.broker), test.app.records.clone()).await;
    again.fleet.update_report(&device, test.app.fleet.view(&device).unwrap().reported.unwrap());
    let again = Arc::new(again);
    round::run(&again, 1_002).await.unwrap();
    let (_stop, stopping) = watch::channel(false);
    tokio::spawn(delivery::serve(Arc::clone(&again), Arc::clone(&again.alerts.receivers[0]), stopping));
    desk.until("a message", |desk| (!desk.taken.lock().unwrap().is_empty()).then_some(())).await;
    is_empty(&again.alerts).await;
    let taken = desk.taken.lock().unwrap();
    assert_eq!((taken.len(), taken[0].1["delivery"].as_str().unwrap()), (1, before.dedup_key.as_str()));
}

#[tokio::test]
async fn a_rule_at_a_latency_objective_reads_what_was_counted_there() {
    let test = controller(|_| {}).await;
    let manifest = testing::digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let rules = vec![rule(Signal::LatencyShare, serde_json::json!({ "latency_above_us": 10_000, "fire_at": 0.1 }))];
    apply_rules(&test.app, rules, "ana").await.unwrap();
    // 10,001 µs lies in the same cell of a sketch as 10,000. An agent of before there were objectives counts 10 of 40 above by its sketch.
    for (name, latency_us, objectives) in
        [("new", 10_001, vec![10_000]), ("other", 10_001, vec![9_000]), ("old", 50_000, vec![])]
    {
        let device = runs(&test, name, manifest, "lyon").await;
        let mut telemetry = telemetry_window(manifest, 1_000, RequestCounts { served: 40, ..RequestCounts::default() });
        telemetry.latency_us = LatencySketch::default();
        telemetry.objectives = ObjectiveCounts::empty(&Objectives { latency_us: objectives });
        for n in 0..40 {
            let latency_us = if n % 4 == 0 { latency_us } else { 100 };
            telemetry.latency_us.add(latency_us);
            telemetry.objectives.add(latency_us);
        }
        keep_telemetry(&test, &device, telemetry).await;
    }
    round::run(&test.app, 1_001).await.unwrap();
    let alert = only_alert(&test).await;
    assert!((alert.value - 20.0 / 120.0).abs() < 1e-12, "{alert:?}");
    assert_eq!((alert.evidence.n, alert.evidence.devices), (Some(120), Some(3)));
}

#[tokio::test]
async fn people_silence_acknowledge_and_bring_rules() {
    let test = controller(|_| {}).await;
    let manifest = testing::digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let device = runs(&test, "dev-a", manifest, "lyon").await;
    let rules = vec![rule(Signal::LatencyShare, serde_json::json!({ "latency_above_us": 10_000 }))];
    apply_rules(&test.app, rules, "ana").await.unwrap();
    telemetry(&test, &device, manifest, 1_000, RequestCounts { served: 100, ..RequestCounts::default() }).await;
    let matchers = vec![Matcher { label: "rule".into(), value: "own".into(), negate: false }];
    let wish = CreateSilence { matchers, for_ms: 3_600_000, reason: "known".into() };
    let hushed = silence(&test.app, wish, "ana").await.unwrap();
    let now_ms = crate::clock::now_ms();
    telemetry(&test, &device, manifest, now_ms, RequestCounts { served: 100, ..RequestCounts::default() }).await;
    round::run(&test.app, now_ms + 1).await.unwrap();
    let alert = only_alert(&test).await;
    assert_eq!((alert.value, alert.state, alert.told), (0.25, AlertState::Firing, Told::Nothing));
    assert_eq!(alert.silenced_by.as_deref(), Some("s1"));
    let acknowledged = acknowledge(&test.app, &alert.fingerprint, "ben", Some("mine".into())).await.unwrap();
    assert_eq!(acknowledged.acknowledged.unwrap().by, "ben");
    end_silence(&test.app, &hushed.id, "ana").await.unwrap();
    assert!(matches!(end_silence(&test.app, &hushed.id, "ana").await, Err(DeskError::Standing(_))));
    round::run(&test.app, now_ms + 60_000).await.unwrap();
    let alert = only_alert(&test).await;
    assert_eq!((alert.told, alert.acknowledged.is_some(), alert.silenced_by), (Told::Firing, true, None));
    // All of it is stored.
    let again = Alerts::load(&test.app.records, &test.app.config.alerts, now_ms).await.unwrap();
    assert_eq!(again.list(|_| true).await[0].acknowledged, alert.acknowledged);
    assert_eq!((again.silences().await.len(), again.rules(false).await.len()), (1, 1));
    let (own, unknown) = ("own".parse_name(), "none".parse_name());
    delete_rule(&test.app, &own, "ana").await.unwrap();
    assert!(matches!(delete_rule(&test.app, &unknown, "ana").await, Err(DeskError::Unknown(_))));
    round::run(&test.app, now_ms + 60_001).await.unwrap();
    assert_eq!(only_alert(&test).await.state, AlertState::Resolved);
    assert!(matches!(acknowledge(&test.app, &alert.fingerprint, "ben", None).await, Err(DeskError::Standing(_))));
}

trait ParseName {
    fn parse_name(&self) -> RuleName;
}

impl ParseName for str {
    fn parse_name(&self) -> RuleName {
        RuleName::new(self).unwrap()
    }
}

#[tokio::test]
async fn every_device_has_its_own_alerts() {
    let test = controller(|config| config.alerts.built_in_rules = true).await;
    let manifest = testing::digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let device = runs(&test, "dev-a", manifest, "lyon").await;
    let now_ms = crate::clock::now_ms() + 700_000;
    let mut report = test.app.fleet.view(&device).unwrap().reported.unwrap();
    report.update.state = muster_shared::messages::UpdateState::Reverted;
    report.update.reason = Some("golden example 3 came out wrong".into());
    report.stale_since_ms = Some(now_ms - 7_200_000);
    test.app.fleet.update_report(&device, report);
    telemetry(&test, &device, manifest, now_ms - 1_000, RequestCounts::default()).await;
    round::run(&test.app, now_ms).await.unwrap();
    let alerts = test.app.alerts.list(|alert| alert.state == AlertState::Firing).await;
    let rules: Vec<&str> = alerts.iter().map(|alert| alert.rule.as_str()).collect();
    for rule in ["device-silent", "device-update-failed", "stale-metadata", "disk-nearly-full"] {
        assert!(rules.contains(&rule), "{rule} is not among {rules:?}");
    }
    let failed = alerts.iter().find(|alert| alert.rule.as_str() == "device-update-failed").unwrap();
    assert!(failed.annotations["summary"].contains("golden example 3"), "{failed:?}");
    // One that is shut out is nobody's worry any more.
    test.revoke(&device).await;
    round::run(&test.app, now_ms + 4 * 3_600_000).await.unwrap();
    assert!(test.app.alerts.list(|alert| alert.state == AlertState::Firing).await.is_empty());
}

#[tokio::test]
async fn a_queue_is_bounded_and_strays_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let change = |config: &mut Config| {
        config.alerts.max_queued = 2;
        config.alerts.receivers = vec![receiver(folder.path(), "http://127.0.0.1:9/", "")];
    };
    let test = controller(change).await;
    let manifest = testing::digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let device = runs(&test, "dev-a", manifest, "lyon").await;
    apply_rules(&test.app, vec![rule(Signal::ErrorRate, serde_json::json!({ "over_ms": 10 }))], "ana").await.unwrap();
    for n in 1..=4_u64 {
        let failed = if n % 2 == 1 { 10 } else { 0 };
        telemetry(&test, &device, manifest, n * 100, RequestCounts { served: 10, failed, ..RequestCounts::default() })
            .await;
        round::run(&test.app, n * 100 + 1).await.unwrap();
    }
    assert_eq!(test.app.alerts.queued()["on-call"], 2);
    let (_, first) = test.app.alerts.queues.first("on-call").unwrap();
    assert_eq!(first.created_ms, 301, "the oldest were given up");
    let mut config = test.app.config.alerts.clone();
    let again = Alerts::load(&test.app.records, &config, 1_000).await.unwrap();
    assert_eq!(again.queued()["on-call"], 2);
    config.receivers.clear();
    Alerts::load(&test.app.records, &config, 1_000).await.unwrap();
    assert_eq!(test.app.records.all::<Value>(Table::AlertDeliveries, "").await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_receiver_that_cannot_be_used_is_named_without_its_secret() {
    let folder = tempfile::tempdir().unwrap();
    let (records, _store) = testing::records();
    let mut config =
        AlertsConfig { receivers: vec![receiver(folder.path(), "https://h.example/x", "")], ..AlertsConfig::default() };
    std::fs::write(folder.path().join("hook.secret"), "short-one").unwrap();
    let error = Alerts::load(&records, &config, 1).await.err().unwrap().to_string();
    assert!(error.contains("on-call") && error.contains("hook.secret") && !error.contains("short-one"), "{error}");
    config.receivers[0] =
        ReceiverConfig { url: None, url_file: Some(folder.path().join("none")), ..config.receivers[0].clone() };
    let error = Alerts::load(&records, &config, 1).await.err().unwrap().to_string();
    assert!(error.contains("not there"), "{error}");
}
