//! Requests that a bundle's data schema rejects, flags or repairs.

use muster_inference::RunError;
use muster_inference::quality::QualityGate;
use muster_shared::bundle::DataType;
use muster_shared::data_schema::{DataSchema, FeatureRule, Imputed, OnViolation};
use muster_shared::messages::Resources;
use muster_shared::sketch::{Cause, QualitySketch};

use super::*;
use crate::host::fixtures::{column_of, scripted};

/// A model that doubles FP64 and nothing else, and expects `x` to be there and at most 10.
fn strict(on_violation: OnViolation) -> (DataSchema, ServedModel) {
    let rule = FeatureRule {
        max: Some(10.0),
        on_violation,
        impute: (on_violation == OnViolation::Impute).then_some(Imputed::Number(3.0)),
        ..FeatureRule::of("x", "x", 0, DataType::Fp64)
    };
    let schema = DataSchema { duplicates: None, features: vec![rule] };
    let mut model = scripted(DataType::Fp64, "1.0.0", 1, |inputs| {
        let (expected, got) = (DataType::Fp64, inputs[0].datatype());
        if got != expected {
            return Err(RunError::Datatype { input: "x".into(), expected, got });
        }
        Ok(vec![column_of("y", &inputs[0].values().map(|x| 2.0 * x).collect::<Vec<_>>())])
    });
    schema.validate(&model.signature).unwrap();
    model.quality = Some(std::sync::Arc::new(QualityGate::new(&schema, &model.signature)));
    (schema, model)
}

async fn infer(endpoint: &Endpoint, value: Value) -> Reply {
    let body = json!({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 1], "data": [value]}]});
    endpoint.post("/v2/models/scripted/infer", body.to_string()).await
}

#[tokio::test]
async fn a_rule_rejects_flags_or_imputes_and_all_of_it_is_counted() {
    for on_violation in [OnViolation::Reject, OnViolation::Flag, OnViolation::Impute] {
        let endpoint = Endpoint::new(2, 2);
        let (schema, model) = strict(on_violation);
        endpoint.host.activate(model, 1);
        let good = infer(&endpoint, json!(4.0)).await;
        assert_eq!(good.status, StatusCode::OK);
        assert_eq!(good.json()["parameters"], Value::Null);

        let reply = infer(&endpoint, json!(11.0)).await;
        let said = reply.json();
        match on_violation {
            OnViolation::Reject => {
                assert_eq!(reply.status, StatusCode::BAD_REQUEST);
                let expected = "the data schema rejects the request: feature \"x\" of row 1, is 11, and 10 is the most that is expected";
                assert_eq!(said["error"], expected);
            }
            OnViolation::Flag => {
                assert_eq!(
                    (&said["outputs"][0]["data"], &said["parameters"]["quality_flags"]),
                    (&json!([22.0]), &json!("x above-max"))
                );
            }
            OnViolation::Impute => {
                assert_eq!(
                    (&said["outputs"][0]["data"], &said["parameters"]["quality_imputed"]),
                    (&json!([6.0]), &json!("x above-max"))
                );
            }
        }
        let wrong = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]});
        assert_eq!(endpoint.post("/v2/models/scripted/infer", wrong.to_string()).await.status, StatusCode::BAD_REQUEST);

        // Answers may leave before they are counted, and a window may have ended meanwhile.
        endpoint.host.drained().await;
        let windows = endpoint.host.monitor().close_all(2, Resources::default());
        let mut quality = QualitySketch::default();
        for sketch in windows.into_iter().filter_map(|window| window.sketch) {
            quality.merge(&sketch.quality).unwrap();
        }
        assert!(quality.fits(Some(&schema)));
        assert_eq!((quality.rows, quality.malformed, quality.count(0, Cause::AboveMax)), (2, 1, 1));
        let told = |wanted| u64::from(on_violation == wanted);
        assert_eq!(quality.rejected, told(OnViolation::Reject));
        assert_eq!(quality.flagged, told(OnViolation::Flag));
        assert_eq!(quality.imputed, told(OnViolation::Impute));
    }
}
