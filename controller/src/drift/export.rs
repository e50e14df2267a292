//! Counts by group, step of time and column, and sketches of raw values, for notebooks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_shared::api::{GroupQuantiles, QuantileExport, WindowCounts, WindowExport};
use muster_shared::drift::cell_names;
use muster_shared::ids::BundleRef;

use super::{DriftError, Wish, collect};
use crate::state::App;

/// Everything that reports rest on, short of single devices.
///
/// # Errors
/// [`DriftError`].
pub(crate) async fn export(app: &App, bundle: &BundleRef, wish: Wish) -> Result<WindowExport, DriftError> {
    let collected = collect::collect(app, bundle, &wish).await?;
    let profile = collected.profile();
    let cells = profile
        .columns
        .iter()
        .map(|column| (column.name.clone(), cell_names(column).into_iter().zip(column.reference.cells()).collect()));
    let windows = collected.groups.iter().filter(|(_, sums)| !sums.suppressed).flat_map(|(key, sums)| {
        let totals = profile.columns.iter().zip(sums.counts.totals(profile));
        totals.map(|(column, counts)| WindowCounts {
            group: key.group.clone(),
            slice: key.slice.clone(),
            start_ms: sums.start_ms,
            end_ms: sums.end_ms,
            devices: u32::try_from(sums.counts.devices()).unwrap_or(u32::MAX),
            column: column.name.clone(),
            counts,
        })
    });
    Ok(WindowExport {
        bundle: collected.listed.bundle.clone(),
        profile: collected.listed.profile_digest,
        group_by: wish.group_by,
        cells: cells.collect(),
        windows: windows.collect(),
    })
}

/// The quantile sketches of every group, and step of time if asked for.
///
/// # Errors
/// [`DriftError`].
pub(crate) async fn quantiles(app: &App, bundle: &BundleRef, wish: Wish) -> Result<QuantileExport, DriftError> {
    let collected = collect::collect(app, bundle, &wish).await?;
    let columns = &collected.profile().columns;
    let sketches = collected.groups.iter().flat_map(|(key, sums)| {
        sums.quantiles.iter().filter_map(|(at, sketch)| {
            Some(GroupQuantiles {
                group: key.group.clone(),
                start_ms: sums.start_ms,
                end_ms: sums.end_ms,
                devices: u32::try_from(sums.counts.devices()).unwrap_or(u32::MAX),
                column: columns.get(at)?.name.clone(),
                n: sketch.n(),
                rank_error: sketch.rank_error(),
                sketch: STANDARD.encode(sketch.to_bytes()),
            })
        })
    });
    Ok(QuantileExport {
        bundle: collected.listed.bundle.clone(),
        group_by: wish.group_by,
        by_window: wish.by_window,
        sketches: sketches.collect(),
    })
}
