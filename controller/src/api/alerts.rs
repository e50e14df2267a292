//! Alerts, their rules, silences and receivers.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use muster_shared::alert::{
    Alert, AlertState, ApplyRules, CreateSilence, ReceiverTest, ReceiverView, RuleView, Severity, Silence,
};
use muster_shared::api::{ActionReason, Page, Problem};
use muster_shared::ids::RuleName;
use muster_shared::limits::bounded_text;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Json, Operator, OptionalJson, Parameters, Segments, Viewer};
use super::paging::{page, page_size};
use crate::alerts::{self, DeskError};
use crate::problem::{ApiError, ApiResult};
use crate::state::App;

impl From<DeskError> for ApiError {
    fn from(error: DeskError) -> Self {
        match error {
            DeskError::Unknown(_) => Self::unknown("unknown-alert-thing", error),
            DeskError::Rule(_) => Self::unacceptable("invalid-rule", error),
            DeskError::Silence(_) => Self::unacceptable("invalid-silence", error),
            DeskError::TooMany(_) => Self::conflict("too-many", error),
            DeskError::Standing(_) => Self::conflict("not-possible-now", error),
            DeskError::Store(error) => error.into(),
        }
    }
}

/// Which alerts to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListAlerts {
    /// Only in this state.
    state: Option<AlertState>,
    /// Only this bad or worse.
    min_severity: Option<Severity>,
    /// Only of this rule.
    #[param(value_type = Option<String>)]
    rule: Option<RuleName>,
    /// Alerts a page has at most.
    limit: Option<usize>,
    /// Where the page starts: `next_cursor` of the one before.
    cursor: Option<String>,
}

/// Lists alerts, those that are over included for a while, in order of their fingerprints.
#[utoipa::path(
    get, path = "/api/v1/alerts", tag = "alerts", params(ListAlerts),
    responses((status = 200, description = "A page of alerts", body = Page<Alert>)),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(wish): Parameters<ListAlerts>,
) -> ApiResult<axum::Json<Page<Alert>>> {
    let size = page_size(wish.limit);
    let wanted = |alert: &Alert| {
        wish.state.is_none_or(|state| alert.state == state)
            && wish.min_severity.is_none_or(|least| alert.severity >= least)
            && wish.rule.as_ref().is_none_or(|rule| alert.rule == *rule)
            && wish.cursor.as_ref().is_none_or(|cursor| alert.fingerprint > *cursor)
    };
    let mut found = app.alerts.list(wanted).await;
    found.truncate(size.saturating_add(1));
    Ok(axum::Json(page(found, size, |alert| alert.fingerprint.clone())))
}

/// Shows one alert.
#[utoipa::path(
    get, path = "/api/v1/alerts/{fingerprint}", tag = "alerts", params(("fingerprint" = String, Path)),
    responses((status = 200, description = "The alert", body = Alert), (status = 404, description = "There is none", body = Problem)),
)]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Segments(fingerprint): Segments<String>,
) -> ApiResult<axum::Json<Alert>> {
    Ok(axum::Json(app.alerts.show(&fingerprint).await?))
}

/// Notes that the caller looks after an alert, until it is over.
#[utoipa::path(
    post, path = "/api/v1/alerts/{fingerprint}/ack", tag = "alerts", params(("fingerprint" = String, Path)),
    request_body = ActionReason,
    responses(
        (status = 200, description = "The alert", body = Alert),
        (status = 404, description = "There is none", body = Problem),
        (status = 409, description = "It is over", body = Problem),
    ),
)]
pub(super) async fn acknowledge(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(fingerprint): Segments<String>,
    OptionalJson(why): OptionalJson<ActionReason>,
) -> ApiResult<axum::Json<Alert>> {
    let reason = why.reason.as_deref().map(bounded_text);
    Ok(axum::Json(alerts::acknowledge(&app, &fingerprint, &caller.name, reason).await?))
}

/// Lists silences, those that are over included for a while.
#[utoipa::path(
    get, path = "/api/v1/alerts/silences", tag = "alerts",
    responses((status = 200, description = "All silences", body = Page<Silence>)),
)]
pub(super) async fn silences(State(app): State<Arc<App>>, _caller: Viewer) -> ApiResult<axum::Json<Page<Silence>>> {
    Ok(axum::Json(Page { items: app.alerts.silences().await, next_cursor: None }))
}

/// Keeps alerts from receivers for a while. They change their state all the same.
#[utoipa::path(
    post, path = "/api/v1/alerts/silences", tag = "alerts", request_body = CreateSilence,
    responses(
        (status = 201, description = "The silence", body = Silence),
        (status = 422, description = "It makes no sense", body = Problem),
    ),
)]
pub(super) async fn silence(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Json(wish): Json<CreateSilence>,
) -> ApiResult<(StatusCode, axum::Json<Silence>)> {
    Ok((StatusCode::CREATED, axum::Json(alerts::silence(&app, wish, &caller.name).await?)))
}

/// Ends a silence now.
#[utoipa::path(
    post, path = "/api/v1/alerts/silences/{id}/end", tag = "alerts", params(("id" = String, Path)),
    responses(
        (status = 200, description = "The silence", body = Silence),
        (status = 404, description = "There is none", body = Problem),
        (status = 409, description = "It is over", body = Problem),
    ),
)]
pub(super) async fn end_silence(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(id): Segments<String>,
) -> ApiResult<axum::Json<Silence>> {
    Ok(axum::Json(alerts::end_silence(&app, &id, &caller.name).await?))
}

/// Lists every rule in force, built-in ones and those that are not enabled included.
#[utoipa::path(
    get, path = "/api/v1/alerts/rules", tag = "alerts",
    responses((status = 200, description = "All rules", body = Page<RuleView>)),
)]
pub(super) async fn rules(State(app): State<Arc<App>>, _caller: Viewer) -> ApiResult<axum::Json<Page<RuleView>>> {
    let items = app.alerts.rules(app.config.alerts.built_in_rules).await;
    Ok(axum::Json(Page { items, next_cursor: None }))
}

/// Takes rules over, all or none: each is new or takes the place of the one of its name. Gives every rule in force.
#[utoipa::path(
    post, path = "/api/v1/alerts/rules", tag = "alerts", request_body = ApplyRules,
    responses(
        (status = 200, description = "All rules", body = Page<RuleView>),
        (status = 422, description = "One makes no sense", body = Problem),
    ),
)]
pub(super) async fn apply_rules(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Json(wish): Json<ApplyRules>,
) -> ApiResult<axum::Json<Page<RuleView>>> {
    let items = alerts::apply_rules(&app, wish.rules, &caller.name).await?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}

/// Takes an own rule away. Gives every rule in force.
#[utoipa::path(
    delete, path = "/api/v1/alerts/rules/{name}", tag = "alerts", params(("name" = String, Path)),
    responses((status = 200, description = "All rules", body = Page<RuleView>), (status = 404, description = "There is none", body = Problem)),
)]
pub(super) async fn delete_rule(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(name): Segments<RuleName>,
) -> ApiResult<axum::Json<Page<RuleView>>> {
    let items = alerts::delete_rule(&app, &name, &caller.name).await?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}

/// Lists who is told, as the controller's configuration has it.
#[utoipa::path(
    get, path = "/api/v1/alerts/receivers", tag = "alerts",
    responses((status = 200, description = "All receivers", body = Page<ReceiverView>)),
)]
pub(super) async fn receivers(
    State(app): State<Arc<App>>,
    _caller: Viewer,
) -> ApiResult<axum::Json<Page<ReceiverView>>> {
    Ok(axum::Json(Page { items: app.alerts.receivers(), next_cursor: None }))
}

/// Sends a receiver a message that says it is a test, and tells what came of it.
#[utoipa::path(
    post, path = "/api/v1/alerts/receivers/{name}/test", tag = "alerts", params(("name" = String, Path)),
    responses(
        (status = 200, description = "Whether it was taken", body = ReceiverTest),
        (status = 404, description = "There is no such receiver", body = Problem),
    ),
)]
pub(super) async fn test_receiver(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segments(name): Segments<String>,
) -> ApiResult<axum::Json<ReceiverTest>> {
    Ok(axum::Json(alerts::test_receiver(&app, &name, &caller.name).await?))
}
