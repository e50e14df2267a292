//! `muster rollout replay`: a file of evidence, with no controller anywhere.

use serde_json::{Value, json};

use crate::run::{Desk, Ended};

/// A wave of two devices that failed 30 of 300 requests where 5 % are allowed, as `muster rollout evidence` writes it.
fn evidence() -> Value {
    let canary = json!({
        "devices": 2, "reporting": 2, "reports": 9, "requests": 300, "errors": 30, "latency_p99_us": 1960.5,
        "predictions": 0, "failures": 0, "erring": 1, "succeeded": 2,
    });
    let control = json!({
        "devices": 0, "reporting": 0, "reports": 0, "requests": 0, "errors": 0, "latency_p99_us": null,
        "predictions": 0, "failures": 0,
    });
    let check = |rule: &str, outcome: &str, measured: Option<f64>, limit: f64, canary: u64| {
        json!({
            "rule": rule, "outcome": outcome, "measured": measured, "limit": limit, "canary_samples": canary,
            "control_samples": 0, "sentence": "as it was said then",
        })
    };
    let checks = [
        check("failures", "Successful", Some(0.0), 0.0, 2),
        check("error-rate", "Failed", Some(0.1), 0.05, 300),
        check("latency-p99-ratio", "Inconclusive", None, 2.0, 300),
        check("prediction-psi", "Inconclusive", None, 0.25, 0),
        check("min-reports", "Successful", Some(9.0), 3.0, 2),
        check("min-requests", "Successful", Some(300.0), 100.0, 300),
    ];
    let limits = json!({
        "kind": "limits",
        "limits": {
            "max_error_rate": 0.05, "max_latency_p99_ratio": 2.0, "max_failures": 0, "max_prediction_psi": 0.25,
            "min_reports": 3, "min_requests": 100,
        },
        "canary": canary, "control": control, "columns": 0,
    });
    json!([{
        "rollout": "r7", "bundle": "digits@1.2.0", "parts": [limits],
        "verdict": {
            "at_ms": 1_800_000_000_000u64, "wave": 0, "outcome": "Failed", "checks": checks,
            "canary": canary, "control": control, "summary": "wave 1 failed",
        },
    }])
}

fn replayed(evidence: &Value, options: &str) -> Ended {
    let desk = Desk::new();
    desk.write("r7.json", evidence.to_string());
    desk.run(&format!("rollout replay r7.json {options}"))
}

#[test]
fn a_verdict_comes_out_as_it_was_stored() {
    let ended = replayed(&evidence(), "");
    ended.assert(0, &["1 verdict(s), each as it was stored"]);
    for part in ["r7 of digits@1.2.0, wave 1, 2027-01-15T08:00:00Z: Failed, as stored", "30 of 300 requests"] {
        assert!(ended.stdout.contains(part), "{part:?} is not in\n{}", ended.stdout);
    }
    let json = replayed(&evidence(), "--output json").json();
    assert_eq!((&json[0]["outcome"], &json[0]["differences"]), (&json!("Failed"), &json!([])));
}

#[test]
fn what_was_changed_is_named_and_the_exit_code_is_1() {
    let changes: [(&str, Value, &str); 3] = [
        ("/0/verdict/outcome", json!("Successful"), "it was stored as Successful and comes out as Failed"),
        ("/0/parts/0/canary/errors", json!(3), "it was stored as Failed and comes out as Successful"),
        ("/0/verdict/checks/5/measured", json!(301.0), "min-requests: it was stored as Successful"),
    ];
    for (at, to, says) in changes {
        let mut forged = evidence();
        *forged.pointer_mut(at).unwrap() = to;
        replayed(&forged, "").assert(1, &["1 of 1 verdict(s) come out otherwise than stored; wave 1: ", says]);
    }
}

#[test]
fn what_is_no_evidence_is_refused() {
    let mut without = evidence();
    without[0]["parts"] = json!([]);
    replayed(&without, "").assert(2, &["r7.json", "the verdict on wave 1 rests on one part of kind limits"]);
    let mut unknown = evidence();
    unknown[0]["parts"][0]["kind"] = json!("guess");
    replayed(&unknown, "").assert(2, &["this is not what `muster rollout evidence` writes", "guess"]);
    replayed(&json!({}), "").assert(2, &["this is not what `muster rollout evidence` writes"]);
}
