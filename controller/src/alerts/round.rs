//! One round: measure, decide, store, then publish.

use std::collections::BTreeMap;

use muster_alerts::{Change, Step, rules_in_force};
use muster_shared::alert::{AlertRule, AlertState, Silence};
use muster_shared::ids::{DeviceId, RuleName};

use super::{limits, measure};
use crate::events::{ACTOR_CONTROLLER, NewEvent};
use crate::state::App;
use crate::store::{Expect, Records, StoreError, Table};

/// Silences that are over are shown this long, in milliseconds.
const SILENCE_KEPT_MS: u64 = 7 * 24 * 3_600_000;

/// Measures everything and takes over what follows.
///
/// # Errors
/// [`StoreError`]; nothing has changed then.
pub(super) async fn run(app: &App, now_ms: u64) -> Result<(), StoreError> {
    let rules = in_force(app).await;
    let measured = measure::measure(app, &rules, now_ms).await;

    let mut state = app.alerts.state.write().await;
    let silences: Vec<Silence> = state.silences.values().cloned().collect();
    let mut book = state.book.clone();
    let step = book.evaluate(&rules, &silences, &measured.round, &limits(&app.config.alerts), now_ms);
    let mut changes = Vec::new();
    for alert in &step.puts {
        changes.push(Records::put(Table::Alerts, alert.fingerprint.as_str(), Expect::Anything, alert)?);
    }
    for fingerprint in &step.removes {
        changes.push(Records::delete(Table::Alerts, fingerprint.as_str(), Expect::Anything));
    }
    let old: Vec<String> = silences
        .iter()
        .filter(|silence| now_ms.saturating_sub(silence.until_ms) > SILENCE_KEPT_MS && silence.until_ms < now_ms)
        .map(|silence| silence.id.clone())
        .collect();
    changes.extend(old.iter().map(|id| Records::delete(Table::Silences, id.as_str(), Expect::Anything)));
    let mut held = Vec::new();
    for change in &step.changes {
        let (event, hold) = app.events.prepare(event_of(change))?;
        changes.push(event);
        held.push(hold);
    }
    let pending = app.alerts.queues.prepare(&app.alerts.receivers, &step.notices, &app.config.alerts, now_ms)?;
    changes.extend(pending.changes());
    if !changes.is_empty() {
        app.records.commit(changes).await?;
    }
    drop(held);
    state.book = book;
    old.iter().for_each(|id| _ = state.silences.remove(id));
    state.last = measured.shown(now_ms, app.config.alerts.max_drift_series);
    drop(state);
    for lost in app.alerts.queues.publish(pending) {
        app.metrics.alert_delivered(&lost, "dropped");
        tracing::warn!(receiver = lost, "a message about alerts was given up: too many wait for this receiver");
    }
    tell_log(&step);
    Ok(())
}

/// The rules that are looked at.
async fn in_force(app: &App) -> BTreeMap<RuleName, AlertRule> {
    let state = app.alerts.state.read().await;
    let views = rules_in_force(state.rules.values(), app.config.alerts.built_in_rules);
    views.into_iter().map(|(name, view)| (name, view.rule)).collect()
}

fn event_of(change: &Change) -> NewEvent {
    let alert = &change.alert;
    let kind = match change.to {
        Some(AlertState::Pending) => "alert.pending",
        Some(AlertState::Firing) => "alert.firing",
        Some(AlertState::Resolved) => "alert.resolved",
        None => "alert.withdrawn",
    };
    let why = alert.resolution.as_ref().filter(|_| change.to == Some(AlertState::Resolved));
    let words = alert.words().cloned().unwrap_or_else(|| format!("value {}, limit {}", alert.value, alert.threshold));
    let why = why.map(|why| format!("; {why}")).unwrap_or_default();
    NewEvent {
        kind: kind.into(),
        actor: ACTOR_CONTROLLER.into(),
        device: alert.labels.get("device").and_then(|device| DeviceId::new(device.as_str()).ok()),
        bundle: alert.labels.get("bundle").and_then(|bundle| bundle.parse().ok()),
        detail: format!("{} {}: {words}{why}", alert.rule, alert.fingerprint.chars().take(12).collect::<String>()),
        ..NewEvent::default()
    }
}

fn tell_log(step: &Step) {
    for notice in &step.notices {
        let alert = &notice.alert;
        tracing::info!(
            rule = %alert.rule,
            state = alert.state.as_str(),
            severity = alert.severity.as_str(),
            labels = ?alert.labels,
            "an alert changed"
        );
    }
}
