//! What people ask of rollouts: make one, look at them, move one.

use muster_rollout::{BundleFacts, Fleet, OperatorAction, Rollout, plan};
use muster_shared::api::RolloutCard;
use muster_shared::ids::{BundleRef, Digest, RolloutId};
use muster_shared::rollout::{RolloutEvidence, RolloutPreview, RolloutSpec, RolloutStatus, RolloutView, SpecError};
use serde::{Deserialize, Serialize};

use super::freezes::Freezes;
use super::holders::Holders;
use super::schedule::number;
use super::{ExecutorError, StatusOnly, history, pass, stop};
use crate::analysis;
use crate::clock;
use crate::events::ACTOR_CONTROLLER;
use crate::fleet::reference_predictions;
use crate::state::App;
use crate::store::records::ROLLOUT_SEQUENCE_KEY;
use crate::store::{Expect, Records, StoreError, Stored, Table};
use crate::trust;

/// How often a change is tried when others change the same record.
pub(super) const ATTEMPTS: usize = 20;

/// What an idempotency key was used for.
#[derive(Debug, Serialize, Deserialize)]
struct KeyRecord {
    rollout: RolloutId,
    spec_sha256: Digest,
}

fn rollout_id(number: u64) -> Result<RolloutId, StoreError> {
    RolloutId::new(format!("r{number}")).map_err(|error| StoreError::Document {
        table: Table::Meta,
        key: ROLLOUT_SEQUENCE_KEY.into(),
        reason: error.to_string(),
    })
}

/// Finds the rollouts to be planned after a start, and ends those that a fleet-wide stop had yet to end.
pub(super) async fn find_active(app: &App) -> Result<(), ExecutorError> {
    stop::end_pending(app).await?;
    for (_, rollout) in app.records.all::<Rollout>(Table::Rollouts, "").await? {
        if rollout.value.needs_planning() {
            app.schedule.activate(&rollout.value.id);
        }
    }
    Ok(())
}

pub(super) async fn load(app: &App, id: &RolloutId) -> Result<Stored<Rollout>, ExecutorError> {
    let found = app.records.get::<Rollout>(Table::Rollouts, id.as_str()).await?;
    found.ok_or_else(|| ExecutorError::UnknownRollout(id.clone()))
}

/// What must be known of the bundle `reference`, which devices still trust.
async fn bundle_facts(app: &App, reference: &BundleRef) -> Result<BundleFacts, ExecutorError> {
    let listed = app.catalogue.find(reference).await?;
    let listed = listed.ok_or_else(|| ExecutorError::UnknownBundle(reference.clone()))?;
    // Keys may have changed, or its date passed, since it was pushed: every device would pass the assignment over.
    if let Some(root) = trust::current(&app.records).await? {
        root.verify_any_manifest(&listed.envelope, clock::now_ms())
            .map_err(|error| ExecutorError::Untrusted { bundle: reference.clone(), source: Box::new(error) })?;
    }
    Ok(BundleFacts {
        manifest: listed.digest,
        bundle: listed.bundle.clone(),
        requirements: listed.manifest.requirements.clone(),
        reference_predictions: reference_predictions(&listed.manifest.profile),
        track: listed.manifest.track(),
        features: listed.manifest.features(),
    })
}

/// The rollout `id` as `actor` asks for it, with what must be known of its bundle and its analyses.
async fn asked_for(
    app: &App,
    id: RolloutId,
    spec: RolloutSpec,
    actor: &str,
    now_ms: u64,
) -> Result<Rollout, ExecutorError> {
    let facts = bundle_facts(app, &spec.bundle).await?;
    let analyses = analysis::resolve(app, &spec.analyses).await?;
    let rollout = Rollout::new(id, spec, facts, now_ms).map_err(ExecutorError::Spec)?;
    let rollout = rollout.analysed_by(analyses).map_err(ExecutorError::Spec)?;
    let rollout = rollout.asked_for_by(actor, app.config.rollout.approvals_needed);
    rollout.map_err(|error| ExecutorError::Spec(SpecError::Approval(error)))
}

/// What a rollout would do if `actor` created it now. Nothing is stored, and nobody told.
///
/// # Errors
/// [`ExecutorError`] with what is wrong with the wish.
pub(crate) async fn preview(app: &App, spec: RolloutSpec, actor: &str) -> Result<RolloutPreview, ExecutorError> {
    spec.validate().map_err(ExecutorError::Spec)?;
    let last = app.records.get::<u64>(Table::Meta, ROLLOUT_SEQUENCE_KEY).await?.map_or(0, |last| last.value);
    let now_ms = clock::now_ms();
    let rollout = asked_for(app, rollout_id(last + 1)?, spec, actor, now_ms).await?;
    let (mut others, mut ends) = (others(app, &rollout).await?, Vec::new());
    let fleet = seen(app, &rollout, &others, now_ms);
    rollout.check_conflicts(&fleet, others.iter().map(|other| &other.value))?;
    let in_the_way = rollout.in_the_way(&fleet);
    others.retain(|other| {
        let is_ended = in_the_way.contains(&other.value.id)
            && other.value.overridden(&rollout, ACTOR_CONTROLLER, now_ms).is_some();
        ends.extend(is_ended.then(|| other.value.id.clone()));
        !is_ended
    });
    let fleet = if ends.is_empty() { fleet } else { seen(app, &rollout, &others, now_ms) };
    let preview = rollout.preview(&fleet, now_ms);
    Ok(RolloutPreview { ends, ..preview })
}

/// Makes a rollout; it starts at once, or when people have approved it. The same `idempotency_key` of the same `actor` gives the same rollout.
///
/// # Errors
/// [`ExecutorError`] with what is wrong with the wish.
pub(crate) async fn create(
    app: &App,
    spec: RolloutSpec,
    actor: &str,
    idempotency_key: Option<&str>,
) -> Result<RolloutView, ExecutorError> {
    spec.validate().map_err(ExecutorError::Spec)?;
    let spec_sha256 = Digest::of(&serde_json::to_vec(&spec).unwrap_or_default());
    let key =
        idempotency_key.map(|key| format!("idempotency/rollout/{}", Digest::of(format!("{actor}\n{key}").as_bytes())));
    for _ in 0..ATTEMPTS {
        if let Some(key) = &key
            && let Some(known) = app.records.get::<KeyRecord>(Table::Meta, key).await?
        {
            let KeyRecord { rollout, spec_sha256: known } = known.value;
            return if known == spec_sha256 {
                view(app, &rollout).await
            } else {
                Err(ExecutorError::KeyReused(rollout))
            };
        }
        // Read before the stop is: whoever stops the fleet from now on changes it, and this is tried again.
        let last = app.records.get::<u64>(Table::Meta, ROLLOUT_SEQUENCE_KEY).await?;
        if let Some(stop) = stop::standing(app).await? {
            return Err(ExecutorError::Stopped(stop));
        }
        let (expect, last) = last.map_or((Expect::Absent, 0), |last| (Expect::Version(last.version), last.value));
        let id = rollout_id(last + 1)?;
        let rollout = asked_for(app, id.clone(), spec.clone(), actor, clock::now_ms()).await?;
        let others = others(app, &rollout).await?;
        let seen = seen(app, &rollout, &others, rollout.created_at_ms);
        rollout.check_conflicts(&seen, others.iter().map(|other| &other.value))?;
        let mut changes = vec![
            Records::put(Table::Meta, ROLLOUT_SEQUENCE_KEY, expect, &(last + 1))?,
            Records::put(Table::Rollouts, id.as_str(), Expect::Absent, &rollout)?,
        ];
        if let Some(key) = &key {
            let record = KeyRecord { rollout: id.clone(), spec_sha256 };
            changes.push(Records::put(Table::Meta, key.clone(), Expect::Absent, &record)?);
        }
        let detail = format!("{} to {} in {} waves", spec.bundle, spec.selector, spec.waves.len());
        let entry = history::entry(&rollout, "created", actor, detail);
        match pass::commit(app, changes, vec![entry]).await {
            Ok(()) => {
                tracing::info!(rollout = %id, bundle = %spec.bundle, selector = %spec.selector, actor, "rollout created");
                app.schedule.activate(&id);
                app.nudge.notify_one();
                return view(app, &id).await;
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ExecutorError::Busy)
}

/// Does what an operator asks for. It counts as soon as this returns, whatever was being planned.
///
/// # Errors
/// [`ExecutorError::Action`] when the rollout stands so that it has no meaning.
pub(crate) async fn act(
    app: &App,
    id: &RolloutId,
    action: OperatorAction,
    actor: &str,
    reason: Option<&str>,
) -> Result<RolloutView, ExecutorError> {
    change(app, id, actor, None, |rollout, now_ms| rollout.apply(action, actor, reason, now_ms)).await
}

/// Sends the devices of a rollout back to `to`, which must be a bundle that devices would take.
///
/// # Errors
/// [`ExecutorError::Rollback`] when the rollout stands so that it has no meaning; what is wrong with the bundle.
pub(crate) async fn roll_back_to(
    app: &App,
    id: &RolloutId,
    to: &BundleRef,
    actor: &str,
    reason: Option<&str>,
) -> Result<RolloutView, ExecutorError> {
    let to = bundle_facts(app, to).await?;
    change(app, id, actor, None, |rollout, now_ms| rollout.roll_back_to(to.clone(), actor, reason, now_ms)).await
}

/// Approves a rollout that waits for approvals.
///
/// # Errors
/// [`ExecutorError::Approval`] when that does not count.
pub(crate) async fn approve(
    app: &App,
    id: &RolloutId,
    actor: &str,
    reason: Option<&str>,
) -> Result<RolloutView, ExecutorError> {
    change(app, id, actor, Some("approved"), |rollout, now_ms| rollout.approve(actor, reason, now_ms)).await
}

/// Ends a rollout that waits for approvals.
///
/// # Errors
/// [`ExecutorError::Approval`] when that does not count.
pub(crate) async fn reject(
    app: &App,
    id: &RolloutId,
    actor: &str,
    reason: Option<&str>,
) -> Result<RolloutView, ExecutorError> {
    change(app, id, actor, Some("rejected"), |rollout, now_ms| rollout.reject(actor, reason, now_ms)).await
}

/// Stores what somebody makes of a rollout, whatever was being planned. The history says it as `said`, and how the rollout stands then.
async fn change<E: Into<ExecutorError>>(
    app: &App,
    id: &RolloutId,
    actor: &str,
    said: Option<&str>,
    change: impl Fn(&Rollout, u64) -> Result<Rollout, E>,
) -> Result<RolloutView, ExecutorError> {
    for _ in 0..ATTEMPTS {
        let stored = load(app, id).await?;
        let next = change(&stored.value, clock::now_ms()).map_err(Into::into)?;
        let stands = (said.is_none() || next.status() != stored.value.status()).then(|| next.status().as_str());
        let entries = said.into_iter().chain(stands);
        let entries = entries.map(|kind| history::entry(&next, kind, actor, next.status_reason.clone())).collect();
        match pass::commit(app, vec![pass::put(&next, stored.version)?], entries).await {
            Ok(()) => {
                tracing::info!(rollout = %id, status = %next.status(), actor, "rollout moved");
                if next.needs_planning() {
                    app.schedule.activate(id);
                }
                app.nudge.notify_one();
                return view(app, id).await;
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ExecutorError::Busy)
}

/// The rollout as it stands.
///
/// # Errors
/// [`ExecutorError::UnknownRollout`].
pub(crate) async fn view(app: &App, id: &RolloutId) -> Result<RolloutView, ExecutorError> {
    let rollout = load(app, id).await?.value;
    show(app, &rollout).await
}

/// What each verdict rests on, in order.
///
/// # Errors
/// [`ExecutorError::UnknownRollout`].
pub(crate) async fn evidence(app: &App, id: &RolloutId) -> Result<Vec<RolloutEvidence>, ExecutorError> {
    Ok(load(app, id).await?.value.evidence())
}

/// Up to `limit` rollouts after `after`, oldest first.
///
/// # Errors
/// [`ExecutorError::Store`].
pub(crate) async fn views(
    app: &App,
    after: Option<&RolloutId>,
    limit: usize,
) -> Result<Vec<RolloutView>, ExecutorError> {
    let last = app.records.get::<u64>(Table::Meta, ROLLOUT_SEQUENCE_KEY).await?.map_or(0, |last| last.value);
    let first = after.map_or(0, number).saturating_add(1);
    let mut views = Vec::new();
    for number in first..=last {
        if views.len() >= limit {
            break;
        }
        let id = rollout_id(number)?;
        if let Some(rollout) = app.records.get::<Rollout>(Table::Rollouts, id.as_str()).await? {
            views.push(show(app, &rollout.value).await?);
        }
    }
    Ok(views)
}

/// How every rollout stands.
///
/// # Errors
/// [`ExecutorError::Store`].
pub(crate) async fn statuses(app: &App) -> Result<Vec<RolloutStatus>, ExecutorError> {
    let all = app.records.all::<StatusOnly>(Table::Rollouts, "").await?;
    Ok(all.into_iter().map(|(_, rollout)| rollout.value.status).collect())
}

/// The newest `most` rollouts that bring or brought the bundle with this manifest, the last one first.
///
/// # Errors
/// [`ExecutorError::Store`].
pub(crate) async fn rollouts_of(app: &App, manifest: &Digest, most: usize) -> Result<Vec<RolloutCard>, ExecutorError> {
    let last = app.records.get::<u64>(Table::Meta, ROLLOUT_SEQUENCE_KEY).await?.map_or(0, |last| last.value);
    let mut cards = Vec::new();
    for number in (1..=last).rev() {
        if cards.len() >= most {
            break;
        }
        let stored = app.records.get::<Rollout>(Table::Rollouts, rollout_id(number)?.as_str()).await?;
        let Some(rollout) = stored.map(|stored| stored.value).filter(|rollout| rollout.bundle.manifest == *manifest)
        else {
            continue;
        };
        cards.push(card(rollout));
    }
    Ok(cards)
}

/// The rollout in brief.
pub(super) fn card(rollout: Rollout) -> RolloutCard {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    RolloutCard {
        status: rollout.status(),
        devices: count(rollout.targets.len()),
        failures: count(rollout.targets.values().filter(|target| target.failure.is_some()).count()),
        id: rollout.id,
        status_reason: rollout.status_reason,
        created_at_ms: rollout.created_at_ms,
        updated_at_ms: rollout.updated_at_ms,
    }
}

/// The other rollouts that hold devices against `rollout`.
async fn others(app: &App, rollout: &Rollout) -> Result<Vec<Stored<Rollout>>, ExecutorError> {
    let mut others = Vec::new();
    if !rollout.status().is_terminal() {
        for id in app.schedule.active().into_iter().filter(|id| *id != rollout.id) {
            others.extend(app.records.get::<Rollout>(Table::Rollouts, id.as_str()).await?);
        }
    }
    others.retain(|other| other.value.holds_against(rollout));
    Ok(others)
}

/// The fleet as `rollout` sees it now.
pub(super) async fn fleet(app: &App, rollout: &Rollout, now_ms: u64) -> Result<Fleet, ExecutorError> {
    let freezes = Freezes::load(app).await?.all().to_vec();
    Ok(Fleet { freezes, ..seen(app, rollout, &others(app, rollout).await?, now_ms) })
}

/// The same, `others` holding devices.
fn seen(app: &App, rollout: &Rollout, others: &[Stored<Rollout>], now_ms: u64) -> Fleet {
    let queue = others.iter().filter_map(|other| other.value.queued()).collect();
    Fleet { queue, ..pass::facts(app, rollout, &Holders::among(others), others, now_ms) }
}

async fn show(app: &App, rollout: &Rollout) -> Result<RolloutView, ExecutorError> {
    let now_ms = clock::now_ms();
    let fleet = fleet(app, rollout, now_ms).await?;
    let waiting = if rollout.status().is_terminal() { Vec::new() } else { plan(rollout, &fleet, now_ms).waiting };
    Ok(rollout.view(&fleet, &waiting))
}
