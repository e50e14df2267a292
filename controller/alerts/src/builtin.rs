//! The rules that come with the controller, and how own rules take their place.

use std::collections::BTreeMap;

use muster_shared::alert::{AlertRule, RuleOrigin, RuleView, Severity, Signal};
use muster_shared::ids::RuleName;
use muster_shared::selector::Selector;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_S: f64 = 86_400.0;

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

/// Thresholds that suit most fleets. Drift's effect sizes are those by which the field reads a stability index: from 0.1 on something
/// has moved, from 0.25 on much has (Siddiqi, Credit Risk Scorecards, 2006).
const BUILT_IN: [BuiltIn; 13] = [
    BuiltIn {
        name: "input-drift",
        signal: Signal::InputDrift,
        fire_at: 0.2,
        clear_at: 0.1,
        for_ms: 15 * MINUTE_MS,
        keep_firing_for_ms: HOUR_MS,
        min_count: 100,
        latency_above_us: None,
        severity: Severity::Warning,
        summary: "{column} of {bundle} has moved from its reference in {group}: stability index {value} over {n} values (limit {threshold})",
    },
    BuiltIn {
        name: "prediction-drift",
        signal: Signal::PredictionDrift,
        fire_at: 0.2,
        clear_at: 0.1,
        for_ms: 15 * MINUTE_MS,
        keep_firing_for_ms: HOUR_MS,
        min_count: 100,
        latency_above_us: None,
        severity: Severity::Warning,
        summary: "{bundle} answers otherwise than on its reference in {group}: stability index {value} of {column} over {n} answers (limit {threshold})",
    },
    BuiltIn {
        name: "confidence-drift",
        signal: Signal::ConfidenceDrift,
        fire_at: 0.2,
        clear_at: 0.1,
        for_ms: 15 * MINUTE_MS,
        keep_firing_for_ms: HOUR_MS,
        min_count: 100,
        latency_above_us: None,
        severity: Severity::Warning,
        summary: "{bundle} is more or less sure of itself than on its reference in {group}: stability index {value} of {column} (limit {threshold})",
    },
    BuiltIn {
        name: "missing-values",
        signal: Signal::MissingShare,
        fire_at: 0.1,
        clear_at: 0.05,
        for_ms: 15 * MINUTE_MS,
        keep_firing_for_ms: HOUR_MS,
        min_count: 100,
        latency_above_us: None,
        severity: Severity::Warning,
        summary: "{column} of {bundle} is missing from a share of {value} of requests in {group}",
    },
    BuiltIn {
        name: "unexpected-values",
        signal: Signal::UnexpectedShare,
        fire_at: 0.1,
        clear_at: 0.05,
        for_ms: 15 * MINUTE_MS,
        keep_firing_for_ms: HOUR_MS,
        min_count: 100,
        latency_above_us: None,
        severity: Severity::Warning,
        summary: "a share of {value} of {column} of {bundle} is out of range or of no known class in {group}",
    },
    BuiltIn {
        name: "error-rate",
        signal: Signal::ErrorRate,
        fire_at: 0.05,
        clear_at: 0.02,
        for_ms: 5 * MINUTE_MS,
        keep_firing_for_ms: 15 * MINUTE_MS,
        min_count: 50,
        latency_above_us: None,
        severity: Severity::Critical,
        summary: "{bundle} fails a share of {value} of {n} requests in {group} (limit {threshold})",
    },
    BuiltIn {
        name: "latency",
        signal: Signal::LatencyShare,
        fire_at: 0.05,
        clear_at: 0.02,
        for_ms: 5 * MINUTE_MS,
        keep_firing_for_ms: 15 * MINUTE_MS,
        min_count: 50,
        latency_above_us: Some(1_000_000),
        severity: Severity::Warning,
        summary: "a share of {value} of {n} requests to {bundle} takes longer than a second in {group}",
    },
    BuiltIn {
        name: "device-silent",
        signal: Signal::DeviceSilence,
        fire_at: DAY_S,
        clear_at: 600.0,
        for_ms: 0,
        keep_firing_for_ms: 0,
        min_count: 0,
        latency_above_us: None,
        severity: Severity::Warning,
        summary: "{device} was last heard {value} seconds ago",
    },
    BuiltIn {
        name: "device-update-failed",
        signal: Signal::DeviceUpdateFailed,
        fire_at: 0.0,
        clear_at: 0.0,
        for_ms: 0,
        keep_firing_for_ms: 0,
        min_count: 0,
        latency_above_us: None,
        severity: Severity::Warning,
        summary: "{device} did not keep the bundle it was told to run: {detail}",
    },
    BuiltIn {
        name: "device-crashed",
        signal: Signal::DeviceCrashes,
        fire_at: 0.0,
        clear_at: 0.0,
        for_ms: 0,
        keep_firing_for_ms: 0,
        min_count: 0,
        latency_above_us: None,
        severity: Severity::Warning,
        summary: "the agent of {device} crashed {value} time(s) within three hours",
    },
    BuiltIn {
        name: "stale-metadata",
        signal: Signal::StaleMetadata,
        fire_at: 3_600.0,
        clear_at: 0.0,
        for_ms: 0,
        keep_firing_for_ms: 0,
        min_count: 0,
        latency_above_us: None,
        severity: Severity::Critical,
        summary: "the assignment of {device} ended {value} seconds ago and was not renewed: it is kept from hearing the controller",
    },
    BuiltIn {
        name: "certificate-ends",
        signal: Signal::CertificateLife,
        fire_at: 14.0 * DAY_S,
        clear_at: 14.0 * DAY_S,
        for_ms: 0,
        keep_firing_for_ms: 0,
        min_count: 0,
        latency_above_us: None,
        severity: Severity::Critical,
        summary: "the certificate of {device} ends in {value} seconds and was not renewed",
    },
    BuiltIn {
        name: "disk-nearly-full",
        signal: Signal::DiskFree,
        fire_at: 64.0 * 1_048_576.0,
        clear_at: 128.0 * 1_048_576.0,
        for_ms: 0,
        keep_firing_for_ms: 0,
        min_count: 0,
        latency_above_us: None,
        severity: Severity::Warning,
        summary: "{device} has {value} bytes left where the agent keeps its data",
    },
];

fn rule(built_in: &BuiltIn) -> Option<AlertRule> {
    Some(AlertRule {
        name: RuleName::new(built_in.name).ok()?,
        enabled: true,
        signal: built_in.signal,
        bundle: None,
        selector: Selector::all(),
        group_by: None,
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
