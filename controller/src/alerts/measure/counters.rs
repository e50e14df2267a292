//! What telemetry windows and crashes add up to, for each rule and thing.

use std::collections::{BTreeMap, BTreeSet};

use muster_alerts::Observation;
use muster_shared::alert::{AlertEvidence, AlertRule, Signal};
use muster_shared::ids::{BundleRef, DeviceId, RuleName};
use muster_shared::messages::RequestCounts;
use muster_shared::sketch::LatencyCount;

use super::walk::is_of;
use super::{Measured, bundle_labels, device_observation};
use crate::fleet::DeviceHealth;
use crate::state::App;
use crate::store::records::WindowRecord;

/// Sums by rule.
#[derive(Default)]
pub(super) struct Counters {
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
    /// Of rules on latency; held against the rule's.
    slow: Option<LatencyCount>,
    devices: BTreeSet<DeviceId>,
}

impl Counters {
    /// Adds a window to the sums of all rules that mean it.
    pub(super) fn add(
        &mut self,
        app: &App,
        rules: &[&AlertRule],
        device: &DeviceHealth,
        window: &WindowRecord,
        now_ms: u64,
    ) {
        if window.telemetry.is_none() && !window.crash {
            return;
        }
        let age_ms = now_ms.saturating_sub(window.received_at_ms);
        for rule in rules.iter().filter(|rule| age_ms <= rule.over_ms && device.is_selected_by(&rule.selector)) {
            self.add_to(app, rule, device, window);
        }
    }

    fn add_to(&mut self, app: &App, rule: &AlertRule, device: &DeviceHealth, window: &WindowRecord) {
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
        let Some(bundle) = app.fleet.bundle_of(&window.key.manifest).filter(|bundle| is_of(rule, bundle)) else {
            return;
        };
        let group = rule.group_by.as_ref().and_then(|label| device.label(label).cloned());
        let sums = self.requests.entry((rule.name.clone(), bundle, group)).or_default();
        sums.counts.merge(&telemetry.requests);
        if let Some(edge_us) = rule.latency_above_us {
            let slow = LatencyCount::of_window(edge_us, &telemetry.objectives, &telemetry.latency_us);
            sums.slow.get_or_insert(LatencyCount { edge_us, served: 0, above: 0 }).merge(&slow);
        }
        if telemetry.requests.served > 0 {
            sums.devices.insert(device.id.clone());
        }
    }

    /// Says what they come to.
    pub(super) fn observe(
        &self,
        rules: &[&AlertRule],
        devices: &BTreeMap<DeviceId, DeviceHealth>,
        measured: &mut Measured,
    ) {
        let by_name: BTreeMap<&RuleName, &AlertRule> = rules.iter().map(|rule| (&rule.name, *rule)).collect();
        for ((name, bundle, group), sums) in &self.requests {
            let Some(rule) = by_name.get(name) else { continue };
            let n = sums.counts.served;
            let value = match &sums.slow {
                Some(slow) => slow.share_above(),
                None => (n > 0).then(|| sums.counts.errors() as f64 / n as f64),
            };
            let Some(value) = value else { continue };
            let labels = bundle_labels(rule, bundle, group.as_deref().unwrap_or_default(), None);
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
