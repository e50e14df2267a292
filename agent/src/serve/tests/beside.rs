//! A model beside the one that answers, as callers see it: a shadow not at all, a split by the version that answered.

use muster_inference::RunError;
use muster_shared::bundle::DataType;
use muster_shared::messages::{RequestCounts, Resources};
use muster_shared::sketch::{ColumnComparison, Comparison};
use muster_shared::trust::Stage;

use super::*;
use crate::host::fixtures::{column_of, digits, doubling, held_out, scripted};

fn split(share_bp: u16) -> Stage {
    Stage::Split { share_bp, experiment: "warm".into() }
}

fn ask(x: f64) -> Value {
    json!({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [x]}]})
}

/// What the second model was asked, and how it compared, in all windows.
fn beside(endpoint: &Endpoint) -> (RequestCounts, Option<Comparison>) {
    let (mut requests, mut comparison) = (RequestCounts::default(), None);
    for window in endpoint.host.beside_monitor().close_all(1 << 40, Resources::default()) {
        requests.merge(&window.telemetry.requests);
        match (&mut comparison, window.telemetry.comparison) {
            (Some(sum), Some(more)) => Comparison::merge(sum, &more).unwrap(),
            (none, more) => *none = more,
        }
    }
    (requests, comparison)
}

/// Waits until the second model has been run so often.
async fn until_served(endpoint: &Endpoint, requests: u64) {
    while endpoint.host.beside_monitor().counts_since_watch().served < requests {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_of_a_shadowed_model_get_its_own_answers_and_both_are_compared() {
    let endpoint = Endpoint::serving(digits("1.0.0", 1));
    endpoint.host.run_beside(digits("1.2.0", 2), Stage::Shadow { share_bp: 2_000 }, 2).unwrap();
    let (old, new) = (digits("1.0.0", 1), digits("1.2.0", 2));
    let (mut shadowed, mut agreed) = (0, 0);
    for (n, (_, pixels)) in held_out().into_iter().enumerate().take(300) {
        let id = format!("part-{n}");
        let reply = endpoint.infer("digits", &json!({"id": id, "inputs": [image_input(&[&pixels])]})).await;
        assert_eq!((reply.status, &reply.json()["model_version"]), (StatusCode::OK, &json!("1.0.0")));
        let input = muster_inference::Tensor::from_f32("image", vec![1, 64], &pixels).unwrap();
        let class = |model: &ServedModel| {
            let row: Vec<f32> = floats(model.model.run(std::slice::from_ref(&input)).unwrap()[0].data());
            (best(&row), row)
        };
        let (of_old, row) = class(&old);
        assert_eq!(numbers(&reply.json()["outputs"][0]["data"]), row);
        if (Stage::Shadow { share_bp: 2_000 }).falls_to(&new.manifest, &id) {
            shadowed += 1;
            agreed += u64::from(class(&new).0 == of_old);
        }
    }
    assert!((30..=90).contains(&shadowed), "{shadowed} of 300 at 20 %");
    let skipped = |endpoint: &Endpoint| endpoint.host.beside().unwrap().active().watch.skipped();
    while endpoint.host.beside_monitor().counts_since_watch().served + skipped(&endpoint) < shadowed {
        tokio::task::yield_now().await;
    }
    assert_eq!(skipped(&endpoint), 0, "one request at a time leaves the queue room");
    endpoint.host.end_beside(9);
    let (requests, comparison) = beside(&endpoint);
    let comparison = comparison.unwrap();
    assert_eq!((requests.served, requests.errors()), (shadowed, 0));
    let ColumnComparison::Classes(classes) = &comparison.columns["class"] else { panic!("{comparison:?}") };
    assert_eq!((classes.agreed, classes.rows(), comparison.compared), (agreed, shadowed, shadowed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_always_falls_to_the_same_model_of_a_split() {
    let endpoint = Endpoint::serving(doubling("1.0.0", 1));
    let tripling = || {
        scripted(DataType::Fp64, "1.1.0", 2, |inputs| {
            Ok(vec![column_of("y", &inputs[0].values().map(|x| 3.0 * x).collect::<Vec<_>>())])
        })
    };
    endpoint.host.run_beside(tripling(), split(3_000), 2).unwrap();
    let candidate = tripling().manifest;
    let mut fell = 0;
    for key in 0..400 {
        let key = format!("machine-{key}");
        let falls = split(3_000).falls_to(&candidate, &key);
        fell += u64::from(falls);
        let (version, answer) = if falls { ("1.1.0", 6.0) } else { ("1.0.0", 4.0) };
        let mut by_parameter = ask(2.0);
        by_parameter["parameters"] = json!({"muster_sticky_key": key});
        let mut by_header = request(Method::POST, "/v2/models/scripted/infer", Body::from(ask(2.0).to_string()));
        by_header.headers_mut().insert("Muster-Sticky-Key", key.parse().unwrap());
        let mut by_id = ask(2.0);
        by_id["id"] = json!(key);
        for reply in [
            endpoint.infer("scripted", &by_parameter).await,
            endpoint.send(by_header).await,
            endpoint.infer("scripted", &by_id).await,
        ] {
            let reply = reply.json();
            assert_eq!((&reply["model_version"], &reply["outputs"][0]["data"]), (&json!(version), &json!([answer])));
        }
    }
    // 400 at 30 %: 120, give or take five standard deviations.
    assert!((74..=166).contains(&fell), "{fell}");
    endpoint.host.drained().await;
    let (requests, _) = beside(&endpoint);
    assert_eq!((requests.served, requests.errors()), (3 * fell, 0));
    assert_eq!(endpoint.host.counts().served, 3 * (400 - fell));
    // Who asks for a version gets it, and each model's own windows hold what it answered.
    let pinned = endpoint.post("/v2/models/scripted/versions/1.0.0/infer", ask(2.0).to_string()).await.json();
    assert_eq!(pinned["model_version"], "1.0.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_second_model_of_a_split_fails_the_incumbent_answers() {
    let endpoint = Endpoint::serving(doubling("1.0.0", 1));
    let failing = scripted(DataType::Fp64, "1.1.0", 2, |inputs| match inputs[0].value(0) {
        Some(1.0) => panic!("it hurts"),
        Some(_) | None => Err(RunError::Failed { reason: "it hurts".into() }),
    });
    endpoint.host.run_beside(failing, split(9_999), 2).unwrap();
    for n in 0..20 {
        let mut body = ask(f64::from(n % 2));
        body["id"] = json!(format!("n{n}"));
        let reply = endpoint.infer("scripted", &body).await;
        assert_eq!((reply.status, &reply.json()["model_version"]), (StatusCode::OK, &json!("1.0.0")));
        assert_eq!(reply.json()["outputs"][0]["data"], json!([f64::from(n % 2) * 2.0]));
    }
    endpoint.host.drained().await;
    let (requests, comparison) = beside(&endpoint);
    assert_eq!((requests.served, requests.failed, comparison.unwrap().failed), (20, 20, 20));
    let incumbent = endpoint.host.counts();
    assert_eq!((incumbent.served, incumbent.failed), (20, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_that_never_ends_keeps_no_answer_back() {
    let endpoint = Endpoint::serving(doubling("1.0.0", 1));
    let (leave, given) = std::sync::mpsc::channel::<()>();
    let given = std::sync::Mutex::new(given);
    let stuck = scripted(DataType::Fp64, "1.1.0", 2, move |_| {
        let _ = given.lock().unwrap().recv();
        Err(RunError::Failed { reason: "it was stuck".into() })
    });
    endpoint.host.run_beside(stuck, Stage::Shadow { share_bp: 10_000 }, 2).unwrap();
    for n in 0..200 {
        let reply = endpoint.infer("scripted", &ask(f64::from(n))).await.json();
        assert_eq!(reply["outputs"][0]["data"], json!([f64::from(n) * 2.0]));
    }
    endpoint.host.drained().await;
    // One is being run, and 64 wait.
    let skipped = endpoint.host.beside().unwrap().active().watch.skipped();
    assert!((135..=136).contains(&skipped), "{skipped}");
    drop(leave);
    until_served(&endpoint, 1).await;
}
