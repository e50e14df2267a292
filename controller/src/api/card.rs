//! A bundle's model card.

use std::sync::Arc;

use axum::extract::State;
use muster_shared::api::{ModelCard, Problem};
use muster_shared::ids::BundleRef;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Parameters, Segments, Viewer};
use crate::card::{self, CardError};
use crate::clock;
use crate::problem::{ApiError, ApiResult};
use crate::state::App;

/// How far back live figures reach where nothing else is asked for, in milliseconds.
const LOOK_BACK_MS: u64 = 7 * 24 * 3_600_000;

/// What to look at.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query, rename_all = "kebab-case")]
pub(super) struct ShowCard {
    /// Leaves out what came before, in milliseconds since the Unix epoch; a week ago when left out.
    since_ms: Option<u64>,
}

impl From<CardError> for ApiError {
    fn from(error: CardError) -> Self {
        match error {
            CardError::Report(error) => error.into(),
            CardError::Drift(error) => error.into(),
            CardError::Rollouts(error) => error.into(),
            CardError::Store(error) => error.into(),
        }
    }
}

/// Shows a bundle's model card: its manifest, and how it does in the field.
#[utoipa::path(
    get, path = "/api/v1/bundles/{name}/{version}/card", tag = "bundles",
    params(
        ("name" = String, Path, description = "The model's name"),
        ("version" = String, Path, description = "The version"),
        ShowCard,
    ),
    responses(
        (status = 200, description = "The card", body = ModelCard),
        (status = 404, description = "There is no such bundle", body = Problem),
    ),
)]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Segments((name, version)): Segments<(String, String)>,
    Parameters(wish): Parameters<ShowCard>,
) -> ApiResult<axum::Json<ModelCard>> {
    let bundle: BundleRef =
        format!("{name}@{version}").parse().map_err(|error| ApiError::invalid("invalid-path", error))?;
    let now_ms = clock::now_ms();
    let since_ms = wish.since_ms.unwrap_or_else(|| now_ms.saturating_sub(LOOK_BACK_MS));
    Ok(axum::Json(card::card(&app, &bundle, since_ms, now_ms).await?))
}
