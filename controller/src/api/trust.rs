//! Root documents: whom the fleet trusts.

use std::sync::Arc;

use axum::extract::State;
use muster_shared::api::{Problem, PushRoot, TrustView};

use super::extract::{Admin, Json, Viewer};
use crate::clock;
use crate::events::NewEvent;
use crate::executor;
use crate::problem::{ApiError, ApiResult};
use crate::state::App;
use crate::store::StoreError;
use crate::trust::{self, RootError};

impl From<RootError> for ApiError {
    fn from(error: RootError) -> Self {
        match error {
            RootError::FirstVersion(_) | RootError::Trust(_) | RootError::Director { .. } => {
                Self::unacceptable("untrusted-root", error)
            }
            RootError::Stored { .. } => Self::internal(&error),
            RootError::Store(error) => error.into(),
        }
    }
}

/// The controller's director key and every root document.
#[utoipa::path(
    get, path = "/api/v1/trust", tag = "trust",
    responses((status = 200, description = "Keys and documents", body = TrustView)),
)]
pub(super) async fn show(State(app): State<Arc<App>>, _caller: Viewer) -> ApiResult<axum::Json<TrustView>> {
    view(&app).await.map(axum::Json)
}

/// Takes a root document in: the first one must name this controller's director key, a later one must be signed by a
/// threshold of the keys before it and of its own.
#[utoipa::path(
    post, path = "/api/v1/trust/root", tag = "trust", request_body = PushRoot,
    responses(
        (status = 200, description = "Keys and documents, the new one with them", body = TrustView),
        (status = 409, description = "Another document of this version came first", body = Problem),
        (status = 422, description = "The document is not trustworthy", body = Problem),
    ),
)]
pub(super) async fn push(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
    Json(wish): Json<PushRoot>,
) -> ApiResult<axum::Json<TrustView>> {
    let current = trust::current(&app.records).await?;
    if current.as_ref().is_some_and(|root| *root.envelope() == wish.root) {
        return view(&app).await.map(axum::Json);
    }
    let next = trust::follow(current.as_ref(), wish.root, &app.director.public(), clock::now_ms())?;
    let version = next.root().version;
    let signs = trust::lets_sign(&next, &app.director.public());
    let (event, _held) = app.events.prepare(NewEvent {
        kind: "trust.root".into(),
        actor: caller.name,
        detail: format!("root version {version}{}", if signs { "" } else { "; this controller may no longer sign" }),
        ..NewEvent::default()
    })?;
    match app.records.commit(vec![trust::store(&next)?, event]).await {
        Ok(()) => {}
        Err(StoreError::Conflict { .. }) => {
            let detail = format!("another root document of version {version} was pushed meanwhile");
            return Err(ApiError::conflict("root-exists", detail));
        }
        Err(error) => return Err(error.into()),
    }
    tracing::info!(version, signs, "a root document was taken in");
    if current.is_some() {
        executor::announce_roots(&app).await?;
    }
    view(&app).await.map(axum::Json)
}

async fn view(app: &App) -> ApiResult<TrustView> {
    Ok(TrustView { director_public_key: app.director.public(), roots: trust::roots(&app.records).await? })
}
