//! What follows when nothing goes wrong any more: every rollout comes to its end, and every device to what it was told last.

use std::collections::BTreeMap;

use muster_rollout::OperatorAction;
use muster_shared::ids::{Digest, RolloutId};
use muster_shared::rollout::RolloutStatus;

use crate::draw::Trouble;
use crate::store::Stored;
use crate::world::World;

/// Rounds after which a rollout that has not ended never will.
const ROUNDS: u32 = 200;
/// How much time passes in a round in which something happened, in milliseconds.
const ROUND_MS: u64 = 60;
/// Steps of one controller after which it never comes to rest.
const STEPS: u32 = 2_000;
/// How often an operator resumes before giving a rollout up.
const PATIENCE: u32 = 2;

/// Lets everything come to its end, and says what does not.
pub(crate) fn finish(world: &mut World) -> Result<(), String> {
    world.trouble = Trouble { lost: 0, twice: 0, reordered: 0, bad_answers: 0, ..world.trouble };
    for at in 0..world.controllers.len() {
        world.set_clock(at, 0);
    }
    for at in 0..world.devices.len() {
        world.devices[at].lie = None;
        world.come_back(at);
    }
    world.note(|| "faults cease".to_owned());
    let mut resumed: BTreeMap<RolloutId, u32> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let versions = versions(world);
        round(world)?;
        for id in world.waiting_for_approval() {
            world.approve(&id, "second")?;
            world.approve(&id, "third")?;
            world.approve(&id, "maker")?;
        }
        for id in world.paused() {
            let times = resumed.entry(id.clone()).or_default();
            *times += 1;
            let action = match (*times > PATIENCE, times.is_multiple_of(2)) {
                (false, _) => OperatorAction::Resume,
                (true, true) => OperatorAction::Abort,
                (true, false) => OperatorAction::Rollback,
            };
            readable(world, &id)?;
            world.operate(&id, action)?;
        }
        if world.is_over() && converged(world).is_ok() {
            return Ok(());
        }
        if versions == self::versions(world) {
            world.now_ms = woken(world)?;
        }
    }
    converged(world)?;
    let open = world.store.rollouts.values().filter(|rollout| !rollout.value.status().is_terminal());
    let open: Vec<String> = open
        .map(|r| {
            format!(
                "{} is {} ({}) in wave {}",
                r.value.id,
                r.value.status(),
                r.value.status_reason,
                r.value.current_wave
            )
        })
        .collect();
    Err(format!("no end in sight: {}", open.join("; ")))
}

/// Devices work, serve and report; controllers look at everything once.
fn round(world: &mut World) -> Result<(), String> {
    world.ledger.tally.quiet_rounds += 1;
    world.now_ms += ROUND_MS;
    world.ledger.happens(world.now_ms);
    for at in 0..world.devices.len() {
        let now_ms = world.now_ms;
        let device = &mut world.devices[at];
        device.serve(8);
        device.turn(now_ms);
        device.report();
    }
    world.settle()?;
    for at in 0..world.controllers.len() {
        for step in 0.. {
            world.control(at)?;
            if world.controllers[at].is_idle() {
                break;
            }
            if step > STEPS {
                return Err(format!("controller {at} never comes to rest"));
            }
        }
    }
    world.answer_all()?;
    world.settle()
}

/// Changes of rollouts and devices' records so far.
fn versions(world: &World) -> u64 {
    let rollouts = world.store.rollouts.values().map(|stored| stored.version);
    rollouts.chain(world.store.devices.values().map(|stored| stored.version)).sum()
}

/// The time at which a controller said that it would look again.
fn woken(world: &World) -> Result<u64, String> {
    let wake_at_ms = world.controllers.iter().filter_map(|controller| controller.wake_at_ms).min();
    Ok(wake_at_ms.map_or(world.now_ms, |at_ms| at_ms.max(world.now_ms)))
}

/// A paused rollout says why.
fn readable(world: &World, id: &RolloutId) -> Result<(), String> {
    let reason = world.store.rollouts.get(id).map(|rollout| rollout.value.status_reason.as_str()).unwrap_or_default();
    if reason.len() < 8 { Err(format!("{id} is paused, and says only {reason:?}")) } else { Ok(()) }
}

/// What the rollout brings.
fn bundle(world: &World, rollout: &RolloutId) -> Option<Digest> {
    world.store.rollouts.get(rollout).map(|rollout| rollout.value.bundle.manifest)
}

/// Whether it has its devices switch together, and calls them back when it is stopped.
fn calls_back(world: &World, rollout: &RolloutId) -> bool {
    world.store.rollouts.get(rollout).is_some_and(|rollout| rollout.value.spec.blue_green.is_some())
}

/// Every device knows what it was told last, unless that was stopped, and nobody waits to switch for one that was.
fn converged(world: &World) -> Result<(), String> {
    for device in &world.devices {
        let Some(Stored { value: record, .. }) = world.store.devices.get(&device.id) else { continue };
        let Some(told) = record.desired.as_ref().filter(|_| !record.revoked) else { continue };
        let status = world.store.rollouts.get(&told.rollout).map(|rollout| rollout.value.status());
        let is_called_back = calls_back(world, &told.rollout) && told.manifest != bundle(world, &told.rollout);
        if device.waits_to_switch() && status == Some(RolloutStatus::Stopped) {
            return Err(format!("{} waits to switch for {}, which was stopped", device.id, told.rollout));
        }
        // Who cannot read what it was told stays where it is.
        if told.assignment(&device.id, 0).written_for(device.protocol).is_err() {
            continue;
        }
        if (status != Some(RolloutStatus::Stopped) || is_called_back) && device.record().generation < told.generation {
            let (id, has) = (&device.id, device.record().generation);
            return Err(format!(
                "{id} was told generation {} and has {has}, its rollout is {status:?}",
                told.generation
            ));
        }
    }
    Ok(())
}
