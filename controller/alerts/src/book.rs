//! Every alert there is, and how a round of measurements changes them.

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::alert::{Alert, AlertEvidence, AlertRule, AlertState, Silence, Told};
use muster_shared::ids::RuleName;

use crate::builtin::{OVERFLOW_RULE, overflow_rule};
use crate::discovery::discoveries;
use crate::observe::{Observation, Round, fingerprint};
use crate::wording::annotations;

/// Bounds on what is kept and believed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Alerts that may be pending or firing at once; the one that tells of more comes on top.
    pub max_active: usize,
    /// Alerts that are over and kept to be shown; the oldest go first.
    pub max_resolved: usize,
    /// Alerts that are over are forgotten after this, in milliseconds.
    pub resolved_kept_ms: u64,
    /// Expected share of false ones among the alerts that tests begin.
    pub false_discovery_rate: f64,
}

/// A change of an alert's state.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Before; none when there was no alert.
    pub from: Option<AlertState>,
    /// From now on; none when a pending alert came to nothing.
    pub to: Option<AlertState>,
    /// The alert as it is now, or was last.
    pub alert: Alert,
}

/// What receivers are to be told: the alert fires, or is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The alert as it is now.
    pub alert: Alert,
}

/// What comes of a round.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// Alerts to be stored.
    pub puts: Vec<Alert>,
    /// Fingerprints of alerts to be forgotten.
    pub removes: Vec<String>,
    /// Changes of state, in the order in which rules are looked at.
    pub changes: Vec<Change>,
    /// What receivers are to be told.
    pub notices: Vec<Notice>,
}

/// Every alert by its fingerprint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Book {
    alerts: BTreeMap<String, Alert>,
}

/// How one thing stands against its rule in this round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Bad,
    /// Neither bad nor good again.
    Between,
    /// Within the limit, or no further beyond it than chance explains.
    Good,
}

struct Pass<'a> {
    book: &'a mut Book,
    step: Step,
    dirty: BTreeSet<String>,
    /// What this round holds a value of.
    seen: BTreeSet<String>,
    limits: &'a Limits,
    now_ms: u64,
    active: usize,
    refused: u64,
}

impl Book {
    /// The book with these alerts in it, read from a store at `now_ms`. While nobody looked, nothing was measured: that counts
    /// as no time without values.
    #[must_use]
    pub fn reopened(alerts: impl IntoIterator<Item = Alert>, now_ms: u64) -> Self {
        let reopen = |mut alert: Alert| {
            if alert.state.is_active() {
                alert.measured_ms = alert.measured_ms.max(now_ms);
            }
            (alert.fingerprint.clone(), alert)
        };
        Self { alerts: alerts.into_iter().map(reopen).collect() }
    }

    /// Every alert, in order of fingerprints.
    pub fn alerts(&self) -> impl Iterator<Item = &Alert> {
        self.alerts.values()
    }

    /// The alert with this fingerprint.
    #[must_use]
    pub fn get(&self, fingerprint: &str) -> Option<&Alert> {
        self.alerts.get(fingerprint)
    }

    /// Puts an alert in the place of the one with its fingerprint, as when it was acknowledged.
    pub fn replace(&mut self, alert: Alert) {
        self.alerts.insert(alert.fingerprint.clone(), alert);
    }

    /// Takes in a round measured at `now_ms`. The same round at the same time once more changes nothing.
    pub fn evaluate(
        &mut self,
        rules: &BTreeMap<RuleName, AlertRule>,
        silences: &[Silence],
        round: &Round,
        limits: &Limits,
        now_ms: u64,
    ) -> Step {
        let active = self.alerts.values().filter(|a| a.state.is_active() && a.rule.as_str() != OVERFLOW_RULE).count();
        let mut pass = Pass {
            book: self,
            step: Step::default(),
            dirty: BTreeSet::new(),
            seen: BTreeSet::new(),
            limits,
            now_ms,
            active,
            refused: 0,
        };
        pass.observe(rules, round);
        pass.pass_over_unseen(rules, round);
        pass.tell_overflow();
        pass.tell(silences);
        pass.forget();
        pass.finish()
    }
}

impl Pass<'_> {
    fn observe(&mut self, rules: &BTreeMap<RuleName, AlertRule>, round: &Round) {
        // The worst first, so that it is the least that finds no room.
        let mut looked_at: Vec<(&AlertRule, &Observation)> = rules
            .values()
            .filter(|rule| rule.enabled)
            .flat_map(|rule| round.observations.get(&rule.name).into_iter().flatten().map(move |seen| (rule, seen)))
            // What is no number is no value, and has no form in JSON either.
            .filter(|(rule, seen)| seen.value.is_finite() && seen.evidence.n.is_none_or(|n| n >= rule.min_count))
            .collect();
        looked_at.sort_by(|a, b| b.0.severity.cmp(&a.0.severity).then(a.0.name.cmp(&b.0.name)));
        let p_values: Vec<f64> = looked_at.iter().filter_map(|(_, seen)| seen.p_value).collect();
        let mut discovered = discoveries(&p_values, self.limits.false_discovery_rate).into_iter();
        for (rule, seen) in looked_at {
            let beyond_chance = seen.p_value.is_none() || discovered.next().unwrap_or(false);
            let standing = if rule.is_good(seen.value) {
                Standing::Good
            } else if rule.is_bad(seen.value) && beyond_chance {
                Standing::Bad
            } else if seen.p_value.is_some_and(f64::is_finite) && !beyond_chance {
                Standing::Good
            } else {
                Standing::Between
            };
            self.stand(rule, seen, standing);
        }
    }

    fn stand(&mut self, rule: &AlertRule, seen: &Observation, standing: Standing) {
        let name = fingerprint(&rule.name, &seen.labels);
        let before = self.book.alerts.get(&name).map(|alert| alert.state);
        self.seen.insert(name.clone());
        match (before, standing) {
            (None | Some(AlertState::Resolved), Standing::Bad) => {
                if rule.name.as_str() != OVERFLOW_RULE {
                    if self.active >= self.limits.max_active {
                        self.refused += 1;
                        return;
                    }
                    self.active += 1;
                }
                self.begin(name, rule, seen, before);
            }
            (None | Some(AlertState::Resolved), Standing::Between | Standing::Good) => {}
            (Some(AlertState::Pending), Standing::Bad) => {
                self.refresh(&name, rule, seen);
                self.fire_if_due(&name, rule);
            }
            (Some(AlertState::Pending), Standing::Between | Standing::Good) => self.withdraw(&name),
            (Some(AlertState::Firing), Standing::Bad | Standing::Between) => {
                self.refresh(&name, rule, seen);
                self.set_calm(&name, None);
            }
            (Some(AlertState::Firing), Standing::Good) => {
                self.refresh(&name, rule, seen);
                let since = self.book.alerts.get(&name).and_then(|alert| alert.calm_since_ms).unwrap_or(self.now_ms);
                self.set_calm(&name, Some(since));
                if self.now_ms.saturating_sub(since) >= rule.keep_firing_for_ms {
                    self.resolve(&name, "it is back within its limit");
                }
            }
        }
    }

    fn begin(&mut self, name: String, rule: &AlertRule, seen: &Observation, before: Option<AlertState>) {
        // An alert that is over and whose end nobody was told of yet still counts as firing to receivers.
        let owed = self.book.alerts.get(&name).map_or(Told::Nothing, |old| old.told);
        let alert = Alert {
            fingerprint: name.clone(),
            rule: rule.name.clone(),
            labels: seen.labels.clone(),
            rule_labels: rule.labels.clone(),
            annotations: annotations(rule, seen),
            severity: rule.severity,
            state: AlertState::Pending,
            since_ms: self.now_ms,
            began_ms: self.now_ms,
            fired_ms: None,
            resolved_ms: None,
            calm_since_ms: None,
            measured_ms: self.now_ms,
            value: seen.value,
            threshold: rule.fire_at,
            evidence: seen.evidence.clone(),
            resolution: None,
            acknowledged: None,
            told: if owed == Told::Firing { Told::Firing } else { Told::Nothing },
            retrain: rule.retrain,
            silenced_by: None,
        };
        self.changed(before, Some(AlertState::Pending), &alert);
        self.dirty.insert(name.clone());
        self.book.alerts.insert(name.clone(), alert);
        self.fire_if_due(&name, rule);
    }

    fn fire_if_due(&mut self, name: &str, rule: &AlertRule) {
        let now_ms = self.now_ms;
        let Some(alert) = self.book.alerts.get_mut(name) else { return };
        if now_ms.saturating_sub(alert.began_ms) < rule.for_ms {
            return;
        }
        alert.state = AlertState::Firing;
        alert.since_ms = now_ms;
        alert.fired_ms = Some(now_ms);
        alert.told = Told::Nothing;
        let alert = alert.clone();
        self.dirty.insert(name.to_owned());
        self.changed(Some(AlertState::Pending), Some(AlertState::Firing), &alert);
    }

    fn withdraw(&mut self, name: &str) {
        let Some(mut alert) = self.book.alerts.remove(name) else { return };
        self.active = self.active.saturating_sub(1);
        self.changed(Some(AlertState::Pending), None, &alert);
        self.dirty.remove(name);
        if alert.told == Told::Firing {
            // Receivers still believe in the incident before: they are to hear of its end.
            alert.state = AlertState::Resolved;
            alert.since_ms = self.now_ms;
            alert.resolved_ms = Some(self.now_ms);
            self.dirty.insert(name.to_owned());
            self.book.alerts.insert(name.to_owned(), alert);
        } else {
            self.step.removes.push(name.to_owned());
        }
    }

    fn resolve(&mut self, name: &str, why: &str) {
        let now_ms = self.now_ms;
        let Some(alert) = self.book.alerts.get_mut(name) else { return };
        alert.state = AlertState::Resolved;
        alert.since_ms = now_ms;
        alert.resolved_ms = Some(now_ms);
        alert.calm_since_ms = None;
        alert.resolution = Some(why.to_owned());
        let alert = alert.clone();
        if alert.rule.as_str() != OVERFLOW_RULE {
            self.active = self.active.saturating_sub(1);
        }
        self.dirty.insert(name.to_owned());
        self.changed(Some(AlertState::Firing), Some(AlertState::Resolved), &alert);
    }

    /// What was measured last is kept in memory and stored with the next change: a store that is written for each value wears out
    /// for nothing.
    fn refresh(&mut self, name: &str, rule: &AlertRule, seen: &Observation) {
        let now_ms = self.now_ms;
        let Some(alert) = self.book.alerts.get_mut(name) else { return };
        alert.measured_ms = now_ms;
        alert.value = seen.value;
        alert.threshold = rule.fire_at;
        alert.evidence = seen.evidence.clone();
        alert.annotations = annotations(rule, seen);
        alert.severity = rule.severity;
        alert.rule_labels.clone_from(&rule.labels);
        alert.retrain = rule.retrain;
    }

    fn set_calm(&mut self, name: &str, since_ms: Option<u64>) {
        if let Some(alert) = self.book.alerts.get_mut(name)
            && alert.calm_since_ms != since_ms
        {
            alert.calm_since_ms = since_ms;
            self.dirty.insert(name.to_owned());
        }
    }

    /// Alerts whose thing was not measured in this round.
    fn pass_over_unseen(&mut self, rules: &BTreeMap<RuleName, AlertRule>, round: &Round) {
        let unseen: Vec<(String, RuleName, AlertState, u64)> = self
            .book
            .alerts
            .values()
            .filter(|alert| alert.state.is_active() && alert.rule.as_str() != OVERFLOW_RULE)
            .filter(|alert| !self.seen.contains(&alert.fingerprint))
            .map(|alert| (alert.fingerprint.clone(), alert.rule.clone(), alert.state, alert.measured_ms))
            .collect();
        for (name, rule, state, measured_ms) in unseen {
            let Some(rule) = rules.get(&rule).filter(|rule| rule.enabled) else {
                self.end(&name, state, "its rule is gone or not enabled");
                continue;
            };
            if round.unmeasured.contains(&rule.name) {
                continue;
            }
            let patience_ms = rule.over_ms.saturating_add(rule.keep_firing_for_ms);
            if state == AlertState::Pending || self.now_ms.saturating_sub(measured_ms) >= patience_ms {
                self.end(&name, state, "it is not measured any more");
            }
        }
    }

    fn end(&mut self, name: &str, state: AlertState, why: &str) {
        if state == AlertState::Pending { self.withdraw(name) } else { self.resolve(name, why) }
    }

    fn tell_overflow(&mut self) {
        let Some(rule) = overflow_rule() else { return };
        let seen = Observation {
            labels: BTreeMap::new(),
            value: self.refused as f64,
            p_value: None,
            evidence: AlertEvidence::default(),
        };
        let standing = if self.refused > 0 { Standing::Bad } else { Standing::Good };
        self.stand(&rule, &seen, standing);
    }

    fn tell(&mut self, silences: &[Silence]) {
        for (name, alert) in &mut self.book.alerts {
            let due = match (alert.state, alert.told) {
                (AlertState::Firing, Told::Nothing) => Told::Firing,
                (AlertState::Resolved, Told::Firing) => Told::Resolved,
                (AlertState::Pending, _)
                | (AlertState::Firing, Told::Firing | Told::Resolved)
                | (AlertState::Resolved, Told::Nothing | Told::Resolved) => continue,
            };
            let labels = alert.all_labels();
            if silences.iter().any(|silence| silence.covers(&labels, self.now_ms)) {
                continue;
            }
            alert.told = due;
            self.dirty.insert(name.clone());
            self.step.notices.push(Notice { alert: alert.clone() });
        }
    }

    fn forget(&mut self) {
        let mut over: Vec<(u64, String)> = self
            .book
            .alerts
            .values()
            .filter(|alert| alert.state == AlertState::Resolved)
            .map(|alert| (alert.since_ms, alert.fingerprint.clone()))
            .collect();
        over.sort_unstable();
        let too_many = over.len().saturating_sub(self.limits.max_resolved);
        for (at, (since_ms, name)) in over.into_iter().enumerate() {
            let old = self.now_ms.saturating_sub(since_ms) >= self.limits.resolved_kept_ms;
            if at < too_many || old {
                self.book.alerts.remove(&name);
                self.dirty.remove(&name);
                self.step.removes.push(name);
            }
        }
    }

    fn changed(&mut self, from: Option<AlertState>, to: Option<AlertState>, alert: &Alert) {
        self.step.changes.push(Change { from, to, alert: alert.clone() });
    }

    fn finish(mut self) -> Step {
        let book = &*self.book;
        self.step.puts = self.dirty.iter().filter_map(|name| book.alerts.get(name).cloned()).collect();
        self.step
    }
}
