//! The certificate authorities: which there are, putting a new one into force, and taking the one before out of it.

use std::sync::Arc;

use axum::extract::State;
use muster_shared::api::{AuthoritiesView, AuthorityView, Problem, RetireAuthority};
use muster_shared::ids::DeviceId;
use muster_shared::trust::Envelope;

use super::extract::{Admin, OptionalJson, Viewer};
use crate::clock;
use crate::endpoints::Endpoints;
use crate::events::NewEvent;
use crate::pki::PkiError;
use crate::problem::{ApiError, ApiResult};
use crate::state::App;

/// Devices named in a refusal.
const NAMED: usize = 5;

impl From<PkiError> for ApiError {
    fn from(error: PkiError) -> Self {
        match error {
            PkiError::Overlap => Self::conflict("authority-overlap", error.to_string()),
            PkiError::File(_)
            | PkiError::Damaged { .. }
            | PkiError::KeyMissing { .. }
            | PkiError::KeyMismatch { .. }
            | PkiError::Make { .. }
            | PkiError::Tls { .. }
            | PkiError::RevocationList { .. } => Self::internal(&error),
        }
    }
}

/// The list of authorities for devices, signed; none while the first is the only one there was.
pub(super) fn signed_list(app: &App) -> ApiResult<Option<Envelope>> {
    let signed = app.pki.list().map(|list| app.director.sign_authorities(&list)).transpose();
    signed.map_err(|error| ApiError::internal(&error))
}

/// The authorities in force, and how many devices use certificates of each.
#[utoipa::path(
    get, path = "/api/v1/ca", tag = "trust",
    responses((status = 200, description = "Oldest first; the last one signs", body = AuthoritiesView)),
)]
pub(super) async fn show(State(app): State<Arc<App>>, _caller: Viewer) -> axum::Json<AuthoritiesView> {
    axum::Json(view(&app))
}

/// Puts a new authority into force. The one before is accepted until it is retired; connected devices renew their certificates at once,
/// others when they come back.
#[utoipa::path(
    post, path = "/api/v1/ca/rotate", tag = "trust",
    responses(
        (status = 200, description = "The authorities, the new one with them", body = AuthoritiesView),
        (status = 409, description = "The one before is still accepted", body = Problem),
    ),
)]
pub(super) async fn rotate(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
) -> ApiResult<axum::Json<AuthoritiesView>> {
    change(&app, |app| app.pki.rotate(clock::now_ms())).await?;
    note(&app, caller.name, format!("certificate authority {} signs from now on", app.pki.current().sha256)).await?;
    // Devices are prompted in the next pass.
    app.nudge.notify_one();
    Ok(axum::Json(view(&app)))
}

/// Accepts certificates of the authority before the current one no more, and cuts every connection, which devices make again at once.
#[utoipa::path(
    post, path = "/api/v1/ca/retire", tag = "trust", request_body = Option<RetireAuthority>,
    responses(
        (status = 200, description = "The authority that is left", body = AuthoritiesView),
        (status = 409, description = "Devices still use it", body = Problem),
    ),
)]
pub(super) async fn retire(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
    OptionalJson(wish): OptionalJson<RetireAuthority>,
) -> ApiResult<axum::Json<AuthoritiesView>> {
    let left: Vec<DeviceId> = app.fleet.certified_before(app.pki.current().generation);
    if !wish.force && !left.is_empty() {
        let named: Vec<&str> = left.iter().take(NAMED).map(DeviceId::as_str).collect();
        let more = if left.len() > NAMED { ", ..." } else { "" };
        let detail = format!(
            "{} devices still use a certificate of the authority before ({}{more}): they renew it when they connect; with force, they have to enrol again",
            left.len(),
            named.join(", ")
        );
        return Err(ApiError::conflict("authority-in-use", detail));
    }
    if change(&app, |app| app.pki.retire(clock::now_ms())).await? {
        // A certificate is looked at when its connection is made, and one of the retired authority may bear any device's name and number
        // in the hands of a thief. So all connections are made again.
        app.broker.disconnect_all().await;
        let detail =
            format!("authorities before {} are retired; {} devices are left out", app.pki.current().sha256, left.len());
        note(&app, caller.name, detail).await?;
        app.nudge.notify_one();
    }
    Ok(axum::Json(view(&app)))
}

/// Changes the authorities, and has the broker follow.
async fn change<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&App) -> Result<T, PkiError> + Send + 'static,
) -> ApiResult<T> {
    let shared = Arc::clone(app);
    let work = move || {
        let done = work(&shared);
        let endpoints = shared.endpoints.with_ca(shared.pki.ca_file());
        // Whatever became of it: what an earlier attempt left undone is done now.
        endpoints.write(&Endpoints::path(&shared.config.data_dir)).map_err(PkiError::from).and(done)
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(&error))?;
    app.broker.reload(app.pki.broker_files()).await.map_err(|error| ApiError::internal(&error))?;
    Ok(done?)
}

async fn note(app: &App, actor: String, detail: String) -> ApiResult<()> {
    tracing::warn!(by = actor, %detail, "the certificate authorities changed");
    app.events.append(NewEvent { kind: "trust.authority".into(), actor, detail, ..NewEvent::default() }).await?;
    Ok(())
}

fn view(app: &App) -> AuthoritiesView {
    let devices = app.fleet.certified_by();
    let authorities = app.pki.authorities().into_iter().map(|authority| AuthorityView {
        devices: devices.get(&authority.generation).copied().unwrap_or(0),
        sha256: authority.sha256,
        certificate_pem: authority.pem,
        expires_ms: authority.expires_ms,
    });
    AuthoritiesView { authorities: authorities.collect() }
}
