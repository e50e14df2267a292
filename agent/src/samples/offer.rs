//! What happens to an inference once it is answered: whether a collection wants it. Whatever takes longer waits in a bounded queue.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use muster_inference::{Images, Tensor};
use muster_shared::collection::{CollectionStage, DISAGREES_FLAG, Rule};
use muster_shared::ids::{CollectionId, Digest};

use super::outlook::{Outlook, Read};
use super::{Collection, Hot, Samples};
use crate::host::ServedModel;

/// Samples that may wait to be sealed, and their bytes.
const MAX_QUEUED: usize = 64;
const MAX_QUEUED_BYTES: usize = 8 * 1024 * 1024;
/// Models whose profile is kept at hand: the one that serves, and one that has just been replaced.
const MAX_OUTLOOKS: usize = 2;

/// Columns that are named of those in which a shadow disagreed.
const MAX_DISAGREEING: usize = 4;

/// An inference that was answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offered<'a> {
    /// The caller's id, or the one that was made for it.
    pub(crate) id: &'a str,
    /// The device's clock, in milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
    /// What was asked, as the caller sent it.
    pub(crate) inputs: &'a [Tensor],
    /// What was measured of the images among it.
    pub(crate) images: &'a Images,
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

/// When an inference is offered.
#[derive(Debug, Clone, Copy)]
enum Occasion<'a> {
    /// It was answered.
    Answered,
    /// A shadow, the model of that manifest, disagreed with the answer, in these columns.
    Disagreed { shadow: &'a Digest, columns: &'a [String] },
}

impl Occasion<'_> {
    /// Whether a rule is about it.
    fn concerns(self, rule: &Rule) -> bool {
        matches!(self, Self::Disagreed { .. }) == matches!(rule, Rule::ShadowDisagreement {})
    }

    fn flags(self) -> Vec<String> {
        match self {
            Self::Answered => Vec::new(),
            Self::Disagreed { columns, .. } => {
                columns.iter().take(MAX_DISAGREEING).map(|name| format!("{DISAGREES_FLAG}{name}")).collect()
            }
        }
    }
}

fn matches(rule: &Rule, collection: &mut Collection, read: &Read) -> Match {
    let is = |yes: bool| if yes { Match::Yes } else { Match::No };
    match rule {
        Rule::Random { share } => is(collection.random.happens(*share)),
        Rule::LowConfidence { .. } if read.confidence.is_empty() => {
            Match::Unknown("the bundle's profile names no confidence: nothing can be held against the threshold")
        }
        // Where it cannot be told, nothing shows that it was low.
        Rule::LowConfidence { below } => is(read.confidence.iter().any(|value| value < below)),
        Rule::Outlier {} if !read.knows_outliers => {
            Match::Unknown("the bundle's profile does not say what an outlier is: build it with outliers.flag")
        }
        Rule::Outlier {} => is(!read.flags.is_empty()),
        Rule::ShadowDisagreement {} => Match::Yes,
    }
}

impl Samples {
    /// Whether any collection takes samples.
    pub(crate) fn is_open(&self) -> bool {
        self.inner.is_open.load(Ordering::Acquire)
    }

    /// Offers an inference that `model` answered to the collections there are.
    pub(crate) fn offer(&self, model: &ServedModel, offered: &Offered<'_>) {
        self.consider(model, offered, Occasion::Answered);
    }

    /// Offers an inference that `model` answered, and on which the shadow with the manifest `shadow` disagreed with it in `columns`.
    pub(crate) fn offer_disagreement(
        &self,
        model: &ServedModel,
        shadow: &Digest,
        offered: &Offered<'_>,
        columns: &[String],
    ) {
        self.consider(model, offered, Occasion::Disagreed { shadow, columns });
    }

    fn consider(&self, model: &ServedModel, offered: &Offered<'_>, occasion: Occasion<'_>) {
        if !self.is_open() {
            return;
        }
        let (manifest, Offered { id, at_ms, inputs, images, outputs }) = (model.manifest, *offered);
        let mut hot = self.hot();
        let wanted: Vec<Rule> =
            hot.wanting(&manifest, at_ms, occasion).map(|collection| collection.wanted.rule).collect();
        if wanted.is_empty() {
            return;
        }
        // Values are looked at only where a rule asks for them, and not under the lock.
        let reads_values = wanted.iter().any(|rule| matches!(rule, Rule::LowConfidence { .. } | Rule::Outlier {}));
        let outlook = hot.outlook(&manifest, model);
        let mut read = None;
        if reads_values {
            drop(hot);
            read = Some(outlook.read(inputs, images, outputs));
            hot = self.hot();
        }
        let bytes: usize = inputs.iter().chain(outputs).map(|tensor| tensor.data().len()).sum();
        let (queued, queued_bytes) = (hot.queue.len(), hot.queued_bytes);
        let is_full = queued >= MAX_QUEUED || queued_bytes.saturating_add(bytes) > MAX_QUEUED_BYTES;
        let mut jobs = Vec::new();
        let nothing = Read::default();
        for collection in hot.wanting(&manifest, at_ms, occasion) {
            if is_full {
                collection.dropped += 1;
                continue;
            }
            match matches(&collection.wanted.rule.clone(), collection, read.as_ref().unwrap_or(&nothing)) {
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
        // Those whose rule looks at no value are described as well, and only those that are kept.
        let Read { confidence, mut flags, .. } = read.unwrap_or_else(|| outlook.read(inputs, images, outputs));
        flags.extend(occasion.flags());
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
                confidence: confidence.clone(),
                flags: flags.clone(),
                bytes,
            });
        }
        drop(hot);
        self.inner.work.notify_one();
    }
}

impl Hot {
    fn wanting<'a>(
        &'a mut self,
        manifest: &'a Digest,
        at_ms: u64,
        occasion: Occasion<'a>,
    ) -> impl Iterator<Item = &'a mut Collection> {
        self.collections.iter_mut().filter(move |collection| {
            let names = |digest: &Digest| collection.wanted.manifests.contains(digest);
            // Of two that disagree, either may be the one that is to be learnt about.
            let is_named = names(manifest) || matches!(occasion, Occasion::Disagreed { shadow, .. } if names(shadow));
            collection.stage == CollectionStage::Sampling
                && at_ms < collection.wanted.ends_ms
                && occasion.concerns(&collection.wanted.rule)
                && is_named
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
