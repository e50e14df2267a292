use muster_shared::alert::Alert;
use muster_shared::api::{ColumnDrift, DriftGroup, DriftReport, LatencyCard, LiveCard, RolloutCard};
use muster_shared::bundle::{DataType, Manifest, ModelSignature, TensorSpec};
use muster_shared::card::Card;
use muster_shared::ids::{Digest, RolloutId};
use muster_shared::messages::RequestCounts;
use muster_shared::quality::{ClassificationQuality, Estimate, Quality, QualityGroup, QualityReport, SliceQuality};
use muster_shared::rollout::RolloutStatus;

use super::*;

fn manifest() -> Manifest {
    let tensor = |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, shape: vec![-1, 4] };
    let json = serde_json::json!({
        "name": "pets", "version": "1.0.0", "description": "cats <script>", "release_counter": 3, "security_floor": 0,
        "created_at_ms": 0, "expires_ms": 1_000, "requirements": {}, "budgets": {}, "files": [],
        "signature": ModelSignature { inputs: vec![tensor("x|y")], outputs: vec![tensor("p")] },
        "profile": { "columns": [] },
        "lineage": { "dataset": "pets-2024", "code": "git@example.org:pets 1a2b", "metrics": { "accuracy": 0.95 } },
        "card": Card {
            owners: vec!["vision".into()],
            license: Some("Apache-2.0".into()),
            limitations: Some("Poor light.".into()),
            ..Card::default()
        },
    });
    serde_json::from_value(json).unwrap()
}

fn card(live: Option<LiveCard>) -> ModelCard {
    ModelCard {
        bundle: "pets@1.0.0".parse().unwrap(),
        manifest_digest: Digest::of(b"m"),
        signed_by: vec!["k1".into()],
        pushed_at_ms: Some(1),
        manifest: manifest(),
        live,
    }
}

fn quality_of(right: f64, labels: u64) -> Quality {
    let accuracy = Estimate { value: right, low: Some(right - 0.1), high: Some(right + 0.05) };
    let classification = ClassificationQuality {
        accuracy,
        macro_precision: 0.0,
        macro_recall: 0.0,
        macro_f1: 0.0,
        other: 0,
        calibration_error: None,
        classes: vec![],
        reliability: vec![],
        confusions: vec![],
    };
    Quality { labels, devices: 2, classification: Some(classification), score: Some(1.0 - right), ..Quality::default() }
}

fn idle() -> LiveCard {
    let bundle = || "pets@1.0.0".parse().unwrap();
    LiveCard {
        at_ms: 10_000,
        since_ms: 0,
        devices: 0,
        devices_assigned: 0,
        running_since_ms: None,
        requests: RequestCounts::default(),
        error_rate: None,
        latency: None,
        quality: QualityReport {
            bundle: bundle(),
            profile: Digest::of(b"p"),
            group_by: None,
            since_ms: 0,
            k_min: 20,
            interval: 0.95,
            trend_ms: 1,
            task: None,
            baseline: None,
            groups: vec![],
        },
        drift: DriftReport {
            bundle: bundle(),
            profile: Digest::of(b"p"),
            group_by: None,
            by_window: false,
            alpha: 0.01,
            min_effect: 0.1,
            since_ms: 0,
            k_min: 20,
            groups: vec![],
        },
        alerts: vec![],
        rollouts: vec![],
    }
}

#[test]
fn a_folder_says_what_is_declared_and_what_is_not() {
    let text = markdown(&card(None));
    for part in [
        "# pets 1.0.0\n\ncats \\<script>\n\n## Model details",
        "- **owners**: vision\n- **license**: Apache-2.0",
        "- **signed**: `k1` (not checked)",
        "*Not declared: intended use.*",
        "## Limitations\n\nPoor light.",
        "- **training data**: pets-2024",
        "| `accuracy` | 0.95 |",
        "| input | `x\\|y` | FP32 | any × 4 |",
        "*No reference sample",
        "*A bundle in a folder: no controller was asked.*",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(!text.contains("## Intended use"), "{text}");
}

#[test]
fn a_bundle_that_nobody_runs_says_so() {
    let text = markdown(&card(Some(idle())));
    for part in [
        "- **signed**: `k1`\n",
        "*No device runs it, and none is to.*",
        "*It declares no labels.*",
        "*No device has reported what it saw.*",
        "### Alerts\n\nNone.",
        "None brought it.",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let text = markdown(&card(Some(LiveCard { devices_assigned: 4, ..idle() })));
    assert!(text.contains("*No device runs it yet; 4 are to.*"), "{text}");
}

#[test]
fn figures_from_the_field_are_told_the_worst_slice_first() {
    let mut live = idle();
    (live.devices, live.devices_assigned, live.running_since_ms) = (3, 4, Some(5_000));
    live.requests = RequestCounts { served: 200, failed: 3, non_finite: 1, ..RequestCounts::default() };
    live.error_rate = Some(0.02);
    live.latency = Some(LatencyCard { p50_us: 1_500.0, p95_us: 20_000.0, p99_us: 400_000.0 });
    live.quality.task =
        Some(muster_shared::labels::LabelTask::Classification { classes: vec!["cat".into(), "dog".into()] });
    let slice = |name: &str, quality| SliceQuality { slice: name.into(), quality };
    live.quality.groups = vec![QualityGroup {
        group: String::new(),
        devices: 3,
        windows: 9,
        standing: Default::default(),
        quality: quality_of(0.8, 500),
        concept: vec![],
        slices: vec![
            slice("site=oslo", quality_of(0.4, 100)),
            slice("site=lyon", Quality { suppressed: true, ..Quality::default() }),
        ],
        trend: vec![],
    }];
    let moved = ColumnDrift {
        name: "x[0]".into(),
        psi: Some(0.7),
        critical: Some(0.1),
        n: 900,
        drifted: true,
        ..ColumnDrift::default()
    };
    let still = ColumnDrift { name: "x[1]".into(), n: 900, ..ColumnDrift::default() };
    live.drift.groups = vec![DriftGroup {
        group: String::new(),
        slice: None,
        start_ms: 0,
        end_ms: 1,
        devices: 3,
        windows: 9,
        suppressed: false,
        columns: vec![still, moved],
        quality: None,
        outliers: None,
        quantiles: Vec::new(),
        objectives: Vec::new(),
    }];
    live.alerts = vec![alert()];
    live.rollouts = vec![RolloutCard {
        id: RolloutId::new("r7").unwrap(),
        status: RolloutStatus::RolledBack,
        status_reason: "the gate failed".into(),
        created_at_ms: 0,
        updated_at_ms: 1,
        devices: 4,
        failures: 1,
    }];
    let text = markdown(&card(Some(live)));
    for part in [
        "3 device(s) run it, the first since 1970-01-01T00:00:05Z; 4 are to.",
        "- **error rate**: 2.0 % (3 failed, 1 not finite)",
        "- **latency p50 / p95 / p99**: 1.50 ms / 20.00 ms / 400 ms",
        "| all | 500 | accuracy 80.0 % (70.0 % to 85.0 %) |\n| `site=oslo` | 100 | accuracy 40.0 %",
        "| `site=lyon` | under 20, or kept back with one | too few labels to show |",
        "1 of 2 columns have drifted, on 3 device(s).",
        "| `x[0]` | input | 0.7000 | 0.1000 | 900 | 0.0 % |",
        "| `input-drift` | `column=x` | warning | firing |",
        "| `r7` | rolled_back |",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

fn alert() -> Alert {
    let json = serde_json::json!({
        "fingerprint": "ab", "rule": "input-drift", "labels": { "bundle": "pets@1.0.0", "column": "x" },
        "rule_labels": {},
        "annotations": { "summary": "x moved | much" }, "severity": "warning", "state": "firing", "since_ms": 1,
        "began_ms": 1, "measured_ms": 1, "value": 0.7, "threshold": 0.2, "evidence": {}, "told": "firing",
        "retrain": false,
    });
    serde_json::from_value(json).unwrap()
}
