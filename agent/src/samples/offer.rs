//! What happens to an inference once it is answered: whether a collection wants it. Whatever takes longer waits in a bounded queue.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use muster_inference::Tensor;
use muster_shared::collection::{CollectionStage, Rule};
use muster_shared::ids::{CollectionId, Digest};

use super::outlook::Outlook;
use super::{Collection, Hot, Samples};
use crate::host::ServedModel;

/// Samples that may wait to be sealed, and their bytes.
const MAX_QUEUED: usize = 64;
const MAX_QUEUED_BYTES: usize = 8 * 1024 * 1024;
/// Models whose profile is kept at hand: the one that serves, and one that has just been replaced.
const MAX_OUTLOOKS: usize = 2;

/// An inference that was answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offered<'a> {
    /// The caller's id, or the one that was made for it.
    pub(crate) id: &'a str,
    /// The device's clock, in milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
    /// What was asked, as the caller sent it.
    pub(crate) inputs: &'a [Tensor],
    /// What the model answered; nothing when it failed.
    pub(crate) outputs: &'a [Tensor],
}

/// One that is kept.
pub(super) struct Answered {
    pub(super) id: String,
    pub(super) at_ms: u64,
    pub(super) inputs: Vec<Tensor>,
    pub(super) outputs: Vec<Tensor>,
}

/// A sample to be sealed.
pub(super) struct Job {
    pub(super) answered: Arc<Answered>,
    pub(super) collection: CollectionId,
    pub(super) manifest: Digest,
    pub(super) generation: u64,
    pub(super) confidence: Vec<f64>,
    pub(super) flags: Vec<String>,
    pub(super) bytes: usize,
}

/// What a rule says of an inference.
enum Match {
    Yes,
    No,
    /// It cannot be told.
    Unknown(&'static str),
}

fn matches(rule: &Rule, collection: &mut Collection, confidence: &[f64], flags: &[String]) -> Match {
    let is = |yes: bool| if yes { Match::Yes } else { Match::No };
    match rule {
        Rule::Random { share } => is(collection.random.happens(*share)),
        Rule::LowConfidence { .. } if confidence.is_empty() => {
            Match::Unknown("the bundle's profile names no confidence: nothing can be held against the threshold")
        }
        // Where it cannot be told, nothing shows that it was low.
        Rule::LowConfidence { below } => is(confidence.iter().any(|value| value < below)),
        Rule::Outlier {} => is(!flags.is_empty()),
        Rule::ShadowDisagreement {} => Match::No,
    }
}

impl Samples {
    /// Whether any collection takes samples.
    pub(crate) fn is_open(&self) -> bool {
        self.inner.is_open.load(Ordering::Acquire)
    }

    /// Offers an inference that `model` answered to the collections there are.
    pub(crate) fn offer(&self, model: &ServedModel, offered: &Offered<'_>) {
        if !self.is_open() {
            return;
        }
        let (manifest, Offered { id, at_ms, inputs, outputs }) = (model.manifest, *offered);
        let mut hot = self.hot();
        let wanted: Vec<Rule> = hot.wanting(&manifest, at_ms).map(|collection| collection.wanted.rule).collect();
        if wanted.is_empty() {
            return;
        }
        // Values are looked at only where a rule asks for them, and not under the lock.
        let reads_values = wanted.iter().any(|rule| !matches!(rule, Rule::Random { .. }));
        let outlook = hot.outlook(&manifest, model);
        let mut read = None;
        if reads_values {
            drop(hot);
            read = Some(outlook.read(inputs, outputs));
            hot = self.hot();
        }
        let bytes: usize = inputs.iter().chain(outputs).map(|tensor| tensor.data().len()).sum();
        let (queued, queued_bytes) = (hot.queue.len(), hot.queued_bytes);
        let is_full = queued >= MAX_QUEUED || queued_bytes.saturating_add(bytes) > MAX_QUEUED_BYTES;
        let mut jobs = Vec::new();
        for collection in hot.wanting(&manifest, at_ms) {
            if is_full {
                collection.dropped += 1;
                continue;
            }
            let (confidence, flags) = read.as_ref().map_or((&[][..], &[][..]), |read| (&read.confidence, &read.flags));
            match matches(&collection.wanted.rule.clone(), collection, confidence, flags) {
                Match::Yes => {}
                Match::No => continue,
                Match::Unknown(why) => {
                    collection.reason.get_or_insert_with(|| why.to_owned());
                    continue;
                }
            }
            if collection.reservoir.accepts() {
                collection.under_way += 1;
                jobs.push(collection.wanted.collection.clone());
            }
        }
        if jobs.is_empty() {
            return;
        }
        drop(hot);
        // Those of a random share are described as well, and only those that are kept.
        let read = read.unwrap_or_else(|| outlook.read(inputs, outputs));
        let answered =
            Arc::new(Answered { id: id.to_owned(), at_ms, inputs: inputs.to_vec(), outputs: outputs.to_vec() });
        let mut hot = self.hot();
        for collection in jobs {
            hot.queued_bytes += bytes;
            hot.queue.push_back(Job {
                answered: Arc::clone(&answered),
                collection,
                manifest,
                generation: model.generation,
                confidence: read.confidence.clone(),
                flags: read.flags.clone(),
                bytes,
            });
        }
        drop(hot);
        self.inner.work.notify_one();
    }
}

impl Hot {
    fn wanting<'a>(&'a mut self, manifest: &'a Digest, at_ms: u64) -> impl Iterator<Item = &'a mut Collection> {
        self.collections.iter_mut().filter(move |collection| {
            collection.stage == CollectionStage::Sampling
                && at_ms < collection.wanted.ends_ms
                && collection.wanted.manifests.contains(manifest)
        })
    }

    fn outlook(&mut self, manifest: &Digest, model: &ServedModel) -> Arc<Outlook> {
        if let Some((_, outlook)) = self.outlooks.iter().find(|(known, _)| known == manifest) {
            return Arc::clone(outlook);
        }
        let outlook = Arc::new(Outlook::new(model));
        if self.outlooks.len() >= MAX_OUTLOOKS {
            self.outlooks.remove(0);
        }
        self.outlooks.push((*manifest, Arc::clone(&outlook)));
        outlook
    }
}
