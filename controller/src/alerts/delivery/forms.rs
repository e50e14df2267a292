//! What each kind of receiver is told, as JSON.

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::alert::{Alert, AlertEvidence, AlertState, Severity, Told};
use muster_shared::ids::{BundleRef, RuleName};
use serde_json::{Value, json};

use super::Delivery;
use super::queues::dedup_key;
use crate::state::App;

/// Alerts that Slack is told of in full; of more it hears how many.
const MAX_SLACK_ALERTS: usize = 20;

/// What every message is made from besides its alerts.
pub(super) struct Context<'a> {
    /// Whom it is for.
    pub(super) receiver: &'a str,
    /// Where people find this controller.
    pub(super) api_url: &'a str,
    /// In milliseconds since the Unix epoch.
    pub(super) now_ms: u64,
    /// Whether it only shows that messages arrive.
    pub(super) test: bool,
}

/// A time as RFC 3339 has it, in UTC.
fn rfc3339(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1_000).unwrap_or(i64::MAX);
    // After the year 9999, where the format ends, nobody reads it.
    let at = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        ms % 1_000
    )
}

/// A label's name as Prometheus and its kin take it: letters, digits and `_`, no digit first.
fn prometheus_name(name: &str) -> String {
    let mut out: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

fn link(context: &Context<'_>, alert: &Alert) -> String {
    format!("{}/api/v1/alerts/{}", context.api_url, alert.fingerprint)
}

fn summary(alert: &Alert) -> String {
    alert.words().cloned().unwrap_or_else(|| format!("{}: {} (limit {})", alert.rule, alert.value, alert.threshold))
}

/// Alertmanager's API v2, `POST /api/v2/alerts`. What fires ends by itself when it is not said again for four times as long as it
/// should be.
pub(super) fn alertmanager(context: &Context<'_>, alerts: &[Alert], resend_ms: u64) -> Value {
    let one = |alert: &Alert| {
        let mut labels: BTreeMap<String, String> =
            alert.all_labels().into_iter().map(|(key, value)| (prometheus_name(&key), value)).collect();
        labels.insert("alertname".to_owned(), alert.rule.to_string());
        let annotations: BTreeMap<String, &String> =
            alert.annotations.iter().map(|(key, value)| (prometheus_name(key), value)).collect();
        let ends_ms = match (alert.state, alert.resolved_ms) {
            (AlertState::Resolved, Some(resolved_ms)) => resolved_ms,
            _ => context.now_ms.saturating_add(resend_ms.saturating_mul(4)),
        };
        json!({
            "labels": labels,
            "annotations": annotations,
            "startsAt": rfc3339(alert.fired_ms.unwrap_or(alert.began_ms)),
            "endsAt": rfc3339(ends_ms),
            "generatorURL": link(context, alert),
        })
    };
    alerts.iter().map(one).collect()
}

/// Our own form.
pub(super) fn webhook(context: &Context<'_>, delivery: &Delivery) -> Value {
    json!({
        "version": 1,
        "delivery": delivery.dedup_key,
        "receiver": context.receiver,
        "test": context.test,
        "state": delivery.state,
        "sent_at_ms": context.now_ms,
        "controller": context.api_url,
        "alerts": delivery.alerts.iter().map(|alert| alert_form(context, alert)).collect::<Value>(),
    })
}

fn alert_form(context: &Context<'_>, alert: &Alert) -> Value {
    json!({
        "fingerprint": alert.fingerprint,
        "rule": alert.rule,
        "state": alert.state,
        "severity": alert.severity,
        "labels": alert.all_labels(),
        "annotations": alert.annotations,
        "value": alert.value,
        "threshold": alert.threshold,
        "evidence": alert.evidence,
        "began_ms": alert.began_ms,
        "fired_ms": alert.fired_ms,
        "resolved_ms": alert.resolved_ms,
        "resolution": alert.resolution,
        "url": link(context, alert),
    })
}

/// Slack's incoming webhooks: a line, and an attachment for each alert.
pub(super) fn slack(context: &Context<'_>, state: AlertState, alerts: &[Alert]) -> Value {
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let rules: BTreeSet<&str> = alerts.iter().map(|alert| alert.rule.as_str()).collect();
    let what = if context.test { "TEST" } else { state.as_str() };
    let rules: Vec<&str> = rules.into_iter().collect();
    let bundle =
        alerts.iter().find_map(|alert| alert.labels.get("bundle")).map(|b| format!(" of {b}")).unwrap_or_default();
    let title = format!("[{}:{}] {}{bundle}", what.to_uppercase(), alerts.len(), rules.join(", "));
    let attachment = |alert: &Alert| {
        let colour = match (alert.state, alert.severity) {
            (AlertState::Resolved, _) => "good",
            (_, Severity::Critical) => "danger",
            (_, Severity::Warning | Severity::Info) => "warning",
        };
        let text = escaped(&summary(alert));
        let labels: Vec<String> = alert.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        json!({ "color": colour, "fallback": text, "text": text, "footer": escaped(&labels.join(", ")) })
    };
    let mut attachments: Vec<Value> = alerts.iter().take(MAX_SLACK_ALERTS).map(attachment).collect();
    if let Some(more) = alerts.len().checked_sub(MAX_SLACK_ALERTS).filter(|more| *more > 0) {
        let text = format!("and {more} more");
        attachments.push(json!({ "fallback": text, "text": text }));
    }
    json!({ "text": escaped(&title), "attachments": attachments })
}

/// Where the bundles of `alerts` come from.
pub(super) async fn lineage(app: &App, alerts: &[Alert]) -> Vec<Value> {
    let bundles: BTreeSet<&String> = alerts.iter().filter_map(|alert| alert.labels.get("bundle")).collect();
    let mut all = Vec::new();
    for text in bundles {
        let Ok(bundle) = text.parse::<BundleRef>() else { continue };
        match app.catalogue.find(&bundle).await {
            Ok(Some(listed)) => all.push(json!({
                "bundle": listed.bundle,
                "manifest": listed.digest,
                "profile": listed.profile_digest,
                "lineage": listed.manifest.lineage,
            })),
            Ok(None) => {}
            Err(error) => tracing::warn!(%bundle, %error, "the lineage of a bundle cannot be read"),
        }
    }
    all
}

/// The wish for a new training, with what it rests on.
pub(super) fn retraining(context: &Context<'_>, delivery: &Delivery, bundles: &[Value]) -> Value {
    json!({
        "version": 1,
        "kind": "retraining-request",
        "delivery": delivery.dedup_key,
        "receiver": context.receiver,
        "test": context.test,
        "sent_at_ms": context.now_ms,
        "controller": context.api_url,
        "bundles": bundles,
        "evidence": delivery.alerts.iter().map(|alert| alert_form(context, alert)).collect::<Value>(),
    })
}

/// A message about an alert that is none.
pub(super) fn test_delivery(receiver: &str, now_ms: u64) -> Delivery {
    let alerts: Vec<Alert> = RuleName::new("test").ok().map(|rule| test_alert(rule, now_ms)).into_iter().collect();
    Delivery {
        dedup_key: dedup_key(receiver, AlertState::Resolved, &alerts),
        receiver: receiver.to_owned(),
        created_ms: now_ms,
        state: AlertState::Resolved,
        alerts,
    }
}

/// Over from the beginning, so that nobody is called out of bed for it.
fn test_alert(rule: RuleName, now_ms: u64) -> Alert {
    let labels: BTreeMap<String, String> = [("test".to_owned(), "true".to_owned())].into();
    Alert {
        fingerprint: muster_alerts::fingerprint(&rule, &labels),
        rule,
        labels,
        rule_labels: BTreeMap::new(),
        annotations: [("summary".to_owned(), "A test: messages about alerts arrive here.".to_owned())].into(),
        severity: Severity::Info,
        state: AlertState::Resolved,
        since_ms: now_ms,
        began_ms: now_ms,
        fired_ms: Some(now_ms.saturating_sub(1)),
        resolved_ms: Some(now_ms),
        calm_since_ms: None,
        measured_ms: now_ms,
        value: 0.0,
        threshold: 0.0,
        evidence: AlertEvidence::default(),
        resolution: Some("it was a test".to_owned()),
        acknowledged: None,
        told: Told::Resolved,
        retrain: false,
        silenced_by: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_rfc_3339_has_them() {
        // date -u -d @1700000000
        assert_eq!(rfc3339(1_700_000_000_007), "2023-11-14T22:13:20.007Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        rfc3339(u64::MAX);
    }

    #[test]
    fn slack_reads_no_markup_and_no_endless_list() {
        let context = Context { receiver: "team", api_url: "https://c", now_ms: 1, test: false };
        let mut alert = test_alert(RuleName::new("input-drift").unwrap(), 1);
        alert.annotations = [("summary".to_owned(), "<!channel> a & b".to_owned())].into();
        let body = slack(&context, AlertState::Firing, &vec![alert; 25]);
        assert_eq!(body["text"], "[FIRING:25] input-drift");
        assert_eq!(body["attachments"].as_array().unwrap().len(), 21);
        assert_eq!(body["attachments"][0]["text"], "&lt;!channel&gt; a &amp; b");
        assert_eq!(body["attachments"][20]["text"], "and 5 more");
    }

    #[test]
    fn labels_take_the_form_that_alertmanager_knows() {
        let context = Context { receiver: "am", api_url: "https://c", now_ms: 60_000, test: false };
        let mut alert = test_alert(RuleName::new("input-drift").unwrap(), 1_000);
        alert.labels = [("agent-version".to_owned(), "1.0".to_owned()), ("2x".to_owned(), "y".to_owned())].into();
        let ended = alertmanager(&context, &[alert.clone()], 60_000);
        assert_eq!(ended[0]["endsAt"], "1970-01-01T00:00:01.000Z");
        alert.state = AlertState::Firing;
        let fires = alertmanager(&context, &[alert], 60_000);
        assert_eq!(fires[0]["endsAt"], "1970-01-01T00:05:00.000Z");
        let labels = json!({ "agent_version": "1.0", "_2x": "y", "alertname": "input-drift", "rule": "input-drift", "severity": "info" });
        assert_eq!(fires[0]["labels"], labels);
    }
}
