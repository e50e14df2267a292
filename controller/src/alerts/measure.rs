//! What rules ask for, read from the fleet and the store. Nothing is judged here.

use std::collections::{BTreeMap, BTreeSet};

use muster_alerts::{Observation, Round};
use muster_shared::alert::{AlertEvidence, AlertRule, Signal};
use muster_shared::api::{ColumnDrift, DriftReport, Subject};
use muster_shared::ids::{BundleRef, DeviceId, RuleName};
use muster_shared::messages::RequestCounts;
use muster_shared::sketch::LatencySketch;

use super::{DriftSeries, LastRound};
use crate::drift::{self, DriftError, Wish};
use crate::fleet::DeviceHealth;
use crate::state::App;
use crate::store::StoreError;
use crate::store::records::WindowRecord;
use crate::windows as stored;

/// After a start, devices get this long to be heard before their silence counts, in milliseconds.
const GRACE_MS: u64 = 600_000;

/// A round, and the reports on drift it rests on.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) round: Round,
    reports: BTreeMap<ReportKey, DriftReport>,
}

type ReportKey = (BundleRef, Option<String>, u64);

impl Measured {
    /// What Prometheus is shown: each column of each bundle and group once, `most` at most.
    pub(super) fn shown(&self, at_ms: u64, most: usize) -> LastRound {
        let mut series: BTreeMap<(String, String, String), &ColumnDrift> = BTreeMap::new();
        for report in self.reports.values() {
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
}

/// Measures what `rules` ask for. What cannot be read is noted as such, so that its alerts stay as they are.
pub(super) async fn measure(app: &App, rules: &BTreeMap<RuleName, AlertRule>, now_ms: u64) -> Measured {
    let mut measured = Measured::default();
    let devices = app.fleet.health();
    let enabled: Vec<&AlertRule> = rules.values().filter(|rule| rule.enabled).collect();
    for rule in enabled.iter().filter(|rule| rule.signal.is_of_columns()) {
        if let Err(error) = columns(app, rule, now_ms, &mut measured).await {
            tracing::warn!(rule = %rule.name, %error, "a rule cannot be measured");
            measured.round.unmeasured.insert(rule.name.clone());
        }
    }
    let of_windows: Vec<&AlertRule> = enabled.iter().copied().filter(|rule| rests_on_windows(rule.signal)).collect();
    match Windows::read(app, &of_windows, &devices, now_ms).await {
        Ok(windows) => windows.observe(&of_windows, &devices, &mut measured),
        Err(error) => {
            tracing::warn!(%error, "the monitoring windows cannot be read for alerts");
            measured.round.unmeasured.extend(of_windows.iter().map(|rule| rule.name.clone()));
        }
    }
    for rule in enabled.iter().filter(|rule| rule.signal.is_of_devices() && !rests_on_windows(rule.signal)) {
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
    matches!(signal, Signal::ErrorRate | Signal::LatencyShare | Signal::DeviceCrashes | Signal::DiskFree)
}

fn of_device(signal: Signal, device: &DeviceHealth, now_ms: u64) -> Option<(f64, Option<String>)> {
    match signal {
        Signal::DeviceSilence => {
            Some((device.heard_ms.map_or(0.0, |heard_ms| seconds(now_ms.saturating_sub(heard_ms))), None))
        }
        Signal::DeviceUpdateFailed => {
            Some((f64::from(u8::from(device.update_failed.is_some())), device.update_failed.clone()))
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

/// What a rule says of the columns of every bundle that devices run.
async fn columns(app: &App, rule: &AlertRule, now_ms: u64, measured: &mut Measured) -> Result<(), DriftError> {
    let since_ms = now_ms.saturating_sub(rule.over_ms);
    let running = app.fleet.bundles_running();
    for bundle in running.into_iter().filter(|bundle| rule.bundle.as_ref().is_none_or(|filter| filter.matches(bundle)))
    {
        let key = (bundle.clone(), rule.group_by.clone(), since_ms);
        if !measured.reports.contains_key(&key) {
            let wish = Wish { group_by: rule.group_by.clone(), since_ms, ..Wish::default() };
            let report = drift::report(app, &bundle, wish).await?;
            measured.reports.insert(key.clone(), report);
        }
        let Some(report) = measured.reports.get(&key) else { continue };
        let mut seen = Vec::new();
        for group in &report.groups {
            for column in &group.columns {
                let meant = rule.columns.is_empty() || rule.columns.contains(&column.name);
                let Some((value, p_value)) = of_column(rule.signal, column) else { continue };
                if !meant || column.n == 0 {
                    continue;
                }
                let mut labels: BTreeMap<String, String> =
                    [("bundle".to_owned(), bundle.to_string()), ("column".to_owned(), column.name.clone())].into();
                let label = report.group_by.as_ref().filter(|_| !group.group.is_empty());
                labels.extend(label.map(|label| (label.clone(), group.group.clone())));
                let evidence = AlertEvidence {
                    n: Some(column.n),
                    n_effective: Some(column.n_effective),
                    critical: column.critical,
                    p_value,
                    missing_share: Some(column.missing_share),
                    unexpected_share: Some(column.unexpected_share),
                    devices: Some(group.devices),
                    since_ms: Some(since_ms),
                    detail: None,
                };
                seen.push(Observation { labels, value, p_value, evidence });
            }
        }
        seen.into_iter().for_each(|observation| measured.add(rule, observation));
    }
    Ok(())
}

/// The value of a column's signal, and how likely one as large is by chance.
fn of_column(signal: Signal, column: &ColumnDrift) -> Option<(f64, Option<f64>)> {
    let score = column.psi.map(|psi| (psi, column.p_value));
    match (signal, column.subject) {
        (Signal::InputDrift, Subject::Input)
        | (Signal::PredictionDrift, Subject::Output | Subject::PredictedClass)
        | (Signal::ConfidenceDrift, Subject::Confidence) => score,
        (Signal::MissingShare, Subject::Input) => Some((column.missing_share, column.missing_p_value)),
        (Signal::UnexpectedShare, Subject::Input) => Some((column.unexpected_share, column.unexpected_p_value)),
        _ => None,
    }
}

/// What telemetry windows and crashes add up to, for each rule and thing.
#[derive(Default)]
struct Windows {
    /// By rule, bundle and group.
    requests: BTreeMap<(RuleName, BundleRef, Option<String>), Requests>,
    /// By rule and device.
    crashes: BTreeMap<(RuleName, DeviceId), u32>,
    /// The last each device said.
    disk_free_bytes: BTreeMap<(RuleName, DeviceId), u64>,
}

#[derive(Default)]
struct Requests {
    counts: RequestCounts,
    latency_us: LatencySketch,
    devices: BTreeSet<DeviceId>,
}

impl Windows {
    async fn read(
        app: &App,
        rules: &[&AlertRule],
        devices: &BTreeMap<DeviceId, DeviceHealth>,
        now_ms: u64,
    ) -> Result<Self, StoreError> {
        let mut windows = Self::default();
        let Some(longest_ms) = rules.iter().map(|rule| rule.over_ms).max() else { return Ok(windows) };
        let mut arrived = stored::Windows::arrived(&app.records, now_ms.saturating_sub(longest_ms));
        while let Some((_, window)) = arrived.next().await? {
            let Some(device) = devices.get(&window.device) else { continue };
            let age_ms = now_ms.saturating_sub(window.received_at_ms);
            for rule in rules.iter().filter(|rule| age_ms <= rule.over_ms && device.is_selected_by(&rule.selector)) {
                windows.add(app, rule, device, &window);
            }
        }
        Ok(windows)
    }

    fn add(&mut self, app: &App, rule: &AlertRule, device: &DeviceHealth, window: &WindowRecord) {
        let of_device = || (rule.name.clone(), device.id.clone());
        if rule.signal == Signal::DeviceCrashes {
            let crashes = self.crashes.entry(of_device()).or_default();
            *crashes = crashes.saturating_add(u32::from(window.crash));
        }
        let Some(telemetry) = &window.telemetry else { return };
        if rule.signal == Signal::DiskFree {
            self.disk_free_bytes.insert(of_device(), telemetry.resources.disk_free_bytes);
        }
        if !matches!(rule.signal, Signal::ErrorRate | Signal::LatencyShare) {
            return;
        }
        let Some(bundle) = app.fleet.bundle_of(&window.key.manifest) else { return };
        if rule.bundle.as_ref().is_some_and(|filter| !filter.matches(&bundle)) {
            return;
        }
        let group = rule.group_by.as_ref().and_then(|label| device.label(label).cloned());
        let sums = self.requests.entry((rule.name.clone(), bundle, group)).or_default();
        sums.counts.merge(&telemetry.requests);
        sums.latency_us.merge(&telemetry.latency_us);
        if telemetry.requests.served > 0 {
            sums.devices.insert(device.id.clone());
        }
    }

    fn observe(&self, rules: &[&AlertRule], devices: &BTreeMap<DeviceId, DeviceHealth>, measured: &mut Measured) {
        let by_name: BTreeMap<&RuleName, &AlertRule> = rules.iter().map(|rule| (&rule.name, *rule)).collect();
        for ((name, bundle, group), sums) in &self.requests {
            let Some(rule) = by_name.get(name) else { continue };
            let n = sums.counts.served;
            let value = match rule.latency_above_us {
                Some(edge_us) => sums.latency_us.share_above(edge_us as f64),
                None => (n > 0).then(|| sums.counts.errors() as f64 / n as f64),
            };
            let Some(value) = value else { continue };
            let mut labels: BTreeMap<String, String> = [("bundle".to_owned(), bundle.to_string())].into();
            labels.extend(rule.group_by.clone().zip(group.clone()));
            let evidence = AlertEvidence {
                n: Some(n),
                devices: u32::try_from(sums.devices.len()).ok(),
                ..AlertEvidence::default()
            };
            measured.add(rule, Observation { labels, value, p_value: None, evidence });
        }
        let crashes = self.crashes.iter().map(|(key, count)| (key, f64::from(*count)));
        let disks = self.disk_free_bytes.iter().map(|(key, bytes)| (key, *bytes as f64));
        for ((name, device), value) in crashes.chain(disks) {
            if let (Some(rule), Some(device)) = (by_name.get(name), devices.get(device)) {
                measured.add(rule, device_observation(rule, device, value, None));
            }
        }
    }
}
