//! Clearing the way for emergencies: whatever holds devices that one wants is ended before it is planned.
//!
//! Nothing of this is remembered. Every pass looks at what is in the way of the emergencies that take devices now, and ends it with a
//! compare-and-swap, again and again until it has won; a controller that dies in between finds the rest in the way when it is back.

use muster_rollout::Rollout;

use super::requests::ATTEMPTS;
use super::{history, pass};
use crate::clock;
use crate::events::ACTOR_CONTROLLER;
use crate::state::App;
use crate::store::{StoreError, Stored, Table};

/// Ends what holds devices that an emergency among `rollouts` wants, and puts what that makes of them into `rollouts`.
pub(super) async fn clear_the_way(app: &App, rollouts: &mut [Stored<Rollout>]) {
    for at in 0..rollouts.len() {
        let Some(emergency) = rollouts.get(at).map(|stored| stored.value.clone()) else { continue };
        if !emergency.is_urgent() || pass::is_held(app, &emergency) {
            continue;
        }
        let held_by = pass::held_by_others(rollouts, at);
        let in_the_way = emergency.in_the_way(&pass::facts(app, &emergency, &held_by, clock::now_ms()));
        for other in rollouts.iter_mut().filter(|other| in_the_way.contains(&other.value.id)) {
            if let Err(error) = end(app, other, &emergency).await {
                let (rollout, emergency) = (&other.value.id, &emergency.id);
                tracing::error!(%rollout, %emergency, %error, "a rollout in the way of an emergency cannot be ended; it is tried again");
            }
        }
    }
}

/// Ends `other`, whatever becomes of it meanwhile.
async fn end(app: &App, other: &mut Stored<Rollout>, emergency: &Rollout) -> Result<(), StoreError> {
    for _ in 0..ATTEMPTS {
        let Some(next) = other.value.overridden(emergency, ACTOR_CONTROLLER, clock::now_ms()) else { return Ok(()) };
        let entry = history::entry(&next, next.status().as_str(), ACTOR_CONTROLLER, next.status_reason.clone());
        match pass::commit(app, vec![pass::put(&next, other.version)?], vec![entry]).await {
            Ok(()) => {
                tracing::warn!(rollout = %next.id, emergency = %emergency.id, "a rollout was ended for an emergency");
                *other = Stored { version: other.version + 1, value: next };
                return Ok(());
            }
            Err(StoreError::Conflict { .. }) => {
                let now = app.records.get::<Rollout>(Table::Rollouts, other.value.id.as_str()).await?;
                let Some(now) = now else { return Ok(()) };
                *other = now;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
