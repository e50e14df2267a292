//! What devices say, on its way into the store.
//!
//! Messages of different devices are taken in side by side, those of one device in their order; several at once share
//! one commit. Only after it are they acknowledged, does the fleet in memory change and the executor hear of it. A
//! message may come any number of times; it counts once. Nothing a device sends can do more than cost its own time:
//! what cannot be used is counted and told to operators, at most once a minute for each device.

mod kinds;
mod parse;
pub(crate) mod retention;
mod sequence;
mod worker;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use muster_shared::ids::DeviceId;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::broker::BrokerEvent;
use crate::content::Requests;
use crate::state::App;
use worker::Worker;

/// Devices are spread over this many workers.
const WORKERS: usize = 8;
/// Events waiting for one worker; when they are this many, the broker waits.
const QUEUE: usize = 256;
/// Events that share one commit.
const BATCH: usize = 128;

/// Starts taking in what `events` brings; wishes for chunks go to `chunks`. The task ends when the broker does, or when told to.
pub(crate) fn spawn(
    app: Arc<App>,
    mut events: mpsc::Receiver<BrokerEvent>,
    chunks: Requests,
    mut shutdown: watch::Receiver<bool>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                let (sender, receiver) = mpsc::channel(QUEUE);
                tasks.spawn(run(Worker::new(Arc::clone(&app), chunks.clone()), receiver));
                sender
            })
            .collect();
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                _ = shutdown.wait_for(|stop| *stop) => None,
            };
            let Some(event) = event else { break };
            let worker = &workers[worker_of(device_of(&event))];
            if worker.send(event).await.is_err() {
                tracing::error!("a worker that takes in messages has stopped");
                break;
            }
        }
        // What was received is still stored: the workers end when their queues are empty.
        drop(workers);
        while tasks.join_next().await.is_some() {}
    })
}

fn device_of(event: &BrokerEvent) -> &DeviceId {
    match event {
        BrokerEvent::Subscribed(device) | BrokerEvent::Disconnected(device) => device,
        BrokerEvent::Message { topic, .. } => &topic.device,
    }
}

fn worker_of(device: &DeviceId) -> usize {
    let mut hasher = DefaultHasher::new();
    device.hash(&mut hasher);
    usize::try_from(hasher.finish() % WORKERS as u64).unwrap_or(0)
}

async fn run(mut worker: Worker, mut events: mpsc::Receiver<BrokerEvent>) {
    let mut batch = Vec::with_capacity(BATCH);
    while events.recv_many(&mut batch, BATCH).await > 0 {
        worker.take_in(std::mem::take(&mut batch)).await;
    }
}

#[cfg(test)]
mod tests;
