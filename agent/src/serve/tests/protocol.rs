use muster_inference::Tensor;
use muster_shared::bundle::DataType;
use muster_shared::messages::Resources;
use muster_shared::sketch::ColumnSketch;

use super::*;
use crate::host::fixtures::{PIXELS, digits, held_out, other, scripted};

#[tokio::test]
async fn health_and_metadata_follow_the_model() {
    let endpoint = Endpoint::new(1, 1);
    assert_eq!(endpoint.get("/v2/health/live").await.json(), json!({"live": true}));
    endpoint.get("/v2/health/ready").await.refused(503, "no model");
    endpoint.get("/v2/models/digits/ready").await.refused(503, "no model");
    endpoint.get("/v2/models/digits").await.refused(503, "no model");
    let server = endpoint.get("/v2").await.json();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(server, json!({"name": "muster-agent", "version": version, "extensions": ["binary_tensor_data"]}));

    endpoint.host.activate(digits("1.1.0", 4), 1);
    assert_eq!(endpoint.get("/v2/health/ready").await.json(), json!({"ready": true}));
    for path in ["/v2/models/digits", "/v2/models/digits/versions/1.1.0"] {
        assert_eq!(
            endpoint.get(path).await.json(),
            json!({"name": "digits", "versions": ["1.1.0"], "platform": "onnx",
                "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}],
                "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}]})
        );
        let ready = endpoint.get(&format!("{path}/ready")).await.json();
        assert_eq!(ready, json!({"name": "digits", "ready": true}));
    }
    for path in ["/v2/models/digits/versions/1.0.0", "/v2/models/digits/versions/1.0.0/ready"] {
        endpoint.get(path).await.refused(404, "1.1.0 is served");
    }

    endpoint.host.deactivate(2);
    endpoint.get("/v2/health/ready").await.refused(503, "no model");
}

#[tokio::test]
async fn json_tensors_are_answered_rightly_one_by_one_and_in_a_batch() {
    let endpoint = Endpoint::serving(digits("1.1.0", 1));
    let images = held_out();
    let rows: Vec<&[f32]> = images.iter().take(100).map(|(_, row)| row.as_slice()).collect();
    let batch = endpoint.infer("digits", &json!({"id": "all", "inputs": [image_input(&rows)]})).await.json();
    assert_eq!((&batch["model_name"], &batch["model_version"]), (&json!("digits"), &json!("1.1.0")));
    assert_eq!(batch["id"], "all");
    let output = &batch["outputs"][0];
    assert_eq!((&output["name"], &output["datatype"]), (&json!("probabilities"), &json!("FP32")));
    assert_eq!(output["shape"], json!([100, 10]));
    let together = numbers(&output["data"]);

    let mut right = 0;
    let mut made = std::collections::BTreeSet::new();
    for (at, (label, row)) in images.iter().take(100).enumerate() {
        let alone = endpoint.infer("digits", &json!({"inputs": [image_input(&[row])]})).await.json();
        let id = alone["id"].as_str().unwrap().to_owned();
        assert!(id.len() == 32 && made.insert(id), "every inference has an id of its own");
        let alone = numbers(&alone["outputs"][0]["data"]);
        let same = &together[at * 10..][..10];
        assert!(alone.iter().zip(same).all(|(a, b)| (a - b).abs() < 1e-5), "row {at}: {alone:?} {same:?}");
        right += u32::from(best(&alone) == format!("{label}").parse::<usize>().unwrap());
    }
    assert!(right > 90, "{right} of 100 were recognised");
}

#[tokio::test]
async fn binary_tensors_in_and_out_give_what_json_gives() {
    let endpoint = Endpoint::serving(digits("1.1.0", 1));
    let images = held_out();
    let rows: Vec<&[f32]> = images.iter().take(3).map(|(_, row)| row.as_slice()).collect();
    let plain = endpoint.infer("digits", &json!({"inputs": [image_input(&rows)]})).await;
    assert_eq!(plain.headers["content-type"], "application/json");
    let expected = numbers(&plain.json()["outputs"][0]["data"]);

    let bytes: Vec<u8> = rows.concat().iter().flat_map(|value| value.to_le_bytes()).collect();
    let input =
        json!({"name": "image", "shape": [3, 64], "datatype": "FP32", "parameters": {"binary_data_size": bytes.len()}});
    let wanted = json!([{"name": "probabilities", "parameters": {"binary_data": true}}]);

    let reply = endpoint.infer_binary("digits", &json!({"inputs": [input]}), &bytes).await;
    assert_eq!(numbers(&reply.json()["outputs"][0]["data"]), expected, "binary in, JSON out");

    let reply = endpoint.infer("digits", &json!({"inputs": [image_input(&rows)], "outputs": wanted})).await;
    let (head, binary) = reply.parts();
    assert_eq!(floats(binary), expected, "JSON in, binary out");
    assert_eq!(
        head["outputs"],
        json!([{"name": "probabilities", "datatype": "FP32", "shape": [3, 10], "parameters": {"binary_data_size": 120}}])
    );

    let head = json!({"inputs": [input], "parameters": {"binary_data_output": true}});
    let reply = endpoint.infer_binary("digits", &head, &bytes).await;
    assert_eq!(floats(reply.parts().1), expected, "binary both ways");
}

#[tokio::test]
async fn several_inputs_and_outputs_can_be_mixed_and_chosen() {
    let model = other("two-inputs-two-outputs");
    let signature = model.signature.clone();
    let endpoint = Endpoint::serving(model);
    let [first, second] = signature.inputs.as_slice() else { panic!("{signature:?}") };
    let shape = |spec: &muster_shared::bundle::TensorSpec| -> Vec<i64> {
        spec.shape.iter().map(|d| if *d < 0 { 2 } else { *d }).collect()
    };
    let count = |spec| usize::try_from(shape(spec).iter().product::<i64>()).unwrap();
    let data: Vec<f32> = (0u8..).map(f32::from).take(count(first)).collect();
    let bytes: Vec<u8> = (0u8..).map(f32::from).take(count(second)).flat_map(f32::to_le_bytes).collect();
    let inputs = json!([
        {"name": first.name, "shape": shape(first), "datatype": first.datatype, "data": data},
        {"name": second.name, "shape": shape(second), "datatype": second.datatype, "parameters": {"binary_data_size": bytes.len()}},
    ]);
    let path = "two-inputs-two-outputs";
    let reply = endpoint.infer_binary(path, &json!({"inputs": inputs}), &bytes).await;
    assert_eq!(reply.status, StatusCode::OK, "{:?}", reply.body);
    let all = reply.json();
    let names = |answer: &Value| -> Vec<String> {
        answer["outputs"].as_array().unwrap().iter().map(|o| o["name"].as_str().unwrap().to_owned()).collect()
    };
    let [one, two] = signature.outputs.as_slice() else { panic!("{signature:?}") };
    assert_eq!(names(&all), [one.name.clone(), two.name.clone()]);

    let wanted = json!([{"name": two.name}]);
    let reply = endpoint.infer_binary(path, &json!({"inputs": inputs, "outputs": wanted}), &bytes).await;
    assert_eq!(reply.json()["outputs"], json!([all["outputs"][1]]));

    let wanted = json!([{"name": two.name, "parameters": {"binary_data": true}}, {"name": one.name}]);
    let reply = endpoint.infer_binary(path, &json!({"inputs": inputs, "outputs": wanted}), &bytes).await;
    let (head, binary) = reply.parts();
    assert_eq!(names(&head), [two.name.clone(), one.name.clone()]);
    assert_eq!(head["outputs"][1], all["outputs"][0]);
    assert_eq!(floats(binary), numbers(&all["outputs"][1]["data"]));
}

/// A manifest may list the outputs in another order than the model gives them.
#[tokio::test]
async fn outputs_are_found_by_name() {
    let mut model = other("two-inputs-two-outputs");
    model.signature.outputs.reverse();
    let names: Vec<String> = model.signature.outputs.iter().map(|output| output.name.clone()).collect();
    let inputs: Vec<Value> = model
        .signature
        .inputs
        .iter()
        .map(|input| {
            let shape: Vec<i64> = input.shape.iter().map(|d| d.abs()).collect();
            let data = vec![1.0; usize::try_from(shape.iter().product::<i64>()).unwrap()];
            json!({"name": input.name, "shape": shape, "datatype": input.datatype, "data": data})
        })
        .collect();
    let endpoint = Endpoint::serving(model);
    let path = "two-inputs-two-outputs";
    let all = endpoint.infer(path, &json!({"inputs": inputs})).await.json();
    for (name, output) in names.iter().zip(all["outputs"].as_array().unwrap()) {
        assert_eq!(output["name"], *name);
        let alone = endpoint.infer(path, &json!({"inputs": inputs, "outputs": [{"name": name}]})).await.json();
        assert_eq!(alone["outputs"], json!([output]));
    }
}

#[tokio::test]
async fn integers_and_booleans_keep_their_type() {
    let endpoint = Endpoint::serving(other("bool-uint8"));
    let inputs = json!([
        {"name": "pixels", "shape": [1, 6], "datatype": "UINT8", "data": [0, 1, 127, 128, 254, 255]},
        {"name": "mask", "shape": [1, 6], "datatype": "BOOL", "data": [true, true, true, true, true, false]},
    ]);
    let answer = endpoint.infer("bool-uint8", &json!({"inputs": inputs})).await.json();
    assert_eq!(answer["outputs"][0]["data"], json!([0, 1, 127, 128, 254, 0]));
    assert_eq!(answer["outputs"][2]["data"], json!([false, false, false, true, true, false]));
}

#[tokio::test]
async fn fp16_travels_in_binary() {
    let endpoint = Endpoint::serving(scripted(DataType::Fp16, "1.0.0", 1, |inputs| {
        Ok(vec![Tensor::new("y", DataType::Fp16, inputs[0].shape().to_vec(), inputs[0].data().to_vec()).unwrap()])
    }));
    let input = json!({"name": "x", "shape": [2, 1], "datatype": "FP16", "parameters": {"binary_data_size": 4}});
    // 1.0 and -2.0 by IEEE 754.
    let halves = [0x00, 0x3c, 0x00, 0xc0];
    let head = json!({"inputs": [input], "parameters": {"binary_data_output": true}});
    let reply = endpoint.infer_binary("scripted", &head, &halves).await;
    assert_eq!(reply.parts().1, halves);
    endpoint.infer_binary("scripted", &json!({"inputs": [input]}), &halves).await.refused(400, "FP16");
}

#[tokio::test]
async fn answers_that_are_not_finite_are_given_and_counted() {
    let endpoint = Endpoint::serving(scripted(DataType::Fp32, "1.0.0", 1, |inputs| {
        let rows = inputs[0].shape()[0];
        Ok(vec![Tensor::from_f32("y", vec![rows, 1], &vec![f32::NAN; rows]).unwrap()])
    }));
    let input = json!({"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]});
    let head = json!({"inputs": [input], "parameters": {"binary_data_output": true}});
    let reply = endpoint.infer("scripted", &head).await;
    assert!(floats(reply.parts().1)[0].is_nan());
    let reply = endpoint.infer("scripted", &json!({"inputs": [input]})).await;
    assert!(String::from_utf8_lossy(&reply.body).contains("\"data\":[NaN]"), "as Triton writes it: {:?}", reply.body);
    endpoint.host.drained().await;
    let counts = endpoint.host.counts();
    assert_eq!((counts.served, counts.non_finite, counts.failed), (2, 2, 0));
    let metrics = endpoint.get("/metrics").await;
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(text.contains("muster_agent_requests_total{outcome=\"non_finite\"} 2"), "{text}");
}

#[tokio::test]
async fn what_was_sent_is_what_the_window_holds() {
    let model = digits("1.1.0", 9);
    let (manifest, profile) = (model.manifest, model.profile.clone());
    let endpoint = Endpoint::serving(model);
    let images = held_out();
    let mut answers = Vec::new();
    for batch in images.chunks(37) {
        let rows: Vec<&[f32]> = batch.iter().map(|(_, row)| row.as_slice()).collect();
        let answer = endpoint.infer("digits", &json!({"inputs": [image_input(&rows)]})).await.json();
        answers.extend(numbers(&answer["outputs"][0]["data"]));
    }
    endpoint.infer("digits", &json!({"inputs": []})).await.refused(400, "\"image\" is missing");
    endpoint.host.drained().await;

    let closed = endpoint.host.monitor().close_all(2, Resources::default());
    let [window] = closed.as_slice() else { panic!("{} windows", closed.len()) };
    let key = window.telemetry.key;
    assert_eq!((key.manifest, key.generation), (manifest, 9));
    let requests = images.len().div_ceil(37) as u64;
    assert_eq!((window.telemetry.requests.served, window.telemetry.requests.rejected), (requests, 1));
    assert_eq!(window.telemetry.latency_us.count(), requests);
    let sketch = window.sketch.as_ref().unwrap();
    assert!(sketch.fits(&profile));

    // The same by the definition of each column.
    for (at, (sketch, column)) in sketch.columns.iter().zip(&profile.columns).enumerate() {
        let mut expected = ColumnSketch::empty(column);
        for (image, answer) in images.iter().zip(answers.chunks(10)) {
            let value = match at {
                PIXELS => format!("{}", best(answer)).parse().unwrap(),
                at if at > PIXELS => f64::from(answer[best(answer)]),
                pixel => f64::from(image.1[pixel]),
            };
            expected.add(column, value);
        }
        assert_eq!(sketch.cells(), expected.cells(), "{}", column.name);
    }
}

#[tokio::test]
async fn status_and_metrics_tell_what_is_served() {
    let endpoint = Endpoint::new(3, 5);
    assert_eq!(endpoint.get("/status").await.json()["running"], Value::Null);
    endpoint.host.activate(digits("1.0.0", 2), 1);
    let images = held_out();
    endpoint.infer("digits", &json!({"inputs": [image_input(&[&images[0].1])]})).await;
    endpoint.infer("digits", &json!({})).await;
    endpoint.infer("other", &json!({})).await;
    endpoint.host.drained().await;
    let status = endpoint.get("/status").await.json();
    assert_eq!((&status["running"]["bundle"], &status["running"]["generation"]), (&json!("digits@1.0.0"), &json!(2)));
    assert_eq!((&status["requests"]["served"], &status["requests"]["rejected"]), (&json!(1), &json!(1)));
    assert_eq!(status["workers"], json!({"used": 0, "limit": 3}));
    assert_eq!(status["queue"], json!({"used": 0, "limit": 5}));
    let metrics = endpoint.get("/metrics").await;
    assert!(metrics.headers["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    for line in [
        "muster_agent_requests_total{outcome=\"answered\"} 1",
        "muster_agent_requests_total{outcome=\"rejected\"} 1",
        "muster_agent_requests_total{outcome=\"not_served\"} 1",
        "muster_agent_request_duration_seconds_count 1",
        "muster_agent_generation 2",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
}
