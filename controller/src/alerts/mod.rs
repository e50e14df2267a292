//! Alerts: measured at an interval, decided by `muster-alerts`, stored, then told.
//!
//! [`measure`] reads what the fleet and the store know, [`round`] has the decision made and commits it in one batch with its
//! events and its messages, [`delivery`] brings the messages to receivers. What is shown and asked for by people is
//! [`desk`]'s matter.

mod delivery;
mod desk;
mod measure;
mod round;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_alerts::{Book, Limits};
use muster_shared::alert::{Alert, AlertRule, Silence};
use muster_shared::ids::RuleName;
use tokio::sync::{Notify, RwLock, watch};
use tokio::task::JoinHandle;

use crate::config::AlertsConfig;
use crate::state::App;
use crate::store::{Records, StoreError, Table};

pub(crate) use delivery::ReceiverError;
pub(crate) use desk::{DeskError, acknowledge, apply_rules, delete_rule, end_silence, silence, test_receiver};

use delivery::{Queues, Receiver};

/// How far a column of a bundle has moved, for Prometheus.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DriftSeries {
    /// Name and version.
    pub(crate) bundle: String,
    /// The group of devices, as `site=lyon`; empty for the whole fleet.
    pub(crate) group: String,
    /// The column.
    pub(crate) column: String,
    /// Population stability index; none without counts.
    pub(crate) psi: Option<f64>,
    /// What it exceeds by chance only.
    pub(crate) critical: Option<f64>,
    /// Share of requests without a value.
    pub(crate) missing_share: f64,
    /// Share of values that the reference does not know.
    pub(crate) unexpected_share: f64,
}

/// What the last round found.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastRound {
    /// When it was, in milliseconds since the Unix epoch; 0 before the first.
    pub(crate) at_ms: u64,
    /// Scores of drift, no more than `alerts.max-drift-series`.
    pub(crate) drift: Vec<DriftSeries>,
    /// Scores beyond that.
    pub(crate) drift_left_out: usize,
}

/// What is known of alerts, as it is stored.
struct State {
    book: Book,
    rules: BTreeMap<RuleName, AlertRule>,
    silences: BTreeMap<String, Silence>,
    last: LastRound,
}

/// Everything about alerts.
pub(crate) struct Alerts {
    /// Written only with the lock held from the look to the commit, so that two changes follow each other.
    state: RwLock<State>,
    queues: Queues,
    receivers: Vec<Arc<Receiver>>,
    started_ms: u64,
    /// Asks for a round before the interval is over.
    nudge: Notify,
}

impl Alerts {
    /// What is stored, and the receivers of the configuration.
    ///
    /// # Errors
    /// [`AlertsError`] when the store cannot be read or a receiver cannot be used.
    pub(crate) async fn load(records: &Records, config: &AlertsConfig, now_ms: u64) -> Result<Self, AlertsError> {
        let alerts = records.all::<Alert>(Table::Alerts, "").await?;
        let rules = records.all::<AlertRule>(Table::AlertRules, "").await?;
        let silences = records.all::<Silence>(Table::Silences, "").await?;
        let receivers = config.receivers.iter().map(|receiver| Receiver::new(receiver).map(Arc::new));
        let receivers = receivers.collect::<Result<Vec<_>, _>>()?;
        let queues = Queues::load(records, config).await?;
        Ok(Self {
            state: RwLock::new(State {
                book: Book::reopened(alerts.into_iter().map(|(_, alert)| alert.value), now_ms),
                rules: rules.into_iter().map(|(_, rule)| (rule.value.name.clone(), rule.value)).collect(),
                silences: silences.into_iter().map(|(key, silence)| (key, silence.value)).collect(),
                last: LastRound::default(),
            }),
            queues,
            receivers,
            started_ms: now_ms,
            nudge: Notify::new(),
        })
    }

    /// What the last round found.
    pub(crate) async fn last_round(&self) -> LastRound {
        self.state.read().await.last.clone()
    }

    /// Messages that wait, by receiver.
    pub(crate) fn queued(&self) -> BTreeMap<String, usize> {
        self.receivers.iter().map(|r| (r.name().to_owned(), self.queues.len(r.name()))).collect()
    }

    /// Every alert, for Prometheus to count.
    pub(crate) async fn counts(&self) -> BTreeMap<(&'static str, &'static str), usize> {
        let state = self.state.read().await;
        let mut counts = BTreeMap::new();
        for alert in state.book.alerts() {
            *counts.entry((alert.severity.as_str(), alert.state.as_str())).or_default() += 1;
        }
        counts
    }
}

/// Why alerts cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AlertsError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A receiver cannot be used.
    #[error(transparent)]
    Receiver(#[from] ReceiverError),
}

fn limits(config: &AlertsConfig) -> Limits {
    Limits {
        max_active: config.max_active,
        max_resolved: config.max_resolved,
        resolved_kept_ms: config.resolved_kept_ms,
        false_discovery_rate: config.false_discovery_rate,
    }
}

/// Starts measuring and telling.
pub(crate) fn spawn(app: &Arc<App>, shutdown: watch::Receiver<bool>) -> Vec<JoinHandle<()>> {
    let mut tasks = vec![tokio::spawn(watch_over(Arc::clone(app), shutdown.clone()))];
    for receiver in &app.alerts.receivers {
        tasks.push(tokio::spawn(delivery::serve(Arc::clone(app), Arc::clone(receiver), shutdown.clone())));
    }
    tasks
}

async fn watch_over(app: Arc<App>, mut shutdown: watch::Receiver<bool>) {
    let interval = Duration::from_millis(app.config.alerts.interval_ms);
    loop {
        let began = std::time::Instant::now();
        if let Err(error) = round::run(&app, crate::clock::now_ms()).await {
            tracing::error!(%error, "alerts cannot be evaluated; trying again");
        }
        let took = began.elapsed();
        app.metrics.alerts_evaluated(took);
        // However much there is to measure, three quarters of the time are left to others.
        let pause = took * 3;
        let wait = async {
            tokio::time::sleep(pause).await;
            tokio::select! {
                () = app.alerts.nudge.notified() => {}
                () = tokio::time::sleep(interval.saturating_sub(took + pause)) => {}
            }
        };
        tokio::select! {
            () = wait => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
    }
}
