//! What rules ask for, read from the fleet and the store. Nothing is judged here.
//!
//! One walk through the windows serves all rules and bundles of a round ([`walk`]); what it adds up becomes observations in [`columns`],
//! [`labels`], [`shares`] and [`counters`].

mod columns;
mod counters;
mod labels;
mod shares;
mod walk;

use std::collections::BTreeMap;

use muster_alerts::{Observation, Round};
use muster_shared::alert::{AlertEvidence, AlertRule, Signal};
use muster_shared::api::{ColumnDrift, DriftReport};
use muster_shared::ids::{BundleRef, RuleName};

use super::{DriftSeries, LastRound};
use crate::fleet::DeviceHealth;
use crate::state::App;
use walk::{Ask, Walk};

/// After a start, devices get this long to be heard before their silence counts, in milliseconds.
const GRACE_MS: u64 = 600_000;

/// A round, and the reports on drift it rests on.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) round: Round,
    /// By bundle and what was asked; else why there is none.
    reports: BTreeMap<(BundleRef, Ask), Result<DriftReport, String>>,
}

impl Measured {
    /// What Prometheus is shown: each column of each bundle and group once, `most` at most. What was asked of some devices alone, or of
    /// slices, is not shown, as its name would not say so.
    pub(super) fn shown(&self, at_ms: u64, most: usize) -> LastRound {
        let mut series: BTreeMap<(String, String, String), &ColumnDrift> = BTreeMap::new();
        let whole = self.reports.iter().filter(|((_, ask), _)| ask.is_of_all_rows());
        for report in whole.filter_map(|(_, report)| report.as_ref().ok()) {
            for group in &report.groups {
                let name = report.group_by.as_ref().map(|label| format!("{label}={}", group.group)).unwrap_or_default();
                for column in &group.columns {
                    series.entry((report.bundle.to_string(), name.clone(), column.name.clone())).or_insert(column);
                }
            }
        }
        let drift_left_out = series.len().saturating_sub(most);
        let drift = series
            .into_iter()
            .take(most)
            .map(|((bundle, group, column), drift)| DriftSeries {
                bundle,
                group,
                column,
                psi: drift.psi,
                critical: drift.critical,
                missing_share: drift.missing_share,
                unexpected_share: drift.unexpected_share,
            })
            .collect();
        LastRound { at_ms, drift, drift_left_out }
    }

    fn add(&mut self, rule: &AlertRule, observation: Observation) {
        self.round.observations.entry(rule.name.clone()).or_default().push(observation);
    }

    /// Says that `rule` could not be measured, and why.
    fn give_up(&mut self, rule: &AlertRule, why: &str) {
        tracing::warn!(rule = %rule.name, why, "a rule cannot be measured");
        self.round.unmeasured.insert(rule.name.clone());
    }
}

/// Measures what `rules` ask for. What cannot be read is noted as such, so that its alerts stay as they are.
pub(super) async fn measure(app: &App, rules: &BTreeMap<RuleName, AlertRule>, now_ms: u64) -> Measured {
    let mut measured = Measured::default();
    let devices = app.fleet.health();
    let enabled: Vec<&AlertRule> = rules.values().filter(|rule| rule.enabled).collect();
    let of_windows: Vec<&AlertRule> = enabled.iter().copied().filter(|rule| rests_on_windows(rule.signal)).collect();
    match Walk::through(app, &of_windows, &devices, now_ms).await {
        Ok(walk) => {
            walk.counters.observe(&of_windows, &devices, &mut measured);
            walk.shares.observe(&of_windows, now_ms, &mut measured);
            for rule in of_windows.iter().filter(|rule| rule.signal.is_of_labels()) {
                labels::observe(rule, &walk.bundles, now_ms, &mut measured);
            }
            columns::score(walk.bundles, &mut measured).await;
            for rule in of_windows.iter().filter(|rule| rule.signal.is_of_columns()) {
                columns::observe(rule, now_ms, &mut measured);
            }
        }
        Err(error) => {
            let why = error.to_string();
            of_windows.iter().for_each(|rule| measured.give_up(rule, &why));
        }
    }
    for rule in enabled.iter().filter(|rule| !rests_on_windows(rule.signal)) {
        let grace_ms = GRACE_MS.min(seconds_to_ms(rule.fire_at));
        if rule.signal == Signal::DeviceSilence && now_ms < app.alerts.started_ms.saturating_add(grace_ms) {
            measured.round.unmeasured.insert(rule.name.clone());
            continue;
        }
        for device in devices.values().filter(|device| device.is_selected_by(&rule.selector)) {
            if let Some((value, detail)) = of_device(rule.signal, device, now_ms) {
                measured.add(rule, device_observation(rule, device, value, detail));
            }
        }
    }
    measured
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float-to-int cast saturates")]
fn seconds_to_ms(seconds: f64) -> u64 {
    (seconds * 1_000.0) as u64
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

/// Whether the signal is read from windows rather than from what is in memory.
fn rests_on_windows(signal: Signal) -> bool {
    !signal.is_of_devices() || matches!(signal, Signal::DeviceCrashes | Signal::DiskFree)
}

fn of_device(signal: Signal, device: &DeviceHealth, now_ms: u64) -> Option<(f64, Option<String>)> {
    match signal {
        Signal::DeviceSilence => {
            Some((device.heard_ms.map_or(0.0, |heard_ms| seconds(now_ms.saturating_sub(heard_ms))), None))
        }
        Signal::DeviceUpdateFailed => {
            Some((f64::from(u8::from(device.update_failed.is_some())), device.update_failed.clone()))
        }
        Signal::DeviceQuarantined => {
            Some((f64::from(u8::from(device.quarantined.is_some())), device.quarantined.clone()))
        }
        Signal::StaleMetadata => {
            Some((device.stale_since_ms.map_or(0.0, |since_ms| seconds(now_ms.saturating_sub(since_ms))), None))
        }
        Signal::CertificateLife => {
            device.certificate_ends_ms.map(|ends_ms| (seconds(ends_ms.saturating_sub(now_ms)), None))
        }
        Signal::InputDrift
        | Signal::PredictionDrift
        | Signal::ConfidenceDrift
        | Signal::MissingShare
        | Signal::UnexpectedShare
        | Signal::SchemaViolations
        | Signal::ShadowDisagreement
        | Signal::QualityLoss
        | Signal::Accuracy
        | Signal::Precision
        | Signal::Recall
        | Signal::F1
        | Signal::CalibrationError
        | Signal::Mae
        | Signal::Rmse
        | Signal::ErrorRate
        | Signal::LatencyShare
        | Signal::DeviceCrashes
        | Signal::DiskFree => None,
    }
}

fn device_observation(rule: &AlertRule, device: &DeviceHealth, value: f64, detail: Option<String>) -> Observation {
    let mut labels: BTreeMap<String, String> = [("device".to_owned(), device.id.to_string())].into();
    let group =
        rule.group_by.as_ref().and_then(|label| device.label(label).map(|value| (label.clone(), value.clone())));
    labels.extend(group);
    Observation { labels, value, p_value: None, evidence: AlertEvidence { detail, ..AlertEvidence::default() } }
}

/// The labels of what is said of a bundle, of a group of devices and of a slice of its rows.
fn bundle_labels(
    rule: &AlertRule,
    bundle: &BundleRef,
    group: &str,
    slice: Option<&String>,
) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [("bundle".to_owned(), bundle.to_string())].into();
    let grouped = rule.group_by.as_ref().filter(|_| !group.is_empty());
    labels.extend(grouped.map(|label| (label.clone(), group.to_owned())));
    labels.extend(slice.map(|slice| ("slice".to_owned(), slice.clone())));
    labels
}
