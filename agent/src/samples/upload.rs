//! Brings the samples of ended collections to the controller, when the device's delivery policy lets anything travel.
//!
//! By HTTPS with the device's certificate, not by MQTT: megabytes that nobody waits for would stand in the way of reports on the one
//! connection, an outbox that gives up its oldest is no place for them, and a broker outside the controller need never hold them. A batch
//! is one request; how far it got is stored after each answer, which comes once the batch is durable there. A batch that comes twice is
//! the same batch.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use muster_agent_core::backoff::{Backoff, Pauses};
use muster_agent_core::delivery::{Decision, Moment, Rules, Spent, decide};
use muster_shared::api::Problem;
use muster_shared::collection::{Batch, BatchStored, CollectionStage};
use muster_shared::ids::CollectionId;
use muster_shared::limits::bounded_text;
use muster_shared::messages::PressureLevel;
use muster_shared::trust::DeliveryPolicy;
use tokio::sync::watch;

use super::Samples;
use super::store::Plan;
use crate::causes::with_source;
use crate::config::Config;
use crate::identity::{Identity, IdentityStore, bounded_body, reason};
use crate::metered::Metered;
use crate::pressure::Pressed;
use crate::time::{EffectiveTime, Steady, jitter, wall_ms};
use crate::updater::{minute_of_day, zone};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// How often it is looked whether something is to be uploaded, and may be.
const LOOK: Duration = Duration::from_secs(30);
const PAUSES: Pauses = Pauses { first_ms: 1_000, longest_ms: 300_000 };

/// Uploads the samples of one device.
pub(crate) struct Uploader {
    pub(crate) samples: Samples,
    pub(crate) identity: Identity,
    pub(crate) store: IdentityStore,
    pub(crate) time: EffectiveTime,
    /// Where the controller's API is.
    pub(crate) api_url: Option<String>,
    /// Where the device's delivery policy comes from.
    pub(crate) settings: watch::Receiver<Arc<Config>>,
    pub(crate) pressed: Pressed,
}

/// Why a batch is not at the controller.
enum Failed {
    /// It may be tried again.
    ForNow(String),
    /// The controller does not want the collection's samples.
    ForGood(String),
}

impl Uploader {
    /// Uploads whatever comes to be uploaded. Ends only where that can never be done.
    pub(crate) async fn run(self) {
        let device = &self.identity.device;
        let Some(api_url) = &self.api_url else {
            return tracing::debug!(%device, "samples cannot be uploaded: this device enrolled before it kept the address for that");
        };
        let clock = Steady::start();
        let mut backoff = Backoff::new(PAUSES);
        let mut pause = LOOK;
        loop {
            tokio::select! {
                () = self.samples.inner.uploads.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = LOOK;
            let delivery = self.settings.borrow().delivery.clone();
            let (rules, metered) = (delivery.rules(), Metered::new(&delivery));
            let (zone, _) = zone(delivery.time_zone.as_deref(), false, TimeZone::try_system);
            for id in self.samples.to_upload() {
                if let Some(why) = self.held_back(&rules, &metered, &zone, clock.now_ms()) {
                    self.samples.waits(&id, &format!("waiting: {why}"));
                    break;
                }
                match self.upload(api_url, &id).await {
                    Ok(()) => backoff.succeeded(),
                    Err(Failed::ForGood(why)) => tokio::task::block_in_place(|| {
                        let _turn = self.samples.turn();
                        self.samples.give_up(&id, &why);
                        self.samples.tell();
                    }),
                    Err(Failed::ForNow(why)) => {
                        tracing::debug!(%device, collection = %id, %why, "samples are not uploaded yet");
                        self.samples.waits(&id, &why);
                        pause = Duration::from_millis(backoff.failed(jitter()));
                        break;
                    }
                }
            }
        }
    }

    /// What the device, or its delivery policy, has against uploading now.
    fn held_back(&self, rules: &Rules, metered: &Metered, zone: &TimeZone, now_ms: u64) -> Option<String> {
        let pressed = self.pressed.now();
        if pressed.level >= PressureLevel::High {
            return Some(format!("the device is {}", pressed.reason));
        }
        let is_clock_believed = wall_ms() >= self.time.floor_ms();
        let moment = Moment {
            now_ms,
            local_minute: is_clock_believed.then(|| minute_of_day(zone)).flatten(),
            is_metered: metered.is_metered(),
            // Nobody waits for samples, so quiet hours always hold.
            is_serving: true,
        };
        match decide(rules, &DeliveryPolicy::default(), &Spent::nothing(now_ms), &moment, 0) {
            Decision::Wait { why, .. } => why.map(|why| why.to_string()),
            Decision::Ask { .. } => None,
        }
    }

    /// Uploads one collection from where it was left.
    async fn upload(&self, api_url: &str, id: &CollectionId) -> Result<(), Failed> {
        let for_now = |error: &dyn ToString| Failed::ForNow(error.to_string());
        let tls = tokio::task::block_in_place(|| self.store.tls(&self.identity, &self.time))
            .map_err(|error| Failed::ForNow(with_source(&error)))?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(REQUEST_TIMEOUT)
            .build()
            .map_err(|error| for_now(&reason(&error)))?;
        while let Some((number, of, body)) =
            tokio::task::block_in_place(|| self.samples.next_batch(id)).map_err(Failed::ForNow)?
        {
            let url = format!("{}/api/v1/collections/{id}/batches/{number}?of={of}", api_url.trim_end_matches('/'));
            let sent = client.put(&url).header("content-type", "application/octet-stream").body(body).send().await;
            let answer = sent.map_err(|error| for_now(&reason(&error)))?;
            let status = answer.status().as_u16();
            let said = bounded_body(answer).await.map_err(|_| for_now(&"the controller's answer breaks off"))?;
            if !(200..300).contains(&status) {
                let detail = serde_json::from_slice::<Problem>(&said).map(|problem| problem.detail).unwrap_or_default();
                let why = bounded_text(&format!("the controller does not take it ({status}): {detail}"));
                return Err(match status {
                    // The batch is there already, with other content: nothing else will ever be.
                    404 | 409 | 410 | 413 | 422 => Failed::ForGood(why),
                    _ => Failed::ForNow(why),
                });
            }
            let stored: BatchStored =
                serde_json::from_slice(&said).map_err(|_| for_now(&"the controller's answer does not parse"))?;
            tokio::task::block_in_place(|| self.samples.batch_stored(id, number, stored.samples))
                .map_err(Failed::ForNow)?;
        }
        Ok(())
    }
}

impl Samples {
    fn to_upload(&self) -> Vec<CollectionId> {
        let hot = self.hot();
        let waiting = hot.collections.iter().filter(|collection| collection.stage == CollectionStage::Uploading);
        waiting.map(|collection| collection.wanted.collection.clone()).collect()
    }

    fn waits(&self, id: &CollectionId, why: &str) {
        let mut hot = self.hot();
        let Some(collection) = hot.collection(id) else { return };
        if collection.reason.as_deref() != Some(why) {
            collection.reason = Some(why.to_owned());
            drop(hot);
            self.tell();
        }
    }

    /// The next batch to upload: its number, how many there are, its bytes. None when all are there.
    pub(super) fn next_batch(&self, id: &CollectionId) -> Result<Option<(u32, u32, Vec<u8>)>, String> {
        let _turn = self.turn();
        let disk = self.disk();
        let Some(store) = disk.get(id) else { return Ok(None) };
        let Some(plan) = store.plan().map_err(|error| with_source(&error))? else { return Ok(None) };
        let batches = store.batches();
        let Some(numbers) =
            batches.get(plan.batches_done as usize).filter(|_| plan.stage() == CollectionStage::Uploading)
        else {
            return Ok(None);
        };
        let mut batch = Batch::default();
        for number in numbers {
            batch.push(&store.read(*number).map_err(|error| with_source(&error))?);
        }
        Ok(Some((plan.batches_done, plan.batches, batch.into_bytes())))
    }

    /// The controller has batch `number`.
    pub(super) fn batch_stored(&self, id: &CollectionId, number: u32, samples: u64) -> Result<(), String> {
        let _turn = self.turn();
        let mut disk = self.disk();
        let Some(store) = disk.get_mut(id) else { return Ok(()) };
        let before = store.plan().map_err(|error| with_source(&error))?.unwrap_or_default();
        let plan =
            Plan { batches_done: number + 1, samples_done: before.samples_done.saturating_add(samples), ..before };
        // Not noted, it is sent once more, and is the same batch.
        store.store_plan(&plan).map_err(|error| with_source(&error))?;
        let is_done = plan.stage() == CollectionStage::Uploaded;
        if is_done {
            store.clear();
        }
        let mut hot = self.hot();
        if let Some(collection) = hot.collection(id) {
            collection.uploaded = plan.samples_done;
            collection.reason = None;
            if is_done {
                collection.stage = CollectionStage::Uploaded;
                collection.reservoir.retain(|_| false);
                tracing::info!(collection = %id, samples = plan.samples_done, "the samples of a collection are uploaded");
            }
        }
        drop(hot);
        if is_done {
            self.tell();
        }
        Ok(())
    }
}
