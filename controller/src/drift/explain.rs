//! Why a column counts as drifted, and in which sense: the cells that moved, the devices that contribute, since when, what labels say.
//!
//! Windows are read twice: once for all columns by step of time, which add up to the whole, and once for the counts that each device made
//! of the column that is explained.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_shared::api::{ColumnDrift, ConceptBasis, DriftExplanation, DriftGroup, Subject};
use muster_shared::drift::{Criteria, DeviceGroups, Surroundings, cell_changes, contribution, kind_of, sentence};
use muster_shared::ids::{BundleRef, DeviceId};
use muster_shared::quality::{ConceptDrift, concept_drift, concept_drift_since};
use muster_shared::sketch::LabelCounts;
use muster_shared::suppression::K_MIN;

use super::collect::{self, Collected, Key, Sums};
use super::{DriftError, Wish, scored};
use crate::clock;
use crate::content::Listed;
use crate::state::App;

/// Devices named at most.
const MAX_CONTRIBUTORS: usize = 10;
/// Values of a column that are looked at as the first ones, in whole steps of time.
const FIRST_VALUES: u64 = 200;

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

/// What is known of a group before its devices are looked at.
struct Finding {
    /// The column's position.
    at: usize,
    scored: ColumnDrift,
    group: DriftGroup,
    since_ms: Option<u64>,
    from_the_first: bool,
    concept: Vec<ConceptDrift>,
    concept_basis: ConceptBasis,
}

fn add_to(sum: &mut Vec<u64>, counts: &[u64]) {
    sum.resize(counts.len(), 0);
    sum.iter_mut().zip(counts).for_each(|(sum, n)| *sum = sum.saturating_add(*n));
}

/// The first of the last unbroken run of steps in which `column` (by its position) counted as drifted taken alone, if the last one did.
fn since(steps: &[&Sums], listed: &Listed, column: usize, criteria: &Criteria) -> Option<u64> {
    let mut since_ms = None;
    for sums in steps.iter().rev() {
        let scored = sums.counts.score_one(&listed.manifest.profile, column, criteria);
        if !scored.is_some_and(|column| column.drifted) {
            break;
        }
        since_ms = Some(sums.start_ms);
    }
    since_ms
}

/// Whether `column` had drifted in the first steps already, taken together until they hold [`FIRST_VALUES`]. Steps from before
/// `known_from_ms` may have had others before them that are not kept any more.
fn from_the_first(steps: &[&Sums], listed: &Listed, column: usize, criteria: &Criteria, known_from_ms: u64) -> bool {
    if steps.first().is_none_or(|first| first.start_ms < known_from_ms) {
        return false;
    }
    let mut first = DeviceGroups::default();
    for sums in steps {
        first.merge(&sums.counts);
        let scored = first.score_one(&listed.manifest.profile, column, criteria);
        if let Some(scored) = scored.filter(|scored| scored.n >= FIRST_VALUES) {
            return scored.drifted;
        }
    }
    false
}

fn added_up<'s>(steps: impl IntoIterator<Item = &'s &'s Sums>) -> Sums {
    let mut whole = Sums::default();
    steps.into_iter().for_each(|sums| whole.merge(sums));
    whole
}

/// What labels say of a group: against the reference's where it had any, otherwise the later half of the steps that have some against the
/// earlier half.
fn concept(steps: &[&Sums], whole: &Sums, listed: &Listed) -> (Vec<ConceptDrift>, ConceptBasis) {
    let profile = &listed.manifest.profile;
    let has_certainty = profile.columns.iter().any(|column| Subject::of(column) == Subject::Confidence);
    let without = if has_certainty { ConceptBasis::Certainty } else { ConceptBasis::Nothing };
    let rows = whole.labels.values().fold(0_u64, |sum, counts| sum.saturating_add(counts.total()));
    let Some(spec) = profile.labels.as_ref().filter(|_| rows >= K_MIN) else { return (Vec::new(), without) };
    let counts = |sums: &Sums| -> Vec<LabelCounts> { sums.labels.values().cloned().collect() };
    let (found, basis) = if spec.baseline.is_some() {
        let all = counts(whole);
        (concept_drift(spec, &all.iter().collect::<Vec<_>>()), ConceptBasis::LabelsAgainstReference)
    } else {
        let labelled: Vec<&Sums> = steps.iter().copied().filter(|sums| !sums.labels.is_empty()).collect();
        let (earlier, later) = labelled.split_at(labelled.len() / 2);
        let (earlier, later) = (counts(&added_up(earlier)), counts(&added_up(later)));
        let found = concept_drift_since(spec, &earlier.iter().collect::<Vec<_>>(), &later.iter().collect::<Vec<_>>());
        (found, ConceptBasis::LabelsAgainstEarlier)
    };
    let basis = if found.is_empty() { without } else { basis };
    (found, basis)
}

/// What each group wants explained: a column by its position, and as it is judged among all columns of all groups.
fn find(
    stepped: &Collected,
    column: Option<usize>,
    criteria: &Criteria,
    known_from_ms: u64,
) -> BTreeMap<String, Finding> {
    let listed = &stepped.listed;
    let mut steps: BTreeMap<&String, Vec<&Sums>> = BTreeMap::new();
    stepped.groups.iter().for_each(|(key, sums)| steps.entry(&key.group).or_default().push(sums));
    let whole: BTreeMap<Key, Sums> = steps
        .iter()
        .map(|(group, steps)| (Key { group: (*group).clone(), slice: None, step_ms: 0 }, added_up(steps)))
        .collect();
    let rank = |column: &ColumnDrift| (column.drifted, column.psi.unwrap_or(-1.0));
    let of = |(group, sums): (DriftGroup, &Sums)| {
        let moved_most = group
            .columns
            .iter()
            .enumerate()
            .max_by(|(_, a), (_, b)| rank(a).partial_cmp(&rank(b)).unwrap_or(std::cmp::Ordering::Equal));
        let at = column.or_else(|| moved_most.map(|(at, _)| at))?;
        let steps = steps.get(&group.group)?;
        let (concept, concept_basis) = concept(steps, sums, listed);
        let finding = Finding {
            at,
            scored: group.columns.get(at)?.clone(),
            since_ms: since(steps, listed, at, criteria),
            from_the_first: from_the_first(steps, listed, at, criteria, known_from_ms),
            concept,
            concept_basis,
            group,
        };
        Some((finding.group.group.clone(), finding))
    };
    scored(&whole, listed, criteria).into_iter().zip(whole.values()).filter_map(of).collect()
}

fn explained(
    listed: &Listed,
    group_by: Option<&str>,
    finding: Finding,
    devices: &ByDevice,
    criteria: &Criteria,
) -> Option<DriftExplanation> {
    let column = listed.manifest.profile.columns.get(finding.at)?;
    let reference = column.reference.cells();
    let mut current = vec![0; reference.len()];
    devices.values().for_each(|counts| add_to(&mut current, counts));
    let mut contributors: Vec<_> =
        devices.iter().filter_map(|(device, own)| contribution(device, &reference, &current, own)).collect();
    contributors.sort_by(|a, b| b.contribution.total_cmp(&a.contribution));
    contributors.truncate(MAX_CONTRIBUTORS);
    let Finding { scored, group, since_ms, from_the_first, concept, concept_basis, .. } = finding;
    let surroundings = Surroundings {
        labels: &concept,
        missing_limit: group.quality.as_ref().and_then(|quality| quality.exceeded(&column.name)),
        from_the_first,
        inputs_moved: group.columns.iter().any(|column| column.drifted && column.subject == Subject::Input),
    };
    let kind = kind_of(&scored, &surroundings, criteria);
    let count = u32::try_from(devices.len()).unwrap_or(u32::MAX);
    Some(DriftExplanation {
        bundle: listed.bundle.clone(),
        group_by: group_by.map(str::to_owned),
        devices: count,
        sentence: sentence(&scored, kind, &surroundings, count),
        kind,
        cells: cell_changes(column, &reference, &current),
        contributors,
        since_ms,
        column: scored,
        group: group.group,
        concept,
        concept_basis,
    })
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
    let wish = Wish { by_window: true, by_slice: false, labels: true, ..question.wish };
    let stepped = collect::collect(app, bundle, &wish).await?;
    let listed = Arc::clone(&stepped.listed);
    let position = |name: String| {
        let found = listed.manifest.profile.columns.iter().position(|column| column.name == name);
        found.ok_or_else(|| DriftError::UnknownColumn { bundle: listed.bundle.clone(), column: name })
    };
    let column = question.column.map(position).transpose()?;
    // Whoever leaves out what came before, or has it no more, cannot tell the first windows. Windows go one by one as they
    // get old, so those of the last tenth of that time may be what is left of longer ones.
    let retention_ms = app.config.telemetry.retention_ms;
    let kept_ms = clock::now_ms().saturating_sub(retention_ms - retention_ms / 10);
    let known_from_ms = if wish.since_ms > 0 { u64::MAX } else { kept_ms };
    let findings = tokio::task::spawn_blocking(move || find(&stepped, column, &criteria, known_from_ms));
    let mut findings = findings.await.map_err(|_| DriftError::Interrupted)?;
    let mut counts: BTreeMap<String, ByDevice> = BTreeMap::new();
    collect::each(app, &listed, &wish, |group, device, window| {
        let sketch = findings.get(&group).and_then(|finding| window.columns.get(finding.at));
        if let Some(sketch) = sketch {
            let devices = counts.entry(group).or_default();
            add_to(devices.entry(device.clone()).or_default(), &sketch.cells());
        }
        Ok(())
    })
    .await?;
    let explained = tokio::task::spawn_blocking(move || {
        let of = |(group, devices): (String, ByDevice)| {
            explained(&listed, wish.group_by.as_deref(), findings.remove(&group)?, &devices, &criteria)
        };
        counts.into_iter().filter_map(of).collect()
    });
    explained.await.map_err(|_| DriftError::Interrupted)
}
