//! The certificates that are accepted no more, for brokers that are not the controller's own.
//!
//! Open to everybody, as such lists are: it is signed, and says no more than serial numbers. A broker's host needs no token for it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};

use crate::clock;
use crate::problem::ApiResult;
use crate::state::App;

/// The list of certificates that are accepted no more, made at this moment.
#[utoipa::path(
    get, path = "/api/v1/crl.pem", tag = "devices", security(()),
    responses((
        status = 200, description = "A certificate revocation list (RFC 5280) in PEM, good for 30 days",
        body = String, content_type = "application/x-pem-file",
    )),
)]
pub(super) async fn show(State(app): State<Arc<App>>) -> ApiResult<Response> {
    let revoked = app.fleet.revoked_certificates();
    let pem = app.pki.revocation_list(&revoked, clock::now_ms())?;
    Ok(([(header::CONTENT_TYPE, "application/x-pem-file")], pem).into_response())
}
