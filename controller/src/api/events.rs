//! The fleet's history, to be read on from a number.

use std::sync::Arc;

use axum::extract::State;
use muster_shared::api::{EventView, Page};
use muster_shared::ids::{DeviceId, RolloutId};
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Parameters, Viewer};
use super::paging::page_size;
use crate::problem::ApiResult;
use crate::state::App;

/// Which entries to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListEvents {
    /// Only what came after this number.
    after: Option<u64>,
    /// The same as `after`.
    cursor: Option<u64>,
    /// Only what concerns this device.
    #[param(value_type = Option<String>)]
    device: Option<DeviceId>,
    /// Only what concerns this rollout.
    #[param(value_type = Option<String>)]
    rollout: Option<RolloutId>,
    /// Entries a page has at most.
    limit: Option<usize>,
}

/// Lists entries, oldest first. `next_cursor` is the last number looked at, also where nothing came after it yet: ask again with
/// it to hear what is new. It is left out when nothing was found to look at.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "events", params(ListEvents),
    responses((status = 200, description = "A page of the history", body = Page<EventView>)),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(wish): Parameters<ListEvents>,
) -> ApiResult<axum::Json<Page<EventView>>> {
    let after = wish.after.or(wish.cursor).unwrap_or(0);
    let found = app.events.list(after, wish.device.as_ref(), wish.rollout.as_ref(), page_size(wish.limit)).await?;
    let next_cursor = found.seen_up_to.map(|sequence| sequence.to_string());
    Ok(axum::Json(Page { items: found.events, next_cursor }))
}
