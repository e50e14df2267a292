//! The thread that seals what was accepted, writes it now and then, and ends collections when their time is up.

use std::sync::PoisonError;
use std::time::Duration;

use muster_shared::collection::{CollectionStage, Phase, Sample, SampleTensor, seal};
use muster_shared::ids::CollectionId;
use zeroize::Zeroizing;

use super::offer::Job;
use super::store::{Plan, State};
use super::{Collection, Samples};
use crate::causes::with_source;

use muster_agent_core::reservoir::Placed;
use muster_inference::Tensor;

/// What waits is written at once when it has so many bytes.
const FLUSH_BYTES: usize = 256 * 1024;
/// What cannot be written is given up beyond so many bytes.
const MAX_PENDING_BYTES: usize = 4 * 1024 * 1024;
/// How often it is looked whether a collection has ended, in milliseconds.
const LOOK_MS: u64 = 1_000;

/// Runs until it is told to stop, and writes what waits before it ends.
pub(super) fn run(samples: &Samples) {
    let mut flushed_ms = samples.inner.clock.now_ms();
    loop {
        let (job, stops) = samples.next_job();
        match job {
            Some(job) => samples.keep(job),
            None if stops => break,
            None => {}
        }
        let now_ms = samples.inner.clock.now_ms();
        let is_due = now_ms.saturating_sub(flushed_ms) >= samples.inner.config.flush_ms;
        if is_due || samples.has_much_to_write() {
            samples.flush_all();
            flushed_ms = now_ms;
        }
        samples.end_what_is_over(now_ms);
    }
    samples.flush_all();
}

impl State {
    fn of(collection: &Collection) -> Self {
        Self {
            reservoir: collection.reservoir.clone(),
            dropped: collection.dropped,
            too_large: collection.too_large,
            lost: collection.lost,
        }
    }
}

fn sample_tensor(tensor: &Tensor) -> SampleTensor {
    SampleTensor {
        name: tensor.name().to_owned(),
        datatype: tensor.datatype(),
        shape: tensor.shape().iter().map(|size| *size as u64).collect(),
        data: tensor.data().to_vec(),
    }
}

impl Samples {
    /// The next sample to be sealed, if one comes before something else is to be looked at; and whether to stop.
    fn next_job(&self) -> (Option<Job>, bool) {
        let mut hot = self.hot();
        if hot.queue.is_empty() && !hot.stops {
            let wait = Duration::from_millis(if self.is_open() { LOOK_MS } else { LOOK_MS * 10 });
            (hot, _) = self.inner.work.wait_timeout(hot, wait).unwrap_or_else(PoisonError::into_inner);
        }
        let job = hot.queue.pop_front();
        if let Some(job) = &job {
            hot.queued_bytes = hot.queued_bytes.saturating_sub(job.bytes);
        }
        (job, hot.stops)
    }

    /// Seals one sample and puts it with those that are kept.
    fn keep(&self, job: Job) {
        let _turn = self.turn();
        let (recipient, device) = {
            let mut hot = self.hot();
            let device = hot.device.clone();
            let Some(collection) = hot.collection(&job.collection) else { return };
            (collection.wanted.recipient, device)
        };
        let id = job.collection.clone();
        let Some(device) = device else { return };
        let sealed = self.sealed(job, &recipient, &device);
        let mut disk = self.disk();
        let mut hot = self.hot();
        let Some(collection) = hot.collection(&id) else { return };
        collection.under_way = collection.under_way.saturating_sub(1);
        if collection.stage != CollectionStage::Sampling {
            collection.lost += 1;
            return;
        }
        let sealed = match sealed {
            Ok(sealed) => sealed,
            Err(is_too_large) => {
                let count = if is_too_large { &mut collection.too_large } else { &mut collection.lost };
                *count += 1;
                return;
            }
        };
        let Some(store) = disk.get_mut(&id) else { return };
        match collection.reservoir.place(sealed.len() as u64) {
            Placed::Kept { number, given_up } => {
                store.put(number, sealed);
                given_up.into_iter().for_each(|number| store.give_up(number));
            }
            Placed::TooLarge => collection.too_large += 1,
        }
    }

    /// The sealed bytes of a sample; whether it is too large, where there are none.
    fn sealed(
        &self,
        job: Job,
        recipient: &muster_shared::collection::RecipientKey,
        device: &muster_shared::ids::DeviceId,
    ) -> Result<Vec<u8>, bool> {
        let sample = Sample {
            id: job.answered.id.clone(),
            at_ms: job.answered.at_ms,
            manifest: job.manifest,
            generation: job.generation,
            inputs: job.answered.inputs.iter().map(sample_tensor).collect(),
            outputs: job.answered.outputs.iter().map(sample_tensor).collect(),
            confidence: job.confidence,
            flags: job.flags,
        };
        let content = sample.to_bytes().map_err(|_| true)?;
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(|_| false)?;
        seal::seal(recipient, &job.collection, device, &seed, content).map_err(|_| false)
    }

    fn has_much_to_write(&self) -> bool {
        self.disk().values().any(|store| store.pending_bytes() >= FLUSH_BYTES)
    }

    pub(super) fn flush_all(&self) {
        let _turn = self.turn();
        let ids: Vec<CollectionId> = self.disk().keys().cloned().collect();
        for id in &ids {
            self.flush(id);
        }
    }

    /// Writes what waits of a collection; says whether all of it is written. The turn must be held.
    fn flush(&self, id: &CollectionId) -> bool {
        let mut disk = self.disk();
        let Some(state) = self.hot().collection(id).map(|collection| State::of(collection)) else { return true };
        let Some(store) = disk.get_mut(id) else { return true };
        let Err(error) = store.flush(&state) else { return true };
        let given_up = if store.pending_bytes() > MAX_PENDING_BYTES { store.drop_pending() } else { Vec::new() };
        let mut hot = self.hot();
        let Some(collection) = hot.collection(id) else { return true };
        let reason = with_source(&error);
        if collection.reason.as_ref() != Some(&reason) {
            tracing::warn!(collection = %id, error = %reason, "samples cannot be written; those that wait are given up when they become too many");
        }
        collection.reason = Some(reason);
        collection.lost += given_up.len() as u64;
        collection.reservoir.retain(|number| !given_up.contains(&number));
        false
    }

    /// Ends the collections whose time is up, or which are closed, and those that were not uploaded in time.
    fn end_what_is_over(&self, steady_ms: u64) {
        let now_ms = self.now_ms();
        let _turn = self.turn();
        let (mut ending, mut late) = (Vec::new(), Vec::new());
        {
            let mut hot = self.hot();
            for collection in &mut hot.collections {
                let wanted = &collection.wanted;
                let is_over =
                    wanted.phase == Phase::Closed || now_ms >= wanted.ends_ms || steady_ms >= collection.ends_at_ms;
                match collection.stage {
                    CollectionStage::Sampling if is_over => ending.push(wanted.collection.clone()),
                    CollectionStage::Uploading if now_ms >= wanted.upload_by_ms => late.push(wanted.collection.clone()),
                    CollectionStage::Sampling
                    | CollectionStage::Uploading
                    | CollectionStage::Refused
                    | CollectionStage::Uploaded
                    | CollectionStage::GivenUp
                    | CollectionStage::Other => {}
                }
            }
        }
        for id in &ending {
            self.end(id);
        }
        for id in &late {
            self.give_up(id, "it was not uploaded in time");
        }
        if !(ending.is_empty() && late.is_empty()) {
            self.tell();
        }
    }

    /// Ends one collection on this device. The turn must be held.
    fn end(&self, id: &CollectionId) {
        {
            // First: nothing may come in between.
            let mut hot = self.hot();
            let Some(collection) = hot.collection(id) else { return };
            collection.stage = CollectionStage::Uploading;
            self.refresh(&hot);
            if hot.is_under_way(id) {
                // What is sealed at the moment still belongs to it: it ends with the next look.
                let waits = hot.queue.iter().any(|job| job.collection == *id);
                if let Some(collection) = hot.collection(id).filter(|_| waits) {
                    collection.stage = CollectionStage::Sampling;
                    collection.ends_at_ms = 0;
                    collection.wanted.ends_ms = 0;
                    return;
                }
            }
        }
        let is_written = self.flush(id);
        let mut disk = self.disk();
        let Some(store) = disk.get_mut(id) else { return };
        let lost = if is_written { Vec::new() } else { store.drop_pending() };
        let batches = u32::try_from(store.batches().len()).unwrap_or(u32::MAX);
        let plan = Plan { batches, ..Plan::default() };
        let noted = store.store_plan(&plan);
        if batches == 0 {
            store.clear();
        }
        let mut hot = self.hot();
        let Some(collection) = hot.collection(id) else { return };
        collection.lost += lost.len() as u64;
        collection.reservoir.retain(|number| !lost.contains(&number));
        collection.stage = plan.stage();
        if let Err(error) = noted {
            // It ends once more after a restart, with the same samples.
            tracing::warn!(collection = %id, error = %with_source(&error), "the end of a collection cannot be noted");
        }
        tracing::info!(collection = %id, held = collection.reservoir.held(), "a collection has ended here");
        self.inner.uploads.notify_one();
    }

    /// Removes what a collection kept. The turn must be held.
    pub(super) fn give_up(&self, id: &CollectionId, why: &str) {
        let mut disk = self.disk();
        if let Some(store) = disk.get_mut(id) {
            store.clear();
            let plan = Plan { given_up: Some(why.to_owned()), ..Plan::default() };
            if let Err(error) = store.store_plan(&plan) {
                tracing::warn!(collection = %id, error = %with_source(&error), "that samples were given up cannot be noted");
            }
        }
        let mut hot = self.hot();
        if let Some(collection) = hot.collection(id) {
            tracing::warn!(collection = %id, why, samples = collection.reservoir.held(), "samples are given up");
            collection.reservoir.retain(|_| false);
            collection.stage = CollectionStage::GivenUp;
            collection.reason = Some(why.to_owned());
        }
    }
}
