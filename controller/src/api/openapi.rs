//! The API's description of itself.

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{
    access, alerts, analysis, aside, authorities, bundles, card, collections, comparison, crl, devices, drift, enrol,
    events, explain, feedback, files, freezes, health, quality, renewal, revocation, rollouts, tokens, trust,
};

#[derive(OpenApi)]
#[openapi(
    info(title = "Muster controller", description = "Puts models on fleets of devices and keeps them honest there."),
    paths(
        health::healthz,
        health::readyz,
        health::metrics,
        document,
        enrol::enrol,
        renewal::renew,
        crl::show,
        access::create,
        access::list,
        access::revoke,
        tokens::create,
        tokens::list,
        tokens::provisioning,
        tokens::revoke,
        devices::list,
        devices::show,
        devices::label,
        revocation::revoke,
        revocation::reinstate,
        aside::pin,
        aside::unpin,
        aside::release,
        authorities::show,
        authorities::rotate,
        authorities::retire,
        trust::show,
        trust::push,
        trust::prepare_director,
        trust::discard_director,
        files::take,
        files::give,
        bundles::push,
        bundles::list,
        bundles::show,
        card::show,
        rollouts::create,
        rollouts::list,
        rollouts::preview,
        rollouts::show,
        rollouts::evidence,
        explain::explain,
        rollouts::pause,
        rollouts::resume,
        rollouts::abort,
        rollouts::rollback,
        freezes::create,
        freezes::list,
        freezes::lift,
        rollouts::approve,
        rollouts::reject,
        rollouts::stop,
        rollouts::stop_all,
        rollouts::lift_stop,
        comparison::report,
        collections::open,
        collections::list,
        collections::show,
        collections::close,
        collections::delete,
        collections::take,
        collections::batches,
        collections::export,
        collections::labels,
        collections::put_labels,
        drift::report,
        drift::explain,
        drift::export,
        drift::quantiles,
        quality::report,
        feedback::push,
        feedback::list,
        analysis::push,
        analysis::list,
        analysis::show,
        analysis::delete,
        alerts::list,
        alerts::show,
        alerts::acknowledge,
        alerts::silences,
        alerts::silence,
        alerts::end_silence,
        alerts::rules,
        alerts::apply_rules,
        alerts::delete_rule,
        alerts::receivers,
        alerts::test_receiver,
        events::list,
    ),
    modifiers(&Bearer),
    security(("bearer" = [])),
)]
pub(super) struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// This description.
#[utoipa::path(
    get, path = "/api/v1/openapi.json", tag = "health", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value)),
)]
pub(super) async fn document() -> axum::Json<utoipa::openapi::OpenApi> {
    axum::Json(Description::openapi())
}
