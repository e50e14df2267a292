//! What people do with alerts: look at them, acknowledge and silence them, bring rules.

use muster_alerts::{OVERFLOW_RULE, rules_in_force};
use muster_shared::alert::{
    Acknowledgement, Alert, AlertRule, CreateSilence, MAX_RULES, MAX_SILENCES, ReceiverTest, ReceiverView, RuleError,
    RuleView, Silence, SilenceError,
};
use muster_shared::ids::RuleName;

use super::Alerts;
use crate::clock;
use crate::events::NewEvent;
use crate::state::App;
use crate::store::{Expect, Records, StoreError, Table};

/// Why something asked for was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeskError {
    /// No such alert, silence, rule or receiver.
    #[error("there is no {0}")]
    Unknown(String),
    /// A rule makes no sense.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A silence makes no sense.
    #[error(transparent)]
    Silence(#[from] SilenceError),
    /// There would be too many.
    #[error("{0}")]
    TooMany(String),
    /// It does not go with how things stand.
    #[error("{0}")]
    Standing(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Alerts {
    /// Every alert for which `wanted` holds, in order of fingerprints, with the silence that covers it.
    pub(crate) async fn list(&self, wanted: impl Fn(&Alert) -> bool) -> Vec<Alert> {
        let state = self.state.read().await;
        let now_ms = clock::now_ms();
        let shown = |alert: &Alert| {
            let labels = alert.all_labels();
            let silence = state.silences.values().find(|silence| silence.covers(&labels, now_ms));
            Alert { silenced_by: silence.map(|silence| silence.id.clone()), ..alert.clone() }
        };
        state.book.alerts().map(shown).filter(|alert| wanted(alert)).collect()
    }

    /// The alert with this fingerprint.
    pub(crate) async fn show(&self, fingerprint: &str) -> Result<Alert, DeskError> {
        let found = self.list(|alert| alert.fingerprint == fingerprint).await.pop();
        found.ok_or_else(|| DeskError::Unknown(format!("alert {fingerprint:?}")))
    }

    /// Every silence, those that are over included for a while.
    pub(crate) async fn silences(&self) -> Vec<Silence> {
        let mut silences: Vec<Silence> = self.state.read().await.silences.values().cloned().collect();
        silences.sort_by_key(|silence| (silence.since_ms, silence.id.len(), silence.id.clone()));
        silences
    }

    /// Every rule in force, also those that are not enabled.
    pub(crate) async fn rules(&self, with_built_in: bool) -> Vec<RuleView> {
        let state = self.state.read().await;
        rules_in_force(state.rules.values(), with_built_in).into_values().collect()
    }

    /// Who is told.
    pub(crate) fn receivers(&self) -> Vec<ReceiverView> {
        self.receivers.iter().map(|receiver| receiver.view(self.queues.len(receiver.name()))).collect()
    }
}

/// Notes that `by` looks after the alert.
///
/// # Errors
/// [`DeskError`] when there is no such alert, or it is over.
pub(crate) async fn acknowledge(
    app: &App,
    fingerprint: &str,
    by: &str,
    reason: Option<String>,
) -> Result<Alert, DeskError> {
    let mut state = app.alerts.state.write().await;
    let found = state.book.get(fingerprint).cloned();
    let mut alert = found.ok_or_else(|| DeskError::Unknown(format!("alert {fingerprint:?}")))?;
    if !alert.state.is_active() {
        return Err(DeskError::Standing(format!("alert {fingerprint} is over: there is nothing to look after")));
    }
    let detail = format!("{} {}: {}", alert.rule, fingerprint, reason.as_deref().unwrap_or("no reason given"));
    alert.acknowledged = Some(Acknowledgement { by: by.to_owned(), at_ms: clock::now_ms(), reason });
    let (event, _held) = app.events.prepare(NewEvent {
        kind: "alert.acknowledged".into(),
        actor: by.to_owned(),
        detail,
        ..NewEvent::default()
    })?;
    let put = Records::put(Table::Alerts, fingerprint, Expect::Anything, &alert)?;
    app.records.commit(vec![put, event]).await?;
    state.book.replace(alert.clone());
    Ok(alert)
}

/// Silences what `wish` means, from now on.
///
/// # Errors
/// [`DeskError`] when it makes no sense or there are too many.
pub(crate) async fn silence(app: &App, wish: CreateSilence, by: &str) -> Result<Silence, DeskError> {
    wish.validate()?;
    let mut state = app.alerts.state.write().await;
    if state.silences.len() >= MAX_SILENCES {
        return Err(DeskError::TooMany(format!(
            "there are {MAX_SILENCES} silences already: end some, or wait until old ones are forgotten"
        )));
    }
    let number = |id: &String| id.strip_prefix('s').and_then(|digits| digits.parse::<u64>().ok()).unwrap_or(0);
    let last = state.silences.keys().map(number).max().unwrap_or(0);
    let now_ms = clock::now_ms();
    let silence = Silence {
        id: format!("s{}", last + 1),
        matchers: wish.matchers,
        since_ms: now_ms,
        until_ms: now_ms.saturating_add(wish.for_ms),
        by: by.to_owned(),
        reason: wish.reason,
    };
    let meant: Vec<String> = silence
        .matchers
        .iter()
        .map(|m| format!("{}{}{}", m.label, if m.negate { "!=" } else { "=" }, m.value))
        .collect();
    let detail =
        format!("silence {} of {} until {} ms: {}", silence.id, meant.join(","), silence.until_ms, silence.reason);
    let (event, _held) = app.events.prepare(NewEvent {
        kind: "alert.silenced".into(),
        actor: by.to_owned(),
        detail,
        ..NewEvent::default()
    })?;
    let put = Records::put(Table::Silences, silence.id.as_str(), Expect::Anything, &silence)?;
    app.records.commit(vec![put, event]).await?;
    state.silences.insert(silence.id.clone(), silence.clone());
    Ok(silence)
}

/// Ends a silence now.
///
/// # Errors
/// [`DeskError`] when there is none of this name, or it is over already.
pub(crate) async fn end_silence(app: &App, id: &str, by: &str) -> Result<Silence, DeskError> {
    let mut state = app.alerts.state.write().await;
    let found = state.silences.get(id).cloned();
    let mut silence = found.ok_or_else(|| DeskError::Unknown(format!("silence {id:?}")))?;
    let now_ms = clock::now_ms();
    if silence.until_ms <= now_ms {
        return Err(DeskError::Standing(format!("silence {id} is over already")));
    }
    silence.until_ms = now_ms;
    let (event, _held) = app.events.prepare(NewEvent {
        kind: "alert.unsilenced".into(),
        actor: by.to_owned(),
        detail: format!("silence {id} was ended"),
        ..NewEvent::default()
    })?;
    let put = Records::put(Table::Silences, id, Expect::Anything, &silence)?;
    app.records.commit(vec![put, event]).await?;
    state.silences.insert(id.to_owned(), silence.clone());
    drop(state);
    app.alerts.nudge.notify_one();
    Ok(silence)
}

/// Takes rules over, all or none.
///
/// # Errors
/// [`DeskError`] with the first that makes no sense.
pub(crate) async fn apply_rules(app: &App, rules: Vec<AlertRule>, by: &str) -> Result<Vec<RuleView>, DeskError> {
    let mut state = app.alerts.state.write().await;
    let mut all = state.rules.clone();
    let mut changes = Vec::new();
    let mut names = Vec::new();
    for rule in rules {
        rule.validate()?;
        if rule.name.as_str() == OVERFLOW_RULE {
            return Err(DeskError::Standing(format!(
                "the name {OVERFLOW_RULE} is taken: it tells that alerts are left out"
            )));
        }
        if names.contains(&rule.name.to_string()) {
            return Err(DeskError::Standing(format!("the rule {} is there twice", rule.name)));
        }
        names.push(rule.name.to_string());
        changes.push(Records::put(Table::AlertRules, rule.name.as_str(), Expect::Anything, &rule)?);
        all.insert(rule.name.clone(), rule);
    }
    if all.len() > MAX_RULES {
        return Err(DeskError::TooMany(format!("there would be more than {MAX_RULES} own rules")));
    }
    if !names.is_empty() {
        let (event, held) = app.events.prepare(NewEvent {
            kind: "alert.rules-applied".into(),
            actor: by.to_owned(),
            detail: names.join(", "),
            ..NewEvent::default()
        })?;
        changes.push(event);
        app.records.commit(changes).await?;
        drop(held);
    }
    state.rules = all;
    drop(state);
    app.alerts.nudge.notify_one();
    Ok(app.alerts.rules(app.config.alerts.built_in_rules).await)
}

/// Takes an own rule away; a built-in one of that name is in force again.
///
/// # Errors
/// [`DeskError`] when there is none.
pub(crate) async fn delete_rule(app: &App, name: &RuleName, by: &str) -> Result<Vec<RuleView>, DeskError> {
    let mut state = app.alerts.state.write().await;
    if !state.rules.contains_key(name) {
        return Err(DeskError::Unknown(format!(
            "own rule {name}: a built-in one is switched off by applying it with enabled = false"
        )));
    }
    let (event, _held) = app.events.prepare(NewEvent {
        kind: "alert.rule-deleted".into(),
        actor: by.to_owned(),
        detail: name.to_string(),
        ..NewEvent::default()
    })?;
    app.records.commit(vec![Records::delete(Table::AlertRules, name.as_str(), Expect::Anything), event]).await?;
    state.rules.remove(name);
    drop(state);
    app.alerts.nudge.notify_one();
    Ok(app.alerts.rules(app.config.alerts.built_in_rules).await)
}

/// Sends a message that says it is a test.
///
/// # Errors
/// [`DeskError`] when there is no such receiver.
pub(crate) async fn test_receiver(app: &App, name: &str, by: &str) -> Result<ReceiverTest, DeskError> {
    let receiver = app.alerts.receivers.iter().find(|receiver| receiver.name() == name);
    let receiver =
        receiver.ok_or_else(|| DeskError::Unknown(format!("receiver {name:?} in the controller's configuration")))?;
    app.events
        .append(NewEvent {
            kind: "alert.receiver-tested".into(),
            actor: by.to_owned(),
            detail: name.to_owned(),
            ..NewEvent::default()
        })
        .await?;
    let outcome = receiver.test(app, clock::now_ms()).await;
    let (delivered, detail) = match outcome {
        Ok(said) => (true, said),
        Err(error) => (false, error.to_string()),
    };
    Ok(ReceiverTest { name: name.to_owned(), delivered, detail })
}
