//! Taking in what devices bring: a batch is there whole and counted, or not at all.

use muster_shared::collection::{Batch, CollectionStatus, SampleBatch};
use muster_shared::ids::{CollectionId, DeviceId, Digest};

use super::{CollectionError, batch_key, batch_path, folder};
use crate::clock;
use crate::durable::{self, Access};
use crate::events::{ACTOR_DEVICE, NewEvent};
use crate::state::App;
use crate::store::{Expect, Records, Table};

/// Batches one device has at most: far more than its limits come to.
const MAX_BATCHES: u32 = 65_536;

/// Takes batch `number` of `of` in, which `device` brought for `id`. It is durable when this returns; the same one again changes nothing.
///
/// # Errors
/// [`CollectionError`] with why it is not wanted.
pub(crate) async fn receive(
    app: &App,
    device: &DeviceId,
    id: &CollectionId,
    (number, of): (u32, u32),
    content: &[u8],
) -> Result<SampleBatch, CollectionError> {
    let frames = Batch::frames(content).map_err(|error| CollectionError::Batch(error.to_string()))?;
    if number >= of || of > MAX_BATCHES {
        return Err(CollectionError::Batch(format!("its number {number} of {of} makes no sense")));
    }
    let now_ms = clock::now_ms();
    let batch = SampleBatch {
        device: device.clone(),
        number,
        of,
        samples: frames.len() as u64,
        bytes: content.len() as u64,
        sha256: Digest::of(content),
        received_at_ms: now_ms,
    };
    let _receiving = app.collections.receiving.lock().await;
    let key = batch_key(id, device, number);
    if let Some(known) = app.records.get::<SampleBatch>(Table::SampleBatches, &key).await? {
        return if known.value.sha256 == batch.sha256 {
            Ok(known.value)
        } else {
            Err(CollectionError::Changed(number))
        };
    }
    let refuse = |why| CollectionError::NotWanted { collection: id.clone(), device: device.clone(), why };
    let entry = app.collections.get(id).ok_or_else(|| CollectionError::Unknown(id.clone()))?;
    if entry.record.status(now_ms) == CollectionStatus::Closed {
        return Err(refuse("it is closed"));
    }
    let was_told = app
        .collections
        .told(device)
        .is_some_and(|told| told.order.value.wanted.iter().any(|one| one.collection == *id));
    if !was_told {
        return Err(refuse("the device was not told to collect anything for it"));
    }
    let (spec, share) = (&entry.record.spec, entry.devices.get(device).copied().unwrap_or_default());
    if share.samples + batch.samples > u64::from(spec.per_device.max_count)
        || share.bytes + batch.bytes > framed(spec.per_device)
    {
        return Err(refuse("it has brought as much as one device may"));
    }
    if entry.samples + batch.samples > spec.max_total_count || entry.bytes + batch.bytes > spec.max_total_bytes {
        return Err(refuse("the collection has as much as it may have altogether"));
    }
    if app.collections.total_bytes().saturating_add(batch.bytes) > app.config.samples.max_bytes {
        return Err(CollectionError::Full(
            "all collections together have as much as the controller's samples.max-bytes allows: delete old ones"
                .to_owned(),
        ));
    }
    durable::make_folder(&folder(app, id))?;
    let (path, bytes) = (batch_path(app, id, &batch), content.to_vec());
    let written = tokio::task::spawn_blocking(move || durable::write(&path, &bytes, Access::Secret)).await;
    written.map_err(|_| CollectionError::Busy)??;
    let mut changes = vec![Records::put(Table::SampleBatches, key, Expect::Absent, &batch)?];
    let mut held = None;
    if share.batches + 1 == of {
        let detail = format!("{id}: {} samples, {} bytes", share.samples + batch.samples, share.bytes + batch.bytes);
        let (event, number) = app.events.prepare(NewEvent {
            kind: "collection.received".into(),
            actor: ACTOR_DEVICE.into(),
            device: Some(device.clone()),
            detail,
            ..NewEvent::default()
        })?;
        changes.push(event);
        held = Some(number);
    }
    app.records.commit(changes).await?;
    drop(held);
    app.collections.count(id, &batch);
    Ok(batch)
}

/// The bytes that batches of so many samples may come to: each has its length before it.
fn framed(limits: muster_shared::collection::SampleLimits) -> u64 {
    let heads = u64::from(limits.max_count) * muster_shared::collection::FRAME_HEAD_BYTES as u64;
    limits.max_bytes.saturating_add(heads)
}
