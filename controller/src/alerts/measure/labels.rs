//! How good bundles are by their labels.

use std::collections::BTreeMap;

use muster_alerts::Observation;
use muster_shared::alert::{AlertEvidence, AlertRule};
use muster_shared::ids::{BundleRef, Digest};
use muster_shared::quality::ConceptDrift;

use super::walk::{Ask, OfBundle, is_of};
use super::{Measured, bundle_labels};
use crate::quality::{Found, Tally};

/// What `rule` says of the labels of every bundle that devices run.
pub(super) fn observe(
    rule: &AlertRule,
    bundles: &BTreeMap<Digest, OfBundle<'_>>,
    now_ms: u64,
    measured: &mut Measured,
) {
    let asked = Ask::of(rule);
    for OfBundle { listed, quality, .. } in bundles.values().filter(|of| is_of(rule, &of.listed.bundle)) {
        let Some(sum) = quality.get(&asked) else { continue };
        let tally = match &sum.tally {
            Ok(tally) => tally,
            Err(why) => return measured.give_up(rule, why),
        };
        let since_ms = Some(now_ms.saturating_sub(rule.over_ms));
        for mut observation in of_bundle(rule, &listed.bundle, tally) {
            observation.evidence.since_ms = since_ms;
            measured.add(rule, observation);
        }
    }
}

fn of_bundle(rule: &AlertRule, bundle: &BundleRef, tally: &Tally) -> Vec<Observation> {
    match rule.signal.metric() {
        Some(metric) => {
            let found = tally.against(metric, rule.fire_at, rule.by_slice);
            found.into_iter().map(|found| of_metric(rule, bundle, found)).collect()
        }
        None => {
            let found = tally.concept().into_iter();
            found.filter_map(|(group, drift, labels)| of_loss(rule, bundle, &group, &drift, labels)).collect()
        }
    }
}

fn of_metric(rule: &AlertRule, bundle: &BundleRef, found: Found) -> Observation {
    let result = found.result;
    let mut labels = bundle_labels(rule, bundle, &found.group, found.slice.as_ref());
    labels.extend(result.class.map(|class| ("class".to_owned(), class)));
    labels.extend(result.target.map(|target| ("target".to_owned(), target.to_string())));
    let evidence = AlertEvidence {
        n: Some(result.n),
        n_effective: result.n_effective,
        p_value: result.p_value,
        devices: Some(result.devices),
        ..AlertEvidence::default()
    };
    Observation { labels, value: result.value, p_value: result.p_value, evidence }
}

/// The loss of accuracy in itself, the growth of an error as a share of what it was; none where there was none.
fn of_loss(rule: &AlertRule, bundle: &BundleRef, group: &str, drift: &ConceptDrift, n: u64) -> Option<Observation> {
    let mut labels = bundle_labels(rule, bundle, group, None);
    let target = drift.metric.strip_prefix("mae[").and_then(|rest| rest.strip_suffix(']'));
    let scale = if target.is_some() { drift.reference } else { 1.0 };
    labels.extend(target.map(|target| ("target".to_owned(), target.to_owned())));
    let evidence = AlertEvidence {
        n: Some(n),
        n_effective: Some(drift.n_effective),
        critical: drift.critical.map(|critical| critical / scale),
        p_value: drift.p_value,
        devices: Some(drift.devices),
        detail: Some(format!("{} {:.4} against {:.4}", drift.metric, drift.current, drift.reference)),
        ..AlertEvidence::default()
    };
    (scale > 0.0).then(|| Observation { labels, value: drift.worsening / scale, p_value: drift.p_value, evidence })
}
