//! The fleet from the store, at the start.

use std::sync::{Arc, RwLock};

use muster_rollout::Rollout;
use muster_shared::ids::{BundleRef, DeviceId};
use muster_shared::messages::Sequenced;
use muster_shared::sketch::SketchWindow;

use super::{Entry, FRESH_MS, FleetIndex, Inner, Observation};
use crate::content::Catalogue;
use crate::store::records::{DeviceRecord, LeftOut, ReportRecord, WindowRecord};
use crate::store::{Records, StoreError, Table};
use crate::windows::Windows;

impl FleetIndex {
    /// Rebuilds the fleet from the store.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read.
    pub(crate) async fn load(records: &Records) -> Result<Self, StoreError> {
        let (fleet, left_out) = Self::load_usable(records).await?;
        left_out.tell();
        Ok(fleet)
    }

    /// As [`Self::load`], with what could not be used.
    pub(super) async fn load_usable(records: &Records) -> Result<(Self, LeftOut), StoreError> {
        let (mut inner, mut left_out) = (Inner::default(), LeftOut::default());
        for (_, record) in records.all::<DeviceRecord>(Table::Devices, "").await? {
            inner.devices.insert(record.value.id.clone(), Entry::new(record.value, record.version));
        }
        for (key, report) in records.all::<ReportRecord>(Table::Reports, "").await? {
            let entry = DeviceId::new(key.as_str()).ok().and_then(|device| inner.devices.get_mut(&device));
            let Some(entry) = entry else {
                left_out.add(Table::Reports, &key);
                continue;
            };
            entry.last_seen_ms = Some(report.value.received_at_ms);
            entry.take_report(report.value.reported);
        }
        for (key, bundle) in records.all::<BundleRef>(Table::Meta, "manifest/").await? {
            match key.strip_prefix("manifest/").and_then(|digest| digest.parse().ok()) {
                Some(digest) => _ = inner.bundles.insert(digest, bundle.value),
                None => left_out.add(Table::Meta, &key),
            }
        }
        load_evidence(records, &mut inner, &mut left_out).await?;
        Ok((Self { inner: Arc::new(RwLock::new(inner)) }, left_out))
    }
}

/// Reads the windows that rollouts still ask for.
async fn load_evidence(records: &Records, inner: &mut Inner, left_out: &mut LeftOut) -> Result<(), StoreError> {
    let mut cuts: Vec<u64> = records
        .all::<Rollout>(Table::Rollouts, "")
        .await?
        .into_iter()
        .filter(|(_, rollout)| !rollout.value.status().is_terminal())
        .flat_map(|(_, rollout)| rollout.value.cuts_ms())
        .collect();
    cuts.sort_unstable();
    let Some(first) = cuts.first() else { return Ok(()) };
    let catalogue = Catalogue::new(records.clone());
    let mut windows = Windows::arrived(records, *first);
    while let Some((key, window)) = windows.next().await? {
        let received_at_ms = window.received_at_ms;
        let observation = observation_of(&catalogue, &window).await?;
        let (Some(observation), Some(entry)) = (observation, inner.devices.get_mut(&window.device)) else {
            left_out.add(Table::Windows, &key);
            continue;
        };
        entry.evidence.add(observation);
        entry.evidence.compact(&cuts, received_at_ms.saturating_sub(FRESH_MS));
    }
    Ok(())
}

async fn observation_of(catalogue: &Catalogue, window: &WindowRecord) -> Result<Option<Observation>, StoreError> {
    let received_at_ms = window.received_at_ms;
    if window.crash {
        return Ok(Some(Observation::of_crash(&window.key, window.program, received_at_ms)));
    }
    if let Some(telemetry) = &window.telemetry {
        return Ok(Some(Observation::of_telemetry(telemetry, received_at_ms)));
    }
    let sketch = window.sketch.as_deref().and_then(|bytes| Sequenced::<SketchWindow>::decode(bytes).ok());
    let Some(sketch) = sketch else { return Ok(None) };
    let listed = catalogue.get(&sketch.body.key.manifest).await?;
    Ok(listed
        .filter(|listed| listed.fits(&sketch.body))
        .map(|listed| Observation::of_sketch(&sketch.body, &listed.manifest.profile, received_at_ms)))
}
