//! How far a bundle's inputs and answers have moved from its reference sample.
//!
//! Sketches of every device and window are added up exactly, for each group of devices and, if asked for, step of time apart.
//! The device is the statistical unit: how much all the counts of a group are worth is estimated from how devices, or random
//! groups of them, differ. Scores and verdicts are `muster_shared::drift`'s. Nothing here stops a rollout.

mod collect;
mod explain;
mod export;
mod objectives;
#[cfg(test)]
mod tests;

use muster_shared::api::{ColumnQuantiles, DriftGroup, DriftReport};
use muster_shared::drift::{Criteria, adjust};
use muster_shared::ids::BundleRef;
use muster_shared::sketch::{QuantileSketch, SHOWN_RANKS};

use crate::state::App;
use crate::windows::{self, MAX_GROUPS, ReportError};
use collect::{Collected, Sums};

pub(crate) use collect::Tally;
pub(crate) use explain::{Question, explain};
pub(crate) use export::{export, quantiles};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriftError {
    /// There is no such bundle, or its windows cannot be read.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// Its profile has no such column.
    #[error("the profile of {bundle} has no column {column:?}")]
    UnknownColumn {
        /// The bundle.
        bundle: BundleRef,
        /// What was asked for.
        column: String,
    },
    /// The label has too many values.
    #[error("there are more than {MAX_GROUPS} groups: group by a label with fewer values, or tell fewer things apart")]
    TooManyGroups,
    /// The computation was cut off.
    #[error("the scores could not be computed")]
    Interrupted,
}

/// What a report is to tell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    /// The label to group devices by; the whole fleet otherwise.
    pub(crate) group_by: Option<String>,
    /// Windows that started before this are left out, in milliseconds since the Unix epoch.
    pub(crate) since_ms: u64,
    /// Whether steps of time are told apart.
    pub(crate) by_window: bool,
    /// Whether slices of rows are told apart, as far as enough rows are in them.
    pub(crate) by_slice: bool,
}

fn show(key: collect::Key, sums: &Sums, collected: &Collected, criteria: &Criteria) -> DriftGroup {
    DriftGroup {
        group: key.group,
        slice: key.slice,
        start_ms: sums.start_ms,
        end_ms: sums.end_ms,
        devices: u32::try_from(sums.counts.devices()).unwrap_or(u32::MAX),
        windows: sums.windows,
        columns: sums.counts.score(collected.profile(), criteria),
        quantiles: column_quantiles(sums, collected),
        objectives: Vec::new(),
    }
}

fn column_quantiles(sums: &Sums, collected: &Collected) -> Vec<ColumnQuantiles> {
    let of_column = |(at, sketch): (usize, &QuantileSketch)| {
        Some(ColumnQuantiles {
            column: collected.profile().columns.get(at)?.name.clone(),
            n: sketch.n(),
            rank_error: sketch.rank_error(),
            quantiles: SHOWN_RANKS.into_iter().zip(sketch.quantiles(&SHOWN_RANKS)?).collect(),
        })
    };
    sums.quantiles.iter().filter_map(of_column).collect()
}

/// Compares what devices saw with the bundle's reference.
///
/// # Errors
/// [`DriftError`].
pub(crate) async fn report(app: &App, bundle: &BundleRef, wish: Wish) -> Result<DriftReport, DriftError> {
    let listed = windows::find(app, bundle).await?;
    let mut report = score(collect::tally(app, bundle, &wish).await?).await?;
    if !wish.by_window {
        let mut objectives = objectives::of(app, &listed, &wish).await?;
        for group in report.groups.iter_mut().filter(|group| group.slice.is_none()) {
            group.objectives = objectives.remove(&group.group).unwrap_or_default().into();
        }
    }
    Ok(report)
}

/// Scores what was added up.
///
/// # Errors
/// [`DriftError::Interrupted`].
pub(crate) async fn score(tally: Tally) -> Result<DriftReport, DriftError> {
    let (wish, mut collected) = tally.into_parts();
    let criteria = Criteria::default();
    // Scoring thousands of columns takes a while, during which others are served.
    let scored = tokio::task::spawn_blocking(move || {
        let sums = std::mem::take(&mut collected.groups);
        let mut groups: Vec<DriftGroup> =
            sums.into_iter().map(|(key, sums)| show(key, &sums, &collected, &criteria)).collect();
        adjust(groups.iter_mut().flat_map(|group| &mut group.columns), criteria.alpha);
        (collected, groups)
    });
    let (collected, groups) = scored.await.map_err(|_| DriftError::Interrupted)?;
    Ok(DriftReport {
        bundle: collected.listed.bundle.clone(),
        profile: collected.listed.profile_digest,
        group_by: wish.group_by,
        by_window: wish.by_window,
        alpha: criteria.alpha,
        min_effect: criteria.min_effect,
        since_ms: wish.since_ms,
        groups,
    })
}
