//! Drift and shares of values, column by column.

use std::collections::BTreeMap;

use muster_alerts::Observation;
use muster_shared::alert::{AlertEvidence, AlertRule, Signal};
use muster_shared::api::{ColumnDrift, Subject};
use muster_shared::ids::Digest;

use super::walk::{Ask, OfBundle, is_of};
use super::{Measured, bundle_labels};
use crate::drift;

/// Scores everything that was added up. What could not be is kept as such.
pub(super) async fn score(bundles: BTreeMap<Digest, OfBundle<'_>>, measured: &mut Measured) {
    for OfBundle { listed, drift, .. } in bundles.into_values() {
        for (ask, asked) in drift {
            let report = match asked.tally {
                Ok(tally) => drift::score(tally).await.map_err(|error| error.to_string()),
                Err(why) => Err(why),
            };
            measured.reports.insert((listed.bundle.clone(), ask), report);
        }
    }
}

/// What `rule` says of the columns of every bundle that devices run.
pub(super) fn observe(rule: &AlertRule, now_ms: u64, measured: &mut Measured) {
    let asked = Ask::of(rule);
    let mut seen = Vec::new();
    let meant = measured.reports.iter().filter(|((bundle, ask), _)| *ask == asked && is_of(rule, bundle));
    for ((bundle, _), report) in meant {
        let report = match report {
            Ok(report) => report,
            Err(why) => {
                let why = why.clone();
                return measured.give_up(rule, &why);
            }
        };
        for group in report.groups.iter().filter(|group| group.slice.is_some() == rule.by_slice) {
            for column in &group.columns {
                let meant = rule.columns.is_empty() || rule.columns.contains(&column.name);
                let Some((value, p_value)) = of_column(rule.signal, column) else { continue };
                if !meant || column.n == 0 {
                    continue;
                }
                let mut labels = bundle_labels(rule, bundle, &group.group, group.slice.as_ref());
                labels.insert("column".to_owned(), column.name.clone());
                let evidence = AlertEvidence {
                    n: Some(column.n),
                    n_effective: Some(column.n_effective),
                    critical: column.critical,
                    p_value,
                    missing_share: Some(column.missing_share),
                    unexpected_share: Some(column.unexpected_share),
                    devices: Some(group.devices),
                    since_ms: Some(now_ms.saturating_sub(rule.over_ms)),
                    detail: None,
                };
                seen.push(Observation { labels, value, p_value, evidence });
            }
        }
    }
    seen.into_iter().for_each(|observation| measured.add(rule, observation));
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
