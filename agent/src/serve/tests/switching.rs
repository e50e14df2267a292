use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use muster_shared::bundle::DataType;
use muster_shared::messages::Resources;

use super::*;
use crate::host::fixtures::{column_of, scripted};

/// A model whose every answer is its own generation.
fn generation(generation: u64) -> ServedModel {
    scripted(DataType::Fp64, &format!("{generation}.0.0"), generation, move |inputs| {
        let rows = inputs[0].shape()[0];
        #[expect(clippy::cast_precision_loss, reason = "small")]
        Ok(vec![column_of("y", &vec![generation as f64; rows])])
    })
}

/// Clients ask without a pause while the model changes again and again: nothing is lost, every answer is wholly of one
/// model and says which, and every model's windows hold exactly its own answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_switch_under_load_drops_nothing_and_mixes_nothing() {
    const CLIENTS: usize = 4;
    const SWITCHES: u64 = 50;
    let endpoint = Arc::new(Endpoint::new(CLIENTS, CLIENTS));
    endpoint.host.activate(generation(1), 1);
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (endpoint, stop, answered) = (Arc::clone(&endpoint), Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
                let mut rows = client;
                while !stop.load(Ordering::Relaxed) {
                    rows = rows % 7 + 1;
                    let input = json!({"name": "x", "shape": [rows, 1], "datatype": "FP64", "data": vec![1.0; rows]});
                    let reply = endpoint.infer("scripted", &json!({"inputs": [input]})).await;
                    assert_eq!(reply.status, StatusCode::OK, "{:?}", reply.body);
                    let answer = reply.json();
                    let version = answer["model_version"].as_str().unwrap().trim_end_matches(".0.0").to_owned();
                    let values = numbers(&answer["outputs"][0]["data"]);
                    assert_eq!(values, vec![version.parse::<f32>().unwrap(); rows]);
                    *seen.entry(version.parse().unwrap()).or_default() += 1;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                seen
            })
        })
        .collect();
    let mut closed = Vec::new();
    for next in 2..=SWITCHES {
        let before = answered.load(Ordering::Relaxed);
        while answered.load(Ordering::Relaxed) < before + 4 {
            tokio::task::yield_now().await;
        }
        endpoint.host.activate(generation(next), next);
        assert_eq!(endpoint.host.current().unwrap().generation, next);
        closed.extend(endpoint.host.monitor().close_due(next, Resources::default()));
    }
    stop.store(true, Ordering::Relaxed);
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    for client in clients {
        for (generation, count) in client.await.unwrap() {
            *seen.entry(generation).or_default() += count;
        }
    }
    endpoint.host.drained().await;
    closed.extend(endpoint.host.monitor().close_all(SWITCHES + 1, Resources::default()));
    let mut counted: BTreeMap<u64, u64> = BTreeMap::new();
    for window in closed {
        let requests = window.telemetry.requests;
        assert_eq!((requests.errors(), requests.rejected, requests.overloaded), (0, 0, 0));
        if requests.served > 0 {
            *counted.entry(window.telemetry.key.generation).or_default() += requests.served;
        }
    }
    assert_eq!(counted, seen);
    assert_eq!(seen.values().sum::<u64>(), answered.load(Ordering::Relaxed));
    assert!(seen.len() > 10, "the load really met many models: {seen:?}");
}
