//! What follows from a shadow's answer: labels that meet it, and samples of what the two disagree on.
//!
//! On a thread of ordinary priority, as locks are taken here that whoever answers requests takes too: the shadow's own thread could be kept
//! from running for long while it holds one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use muster_inference::Tensor;

use super::Answered;
use crate::feedback::Feedback;
use crate::host::Active;
use crate::samples::{Offered, Samples};

/// A request that the shadow is done with.
pub(super) struct Ran {
    pub(super) answered: Answered,
    /// Whether it was run on the shadow.
    pub(super) was_run: bool,
    /// What the shadow answered; none where it failed.
    pub(super) outputs: Option<Vec<Tensor>>,
    /// The columns in which the two disagree.
    pub(super) disagreeing: Vec<String>,
}

impl Ran {
    /// One that was not run on the shadow.
    pub(super) fn not_at_all(answered: Answered) -> Self {
        Self { answered, was_run: false, outputs: None, disagreeing: Vec::new() }
    }
}

/// What the thread needs.
pub(super) struct Follower {
    pub(super) incumbent: Arc<Active>,
    pub(super) candidate: Arc<Active>,
    pub(super) feedback: Feedback,
    pub(super) samples: Option<Samples>,
}

/// How the shadow's thread hands over.
pub(super) struct Following {
    has_labels: bool,
    samples: Option<Samples>,
    queue: SyncSender<Ran>,
}

impl Follower {
    /// Starts the thread, which ends with the shadow's.
    pub(super) fn start(self) -> std::io::Result<Following> {
        // One is being dealt with and one waits: the shadow can wait for more, nobody waits for it.
        let (queue, waiting) = sync_channel(1);
        let (has_labels, samples) = (self.candidate.labels.is_some(), self.samples.clone());
        std::thread::Builder::new().name("shadow-labels".to_owned()).spawn(move || self.run(&waiting))?;
        Ok(Following { has_labels, samples, queue })
    }

    fn run(&self, waiting: &Receiver<Ran>) {
        while let Ok(Ran { answered, was_run, outputs, disagreeing }) = waiting.recv() {
            if let (Some(place), false) = (answered.place, was_run) {
                self.feedback.no_second_answer(place);
                continue;
            }
            if let (Some(place), Some(labels)) = (answered.place, &self.candidate.labels) {
                self.feedback.second_answer(place, labels, &answered.inputs, outputs.as_deref());
            }
            if let (Some(samples), false) = (&self.samples, disagreeing.is_empty()) {
                let Answered { id, at_ms, inputs, images, outputs, .. } = &answered;
                let offered = Offered { id, at_ms: *at_ms, inputs, images, outputs };
                samples.offer_disagreement(
                    &self.incumbent.served,
                    &self.candidate.served.manifest,
                    &offered,
                    &disagreeing,
                );
            }
        }
    }
}

impl Following {
    /// Hands `ran` over, where anything follows from it.
    pub(super) fn hand_over(&self, ran: Ran) {
        let wants_labels = self.has_labels && ran.answered.place.is_some();
        let wants_samples = !ran.disagreeing.is_empty() && self.samples.as_ref().is_some_and(Samples::is_open);
        if wants_labels || wants_samples {
            // It ends with this one.
            let _ = self.queue.send(ran);
        }
    }
}
