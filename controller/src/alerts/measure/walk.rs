//! One walk through the windows that all rules look back at, in memory that grows with bundles and groups and not with windows.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_shared::alert::{AlertRule, Signal};
use muster_shared::ids::{BundleRef, DeviceId, Digest};
use muster_shared::selector::Selector;

use super::counters::Counters;
use super::shares::Shares;
use crate::content::Listed;
use crate::drift;
use crate::fleet::DeviceHealth;
use crate::quality;
use crate::state::App;
use crate::store::records::{LeftOut, WindowRecord};
use crate::store::{StoreError, Table};
use crate::windows::{SketchSeen, Windows};

/// Quality has no trend in an alert: all of time is one span.
const NO_TREND_MS: u64 = u64::MAX;

/// Whose windows of a bundle, how far back and how told apart: rules that agree in this share a sum.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ask {
    group_by: Option<String>,
    over_ms: u64,
    by_slice: bool,
    /// As it is written.
    selector: String,
}

impl Ask {
    pub(super) fn of(rule: &AlertRule) -> Self {
        Self {
            group_by: rule.group_by.clone(),
            over_ms: rule.over_ms,
            by_slice: rule.by_slice,
            selector: rule.selector.to_string(),
        }
    }

    /// Whether it is of all devices and of all their rows.
    pub(super) fn is_of_all_rows(&self) -> bool {
        !self.by_slice && self.selector == Selector::all().to_string()
    }
}

/// A sum, and which windows belong into it.
pub(super) struct Asked<T> {
    selector: Selector,
    group_by: Option<String>,
    since_ms: u64,
    /// The sum, or why there is none.
    pub(super) tally: Result<T, String>,
}

impl<T> Asked<T> {
    fn new(rule: &AlertRule, now_ms: u64, tally: T) -> Self {
        Self {
            selector: rule.selector.clone(),
            group_by: rule.group_by.clone(),
            since_ms: now_ms.saturating_sub(rule.over_ms),
            tally: Ok(tally),
        }
    }

    /// Has `add` add a window of `device` to the sum, where it belongs there. After a failure nothing is added any more.
    fn add<E: std::fmt::Display>(
        &mut self,
        device: &DeviceHealth,
        at_ms: u64,
        add: impl FnOnce(&mut T, String) -> Result<(), E>,
    ) {
        if at_ms < self.since_ms || !device.is_selected_by(&self.selector) {
            return;
        }
        let group = self.group_by.as_ref().and_then(|label| device.label(label).cloned()).unwrap_or_default();
        if let Ok(tally) = &mut self.tally
            && let Err(error) = add(tally, group)
        {
            self.tally = Err(error.to_string());
        }
    }
}

/// What rules ask of one bundle.
pub(super) struct OfBundle<'r> {
    pub(super) listed: Arc<Listed>,
    pub(super) drift: BTreeMap<Ask, Asked<drift::Tally>>,
    pub(super) quality: BTreeMap<Ask, Asked<quality::Tally>>,
    /// Rules on its data schema.
    violations: Vec<&'r AlertRule>,
}

/// What a walk has added up.
#[derive(Default)]
pub(super) struct Walk<'r> {
    pub(super) counters: Counters,
    pub(super) shares: Shares,
    /// By manifest; those that devices run.
    pub(super) bundles: BTreeMap<Digest, OfBundle<'r>>,
}

impl<'r> Walk<'r> {
    /// Adds up what `rules` ask for. Devices that are shut out are left aside.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn through(
        app: &App,
        rules: &[&'r AlertRule],
        devices: &BTreeMap<DeviceId, DeviceHealth>,
        now_ms: u64,
    ) -> Result<Self, StoreError> {
        let mut walk = Self::default();
        let Some(longest_ms) = rules.iter().map(|rule| rule.over_ms).max() else { return Ok(walk) };
        for bundle in app.fleet.bundles_running() {
            walk.ask(app, &bundle, rules, now_ms).await?;
        }
        let mut left_out = LeftOut::default();
        let mut windows = Windows::arrived(&app.records, now_ms.saturating_sub(longest_ms));
        while let Some((key, window)) = windows.next().await? {
            let Some(device) = devices.get(&window.device) else { continue };
            walk.counters.add(app, rules, device, &window, now_ms);
            walk.compare(app, rules, device, &window, now_ms);
            let Some(of_bundle) = walk.bundles.get_mut(&window.key.manifest) else { continue };
            match SketchSeen::read(window, &of_bundle.listed, app.config.telemetry.retention_ms) {
                Ok(Some(seen)) => of_bundle.add(app, device, seen, &mut walk.shares, now_ms),
                Ok(None) => {}
                Err(_) => left_out.add(Table::Windows, &key),
            }
        }
        left_out.tell();
        Ok(walk)
    }

    /// Adds what a window says of a model that runs beside another.
    fn compare(&mut self, app: &App, rules: &[&AlertRule], device: &DeviceHealth, window: &WindowRecord, now_ms: u64) {
        let Some(comparison) = window.telemetry.as_ref().and_then(|telemetry| telemetry.comparison.as_ref()) else {
            return;
        };
        let Some(bundle) = app.fleet.bundle_of(&window.key.manifest) else { return };
        let age_ms = now_ms.saturating_sub(window.received_at_ms);
        for rule in rules.iter().filter(|rule| rule.signal == Signal::ShadowDisagreement && is_of(rule, &bundle)) {
            if age_ms <= rule.over_ms && device.is_selected_by(&rule.selector) {
                self.shares.add_comparison(rule, &bundle, device, comparison);
            }
        }
    }

    async fn ask(
        &mut self,
        app: &App,
        bundle: &BundleRef,
        rules: &[&'r AlertRule],
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let meant: Vec<&'r AlertRule> = rules.iter().copied().filter(|rule| is_of(rule, bundle)).collect();
        let Some(listed) = app.catalogue.find(bundle).await? else { return Ok(()) };
        let mut of_bundle = OfBundle {
            listed: Arc::clone(&listed),
            drift: BTreeMap::new(),
            quality: BTreeMap::new(),
            violations: Vec::new(),
        };
        for rule in meant {
            let ask = Ask::of(rule);
            if rule.signal.is_of_columns() {
                let wish = drift::Wish {
                    group_by: rule.group_by.clone(),
                    since_ms: now_ms.saturating_sub(rule.over_ms),
                    by_slice: rule.by_slice,
                    ..drift::Wish::default()
                };
                let tally = || Asked::new(rule, now_ms, drift::Tally::new(Arc::clone(&listed), wish));
                of_bundle.drift.entry(ask).or_insert_with(tally);
            } else if rule.signal.is_of_labels() && listed.manifest.profile.labels.is_some() {
                let tally = || Asked::new(rule, now_ms, quality::Tally::new(Arc::clone(&listed), NO_TREND_MS));
                of_bundle.quality.entry(ask).or_insert_with(tally);
            } else if rule.signal == Signal::SchemaViolations && listed.manifest.schema.is_some() {
                of_bundle.violations.push(rule);
            }
        }
        if !of_bundle.drift.is_empty() || !of_bundle.quality.is_empty() || !of_bundle.violations.is_empty() {
            self.bundles.insert(listed.digest, of_bundle);
        }
        Ok(())
    }
}

impl OfBundle<'_> {
    fn add(&mut self, app: &App, device: &DeviceHealth, mut seen: SketchSeen, shares: &mut Shares, now_ms: u64) {
        for rule in &self.violations {
            if seen.at_ms >= now_ms.saturating_sub(rule.over_ms) && device.is_selected_by(&rule.selector) {
                shares.add_violations(rule, &self.listed, device, &seen.sketch);
            }
        }
        // A clock that runs ahead must not put a window into the future.
        seen.sketch.key.start_ms = seen.at_ms;
        for asked in self.drift.values_mut() {
            asked.add(device, seen.at_ms, |tally, group| tally.add(group, &seen.device, &seen.sketch));
        }
        for asked in self.quality.values_mut() {
            asked.add(device, seen.at_ms, |tally, group| tally.add(app, group, &seen));
        }
    }
}

/// Whether `rule` means `bundle`.
pub(super) fn is_of(rule: &AlertRule, bundle: &BundleRef) -> bool {
    rule.bundle.as_ref().is_none_or(|filter| filter.matches(bundle))
}
