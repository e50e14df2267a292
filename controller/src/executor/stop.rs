//! The fleet-wide stop: one call ends every rollout, and none begins until the stop is lifted.
//!
//! The stop is stored first, together with the names of the rollouts it has to end, and against whoever makes a rollout at the same
//! moment. From then on nothing is planned or told but ways back. Each rollout named is then ended with a compare-and-swap of its own,
//! again and again until it has won. Every pass begins with what is left of that, so a controller that dies in between ends the rest
//! when it is back, before it plans anything.

use std::collections::BTreeSet;

use muster_rollout::Rollout;
use muster_shared::ids::RolloutId;
use muster_shared::limits::bounded_text;
use muster_shared::rollout::{FleetStop, FleetStopView};
use serde::{Deserialize, Serialize};

use super::requests::{ATTEMPTS, card};
use super::{ExecutorError, history, pass};
use crate::clock;
use crate::events::NewEvent;
use crate::state::App;
use crate::store::records::{FLEET_STOP_KEY, ROLLOUT_SEQUENCE_KEY};
use crate::store::{Expect, Records, StoreError, Stored, Table};

/// How often one rollout's end is tried. Each failure means that somebody else has changed it, which the planner does twice in a second
/// at most; what is left after so many is ended by the passes that follow.
const PERSISTENCE: usize = 1_000;

/// The stop as it is stored. The record stays when the stop is lifted, so that its version only grows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct StopRecord {
    stop: Option<FleetStop>,
    /// Rollouts that it has yet to end.
    pending: BTreeSet<RolloutId>,
}

async fn load(app: &App) -> Result<(Expect, Stored<StopRecord>), StoreError> {
    let stored = app.records.get::<StopRecord>(Table::Meta, FLEET_STOP_KEY).await?;
    Ok(match stored {
        Some(stored) => (Expect::Version(stored.version), stored),
        None => (Expect::Absent, Stored { version: 0, value: StopRecord::default() }),
    })
}

/// The stop that stands, if one does.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn standing(app: &App) -> Result<Option<FleetStop>, StoreError> {
    Ok(load(app).await?.1.value.stop)
}

/// The stop that stands, if one does, as operators see it.
///
/// # Errors
/// [`ExecutorError::Store`].
pub(crate) async fn stop_view(app: &App) -> Result<FleetStopView, ExecutorError> {
    Ok(FleetStopView { stop: standing(app).await?, rollouts: Vec::new() })
}

/// Stops the fleet. Once this returns, every rollout has ended or is ending what it ran beside another. A stop that stands already stays
/// whose it is, and ends what was rolled back by hand since.
///
/// # Errors
/// [`ExecutorError::Store`]; [`ExecutorError::Busy`] when the stop could not be stored, or is stored and not every rollout has ended yet.
pub(crate) async fn stop_all(app: &App, actor: &str, reason: Option<&str>) -> Result<FleetStopView, ExecutorError> {
    for _ in 0..PERSISTENCE {
        // Read before the rollouts are: whoever makes one from now on changes it, and this is tried again.
        let last = app.records.get::<u64>(Table::Meta, ROLLOUT_SEQUENCE_KEY).await?;
        let (sequence, last) = last.map_or((Expect::Absent, 0), |last| (Expect::Version(last.version), last.value));
        let (expect, Stored { version, value: StopRecord { stop, .. } }) = load(app).await?;
        let now_ms = clock::now_ms();
        let reason = reason.map(|reason| bounded_text(reason.trim())).filter(|reason| !reason.is_empty());
        let stop = stop.unwrap_or_else(|| FleetStop { since_ms: now_ms, by: actor.to_owned(), reason: reason.clone() });
        let all = app.records.all::<Rollout>(Table::Rollouts, "").await?;
        let unfinished = all.into_iter().map(|(_, rollout)| rollout.value);
        let unfinished = unfinished.filter(|rollout| rollout.halted(actor, None, now_ms).is_some());
        let pending: BTreeSet<RolloutId> = unfinished.map(|rollout| rollout.id).collect();
        let record = StopRecord { stop: Some(stop), pending: pending.clone() };
        let changes = vec![
            Records::put(Table::Meta, ROLLOUT_SEQUENCE_KEY, sequence, &last)?,
            Records::put(Table::Meta, FLEET_STOP_KEY, expect, &record)?,
        ];
        let mut detail = format!("{} rollouts to end", pending.len());
        if let Some(reason) = &reason {
            detail.push_str(": ");
            detail.push_str(reason);
        }
        let entry = NewEvent { kind: "fleet.stopped".into(), actor: actor.to_owned(), detail, ..NewEvent::default() };
        match pass::commit(app, changes, vec![entry]).await {
            Ok(()) => {
                app.schedule.note_stop(version + 1, true);
                tracing::warn!(actor, rollouts = pending.len(), "the fleet is stopped");
                end_pending(app).await?;
                let mut rollouts = Vec::new();
                for id in &pending {
                    let rollout = app.records.get::<Rollout>(Table::Rollouts, id.as_str()).await?;
                    rollouts.extend(rollout.map(|rollout| card(rollout.value)));
                }
                return Ok(FleetStopView { stop: record.stop, rollouts });
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ExecutorError::Busy)
}

/// Lets rollouts be made again. Those that were ended stay so; what had completed goes on to devices that were away.
///
/// # Errors
/// [`ExecutorError::NotStopped`]; [`ExecutorError::Busy`]; [`ExecutorError::Store`].
pub(crate) async fn lift_stop(app: &App, actor: &str, reason: Option<&str>) -> Result<FleetStopView, ExecutorError> {
    for _ in 0..ATTEMPTS {
        end_pending(app).await?;
        let (expect, Stored { version, value }) = load(app).await?;
        if value.stop.is_none() {
            return Err(ExecutorError::NotStopped);
        }
        let change = Records::put(Table::Meta, FLEET_STOP_KEY, expect, &StopRecord::default())?;
        let detail = reason.unwrap_or_default().to_owned();
        let kind = "fleet.stop-lifted".into();
        let entry = NewEvent { kind, actor: actor.to_owned(), detail, ..NewEvent::default() };
        match pass::commit(app, vec![change], vec![entry]).await {
            Ok(()) => {
                app.schedule.note_stop(version + 1, false);
                // What was held back meanwhile counted as told.
                app.schedule.forget_issued();
                app.nudge.notify_one();
                tracing::warn!(actor, "the stop of the fleet is lifted");
                return Ok(FleetStopView { stop: None, rollouts: Vec::new() });
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ExecutorError::Busy)
}

/// Ends what the stop has yet to end; does nothing where no stop stands.
///
/// # Errors
/// [`ExecutorError::Store`]; [`ExecutorError::Busy`] when others kept changing the records.
pub(super) async fn end_pending(app: &App) -> Result<(), ExecutorError> {
    let mut tries = 0;
    while tries < PERSISTENCE {
        let (expect, Stored { version, value: mut record }) = load(app).await?;
        app.schedule.note_stop(version, record.stop.is_some());
        let (Some(stop), Some(id)) = (record.stop.clone(), record.pending.pop_first()) else { return Ok(()) };
        let stored = app.records.get::<Rollout>(Table::Rollouts, id.as_str()).await?;
        let ended = stored.and_then(|stored| {
            let next = stored.value.halted(&stop.by, stop.reason.as_deref(), clock::now_ms())?;
            Some((next, stored.version))
        });
        let mut changes = vec![Records::put(Table::Meta, FLEET_STOP_KEY, expect, &record)?];
        let mut entries = Vec::new();
        if let Some((next, version)) = &ended {
            changes.push(pass::put(next, *version)?);
            entries.push(history::entry(next, next.status().as_str(), &stop.by, next.status_reason.clone()));
        }
        match pass::commit(app, changes, entries).await {
            Ok(()) => {
                app.schedule.note_stop(version + 1, true);
                if ended.is_some_and(|(next, _)| next.needs_planning()) {
                    app.schedule.activate(&id);
                }
                app.nudge.notify_one();
                tries = 0;
            }
            Err(StoreError::Conflict { .. }) => tries += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Err(ExecutorError::Busy)
}
