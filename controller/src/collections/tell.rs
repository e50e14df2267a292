//! Telling devices which samples they may collect: signed anew whenever it is sent, under a number that grows with every change.

use muster_shared::collection::{CollectionStatus, Collections, Phase, Wanted};
use muster_shared::ids::DeviceId;
use muster_shared::limits::MAX_COLLECTIONS;
use muster_shared::messages::CollectionsDelivery;
use muster_shared::topics::{Down, Topic};

use super::{CollectionRecord, OrderRecord};
use crate::clock;
use crate::state::App;
use crate::store::{Expect, Records, StoreError, Stored, Table};

/// A device that does not answer is told again after this time, in milliseconds.
const REPEAT_AFTER_MS: u64 = 10_000;
/// Orders stored in one batch.
const AT_ONCE: usize = 256;
/// How long a statement is good for that names nothing, in milliseconds.
const EMPTY_VALID_FOR_MS: u64 = 7 * 86_400_000;

/// What `record` comes to for a device at `now_ms`; nothing when it has ended for good.
fn wanted(record: &CollectionRecord, now_ms: u64) -> Option<Wanted> {
    let phase = match record.status(now_ms) {
        CollectionStatus::Open => Phase::Open,
        CollectionStatus::Uploading => Phase::Closed,
        CollectionStatus::Closed => return None,
    };
    Some(Wanted {
        collection: record.id.clone(),
        manifests: record.manifests.clone(),
        rule: record.spec.rule,
        limits: record.spec.per_device,
        phase,
        ends_ms: record.ends_ms,
        upload_by_ms: record.upload_by_ms,
        recipient: record.spec.recipient,
    })
}

/// Everything `device` may collect now.
fn wanted_of(app: &App, device: &DeviceId, now_ms: u64) -> Vec<Wanted> {
    if !app.fleet.is_member(device) {
        return Vec::new();
    }
    let entries = app.collections.all();
    let meant = entries.iter().filter(|entry| app.fleet.is_selected(device, &entry.record.spec.selector));
    let mut all: Vec<Wanted> = meant.filter_map(|entry| wanted(&entry.record, now_ms)).take(MAX_COLLECTIONS).collect();
    all.sort_by(|a, b| a.collection.cmp(&b.collection));
    all
}

/// The statement that `device` is to have, where it is another than the one stored, and the record's version before.
fn changed(app: &App, device: &DeviceId, now_ms: u64) -> Option<(OrderRecord, Option<u64>)> {
    let wanted = wanted_of(app, device, now_ms);
    let told = app.collections.told(device);
    // One that came back from an older backup must not stay below what the device has accepted.
    let reported = app.fleet.samples_of(device).map_or(0, |samples| samples.generation);
    match told {
        None if wanted.is_empty() && reported == 0 => None,
        Some(told) if told.order.value.wanted == wanted && told.order.value.generation >= reported => None,
        told => {
            let known = told.as_ref().map_or(0, |told| told.order.value.generation);
            let generation = known.max(reported).saturating_add(1);
            Some((OrderRecord { generation, wanted }, told.map(|told| told.order.version)))
        }
    }
}

async fn store(app: &App, orders: Vec<(DeviceId, OrderRecord, Option<u64>)>) -> Result<(), StoreError> {
    let mut changes = Vec::new();
    for (device, order, version) in &orders {
        let expect = version.map_or(Expect::Absent, Expect::Version);
        changes.push(Records::put(Table::CollectionOrders, device.as_str(), expect, order)?);
    }
    app.records.commit(changes).await?;
    for (device, value, version) in orders {
        app.collections.ordered(&device, Stored { version: version.unwrap_or(0) + 1, value });
    }
    Ok(())
}

/// Finds out which devices take part in what, stores what is new, and tells those that are connected.
pub(super) async fn resolve(app: &App) {
    let now_ms = clock::now_ms();
    let mut devices: Vec<DeviceId> = app.collections.told_devices();
    for entry in app.collections.all() {
        devices.extend(app.fleet.selected(&entry.record.spec.selector));
    }
    devices.sort();
    devices.dedup();
    let new = devices
        .into_iter()
        .filter_map(|device| changed(app, &device, now_ms).map(|(order, version)| (device, order, version)));
    let new: Vec<_> = new.collect();
    for orders in new.chunks(AT_ONCE) {
        if let Err(error) = store(app, orders.to_vec()).await {
            tracing::error!(%error, "what devices may collect cannot be stored; it is tried again");
            app.collections.changed();
            return;
        }
        for (device, _, _) in orders.iter().filter(|(device, _, _)| app.fleet.is_online(device)) {
            send(app, device, now_ms).await;
        }
    }
}

/// Tells a device that has just connected.
pub(crate) async fn tell(app: &App, device: &DeviceId) {
    let now_ms = clock::now_ms();
    if let Some((order, version)) = changed(app, device, now_ms)
        && let Err(error) = store(app, vec![(device.clone(), order, version)]).await
    {
        tracing::warn!(%device, %error, "what the device may collect cannot be stored; it is tried again");
        app.collections.changed();
        return;
    }
    send(app, device, now_ms).await;
}

/// Tells connected devices again that have not accepted what they were told.
pub(super) async fn remind(app: &App, now_ms: u64) {
    let reported = |device: &DeviceId| {
        let samples = app.fleet.samples_of(device).filter(|_| app.fleet.is_online(device));
        samples.map(|samples| samples.generation)
    };
    for device in app.collections.untold(now_ms.saturating_sub(REPEAT_AFTER_MS), reported) {
        send(app, &device, now_ms).await;
    }
}

async fn send(app: &App, device: &DeviceId, now_ms: u64) {
    let Some(told) = app.collections.told(device) else { return };
    let OrderRecord { generation, wanted } = told.order.value;
    let expires_ms =
        wanted.iter().map(|one| one.upload_by_ms).max().unwrap_or(0).max(now_ms.saturating_add(EMPTY_VALID_FOR_MS));
    let document =
        Collections { device: device.clone(), generation, issued_at_ms: now_ms, expires_ms, collections: wanted };
    app.collections.note_told(device, now_ms);
    let payload = match app
        .director
        .sign_collections(&document)
        .map(|collections| serde_json::to_vec(&CollectionsDelivery { collections }))
    {
        Ok(Ok(payload)) => payload,
        Ok(Err(error)) => {
            return tracing::error!(%device, %error, "a statement of what may be collected cannot be written");
        }
        Err(error) => return tracing::error!(%device, %error, "a statement of what may be collected cannot be signed"),
    };
    if let Err(error) = app.broker.publish(&Topic::down(device, Down::Samples), payload.into()).await {
        tracing::debug!(%device, %error, "what the device may collect was not sent; it is told again");
    }
}
