//! Every collection in memory, with what it has and what devices were told: a view of the store, changed only after the store has been.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use muster_shared::collection::SampleBatch;
use muster_shared::ids::{CollectionId, DeviceId};
use tokio::sync::Notify;

use super::{CollectionRecord, OrderRecord};
use crate::store::{Records, StoreError, Stored, Table};

/// See the module.
#[derive(Default)]
pub(crate) struct CollectionIndex {
    inner: Mutex<Inner>,
    /// Which devices take part is to be found out anew.
    dirty: AtomicBool,
    pub(super) nudge: Notify,
    /// Held while a batch is counted and stored, so that two together do not pass a limit.
    pub(super) receiving: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Inner {
    collections: BTreeMap<CollectionId, Entry>,
    orders: BTreeMap<DeviceId, Told>,
}

/// A collection and what it has.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) record: CollectionRecord,
    /// The record's version in the store.
    pub(crate) version: u64,
    pub(crate) samples: u64,
    pub(crate) bytes: u64,
    pub(crate) devices: BTreeMap<DeviceId, Share>,
}

/// What a collection has of one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) samples: u64,
    pub(crate) bytes: u64,
    pub(crate) batches: u32,
}

/// What a device was told.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) order: Stored<OrderRecord>,
    /// When last, in milliseconds since the Unix epoch.
    pub(super) at_ms: u64,
}

impl Entry {
    fn new(record: CollectionRecord, version: u64) -> Self {
        Self { record, version, samples: 0, bytes: 0, devices: BTreeMap::new() }
    }

    fn count(&mut self, batch: &SampleBatch) {
        self.samples += batch.samples;
        self.bytes += batch.bytes;
        let share = self.devices.entry(batch.device.clone()).or_default();
        share.samples += batch.samples;
        share.bytes += batch.bytes;
        share.batches += 1;
    }
}

impl CollectionIndex {
    /// Reads everything there is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn load(records: &Records) -> Result<Self, StoreError> {
        let mut inner = Inner::default();
        for (_, stored) in records.all::<CollectionRecord>(Table::Collections, "").await? {
            let id = stored.value.id.clone();
            let mut entry = Entry::new(stored.value, stored.version);
            for (_, batch) in records.all::<SampleBatch>(Table::SampleBatches, &format!("{id}/")).await? {
                entry.count(&batch.value);
            }
            inner.collections.insert(id, entry);
        }
        for (key, order) in records.all::<OrderRecord>(Table::CollectionOrders, "").await? {
            if let Ok(device) = DeviceId::new(key) {
                inner.orders.insert(device, Told { order, at_ms: 0 });
            }
        }
        Ok(Self { inner: Mutex::new(inner), dirty: AtomicBool::new(true), ..Self::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which devices take part may be different now.
    pub(super) fn changed(&self) {
        self.dirty.store(true, Ordering::Release);
        self.nudge.notify_one();
    }

    pub(super) fn take_dirty(&self) -> bool {
        self.dirty.swap(false, Ordering::AcqRel)
    }

    /// Every collection, in the order in which they were opened.
    pub(crate) fn all(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.lock().collections.values().cloned().collect();
        all.sort_by_key(|entry| (entry.record.opened_at_ms, entry.record.id.as_str().len(), entry.record.id.clone()));
        all
    }

    /// One collection.
    pub(crate) fn get(&self, id: &CollectionId) -> Option<Entry> {
        self.lock().collections.get(id).cloned()
    }

    /// Bytes of all samples.
    pub(super) fn total_bytes(&self) -> u64 {
        self.lock().collections.values().map(|entry| entry.bytes).sum()
    }

    /// A record was stored under `version`.
    pub(super) fn put(&self, record: CollectionRecord, version: u64) {
        let mut inner = self.lock();
        match inner.collections.get_mut(&record.id) {
            Some(entry) => (entry.record, entry.version) = (record, version),
            None => _ = inner.collections.insert(record.id.clone(), Entry::new(record, version)),
        }
        drop(inner);
        self.changed();
    }

    /// A collection is gone.
    pub(super) fn remove(&self, id: &CollectionId) {
        self.lock().collections.remove(id);
        self.changed();
    }

    /// A batch was stored.
    pub(super) fn count(&self, id: &CollectionId, batch: &SampleBatch) {
        if let Some(entry) = self.lock().collections.get_mut(id) {
            entry.count(batch);
        }
    }

    /// What `device` was told last.
    pub(super) fn told(&self, device: &DeviceId) -> Option<Told> {
        self.lock().orders.get(device).cloned()
    }

    /// Every device that was ever told something.
    pub(super) fn told_devices(&self) -> Vec<DeviceId> {
        self.lock().orders.keys().cloned().collect()
    }

    /// Devices that were told something under another number than `reported` gives, and not since `before_ms`.
    pub(super) fn untold(&self, before_ms: u64, reported: impl Fn(&DeviceId) -> Option<u64>) -> Vec<DeviceId> {
        let inner = self.lock();
        let behind =
            inner.orders.iter().filter(|(_, told)| told.at_ms <= before_ms || told.at_ms > before_ms + 3_600_000);
        behind
            .filter(|(device, told)| {
                reported(device).is_some_and(|generation| generation != told.order.value.generation)
            })
            .map(|(device, _)| device.clone())
            .collect()
    }

    /// An order was stored.
    pub(super) fn ordered(&self, device: &DeviceId, order: Stored<OrderRecord>) {
        self.lock().orders.insert(device.clone(), Told { order, at_ms: 0 });
    }

    /// The device is told now.
    pub(super) fn note_told(&self, device: &DeviceId, now_ms: u64) {
        if let Some(told) = self.lock().orders.get_mut(device) {
            told.at_ms = now_ms;
        }
    }
}
