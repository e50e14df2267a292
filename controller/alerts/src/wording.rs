//! A rule's words with the fields of one alert filled in.

use std::collections::BTreeMap;

use muster_shared::alert::{AlertRule, RESERVED_LABELS};

use crate::observe::Observation;

/// Every annotation of `rule`, its fields filled in from `seen`. Values that are put in are not read for fields again.
pub(crate) fn annotations(rule: &AlertRule, seen: &Observation) -> BTreeMap<String, String> {
    rule.annotations.iter().map(|(name, text)| (name.clone(), filled(text, rule, seen))).collect()
}

fn filled(text: &str, rule: &AlertRule, seen: &Observation) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, field, after)) = next_field(rest) {
        out.push_str(before);
        out.push_str(&value_of(field, rule, seen));
        rest = after;
    }
    out.push_str(rest);
    out
}

fn next_field(text: &str) -> Option<(&str, &str, &str)> {
    let (before, from) = text.split_once('{')?;
    let (field, after) = from.split_once('}')?;
    Some((before, field, after))
}

fn value_of(field: &str, rule: &AlertRule, seen: &Observation) -> String {
    let whole = |n: Option<u64>| n.map(|n| n.to_string());
    let evidence = &seen.evidence;
    let value = match field {
        "rule" => Some(rule.name.to_string()),
        "severity" => Some(rule.severity.as_str().to_owned()),
        "value" => Some(number(seen.value)),
        "threshold" => Some(number(rule.fire_at)),
        "group" => Some(group(seen)),
        "n" => whole(evidence.n),
        "devices" => evidence.devices.map(|n| n.to_string()),
        "n_effective" => evidence.n_effective.map(number),
        "critical" => evidence.critical.map(number),
        "p_value" => evidence.p_value.map(number),
        "detail" => evidence.detail.clone(),
        label => seen.labels.get(label).cloned(),
    };
    value.unwrap_or_else(|| "-".to_owned())
}

/// The labels of the group, as `site=lyon`; `the fleet` where nothing is grouped.
fn group(seen: &Observation) -> String {
    let own = seen.labels.iter().filter(|(key, _)| !RESERVED_LABELS.contains(&key.as_str()));
    let text: Vec<String> = own.map(|(key, value)| format!("{key}={value}")).collect();
    if text.is_empty() { "the fleet".to_owned() } else { text.join(",") }
}

/// A number with as many digits as are worth reading.
pub(crate) fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if magnitude >= 0.001 {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:.1e}")
    }
}
