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

use muster_shared::api::{ColumnDrift, ColumnQuantiles, DriftGroup, DriftReport};
use muster_shared::drift::{Criteria, adjust, adjust_inputs};
use muster_shared::ids::BundleRef;
use muster_shared::profile::Profile;
use muster_shared::sketch::{QuantileSketch, SHOWN_RANKS};
use muster_shared::suppression::{K_MIN, worst_first};

use crate::content::Listed;
use crate::state::App;
use crate::windows::{self, MAX_GROUPS, ReportError};
use collect::{Key, Sums};

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
    /// Whether labels are added up too.
    pub(crate) labels: bool,
}

fn show(key: &Key, sums: &Sums, listed: &Listed, criteria: &Criteria) -> DriftGroup {
    let (profile, schema) = (&listed.manifest.profile, listed.manifest.schema.as_ref());
    let whole = DriftGroup {
        group: key.group.clone(),
        slice: key.slice.clone(),
        suppressed: sums.suppressed,
        start_ms: sums.start_ms,
        end_ms: sums.end_ms,
        devices: 0,
        windows: 0,
        columns: Vec::new(),
        quality: None,
        outliers: None,
        quantiles: Vec::new(),
        objectives: Vec::new(),
    };
    if sums.suppressed {
        return whole;
    }
    let is_slice = key.slice.is_some();
    DriftGroup {
        devices: u32::try_from(sums.counts.devices()).unwrap_or(u32::MAX),
        windows: sums.windows,
        columns: sums.counts.score(profile, criteria),
        quality: sums.inputs.quality(schema, criteria).filter(|_| !is_slice),
        outliers: sums.inputs.outliers(profile, criteria).filter(|_| !is_slice),
        quantiles: column_quantiles(sums, profile),
        ..whole
    }
}

/// Scores groups that are looked at together, in their order.
fn scored<'g>(
    groups: impl IntoIterator<Item = (&'g Key, &'g Sums)>,
    listed: &Listed,
    criteria: &Criteria,
) -> Vec<DriftGroup> {
    let mut groups: Vec<DriftGroup> = groups.into_iter().map(|(key, sums)| show(key, sums, listed, criteria)).collect();
    adjust(groups.iter_mut().flat_map(|group| &mut group.columns), criteria.alpha);
    adjust_inputs(&mut groups, criteria.alpha);
    groups
}

/// How bad a slice is: by how much its columns exceed what chance makes of them, those that have drifted before all others.
fn badness(group: &DriftGroup) -> Option<f64> {
    let of = |column: &ColumnDrift| {
        let critical = column.critical.filter(|critical| *critical > 0.0).unwrap_or(f64::INFINITY);
        let times = column.psi? / critical;
        // Between 0 and 1, and 1 more for what has drifted.
        Some(f64::from(u8::from(column.drifted)) + times / (1.0 + times))
    };
    group.columns.iter().filter_map(of).reduce(f64::max)
}

/// Puts the slices of each group after it, the worst first.
fn order(groups: &mut [DriftGroup]) {
    for group in groups.chunk_by_mut(|one, other| one.group == other.group) {
        let whole = group.iter().take_while(|part| part.slice.is_none()).count();
        worst_first(&mut group[whole..], badness);
    }
}

fn column_quantiles(sums: &Sums, profile: &Profile) -> Vec<ColumnQuantiles> {
    let of_column = |(at, sketch): (usize, &QuantileSketch)| {
        Some(ColumnQuantiles {
            column: profile.columns.get(at)?.name.clone(),
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
    let mut counts = objectives::Counts::new(&listed);
    let tally = collect::tally(app, &listed, &wish, |window| counts.add(app, &wish, window)).await?;
    let mut objectives = counts.into_groups()?;
    let mut report = score(tally).await?;
    if !wish.by_window {
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
    let (wish, collected) = tally.into_parts();
    let criteria = Criteria::default();
    // Scoring thousands of columns takes a while, during which others are served.
    let scored = tokio::task::spawn_blocking(move || {
        let mut groups = scored(&collected.groups, &collected.listed, &criteria);
        order(&mut groups);
        (collected.listed, groups)
    });
    let (listed, groups) = scored.await.map_err(|_| DriftError::Interrupted)?;
    Ok(DriftReport {
        bundle: listed.bundle.clone(),
        profile: listed.profile_digest,
        group_by: wish.group_by,
        by_window: wish.by_window,
        alpha: criteria.alpha,
        min_effect: criteria.min_effect,
        since_ms: wish.since_ms,
        k_min: K_MIN,
        groups,
    })
}
