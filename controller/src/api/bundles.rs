//! Bundles: signed manifests whose files are all there.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use muster_shared::api::{BundleView, Page, Problem, PushBundle};
use muster_shared::bundle::Manifest;
use muster_shared::ids::{BundleRef, Digest};
use muster_shared::trust::{Envelope, TrustError};
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Json, Operator, Parameters, Segments, Viewer};
use super::paging::{page, page_size};
use crate::clock;
use crate::events::NewEvent;
use crate::problem::{ApiError, ApiResult};
use crate::state::App;
use crate::store::records::{BundleRecord, manifest_key};
use crate::store::{Expect, Records, StoreError, Stored, Table};
use crate::trust;

/// Missing files named in one answer.
const MAX_NAMED: usize = 10;

/// Which bundles to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListBundles {
    /// Bundles a page has at most.
    limit: Option<usize>,
    /// Where the page starts: `next_cursor` of the one before.
    #[param(value_type = Option<String>)]
    cursor: Option<BundleRef>,
}

fn view(record: BundleRecord, with_manifest: bool) -> BundleView {
    BundleView {
        manifest_digest: record.manifest_digest,
        bundle: record.bundle,
        pushed_at_ms: record.pushed_at_ms,
        total_bytes: record.total_bytes,
        track: record.manifest.track(),
        manifest: with_manifest.then_some(record.manifest),
    }
}

/// Takes a bundle in.
#[utoipa::path(
    post, path = "/api/v1/bundles", tag = "bundles", request_body = PushBundle,
    responses(
        (status = 201, description = "It is taken in", body = BundleView),
        (status = 200, description = "It was there already; signatures that it did not have are taken", body = BundleView),
        (status = 409, description = "Files are missing, the version is taken, or no root document is there yet", body = Problem),
        (status = 422, description = "The manifest is not trustworthy", body = Problem),
    ),
)]
pub(super) async fn push(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Json(wish): Json<PushBundle>,
) -> ApiResult<(StatusCode, axum::Json<BundleView>)> {
    let now_ms = clock::now_ms();
    let Some(root) = trust::current(&app.records).await? else {
        let detail =
            "no root document has been pushed yet: without one nobody can tell whether the manifest is genuine";
        return Err(ApiError::conflict("no-root", detail));
    };
    let refuse = |error: TrustError| ApiError::unacceptable("untrusted-manifest", error);
    root.check_date(now_ms).map_err(refuse)?;
    let verified = root.verify_any_manifest(&wish.manifest, now_ms).map_err(refuse)?;
    let bundle = verified.manifest.bundle();
    let key = bundle.to_string();
    if let Some(known) = app.records.get::<BundleRecord>(Table::Bundles, &key).await? {
        return known_already(&app, known, &verified.digest, wish.manifest, caller.name).await;
    }
    check_files(&app, &verified.manifest).await?;
    let record = BundleRecord {
        manifest_digest: verified.digest,
        bundle: bundle.clone(),
        pushed_at_ms: now_ms,
        total_bytes: verified.manifest.total_bytes(),
        envelope: wish.manifest,
        manifest: verified.manifest,
    };
    let (event, _held) = app.events.prepare(NewEvent {
        kind: "bundle.pushed".into(),
        actor: caller.name.clone(),
        bundle: Some(bundle.clone()),
        detail: format!("manifest {}, {} bytes", record.manifest_digest.short(), record.total_bytes),
        ..NewEvent::default()
    })?;
    let changes = vec![
        Records::put(Table::Bundles, key.as_str(), Expect::Absent, &record)?,
        Records::put(Table::Meta, manifest_key(&record.manifest_digest), Expect::Anything, &bundle)?,
        event,
    ];
    match app.records.commit(changes).await {
        Ok(()) => {}
        Err(StoreError::Conflict { .. }) => {
            let known = app.records.get::<BundleRecord>(Table::Bundles, &key).await?;
            let known = known.ok_or_else(changed_meanwhile)?;
            return known_already(&app, known, &record.manifest_digest, record.envelope, caller.name).await;
        }
        Err(error) => return Err(error.into()),
    }
    app.fleet.update_bundle(record.manifest_digest, &bundle);
    tracing::info!(%bundle, manifest = %record.manifest_digest, "a bundle was taken in");
    Ok((StatusCode::CREATED, axum::Json(view(record, true))))
}

fn changed_meanwhile() -> ApiError {
    ApiError::conflict("changed-meanwhile", "the bundle was changed meanwhile: try again")
}

/// A version that is there already never changes its content. It may come with other signatures, which count under the root document
/// in force: they take the place of those it came with, so that devices go on taking it when the keys have changed.
async fn known_already(
    app: &App,
    known: Stored<BundleRecord>,
    digest: &Digest,
    envelope: Envelope,
    actor: String,
) -> ApiResult<(StatusCode, axum::Json<BundleView>)> {
    let Stored { version, value: record } = known;
    if record.manifest_digest != *digest {
        let detail = format!(
            "{} is there already with other content (manifest {}): a version never changes, so give this one a new version",
            record.bundle,
            record.manifest_digest.short()
        );
        return Err(ApiError::conflict("version-exists", detail));
    }
    if record.envelope == envelope {
        app.catalogue.forget(digest);
        return Ok((StatusCode::OK, axum::Json(view(record, true))));
    }
    let record = BundleRecord { envelope, ..record };
    let (event, _held) = app.events.prepare(NewEvent {
        kind: "bundle.signed-again".into(),
        actor,
        bundle: Some(record.bundle.clone()),
        detail: format!("manifest {}, other signatures", record.manifest_digest.short()),
        ..NewEvent::default()
    })?;
    let change = Records::put(Table::Bundles, record.bundle.to_string(), Expect::Version(version), &record)?;
    match app.records.commit(vec![change, event]).await {
        Ok(()) => {}
        Err(StoreError::Conflict { .. }) => return Err(changed_meanwhile()),
        Err(error) => return Err(error.into()),
    }
    app.catalogue.forget(digest);
    tracing::info!(bundle = %record.bundle, manifest = %digest, "a bundle was signed again");
    Ok((StatusCode::OK, axum::Json(view(record, true))))
}

async fn check_files(app: &App, manifest: &Manifest) -> ApiResult<()> {
    let mut missing = Vec::new();
    for file in &manifest.files {
        match app.blobs.touch(&file.sha256).await? {
            Some(length) if length == file.length => {}
            Some(length) => {
                let detail = format!(
                    "file {:?} has {} bytes in the manifest and {length} bytes in truth: build the bundle again",
                    file.path, file.length
                );
                return Err(ApiError::unacceptable("untrusted-manifest", detail));
            }
            None => missing.push(file.sha256.to_string()),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let more = missing.len().saturating_sub(MAX_NAMED);
    let mut detail = format!(
        "files are missing, upload them first with PUT /api/v1/files/SHA256: {}",
        missing[..missing.len().min(MAX_NAMED)].join(", ")
    );
    if more > 0 {
        detail.push_str(&format!(" and {more} more"));
    }
    Err(ApiError::conflict("missing-files", detail))
}

/// Lists bundles, without their manifests, in order of name and version as text.
#[utoipa::path(
    get, path = "/api/v1/bundles", tag = "bundles", params(ListBundles),
    responses((status = 200, description = "A page of bundles", body = Page<BundleView>)),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Parameters(wish): Parameters<ListBundles>,
) -> ApiResult<axum::Json<Page<BundleView>>> {
    let size = page_size(wish.limit);
    let after = wish.cursor.map(|bundle| bundle.to_string());
    let found = app.records.scan::<BundleRecord>(Table::Bundles, after.as_deref(), "", size + 1).await?;
    let views = found.into_iter().map(|(_, record)| view(record.value, false)).collect();
    Ok(axum::Json(page(views, size, |bundle: &BundleView| bundle.bundle.to_string())))
}

/// Shows one bundle with its manifest.
#[utoipa::path(
    get, path = "/api/v1/bundles/{name}/{version}", tag = "bundles",
    params(("name" = String, Path, description = "The model's name"), ("version" = String, Path, description = "The version")),
    responses(
        (status = 200, description = "The bundle", body = BundleView),
        (status = 404, description = "There is no such bundle", body = Problem),
    ),
)]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    _caller: Viewer,
    Segments((name, version)): Segments<(String, String)>,
) -> ApiResult<axum::Json<BundleView>> {
    let bundle: BundleRef =
        format!("{name}@{version}").parse().map_err(|error| ApiError::invalid("invalid-path", error))?;
    let record = app
        .records
        .get::<BundleRecord>(Table::Bundles, &bundle.to_string())
        .await?
        .ok_or_else(|| ApiError::unknown("unknown-bundle", format!("there is no bundle {bundle}")))?;
    Ok(axum::Json(view(record.value, true)))
}
