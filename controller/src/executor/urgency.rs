//! Clearing the way for emergencies: whatever holds devices that one wants is ended before it is planned.
//!
//! Nothing of this is remembered. Every pass looks at what is in the way of the emergencies that take devices now, and ends it with a
//! compare-and-swap, again and again until it has won; a controller that dies in between finds the rest in the way when it is back.

use muster_rollout::Rollout;

use super::holders::Holders;
use super::requests::ATTEMPTS;
use super::{history, pass};
use crate::clock;
use crate::events::ACTOR_CONTROLLER;
use crate::state::App;
use crate::store::{StoreError, Stored, Table};

/// Ends what holds devices that an emergency among `rollouts` wants, and puts what that makes of them into `rollouts` and `holders`.
pub(super) async fn clear_the_way(app: &App, rollouts: &mut [Stored<Rollout>], holders: &mut Holders) {
    for at in 0..rollouts.len() {
        let urgent = rollouts.get(at).map(|stored| &stored.value).filter(|rollout| rollout.is_urgent());
        let Some(emergency) = urgent.filter(|rollout| !pass::is_held(app, rollout)).cloned() else { continue };
        let fleet = pass::facts(app, &emergency, holders, rollouts, clock::now_ms());
        let in_the_way = emergency.in_the_way(&fleet);
        for other in 0..rollouts.len() {
            let Some(ended) = rollouts.get_mut(other).filter(|other| in_the_way.contains(&other.value.id)) else {
                continue;
            };
            let id = ended.value.id.clone();
            let result = end(app, ended, &emergency).await;
            holders.update(rollouts, other);
            if let Err(error) = result {
                let emergency = &emergency.id;
                tracing::error!(rollout = %id, %emergency, %error, "a rollout in the way of an emergency cannot be ended; it is tried again");
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
