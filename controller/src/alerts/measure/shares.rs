//! Shares of rows that are tested by how devices differ: violations of the data schema, and disagreement of a model that runs beside
//! another.

use std::collections::{BTreeMap, HashMap};

use muster_alerts::Observation;
use muster_shared::alert::{AlertEvidence, AlertRule, Signal};
use muster_shared::ids::{BundleRef, DeviceId, RuleName};
use muster_shared::quality::share_above;
use muster_shared::sketch::{ColumnComparison, Comparison, SketchWindow};

use super::{Measured, bundle_labels};
use crate::content::Listed;
use crate::fleet::DeviceHealth;

/// Clusters of devices that are told apart.
const CLUSTERS: usize = 256;
/// Things that are told apart in a round: rules times bundles, groups, columns and causes. What comes on top is left out, and said.
const MAX_THINGS: usize = 16_384;
/// The name of violations of whole rows.
const WHOLE_ROW: &str = "(row)";
const DUPLICATE: &str = "duplicate";

/// Devices of one bundle and group, for one rule.
type Group = (RuleName, BundleRef, String);
/// A column, and the cause where there are several.
type Thing = (String, Option<&'static str>);
/// Counts by cluster.
type Clusters = BTreeMap<usize, u64>;

/// Rows, and hits among them.
#[derive(Default)]
struct Sums {
    /// Of the whole group, where all things share their rows.
    rows: Clusters,
    /// Hits, and rows where each thing has its own.
    things: BTreeMap<Thing, (Clusters, Clusters)>,
}

/// Sums by rule, bundle and group.
#[derive(Default)]
pub(super) struct Shares {
    /// The number of each device, in the order in which they were met.
    devices: HashMap<DeviceId, usize>,
    groups: BTreeMap<Group, Sums>,
    things: usize,
    left_out: usize,
}

fn count(clusters: &mut Clusters, cluster: usize, n: u64) {
    let sum = clusters.entry(cluster).or_default();
    *sum = sum.saturating_add(n);
}

impl Shares {
    fn cluster(&mut self, device: &DeviceHealth) -> usize {
        let next = self.devices.len();
        *self.devices.entry(device.id.clone()).or_insert(next) % CLUSTERS
    }

    fn group(&mut self, rule: &AlertRule, bundle: &BundleRef, device: &DeviceHealth) -> Option<&mut Sums> {
        let group = rule.group_by.as_ref().and_then(|label| device.label(label).cloned()).unwrap_or_default();
        let key = (rule.name.clone(), bundle.clone(), group);
        if self.groups.len() >= MAX_THINGS && !self.groups.contains_key(&key) {
            self.left_out += 1;
            return None;
        }
        Some(self.groups.entry(key).or_default())
    }

    /// Adds what a shadow's window of `bundle` says of its agreement, class by class; numbers have no share.
    pub(super) fn add_comparison(
        &mut self,
        rule: &AlertRule,
        bundle: &BundleRef,
        device: &DeviceHealth,
        comparison: &Comparison,
    ) {
        let (cluster, room) = (self.cluster(device), MAX_THINGS.saturating_sub(self.things));
        let Some(sums) = self.group(rule, bundle, device) else { return };
        let (mut new, mut refused) = (0, 0);
        for (name, column) in &comparison.columns {
            let ColumnComparison::Classes(classes) = column else { continue };
            let thing = (name.clone(), None);
            let known = sums.things.contains_key(&thing);
            if !known && new >= room {
                refused += 1;
                continue;
            }
            new += usize::from(!known);
            let (hits, rows) = sums.things.entry(thing).or_default();
            count(hits, cluster, classes.disagreed);
            count(rows, cluster, classes.rows());
        }
        self.things += new;
        self.left_out += refused;
    }

    /// Adds what a window of `listed` counted against its data schema.
    pub(super) fn add_violations(
        &mut self,
        rule: &AlertRule,
        listed: &Listed,
        device: &DeviceHealth,
        window: &SketchWindow,
    ) {
        let Some(schema) = &listed.manifest.schema else { return };
        let (cluster, room) = (self.cluster(device), MAX_THINGS.saturating_sub(self.things));
        let Some(sums) = self.group(rule, &listed.bundle, device) else { return };
        count(&mut sums.rows, cluster, window.quality.rows);
        let by_feature = window.quality.counts().filter_map(|(feature, cause, n)| {
            schema.features.get(feature).map(|rule| ((rule.name.clone(), Some(cause.name())), n))
        });
        let whole = ((WHOLE_ROW.to_owned(), Some(DUPLICATE)), window.quality.duplicates);
        let (mut new, mut refused) = (0, 0);
        for (thing, n) in by_feature.chain([whole]).filter(|(_, n)| *n > 0) {
            let known = sums.things.contains_key(&thing);
            if !known && new >= room {
                refused += 1;
                continue;
            }
            new += usize::from(!known);
            count(&mut sums.things.entry(thing).or_default().0, cluster, n);
        }
        self.things += new;
        self.left_out += refused;
    }

    /// Says what they come to.
    pub(super) fn observe(&self, rules: &[&AlertRule], now_ms: u64, measured: &mut Measured) {
        if self.left_out > 0 {
            tracing::warn!(left_out = self.left_out, "shares of rows are left out: group by a label with fewer values");
        }
        let by_name: BTreeMap<&RuleName, &AlertRule> = rules.iter().map(|rule| (&rule.name, *rule)).collect();
        for ((name, bundle, group), sums) in &self.groups {
            let Some(rule) = by_name.get(name) else { continue };
            for ((column, cause), (hits, own_rows)) in &sums.things {
                if !rule.columns.is_empty() && !rule.columns.contains(column) {
                    continue;
                }
                let rows = if rule.signal == Signal::ShadowDisagreement { own_rows } else { &sums.rows };
                // A value that breaks two rules counts once for each: no more hits than rows.
                let pairs: Vec<(u64, u64)> =
                    rows.iter().map(|(cluster, n)| (hits.get(cluster).copied().unwrap_or(0).min(*n), *n)).collect();
                let Some(found) = share_above(&pairs, rule.fire_at) else { continue };
                let mut labels = bundle_labels(rule, bundle, group, None);
                labels.insert("column".to_owned(), column.clone());
                labels.extend(cause.map(|cause| ("cause".to_owned(), cause.to_owned())));
                let evidence = AlertEvidence {
                    n: Some(found.n),
                    n_effective: found.n_effective,
                    p_value: found.p_value,
                    devices: Some(found.devices),
                    since_ms: Some(now_ms.saturating_sub(rule.over_ms)),
                    ..AlertEvidence::default()
                };
                measured.add(rule, Observation { labels, value: found.value, p_value: found.p_value, evidence });
            }
        }
    }
}
