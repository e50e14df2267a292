//! One look at all rollouts that need planning.

use std::sync::Arc;

use muster_rollout::{
    Action, Decision, Fleet, OperatorAction, QueuedRollout, Rollout, goes_on_in_a_stop, plan, verify,
};
use muster_shared::ids::DeviceId;

use super::freezes::Freezes;
use super::holders::Holders;
use super::{history, issue, measure, prompts, stop, updates, urgency};
use crate::clock;
use crate::events::{ACTOR_CONTROLLER, NewEvent};
use crate::state::App;
use crate::store::records::{Desired, DeviceRecord};
use crate::store::{Change, Expect, Records, StoreError, Stored, Table};

/// After a plan was overtaken, it is made again so soon, in milliseconds.
const RETRY_MS: u64 = 50;

/// Plans, checks, stores and carries out. Returns when to look again at the latest, in milliseconds since the Unix
/// epoch.
pub(super) async fn pass(app: &Arc<App>) -> Option<u64> {
    if let Err(error) = stop::end_pending(app).await {
        tracing::error!(%error, "what a fleet-wide stop has to end cannot be ended; it is tried again");
    }
    let mut rollouts = load(app).await;
    let mut holders = Holders::among(&rollouts);
    urgency::clear_the_way(app, &mut rollouts, &mut holders).await;
    let mut wake_at_ms: Option<u64> = None;
    for at in 0..rollouts.len() {
        let Some(Stored { value: rollout, .. }) = rollouts.get(at) else { continue };
        if is_held(app, rollout) {
            show(app, rollout, &facts(app, rollout, &holders, &rollouts, clock::now_ms()));
            continue;
        }
        let (id, targets) = (rollout.id.clone(), rollout.targets.clone());
        let wake = match step(app, &mut rollouts, at, &holders).await {
            Ok(wake) => wake,
            Err(StoreError::Conflict { .. }) => {
                tracing::debug!(rollout = %id, "the plan was overtaken and is made again");
                Some(clock::now_ms() + RETRY_MS)
            }
            Err(error) => {
                tracing::error!(rollout = %id, %error, "a rollout cannot be moved on; it is tried again");
                None
            }
        };
        wake_at_ms = [wake_at_ms, wake].into_iter().flatten().min();
        let Some(Stored { value: rollout, .. }) = rollouts.get(at) else { continue };
        if rollout.status().is_terminal() {
            app.metrics.rollout_ended(&id);
        }
        if !rollout.needs_planning() {
            app.schedule.retire(&id);
        }
        if rollout.targets != targets {
            holders.update(&rollouts, at);
        }
    }
    let now_ms = clock::now_ms();
    if app.schedule.may_tidy(now_ms) {
        let unfinished =
            rollouts.iter().map(|rollout| &rollout.value).filter(|rollout| !rollout.status().is_terminal());
        app.fleet.compact(unfinished.flat_map(Rollout::cuts_ms).collect(), now_ms);
    }
    app.schedule.keep_planned(rollouts);
    // First, so that a device can believe what comes after it.
    issue::repeat_roots(app).await;
    prompts::prompt_renewals(app).await;
    issue::remind(app).await;
    issue::renew(app).await;
    wake_at_ms
}

/// The rollouts to be planned, oldest first, as they are stored. One over a large fleet is large, so what nobody has changed is not read anew.
async fn load(app: &App) -> Vec<Stored<Rollout>> {
    let (mut rollouts, mut planned) = (Vec::new(), app.schedule.take_planned());
    for id in app.schedule.active() {
        match app.records.renew::<Rollout>(Table::Rollouts, id.as_str(), planned.remove(&id)).await {
            Ok(Some(rollout)) => rollouts.push(rollout),
            Ok(None) => {
                app.schedule.retire(&id);
                app.metrics.rollout_ended(&id);
            }
            Err(error) => tracing::error!(rollout = %id, %error, "a rollout cannot be read"),
        }
    }
    rollouts
}

/// Whether a fleet-wide stop keeps the rollout from going on.
pub(super) fn is_held(app: &App, rollout: &Rollout) -> bool {
    app.schedule.is_fleet_stopped() && rollout.needs_planning() && !goes_on_in_a_stop(rollout.status())
}

/// The fleet as `rollout` must see it at `now_ms`, where `rollouts` have the devices that `holders` says.
pub(super) fn facts(
    app: &App,
    rollout: &Rollout,
    holders: &Holders,
    rollouts: &[Stored<Rollout>],
    now_ms: u64,
) -> Fleet {
    let heard_since_ms = now_ms.saturating_sub(app.config.rollout.device_timeout_ms);
    app.fleet.facts(rollout, |device| holders.holder(rollouts, device, rollout), heard_since_ms)
}

/// Moves the rollout at `at` on, and puts what it has become into its place.
async fn step(
    app: &Arc<App>,
    rollouts: &mut [Stored<Rollout>],
    at: usize,
    holders: &Holders,
) -> Result<Option<u64>, StoreError> {
    let freezes = Freezes::load(app).await?;
    let now_ms = clock::now_ms();
    let others = rollouts.iter().enumerate().filter(|(other, _)| *other != at);
    let queue: Vec<QueuedRollout> = others.filter_map(|(_, other)| other.value.queued()).collect();
    let Some(Stored { value: before, .. }) = rollouts.get(at) else { return Ok(None) };
    let fleet = Fleet { queue, freezes: freezes.all().to_vec(), ..facts(app, before, holders, rollouts, now_ms) };
    // Of the wave whose reports were gathered, which need not be the one that the plan ends in.
    show(app, before, &fleet);
    let decision = plan(before, &fleet, now_ms);
    let checked = verify(before, &decision, &fleet, now_ms);
    let Some(rollout) = rollouts.get_mut(at) else { return Ok(None) };
    if let Err(violations) = checked {
        let all: Vec<String> = violations.iter().map(ToString::to_string).collect();
        return pause_broken(app, rollout, all.join("; "), now_ms).await.map(|()| None);
    }
    let (wake_at_ms, due) = (decision.wake_at_ms, decision.due.clone());
    carry_out(app, rollout, decision, &freezes, now_ms).await?;
    measure::begin(app, &rollout.value, due);
    Ok(wake_at_ms)
}

/// Shows Prometheus how the devices of a rollout that has not ended fare.
fn show(app: &App, rollout: &Rollout, fleet: &Fleet) {
    if !rollout.status().is_terminal() && !rollout.targets.is_empty() {
        app.metrics.rollout_stands(&rollout.id, rollout.current_wave, rollout.outcomes(fleet));
    }
}

/// Stores the decision whole, then tells the devices.
async fn carry_out(
    app: &Arc<App>,
    rollout: &mut Stored<Rollout>,
    decision: Decision,
    freezes: &Freezes,
    now_ms: u64,
) -> Result<(), StoreError> {
    let Decision { next, actions, notes, .. } = decision;
    let mut assigned = assign(app, &next, actions, now_ms).await?;
    let told: Vec<DeviceId> = assigned.changed.iter().map(|record| record.value.id.clone()).collect();
    let quarantined = updates::keep(app, &mut assigned.changed, notes, &next, now_ms).await?;
    let mut changes: Vec<Change> = Vec::new();
    // Also where only devices' records change: an operator who stopped the rollout meanwhile must not be overtaken.
    let rollout_changes = next != rollout.value || !assigned.changed.is_empty();
    if rollout_changes {
        changes.push(put(&next, rollout.version)?);
    }
    if next.lets_in_since(&rollout.value) {
        // A freeze that was stored meanwhile must be heeded.
        changes.push(freezes.guard()?);
    }
    for record in &assigned.changed {
        let key = record.value.id.as_str();
        changes.push(Records::put(Table::Devices, key, Expect::Version(record.version), &record.value)?);
    }
    if !changes.is_empty() {
        let mut entries = history::entries(&rollout.value, &next, &told);
        entries.extend(quarantined);
        commit(app, changes, entries).await?;
        if rollout_changes {
            *rollout = Stored { version: rollout.version + 1, value: next };
        }
        for record in &assigned.changed {
            app.fleet.update_record(&record.value, record.version + 1);
        }
    }
    let is_forward = !goes_on_in_a_stop(rollout.value.status());
    issue::deliver(app, assigned.to_tell, is_forward).await;
    Ok(())
}

pub(super) fn put(rollout: &Rollout, version: u64) -> Result<Change, StoreError> {
    Records::put(Table::Rollouts, rollout.id.as_str(), Expect::Version(version), rollout)
}

/// One commit with its entries in the history.
pub(super) async fn commit(app: &App, mut changes: Vec<Change>, entries: Vec<NewEvent>) -> Result<(), StoreError> {
    let mut held = Vec::new();
    for entry in entries {
        let (change, number) = app.events.prepare(entry)?;
        changes.push(change);
        held.push(number);
    }
    app.records.commit(changes).await
}

#[derive(Default)]
struct Assigned {
    /// Records with another content than stored; versions as stored.
    changed: Vec<Stored<DeviceRecord>>,
    /// Devices that can hear, and what they are told.
    to_tell: Vec<(DeviceId, Desired)>,
}

async fn assign(app: &App, rollout: &Rollout, actions: Vec<Action>, now_ms: u64) -> Result<Assigned, StoreError> {
    let (mut assigned, track) = (Assigned::default(), rollout.track());
    for Action::Assign { device, manifest, generation } in actions {
        let known = app.fleet.is_assigned(&device, track, (manifest, generation), &rollout.id);
        let due = !known || app.schedule.is_due(&device, (track, generation), app.broker.is_sending(&device), now_ms);
        let is_told = due && app.fleet.is_online(&device) && app.fleet.understands(&device, track);
        if known {
            // Most of those that are told again were told a moment ago: nothing of them is to be stored, and nothing read.
            let desired = if is_told { app.fleet.desired(&device, track) } else { None };
            assigned.to_tell.extend(desired.map(|desired| (device, desired)));
            continue;
        }
        let stored = app.records.get::<DeviceRecord>(Table::Devices, device.as_str()).await?;
        let Some(Stored { version, value: mut record }) = stored else { continue };
        if record.is_revoked() || record.desired(track).is_some_and(|desired| desired.generation >= generation) {
            // Somebody was faster: a rollout must not take in a device that another one has by now.
            return Err(StoreError::Conflict { table: Table::Devices, key: device.as_str().into() });
        }
        let desired = Desired {
            manifest,
            generation,
            rollout: rollout.id.clone(),
            watch: rollout.spec.watch,
            delivery: rollout.delivery(&device),
            stage: rollout.stage(&device),
            activation: rollout.activation(&device),
            track,
            since_ms: now_ms,
        };
        if is_told {
            assigned.to_tell.push((device, desired.clone()));
        }
        record.assign(desired);
        assigned.changed.push(Stored { version, value: record });
    }
    Ok(assigned)
}

/// A plan that breaks a rule is a fault of ours: nothing of it happens, and people must look.
pub(super) async fn pause_broken(
    app: &App,
    rollout: &mut Stored<Rollout>,
    violations: String,
    now_ms: u64,
) -> Result<(), StoreError> {
    let id = &rollout.value.id;
    let detail = format!("a plan broke its rules and was not carried out: {violations}");
    match rollout.value.apply(OperatorAction::Pause, ACTOR_CONTROLLER, Some(&detail), now_ms) {
        Ok(next) => {
            tracing::error!(rollout = %id, detail, "rollout paused");
            let entries = vec![
                history::entry(&next, "violation", ACTOR_CONTROLLER, detail),
                history::entry(&next, next.status().as_str(), ACTOR_CONTROLLER, next.status_reason.clone()),
            ];
            commit(app, vec![put(&next, rollout.version)?], entries).await?;
            *rollout = Stored { version: rollout.version + 1, value: next };
        }
        Err(_) if app.schedule.may_complain(id, now_ms) => {
            tracing::error!(rollout = %id, detail, "nothing is done");
            let entry = history::entry(&rollout.value, "violation", ACTOR_CONTROLLER, detail);
            commit(app, Vec::new(), vec![entry]).await?;
        }
        Err(_) => {}
    }
    Ok(())
}
