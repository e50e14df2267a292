use std::sync::Arc;

use muster_inference::RunError;
use muster_shared::bundle::DataType;
use proptest::prelude::*;

use super::*;
use crate::host::fixtures::{column_of, digits, doubling, scripted};

#[tokio::test]
async fn paths_and_methods_that_do_not_exist_are_named() {
    let endpoint = Endpoint::serving(doubling("1.0.0", 1));
    endpoint.get("/").await.refused(404, "nothing at /");
    endpoint.get("/v2/repository/index").await.refused(404, "/v2/repository/index");
    endpoint.get("/v2/models/scripted/infer").await.refused(405, "GET is not allowed at /v2/models/scripted/infer");
    endpoint.post("/v2/health/live", "").await.refused(405, "POST");
    endpoint.get("/v2/models/%ff").await.refused(400, "path");
}

#[tokio::test]
async fn models_and_versions_that_are_not_served_are_named() {
    let endpoint = Endpoint::new(1, 1);
    endpoint.infer("digits", &json!({})).await.refused(503, "no model is being served yet");
    endpoint.host.activate(doubling("1.2.3", 1), 1);
    endpoint.infer("digits", &json!({})).await.refused(404, "no model \"digits\": \"scripted\" is served");
    endpoint.infer("scripted/versions/1", &json!({})).await.refused(404, "no version \"1\": 1.2.3 is served");
    endpoint.infer("scripted/versions/1.2.3", &json!({})).await.refused(400, "not an inference request");
    let counts = endpoint.host.counts();
    assert_eq!((counts.served, counts.rejected), (0, 1), "what is meant for another model is not this one's");
}

#[tokio::test]
async fn inputs_that_do_not_fit_the_model_are_the_callers_fault() {
    let endpoint = Endpoint::serving(digits("1.1.0", 1));
    let tensor = |name: &str, datatype: &str, shape: Value, data: Vec<f32>| json!({"name": name, "datatype": datatype, "shape": shape, "data": data});
    let row = || vec![0.0; 64];
    let cases = [
        (json!([]), "\"image\" is missing"),
        (json!([tensor("picture", "FP32", json!([1, 64]), row())]), "no input \"picture\""),
        (json!([tensor("image", "FP32", json!([1, 63]), vec![0.0; 63])]), "shape [-1, 64]"),
        (json!([tensor("image", "FP32", json!([64]), row())]), "[64] was given"),
        (json!([tensor("image", "FP32", json!([0, 64]), vec![])]), "[0, 64] was given"),
        (json!([tensor("image", "FP64", json!([1, 64]), row())]), "must be FP32, but FP64 was given"),
        (json!([tensor("image", "FP32", json!([1, 64]), vec![0.0; 65])]), "needs 64 elements"),
        (
            json!([tensor("image", "FP32", json!([1, 64]), row()), tensor("image", "FP32", json!([1, 64]), row())]),
            "given twice",
        ),
    ];
    let count = cases.len() as u64;
    for (inputs, reason) in cases {
        endpoint.infer("digits", &json!({"inputs": inputs})).await.refused(400, reason);
    }
    let outputs = json!([{"name": "logits"}]);
    let body = json!({"inputs": [tensor("image", "FP32", json!([1, 64]), row())], "outputs": outputs});
    endpoint.infer("digits", &body).await.refused(400, "no output \"logits\"; it gives probabilities");
    endpoint.host.drained().await;
    let counts = endpoint.host.counts();
    assert_eq!((counts.served, counts.rejected, counts.errors()), (0, count + 1, 0));
    let good = json!({"inputs": [tensor("image", "FP32", json!([1, 64]), row())]});
    assert_eq!(endpoint.infer("digits", &good).await.status, StatusCode::OK, "it goes on serving");
}

#[tokio::test]
async fn headers_and_sizes_are_checked() {
    let endpoint = Endpoint::serving(doubling("1.0.0", 1));
    let path = "/v2/models/scripted/infer";
    endpoint.post(path, vec![b' '; MAX_BODY_BYTES + 1]).await.refused(413, "at most 262144 bytes");
    for (name, value, status, reason) in [
        ("Inference-Header-Content-Length", "many", 400, "not \"many\""),
        ("Inference-Header-Content-Length", "-1", 400, "not \"-1\""),
        ("Inference-Header-Content-Length", "99", 400, "is 99, but the body has only 2 bytes"),
        ("Content-Encoding", "gzip", 415, "send the request uncompressed"),
    ] {
        let mut request = request(Method::POST, path, Body::from("{}"));
        request.headers_mut().insert(name, value.parse().unwrap());
        endpoint.send(request).await.refused(status, reason);
    }
    let broken = futures_util::stream::iter([Ok("{"), Err(std::io::Error::other("the cable was pulled"))]);
    endpoint.post(path, Body::from_stream(broken)).await.refused(400, "the cable was pulled");
    assert_eq!(endpoint.host.counts().rejected, 6);
}

#[tokio::test]
async fn a_failing_or_panicking_model_is_to_blame_itself() {
    let input = json!({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [1]}]});
    let failing = scripted(DataType::Fp64, "1.0.0", 1, |_| Err(RunError::Failed { reason: "no luck".into() }));
    let endpoint = Endpoint::serving(failing);
    endpoint.infer("scripted", &input).await.refused(500, "the model failed: no luck");
    endpoint.host.activate(scripted(DataType::Fp64, "1.0.1", 2, |_| panic!("a fault of the runtime")), 2);
    endpoint.infer("scripted", &input).await.refused(500, "made the agent fail");
    endpoint.infer("scripted", &input).await.refused(500, "made the agent fail");
    endpoint.host.drained().await;
    let counts = endpoint.host.counts();
    assert_eq!((counts.served, counts.failed, counts.rejected), (2, 2, 0), "since the second was activated");
    endpoint.host.activate(scripted(DataType::Fp64, "1.0.2", 3, |_| Ok(Vec::new())), 3);
    endpoint.infer("scripted", &input).await.refused(500, "the model gave no output \"y\"");
    endpoint.host.drained().await;
    assert_eq!(endpoint.host.counts().failed, 1);
    endpoint.host.activate(doubling("1.0.3", 4), 4);
    let answer = endpoint.infer("scripted", &input).await.json();
    assert_eq!(answer["outputs"][0]["data"], json!([2.0]));
}

#[tokio::test]
async fn when_all_are_busy_the_next_is_turned_away_and_the_waiting_are_served() {
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let slow = scripted(DataType::Fp64, "1.0.0", 1, move |_| {
        gate.lock().unwrap().recv().unwrap();
        Ok(vec![column_of("y", &[1.0])])
    });
    let endpoint = Arc::new(Endpoint::new(1, 1));
    endpoint.host.activate(slow, 1);
    let body = json!({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [1]}]});
    let spawn = || {
        let (endpoint, body) = (Arc::clone(&endpoint), body.clone());
        tokio::spawn(async move { endpoint.infer("scripted", &body).await.status })
    };
    let first = spawn();
    while endpoint.host.load().running == 0 {
        tokio::task::yield_now().await;
    }
    let second = spawn();
    while endpoint.host.load().waiting == 0 {
        tokio::task::yield_now().await;
    }
    endpoint.infer("scripted", &body).await.refused(503, "1 requests are being computed and 1 are waiting");
    assert_eq!(endpoint.get("/v2/health/live").await.status, StatusCode::OK, "what needs no turn is answered");
    go.send(()).unwrap();
    go.send(()).unwrap();
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (StatusCode::OK, StatusCode::OK));
    endpoint.host.drained().await;
    let counts = endpoint.host.counts();
    assert_eq!((counts.served, counts.overloaded), (2, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is sent, there is an answer that says so, and the next request is served.
    #[test]
    fn any_bytes_are_answered(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        header_bytes in prop::option::of(any::<u16>()),
        path in "/v2/models/(scripted|other|%2e|\\PC{0,3})/(infer|ready|versions/1/infer)",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let endpoint = Endpoint::serving(doubling("1.0.0", 1));
            if let Ok(mut request) = Request::builder().method("POST").uri(&path).body(Body::from(bytes)) {
                if let Some(length) = header_bytes {
                    request.headers_mut().insert("Inference-Header-Content-Length", length.into());
                }
                let reply = endpoint.send(request).await;
                assert!(reply.status.is_client_error(), "{path}: {}", reply.status);
                assert!(reply.json()["error"].is_string());
            }
            let good = json!({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [1]}]});
            assert_eq!(endpoint.infer("scripted", &good).await.status, StatusCode::OK);
        });
    }
}
