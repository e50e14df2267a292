//! Why a column counts as drifted: the cells that moved, the devices that contribute, since when.

use std::collections::BTreeMap;

use muster_shared::api::{ColumnDrift, DriftExplanation, DriftGroup};
use muster_shared::drift::{Criteria, adjust, cell_changes, contribution, kind_of, sentence};
use muster_shared::ids::{BundleRef, DeviceId};
use muster_shared::profile::Column;

use super::collect::{self, Collected};
use super::{DriftError, Wish, show};
use crate::state::App;

/// Devices named at most.
const MAX_CONTRIBUTORS: usize = 10;

/// What is to be explained.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// Groups, and since when. Steps of time are told apart in any case, slices are not.
    pub(crate) wish: Wish,
    /// The column; the one that moved most in each group otherwise.
    pub(crate) column: Option<String>,
}

/// The counts of one column, of each device apart: this grows with devices, as it was asked for.
type ByDevice = BTreeMap<DeviceId, Vec<u64>>;

fn add_to(sum: &mut Vec<u64>, counts: &[u64]) {
    sum.resize(counts.len(), 0);
    sum.iter_mut().zip(counts).for_each(|(sum, n)| *sum = sum.saturating_add(*n));
}

/// The first of the last unbroken run of steps in which `column` (by its position) counted as drifted taken alone, if the last one did.
fn since(stepped: &Collected, group: &str, column: usize, criteria: &Criteria) -> Option<u64> {
    let mut since_ms = None;
    for (_, sums) in stepped.groups.iter().filter(|(key, _)| key.group == group).rev() {
        if !sums.counts.score_one(stepped.profile(), column, criteria).is_some_and(|column| column.drifted) {
            break;
        }
        since_ms = Some(sums.start_ms);
    }
    since_ms
}

/// What each group wants explained: a column by its position, and as it is judged among all columns of all groups.
fn chosen(
    whole: &Collected,
    question: &Question,
    criteria: &Criteria,
) -> Result<BTreeMap<String, (usize, ColumnDrift)>, DriftError> {
    let columns = &whole.profile().columns;
    let named =
        match &question.column {
            None => None,
            Some(name) => Some(columns.iter().position(|column| column.name == *name).ok_or_else(|| {
                DriftError::UnknownColumn { bundle: whole.listed.bundle.clone(), column: name.clone() }
            })?),
        };
    let mut groups: Vec<_> = whole.groups.iter().map(|(key, sums)| show(key.clone(), sums, whole, criteria)).collect();
    adjust(groups.iter_mut().flat_map(|group| &mut group.columns), criteria.alpha);
    let rank = |column: &ColumnDrift| (column.drifted, column.psi.unwrap_or(-1.0));
    let of = |group: DriftGroup| {
        let moved_most = group
            .columns
            .iter()
            .enumerate()
            .max_by(|(_, a), (_, b)| rank(a).partial_cmp(&rank(b)).unwrap_or(std::cmp::Ordering::Equal));
        let at = named.or_else(|| moved_most.map(|(at, _)| at))?;
        Some((group.group, (at, group.columns.into_iter().nth(at)?)))
    };
    Ok(groups.into_iter().filter_map(of).collect())
}

fn explained(
    bundle: &BundleRef,
    question: &Question,
    column: &Column,
    group: &str,
    devices: &ByDevice,
    scored: ColumnDrift,
    criteria: &Criteria,
) -> DriftExplanation {
    let reference = column.reference.cells();
    let mut current = vec![0; reference.len()];
    devices.values().for_each(|counts| add_to(&mut current, counts));
    let mut contributors: Vec<_> =
        devices.iter().filter_map(|(device, own)| contribution(device, &reference, &current, own)).collect();
    contributors.sort_by(|a, b| b.contribution.total_cmp(&a.contribution));
    contributors.truncate(MAX_CONTRIBUTORS);
    let kind = kind_of(&scored, criteria.alpha, criteria.min_share_effect);
    let count = u32::try_from(devices.len()).unwrap_or(u32::MAX);
    DriftExplanation {
        bundle: bundle.clone(),
        group_by: question.wish.group_by.clone(),
        group: group.to_owned(),
        devices: count,
        sentence: sentence(&scored, kind, count),
        kind,
        cells: cell_changes(column, &reference, &current),
        contributors,
        since_ms: None,
        column: scored,
    }
}

/// Explains one column of every group.
///
/// # Errors
/// [`DriftError`].
pub(crate) async fn explain(
    app: &App,
    bundle: &BundleRef,
    question: Question,
) -> Result<Vec<DriftExplanation>, DriftError> {
    let criteria = Criteria::default();
    let question = Question { wish: Wish { by_window: false, by_slice: false, ..question.wish }, ..question };
    let whole = collect::collect(app, bundle, &question.wish).await?;
    let stepped = collect::collect(app, bundle, &Wish { by_window: true, ..question.wish.clone() }).await?;
    let chosen = chosen(&whole, &question, &criteria)?;
    let mut counts: BTreeMap<String, ByDevice> = BTreeMap::new();
    collect::each(app, &whole.listed, &question.wish, |group, device, window| {
        if let Some(sketch) = chosen.get(&group).and_then(|(column, _)| window.columns.get(*column)) {
            let devices = counts.entry(group).or_default();
            add_to(devices.entry(device.clone()).or_default(), &sketch.cells());
        }
        Ok(())
    })
    .await?;
    let of = |(group, devices): (String, ByDevice)| {
        let (at, scored) = chosen.get(&group)?.clone();
        let column = whole.profile().columns.get(at)?;
        let mut explanation = explained(bundle, &question, column, &group, &devices, scored, &criteria);
        explanation.since_ms = since(&stepped, &group, at, &criteria);
        Some(explanation)
    };
    Ok(counts.into_iter().filter_map(of).collect())
}
