//! What people ask of collections: open one, look at them, close one, delete one, bring labels. Each is written into the history.

use std::collections::BTreeMap;

use muster_shared::collection::{
    CloseCollection, Closing, CollectionDevice, CollectionStage, CollectionStatus, CollectionView, CreateCollection,
    SampleBatch, SampleLabel, SampleLabels,
};
use muster_shared::ids::{BundleRef, CollectionId, DeviceId};
use muster_shared::limits::{MAX_COLLECTIONS, bounded_text};

use super::index::Entry;
use super::{CollectionError, CollectionRecord, folder};
use crate::clock;
use crate::durable::{self, Access};
use crate::events::NewEvent;
use crate::state::App;
use crate::store::{Change, Expect, Records, StoreError, Table};

/// Devices that a view shows.
const MAX_SHOWN_DEVICES: usize = 500;
/// How often a change is tried when others change the same record.
const ATTEMPTS: usize = 16;
/// Key in [`Table::Meta`] of the number of the last collection.
const SEQUENCE_KEY: &str = "collection-sequence";
/// Records removed in one batch.
const PAGE: usize = 512;
/// Labels one collection has at most, and the bytes of one.
const MAX_LABELS: usize = 1_000_000;
const MAX_LABEL_TEXT: usize = 256;

/// What devices say they hold for a collection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Held {
    pub(super) samples: u64,
    pub(super) bytes: u64,
}

/// What devices say they hold for `record`, and the controller has not.
pub(super) fn held(app: &App, record: &CollectionRecord) -> Held {
    let mut held = Held::default();
    for device in app.fleet.selected(&record.spec.selector) {
        let Some(samples) = app.fleet.samples_of(&device) else { continue };
        for progress in samples.collections.iter().filter(|progress| progress.collection == record.id) {
            held.samples = held.samples.saturating_add(progress.held.saturating_sub(progress.uploaded));
            held.bytes = held.bytes.saturating_add(if progress.uploaded == 0 { progress.held_bytes } else { 0 });
        }
    }
    held
}

async fn commit_with_event(app: &App, mut changes: Vec<Change>, event: NewEvent) -> Result<(), StoreError> {
    let (entry, _held) = app.events.prepare(event)?;
    changes.push(entry);
    app.records.commit(changes).await
}

fn event(kind: &str, actor: &str, bundle: Option<BundleRef>, detail: String) -> NewEvent {
    NewEvent { kind: format!("collection.{kind}"), actor: actor.to_owned(), bundle, detail, ..NewEvent::default() }
}

/// Writes down that somebody looked at, or took, something.
///
/// # Errors
/// [`StoreError`]; nothing may be given out then.
pub(crate) async fn note_access(app: &App, kind: &str, actor: &str, detail: String) -> Result<(), StoreError> {
    app.events.append(event(kind, actor, None, detail)).await
}

/// Opens a collection.
///
/// # Errors
/// [`CollectionError`] with what is wrong with the wish.
pub(crate) async fn open(app: &App, spec: CreateCollection, actor: &str) -> Result<CollectionView, CollectionError> {
    if let Some(problem) = spec.problem() {
        return Err(CollectionError::Spec(problem));
    }
    let spec = CreateCollection { purpose: bounded_text(&spec.purpose), ..spec };
    let mut manifests = Vec::new();
    for bundle in &spec.bundles {
        let listed = app.catalogue.find(bundle).await?.ok_or_else(|| CollectionError::UnknownBundle(bundle.clone()))?;
        manifests.push(listed.digest);
    }
    for _ in 0..ATTEMPTS {
        let now_ms = clock::now_ms();
        let known = app.collections.all();
        let active = known.iter().filter(|entry| entry.record.status(now_ms) != CollectionStatus::Closed).count();
        if active >= MAX_COLLECTIONS {
            let text = format!(
                "{active} collections are open or being uploaded, which is as many as a device is told of: close or delete one"
            );
            return Err(CollectionError::TooMany(text));
        }
        if known.len() >= app.config.samples.max_collections {
            return Err(CollectionError::TooMany(format!(
                "there are {} collections, which is as many as samples.max-collections allows: delete old ones",
                known.len()
            )));
        }
        let last = app.records.get::<u64>(Table::Meta, SEQUENCE_KEY).await?;
        let (expect, last) = last.map_or((Expect::Absent, 0), |last| (Expect::Version(last.version), last.value));
        let id =
            CollectionId::new(format!("c{}", last + 1)).map_err(|error| CollectionError::Spec(error.to_string()))?;
        let ends_ms = now_ms.saturating_add(spec.duration_ms);
        let record = CollectionRecord {
            id: id.clone(),
            manifests: manifests.clone(),
            opened_at_ms: now_ms,
            opened_by: actor.to_owned(),
            ends_ms,
            upload_by_ms: ends_ms.saturating_add(spec.upload_within_ms),
            closing: None,
            spec: spec.clone(),
        };
        let detail = format!(
            "{id}: {} of {}, at most {} samples a device and {} altogether, for {} ms, sealed to {}{}{}",
            spec.rule,
            spec.selector,
            spec.per_device.max_count,
            spec.max_total_count,
            spec.duration_ms,
            spec.recipient.id(),
            if spec.purpose.is_empty() { "" } else { ", for: " },
            spec.purpose
        );
        let changes = vec![
            Records::put(Table::Meta, SEQUENCE_KEY, expect, &(last + 1))?,
            Records::put(Table::Collections, id.as_str(), Expect::Absent, &record)?,
        ];
        match commit_with_event(app, changes, event("opened", actor, spec.bundles.first().cloned(), detail)).await {
            Ok(()) => {
                tracing::info!(collection = %id, selector = %spec.selector, actor, "collection opened");
                app.collections.put(record, 1);
                return view(app, &id);
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(CollectionError::Busy)
}

/// Closes a collection: devices take no more, and upload what they have or delete it.
///
/// # Errors
/// [`CollectionError`].
pub(crate) async fn close(
    app: &App,
    id: &CollectionId,
    wish: &CloseCollection,
    actor: &str,
) -> Result<CollectionView, CollectionError> {
    for _ in 0..ATTEMPTS {
        let entry = app.collections.get(id).ok_or_else(|| CollectionError::Unknown(id.clone()))?;
        // What is closed can still be discarded.
        if entry.record.closing.as_ref().is_some_and(|closing| closing.discard || !wish.discard) {
            return Err(CollectionError::Closed(id.clone()));
        }
        let now_ms = clock::now_ms();
        let reason = bounded_text(wish.reason.as_deref().unwrap_or("no reason was given"));
        let mut record = entry.record;
        record.ends_ms = record.ends_ms.min(now_ms);
        record.upload_by_ms =
            record.upload_by_ms.min(now_ms.saturating_add(record.spec.upload_within_ms)).max(record.ends_ms);
        record.closing =
            Some(Closing { at_ms: now_ms, by: actor.to_owned(), reason: reason.clone(), discard: wish.discard });
        let how = if wish.discard { "devices delete what they have" } else { "devices upload what they have" };
        let change = Records::put(Table::Collections, id.as_str(), Expect::Version(entry.version), &record)?;
        match commit_with_event(app, vec![change], event("closed", actor, None, format!("{id}: {how}: {reason}"))).await
        {
            Ok(()) => {
                tracing::info!(collection = %id, actor, %reason, "collection closed");
                app.collections.put(record, entry.version + 1);
                return view(app, id);
            }
            // The index follows the store, so that whoever was first is seen with the next attempt.
            Err(StoreError::Conflict { .. }) => tokio::task::yield_now().await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(CollectionError::Busy)
}

/// Deletes a collection, with all its samples here and, as soon as they hear of it, on devices.
///
/// # Errors
/// [`CollectionError`].
pub(crate) async fn delete(app: &App, id: &CollectionId, actor: &str, why: &str) -> Result<(), CollectionError> {
    let _receiving = app.collections.receiving.lock().await;
    let entry = app.collections.get(id).ok_or_else(|| CollectionError::Unknown(id.clone()))?;
    let detail = format!("{id}: {} samples, {} bytes: {why}", entry.samples, entry.bytes);
    let change = Records::delete(Table::Collections, id.as_str(), Expect::Anything);
    // First the record: what is left over after a crash is found by nobody, and removed with the next start.
    commit_with_event(app, vec![change], event("deleted", actor, None, detail)).await?;
    app.collections.remove(id);
    tracing::info!(collection = %id, actor, "collection deleted");
    clear(app, id).await
}

/// Removes the batches of a collection that is no more.
async fn clear(app: &App, id: &CollectionId) -> Result<(), CollectionError> {
    loop {
        let page = app.records.scan::<SampleBatch>(Table::SampleBatches, None, &format!("{id}/"), PAGE).await?;
        let full = page.len() == PAGE;
        let gone =
            page.into_iter().map(|(key, _)| Records::delete(Table::SampleBatches, key, Expect::Anything)).collect();
        app.records.commit(gone).await?;
        if !full {
            break;
        }
    }
    let folder = folder(app, id);
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(&folder)).await;
    if let Ok(Err(error)) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(collection = %id, %error, "the samples of a deleted collection stay on the disk, sealed");
    }
    Ok(())
}

/// Every batch of a collection, or those of one device, in their order.
///
/// # Errors
/// [`CollectionError`].
pub(crate) async fn batches(
    app: &App,
    id: &CollectionId,
    device: Option<&DeviceId>,
) -> Result<Vec<SampleBatch>, CollectionError> {
    app.collections.get(id).ok_or_else(|| CollectionError::Unknown(id.clone()))?;
    let prefix = device.map_or_else(|| format!("{id}/"), |device| format!("{id}/{device}/"));
    let all = app.records.all::<SampleBatch>(Table::SampleBatches, &prefix).await?;
    Ok(all.into_iter().map(|(_, batch)| batch.value).collect())
}

fn summary(app: &App, entry: Entry) -> CollectionView {
    let now_ms = clock::now_ms();
    let held = held(app, &entry.record);
    let record = entry.record;
    CollectionView {
        status: record.status(now_ms),
        devices_total: app.fleet.selected(&record.spec.selector).len() as u64,
        id: record.id,
        spec: record.spec,
        manifests: record.manifests,
        opened_at_ms: record.opened_at_ms,
        opened_by: record.opened_by,
        ends_ms: record.ends_ms,
        upload_by_ms: record.upload_by_ms,
        closing: record.closing,
        samples: entry.samples,
        bytes: entry.bytes,
        held: held.samples,
        devices: Vec::new(),
    }
}

/// A collection as people see it.
///
/// # Errors
/// [`CollectionError::Unknown`].
pub(crate) fn view(app: &App, id: &CollectionId) -> Result<CollectionView, CollectionError> {
    let entry = app.collections.get(id).ok_or_else(|| CollectionError::Unknown(id.clone()))?;
    let mut names: Vec<DeviceId> = app.fleet.selected(&entry.record.spec.selector);
    names.extend(entry.devices.keys().cloned());
    names.sort();
    names.dedup();
    let mut devices: Vec<CollectionDevice> = names
        .into_iter()
        .map(|device| {
            let share = entry.devices.get(&device).copied().unwrap_or_default();
            let samples = app.fleet.samples_of(&device).unwrap_or_default();
            CollectionDevice {
                online: app.fleet.is_online(&device),
                progress: samples.collections.into_iter().find(|progress| progress.collection == *id),
                samples: share.samples,
                bytes: share.bytes,
                device,
            }
        })
        .collect();
    let is_quiet = |device: &CollectionDevice| {
        device
            .progress
            .as_ref()
            .is_none_or(|progress| progress.stage == CollectionStage::Sampling && progress.reason.is_none())
    };
    devices.sort_by_key(is_quiet);
    devices.truncate(MAX_SHOWN_DEVICES);
    Ok(CollectionView { devices, ..summary(app, entry) })
}

/// Every collection, in the order in which they were opened.
pub(crate) fn views(app: &App) -> Vec<CollectionView> {
    app.collections.all().into_iter().map(|entry| summary(app, entry)).collect()
}

fn labels_path(app: &App, id: &CollectionId) -> std::path::PathBuf {
    folder(app, id).join("labels.json")
}

/// The labels that were brought for a collection.
///
/// # Errors
/// [`CollectionError`].
pub(crate) fn labels(app: &App, id: &CollectionId) -> Result<SampleLabels, CollectionError> {
    app.collections.get(id).ok_or_else(|| CollectionError::Unknown(id.clone()))?;
    let Some(bytes) = durable::read(&labels_path(app, id))? else { return Ok(SampleLabels::default()) };
    serde_json::from_slice(&bytes)
        .map_err(|error| CollectionError::Batch(format!("the labels stored are damaged: {error}")))
}

/// Adds labels to those there are; the last of the same inference counts. Gives all of them.
///
/// # Errors
/// [`CollectionError`].
pub(crate) async fn put_labels(
    app: &App,
    id: &CollectionId,
    brought: SampleLabels,
    actor: &str,
) -> Result<SampleLabels, CollectionError> {
    let too_long = |label: &&SampleLabel| label.id.len() > MAX_LABEL_TEXT || label.label.len() > MAX_LABEL_TEXT;
    if let Some(label) = brought.labels.iter().find(too_long) {
        let id: String = label.id.chars().take(40).collect();
        return Err(CollectionError::Spec(format!(
            "the label of {id:?} or its id is longer than {MAX_LABEL_TEXT} bytes"
        )));
    }
    let _receiving = app.collections.receiving.lock().await;
    let before = labels(app, id)?.labels;
    let count = brought.labels.len();
    let all = before.into_iter().chain(brought.labels);
    let all: BTreeMap<(String, Option<DeviceId>, Option<u32>), String> =
        all.map(|label| ((label.id, label.device, label.row), label.label)).collect();
    if all.len() > MAX_LABELS {
        return Err(CollectionError::TooMany(format!("a collection has at most {MAX_LABELS} labels")));
    }
    let all = all.into_iter().map(|((id, device, row), label)| SampleLabel { id, device, row, label }).collect();
    let labels = SampleLabels { labels: all };
    durable::make_folder(&folder(app, id))?;
    let bytes = serde_json::to_vec(&labels).map_err(|error| CollectionError::Batch(error.to_string()))?;
    durable::write(&labels_path(app, id), &bytes, Access::Secret)?;
    note_access(app, "labelled", actor, format!("{id}: {count} labels, {} in all", labels.labels.len())).await?;
    Ok(labels)
}

/// Removes what lies on the disk of collections that are no more.
pub(crate) async fn clear_left_over(app: &App) {
    let Ok(entries) = std::fs::read_dir(app.config.data_dir.join("collections")) else { return };
    let names: Vec<CollectionId> =
        entries.flatten().filter_map(|entry| CollectionId::new(entry.file_name().to_str()?).ok()).collect();
    for id in names.into_iter().filter(|id| app.collections.get(id).is_none()) {
        if let Err(error) = clear(app, &id).await {
            tracing::warn!(collection = %id, %error, "what is left over of a collection stays");
        }
    }
}
