//! Why a rollout, and a device in it, stand where they do: the planner's reasons, and what happened so far.

use muster_shared::api::{EventView, RolloutExplanation};
use muster_shared::ids::{DeviceId, RolloutId};

use super::ExecutorError;
use super::requests::{fleet, load};
use crate::clock;
use crate::state::App;

/// Entries of the history that are shown.
const MOST: usize = 50;

/// Why the rollout stands where it does; and `device`, where one is named, which may be any there is.
///
/// # Errors
/// [`ExecutorError::UnknownRollout`]; [`ExecutorError::Store`].
pub(crate) async fn explain(
    app: &App,
    id: &RolloutId,
    device: Option<&DeviceId>,
) -> Result<RolloutExplanation, ExecutorError> {
    let rollout = load(app, id).await?.value;
    let now_ms = clock::now_ms();
    let explanation = rollout.explain(&fleet(app, &rollout, now_ms).await?, device, now_ms);
    // What else a device was about meanwhile may be the reason for what it does here; of the rollout, what each device of it did is no
    // step.
    let is_step = |event: &EventView| match device {
        Some(device) => event.device.as_ref() == Some(device),
        None => event.rollout.as_ref() == Some(id) && event.kind.starts_with("rollout."),
    };
    let history = app.events.last(rollout.created_at_ms, MOST, is_step).await?;
    Ok(RolloutExplanation { explanation, history: history.events, history_is_cut: history.is_cut })
}
