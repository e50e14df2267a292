//! The HTTP API: which paths there are, and what surrounds every handler.
//!
//! One family of paths a file. Every answer that is an error is `application/problem+json`, whoever made it: a handler, the
//! router, a limit or a panic.

#![allow(unused_qualifications, reason = "the code that utoipa derives spells paths out")]

mod access;
mod alerts;
mod analysis;
mod aside;
mod authorities;
mod bundles;
mod card;
mod collections;
mod comparison;
mod crl;
mod device_record;
mod devices;
mod drift;
mod enrol;
mod events;
mod explain;
mod extract;
mod feedback;
mod files;
mod freezes;
mod health;
mod openapi;
mod paging;
mod peer;
mod quality;
mod renewal;
mod revocation;
mod rollouts;
#[cfg(test)]
mod tests;
mod tokens;
mod trust;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use muster_shared::limits::MAX_BATCH_BYTES;
use tower_http::catch_panic::CatchPanicLayer;

use crate::problem::ApiError;
use crate::state::App;

pub(crate) use peer::AcceptDevices;

type Route = (&'static str, MethodRouter<Arc<App>>);

/// Paths whose requests are bounded in size and time.
fn ordinary_routes() -> Vec<Route> {
    vec![
        ("/healthz", get(health::healthz)),
        ("/readyz", get(health::readyz)),
        ("/metrics", get(health::metrics)),
        ("/api/v1/openapi.json", get(openapi::document)),
        ("/api/v1/enrol", post(enrol::enrol)),
        ("/api/v1/renew", post(renewal::renew)),
        ("/api/v1/crl.pem", get(crl::show)),
        ("/api/v1/access", get(access::list).post(access::create)),
        ("/api/v1/access/{name}", delete(access::revoke)),
        ("/api/v1/tokens", get(tokens::list).post(tokens::create)),
        ("/api/v1/tokens/provisioning", get(tokens::provisioning)),
        ("/api/v1/tokens/{id}/revoke", post(tokens::revoke)),
        ("/api/v1/devices", get(devices::list)),
        ("/api/v1/devices/{id}", get(devices::show)),
        ("/api/v1/devices/{id}/labels", patch(devices::label)),
        ("/api/v1/devices/{id}/revoke", post(revocation::revoke)),
        ("/api/v1/devices/{id}/reinstate", post(revocation::reinstate)),
        ("/api/v1/devices/{id}/pin", post(aside::pin)),
        ("/api/v1/devices/{id}/unpin", post(aside::unpin)),
        ("/api/v1/devices/{id}/release", post(aside::release)),
        ("/api/v1/trust", get(trust::show)),
        ("/api/v1/trust/root", post(trust::push)),
        ("/api/v1/trust/director", post(trust::prepare_director).delete(trust::discard_director)),
        ("/api/v1/ca", get(authorities::show)),
        ("/api/v1/ca/rotate", post(authorities::rotate)),
        ("/api/v1/ca/retire", post(authorities::retire)),
        ("/api/v1/bundles", get(bundles::list).post(bundles::push)),
        ("/api/v1/bundles/{name}/{version}", get(bundles::show)),
        ("/api/v1/bundles/{name}/{version}/card", get(card::show)),
        ("/api/v1/rollouts", get(rollouts::list).post(rollouts::create)),
        ("/api/v1/rollouts/preview", post(rollouts::preview)),
        ("/api/v1/rollouts/stop", get(rollouts::stop)),
        ("/api/v1/rollouts/stop-all", post(rollouts::stop_all)),
        ("/api/v1/rollouts/lift-stop", post(rollouts::lift_stop)),
        ("/api/v1/rollouts/{id}", get(rollouts::show)),
        ("/api/v1/rollouts/{id}/evidence", get(rollouts::evidence)),
        ("/api/v1/rollouts/{id}/explain", get(explain::explain)),
        ("/api/v1/rollouts/{id}/pause", post(rollouts::pause)),
        ("/api/v1/rollouts/{id}/resume", post(rollouts::resume)),
        ("/api/v1/rollouts/{id}/abort", post(rollouts::abort)),
        ("/api/v1/rollouts/{id}/rollback", post(rollouts::rollback)),
        ("/api/v1/rollouts/{id}/approve", post(rollouts::approve)),
        ("/api/v1/rollouts/{id}/reject", post(rollouts::reject)),
        ("/api/v1/freezes", get(freezes::list).post(freezes::create)),
        ("/api/v1/freezes/{id}/lift", post(freezes::lift)),
        ("/api/v1/comparison", get(comparison::report)),
        ("/api/v1/collections", get(collections::list).post(collections::open)),
        ("/api/v1/collections/{id}", get(collections::show).delete(collections::delete)),
        ("/api/v1/collections/{id}/close", post(collections::close)),
        ("/api/v1/collections/{id}/batches", get(collections::batches)),
        ("/api/v1/collections/{id}/labels", get(collections::labels).post(collections::put_labels)),
        ("/api/v1/drift", get(drift::report)),
        ("/api/v1/drift/explain", get(drift::explain)),
        ("/api/v1/drift/export", get(drift::export)),
        ("/api/v1/drift/quantiles", get(drift::quantiles)),
        ("/api/v1/quality", get(quality::report)),
        ("/api/v1/feedback", get(feedback::list).post(feedback::push)),
        ("/api/v1/analysis-templates", get(analysis::list).post(analysis::push)),
        ("/api/v1/analysis-templates/{reference}", get(analysis::show).delete(analysis::delete)),
        ("/api/v1/alerts", get(alerts::list)),
        ("/api/v1/alerts/silences", get(alerts::silences).post(alerts::silence)),
        ("/api/v1/alerts/silences/{id}/end", post(alerts::end_silence)),
        ("/api/v1/alerts/rules", get(alerts::rules).post(alerts::apply_rules)),
        ("/api/v1/alerts/rules/{name}", delete(alerts::delete_rule)),
        ("/api/v1/alerts/receivers", get(alerts::receivers)),
        ("/api/v1/alerts/receivers/{name}/test", post(alerts::test_receiver)),
        ("/api/v1/alerts/{fingerprint}", get(alerts::show)),
        ("/api/v1/alerts/{fingerprint}/ack", post(alerts::acknowledge)),
        ("/api/v1/events", get(events::list)),
    ]
}

/// Paths that carry what devices bring: bounded by what one batch may have, whatever other bodies may.
fn batch_routes() -> Vec<Route> {
    vec![("/api/v1/collections/{id}/batches/{number}", put(collections::take))]
}

/// Paths that carry whole files: bounded in size by [`crate::blobs`], and in time only while nothing comes.
fn transfer_routes() -> Vec<Route> {
    vec![
        ("/api/v1/files/{sha256}", get(files::give).put(files::take)),
        ("/api/v1/collections/{id}/export", get(collections::export)),
    ]
}

/// The API, ready to be served.
pub(crate) fn router(app: Arc<App>) -> Router {
    let transfers = with_routes(transfer_routes()).layer(from_fn(to_the_end));
    let batches = with_routes(batch_routes())
        .layer(DefaultBodyLimit::max(MAX_BATCH_BYTES))
        .layer(from_fn_with_state(Arc::clone(&app), in_time));
    surround(bounded(ordinary_routes(), &app).merge(batches).merge(transfers), app)
}

fn bounded(routes: Vec<Route>, app: &Arc<App>) -> Router<Arc<App>> {
    with_routes(routes)
        .layer(DefaultBodyLimit::max(app.config.api.max_body_bytes))
        .layer(from_fn_with_state(Arc::clone(app), in_time))
}

fn with_routes(routes: Vec<Route>) -> Router<Arc<App>> {
    let router = routes.into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
    router.layer(CatchPanicLayer::custom(|panic: Box<dyn Any + Send>| after_panic(panic.as_ref())))
}

/// What holds for every path, known or not.
fn surround(router: Router<Arc<App>>, app: Arc<App>) -> Router {
    router.layer(map_response(as_problem)).layer(from_fn_with_state(Arc::clone(&app), count)).with_state(app)
}

/// Works a request off to its end, even when its client has gone: what was stored must also reach what is kept in memory, and
/// half a file must be removed.
async fn to_the_end(request: Request, next: Next) -> Response {
    tokio::spawn(next.run(request)).await.unwrap_or_else(|_| {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the controller is stopping").into_response()
    })
}

/// As [`to_the_end`], but the client waits only so long for it.
async fn in_time(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let limit = Duration::from_millis(app.config.api.request_timeout_ms);
    tokio::time::timeout(limit, to_the_end(request, next)).await.unwrap_or_else(|_| {
        let detail = format!("there is no answer after {} ms; what was asked for may still be done", limit.as_millis());
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", detail).into_response()
    })
}

async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    app.metrics.api_answered(response.status().as_u16());
    response
}

fn after_panic(panic: &(dyn Any + Send)) -> Response {
    let reason = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(reason, "a request handler panicked");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the controller could not do it; its log says why")
        .into_response()
}

/// Gives errors that came from the router or a library the form of all others; their headers stay.
async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let is_problem =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes() == b"application/problem+json");
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let error = if status == StatusCode::NOT_FOUND {
        ApiError::new(
            status,
            "unknown-path",
            "there is nothing under this path: /api/v1/openapi.json lists what there is",
        )
    } else if status == StatusCode::METHOD_NOT_ALLOWED {
        ApiError::new(status, "method-not-allowed", "the path does not take this method: see the header Allow")
    } else {
        ApiError::new(status, "refused", status.canonical_reason().unwrap_or("the request was refused"))
    };
    let (problem, body) = error.into_response().into_parts();
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.extend(problem.headers);
    Response::from_parts(parts, body)
}
