//! Alerts as people see them.

use comfy_table::Cell;
use muster_shared::alert::{Alert, AlertState, ReceiverView, RuleOrigin, RuleView, Severity, Silence, Worse};

use crate::duration::Millis;
use crate::output::{self, Tone, cell, number, toned};

/// The beginning of a fingerprint, enough to name it.
pub(super) fn short(alert: &Alert) -> String {
    alert.fingerprint.chars().take(12).collect()
}

fn state(alert: &Alert) -> Cell {
    let words = match (&alert.silenced_by, &alert.acknowledged) {
        (Some(silence), _) => format!("{} ({silence})", alert.state.as_str()),
        (None, Some(ack)) => format!("{} ({} has it)", alert.state.as_str(), ack.by),
        (None, None) => alert.state.as_str().to_owned(),
    };
    match (alert.state, alert.silenced_by.is_some() || alert.acknowledged.is_some()) {
        (AlertState::Firing, false) => toned(words, Tone::Bad),
        (AlertState::Firing, true) | (AlertState::Pending, _) => toned(words, Tone::Busy),
        (AlertState::Resolved, _) => toned(words, Tone::Good),
    }
}

fn severity(severity: Severity) -> Cell {
    match severity {
        Severity::Critical => toned("critical", Tone::Bad),
        Severity::Warning => toned("warning", Tone::Busy),
        Severity::Info => cell("info"),
    }
}

fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let text: Vec<String> = pairs.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    if text.is_empty() { "-".to_owned() } else { text.join(",") }
}

pub(super) fn list_text(alerts: &[Alert]) -> String {
    let rows = alerts.iter().map(|alert| {
        vec![
            cell(short(alert)),
            state(alert),
            severity(alert.severity),
            cell(alert.rule.to_string()),
            cell(pairs(&alert.labels)),
            number(output::significant(alert.value)),
            number(output::significant(alert.threshold)),
            cell(output::time(alert.since_ms)),
        ]
    });
    output::table(&["alert", "state", "severity", "rule", "of", "value", "limit", "since"], rows)
}

pub(super) fn alert_text(alert: &Alert) -> String {
    let evidence = &alert.evidence;
    let mut lines = vec![
        ("alert", alert.fingerprint.clone()),
        ("rule", alert.rule.to_string()),
        ("severity", alert.severity.as_str().to_owned()),
        ("state", format!("{} since {}", alert.state.as_str(), output::time(alert.since_ms))),
        ("of", pairs(&alert.labels)),
        ("value", format!("{} (limit {})", output::significant(alert.value), output::significant(alert.threshold))),
        ("began", output::time(alert.began_ms)),
        ("fired", output::time_or_dash(alert.fired_ms)),
        ("resolved", output::time_or_dash(alert.resolved_ms)),
        ("measured", output::time(alert.measured_ms)),
    ];
    lines.extend(alert.calm_since_ms.map(|since_ms| ("good since", output::time(since_ms))));
    lines.extend(alert.resolution.clone().map(|why| ("because", why)));
    lines.extend(alert.silenced_by.clone().map(|id| ("silenced by", id)));
    lines.extend(alert.acknowledged.as_ref().map(|ack| {
        let why = ack.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        ("looked after", format!("by {} since {}{why}", ack.by, output::time(ack.at_ms)))
    }));
    for (name, value) in [
        ("counted", evidence.n.map(|n| n.to_string())),
        ("worth", evidence.n_effective.map(|n| format!("{n:.0} independent values"))),
        ("by chance", evidence.critical.map(|critical| format!("up to {}", output::significant(critical)))),
        ("p-value", evidence.p_value.map(output::significant)),
        ("missing", evidence.missing_share.map(output::percent)),
        ("unexpected", evidence.unexpected_share.map(output::percent)),
        ("devices", evidence.devices.map(|n| n.to_string())),
        ("windows since", evidence.since_ms.map(output::time)),
        ("detail", evidence.detail.clone()),
    ] {
        lines.extend(value.map(|value| (name, value)));
    }
    let words: Vec<String> = alert.annotations.iter().map(|(name, text)| format!("{name}: {text}")).collect();
    if !words.is_empty() {
        lines.push(("says", words.join("\n")));
    }
    output::properties(&lines)
}

pub(super) fn silences_text(silences: &[Silence]) -> String {
    let now_ms = output::now_ms();
    let rows = silences.iter().map(|silence| {
        let meant: Vec<String> = silence
            .matchers
            .iter()
            .map(|m| format!("{}{}{}", m.label, if m.negate { "!=" } else { "=" }, m.value))
            .collect();
        vec![
            cell(&silence.id),
            if silence.until_ms > now_ms { toned("holds", Tone::Busy) } else { cell("over") },
            cell(meant.join(",")),
            cell(output::time(silence.until_ms)),
            cell(&silence.by),
            cell(&silence.reason),
        ]
    });
    output::table(&["id", "state", "of", "until", "by", "reason"], rows)
}

pub(super) fn rules_text(rules: &[RuleView]) -> String {
    let rows = rules.iter().map(|RuleView { origin, rule }| {
        let side = match rule.signal.worse() {
            Worse::Above => ">",
            Worse::Below => "<",
        };
        vec![
            cell(rule.name.to_string()),
            cell(match origin {
                RuleOrigin::BuiltIn => "built-in",
                RuleOrigin::Own => "own",
            }),
            if rule.enabled { cell("yes") } else { toned("no", Tone::Busy) },
            severity(rule.severity),
            cell(rule.signal.as_str()),
            number(format!("{side} {}", output::significant(rule.fire_at))),
            number(output::significant(rule.clear_at())),
            number(Millis(rule.for_ms).to_string()),
            number(Millis(rule.keep_firing_for_ms).to_string()),
            cell(rule.bundle.as_ref().map_or_else(|| "*".to_owned(), ToString::to_string)),
            cell(rule.selector.to_string()),
            cell(rule.group_by.as_deref().unwrap_or("-")),
        ]
    });
    output::table(
        &[
            "rule", "origin", "enabled", "severity", "signal", "fires", "good at", "for", "keeps", "bundle", "devices",
            "by",
        ],
        rows,
    )
}

pub(super) fn receivers_text(receivers: &[ReceiverView]) -> String {
    let rows = receivers.iter().map(|receiver| {
        vec![
            cell(&receiver.name),
            cell(&receiver.kind),
            cell(&receiver.host),
            number(receiver.queued.to_string()),
            match &receiver.last_error {
                Some(error) => toned(error, Tone::Bad),
                None => cell("-"),
            },
        ]
    });
    output::table(&["receiver", "kind", "host", "queued", "last error"], rows)
}
