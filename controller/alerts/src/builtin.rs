//! The rules that come with the controller, and how own rules take their place.

use std::collections::BTreeMap;

use muster_shared::alert::{AlertRule, RuleOrigin, RuleView, Severity, Signal};
use muster_shared::ids::RuleName;
use muster_shared::selector::Selector;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_S: f64 = 86_400.0;

/// The rule under which is told that there are more alerts than are kept.
pub const OVERFLOW_RULE: &str = "alerts-overflow";

struct BuiltIn {
    name: &'static str,
    signal: Signal,
    fire_at: f64,
    clear_at: f64,
    for_ms: u64,
    keep_firing_for_ms: u64,
    min_count: u64,
    latency_above_us: Option<u64>,
    severity: Severity,
    summary: &'static str,
}

/// Something of one device: said at once, and over at once.
const OF_DEVICE: BuiltIn = BuiltIn {
    name: "",
    signal: Signal::DeviceCrashes,
    fire_at: 0.0,
    clear_at: 0.0,
    for_ms: 0,
    keep_firing_for_ms: 0,
    min_count: 0,
    latency_above_us: None,
    severity: Severity::Warning,
    summary: "",
};

/// Something that tests find, over many rows.
const TESTED: BuiltIn = BuiltIn { for_ms: 15 * MINUTE_MS, keep_firing_for_ms: HOUR_MS, min_count: 100, ..OF_DEVICE };
const DRIFT: BuiltIn = BuiltIn { fire_at: 0.2, clear_at: 0.1, ..TESTED };
const SHARE_OF_VALUES: BuiltIn = BuiltIn { fire_at: 0.1, clear_at: 0.05, ..TESTED };

/// A share of requests.
const SHARE_OF_REQUESTS: BuiltIn = BuiltIn {
    fire_at: 0.05,
    clear_at: 0.02,
    for_ms: 5 * MINUTE_MS,
    keep_firing_for_ms: 15 * MINUTE_MS,
    min_count: 50,
    ..OF_DEVICE
};

/// Thresholds that suit most fleets. Drift's effect sizes are those by which the field reads a stability index: from 0.1 on something
/// has moved, from 0.25 on much has (Siddiqi, Credit Risk Scorecards, 2006).
const BUILT_IN: [BuiltIn; 17] = [
    BuiltIn {
        name: "input-drift",
        signal: Signal::InputDrift,
        summary: "{column} of {bundle} has moved from its reference in {group}: stability index {value} over {n} values (limit {threshold})",
        ..DRIFT
    },
    BuiltIn {
        name: "prediction-drift",
        signal: Signal::PredictionDrift,
        summary: "{bundle} answers otherwise than on its reference in {group}: stability index {value} of {column} over {n} answers (limit {threshold})",
        ..DRIFT
    },
    BuiltIn {
        name: "confidence-drift",
        signal: Signal::ConfidenceDrift,
        summary: "{bundle} is more or less sure of itself than on its reference in {group}: stability index {value} of {column} (limit {threshold})",
        ..DRIFT
    },
    BuiltIn {
        name: "missing-values",
        signal: Signal::MissingShare,
        summary: "{column} of {bundle} is missing from a share of {value} of requests in {group}",
        ..SHARE_OF_VALUES
    },
    BuiltIn {
        name: "unexpected-values",
        signal: Signal::UnexpectedShare,
        summary: "a share of {value} of {column} of {bundle} is out of range or of no known class in {group}",
        ..SHARE_OF_VALUES
    },
    BuiltIn {
        name: "schema-violations",
        signal: Signal::SchemaViolations,
        summary: "{column} of {bundle} breaks its data schema ({cause}) in a share of {value} of {n} rows in {group}",
        ..SHARE_OF_VALUES
    },
    BuiltIn {
        name: "shadow-disagrees",
        signal: Signal::ShadowDisagreement,
        severity: Severity::Info,
        summary: "{bundle}, which runs beside another, answers otherwise for a share of {value} of {n} rows ({column}) in {group}",
        ..DRIFT
    },
    BuiltIn {
        name: "quality-loss",
        signal: Signal::QualityLoss,
        fire_at: 0.05,
        clear_at: 0.02,
        min_count: 50,
        summary: "{bundle} is worse than on its reference in {group}: {detail} over {n} labels of {devices} device(s)",
        ..TESTED
    },
    BuiltIn {
        name: "error-rate",
        signal: Signal::ErrorRate,
        severity: Severity::Critical,
        summary: "{bundle} fails a share of {value} of {n} requests in {group} (limit {threshold})",
        ..SHARE_OF_REQUESTS
    },
    BuiltIn {
        name: "latency",
        signal: Signal::LatencyShare,
        latency_above_us: Some(1_000_000),
        summary: "a share of {value} of {n} requests to {bundle} takes longer than a second in {group}",
        ..SHARE_OF_REQUESTS
    },
    BuiltIn {
        name: "device-silent",
        signal: Signal::DeviceSilence,
        fire_at: DAY_S,
        clear_at: 600.0,
        summary: "{device} was last heard {value} seconds ago",
        ..OF_DEVICE
    },
    BuiltIn {
        name: "device-update-failed",
        signal: Signal::DeviceUpdateFailed,
        summary: "{device} did not keep the bundle it was told to run: {detail}",
        ..OF_DEVICE
    },
    BuiltIn {
        name: "device-quarantined",
        signal: Signal::DeviceQuarantined,
        summary: "no rollout takes {device} in any more {detail}",
        ..OF_DEVICE
    },
    BuiltIn {
        name: "device-crashed",
        signal: Signal::DeviceCrashes,
        summary: "the agent of {device} crashed {value} time(s) within three hours",
        ..OF_DEVICE
    },
    BuiltIn {
        name: "stale-metadata",
        signal: Signal::StaleMetadata,
        fire_at: 3_600.0,
        severity: Severity::Critical,
        summary: "the assignment of {device} ended {value} seconds ago and was not renewed: it is kept from hearing the controller",
        ..OF_DEVICE
    },
    BuiltIn {
        name: "certificate-ends",
        signal: Signal::CertificateLife,
        fire_at: 14.0 * DAY_S,
        clear_at: 14.0 * DAY_S,
        severity: Severity::Critical,
        summary: "the certificate of {device} ends in {value} seconds and was not renewed",
        ..OF_DEVICE
    },
    BuiltIn {
        name: "disk-nearly-full",
        signal: Signal::DiskFree,
        fire_at: 64.0 * 1_048_576.0,
        clear_at: 128.0 * 1_048_576.0,
        summary: "{device} has {value} bytes left where the agent keeps its data",
        ..OF_DEVICE
    },
];

/// Its value is the number of alerts that found no room, which no signal measures.
const OVERFLOW: BuiltIn = BuiltIn {
    name: OVERFLOW_RULE,
    keep_firing_for_ms: 5 * MINUTE_MS,
    severity: Severity::Critical,
    summary: "{value} alert(s) more than alerts.max-active are left out: widen a rule's group, or silence its cause",
    ..OF_DEVICE
};

fn rule(built_in: &BuiltIn) -> Option<AlertRule> {
    Some(AlertRule {
        name: RuleName::new(built_in.name).ok()?,
        enabled: true,
        signal: built_in.signal,
        bundle: None,
        selector: Selector::all(),
        group_by: None,
        by_slice: false,
        columns: Vec::new(),
        fire_at: built_in.fire_at,
        clear_at: Some(built_in.clear_at),
        for_ms: built_in.for_ms,
        keep_firing_for_ms: built_in.keep_firing_for_ms,
        over_ms: 3 * HOUR_MS,
        min_count: built_in.min_count,
        latency_above_us: built_in.latency_above_us,
        severity: built_in.severity,
        labels: BTreeMap::new(),
        annotations: [("summary".to_owned(), built_in.summary.to_owned())].into(),
        retrain: false,
    })
}

/// The rule of the alert that tells of more alerts than are kept.
pub(crate) fn overflow_rule() -> Option<AlertRule> {
    rule(&OVERFLOW)
}

/// The rules that come with the controller.
#[must_use]
pub fn built_in_rules() -> Vec<AlertRule> {
    BUILT_IN.iter().filter_map(rule).collect()
}

/// Every rule by its name: `own` ones, and the built-in ones whose place none of them takes.
#[must_use]
pub fn rules_in_force<'a>(
    own: impl IntoIterator<Item = &'a AlertRule>,
    with_built_in: bool,
) -> BTreeMap<RuleName, RuleView> {
    let built_in = built_in_rules().into_iter().filter(|_| with_built_in);
    let built_in = built_in.map(|rule| RuleView { origin: RuleOrigin::BuiltIn, rule });
    let own = own.into_iter().map(|rule| RuleView { origin: RuleOrigin::Own, rule: rule.clone() });
    built_in.chain(own).map(|view| (view.rule.name.clone(), view)).collect()
}
