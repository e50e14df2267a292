//! Asks for measurements that are due, beside the passes over rollouts: a host that answers late holds nobody up. Each measurement is under way
//! once at a time, and its answer is stored as an operator's act is, by compare-and-swap against whatever was planned meanwhile. What was asked and
//! not stored is asked again at a later pass.

use std::sync::Arc;

use muster_rollout::{Due, Rollout};
use muster_shared::ids::RolloutId;
use muster_shared::rollout::{Provider, Value};

use super::{pass, requests};
use crate::analysis;
use crate::clock;
use crate::state::App;
use crate::store::{StoreError, Table};

/// A measurement under way: no other of the same is begun until it ends, however it ends.
struct Underway {
    app: Arc<App>,
    key: (RolloutId, Due),
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.app.schedule.end_measuring(&self.key);
        self.app.nudge.notify_one();
    }
}

/// Begins what is due of `rollout` and not under way.
pub(super) fn begin(app: &Arc<App>, rollout: &Rollout, due: Vec<Due>) {
    for due in due {
        let Some(provider) = rollout.metric_due(&due).map(|metric| metric.provider.clone()) else { continue };
        let key = (rollout.id.clone(), due);
        if app.schedule.may_measure(&key) {
            let underway = Underway { app: Arc::clone(app), key };
            tokio::spawn(async move { measure(&underway, &provider).await });
        }
    }
}

async fn measure(underway: &Underway, provider: &Provider) {
    let Underway { app, key: (id, due) } = underway;
    let answer = analysis::ask(&app.config.rollout.analysis, provider).await;
    if let Err(why) = &answer {
        tracing::warn!(rollout = %id, why, "a measurement of an analysis came to nothing");
    }
    for _ in 0..requests::ATTEMPTS {
        match record(app, id, due, &answer).await {
            Ok(()) => return,
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => {
                tracing::error!(rollout = %id, %error, "a measurement cannot be stored; it is made again");
                return;
            }
        }
    }
}

async fn record(app: &App, id: &RolloutId, due: &Due, answer: &Result<Value, String>) -> Result<(), StoreError> {
    let Some(stored) = app.records.get::<Rollout>(Table::Rollouts, id.as_str()).await? else { return Ok(()) };
    match stored.value.record(due, answer.clone(), clock::now_ms()) {
        Some(next) => pass::commit(app, vec![pass::put(&next, stored.version)?], Vec::new()).await,
        // Nobody waits for it any more.
        None => Ok(()),
    }
}
