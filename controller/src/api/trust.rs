//! Root documents: whom the fleet trusts.

use std::sync::Arc;

use axum::extract::State;
use muster_shared::api::{Problem, PushRoot, TrustView};
use muster_shared::trust::TrustedRoot;

use super::extract::{Admin, Json, Viewer};
use crate::clock;
use crate::director::DirectorError;
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

impl From<DirectorError> for ApiError {
    fn from(error: DirectorError) -> Self {
        match error {
            DirectorError::InUse => Self::conflict("director-key-in-use", error.to_string()),
            DirectorError::File(_) | DirectorError::Damaged(_) | DirectorError::Random(_) => Self::internal(&error),
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
    if let Some(root) = current.as_ref().filter(|root| *root.envelope() == wish.root) {
        // What was left undone when it first came is done now.
        take_up(&app, root).await?;
        return view(&app).await.map(axum::Json);
    }
    let next = trust::follow(current.as_ref(), wish.root, &app.director.public(), clock::now_ms())?;
    let version = next.root().version;
    let held = [Some(app.director.public()), app.director.next_public()];
    let signs = held.iter().flatten().any(|key| trust::lets_sign(&next, key));
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
    take_up(&app, &next).await?;
    view(&app).await.map(axum::Json)
}

/// Acts on `root`, which is stored: signs with the key it names, and tells devices, of the document before anything that rests on it.
async fn take_up(app: &App, root: &TrustedRoot) -> ApiResult<()> {
    let followed = app.director.follow(root);
    if root.root().version > 1 {
        executor::announce_roots(app).await?;
    }
    if followed? {
        let (version, key) = (root.root().version, app.director.public().id());
        tracing::info!(version, %key, "another director key signs from now on");
        app.schedule.forget_issued();
        app.nudge.notify_one();
    }
    Ok(())
}

/// Makes the director key that is to take the place of the one in use, unless there is one. It signs nothing before a root
/// document names it.
#[utoipa::path(
    post, path = "/api/v1/trust/director", tag = "trust",
    responses(
        (status = 200, description = "Keys and documents, the next key with them", body = TrustView),
        (status = 409, description = "The root document names both keys already", body = Problem),
    ),
)]
pub(super) async fn prepare_director(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
) -> ApiResult<axum::Json<TrustView>> {
    let is_new = app.director.next_public().is_none();
    let key = app.director.prepare()?;
    if is_new {
        note(&app, caller.name, format!("director key {} was made", key.id())).await?;
    }
    view(&app).await.map(axum::Json)
}

/// Gives the next director key up.
#[utoipa::path(
    delete, path = "/api/v1/trust/director", tag = "trust",
    responses(
        (status = 200, description = "Keys and documents; there is no next key", body = TrustView),
        (status = 409, description = "The root document names it already", body = Problem),
    ),
)]
pub(super) async fn discard_director(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
) -> ApiResult<axum::Json<TrustView>> {
    if app.director.discard()? {
        note(&app, caller.name, "the next director key was given up".to_owned()).await?;
    }
    view(&app).await.map(axum::Json)
}

async fn note(app: &App, actor: String, detail: String) -> Result<(), StoreError> {
    app.events.append(NewEvent { kind: "trust.director".into(), actor, detail, ..NewEvent::default() }).await
}

async fn view(app: &App) -> ApiResult<TrustView> {
    Ok(TrustView {
        director_public_key: app.director.public(),
        next_director_public_key: app.director.next_public(),
        roots: trust::roots(&app.records).await?,
    })
}
